"""What a wrong start leaves in the result: noise alone, another molecule, the mirror image, a start
with detail that the images do not hold."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import truth
from common import DATA, HALFMAP, Cost, Report, events, job_folder, run, third_party
from datasets import fourier_cut, low_signal_images, save_map
from refine_simulated import resolution_of

SNR, NO_SIGNAL, IMAGES = 0.05, 1e-6, 500
BOX, PIXEL_ANGSTROM = 48, 320 / 48
DIAMETER_ANGSTROM = 270.0
MASKED_SHELLS = 2  # that the mask and the background decide
METHODS = ("ml", "projection-matching")


def ribosome() -> Path:
    """The ribosome, 48^3 over its 320 A."""
    path = DATA / "maps" / "ribosome_48_6.67A.mrc"
    if not path.exists():
        volume, _ = truth.read_volume(third_party("maps", "ribosome70S_64_5A.mrc"))
        save_map(path, fourier_cut(volume, BOX), PIXEL_ANGSTROM)
    return path


def mirrored() -> Path:
    """Its mirror image."""
    path = DATA / "maps" / "ribosome_mirrored_48_6.67A.mrc"
    if not path.exists():
        save_map(path, truth.mirror(truth.read_volume(ribosome())[0]), PIXEL_ANGSTROM)
    return path


def another() -> Path:
    """Beta-galactosidase on the same grid, its 354 A taken for 320."""
    path = DATA / "maps" / "bgal_48_6.67A.mrc"
    if not path.exists():
        volume, _ = truth.read_volume(third_party("maps", "bgal_100_3.54A.mrc"))
        save_map(path, fourier_cut(volume, BOX), PIXEL_ANGSTROM)
    return path


@dataclass(frozen=True)
class Start:
    """What a refinement is started from, to which resolution, and whether its images hold anything
    but noise."""

    title: str
    reference: Callable[[], Path]
    lowpass_angstrom: float
    signal: bool = True


STARTS = (
    Start("the molecule at 60 A", ribosome, 60),
    Start("the molecule with all detail", ribosome, 14),
    Start("its mirror image at 20 A", mirrored, 20),
    Start("another molecule at 60 A", another, 60),
    Start("another molecule at 20 A", another, 20),
    Start("noise alone, the molecule at 20 A", ribosome, 20, signal=False),
    Start("noise alone, with all detail", ribosome, 14, signal=False),
)


@dataclass(frozen=True)
class Judged:
    """One refinement: what it reports, how far its map agrees with the truth (of either hand, laid
    onto it), with the start it had (in the frame that it was in), and the resolutions by
    iteration."""

    reported_angstrom: float
    to_truth_angstrom: float
    other_hand: bool
    to_start_angstrom: float
    error_deg: float
    by_iteration: tuple[float, ...]
    doubts: int
    cost: Cost


def bias(starts: Sequence[Start] = STARTS, methods: Sequence[str] = METHODS) -> Report:
    """Bias of the start: `refine` with its defaults, one thread, of 500 images of the 70S ribosome
    (C1, 48^2, 6.7 A, SNR 0.05), or of noise alone, from starts that are wrong or hold more than the
    images tell. Reported is the job's resolution (FSC 0.143 between the half maps,
    corrected for the mask); deserved is FSC 0.5 of the map to the truth, of either hand; the FSC
    0.5 with the start itself tells what is left of it. `ml` weighs poses by their posterior,
    `projection-matching` takes the best one. Noise deserves no resolution at all. Doubts are the
    notes that the job ends with."""
    report = Report()
    lines = [HEAD]
    for start in starts:
        for method in methods:
            judged = refined(report, start, method)
            lines.append(line(start, method, judged))
            print(f"    {lines[-1]}", flush=True)
            conclude(report, start, method, judged)
    report.numbers["printed"] = "\n".join(lines)
    return report


def refined(report: Report, start: Start, method: str) -> Judged:
    """One refinement, judged."""
    snr = SNR if start.signal else NO_SIGNAL
    folder = low_signal_images("ribosome48", ribosome(), n=IMAGES, snr=snr)
    out = job_folder(f"bias_{STARTS.index(start)}_{method}")
    command = [
        *(HALFMAP, "refine", "--method", method, "--particles", folder / "particles.star"),
        *("--reference", start.reference(), "--initial-lowpass", f"{start.lowpass_angstrom:g}"),
        *("--diameter", f"{DIAMETER_ANGSTROM:g}"),
        *("--threads", "1", "--out", out, "--overwrite", "--quiet"),
    ]
    return judge(out, folder, start, run(report, command, log=out.name))


def judge(out: Path, folder: Path, start: Start, cost: Cost) -> Judged:
    """The job's map against the truth, of either hand, and against its start."""
    volume, pixel = truth.read_volume(out / "map.mrc")
    mask = truth.soft_sphere(len(volume), DIAMETER_ANGSTROM / 2 / pixel)

    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        curve = truth.fsc(a, b, mask)
        curve[: MASKED_SHELLS + 1] = 1
        return truth.resolution_at(curve, 0.5, len(volume), pixel)

    found, true = (
        truth.read_poses(out / "particles.star"),
        truth.read_poses(folder / "truth.star"),
    )
    hands = []
    for other in (False, True):
        poses, map_ = (found.other_hand(), truth.mirror(volume)) if other else (found, volume)
        errors = truth.pose_errors(poses, true, any_frame=True)
        laid = truth.into_frame_of_truth(map_, errors, pixel)
        at_half = agreement(laid, truth.read_volume(ribosome())[0])
        hands.append((at_half, other, float(np.median(errors.angle_deg))))
    at_half, other, error_deg = min(hands)
    return Judged(
        resolution_of(out),
        at_half,
        other,
        agreement(volume, truth.read_volume(start.reference())[0]),
        error_deg,
        tuple(event["resolution_angstrom"] for event in events(out)),
        len(json.loads((out / "job.json").read_text())["results"]["doubts"]),
        cost,
    )


