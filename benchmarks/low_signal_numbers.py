"""Low signal in numbers: four molecules, five noise levels, three sizes of data set; other searches and
RELION beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import relion
from calibration import error_by_sampling
from common import FIGURES, RUNS, Cost, Report
from datasets import low_signal_images
from low_signal import CONE_DEG, MOLECULES, Measured, measure, numbers, refined
from refine_simulated import Outcome, against_truth

Key = tuple[str, float, int]  # molecule, SNR, images

SNRS, IMAGES = (0.2, 0.1, 0.05, 0.02, 0.01), 600
MORE_IMAGES, THEIR_SNRS = (1500, 3000), (0.02,)
SMALLEST, SMALLEST_SNR = ("bgal", "cage"), 0.05  # beside other searches and RELION
PICTURE = "benchmark_low_signal_numbers.png"


def keys(molecules: Sequence[str] = tuple(MOLECULES)) -> list[Key]:
    """All noise levels with the fewest images, one of them with more."""
    few = [(name, snr, IMAGES) for name in molecules for snr in SNRS]
    return few + [(name, snr, n) for name in molecules for snr in THEIR_SNRS for n in MORE_IMAGES]


def low_signal_numbers(molecules: Sequence[str] = tuple(MOLECULES)) -> Report:
    """Whole refinements as in `low_signal` (defaults, one thread), at SNR 0.2, 0.1, 0.05, 0.02 and
    0.01 with 600 images, and at 0.02 with 1,500 and 3,000: pose error, the share within 10
    degrees, resolution (between the halves at 0.143, as reported, and to the truth at 0.5), the
    expected calibration error (ECE) of one more search, and CPU seconds. Beside, on the two smallest
    sets (beta-galactosidase and the cage, 600 images of 72^2, SNR 0.05): `--search
    branch-and-bound`, and RELION 3.1.3's whole `--auto_refine` (three processes) from the same
    start, where it is installed. Exhaustive search stands beside both in `branch_and_bound`."""
    report, measured = Report(), {}
    for name, snr, n in keys(molecules):
        measured[name, snr, n] = measure(report, name, snr, n, wide_images=0)
        print(f"    {line((name, snr, n), measured[name, snr, n])}", flush=True)
    report.numbers["printed"] = "\n".join([HEAD, *(line(*one) for one in measured.items())])
    for key, one in measured.items():
        report.numbers["{} {:g} {}".format(*key)] = numbers(one)
    _conclude(report, measured)
    for name in (one for one in SMALLEST if one in molecules):
        _beside(report, name, measured[name, SMALLEST_SNR, IMAGES].outcome)
    plot(measured, FIGURES / PICTURE)
    report.pictures.append(PICTURE)
    return report


HEAD = (
    "molecule              SNR     N  CPU s  iter  error deg  within 10 deg  halves A  reported A  "
    "to truth A  mean p  right    ECE (chance)"
)


def line(key: Key, measured: Measured) -> str:
    """One line of the table under `HEAD`."""
    name, snr, n = key
    outcome, found = measured.outcome, measured.posteriors
    return (
        f"{MOLECULES[name].title:18} {snr:6g} {n:5} {outcome.cost.cpu_s:6.0f} "
        f"{len(outcome.iterations):5} {outcome.error_deg:10.2f} {_within(outcome):14.1%} "
        f"{outcome.between_angstrom:9.2f} {outcome.reported_angstrom:11.2f} "
        f"{outcome.to_truth_angstrom:11.2f} {found.probability.mean():7.3f} "
        f"{found.right.mean():6.3f}  {found.error:.3f} ({error_by_sampling(found.probability):.3f})"
    )


def _within(outcome: Outcome) -> float:
    return float((outcome.errors.angle_deg <= CONE_DEG).mean())


def _conclude(report: Report, measured: Mapping[Key, Measured]) -> None:
    for snr in SNRS:
        here = {key: one for key, one in measured.items() if key[1] == snr}
        if not here:
            continue
        worst = max(here, key=lambda key: here[key].posteriors.error)
        least = min(here, key=lambda key: _within(here[key].outcome))
        cpu = [1e3 * one.outcome.cost.cpu_s / key[2] for key, one in here.items()]
        of_worst = f"{MOLECULES[worst[0]].title} {worst[2]}"
        of_least = f"{MOLECULES[least[0]].title} {least[2]}"
        report.add(
            f"SNR {snr:g}: largest ECE; fewest poses within 10 degrees; CPU ms an image",
            f"{here[worst].posteriors.error:.3f} ({of_worst}); "
            f"{_within(here[least].outcome):.1%} ({of_least}); {min(cpu):.0f} to {max(cpu):.0f}",
        )


def _beside(report: Report, name: str, ours: Outcome) -> None:
    """The same images by branch and bound, and by RELION."""
    molecule = MOLECULES[name]
    reference = molecule.reference()
    images = low_signal_images(name, reference, n=IMAGES, snr=SMALLEST_SNR)
    out = RUNS / f"low_{name}_bounded"
    bounded = refined(report, molecule, images, reference, out, ("--search", "branch-and-bound"))
    report.add(f"{molecule.title}: {SAYS}", says(ours), f"{says(bounded)} (branch and bound)")
    report.numbers[f"{name} branch and bound"] = _plain(bounded)
    if not relion.version("relion_refine_mpi"):
        return
    folder, cost = relion.auto_refine(
        report,
        images / "particles.star",
        f"low_{name}_relion",
        reference=reference,
        symmetry=molecule.symmetry,
        lowpass_angstrom=molecule.lowpass_angstrom,
        diameter_angstrom=molecule.diameter_angstrom,
    )
    theirs = by_relion(folder, cost, images, reference, name)
    beside = f"{says(theirs)} (RELION {relion.version('relion_refine_mpi')}, same run)"
    report.add(f"{molecule.title}: {SAYS}", says(ours), beside)
    report.numbers[f"{name} relion"] = _plain(theirs)


SAYS = "CPU s; pose error; within 10 degrees; to the truth"


def says(outcome: Outcome) -> str:
    return (
        f"{outcome.cost.cpu_s:.0f} s; {outcome.error_deg:.2f} deg; {_within(outcome):.1%}; "
        f"{outcome.to_truth_angstrom:.2f} A"
    )


def _plain(outcome: Outcome) -> dict[str, float]:
    return {
        "cpu_s": outcome.cost.cpu_s,
        "error_median_deg": outcome.error_deg,
        "within_10_deg": _within(outcome),
        "fsc_half_to_truth_angstrom": outcome.to_truth_angstrom,
    }


def by_relion(folder: Path, cost: Cost, images: Path, reference: Path, name: str) -> Outcome:
    """RELION's final map and poses against the truth, as halfmap's are judged."""
    molecule = MOLECULES[name]
    errors, to_truth, between = against_truth(
        folder / "run_class001.mrc",
        [folder / f"run_half{h}_class001_unfil.mrc" for h in (1, 2)],
        folder / "run_data.star",
        images,
        reference,
        symmetry=molecule.symmetry,
        diameter_angstrom=molecule.diameter_angstrom,
    )
    return Outcome(cost, errors, to_truth, between, between, [])


def plot(measured: Mapping[Key, Measured], path: Path) -> None:
    """By noise level, a line a molecule and a point a data set, larger with more images: pose error,
    resolution to the truth and as reported, calibration error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), facecolor="white", layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in dict.fromkeys(key[0] for key in measured):
        of_it = {key: one for key, one in measured.items() if key[0] == name}
        few = [key for key in of_it if key[2] == IMAGES]
        snr = [key[1] for key in few]
        colour = None
        for axes, value in (
            (left, lambda m: m.outcome.error_deg),
            (middle, lambda m: m.outcome.to_truth_angstrom),
            (right, lambda m: m.posteriors.error),
        ):
            drawn = axes.plot(
                snr, [value(of_it[key]) for key in few], color=colour, label=MOLECULES[name].title
            )[0]
            colour = drawn.get_color()
            for key, one in of_it.items():
                axes.plot(
                    key[1], value(one), "o", color=colour, markersize=4 * (key[2] / IMAGES) ** 0.5
                )
        reported = [of_it[key].outcome.reported_angstrom for key in few]
        middle.plot(snr, reported, "--", color=colour, linewidth=1)
    left.set(ylabel="pose error, median (degrees)", yscale="log")
    middle.set(ylabel="FSC 0.5 to the truth (A); dashed: as reported")
    right.set(ylabel="calibration error of posteriors")
    right.axhline(0.03, color="0.5", linestyle=":", linewidth=1)
    for axes in (left, middle, right):
        axes.set(xscale="log", xlabel="SNR")
        axes.set_xticks(SNRS, [f"{snr:g}" for snr in SNRS], minor=False)
        axes.set_xticks([], minor=True)
        axes.invert_xaxis()
        axes.grid(color="0.9")
    left.legend(frameon=False, fontsize=8.5, title=f"N = {IMAGES} (lines) to {max(MORE_IMAGES):,}")
    figure.savefig(path, dpi=90)
