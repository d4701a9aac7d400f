"""Refinement of simulated particles, from the start that RELION 5 had."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import starfile

import iterations
import relion
import truth
from common import (
    HALFMAP,
    SETS,
    THREADS,
    Cost,
    Report,
    events,
    job_folder,
    keep_picture,
    run,
    simulated,
    third_party,
)

GOAL = 20


def trpv1() -> Report:
    """Refinement with symmetry: TRPV1 (C4, 96^2, 2.5 A, 2,000 images, SNR 0.1), from the true map
    low-passed to 40 A, by maximum likelihood and by projection matching. Goal: at least 20 times
    less CPU than RELION 5 from start to convergence, FSC to the truth at 0.5 and median pose error
    no worse."""
    return refine("trpv1", lowpass_angstrom=40, diameter_angstrom=170, symmetry="C4")


def ribo() -> Report:
    """Refinement without symmetry: 70S ribosome (C1, 64^2, 5 A, 3,000 images, SNR 0.2), from the
    true map low-passed to 60 A, by maximum likelihood and by projection matching. RELION 5 was
    stopped after 9 iterations; its figures are of that point, so that its ratio from start to
    convergence is larger than the one given."""
    return refine("ribo", lowpass_angstrom=60, diameter_angstrom=270, symmetry="C1")


@dataclass(frozen=True)
class Outcome:
    """What one refinement reached, against the truth, and what it took."""

    cost: Cost
    errors: truth.PoseErrors
    to_truth_angstrom: float
    between_angstrom: float
    reported_angstrom: float
    iterations: list[dict]

    @property
    def error_deg(self) -> float:
        return float(np.median(self.errors.angle_deg))

    @property
    def p90_deg(self) -> float:
        return float(np.quantile(self.errors.angle_deg, 0.9))

    @property
    def shift_angstrom(self) -> float:
        return float(np.median(self.errors.shift_angstrom))


def refine(
    name: str, *, lowpass_angstrom: float, diameter_angstrom: float, symmetry: str
) -> Report:
    report, peer = Report(), relion.REFINEMENT[name]
    for method in ("ml", "projection-matching"):
        outcome = refined(
            report,
            name,
            ("--method", method),
            lowpass_angstrom=lowpass_angstrom,
            diameter_angstrom=diameter_angstrom,
            symmetry=symmetry,
        )
        tell(report, method, outcome, peer, one_half=name == "ribo")
    ml = job_folder(f"{name}_ml")
    keep_picture(report, ml / "pictures" / "map.png", f"benchmark_{name}.png")
    iterations.add_table(report, events(ml), "refine --method ml")
    return report


def refined(
    report: Report,
    name: str,
    option: tuple[str, str],
    *,
    lowpass_angstrom: float,
    diameter_angstrom: float,
    symmetry: str,
    threads: int = THREADS,
) -> Outcome:
    """`halfmap refine` on a set of `common.SETS` with one more option, from its true map
    low-passed; in the folder `NAME_VALUE`."""
    folder, reference, out = (
        simulated(name),
        third_party("maps", SETS[name][0][0]),
        job_folder(f"{name}_{option[1]}"),
    )
    command = [
        HALFMAP,
        "refine",
        *option,
        "--particles",
        folder / "particles.star",
        "--reference",
        reference,
    ]
    command += [
        "--symmetry",
        symmetry,
        "--initial-lowpass",
        f"{lowpass_angstrom:g}",
        "--diameter",
        f"{diameter_angstrom:g}",
    ]
    cost = run(
        report,
        [*command, "--threads", f"{threads}", "--out", out, "--overwrite", "--quiet"],
        log=out.name,
    )
    return judged(
        out, cost, folder, reference, symmetry=symmetry, diameter_angstrom=diameter_angstrom
    )


def judged(
    out: Path, cost: Cost, folder: Path, reference: Path, *, symmetry: str, diameter_angstrom: float
) -> Outcome:
    """The job's map and poses against the truth."""
    errors, to_truth, between = against_truth(
        out / "map.mrc",
        [out / f"half{h}.mrc" for h in (1, 2)],
        out / "particles.star",
        folder,
        reference,
        symmetry=symmetry,
        diameter_angstrom=diameter_angstrom,
    )
    return Outcome(cost, errors, to_truth, between, resolution_of(out), events(out))


