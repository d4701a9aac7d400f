"""The peer: RELION 5's recorded figures, and Debian's RELION 3.1 run beside where it is installed.

RELION 5.0.1 (commit 73f0a3c, gcc 12 -O3 -march=native, `--cpu`) ran on 2 cores of an Intel Xeon
with AVX-512 and AMX, on these very images, outside this repository; the commands stand in
docs/benchmarks/how.md. Ratios of CPU seconds against it are across machines.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import RUNS, Cost, Report, Skip, run

RECORDED = "RELION 5, recorded on another machine"


@dataclass(frozen=True)
class RecordedRefinement:
    """One refinement as recorded; CPU seconds are user + system."""

    cpu_s: float
    wall: str
    iterations: str
    reported: str
    fsc_half_to_truth_angstrom: float
    error_median_deg: float
    error_p90_deg: float
    shift_error_angstrom: float


REFINEMENT = {
    "trpv1": RecordedRefinement(
        3078 + 502, "30 min", "17, converged", "5.11 A", 5.00, 0.48, 0.81, 0.26
    ),
    "ribo": RecordedRefinement(
        2500, "stopped", "9, not converged", "21.3 A", 15.8, 2.26, 3.76, 0.75
    ),
}
# trpv1_low, from 40 A; ribo_mix_low, K = 16, 15 iterations
LOW_REFINEMENT = RecordedRefinement(710, "", "14, converged", "", 5.09, 1.07, 1.79, 0.45)
LOW_CLASS2D_CPU_S = 370
CLASS2D_CPU_S, CLASS2D_MS, CLASS2D_SPREAD_DEG = (
    716,
    15.9,
    34,
)  # ribo_mix, K = 20, 15 iterations, one core
CLASS3D_CPU_S, CLASS3D_RAND_INDEX, CLASS3D_ERROR_DEG = (
    3421,
    0.0,
    4.8,
)  # ribo_mix, K = 2, 15 iterations, one core
# ribo, `--iter 100 --grad --denovo_3dref --K 1 --healpix_order 1 --offset_range 6 --offset_step 2
# --auto_sampling --tau2_fudge 4`, one core stopped at iteration 35 of 100; the map of iteration 30
# against the truth, at 0.5 and at 0.143
INITIAL_CPU_S, INITIAL_STOPPED_AT, INITIAL_ITERATIONS, INITIAL_ANGSTROM = 2697, 35, 100, (57, 24)
REAL_RIBOSOME = {
    "halves": 28.6,
    "half1": 37.5,
    "all": 29.6,
}  # relion_reconstruct of RELION 5: A at 0.143 and at 0.5


def version(program: str = "relion_reconstruct") -> str:
    """Of the installed program, for instance 3.1.3; empty if there is none."""
    program = shutil.which(program)
    if program is None:
        return ""
    text = subprocess.run([program, "--version"], capture_output=True, text=True)
    words = (text.stdout + text.stderr).replace(",", " ").split()
    return next(
        (word.removesuffix("-debian").rstrip(".") for word in words if word[:1].isdigit()),
        "unknown version",
    )


def reconstruct(
    report: Report, star: Path, out: Path, *, symmetry: str = "C1", subset: int | None = None
) -> Cost:
    """`relion_reconstruct --ctf`; it looks for stacks from its working directory, so it runs beside
    the STAR.

    Raises:
        Skip: it is not installed.
    """
    if not version():
        raise Skip("relion_reconstruct is not installed")
    command = ["relion_reconstruct", "--i", star.name, "--o", out, "--ctf", "--sym", symmetry]
    command += ["--subset", str(subset)] if subset else []
    return run(report, command, log=f"relion_{out.stem}", cwd=star.parent)


def class2d(
    report: Report, star: Path, name: str, *, classes: int, iterations: int, diameter: str
) -> tuple[Path, Cost]:
    """`relion_refine` as the recorded 2D classification ran, one thread; the STAR that it wrote
    last, and what it took.

    Debian's 3.1 has no vectorised path (`--cpu`).

    Raises:
        Skip: it is not installed.
    """
    if not version("relion_refine"):
        raise Skip("relion_refine is not installed")
    folder = RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "relion_refine",
        "--i",
        star.name,
        "--o",
        folder / "run",
        "--K",
        f"{classes}",
        "--iter",
        f"{iterations}",
    ]
    command += [
        "--tau2_fudge",
        "2",
        "--ctf",
        "--particle_diameter",
        diameter,
        "--flatten_solvent",
        "--zero_mask",
        "--oversampling",
        "1",
    ]
    command += [
        "--psi_step",
        "12",
        "--offset_range",
        "5",
        "--offset_step",
        "2",
        "--norm",
        "--scale",
        "--pool",
        "30",
        "--j",
        "1",
    ]
    cost = run(report, [*command, "--random_seed", "1"], log=name, cwd=star.parent)
    return folder / f"run_it{iterations:03d}_data.star", cost


def auto_refine(
    report: Report,
    star: Path,
    name: str,
    *,
    reference: Path,
    symmetry: str,
    lowpass_angstrom: float,
    diameter_angstrom: float,
) -> tuple[Path, Cost]:
    """`relion_refine_mpi --auto_refine` as the recorded refinements ran, three processes of one
    thread; its folder, and what all of them took.

    Raises:
        Skip: it is not installed.
    """
    if not version("relion_refine_mpi") or not shutil.which("mpirun"):
        raise Skip("relion_refine_mpi or mpirun is not installed")
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["mpirun", "-n", "3", "--allow-run-as-root", "--oversubscribe", "relion_refine_mpi"]
    command += ["--auto_refine", "--split_random_halves", "--i", star.name, "--ref", reference]
    command += ["--o", folder / "run", "--sym", symmetry, "--ini_high", f"{lowpass_angstrom:g}"]
    command += ["--particle_diameter", f"{diameter_angstrom:g}", "--ctf", "--flatten_solvent"]
    command += ["--zero_mask", "--oversampling", "1", "--healpix_order", "2", "--norm", "--scale"]
    command += ["--auto_local_healpix_order", "4", "--offset_range", "5", "--offset_step", "2"]
    command += ["--pool", "30", "--firstiter_cc", "--low_resol_join_halves", "40", "--pad", "2"]
    cost = run(report, [*command, "--j", "1", "--random_seed", "1"], log=name, cwd=star.parent)
    return folder, cost