HEAD = (
    "start                              method               reported A  to truth A  hand   "
    "to start A  pose error deg  iterations  doubts"
)


def line(start: Start, method: str, judged: Judged) -> str:
    """One line of the table under `HEAD`."""
    hand = "other" if judged.other_hand else "same"
    to_truth = f"{judged.to_truth_angstrom:10.1f}  {hand:5}" if start.signal else " " * 17
    error = f"{judged.error_deg:14.1f}" if start.signal else " " * 14
    return (
        f"{start.title:34} {method:20} {judged.reported_angstrom:10.1f}  {to_truth}  "
        f"{judged.to_start_angstrom:11.1f}  {error}  {len(judged.by_iteration):10}  "
        f"{judged.doubts:6}"
    )


def conclude(report: Report, start: Start, method: str, judged: Judged) -> None:
    hand = ", other hand" if judged.other_hand else ""
    deserved = f"{judged.to_truth_angstrom:.1f} A to the truth{hand}" if start.signal else "none"
    report.add(
        f"{start.title}, {method}: reported; FSC 0.5 with the start",
        f"{judged.reported_angstrom:.1f} A; {judged.to_start_angstrom:.1f} A",
        f"deserved: {deserved}",
    )
    report.numbers[f"{start.title}, {method}"] = {
        "reported_angstrom": judged.reported_angstrom,
        "to_truth_angstrom": judged.to_truth_angstrom if start.signal else None,
        "other_hand": judged.other_hand if start.signal else None,
        "to_start_angstrom": judged.to_start_angstrom,
        "error_deg": judged.error_deg if start.signal else None,
        "by_iteration_angstrom": judged.by_iteration,
        "doubts": judged.doubts,
        "cpu_s": judged.cost.cpu_s,
    }