def against_truth(
    map_: Path,
    half_maps: Sequence[Path],
    particles: Path,
    folder: Path,
    reference: Path,
    *,
    symmetry: str,
    diameter_angstrom: float,
) -> tuple[truth.PoseErrors, float, float]:
    """Errors of the poses in `particles`; the resolution of the map to the true one (FSC 0.5, in a
    sphere), and that between its halves (0.143, unmasked), in Angstrom: of any program."""
    volume, pixel = truth.read_volume(map_)
    true_volume, _ = truth.read_volume(reference)
    errors = truth.pose_errors(
        truth.read_poses(particles), truth.read_poses(folder / "truth.star"), symmetry=symmetry
    )
    if errors.frame_angle_deg > 1:  # less moves nothing by more than a fraction of the resolution
        volume = truth.into_frame_of_truth(volume, errors, pixel)
    mask = truth.soft_sphere(len(volume), diameter_angstrom / 2 / pixel)
    to_truth = truth.resolution_at(truth.fsc(volume, true_volume, mask), 0.5, len(volume), pixel)
    halves = [truth.read_volume(path)[0] for path in half_maps]
    between = truth.resolution_at(truth.fsc(*halves), 0.143, len(volume), pixel)
    return errors, to_truth, between


def tell(
    report: Report,
    method: str,
    outcome: Outcome,
    peer: relion.RecordedRefinement,
    *,
    one_half: bool,
) -> None:
    cost, errors = outcome.cost, outcome.errors
    ratio = peer.cpu_s / cost.cpu_s

    def line(what: str, value: str, beside: str = "") -> None:
        report.add(f"{method}: {what}", value, f"{beside} ({relion.RECORDED})" if beside else "")

    line(
        "pose error, median / 90 %",
        f"{outcome.error_deg:.2f} / {outcome.p90_deg:.2f} deg",
        f"{peer.error_median_deg} / {peer.error_p90_deg} deg",
    )
    line("shift error, median", f"{outcome.shift_angstrom:.2f} A", f"{peer.shift_error_angstrom} A")
    half = " of one half" if one_half else ""
    line(
        "FSC to the truth at 0.5",
        f"{outcome.to_truth_angstrom:.2f} A",
        f"{peer.fsc_half_to_truth_angstrom:g} A{half}",
    )
    line("between halves at 0.143, unmasked", f"{outcome.between_angstrom:.2f} A", peer.reported)
    line("reported (masked, corrected)", f"{outcome.reported_angstrom:.2f} A")
    line("iterations", f"{len(outcome.iterations)}", peer.iterations)
    line("wall time, 2 threads", f"{cost.wall_s:.0f} s", peer.wall)
    line("CPU seconds, user + system", f"{cost.cpu_s:.0f}", f"{peer.cpu_s:,.0f}")
    line("CPU ratio, across machines", f"{ratio:.1f} times less; asked: {GOAL} (ml)")
    line("peak memory", f"{cost.peak_bytes / 2**30:.2f} GiB")
    line(
        "global frame removed",
        f"{errors.frame_angle_deg:.2f} deg, {np.linalg.norm(errors.frame_shift_angstrom):.2f} A",
    )
    met = (
        ratio >= GOAL
        and outcome.to_truth_angstrom <= peer.fsc_half_to_truth_angstrom + 0.005
        and outcome.error_deg <= peer.error_median_deg
    )
    if method == "ml":
        line(
            f"goal: {GOAL} times, FSC to truth and pose error no worse", "met" if met else "NOT met"
        )
    report.numbers[method] = {
        "error_median_deg": outcome.error_deg,
        "error_p90_deg": outcome.p90_deg,
        "shift_error_angstrom": outcome.shift_angstrom,
        "fsc_half_to_truth_angstrom": outcome.to_truth_angstrom,
        "halves_unmasked_angstrom": outcome.between_angstrom,
        "reported_angstrom": outcome.reported_angstrom,
        "iterations": len(outcome.iterations),
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "ratio": ratio,
        "peak_bytes": cost.peak_bytes,
        "frame_deg": errors.frame_angle_deg,
        "per_iteration": outcome.iterations,
    }


