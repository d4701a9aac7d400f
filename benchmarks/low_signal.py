"""Low signal: whether any pose is lost that the images tell, and whether posteriors mean what they
say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import truth
from calibration import (
    BINS,
    error_by_sampling,
    expected_calibration_error,
    reliability,
)
from common import FIGURES, HALFMAP, Report, job_folder, run, third_party
from datasets import LOW_SIGNAL_OPTIONS, bgal_72, cage_72, low_signal_images, ribosome_80
from halfmap.engine.significant_poses import SignificantPoses
from halfmap.engine.state import Candidates, Poses, as_candidates
from halfmap.pose_search.refinement import SearchSettings
from halfmap.so3 import angular_distance_deg, rotation_vector_to_matrix
from inside import OpenedVolumes, at_its_end, open_job, search, settled, widest
from refine_simulated import Outcome, judged


@dataclass(frozen=True)
class Molecule:
    """What is refined, its symmetry, the resolution that its true map is started from, and the
    diameter of the mask in which the result is compared with it."""

    title: str
    reference: Callable[[], Path]
    symmetry: str
    lowpass_angstrom: float
    diameter_angstrom: float


MOLECULES = {
    "ribosome": Molecule("ribosome", ribosome_80, "C1", 40, 270),
    "trpv1": Molecule("TRPV1", lambda: third_party("maps", "trpv1_96_2.5A.mrc"), "C4", 40, 170),
    "bgal": Molecule("beta-galactosidase", bgal_72, "D2", 40, 180),
    "cage": Molecule("cage of 24", cage_72, "O", 30, 160),
}
SNRS, IMAGES = (0.2, 0.05, 0.02), 600
CONE_DEG, CONE_PX = 10.0, 2.0  # poses that near to each other are taken for one
BETTER = 1.0  # of log posterior, by which a pose that the search did not find must win to count
WIDE_IMAGES = 150
MODES, DRAWS = 12, 64  # of each image; poses drawn from each mode
PICTURE = "benchmark_low_signal.png"


@dataclass(frozen=True)
class Posteriors:
    """What one more search of all images says of its best poses, (n,): the probability that the
    pose is where it is, and whether it is."""

    probability: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        return expected_calibration_error(self.probability, self.right)


@dataclass(frozen=True)
class Beaten:
    """Of how many images a better pose than the one found is known, and for how many of those it
    lies elsewhere, out of the cone around the one found; the rest were not refined to their end."""

    images: int
    beaten: int
    elsewhere: int

    def __add__(self, other: "Beaten") -> "Beaten":
        return Beaten(
            self.images + other.images,
            self.beaten + other.beaten,
            self.elsewhere + other.elsewhere,
        )

    def __str__(self) -> str:
        return f"{self.beaten} ({self.elsewhere}) of {self.images}"


NOBODY = Beaten(0, 0, 0)


@dataclass(frozen=True)
class Measured:
    """One refinement, the accuracy that it states (mean over its images), its posteriors, and how
    often the pose found is beaten: by the known one, or by that of a wider search."""

    outcome: Outcome
    accuracy_deg: float
    posteriors: Posteriors
    by_known: Beaten
    by_wide: Beaten

    @property
    def off(self) -> int:
        return int((self.outcome.errors.angle_deg > CONE_DEG).sum())


def low_signal(
    molecules: Sequence[str] = tuple(MOLECULES), snrs: Sequence[float] = SNRS, n: int = IMAGES
) -> Report:
    """Low signal: whole refinements (`refine` with its defaults, one thread) of four molecules, 600
    images each at SNR 0.2, 0.05 and 0.02, from the true map low-passed to 40 A, the cage's to 30 A:
    the ribosome (C1, 80^2, 4 A), TRPV1 (C4, 96^2, 2.5 A), beta-galactosidase (D2, 72^2, 3.54 A) and
    a cage of 24 subunits made of Gaussian blobs (O, 72^2, 2.5 A). Then all images are searched once
    more at the final references, over all orientations and shifts, as the job does. The posterior
    mass within 10 degrees and 2 pixels of an image's best pose is the probability p that this pose
    is right, and the truth, in the job's frame, tells whether it is: in ten bins of p, the expected
    calibration error (ECE) is the mean distance of p from the share that is right. No pose may be
    lost: the known pose, refined at the same references, must not beat the one found by one unit of
    log posterior, and neither may the best of a search with far wider limits (128 candidates
    refined, a quarter of all cells subdivided; first 150 images); in brackets how many of the
    better poses lie out of the cone around the one found. CPU seconds are of the refinement."""
    report, measured = Report(), {}
    example = f"--n {n} --snr SNR {' '.join(LOW_SIGNAL_OPTIONS)}"
    report.commands.append(f"python ../shared/tools/simulate_reference.py MAP {example} --out ...")
    for name in molecules:
        for snr in snrs:
            measured[name, snr] = measure(report, name, snr, n)
            print(f"    {line(name, snr, measured[name, snr])}", flush=True)
    report.numbers["printed"] = "\n".join([HEAD, *(line(*key, m) for key, m in measured.items())])
    conclude(report, measured)
    plot(measured, FIGURES / PICTURE)
    report.pictures.append(PICTURE)
    return report


def measure(
    report: Report, name: str, snr: float, n: int, *, wide_images: int = WIDE_IMAGES
) -> Measured:
    """A whole refinement, and what its end makes of every image; the first `wide_images` are searched
    with far wider limits too."""
    molecule = MOLECULES[name]
    reference = molecule.reference()
    images, out = (
        low_signal_images(name, reference, n=n, snr=snr),
        job_folder(f"low_{name}_{snr:g}{'' if n == IMAGES else f'_{n}'}"),
    )
    outcome = refined(report, molecule, images, reference, out)
    opened = open_job(
        images / "particles.star",
        [reference],
        diameter_angstrom=None,
        lowpass_angstrom=molecule.lowpass_angstrom,
        symmetry=molecule.symmetry,
    )
    opened = at_its_end(opened, out)
    mates, pixel = opened.problem.symmetry.rotations, opened.problem.particles.pixel_size_angstrom
    known = in_frame_of_job(opened.true_poses, outcome.errors, pixel)
    rows, found = search(opened, opened.settings, widest(opened.state))
    by_wide = NOBODY
    if wide_images:
        wider = replace(opened.settings, search=far_wider(opened.settings.search))
        first, widely = search(opened, wider, widest(opened.state), images=wide_images)
        by_wide = beaten(found.select_images(torch.searchsorted(rows, first)), widely, mates)
    return Measured(
        outcome,
        float(opened.state.poses.select_images(rows).accuracy[:, 0].nanmean()),
        posteriors(found, known.select_images(rows), mates),
        beaten(found, refined_from(opened, known), mates),
        by_wide,
    )


def refined(
    report: Report,
    molecule: Molecule,
    images: Path,
    reference: Path,
    out: Path,
    options: Sequence[str] = (),
) -> Outcome:
    """`halfmap refine` with its defaults but for these options, one thread, judged against the
    truth."""
    command = [
        *(HALFMAP, "refine", "--particles", images / "particles.star", "--reference", reference),
        *("--symmetry", molecule.symmetry, "--initial-lowpass", f"{molecule.lowpass_angstrom:g}"),
        *(*options, "--threads", "1", "--out", out, "--overwrite", "--quiet"),
    ]
    cost = run(report, command, log=out.name)
    return judged(
        out,
        cost,
        images,
        reference,
        symmetry=molecule.symmetry,
        diameter_angstrom=molecule.diameter_angstrom,
    )


def far_wider(settings: SearchSettings) -> SearchSettings:
    """Limits so wide that what they still lose no search of this kind would find: a quarter of all
    cells, however sure the coarse grid is, and 128 candidates."""
    wide = replace(settings, n_refined=128, most_refined=128, followed_share=1.0)
    return replace(wide, largest_cell_share=0.25, significance=math.inf)


# --- poses beside poses ------------------------------------------------------------------------


def in_frame_of_job(known: Poses, errors: truth.PoseErrors, pixel_size_angstrom: float) -> Poses:
    """The known poses where the job's map lies: `A G`, moved by `(A G t)_xy`."""
    turned = known.rotations.double() @ torch.from_numpy(errors.frame)
    offset_px = torch.from_numpy(errors.frame_shift_angstrom) / pixel_size_angstrom
    return replace(
        known,
        rotations=turned.float(),
        shift_px=known.shift_px + (turned @ offset_px)[:, :2].float(),
    )


