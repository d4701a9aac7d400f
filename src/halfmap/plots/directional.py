"""Whether a map is equally good in all directions: FSC in cones, and maps over the hemisphere of
Fourier directions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halfmap.orientation_diagnostics import THRESHOLD, ConicalFsc, Sampling
from halfmap.plots.curves import COLOURS, DPI, resolution_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ALIKE = 0.01  # relative


def save_directional_plot(
    path: str | Path, cones: ConicalFsc, sampling: Sampling | None = None, *, mask: str = ""
) -> None:
    """FSC in cones (mean, nine tenths of them, all), the resolution over the hemisphere of
    directions, and how often the views meet each direction."""
    from matplotlib.figure import Figure

    panels = 2 if sampling is None else 3
    figure = Figure(
        figsize=(5.4 + 3.9 * (panels - 1), 4.6), facecolor="white", layout="constrained"
    )
    axes = figure.subplots(1, panels, width_ratios=[1.25] + [1.0] * (panels - 1))
    _curves(axes[0], cones)
    resolution = cones.resolutions_angstrom.numpy()
    finite = np.isfinite(resolution)
    frequency = np.where(finite, 1 / np.where(finite, resolution, 1), 0)
    ticks = np.linspace(frequency.min(), frequency.max(), 4).tolist()
    _hemisphere(
        figure,
        axes[1],
        cones.axes.numpy(),
        frequency,
        "resolution at 0.143 (Å)",
        [(tick, f"{1 / tick:.1f}" if tick > 0 else "none") for tick in ticks],
        size=75,
    )
    axes[1].set_title("resolution by direction", fontsize=10)
    title = f"cFAR {cones.cfar:.2f} (0.5 or more is even)"
    if sampling is not None:
        _hemisphere(
            figure,
            axes[2],
            sampling.probes.numpy(),
            sampling.met.numpy(),
            "times met by a view's slice, over the mean",
            None,
            size=22,
        )
        axes[2].set_title("sampling of Fourier space by the views", fontsize=10)
        title += f", SCF* {sampling.scf_star:.2f} (1 is even, side views alone 0.81)"
    figure.suptitle(title + (f", mask {Path(mask).name}" if mask else ""), fontsize=11)
    figure.savefig(path, dpi=DPI)


def _curves(axes: "Axes", cones: ConicalFsc) -> None:
    curves = cones.curves.numpy()
    frequency = cones.whole.frequency_per_angstrom.numpy()[: curves.shape[1]]
    low, high = np.quantile(curves, [0.05, 0.95], axis=0)
    axes.fill_between(
        frequency, curves.min(0), curves.max(0), color="0.88", label=f"all {len(curves)} cones"
    )
    axes.fill_between(frequency, low, high, color="#b9cbe6", label="nine tenths of them")
    axes.plot(frequency, curves.mean(0), color=COLOURS[0], linewidth=1.6, label="mean of the cones")
    for quantity, colour, label in (
        (cones.areas.argmin(), COLOURS[1], "smallest area"),
        (cones.areas.argmax(), COLOURS[2], "largest area"),
    ):
        axes.plot(frequency, curves[int(quantity)], color=colour, linewidth=1.0, label=label)
    for threshold in (0.5, THRESHOLD):
        axes.axhline(threshold, color="0.45", linewidth=0.8, linestyle="--", zorder=1)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=1)
    axes.set(
        xlim=(0, frequency[-1]),
        ylim=(min(-0.05, float(curves.min())), 1.03),
        xlabel="spatial frequency (1/Å)",
        ylabel="FSC in double cones of 20°",
    )
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    resolution_axis(axes, float(frequency[-1]))


def _hemisphere(
    figure: "Figure",
    axes: "Axes",
    directions: np.ndarray,
    values: np.ndarray,
    label: str,
    ticks: list[tuple[float, str]] | None,
    *,
    size: float,
) -> None:
    """Values of directions in Lambert's equal-area projection, z in the middle, x to the right."""
    radius = np.sqrt(2 * (1 - directions[:, 2])) / math.sqrt(2)
    angle = np.arctan2(directions[:, 1], directions[:, 0])
    # differences that no label would show are none
    flat = bool(np.ptp(values) < _ALIKE * np.abs(values).max())
    bounds: dict[str, Any] = (
        {"vmin": 0.5 * values[0], "vmax": 1.5 * values[0] + 1e-9} if flat else {}
    )
    points = axes.scatter(
        radius * np.cos(angle), radius * np.sin(angle), c=values, s=size, cmap="viridis", **bounds
    )
    turn = np.linspace(0, 2 * math.pi, 181)
    axes.plot(np.cos(turn), np.sin(turn), color="0.4", linewidth=0.8)
    for words, right, up in (("x", 1.06, 0.0), ("y", 0.0, 1.06), ("z", 0.0, 0.0)):
        axes.text(right, up, words, ha="center", va="center", fontsize=9)
    axes.set_aspect("equal")
    axes.set_axis_off()
    bar = figure.colorbar(points, ax=axes, orientation="horizontal", shrink=0.8, aspect=25)
    bar.set_label(label, fontsize=9)
    if ticks is not None:
        shown = ticks[:1] if flat else ticks
        bar.set_ticks([place for place, _ in shown], labels=[words for _, words in shown])
