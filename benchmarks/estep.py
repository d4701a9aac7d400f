"""How near the search step comes to the machine's matrix product, from end to end, and where the
rest goes."""

import time
from collections.abc import Callable

import torch

import pose_search
import truth
from common import SETS, THREADS, Report, simulated, third_party
from halfmap.fourier import lowpass
from halfmap.pose_search import adaptive as search
from halfmap.pose_search import refinement as modes
from halfmap.pose_search.coarse_to_fine import best_cells, best_children
from halfmap.pose_search.search_plan import GlobalSearch
from halfmap.projection import prepare_references

IMAGES = 256


def estep() -> Report:
    """The E-step of projection matching, `search_globally` on 256 images: multiply-adds of its two
    matrix products (coarse grid, kept cells' children; cross terms and slice powers) over the time
    of the whole step, which also holds the passes over scores, selection, slice gathering and the
    continuous refinement. Beside it the float32 matrix product of this machine in the same run
    (2048^3, 2 threads). A second rate counts the two product stages alone. Shortest of three runs
    each."""
    report = Report()
    torch.set_num_threads(THREADS)
    peak = gemm_rate()
    report.add("float32 matrix product, 2 threads", f"{peak / 1e9:.0f} GFLOP/s")
    report.numbers["gemm_flops"] = peak
    for name, symmetry, diameter, resolutions in (
        ("ribo", "C1", 270.0, (60.0, 20.0)),
        ("trpv1", "C4", 170.0, (40.0, 6.0)),
    ):
        for resolution in resolutions:
            measure(report, peak, name, symmetry, diameter, resolution)
    return report


def gemm_rate(side: int = 2048, repeats: int = 10) -> float:
    """Best of some products of two square float32 matrices, in floating-point operations per
    second."""
    a, b = torch.randn(2, side, side)
    return 2 * side**3 / min(seconds(lambda: a @ b)[0] for _ in range(repeats))


def seconds(function: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def best_of_three(function: Callable) -> tuple[float, object]:
    """The shortest of three runs, after one that compiles kernels and fills caches; other work on
    the machine only lengthens them."""
    function()
    runs = [seconds(function) for _ in range(3)]
    return min(run[0] for run in runs), runs[0][1]


def measure(
    report: Report,
    peak: float,
    name: str,
    symmetry: str,
    diameter_angstrom: float,
    resolution_angstrom: float,
) -> None:
    """Rates and split of time on one set, scored to one resolution against the true map filtered to
    it."""
    known = pose_search.load(
        simulated(name) / "particles.star", symmetry=symmetry, diameter_angstrom=diameter_angstrom
    )
    problem, particles = known.problem, known.particles
    volume = torch.from_numpy(truth.read_volume(third_party("maps", SETS[name][0][0]))[0])
    volume = lowpass(volume, resolution_angstrom, particles.pixel_size_angstrom, dimensions=3)
    radius = round(particles.box * particles.pixel_size_angstrom / resolution_angstrom)
    references = prepare_references(volume[None], radius)
    plane, settings = (
        problem.plane,
        modes.SearchSettings(problem.specimen),
    )
    plan = search.prepare_search(references, settings, radius)
    terms = pose_search.batch_terms(known, torch.arange(IMAGES), torch.zeros(IMAGES, 2))
    centre = torch.zeros(IMAGES, 2)
    coarse, (cells, counts) = best_of_three(lambda: best_cells(plan, terms, centre, plane))
    fine, found = best_of_three(lambda: best_children(plan, terms, centre, plane, cells, counts))
    whole, _ = best_of_three(lambda: search.search_globally(plan, terms, centre, plane, radius))
    local = max(0.0, whole - coarse - fine)
    operations = products(plan)
    rate, rate_of_products = operations / whole, operations / (coarse + fine)
    title = f"{name} to {resolution_angstrom:g} A"
    report.add(f"{title}: search step, per image", f"{1e3 * whole / IMAGES:.2f} ms (2 threads)")
    report.add(
        f"{title}: rate from end to end",
        f"{rate / 1e9:.0f} GFLOP/s",
        f"{rate / peak:.0%} of the matrix product's",
    )
    report.add(
        f"{title}: product stages alone",
        f"{rate_of_products / 1e9:.0f} GFLOP/s",
        f"{rate_of_products / peak:.0%}",
    )
    split = f"{coarse / whole:.0%} coarse, {fine / whole:.0%} children, {local / whole:.0%} continuous refinement"
    report.add(f"{title}: where the time goes", split)
    report.numbers[title] = {
        "whole_s": whole,
        "coarse_s": coarse,
        "fine_s": fine,
        "operations": operations,
        "images": IMAGES,
        "share_of_gemm": rate / peak,
        "coarse_columns": len(plan.slices),
        "coarse_samples": len(plan.planes[0]),
        "fine_samples": len(plan.planes[1]),
        "shifts": [len(s) for s in plan.shifts],
        "kept": plan.kept,
        "candidates": int(found.score.shape[1]),
    }


def products(plan: GlobalSearch) -> float:
    """Floating-point operations (two for each multiply-add) of the matrix products of one search
    over `IMAGES` images.

    Cross terms are products of rows (image, shift) of 2 J numbers with columns of 2 J numbers;
    powers are rows of J numbers for shared columns, 2 J where each image has columns of its own."""
    (coarse, fine), (few, many) = plan.planes, plan.shifts
    columns, children = len(plan.slices), plan.kept * plan.grid.children.shape[1]
    multiply_adds = columns * len(coarse) * (2 * len(few) + 1) + children * 2 * len(fine) * (
        len(many) + 1
    )
    return 2.0 * IMAGES * multiply_adds