def refined_from(opened: OpenedVolumes, poses: Poses) -> Candidates:
    """Poses given, refined where they are as the job does with images that are sure of theirs."""
    state = replace(settled(opened.state), poses=poses)
    state = state.keeping(SignificantPoses(as_candidates(poses)))
    return search(opened, opened.settings, state)[1]


def beaten(found: Candidates, challenger: Candidates, symmetry: Tensor) -> Beaten:
    """How often the best pose of another search beats the best one found by more than `BETTER`: in
    the logarithm of the posterior that the modes around them hold, or in log likelihood where one
    is the cell of a grid."""
    best, other = found.best(1), challenger.best(1)
    modes = (best.cell < 0) & (other.cell < 0)
    of_modes, of_poses = other.log_weight - best.log_weight, other.score - best.score
    better = torch.where(modes, of_modes, of_poses) > BETTER
    elsewhere = better & ~are_near(best, other, symmetry)
    return Beaten(len(better), int(better.sum()), int(elsewhere.sum()))


def are_near(a: Candidates, b: Candidates, symmetry: Tensor) -> Tensor:
    """Which poses lie within `CONE_DEG` and `CONE_PX` of each other, modulo symmetry, (n, m); one
    of the two may have a single pose for each image."""
    angle = angular_distance_deg(a.rotations, b.rotations, symmetry=symmetry)
    return (angle < CONE_DEG) & ((a.shift_px - b.shift_px).norm(dim=-1) < CONE_PX)


