"""What refinement and 2D classes cost at low signal, beside RELION 5 on the same images."""

import numpy as np

import relion
import truth
from common import HALFMAP, Report, events, job_folder, run, simulated
from refine_simulated import refined

REFINE, CLASSES_2D = "trpv1_low", "ribo_mix_low"
CLASSES, ITERATIONS = 16, 15
GOAL_REFINE, GOAL_2D = 40, 50  # times less CPU than RELION 5
ONE_THREAD = ("--threads", "1", "--overwrite", "--quiet")


def low_signal_cost() -> Report:
    """CPU seconds at SNR 0.05, whole jobs of one thread with their defaults: `refine` of TRPV1 (C4,
    96^2, 2.5 A, 600 images) from the true map at 40 A, and `class2d` of two states of the ribosome
    (64^2, 5 A, 1,500 images), K = 16, 15 iterations. RELION 5 had the same images and as many
    classes and iterations, one core. Goals: 40 and 50 times less CPU."""
    report = Report()
    _refine(report)
    _class2d(report)
    return report


def _refine(report: Report) -> None:
    how = {"lowpass_angstrom": 40, "diameter_angstrom": 170, "symmetry": "C4", "threads": 1}
    reached = refined(report, REFINE, ("--method", "ml"), **how)
    cost = reached.cost
    theirs = relion.LOW_REFINEMENT
    ratio = theirs.cpu_s / cost.cpu_s
    beside = f"({relion.RECORDED})"
    report.add("refine: CPU seconds", f"{cost.cpu_s:.1f}", f"{theirs.cpu_s:.0f} {beside}")
    report.add("refine: ratio", f"{ratio:.1f} times less", f"asked: {GOAL_REFINE}")
    report.add(
        "refine: pose error, median / 90 %; more than 10 deg off; FSC 0.5 to the truth",
        f"{reached.error_deg:.2f} / {reached.p90_deg:.2f} deg; "
        f"{int((reached.errors.angle_deg > 10).sum())} of {len(reached.errors.angle_deg)}; "
        f"{reached.to_truth_angstrom:.2f} A",
        f"{theirs.error_median_deg} / {theirs.error_p90_deg} deg; 1 of 600; "
        f"{theirs.fsc_half_to_truth_angstrom} A {beside}",
    )
    report.numbers["refine"] = {"cpu_s": cost.cpu_s, "ratio": ratio, "deg": reached.error_deg}


def _class2d(report: Report) -> None:
    folder, out = simulated(CLASSES_2D), job_folder(CLASSES_2D)
    command = [HALFMAP, "class2d", "--particles", folder / "particles.star"]
    command += ["--classes", f"{CLASSES}", "--iterations", f"{ITERATIONS}"]
    cost = run(report, [*command, *ONE_THREAD, "--out", out], log=out.name)
    found = truth.read_poses(out / "particles.star")
    true = truth.read_poses(folder / "truth.star").only(found.numbers)
    spread = float(np.median(truth.view_spread_deg(true.rotations, found.classes)))
    ratio = relion.LOW_CLASS2D_CPU_S / cost.cpu_s
    beside = f"{relion.LOW_CLASS2D_CPU_S} ({relion.RECORDED})"
    done = len(events(out))
    report.add(f"class2d, {done} iterations: CPU seconds", f"{cost.cpu_s:.1f}", beside)
    report.add("class2d: ratio", f"{ratio:.1f} times less", f"asked: {GOAL_2D}")
    report.add(
        "class2d: spread of the true views inside a class, median; classes with members",
        f"{spread:.1f} deg; {len(np.unique(found.classes))} of {CLASSES}",
    )
    report.numbers["class2d"] = {"cpu_s": cost.cpu_s, "ratio": ratio, "spread_deg": spread}
