"""2D classification by template matching: simulated images whose views are known, and real class averages to look at."""

import json
from pathlib import Path

import mrcfile
import numpy as np

import relion
import truth
from common import HALFMAP, THREADS, Report, job_folder, keep_picture, run, simulated, third_party

CLASSES, ITERATIONS = 20, 15


def ribo_mix_2d() -> Report:
    """2D template matching on two states of the 70S ribosome (64^2, 5 A, 3,000 images, SNR 0.2), beside RELION 5's ML 2D classification
    at the same K and number of iterations. Spread: median angle between a particle's true view and the main view of its class, here the
    member's view with the smallest mean angle to all members; how RELION's recorded figure chose the main view is not said."""
    report = Report()
    folder, out = simulated("ribo_mix"), job_folder("ribo_mix_2d")
    command = [HALFMAP, "class2d", "--particles", folder / "particles.star", "--classes", f"{CLASSES}", "--method", "template"]
    command += ["--iterations", f"{ITERATIONS}", "--diameter", "270", "--threads", f"{THREADS}"]
    cost = run(report, [*command, "--out", out, "--overwrite", "--quiet"], log="ribo_mix_2d")
    found = truth.read_poses(out / "particles.star")
    true = truth.read_poses(folder / "truth.star").only(found.numbers)
    spread = truth.view_spread_deg(true.rotations, found.classes)
    by_chance = truth.view_spread_deg(true.rotations, np.random.default_rng(0).permutation(found.classes))
    done = iterations_of(out)
    each_ms = 1e3 * cost.cpu_s / (done * len(true.numbers))
    filled = len(np.unique(found.classes))
    report.add("spread of the true views inside a class, median", f"{np.median(spread):.1f} deg", f"{relion.CLASS2D_SPREAD_DEG} deg")
    report.add("the same with class labels shuffled", f"{np.median(by_chance):.1f} deg")
    report.add("classes with members", f"{filled} of {CLASSES}")
    report.add("CPU seconds (start included), iterations", f"{cost.cpu_s:.0f}, {done}", f"{relion.CLASS2D_CPU_S}, {ITERATIONS}")
    report.add("CPU time per image and iteration", f"{each_ms:.2f} ms", f"{relion.CLASS2D_MS} ms")
    report.add("ratio, across machines", f"{relion.CLASS2D_MS / each_ms:.1f} times less")
    report.add("wall time, 2 threads; peak memory", f"{cost.wall_s:.0f} s; {cost.peak_bytes / 2**30:.2f} GiB")
    report.numbers = {
        "spread_median_deg": np.median(spread), "spread_by_chance_deg": np.median(by_chance), "filled_classes": filled,
        "cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "iterations": done, "ms_per_image_iteration": each_ms, "peak_bytes": cost.peak_bytes,
    }  # fmt: skip
    keep_picture(report, out / "pictures" / "classes.png", "benchmark_ribo_mix_2d.png")
    return report


def mixture_2d() -> Report:
    """The 100 real class averages of several complexes (EMPIAR-10268), classified again by `class2d --method template --no-ctf`: there
    is no truth; the picture is to be looked at. The stack's header has no pixel size; 1 A is written into a STAR."""
    report = Report()
    stack = third_party("images", "mixture_2D.mrcs")
    with mrcfile.mmap(stack, permissive=True) as file:
        count, box = file.data.shape[:2]
    star, out = job_folder("mixture_2d.star"), job_folder("mixture_2d")
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n1 1.0 " + f"{box}\n\n"
    rows = "".join(f"{i + 1:06d}@{stack} 1\n" for i in range(count))
    star.write_text(optics + "data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n" + rows)
    command = [HALFMAP, "class2d", "--particles", star, "--classes", "10", "--method", "template", "--no-ctf"]
    cost = run(report, [*command, "--threads", f"{THREADS}", "--out", out, "--overwrite", "--quiet"], log="mixture_2d")
    classes = truth.read_poses(out / "particles.star").classes
    sizes = sorted(np.bincount(classes)[1:].tolist(), reverse=True)
    report.add("images per class", " ".join(map(str, sizes)))
    report.add("wall time, 2 threads", f"{cost.wall_s:.1f} s")
    report.numbers = {"sizes": sizes, "wall_s": cost.wall_s, "cpu_s": cost.cpu_s}
    keep_picture(report, out / "pictures" / "classes.png", "benchmark_mixture_2d.png")
    return report


def iterations_of(job: Path) -> int:
    return len([line for line in (job / "events.jsonl").read_text().splitlines() if "iteration" in json.loads(line)])
