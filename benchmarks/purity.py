"""2D classes of two molecules in one stack: how many images lie in a class whose majority they
belong to."""

import numpy as np

import iterations
import relion
import truth
from common import HALFMAP, THREADS, Report, events, job_folder, keep_picture, run
from datasets import molecules

IMAGES, CLASSES, ITERATIONS, DIAMETER = 600, 10, 10, "280"


def mixture_purity_2d() -> Report:
    """Two molecules in one stack: ribosomes and TRPV1, half each, brought to one box (64^2, 5 A)
    and to equal variance, 600 images, SNR 0.1; K = 10, 10 iterations. Purity: share of images that
    belong to the majority of their class; by chance: class labels shuffled. Beside maximum
    likelihood (three seeds; the start decides much) stand template matching and, on the same images
    in the same run, Debian's RELION with the sampling of `ribo_mix_2d`. Spread: of the ribosomes'
    true views inside a class, median."""
    report = Report()
    folder = molecules(IMAGES, kinds=2)
    true = truth.read_poses(folder / "truth.star")
    for method, seeds in (("ml", (1, 2, 3)), ("template", (1,))):
        for seed in seeds:
            out = job_folder(f"mixture_purity_2d_{method}_{seed}")
            command = [
                HALFMAP,
                "class2d",
                "--particles",
                folder / "particles.star",
                "--classes",
                f"{CLASSES}",
                "--method",
                method,
            ]
            command += [
                "--iterations",
                f"{ITERATIONS}",
                "--angular-step",
                "6",
                "--diameter",
                DIAMETER,
                "--seed",
                f"{seed}",
            ]
            cost = run(
                report,
                [*command, "--threads", f"{THREADS}", "--out", out, "--overwrite", "--quiet"],
                log=out.name,
            )
            judge(
                report,
                f"halfmap {method}, seed {seed}",
                truth.read_poses(out / "particles.star"),
                true,
                cost.cpu_s,
            )
    first = job_folder("mixture_purity_2d_ml_1")
    iterations.add_table(report, events(first), "class2d --method ml")
    keep_picture(report, first / "pictures" / "classes.png", "benchmark_mixture_purity_2d.png")
    if name := relion.version("relion_refine"):
        star, sampling = (
            folder / "particles.star",
            {"classes": CLASSES, "iterations": ITERATIONS, "diameter": DIAMETER},
        )
        data, cost = relion.class2d(report, star, "relion_purity", **sampling)
        judge(report, f"RELION {name}, same run", truth.read_poses(data), true, cost.cpu_s)
    return report


def judge(report: Report, name: str, found: truth.Poses, true: truth.Poses, cpu_s: float) -> None:
    true = true.only(found.numbers)
    value = truth.purity(found.classes, true.classes)
    shuffled = truth.purity(np.random.default_rng(0).permutation(found.classes), true.classes)
    ribosomes = true.classes == 1  # the other molecule has symmetry: its views have mates
    spread = np.median(truth.view_spread_deg(true.rotations[ribosomes], found.classes[ribosomes]))
    filled = len(np.unique(found.classes))
    report.add(f"{name}: purity", f"{100 * value:.1f} %", f"{100 * shuffled:.1f} % by chance")
    report.add(
        f"{name}: spread of views; classes; CPU seconds",
        f"{spread:.1f} deg; {filled} of {CLASSES}; {cpu_s:.0f}",
    )
    report.numbers[name] = {
        "purity": value,
        "by_chance": shuffled,
        "spread_median_deg": spread,
        "filled": filled,
        "cpu_s": cpu_s,
    }
