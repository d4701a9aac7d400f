"""Projection-matching refinement of simulated particles, from the start that RELION 5 had."""

import json
from pathlib import Path

import numpy as np
import starfile

import relion
import truth
from common import HALFMAP, SETS, THREADS, Cost, Report, events, job_folder, keep_picture, run, simulated, third_party


def trpv1() -> Report:
    """Refinement with symmetry: TRPV1 (C4, 96^2, 2.5 A, 2,000 images, SNR 0.1), from the true map low-passed to 40 A. Goal: 1 degree and
    5.3 A in at most a tenth of RELION 5's CPU time."""
    return refine("trpv1", lowpass_angstrom=40, diameter_angstrom=170, symmetry="C4", goal=(1.0, 5.3))


def ribo() -> Report:
    """Refinement without symmetry: 70S ribosome (C1, 64^2, 5 A, 3,000 images, SNR 0.2), from the true map low-passed to 60 A. RELION 5 was
    stopped after 9 iterations; its figures are of that point."""
    return refine("ribo", lowpass_angstrom=60, diameter_angstrom=270, symmetry="C1", goal=None)


def refine(name: str, *, lowpass_angstrom: float, diameter_angstrom: float, symmetry: str, goal: tuple[float, float] | None) -> Report:
    report = Report()
    folder, reference = simulated(name), third_party("maps", SETS[name][0][0])
    out = job_folder(name)
    command = [HALFMAP, "refine", "--particles", folder / "particles.star", "--reference", reference, "--symmetry", symmetry]
    command += ["--initial-lowpass", f"{lowpass_angstrom:g}", "--diameter", f"{diameter_angstrom:g}", "--threads", f"{THREADS}"]
    cost = run(report, [*command, "--out", out, "--overwrite", "--quiet"], log=name)
    peer = relion.REFINEMENT[name]

    volume, pixel = truth.read_volume(out / "map.mrc")
    true_volume, _ = truth.read_volume(reference)
    errors = truth.pose_errors(truth.read_poses(out / "particles.star"), truth.read_poses(folder / "truth.star"), symmetry=symmetry)
    if errors.frame_angle_deg > 1:  # less moves nothing by more than a fraction of the resolution
        volume = truth.into_frame_of_truth(volume, errors, pixel)
    mask = truth.soft_sphere(len(volume), diameter_angstrom / 2 / pixel)
    to_truth = truth.resolution_at(truth.fsc(volume, true_volume, mask), 0.5, len(volume), pixel)
    halves = [truth.read_volume(out / f"half{h}.mrc")[0] for h in (1, 2)]
    between = truth.resolution_at(truth.fsc(halves[0], halves[1]), 0.143, len(volume), pixel)
    iterations = events(out)
    median, p90 = np.median(errors.angle_deg), np.quantile(errors.angle_deg, 0.9)
    shift = np.median(errors.shift_angstrom)

    report.add("pose error, median / 90 %", f"{median:.2f} / {p90:.2f} deg", f"{peer.error_median_deg} / {peer.error_p90_deg} deg")
    report.add("shift error, median", f"{shift:.2f} A", f"{peer.shift_error_angstrom} A")
    report.add("FSC to the truth at 0.5", f"{to_truth:.2f} A", f"{peer.fsc_half_to_truth_angstrom:g} A{'' if goal else ' (one half)'}")
    report.add("between halves at 0.143, unmasked", f"{between:.2f} A", peer.reported)
    report.add("reported by halfmap (masked, corrected)", f"{resolution_of(out):.2f} A")
    report.add("iterations", f"{len(iterations)}", peer.iterations)
    report.add("wall time, 2 threads", f"{cost.wall_s:.0f} s", peer.wall)
    report.add("CPU seconds, user + system", f"{cost.cpu_s:.0f}", f"{peer.cpu_s:,.0f}")
    report.add("CPU ratio, across machines", f"{peer.cpu_s / cost.cpu_s:.1f} times less", "at least 10 times asked for" if goal else "")
    report.add("peak memory", f"{cost.peak_bytes / 2**30:.2f} GiB")
    report.add("global frame removed", f"{errors.frame_angle_deg:.2f} deg, {np.linalg.norm(errors.frame_shift_angstrom):.2f} A")
    if goal:
        met = median <= goal[0] and to_truth <= goal[1] and cost.cpu_s <= peer.cpu_s / 10
        report.add(f"goal: {goal[0]:g} deg and {goal[1]:g} A in a tenth of the CPU time", "met" if met else "NOT met")
    report.numbers = {
        "error_median_deg": median, "error_p90_deg": p90, "shift_error_angstrom": shift, "fsc_half_to_truth_angstrom": to_truth,
        "halves_unmasked_angstrom": between, "reported_angstrom": resolution_of(out), "iterations": len(iterations), "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s, "peak_bytes": cost.peak_bytes, "frame_deg": errors.frame_angle_deg, "per_iteration": iterations,
    }  # fmt: skip
    keep_picture(report, out / "pictures" / "map.png", f"benchmark_{name}.png")
    return report


