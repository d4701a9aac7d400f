"""Real sizes: cost and memory as the box grows, symmetry, and the two large sets in full."""

import json
import re
import subprocess
from dataclasses import dataclass

import numpy as np

import relion
from common import DATA, HALFMAP, RUNS, Cost, Report, events, job_folder, run, third_party
from datasets import first_images, fourier_pad, phantom_map, phantom_particles, save_map
from refine_simulated import judged

BOXES, IMAGES, ITERATIONS = (64, 128, 192, 256, 360), 200, 2
SNR_OF_64 = 0.1  # the same dose at every box: it falls as 1 / n^2
SHARE = 1.0  # of the particles of the two large sets; `run.py --share` sets it
YARDSTICK_PARTICLES, TRPV1_PARTICLES = 100_000, 35_000
TRPV1_BOX, TRPV1_PIXEL, TRPV1_SNR = 256, 1.22, 0.01


def sizes() -> Report:
    """CPU time of an image and iteration, and the peak of memory beside what the job said before it
    began, at boxes from 64 to 360: two iterations of `refine --method ml` on 200 images of the
    embedded phantom (C1, 224 A, the same dose at every box) from the true map at 20 A, one thread,
    start and final maps, mask, sharpening and pictures included; and the wall time of the iterations
    alone. RELION: two iterations of `relion_refine` on the same images, one
    thread, healpix order 2, as a job of one class without halves."""
    report = Report()
    for box in BOXES:
        folder = phantom_particles(
            f"size_{box}", n=IMAGES, box=box, snr=SNR_OF_64 * (64 / box) ** 2, seed=71
        )
        reference, out = phantom_map(box), job_folder(f"size_{box}")
        cost = refine(report, folder, reference, out, ("--iterations", f"{ITERATIONS}"), lowpass=20)
        told = re.findall(r"needs about ([\d.]+) GB", (RUNS / f"{out.name}.log").read_text())
        done, said = len(events(out)), max(float(one) for one in told)
        ours = 1e3 * cost.cpu_s / IMAGES / done
        peer = ""
        if relion.version("relion_refine"):
            theirs = relion_iterations(report, folder, reference, f"size_relion_{box}")
            peer = (
                f"RELION {relion.version('relion_refine')}: "
                f"{1e3 * theirs.cpu_s / IMAGES / ITERATIONS:.0f} ms, "
                f"{theirs.peak_bytes / 1e9:.1f} GB"
            )
        within = 1e3 * np.mean([sum(one["seconds"].values()) for one in events(out)]) / IMAGES
        report.add(f"{box}^2: CPU ms an image and iteration", f"{ours:.0f} ms", peer)
        report.add(f"{box}^2: the iterations alone", f"{within:.0f} ms (wall)")
        report.add(f"{box}^2: peak", f"{cost.peak_bytes / 1e9:.1f} GB", f"said before: {said} GB")
        report.numbers[f"{box}"] = {
            "ms": ours,
            "iterations_ms": within,
            "peak_bytes": cost.peak_bytes,
            "said_gb": said,
        }
    return report


@dataclass(frozen=True)
class MemoryJob:
    """A job whose peak is set beside what it said: command, box, images and options; `shell` is the
    last that its first iteration scores (None: the command's own start)."""

    command: str
    box: int
    images: int
    options: str = ""
    shell: int | None = None

    @property
    def name(self) -> str:
        return " ".join(word for word in (self.command, f"{self.box}^2", self.options) if word)


ONE = "--iterations 1"
REFINEMENTS = (
    MemoryJob("refine", 64, 100, ONE, 26),
    MemoryJob("refine", 128, 60, f"--symmetry C4 {ONE}", 51),
    MemoryJob("refine", 128, 60, ONE, 51),
    MemoryJob("refine", 64, 100, f"--symmetry C4 {ONE}", 26),
    MemoryJob("refine", 192, 40, f"--folds 1 {ONE}", 77),
)
OTHER_JOBS = (
    MemoryJob("class3d", 128, 60, f"--classes 2 {ONE}", 40),
    MemoryJob("class2d", 64, 200, "--classes 10 --iterations 2"),
    MemoryJob("reconstruct", 128, 100),
    MemoryJob("abinitio", 64, 200, "--classes 1 --iterations 5"),
    MemoryJob("reconstruct", 256, 60),
    MemoryJob("class2d", 128, 200, "--classes 50 --iterations 2"),
    MemoryJob("abinitio", 128, 100, "--classes 2 --iterations 5"),
)
LARGE_JOBS = (
    MemoryJob("refine", 360, 40, f"--local --memory 8GB {ONE}", 121),
    MemoryJob("class3d", 360, 40, f"--classes 6 {ONE}", 37),
    MemoryJob("refine", 256, 60, f"--local {ONE}", 102),
    MemoryJob("refine", 256, 60, f"--local --symmetry C4 {ONE}", 102),
    MemoryJob("reconstruct", 360, 40),
    MemoryJob("refine", 400, 30, f"--local --memory 12GB {ONE}", 100),
)


