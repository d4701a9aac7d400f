"""Does halfmap work on this machine's GPU, and how fast? Tests on it, then whole jobs on data that it
simulates there. Under 8 minutes on one H100.

    python benchmarks/device_check.py                  the table, and a record in results/device_check.json
    python benchmarks/device_check.py --small          the same on tiny data, on any device, the CPU too

Each job runs in a process of its own: its peak memory is its own, and one that fails or takes too
long leaves the others alone. The images are slices of the phantom, cut, shifted, multiplied by the
CTF and given white noise on the device.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

import common

TESTS = ("tests/test_kernels.py", "tests/test_projection.py", "tests/commands/test_devices.py")
WHOLE_CHECK_S = 460.0  # a job that would end later is stopped
DEFOCUS_ANGSTROM, SHIFT_RMS_PX, IMAGES_AT_ONCE = (8000.0, 22000.0), 2.0, 500
SEED = 1
ALIKE = 0.999


@dataclass(frozen=True)
class Set:
    """Simulated images: how many, box, pixel, the phantom's forms (symmetry, state) they show, SNR."""

    n: int
    box: int
    pixel_angstrom: float
    forms: tuple[tuple[str, int], ...]
    snr: float


@dataclass(frozen=True)
class Job:
    """A job on one of the sets, and what stands beside it."""

    command: str
    data: str
    options: dict[str, object]
    beside: str = ""
    limit_s: float = 150.0


ONE, FOUR = (("C4", 0),), (("C4", 0), ("C4", 1), ("C1", 0), ("C1", 1))
SETS = {
    "one": Set(10_000, 128, 1.6, ONE, 0.05),
    "mixture": Set(10_000, 128, 1.6, FOUR, 0.05),
    "views": Set(20_000, 64, 3.2, ONE, 0.1),
}
JOBS = {
    "refine 10,000 x 128^2, 6 iterations": Job(
        "refine", "one", {"symmetry": "C4", "iterations": 6}, "RELION 5 refine, 80 GB card: 507 s"
    ),
    "class3d 10,000 x 128^2, K = 4, 5 iterations": Job(
        "class3d",
        "mixture",
        {"classes": 4, "iterations": 5},
        "RELION 5, H100: 117-143 s (recovar's benchmark notes)",
    ),
    "class2d 20,000 x 64^2, K = 50, 5 iterations": Job(
        "class2d", "views", {"classes": 50, "iterations": 5}
    ),
    "abinitio 20,000 x 64^2": Job(
        "abinitio", "views", {"symmetry": "C4", "early_symmetry": True, "diameter_angstrom": 150.0}
    ),
}
SMALL_SETS = {
    "one": Set(60, 28, 7.0, ONE, 0.5),
    "mixture": Set(60, 28, 7.0, FOUR[:2], 0.5),
    "views": Set(60, 28, 7.0, ONE, 0.5),
}
_COARSE = {"angular_step_deg": 30.0, "iterations": 1}
SMALL_JOBS = {
    "refine 60 x 28^2": Job("refine", "one", {"symmetry": "C4", **_COARSE}),
    "class3d 60 x 28^2, K = 2": Job(
        "class3d", "mixture", {"classes": 2, "symmetry": "C4", **_COARSE}
    ),
    "class2d 60 x 28^2, K = 3": Job("class2d", "views", {"classes": 3, **_COARSE}),
    "abinitio 60 x 28^2": Job(
        "abinitio",
        "views",
        {"symmetry": "C4", "early_symmetry": True, "diameter_angstrom": 150.0, "iterations": 2},
    ),
}
# a search and its map, here and on the CPU: they must agree. One iteration: further ones would look
# for poses in maps that rounding has already changed, by one significant pose more or less
COMPARED = Set(200, 32, 6.0, ONE, 0.4)


# --- data, made on the device -----------------------------------------------------------------------


