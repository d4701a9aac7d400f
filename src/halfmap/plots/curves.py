"""Curves of a job: Fourier shell correlation, and how resolution and poses converged.

Plots go through matplotlib's objects, never pyplot, and matplotlib is imported only for them.
Nothing global is set, and the same numbers give the same bytes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halfmap.errors import InputError
from halfmap.resolution import Curve, resolution_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120
COLOURS = ("#1b4f9c", "#d1495b", "#2e933c", "#edae49", "#7a4ea3", "#3aaed8", "#8c5a2b", "#555555")
_THRESHOLDS = (0.143, 0.5)
_CONVERGENCE = {
    "resolution_angstrom": "resolution (Å)",
    "scored_to_angstrom": "images scored to (Å)",
    "angular_change_deg": "change of angle (°)",
    "shift_change_angstrom": "change of shift (Å)",
    "accuracy_deg": "estimated error of angle (°)",
    "accuracy_angstrom": "estimated error of shift (Å)",
    "mean_largest_weight": "largest weight (mean Pmax)",
    "mean_significant": "poses per image (mean)",
    "ms_per_image": "time per image (ms)",
}


def save_fsc_plot(
    path: str | Path,
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    reference: float | None = None,
    unmarked: Collection[str] = (),
) -> None:
    """Fourier shell (or ring) correlation curves by label, with the thresholds 0.143 and 0.5 and
    where each curve falls below them.

    `reference` restricts the marks to that threshold (0.5 for a comparison with a known map, 0.143
    for half maps). Curves named in `unmarked` have no resolution of their own.
    """
    if not curves:
        raise InputError("FSC plot: no curve was given")
    from matplotlib.figure import Figure

    thresholds = _THRESHOLDS if reference is None else (reference,)
    figure = Figure(figsize=(7, 4.6 + 0.2 * len(curves)), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    last = max(float(curve.frequency_per_angstrom[-1]) for curve in curves.values())
    for number, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        falls = {
            threshold: bool((curve.correlation[1:] < threshold).any()) for threshold in thresholds
        }
        found = {threshold: resolution_at(curve, threshold) for threshold in thresholds}
        if label in unmarked:
            found = {}
        words = ", ".join(
            f"{_angstrom(value, beyond=not falls[threshold])} at {threshold:g}"
            for threshold, value in found.items()
        )
        axes.plot(
            curve.frequency_per_angstrom,
            curve.correlation,
            color=colour,
            linewidth=1.6,
            label=f"{label}: {words}" if words else label,
        )
        for threshold, value in found.items():
            if falls[threshold] and math.isfinite(value):
                axes.plot(
                    1 / value,
                    threshold,
                    "o",
                    color=colour,
                    markersize=5,
                    markeredgecolor="white",
                    zorder=3,
                )
    for threshold in _THRESHOLDS:
        axes.axhline(threshold, color="0.45", linewidth=0.8, linestyle="--", zorder=1)
        axes.text(
            1.01,
            threshold,
            f"{threshold:g}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    lowest = min(0.0, *(float(curve.correlation.min()) for curve in curves.values()))
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=1)
    axes.set(
        xlim=(0, last),
        ylim=(lowest - 0.04, 1.03),
        xlabel="spatial frequency (1/Å)",
        ylabel="Fourier shell correlation",
    )
    resolution_axis(axes, last)
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=1)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def save_convergence_plot(
    path: str | Path, events: Sequence[Mapping[str, Any]], *, optimistic: bool = False
) -> None:
    """Resolution, change of the poses, how sure they are, and time per image against the iteration,
    from a job's events. What no event tells is left out, and so is how sure a hard assignment is.
    `optimistic`: the halves share references, and the resolution's label says so.
    """
    told = [event for event in events if "iteration" in event]
    points = {
        name: np.array(
            [(event["iteration"], event[name]) for event in told if event.get(name) is not None],
            dtype=np.float64,
        )
        for name in _CONVERGENCE
    }
    points = {name: values for name, values in points.items() if len(values)}
    if not points.keys() & {
        "resolution_angstrom",
        "scored_to_angstrom",
        "angular_change_deg",
        "shift_change_angstrom",
    }:
        raise InputError(
            "convergence plot: no event holds an iteration with a resolution or a change of pose"
        )
    if (
        "mean_significant" in points and points["mean_significant"][:, 1].max() <= 1
    ):  # a hard assignment
        points = {
            name: values
            for name, values in points.items()
            if name not in ("mean_significant", "mean_largest_weight")
        }
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels = dict(_CONVERGENCE)
    several = any(len(event.get("resolutions_angstrom") or ()) > 1 for event in told)
    labels["resolution_angstrom"] = (
        "optimistic " * optimistic + "resolution" + " of the best class" * several + " (Å)"
    )
    last = max(event["iteration"] for event in told)
    columns = 1 if len(points) < 4 else 2
    rows = math.ceil(len(points) / columns)
    width, height = 1.5 + 5 * columns, 0.6 + 2.0 * rows
    figure = Figure(
        figsize=(width, height), facecolor="white"
    )  # laid out by hand: "constrained" costs more than the plot
    axes_of = np.atleast_1d(figure.subplots(rows, columns)).T.ravel()  # down, then right
    figure.subplots_adjust(
        left=0.8 / width,
        right=1 - 0.15 / width,
        bottom=0.5 / height,
        top=1 - 0.15 / height,
        hspace=0.25,
        wspace=0.2,
    )
    for axes in axes_of[len(points) :]:
        axes.set_axis_off()
    for number, (axes, (name, values)) in enumerate(zip(axes_of, points.items(), strict=False)):
        iterations, values = values.T
        axes.plot(
            iterations,
            values,
            "o-",
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.5,
            markersize=4,
        )
        axes.set_ylabel(labels[name], fontsize=9)
        axes.grid(color="0.9")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.annotate(
            f"{values[-1]:.3g}",
            (iterations[-1], values[-1]),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        axes.margins(y=0.18)
        axes.set_xlim(0.6, last + 0.4)
        if (
            name not in ("resolution_angstrom", "scored_to_angstrom", "mean_largest_weight")
            and values.min() > 0
            and values.max() / values.min() > 30
        ):
            axes.set_yscale("log")
        if number % rows == rows - 1:
            axes.set_xlabel("iteration")
    figure.savefig(path, dpi=DPI)


def _angstrom(value: float, *, beyond: bool) -> str:
    """A resolution in words; `beyond` the last shell where the curve does not fall below the
    threshold."""
    if not math.isfinite(value):
        return "never"
    return ("beyond " if beyond else "") + (f"{value:.2f} Å" if value < 10 else f"{value:.1f} Å")


def resolution_axis(axes: "Axes", last: float) -> None:
    """Resolution in Angstrom above the plot, at round numbers far enough apart to be read."""
    ticks: list[float] = []
    candidates = [
        step * 10.0**power
        for power in (3, 2, 1, 0, -1)
        for step in (8, 7, 6, 5, 4, 3.5, 3, 2.5, 2, 1.5, 1.2, 1)
    ]
    for value in sorted(set(candidates), reverse=True):
        if 0.08 * last <= 1 / value <= last and (
            not ticks or 1 / value - 1 / ticks[-1] >= 0.07 * last
        ):
            ticks.append(value)
    top = axes.secondary_xaxis("top")
    top.set_xticks([1 / value for value in ticks], [f"{value:g}" for value in ticks])
    top.set_xlabel("resolution (Å)")