def resolution_of(job: Path) -> float:
    """What the job says."""
    return json.loads((job / "job.json").read_text())["results"]["resolution_angstrom"]


def reconstruct() -> Report:
    """Reconstruction from known poses: the 2,000 images of `trpv1` at their true poses, by `halfmap reconstruct` and by Debian's RELION
    in the same run. Start and end (imports, maps, pictures) are measured with 20 images and taken off for the second ratio."""
    report = Report()
    folder, reference = simulated("trpv1"), third_party("maps", SETS["trpv1"][0][0])
    few = folder / "truth_20.star"
    tables = starfile.read(folder / "truth.star")
    starfile.write({"optics": tables["optics"], "particles": tables["particles"][:20]}, few, overwrite=True)
    true_volume, pixel = truth.read_volume(reference)
    mask = truth.soft_sphere(len(true_volume), 170 / 2 / pixel)

    def to_truth(path: Path) -> float:
        return truth.resolution_at(truth.fsc(truth.read_volume(path)[0], true_volume, mask), 0.5, len(true_volume), pixel)

    def ours(star: Path, out: Path) -> Cost:
        command = [HALFMAP, "reconstruct", "--particles", star, "--symmetry", "C4", "--diameter", "170", "--threads", f"{THREADS}"]
        return run(report, [*command, "--out", out, "--overwrite", "--quiet"], log="reconstruct_trpv1")

    out, peer_out, version = job_folder("reconstruct_trpv1.mrc"), job_folder("relion_trpv1.mrc"), relion.version()
    start, cost = ours(few, out).cpu_s, ours(folder / "truth.star", out)
    report.numbers = {"fsc_half_to_truth_angstrom": to_truth(out), "cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "start_cpu_s": start}
    if not version:
        report.add("FSC to the truth at 0.5 (Nyquist 5.00 A)", f"{to_truth(out):.2f} A", "RELION is not installed")
        report.add("cost", str(cost), f"of which {start:.1f} CPU s are start and end")
        return report
    peer_start = relion.reconstruct(report, few, peer_out, symmetry="C4").cpu_s
    peer = relion.reconstruct(report, folder / "truth.star", peer_out, symmetry="C4")
    name = f"RELION {version}, same run"
    report.add("FSC to the truth at 0.5 (Nyquist 5.00 A)", f"{to_truth(out):.2f} A", f"{to_truth(peer_out):.2f} A, {name}")
    report.add("wall time", f"{cost.wall_s:.1f} s (2 threads)", f"{peer.wall_s:.1f} s (1 thread)")
    report.add("CPU seconds", f"{cost.cpu_s:.1f}", f"{peer.cpu_s:.1f}; halfmap's over RELION's: {cost.cpu_s / peer.cpu_s:.2f}")
    ratio = (cost.cpu_s - start) / (peer.cpu_s - peer_start)
    report.add("CPU seconds without start and end", f"{cost.cpu_s - start:.1f}", f"{peer.cpu_s - peer_start:.1f}; ratio {ratio:.2f}")
    report.add("peak memory", f"{cost.peak_bytes / 2**30:.2f} GiB", f"{peer.peak_bytes / 2**30:.2f} GiB")
    report.numbers |= {
        "relion_fsc_half_to_truth_angstrom": to_truth(peer_out),
        "relion_cpu_s": peer.cpu_s,
        "relion_start_cpu_s": peer_start,
    }
    return report