def simulate(data: Set, folder: Path, device: torch.device) -> None:
    """Images of a set with `particles.star` and the forms as `truth_1.mrc`, ...: slices at random
    rotations in turn of each form, random origins and defoci, white noise."""
    from halfmap.fourier import half_plane, inverse_fourier_transform, largest_radius, shift_phases
    from halfmap.io.mrc import write_map
    from halfmap.io.stack_writer import StackWriter
    from halfmap.projection import extract_slices, prepare_references
    from halfmap.simulation.phantom import phantom
    from halfmap.so3 import random_rotations
    from halfmap.transfer_function import ctf

    folder.mkdir(parents=True)
    volumes = [
        phantom(data.box, data.pixel_angstrom, symmetry=group, state=state)
        for group, state in data.forms
    ]
    for k, volume in enumerate(volumes, 1):
        write_map(folder / f"truth_{k}.mrc", volume.numpy(), data.pixel_angstrom)
    plane = half_plane(data.box, largest_radius(data.box), device)
    references = prepare_references(torch.stack(volumes).to(device), plane.radius)
    generator = torch.Generator().manual_seed(SEED)
    rotations = random_rotations(data.n, generator)
    shift_px = torch.randn(data.n, 2, generator=generator) * SHIFT_RMS_PX / math.sqrt(2)
    low, high = DEFOCUS_ANGSTROM
    defocus = low + (high - low) * torch.rand(data.n, generator=generator)
    noise = torch.Generator(device).manual_seed(SEED)
    spread = None
    with StackWriter(folder / "particles.mrcs", data.pixel_angstrom) as stack:
        for rows in torch.arange(data.n).split(IMAGES_AT_ONCE):
            slices = extract_slices(
                references,
                rotations[rows].to(device),
                plane,
                classes=(rows % len(volumes)).to(device),
            )
            transfer = ctf(
                _transfer(defocus[rows], device), *plane.frequencies(data.pixel_angstrom)
            )
            moved = slices * shift_phases(-shift_px[rows].to(device), plane) * transfer
            clean = inverse_fourier_transform(moved, plane)
            spread = spread or float(clean.var()) ** 0.5
            white = torch.randn(clean.shape, generator=noise, device=device)
            stack.append((white + clean * (data.snr**0.5 / spread)).cpu().numpy())
    _write_star(folder / "particles.star", data, defocus)


def _transfer(defocus_angstrom: torch.Tensor, device: torch.device):
    from halfmap.transfer_function import CTFParameters

    one = torch.ones_like(defocus_angstrom)
    return CTFParameters(
        defocus_u_angstrom=defocus_angstrom,
        defocus_v_angstrom=defocus_angstrom,
        defocus_angle_deg=0 * one,
        voltage_kv=300 * one,
        spherical_aberration_mm=2.7 * one,
        amplitude_contrast=0.1 * one,
        phase_shift_deg=0 * one,
        bfactor_angstrom2=0 * one,
        scale=one,
        beam_tilt_x_mrad=0 * one,
        beam_tilt_y_mrad=0 * one,
    ).to(device)


def _write_star(path: Path, data: Set, defocus_angstrom: torch.Tensor) -> None:
    from halfmap.io.star import write_star
    from halfmap.io.table import Table

    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnImagePixelSize": [data.pixel_angstrom],
        "rlnImageSize": [data.box],
        "rlnImageDimensionality": [2],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    defocus = defocus_angstrom.double().numpy()
    particles = {
        "rlnImageName": [f"{i:06d}@particles.mrcs" for i in range(1, data.n + 1)],
        "rlnMicrographName": [f"mic{i // 40 + 1:05d}.mrc" for i in range(data.n)],
        "rlnOpticsGroup": [1] * data.n,
        "rlnDefocusU": defocus,
        "rlnDefocusV": defocus,
        "rlnDefocusAngle": 0 * defocus,
    }
    tables = {"optics": Table.from_columns(optics), "particles": Table.from_columns(particles)}
    write_star(path, tables)


# --- jobs, each in a process of its own -------------------------------------------------------------