def memory() -> Report:
    """Peak of memory (resident, of the job's process) beside the largest figure that the job gave
    before the iteration or stage that it was for. Images of the embedded phantom (C1, 224 A),
    few of them, one thread; jobs that start from a map score to far shells from their first
    iteration on. None takes more than 4 GB; those that do are in `memory_large`."""
    return _peaks(REFINEMENTS)


def memory_of_other_jobs() -> Report:
    """As `memory`, for classification, initial models and reconstruction."""
    return _peaks(OTHER_JOBS)


def memory_large() -> Report:
    """As `memory`, at boxes of 256 to 400: up to 13 GB."""
    return _peaks(LARGE_JOBS)


def _peaks(jobs: tuple[MemoryJob, ...]) -> Report:
    report = Report()
    for n, job in enumerate(jobs):
        folder = phantom_particles(
            f"size_{job.box}", n=IMAGES, box=job.box, snr=SNR_OF_64 * (64 / job.box) ** 2, seed=71
        )
        posed = job.command == "reconstruct" or "--local" in job.options
        star = first_images(folder / ("truth.star" if posed else "particles.star"), job.images)
        out = job_folder(f"memory_{job.command}_{job.box}_{n}")
        command = [HALFMAP, job.command, "--particles", star, *job.options.split()]
        if job.command in ("refine", "class3d"):
            command += ["--reference", phantom_map(job.box)]
            command += ["--initial-lowpass", f"{224 / (job.shell or 6):.3f}"]
        cost = run(report, [*command, "--threads", "1", "--out", out, "--overwrite"], log=out.name)
        said = json.loads((out / "job.json").read_text())["results"]["estimated_memory_bytes"]
        of_peak = said / cost.peak_bytes
        told = f"estimated {said / 1e9:.2f} GB, {100 * (of_peak - 1):+.0f} %"
        report.add(f"{job.name}: peak", f"{cost.peak_bytes / 1e9:.2f} GB", told)
        report.numbers[job.name] = {"peak_bytes": cost.peak_bytes, "estimated_bytes": said}
    return report


def symmetry() -> Report:
    """Seconds of the M-step by symmetry: `refine --method ml`, two iterations on 400 images of the
    embedded phantom, 128^2, one thread; each slice is inserted once, and its mates are added once
    an iteration. (The phantom has none of these symmetries: what is counted is work.)"""
    report = Report()
    folder, reference = (
        phantom_particles("symmetry", n=400, box=128, snr=0.1, seed=72),
        phantom_map(128),
    )
    for group in ("C1", "C4", "D7", "O", "I"):
        out = job_folder(f"symmetry_{group}")
        options = ("--iterations", "2", "--symmetry", group)
        refine(report, folder, reference, out, options, lowpass=20)
        last = events(out)[-1]["seconds"]
        value = f"{last['sums']:.1f} s sums, {last['update']:.1f} s update"
        report.add(f"{group}: wall seconds of the second iteration", value)
        report.numbers[group] = {"sums_s": last["sums"], "update_s": last["update"]}
    return report


def yardstick_in_full() -> Report:
    """The lecture's yardstick, not extrapolated: 100,000 images of 128^2 of the embedded phantom
    (C1, SNR 0.1), simulated to disk and refined from 40 A to convergence. The lecture: about a CPU
    day. `run.py --share 0.05` takes a twentieth of them."""
    n = round(SHARE * YARDSTICK_PARTICLES)
    folder = phantom_particles(f"yardstick_{n}", n=n, box=128, snr=0.1, seed=61)
    return _in_full(folder, phantom_map(128), n, symmetry="C1", diameter=160, goal="under 1.5 h")


