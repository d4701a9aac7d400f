"""How near a whole iteration comes to the machine's matrix product, stage by stage, and where the
time goes."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

import truth
from common import SETS, THREADS, Report, simulated, third_party
from datasets import first_images
from estep import gemm_rate
from halfmap.engine import accumulation as accumulate
from halfmap.engine import loop, method
from halfmap.fourier import lowpass
from halfmap.methods import search_schedule as schedule
from halfmap.pose_search import adaptive as search
from halfmap.pose_search import coarse_to_fine, grid_posterior, search_plan
from halfmap.pose_search import gauss_newton as local
from inside import on_true_maps, open_job, searching, settled, shells_of, step

IMAGES = 1500
# floating-point operations per Fourier sample, counted in the kernels' source; fetching and
# addressing are not operations
SLICE, EQUATIONS, GATHER, INSERT = (
    57,
    250,
    18,
    78,
)  # cut a slice; the 27 sums of a Gauss-Newton step; move and add; spread over 8 cells
SPLIT = ("coarse grid", "children", "continuous refinement")


@dataclass
class Meter:
    """Operations by stage, and seconds of the search's three parts."""

    operations: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    stage: str = "other"


def stages() -> Report:
    """A whole maximum-likelihood iteration, E-step and M-step, against the machine's matrix
    product: for each stage its share of the time, the floating-point operations it does by a
    second, and these as a share of the float32 matrix product's rate in the same run (2048^3, 2
    threads). Operations counted: matrix products (exactly), slices cut, Gauss-Newton sums, images
    moved and added, slices inserted (per sample, from the kernels' source). Transforms, masks, CTFs
    and the passes over scores are not counted: they are time without operations. 1,500 images,
    references: the true map on the images' scale, low-passed to the resolution given; one iteration
    that looks everywhere and one around the poses it found."""
    report = Report()
    torch.set_num_threads(THREADS)
    peak = gemm_rate()
    report.add("float32 matrix product, 2 threads", f"{peak / 1e9:.0f} GFLOP/s")
    report.numbers["gemm_flops"] = peak
    lines = []
    for name, symmetry, diameter, resolution in (
        ("ribo", "C1", 270.0, 16.0),
        ("trpv1", "C4", 170.0, 6.0),
    ):
        star = first_images(simulated(name) / "particles.star", IMAGES)
        path = third_party("maps", SETS[name][0][0])
        opened = open_job(
            star,
            [path],
            diameter_angstrom=diameter,
            lowpass_angstrom=40,
            symmetry=symmetry,
            threads=THREADS,
        )
        volume, pixel = truth.read_volume(path)
        true_map = lowpass(torch.from_numpy(volume), resolution, pixel, dimensions=3)[None]
        radius = shells_of(len(volume), pixel, resolution)
        state = on_true_maps(opened, step(opened, opened.state).after, true_map, radius)
        state = step(opened, state).after  # poses near their places, kernels compiled
        for title, before in (
            ("everywhere", searching(opened.settings, state)),
            ("around known poses", settled(state)),
        ):
            with counting() as meter:
                measured = step(opened, on_true_maps(opened, before, true_map, radius))
            lines += told(
                report, peak, f"{name} to {resolution:g} A, {title}", measured.stages, meter
            )
    report.numbers["printed"] = "\n".join(lines)
    return report


def told(
    report: Report, peak: float, title: str, seconds: dict[str, float], meter: Meter
) -> list[str]:
    whole, operations = sum(seconds.values()), sum(meter.operations.values())
    share = operations / whole / peak
    report.add(
        f"{title}: whole iteration",
        f"{1e3 * whole / IMAGES:.2f} ms an image",
        f"{operations / whole / 1e9:.0f} GFLOP/s, {share:.0%}",
    )
    lines = [
        title,
        f"{'stage':24} {'ms an image':>12} {'of the time':>12} {'GFLOP/s':>9} {'of GEMM':>8}",
    ]
    parts = {name: meter.seconds[name] for name in SPLIT if meter.seconds[name]}
    rest = {f"search: {name}": spent for name, spent in parts.items()}
    rest["search: rest"] = max(0.0, seconds["search"] - sum(parts.values()))
    for stage, spent in {
        **rest,
        **{name: s for name, s in seconds.items() if name != "search"},
    }.items():
        done = meter.operations[stage.removeprefix("search: ")]
        rate = (
            f"{done / spent / 1e9:9.1f} {done / spent / peak:8.1%}"
            if done and spent
            else f"{'-':>9} {'-':>8}"
        )
        lines.append(f"{stage:24} {1e3 * spent / IMAGES:12.3f} {spent / whole:12.1%} {rate}")
    print("\n".join(f"    {line}" for line in lines), flush=True)
    report.numbers[title] = {
        "seconds": {**seconds, **parts},
        "operations": dict(meter.operations),
        "share_of_gemm": share,
    }
    return [*lines, ""]


@contextmanager
def counting() -> Iterator[Meter]:
    """The engine's parts count their operations and the search's parts their seconds, until the end
    of the block."""
    meter, kept = Meter(), []

    def wrap(module, name: str, *, stage: str = "", operations: Callable | None = None) -> None:
        function = getattr(module, name)
        kept.append((module, name, function))

        def wrapped(*args, **options):
            outer, meter.stage = meter.stage, stage or meter.stage
            started = time.perf_counter()
            result = function(*args, **options)
            if operations is None:
                meter.seconds[stage] += time.perf_counter() - started
            else:
                meter.operations[meter.stage] += operations(result, args, options)
            meter.stage = outer
            return result

        setattr(module, name, wrapped)

    wrap(search, "best_cells", stage=SPLIT[0])
    wrap(search, "best_children", stage=SPLIT[1])
    wrap(schedule, "prepare_search", stage="references")
    for module in (search, schedule):
        wrap(module, "refine_candidates", stage=SPLIT[2])
    # (terms, phases, slices (.., J), plane) -> scores
    for module, name in (
        (coarse_to_fine, "cross_terms"),
        (coarse_to_fine, "cross_terms_own"),
        (grid_posterior, "cross_terms"),
    ):
        wrap(
            module, name, operations=lambda result, args, _: 4 * result.numel() * args[2].shape[-1]
        )
    for module in (coarse_to_fine, grid_posterior):
        wrap(
            module,
            "slice_power",
            operations=lambda result, args, _: 2 * result.numel() * args[1].shape[0],
        )
    wrap(
        coarse_to_fine,
        "slice_power_own",
        operations=lambda result, args, _: 2 * result.numel() * args[1].shape[-1],
    )
    for module in (search, search_plan):
        wrap(module, "extract_slices", operations=lambda result, args, _: SLICE * result.numel())
    wrap(
        local,
        "pose_equations",
        operations=lambda result, args, _: EQUATIONS * len(result) * args[3],
    )
    wrap(
        method,
        "extract_slices",
        stage="noise",
        operations=lambda result, args, _: SLICE * result.numel(),
    )
    for module, name, stage in (
        (loop, "slice_terms", "sums"),
        (method, "expected_images", "noise"),
    ):
        wrap(
            module,
            name,
            stage=stage,
            operations=lambda result, args, _: GATHER * len(args[1].image) * result.power.shape[1],
        )
    wrap(
        accumulate,
        "insert_slices",
        stage="sums",
        operations=lambda result, args, options: (
            INSERT * args[1].numel() * len(options["symmetry"])
        ),
    )
    try:
        yield meter
    finally:
        for module, name, function in reversed(kept):
            setattr(module, name, function)