def run_job(job: Job, data: Path, out: Path, device: str) -> dict[str, object]:
    """Run a job to its end; wall seconds, share of time by stage, peak memory, resolution."""
    import halfmap

    inputs: list[object] = [data / "particles.star"]
    if job.command in ("refine", "class3d"):
        maps = sorted(data.glob("truth_*.mrc"))
        inputs.append(maps if job.command == "class3d" else maps[0])
    started = time.perf_counter()
    result = getattr(halfmap, job.command)(
        *inputs, out, device=device, overwrite=True, quiet=True, **job.options
    )
    wall = time.perf_counter() - started
    seconds: Counter[str] = Counter()
    for event in common.events(out):
        seconds.update(event.get("seconds", {}))
    from halfmap.workspace.machine import peak_memory_bytes

    on_cuda = device == "cuda"
    return {
        "wall_s": wall,
        "stages_s": dict(seconds),
        "outside_iterations_s": wall - sum(seconds.values()),
        "device_bytes": torch.cuda.max_memory_allocated() if on_cuda else None,
        "resident_bytes": peak_memory_bytes(),
        "resolution_angstrom": getattr(result, "resolution_angstrom", None),
    }


def compare(folder: Path, device: str) -> dict[str, object]:
    """A small refinement on the device and on the CPU's own kernels: how alike maps and poses are,
    with the products of the search in float32 on both, and how far the device's fast products alone
    move them. On the CPU the plain torch kernels stand for the device."""
    import halfmap
    from halfmap.io.mrc import read_map
    from halfmap.particles import load_particles
    from halfmap.pose_search import coarse_to_fine
    from halfmap.so3 import angular_distance_deg, euler_to_matrix
    from halfmap.symmetries import symmetry_matrices

    data = folder / "compared"
    simulate(COMPARED, data, torch.device("cpu"))
    fast, exact = coarse_to_fine.fast_products, contextlib.nullcontext
    for name, where, kernels, products in (
        ("cpu", "cpu", "numba", exact),
        ("device", device, "torch", exact),
        ("fast", device, "torch", fast),
    ):
        os.environ["HALFMAP_KERNELS"] = kernels
        coarse_to_fine.fast_products = products
        halfmap.refine(
            data / "particles.star",
            data / "truth_1.mrc",
            data / name,
            symmetry="C4",
            angular_step_deg=15.0,
            initial_lowpass_angstrom=15.0,
            iterations=1,
            device=where,
            quiet=True,
        )

    def alike(first: str, second: str) -> tuple[float, float]:
        """Correlation of the maps, median angle between the poses."""
        names = (first, second)
        maps = [torch.from_numpy(read_map(data / k / "map.mrc")[0]).flatten() for k in names]
        poses = [load_particles(data / k / "particles.star") for k in names]
        rotations = (euler_to_matrix(p.rotations_deg) for p in poses)
        angle = angular_distance_deg(*rotations, symmetry=symmetry_matrices("C4"))
        correlation = torch.corrcoef(torch.stack(maps).double())[0, 1]
        return float(correlation), float(angle.median())

    correlation, angle = alike("cpu", "device")
    fast_correlation, fast_angle = alike("device", "fast")
    return {
        "correlation": correlation,
        "median_angle_deg": angle,
        "fast_correlation": fast_correlation,
        "fast_median_angle_deg": fast_angle,
        "agree": correlation > ALIKE,
    }