def resolution_of(job: Path) -> float:
    """What the job says."""
    return json.loads((job / "job.json").read_text())["results"]["resolution_angstrom"]


def reconstruct() -> Report:
    """Reconstruction from known poses: the 2,000 images of `trpv1` at their true poses, by `halfmap
    reconstruct` and by Debian's RELION in the same run. Start and end (imports, maps, pictures) are
    measured with 20 images and taken off for the second ratio."""
    report = Report()
    folder, reference = simulated("trpv1"), third_party("maps", SETS["trpv1"][0][0])
    few = folder / "truth_20.star"
    tables = starfile.read(folder / "truth.star")
    starfile.write(
        {"optics": tables["optics"], "particles": tables["particles"][:20]}, few, overwrite=True
    )
    true_volume, pixel = truth.read_volume(reference)
    mask = truth.soft_sphere(len(true_volume), 170 / 2 / pixel)

    def to_truth(path: Path) -> float:
        return truth.resolution_at(
            truth.fsc(truth.read_volume(path)[0], true_volume, mask), 0.5, len(true_volume), pixel
        )

    def ours(star: Path, out: Path) -> Cost:
        command = [
            HALFMAP,
            "reconstruct",
            "--particles",
            star,
            "--symmetry",
            "C4",
            "--diameter",
            "170",
            "--threads",
            f"{THREADS}",
        ]
        return run(
            report, [*command, "--out", out, "--overwrite", "--quiet"], log="reconstruct_trpv1"
        )

    out, peer_out, version = (
        job_folder("reconstruct_trpv1.mrc"),
        job_folder("relion_trpv1.mrc"),
        relion.version(),
    )
    start, cost = ours(few, out).cpu_s, ours(folder / "truth.star", out)
    report.numbers = {
        "fsc_half_to_truth_angstrom": to_truth(out),
        "cpu_s": cost.cpu_s,
        "wall_s": cost.wall_s,
        "start_cpu_s": start,
    }
    if not version:
        report.add(
            "FSC to the truth at 0.5 (Nyquist 5.00 A)",
            f"{to_truth(out):.2f} A",
            "RELION is not installed",
        )
        report.add("cost", str(cost), f"of which {start:.1f} CPU s are start and end")
        return report
    peer_start = relion.reconstruct(report, few, peer_out, symmetry="C4").cpu_s
    peer = relion.reconstruct(report, folder / "truth.star", peer_out, symmetry="C4")
    name = f"RELION {version}, same run"
    report.add(
        "FSC to the truth at 0.5 (Nyquist 5.00 A)",
        f"{to_truth(out):.2f} A",
        f"{to_truth(peer_out):.2f} A, {name}",
    )
    report.add("wall time", f"{cost.wall_s:.1f} s (2 threads)", f"{peer.wall_s:.1f} s (1 thread)")
    report.add(
        "CPU seconds",
        f"{cost.cpu_s:.1f}",
        f"{peer.cpu_s:.1f}; halfmap's over RELION's: {cost.cpu_s / peer.cpu_s:.2f}",
    )
    ratio = (cost.cpu_s - start) / (peer.cpu_s - peer_start)
    report.add(
        "CPU seconds without start and end",
        f"{cost.cpu_s - start:.1f}",
        f"{peer.cpu_s - peer_start:.1f}; ratio {ratio:.2f}",
    )
    report.add(
        "peak memory", f"{cost.peak_bytes / 2**30:.2f} GiB", f"{peer.peak_bytes / 2**30:.2f} GiB"
    )
    report.numbers |= {
        "relion_fsc_half_to_truth_angstrom": to_truth(peer_out),
        "relion_cpu_s": peer.cpu_s,
        "relion_start_cpu_s": peer_start,
    }
    return report
