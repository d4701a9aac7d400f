"""Whether the class that `class3d` says of an image is as sure as it says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import starfile

import truth
from calibration import BINS, error_by_sampling, expected_calibration_error, reliability
from common import DATA, FIGURES, HALFMAP, SHARED, Cost, Report, Skip, job_folder, run, third_party
from datasets import LOW_SIGNAL_OPTIONS, phantom_map, phantom_particles, simulate_mixture

SNRS, IMAGES = (0.2, 0.05, 0.02), 1500
FOUND = (("ribosome", 0.2), ("ribosome", 0.05))  # of which poses are searched too
PICTURE = "benchmark_class_posteriors.png"
COLUMN = "halfmapClassProbability"


@dataclass(frozen=True)
class Mixture:
    """Particles of two states at an SNR, the one map that classification is started from and its
    resolution, and the diameter."""

    title: str
    particles: Callable[[float, int], Path]
    reference: Callable[[], Path]
    lowpass_angstrom: float
    diameter_angstrom: float


@dataclass(frozen=True)
class Found:
    """Of each particle what is said of its class, and whether it is in the class of its state."""

    probability: np.ndarray
    right: np.ndarray
    rand_index: float
    cost: Cost

    @property
    def error(self) -> float:
        return expected_calibration_error(self.probability, self.right)


def ribosome_states(snr: float, n: int) -> Path:
    """Folder of n images of the ribosome's two states, 64^2 at 5 A, half and half.

    Raises:
        Skip: it must be made, and the simulator or its maps are not there.
    """
    folder, simulator = DATA / f"states_{snr:g}_{n}", SHARED / "tools" / "simulate_reference.py"
    if not (folder / "truth.star").exists():
        if not simulator.exists():
            raise Skip(f"{folder} does not exist, and no simulator at {simulator}")
        names = ("ribosome70S_64_5A.mrc", "ribosome70S_64_5A_state2.mrc")
        maps = [third_party("maps", name) for name in names]
        options = ["--n", f"{n}", "--snr", f"{snr:g}", *LOW_SIGNAL_OPTIONS]
        simulate_mixture(simulator, maps, folder, options)
    return folder


def phantom_states(snr: float, n: int) -> Path:
    """Folder of n images of the phantom's two states as seen in C1, 64^2 at 3.5 A, half and half."""
    return phantom_particles(
        f"phantom_states_{snr:g}_{n}", n=n, box=64, snr=snr, seed=53, weights="50,50"
    )


MIXTURES = {
    "ribosome": Mixture(
        "ribosome, 5 % of the mass",
        ribosome_states,
        lambda: third_party("maps", "ribosome70S_64_5A.mrc"),
        60,
        270,
    ),
    "phantom": Mixture(
        "phantom, a domain turned", phantom_states, lambda: phantom_map(64), 40, 170
    ),
}


@dataclass(frozen=True)
class Case:
    """One classification: of which images, whether their poses are known or found too, and in how
    many folds (1: halves share references)."""

    mixture: str
    snr: float
    known: bool
    folds: int

    @property
    def title(self) -> str:
        poses = "known" if self.known else "found"
        return f"{MIXTURES[self.mixture].title}, poses {poses}, --folds {self.folds}"

    @property
    def name(self) -> str:
        return f"{self.mixture} {self.snr:g} {'known' if self.known else 'found'} {self.folds}"


PLACES = [(mixture, snr, True) for mixture in MIXTURES for snr in SNRS]
PLACES += [(mixture, snr, False) for mixture, snr in FOUND]
CASES = tuple(Case(*place, folds) for folds in (1, 4) for place in PLACES)


def class_posteriors(cases: Sequence[Case] = CASES, n: int = IMAGES) -> Report:
    """Class posteriors: `class3d --classes 2` with its defaults, one thread, of 1,500 images in two
    states, half and half, from one map: the 70S ribosome, 5 % of the mass apart (64^2, 5 A, from 60
    A), and the phantom seen in C1, a domain turned by 9 degrees and four helices missing (64^2, 3.5
    A, from 40 A), each at SNR 0.2, 0.05 and 0.02; at the true poses (`--no-alignment`), and some
    with poses found as well; with `--folds 1`, the default, and 4, where the halves never meet. `particles.star` says of each image the probability p of its class,
    summed over poses; the truth tells whether it is the class of its state. In ten bins of p, the
    expected calibration error (ECE) is the mean distance of p from the share that is right; beside
    it what finite bins show by chance where every p is true."""
    report, found = Report(), {}
    for case in cases:
        found[case] = classified(report, case, n)
        print(f"    {line(case, found[case])}", flush=True)
    return told(report, found)