def in_own_process(arguments: list[str], limit_s: float) -> dict[str, object]:
    """What this script prints last when it is run with some arguments; `failed` says why there is
    nothing."""
    if limit_s <= 0:
        return {"failed": "no time left"}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit_s:.0f} s"}
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        return {"failed": f"exit code {done.returncode}: {told[-1]}", "told": told[-30:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_tests(device: str, limit_s: float) -> dict[str, object]:
    """The quick tests that run on every device, on this one."""
    name = "torch" if device == "cpu" else device
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-k", name, *TESTS]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=common.ROOT, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit_s:.0f} s"}
    told = done.stdout.strip().splitlines() or ["no output"]
    result: dict[str, object] = {"wall_s": time.perf_counter() - started, "summary": told[-1]}
    return result | ({"failed": told[-1], "told": told[-30:]} if done.returncode else {})


# --- the table --------------------------------------------------------------------------------------


def described(figures: dict) -> str:
    """One line of the table: seconds, shares of stages, memory."""
    if "failed" in figures:
        return f"FAILED: {figures['failed']}"
    if "correlation" in figures:
        words = (
            f"correlation {figures['correlation']:.5f}, poses {figures['median_angle_deg']:.3g} deg"
            f" (fast products: {figures['fast_correlation']:.5f}, "
            f"{figures['fast_median_angle_deg']:.3g} deg)"
        )
        return words if figures["agree"] else f"FAILED: {words}"
    if "summary" in figures:
        return str(figures["summary"])
    wall, parts = figures["wall_s"], []
    stages = {**figures["stages_s"], "outside": figures["outside_iterations_s"]}
    for name, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        if seconds > 0.01 * wall:
            parts.append(f"{name} {100 * seconds / wall:.0f} %")
    memory = f"resident {figures['resident_bytes'] / 2**30:.1f} GiB"
    if figures["device_bytes"] is not None:
        memory = f"GPU {figures['device_bytes'] / 2**30:.1f} GiB, {memory}"
    resolution = figures["resolution_angstrom"]
    reached = "" if resolution is None else f"; {resolution:.2f} A"
    return f"{wall:.1f} s ({', '.join(parts)}); {memory}{reached}"


def beside(what: str) -> str:
    """What stands beside a figure of the table."""
    return JOBS[what].beside if what in JOBS else ""


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def check(device: str, scratch: Path, *, small: bool, limit_s: float) -> dict[str, dict]:
    """All figures, by what was measured; each line is printed when it is there."""
    jobs, started, figures = SMALL_JOBS if small else JOBS, time.perf_counter(), {}

    def left() -> float:
        return limit_s - (time.perf_counter() - started)

    def note(what: str, found: dict, beside: str = "") -> None:
        figures[what] = found
        print(f"{what:46} {described(found)}{f'   beside: {beside}' if beside else ''}", flush=True)
        for line in found.get("told", []):
            print(f"    {line}", flush=True)

    common_words = ["--device", device, "--scratch", str(scratch), *(["--small"] if small else [])]
    if not small:
        note(f"tests on {device}", run_tests(device, min(150.0, left())))
    note("refine, the same as on the CPU", in_own_process(["--compare", *common_words], left()))
    for name in SMALL_SETS if small else SETS:
        words = ["--simulate", name, *common_words]
        if "failed" in (found := in_own_process(words, left())):
            note(f"simulated set {name}", found)
    for what, job in jobs.items():
        words = ["--job", what, *common_words]
        note(what, in_own_process(words, min(job.limit_s, left())), job.beside)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--limit-s", type=float, default=WHOLE_CHECK_S, help="for all of it")
    parser.add_argument("--small", action="store_true", help="tiny data, on any device")
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], help="default: CUDA if there")
    parser.add_argument("--scratch", type=Path, default=common.RUNS / "device_check")
    parser.add_argument("--json", type=Path, help="where the record goes; not kept with --small")
    parser.add_argument("--simulate", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sets, jobs = (SMALL_SETS, SMALL_JOBS) if chosen.small else (SETS, JOBS)
    scratch: Path = chosen.scratch
    if chosen.simulate or chosen.job or chosen.compare:
        found: dict[str, object] = {}
        if chosen.simulate:
            simulate(sets[chosen.simulate], scratch / chosen.simulate, torch.device(device))
        elif chosen.compare:
            found = compare(scratch, device)
        else:
            job = jobs[chosen.job]
            found = run_job(job, scratch / job.data, scratch / f"job_{job.command}", device)
        print(json.dumps(found))
        return 0
    if device == "cpu" and not chosen.small:
        print("device_check: expected a CUDA device, found none; --small runs it on the CPU")
        return 2
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    print(f"halfmap {common.git_commit()} on {device_name(device)}", flush=True)
    started = time.perf_counter()
    figures = check(device, scratch, small=chosen.small, limit_s=chosen.limit_s)
    wall = time.perf_counter() - started
    print(f"{'the whole check':46} {wall:.0f} s")
    shutil.rmtree(scratch, ignore_errors=True)
    target = chosen.json or (None if chosen.small else common.RESULTS / "device_check.json")
    if target is not None:
        _record(target, device, figures, wall)
    failed = [what for what, found in figures.items() if described(found).startswith("FAILED")]
    return 1 if failed else 0


def _record(path: Path, device: str, figures: dict, wall: float) -> None:
    """Append the figures to a JSON list, newest last."""
    records = json.loads(path.read_text()) if path.exists() else []
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": common.git_commit(),
        "machine": common.machine(),
        "device": device_name(device),
        "wall_s": wall,
        "figures": figures,
    }
    path.write_text(json.dumps([*records, record], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
