"""Pictures of refined transfer functions: phase errors over the Fourier plane, measured beside
fitted, and what the micrographs' defocus and astigmatism changed by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from halfmap.plots.curves import COLOURS, DPI

MOST_ROWS = 8  # of phase errors; further optics groups are told of in words
_LEAST_RAD = 0.2  # the colours' range is at least so wide: smaller errors do not matter
_LEAST_ANGSTROM = 10.0  # and so is that of the defocus
_SHOWN = 0.98  # of the phases lie inside it


@dataclass(frozen=True)
class PhaseError:
    """Phase errors (rad) on a plane (y, x) of frequencies that reaches `edge_angstrom`."""

    title: str
    measured: Float[np.ndarray, "S S"]
    fitted: Float[np.ndarray, "S S"]
    edge_angstrom: float


def save_wavefront_plot(path: str | Path, errors: Sequence[PhaseError]) -> None:
    """A row for each: what the images show, what was fitted, and the difference; grey where the
    images do not tell."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = errors[:MOST_ROWS]
    figure = Figure(figsize=(10.5, 3.5 * len(shown)), facecolor="white", layout="constrained")
    rows = figure.subplots(len(shown), 3, squeeze=False)
    # told apart by colour-blind people; white is no error
    colours = colormaps["PuOr_r"].with_extremes(bad="0.8")
    for axes, one in zip(rows, shown, strict=True):
        known = one.measured[np.isfinite(one.measured)]
        largest = max(_LEAST_RAD, float(np.nanmax(np.abs(one.fitted))))
        if known.size:
            largest = max(largest, float(np.quantile(np.abs(known), _SHOWN)))
        edge = 1 / one.edge_angstrom
        parts = {
            "measured": one.measured,
            "fitted": one.fitted,
            "measured less fitted": one.measured - one.fitted,
        }
        for place, (name, values) in zip(axes, parts.items(), strict=True):
            image = place.imshow(
                values,
                origin="lower",
                cmap=colours,
                vmin=-largest,
                vmax=largest,
                extent=(-edge, edge, -edge, edge),
            )
            place.set_title(name, fontsize=10)
            place.set_xticks([-edge, 0, edge], [f"{one.edge_angstrom:.1f} Å", "kx", ""])
            place.set_yticks([0, edge], ["ky", ""])
        axes[0].set_title(f"{one.title}\nmeasured", fontsize=10)
        figure.colorbar(image, ax=axes, shrink=0.85, label="phase error found (rad)")
    left = len(errors) - len(shown)
    if left:
        figure.supxlabel(f"{left} more are not shown", fontsize=9)
    figure.savefig(path, dpi=DPI)


def save_micrograph_plot(
    path: str | Path,
    defocus_angstrom: Float[np.ndarray, "M 3"] | None,
    astigmatism_angstrom: tuple[Float[np.ndarray, "M 2"], Float[np.ndarray, "M 2"]] | None,
) -> None:
    """By micrograph, in the order of the file: the change of its particles' defocus (lowest tenth,
    median, highest tenth); and astigmatism before and after, as the vector `(a cos 2 theta,
    a sin 2 theta)` with a the difference of the two defoci."""
    from matplotlib.figure import Figure

    there = [defocus_angstrom is not None, astigmatism_angstrom is not None]
    widths = [w for w, one in zip((7.0, 5.0), there, strict=True) if one]
    figure = Figure(figsize=(sum(widths), 4.4), facecolor="white", layout="constrained")
    places = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    if defocus_angstrom is not None:
        axes = places.pop(0)
        low, middle, high = defocus_angstrom.T
        number = np.arange(1, len(middle) + 1)
        axes.vlines(number, low, high, color="0.65", linewidth=1.5, label="lowest to highest tenth")
        axes.plot(number, middle, ".", color=COLOURS[0], label="median of its particles")
        axes.axhline(0, color="black", linewidth=0.8)
        reach = max(float(np.abs(defocus_angstrom).max()), _LEAST_ANGSTROM)
        axes.set_ylim(-1.1 * reach, 1.1 * reach)
        axes.set(xlabel="micrograph", ylabel="change of defocus (Å)")
        axes.set_title("Change of defocus by micrograph", fontsize=11)
        axes.legend(fontsize=8)
    if astigmatism_angstrom is not None:
        (axes,) = places
        before, after = astigmatism_angstrom
        for start, end in zip(before, after, strict=True):
            axes.plot(*np.stack([start, end]).T, color="0.8", linewidth=0.7, zorder=1)
        axes.plot(
            *before.T, "o", color="0.5", markersize=4, markerfacecolor="white", label="before"
        )
        axes.plot(*after.T, "o", color=COLOURS[0], markersize=4, label="after")
        reach = 1.1 * max(float(np.abs(np.concatenate([before, after])).max()), 1.0)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel="astigmatism along x (Å)", ylabel="along the diagonal (Å)")
        axes.set_title("Astigmatism by micrograph", fontsize=11)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)
