"""3D classification of particles whose states are known, from one starting map."""

from pathlib import Path

import numpy as np

import iterations
import relion
import truth
from common import (
    HALFMAP,
    SETS,
    Report,
    events,
    job_folder,
    keep_picture,
    run,
    simulated,
    third_party,
)
from datasets import phantom_map, phantom_particles

ITERATIONS = 15
GOAL_RATIO, GOAL_INDEX = 30, 0.8


def ribo_mix_3d() -> Report:
    """Two states of the 70S ribosome, 5 % of the mass apart (C1, 64^2, 5 A, 3,000 images, SNR 0.2):
    `class3d` by maximum likelihood with K = 2 from one map, the first state low-passed to 60 A, and
    at most 15 iterations, as many as RELION 5 did. Classes start where the particles differ most
    (principal component at the poses found against the one map); RELION 5 started from random
    subsets. 1.2 % of the images are on the wrong side of the likelihood ratio of the true maps.
    Goal: at least 30 times less CPU, index above 0.8."""
    report, folder = Report(), simulated("ribo_mix")
    reference = third_party("maps", SETS["ribo_mix"][0][0])
    index, error_deg, cpu_s = classify(
        report, "ribo_mix_3d", folder, reference, diameter="270", lowpass="60"
    )
    report.add(
        "RELION 5: adjusted Rand index, pose error",
        "",
        f"{relion.CLASS3D_RAND_INDEX:.2f}, {relion.CLASS3D_ERROR_DEG} deg ({relion.RECORDED})",
    )
    report.add(
        "RELION 5: CPU seconds, 15 iterations", "", f"{relion.CLASS3D_CPU_S:,} ({relion.RECORDED})"
    )
    ratio = relion.CLASS3D_CPU_S / cpu_s
    report.add(
        "CPU ratio, whole job, across machines", f"{ratio:.0f} times less", f"asked: {GOAL_RATIO}"
    )
    met = ratio >= GOAL_RATIO and index > GOAL_INDEX and error_deg <= relion.CLASS3D_ERROR_DEG
    report.add(f"goal: {GOAL_RATIO} times, index above {GOAL_INDEX}", "met" if met else "NOT met")
    report.numbers["ratio"] = ratio
    return report


def phantom_mix_3d() -> Report:
    """A second mixture: the embedded phantom's two states as seen without symmetry (C1, 64^2, 3.5
    A, 2,000 images, SNR 0.1, shares 70 to 30): in the second the soluble domain is turned by 9
    degrees and four helices are missing. `class3d` as for `ribo_mix`, from the first state
    low-passed to 40 A."""
    report = Report()
    folder = phantom_particles("phantom_mix", n=2000, box=64, snr=0.1, seed=51, weights="70,30")
    index, _, _ = classify(
        report, "phantom_mix_3d", folder, phantom_map(64), diameter="170", lowpass="40"
    )
    report.add(f"goal: index above {GOAL_INDEX}", "met" if index > GOAL_INDEX else "NOT met")
    return report


def classify(
    report: Report, name: str, folder: Path, reference: Path, *, diameter: str, lowpass: str
) -> tuple[float, float, float]:
    """Run and judge; the adjusted Rand index, the median pose error and CPU seconds."""
    out = job_folder(name)
    command = [
        HALFMAP,
        "class3d",
        "--particles",
        folder / "particles.star",
        "--reference",
        reference,
        "--classes",
        "2",
    ]
    command += [
        "--diameter",
        diameter,
        "--initial-lowpass",
        lowpass,
        "--iterations",
        f"{ITERATIONS}",
        "--threads",
        "1",
    ]
    cost = run(report, [*command, "--out", out, "--overwrite", "--quiet"], log=name)
    found = truth.read_poses(out / "particles.star")
    true = truth.read_poses(folder / "truth.star").only(found.numbers)
    index = truth.adjusted_rand_index(found.classes, true.classes)
    error_deg = float(np.median(truth.pose_errors(found, true, symmetry="C1").angle_deg))
    sizes = np.bincount(found.classes)[1:]
    report.add("adjusted Rand index", f"{index:.2f}")
    report.add(
        "particles outside their class's majority",
        f"{100 * (1 - truth.purity(found.classes, true.classes)):.1f} %",
    )
    report.add(
        "particles per class",
        " ".join(map(str, sizes)),
        f"true: {' '.join(map(str, np.bincount(true.classes)[1:]))}",
    )
    report.add("pose error, median", f"{error_deg:.2f} deg")
    report.add("CPU seconds, start included; iterations", f"{cost.cpu_s:.0f}; {len(events(out))}")
    report.add(
        "wall time, 1 thread; peak memory",
        f"{cost.wall_s:.0f} s; {cost.peak_bytes / 2**30:.2f} GiB",
    )
    report.numbers |= {
        "adjusted_rand_index": index,
        "error_median_deg": error_deg,
        "cpu_s": cost.cpu_s,
        "wall_s": cost.wall_s,
        "peak_bytes": cost.peak_bytes,
        "sizes": sizes.tolist(),
        "per_iteration": events(out),
    }
    iterations.add_table(report, events(out), "class3d --method ml")
    for k in (1, 2):
        keep_picture(report, out / "pictures" / f"class00{k}.png", f"benchmark_{name}_{k}.png")
    return index, error_deg, cost.cpu_s