def posteriors(found: Candidates, known: Poses, symmetry: Tensor) -> Posteriors:
    """The posterior mass around each image's best pose, and whether that is the known one."""
    best = found.best(1)
    right = are_near(best, as_candidates(known), symmetry)[:, 0]
    return Posteriors(mass_near(found, best, symmetry).numpy(), right.numpy())


def mass_near(found: Candidates, best: Candidates, symmetry: Tensor) -> Tensor:
    """The posterior mass near the best pose: of each mode its weight times the share of its
    Gaussian (of the accuracy stated, the same about all axes) that lies there, by `DRAWS` poses
    drawn from it; (n,)."""
    likeliest = found.best(MODES)
    weight = torch.softmax(found.log_weight.double(), 1)
    weight = weight.sort(1, descending=True).values[:, :MODES]
    draws = torch.randn(DRAWS, 5, generator=torch.Generator().manual_seed(5))
    spread = likeliest.accuracy.nan_to_num(0.0)
    share = torch.zeros_like(weight)
    for draw in draws:
        turn = torch.deg2rad(spread[..., :1] / 3**0.5) * draw[:3]
        moved = replace(
            likeliest,
            rotations=rotation_vector_to_matrix(turn) @ likeliest.rotations,
            shift_px=likeliest.shift_px + spread[..., 1:] * draw[3:],
        )
        share += are_near(moved, best, symmetry) / DRAWS
    return (weight * share).sum(1).clamp(max=1)


# --- what is told ------------------------------------------------------------------------------

HEAD = (
    "molecule              SNR  CPU s  iter  error deg  > 10 deg  stated deg  reported A  "
    "to truth A  mean p  right    ECE (chance)       by known (lost)       by wide (lost)"
)


def line(name: str, snr: float, measured: Measured) -> str:
    """One line of the table under `HEAD`."""
    outcome, found = measured.outcome, measured.posteriors
    off = f"{measured.off}/{len(outcome.errors.angle_deg)}"
    return (
        f"{MOLECULES[name].title:18} {snr:6g} {outcome.cost.cpu_s:6.0f} "
        f"{len(outcome.iterations):5} {outcome.error_deg:10.2f} {off:>9} "
        f"{measured.accuracy_deg:11.2f} {outcome.reported_angstrom:11.2f} "
        f"{outcome.to_truth_angstrom:11.2f} {found.probability.mean():7.3f} "
        f"{found.right.mean():6.3f}  {found.error:.3f} ({error_by_sampling(found.probability):.3f}) "
        f"{measured.by_known!s:>21} {measured.by_wide!s:>20}"
    )