def trpv1_in_full() -> Report:
    """A set of the size of EMPIAR-10005: 35,000 images of 256^2 at 1.22 A of TRPV1 (C4, SNR 0.01),
    simulated to disk and refined from 40 A to convergence with `--memory 8GB`. `run.py --share
    0.05` takes a twentieth of them."""
    n, reference = round(SHARE * TRPV1_PARTICLES), trpv1_map()
    folder = DATA / f"trpv1_{TRPV1_BOX}_{n}"
    if not (folder / "truth.star").exists():
        command = [HALFMAP, "simulate", reference, "--out", folder, "--n", n, "--snr", TRPV1_SNR]
        command += ["--symmetry", "C4", "--seed", 62, "--overwrite", "--quiet"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    goal, within = "under 1.5 h, within 8 GB", ("--memory", "8GB")
    return _in_full(folder, reference, n, *within, symmetry="C4", diameter=170, goal=goal)


def trpv1_map():
    """TRPV1 on a grid of 1.22 A: its 240 A padded in Fourier space to 196 pixels of 1.2245 A, taken
    for 1.22, and framed."""
    path = DATA / "maps" / f"trpv1_{TRPV1_BOX}.mrc"
    if not path.exists():
        import mrcfile

        with mrcfile.open(third_party("maps", "trpv1_96_2.5A.mrc")) as file:
            fine = fourier_pad(np.array(file.data), 196)
        save_map(path, np.pad(fine, (TRPV1_BOX - len(fine)) // 2), TRPV1_PIXEL)
    return path


def refine(report: Report, folder, reference, out, options, *, lowpass: float) -> Cost:
    """`halfmap refine`, one thread."""
    command = [HALFMAP, "refine", "--particles", folder / "particles.star"]
    command += ["--reference", reference, "--initial-lowpass", f"{lowpass:g}", *options]
    return run(report, [*command, "--threads", "1", "--out", out, "--overwrite"], log=out.name)


def relion_iterations(report: Report, folder, reference, name: str) -> Cost:
    out = RUNS / name
    out.mkdir(parents=True, exist_ok=True)
    star = first_images(folder / "particles.star", IMAGES)
    command = ["relion_refine", "--i", star.name, "--ref", reference, "--o", out / "run"]
    command += ["--iter", f"{ITERATIONS}", "--K", "1", "--ctf", "--ini_high", "20", "--sym", "C1"]
    command += ["--particle_diameter", "160", "--flatten_solvent", "--zero_mask", "--norm"]
    command += ["--scale", "--healpix_order", "2", "--oversampling", "1", "--offset_range", "5"]
    command += ["--offset_step", "2", "--firstiter_cc", "--pad", "2", "--j", "1"]
    return run(report, [*command, "--random_seed", "1"], log=name, cwd=folder)


def _in_full(
    folder, reference, n: int, *options: str, symmetry: str, diameter: float, goal: str
) -> Report:
    report, out = Report(), job_folder(f"full_{folder.name}")
    options = ("--symmetry", symmetry, "--diameter", f"{diameter:g}", *options)
    cost = refine(report, folder, reference, out, options, lowpass=40)
    outcome = judged(out, cost, folder, reference, symmetry=symmetry, diameter_angstrom=diameter)
    angle = float(np.median(outcome.errors.angle_deg))
    report.add("particles", f"{n}")
    report.add("CPU", f"{cost.cpu_s / 3600:.2f} h", f"goal: {goal}" if n > 20_000 else "")
    report.add("wall, one thread", f"{cost.wall_s / 3600:.2f} h")
    report.add("peak of memory", f"{cost.peak_bytes / 1e9:.1f} GB")
    report.add("iterations", f"{len(events(out))}")
    report.add("pose error, median and 90 %", f"{angle:.2f} and {outcome.p90_deg:.2f} deg")
    report.add("shift error, median", f"{outcome.shift_angstrom:.2f} A")
    report.add("FSC 0.5 with the truth", f"{outcome.to_truth_angstrom:.2f} A")
    report.numbers = {"n": n, "cpu_s": cost.cpu_s, "peak_bytes": cost.peak_bytes, "deg": angle}
    return report
