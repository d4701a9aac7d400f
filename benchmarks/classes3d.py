"""3D classification of particles whose states are known, from one starting map."""

import numpy as np

import relion
import truth
from common import HALFMAP, SETS, THREADS, Report, job_folder, run, simulated, third_party


def ribo_mix_3d() -> Report:
    """Two states of the 70S ribosome, 5 % of the mass apart (C1, 64^2, 5 A, 3,000 images, SNR 0.2): `class3d` with K = 2 from one map, the
    first state low-passed to 60 A. Classes start where the particles differ most (principal component at the poses found against the one
    map); RELION 5 started from random subsets. 1.2 % of the images are on the wrong side of the likelihood ratio of the true maps."""
    report = Report()
    folder, reference, out = simulated("ribo_mix"), third_party("maps", SETS["ribo_mix"][0][0]), job_folder("ribo_mix_3d")
    command = [HALFMAP, "class3d", "--particles", folder / "particles.star", "--reference", reference, "--classes", "2"]
    command += ["--diameter", "270", "--initial-lowpass", "60", "--threads", f"{THREADS}"]
    cost = run(report, [*command, "--out", out, "--overwrite", "--quiet"], log="ribo_mix_3d")
    found = truth.read_poses(out / "particles.star")
    true = truth.read_poses(folder / "truth.star").only(found.numbers)
    index = truth.adjusted_rand_index(found.classes, true.classes)
    errors = truth.pose_errors(found, true, symmetry="C1")
    wrong = min(np.mean(found.classes != true.classes), np.mean(found.classes == true.classes))
    report.add("adjusted Rand index", f"{index:.2f}", f"{relion.CLASS3D_RAND_INDEX:.2f} ({relion.RECORDED})")
    report.add("particles in the wrong class", f"{100 * wrong:.1f} %")
    report.add("pose error, median", f"{np.median(errors.angle_deg):.2f} deg", f"{relion.CLASS3D_ERROR_DEG} deg ({relion.RECORDED})")
    report.add("CPU seconds, start included", f"{cost.cpu_s:.0f}", f"{relion.CLASS3D_CPU_S:,} for 15 iterations ({relion.RECORDED})")
    report.add("CPU ratio, whole job, across machines", f"{relion.CLASS3D_CPU_S / cost.cpu_s:.0f} times less")
    report.add("wall time, 2 threads; peak memory", f"{cost.wall_s:.0f} s; {cost.peak_bytes / 2**30:.2f} GiB")
    report.numbers = {
        "adjusted_rand_index": index, "wrong_share": wrong, "error_median_deg": np.median(errors.angle_deg), "cpu_s": cost.cpu_s,
        "wall_s": cost.wall_s, "peak_bytes": cost.peak_bytes,
    }  # fmt: skip
    return report