def told(report: Report, found: Mapping[Case, "Found"]) -> Report:
    """The report of what was found."""
    report.numbers["printed"] = "\n".join([HEAD, *(line(*pair) for pair in found.items())])
    conclude(report, found)
    plot(found, FIGURES / PICTURE)
    report.pictures.append(PICTURE)
    return report


def folder_of(case: Case) -> Path:
    """Where the job of a case goes."""
    return job_folder(f"class_posteriors_{case.name.replace(' ', '_')}")


def classified(report: Report, case: Case, n: int) -> Found:
    """One classification, judged."""
    mixture, out = MIXTURES[case.mixture], folder_of(case)
    images = mixture.particles(case.snr, n)
    command = [
        *(HALFMAP, "class3d", "--reference", mixture.reference(), "--classes", "2", "--particles"),
        *([images / "truth.star", "--no-alignment"] if case.known else [images / "particles.star"]),
        *("--diameter", f"{mixture.diameter_angstrom:g}"),
        *("--initial-lowpass", f"{mixture.lowpass_angstrom:g}", "--folds", f"{case.folds}"),
        *("--threads", "1", "--out", out, "--overwrite", "--quiet"),
    ]
    cost = run(report, command, log=out.name)
    return judged(out / "particles.star", images / "truth.star", cost)


def judged(star: Path, true: Path, cost: Cost) -> Found:
    """What a job says of its particles' classes beside the truth; classes are named as fits best."""
    table = starfile.read(star)["particles"]
    found = truth.read_poses(star)
    state = truth.read_poses(true).only(found.numbers).classes
    same = found.classes == state
    if same.mean() < 0.5:
        same = ~same
    probability = table[COLUMN].to_numpy()
    return Found(probability, same, truth.adjusted_rand_index(found.classes, state), cost)


HEAD = (
    "states                                                 SNR  CPU s  rand index  mean p   right    "
    "ECE (chance)"
)


def line(case: Case, found: Found) -> str:
    """One line of the table under `HEAD`."""
    return (
        f"{case.title:51} {case.snr:6g} {found.cost.cpu_s:6.0f} {found.rand_index:11.2f} "
        f"{found.probability.mean():7.3f} {found.right.mean():7.3f}   "
        f"{found.error:.3f} ({error_by_sampling(found.probability):.3f})"
    )


def conclude(report: Report, found: Mapping[Case, Found]) -> None:
    """The worst calibration, and everything as plain numbers."""
    worst = max(found, key=lambda case: found[case].error)
    one = found[worst]
    report.add(
        f"largest ECE ({worst.title}, SNR {worst.snr:g})",
        f"{one.error:.3f}",
        f"by chance, were each p true: {error_by_sampling(one.probability):.3f}; asked: 0.03",
    )
    report.add(
        "the mean p there; the share that is right",
        f"{one.probability.mean():.3f}; {one.right.mean():.3f}",
    )
    report.numbers["all"] = {"largest_ece": one.error}
    for case, one in found.items():
        report.numbers[case.name] = {
            "cpu_s": one.cost.cpu_s,
            "adjusted_rand_index": one.rand_index,
            "mean_probability": float(one.probability.mean()),
            "share_right": float(one.right.mean()),
            "ece": one.error,
            "ece_by_sampling": error_by_sampling(one.probability),
            "reliability": [
                [b.count, b.mean_probability, b.share_right]
                for b in reliability(one.probability, one.right)
            ],
        }


def plot(found: Mapping[Case, Found], path: Path) -> None:
    """Reliability diagrams, a panel a mixture and a line an SNR; the area of a point goes with the
    number of images in it, its bar is the standard deviation of chance."""
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(case.title for case in found))
    figure = Figure(figsize=(3.6 * len(titles), 4.0), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        axes.plot([0, 1], [0, 1], "k--", linewidth=1)
        for case, one in found.items():
            if case.title != title:
                continue
            bins = reliability(one.probability, one.right)
            p, share = [b.mean_probability for b in bins], [b.share_right for b in bins]
            chance = [
                (b.mean_probability * (1 - b.mean_probability) / b.count) ** 0.5 for b in bins
            ]
            drawn = axes.errorbar(p, share, chance, linewidth=1.2, elinewidth=0.7).lines[0]
            area = [8 + 150 * b.count / len(one.right) for b in bins]
            axes.scatter(p, share, area, color=drawn.get_color(), alpha=0.8, linewidths=0)
            drawn.set_label(f"SNR {case.snr:g}")
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="posterior of the class", xlim=(0.4, 1.03), ylim=(0.4, 1.03))
        axes.set(aspect="equal", xticks=np.linspace(0.4, 1, BINS // 2 + 2))
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    panels[0].set_ylabel("share of images in the class of their state")
    figure.savefig(path, dpi=90)