def conclude(report: Report, measured: Mapping[tuple[str, float], Measured]) -> None:
    """Totals, the worst calibration, and everything as plain numbers."""
    known = sum((m.by_known for m in measured.values()), NOBODY)
    wide = sum((m.by_wide for m in measured.values()), NOBODY)
    report.add(
        "images whose known pose beats the one found by 1 (and lies elsewhere)",
        f"{known}",
        "asked: 0",
    )
    report.add("the same, of a far wider search", f"{wide}", "asked: 0")
    name, snr = max(measured, key=lambda key: measured[key].posteriors.error)
    worst = measured[name, snr].posteriors
    report.add(
        f"largest ECE ({MOLECULES[name].title}, SNR {snr:g})",
        f"{worst.error:.3f}",
        f"by chance, were each p true: {error_by_sampling(worst.probability):.3f}",
    )
    report.add(
        "the mean p there; the share that is right",
        f"{worst.probability.mean():.3f}; {worst.right.mean():.3f}",
    )
    report.numbers["all"] = {
        "by_known": asdict(known),
        "by_wide": asdict(wide),
        "largest_ece": worst.error,
    }
    for (name, snr), one in measured.items():
        report.numbers[f"{name} {snr:g}"] = numbers(one)


def numbers(measured: Measured) -> dict[str, object]:
    """One line of the table for whoever compares later."""
    outcome, found = measured.outcome, measured.posteriors
    return {
        "cpu_s": outcome.cost.cpu_s,
        "wall_s": outcome.cost.wall_s,
        "iterations": len(outcome.iterations),
        "error_median_deg": outcome.error_deg,
        "beyond_10_deg": measured.off,
        "stated_accuracy_deg": measured.accuracy_deg,
        "reported_angstrom": outcome.reported_angstrom,
        "fsc_half_to_truth_angstrom": outcome.to_truth_angstrom,
        "mean_probability": float(found.probability.mean()),
        "share_right": float(found.right.mean()),
        "ece": found.error,
        "ece_by_sampling": error_by_sampling(found.probability),
        "reliability": [
            [b.count, b.mean_probability, b.share_right]
            for b in reliability(found.probability, found.right)
        ],
        "by_known": asdict(measured.by_known),
        "by_wide": asdict(measured.by_wide),
    }


def plot(measured: Mapping[tuple[str, float], Measured], path: Path) -> None:
    """Reliability diagrams, a panel a molecule and a line an SNR. The area of a point goes with the
    number of images in it, its bar is the standard deviation that chance gives it where p is
    true."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _ in measured))
    figure = Figure(figsize=(3.2 * len(names), 3.6), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        axes.plot([0, 1], [0, 1], "k--", linewidth=1)
        for snr in (s for n, s in measured if n == name):
            found = measured[name, snr].posteriors
            bins = reliability(found.probability, found.right)
            p, share = [b.mean_probability for b in bins], [b.share_right for b in bins]
            chance = [
                (b.mean_probability * (1 - b.mean_probability) / b.count) ** 0.5 for b in bins
            ]
            drawn = axes.errorbar(p, share, chance, linewidth=1.2, elinewidth=0.7).lines[0]
            area = [8 + 150 * b.count / len(found.right) for b in bins]
            axes.scatter(p, share, area, color=drawn.get_color(), alpha=0.8, linewidths=0)
            drawn.set_label(f"SNR {snr:g}")
        axes.set(title=MOLECULES[name].title, xlabel="posterior of the best pose")
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
        axes.set_xticks(np.linspace(0, 1, BINS // 2 + 1))
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    panels[0].set_ylabel("share of best poses that are right")
    figure.savefig(path, dpi=90)
