"""Pictures that a job leaves, so that a user can look instead of read.

All are drawn through matplotlib's objects, never pyplot: nothing global is set, and the same numbers give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy_healpix import HEALPix
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from halfmap.errors import InputError
from halfmap.resolution import Curve, resolution_at

_DPI = 120
_THRESHOLDS = (0.143, 0.5)
_COLOURS = ("#1b4f9c", "#d1495b", "#2e933c", "#edae49", "#7a4ea3", "#3aaed8", "#8c5a2b", "#555555")


def save_class_gallery(path: str | Path, images: ArrayLike, titles: Sequence[str]) -> None:
    """Tile class images (K, N, N) in the order given, each with its own contrast and its title (one or two short lines) below.

    Grey runs from the 0.5 to the 99.5 percentile of each image. Raises `InputError` where there is not one title per image.
    """
    stack = np.asarray(images, dtype=np.float32)
    if stack.ndim != 3 or len(stack) != len(titles) or not len(stack):
        raise InputError(f"class gallery: expected images (K, N, N) and K titles, got {stack.shape} and {len(titles)} titles")
    count, box = len(stack), stack.shape[1]
    columns = min(count, max(6, math.ceil(math.sqrt(count * 1.5))))
    rows = math.ceil(count / columns)
    lines = 1 + max(title.count("\n") for title in titles)
    side, gap, text = 1.3, 0.08, 0.06 + 0.125 * lines  # inches: a picture, between pictures, under a picture
    width, height = columns * (side + gap) + gap, rows * (side + text + gap) + gap
    figure = Figure(figsize=(width, height), facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    canvas.axis("off")
    for index, (image, title) in enumerate(zip(stack, titles, strict=True)):
        left, top = gap + index % columns * (side + gap), gap + index // columns * (side + text + gap)
        place = (left, left + side, top + side, top)
        canvas.imshow(_grey(image), cmap="gray", vmin=0, vmax=1, extent=place, interpolation=_smooth(box, side))
        canvas.text(left + side / 2, top + side + 0.04, title, ha="center", va="top", fontsize=6.5, linespacing=1.1)
    canvas.set(xlim=(0, width), ylim=(height, 0))
    figure.savefig(path, dpi=_DPI)


def save_map_picture(path: str | Path, volume: ArrayLike, pixel_size_angstrom: float, *, title: str = "") -> None:
    """Three central slices and three projections of a map (N, N, N), indexed [z, y, x], with a scale bar."""
    density = np.asarray(volume, dtype=np.float32)
    if density.ndim != 3 or len(set(density.shape)) != 1:
        raise InputError(f"map picture: expected a cubic map (N, N, N), got {density.shape}")
    box = density.shape[0]
    figure = Figure(figsize=(8, 5.9), facecolor="white", layout="constrained")
    panels = figure.subplots(2, 3)
    views = (("z", 0, "x", "y"), ("y", 1, "x", "z"), ("x", 2, "y", "z"))  # along, its axis, to the right, upwards
    slices = [np.take(density, box // 2, axis=axis) for _, axis, _, _ in views]
    projections = [density.sum(axis=axis) for _, axis, _, _ in views]
    for row, (name, pictures) in enumerate((("slice", slices), ("projection", projections))):
        low, high = _limits(np.stack(pictures))  # one contrast per row, so that the three can be compared
        for column, (picture, (along, _, right, up)) in enumerate(zip(pictures, views, strict=True)):
            panel = panels[row, column]
            panel.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation=_smooth(box, 2.4))
            panel.set(xticks=[], yticks=[], xlabel=f"{right} →", ylabel=f"{up} →")
            panel.set_title(f"central slice, {along} = 0" if name == "slice" else f"projection along {along}", fontsize=9)
    _scale_bar(panels[0, 0], box, pixel_size_angstrom)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=_DPI)


def save_fsc_plot(path: str | Path, curves: Mapping[str, Curve], *, title: str = "", reference: float | None = None) -> None:
    """Fourier shell (or ring) correlation curves by label, with the thresholds 0.143 and 0.5 and where each curve falls below them.

    `reference` restricts the marks to that threshold (0.5 for a comparison with a known map, 0.143 for half maps).
    """
    if not curves:
        raise InputError("FSC plot: no curve was given")
    thresholds = _THRESHOLDS if reference is None else (reference,)
    figure = Figure(figsize=(7, 4.6 + 0.2 * len(curves)), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    last = max(float(curve.frequency_per_angstrom[-1]) for curve in curves.values())
    for number, (label, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        falls = {threshold: bool((curve.correlation[1:] < threshold).any()) for threshold in thresholds}
        found = {threshold: resolution_at(curve, threshold) for threshold in thresholds}
        words = ", ".join(f"{_angstrom(value, beyond=not falls[threshold])} at {threshold:g}" for threshold, value in found.items())
        axes.plot(curve.frequency_per_angstrom, curve.correlation, color=colour, linewidth=1.6, label=f"{label}: {words}")
        for threshold, value in found.items():
            if falls[threshold] and math.isfinite(value):
                axes.plot(1 / value, threshold, "o", color=colour, markersize=5, markeredgecolor="white", zorder=3)
    for threshold in thresholds:
        axes.axhline(threshold, color="0.45", linewidth=0.8, linestyle="--", zorder=1)
        axes.text(1.01, threshold, f"{threshold:g}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    lowest = min(0.0, *(float(curve.correlation.min()) for curve in curves.values()))
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=1)
    axes.set(xlim=(0, last), ylim=(lowest - 0.04, 1.03), xlabel="spatial frequency (1/Å)", ylabel="Fourier shell correlation")
    _resolution_axis(axes, last)
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=1)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=_DPI)


def save_orientation_plot(path: str | Path, rotations_deg: ArrayLike, *, symmetry: ArrayLike | None = None, title: str = "") -> None:
    """Density of viewing directions over the sphere, in Mollweide's equal-area projection: longitude rot, latitude 90 - tilt.

    `rotations_deg` (n, 3) are rot, tilt, psi; the viewing direction in the object is `(sin tilt cos rot, sin tilt sin rot, cos tilt)`.
    `symmetry` (G, 3, 3) are the matrices of a point group: each particle then counts in all its G equivalent directions. Cells are
    HEALPix pixels of equal area, their number chosen so that a uniform distribution has some ten particles in each.
    """
    rot, tilt = np.radians(np.asarray(rotations_deg, dtype=np.float64)[:, :2].T)
    directions = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=-1)
    if symmetry is not None:
        directions = np.einsum("gij,nj->gni", np.asarray(symmetry, dtype=np.float64), directions).reshape(-1, 3)
    n_side = 2 ** int(np.clip(round(math.log2(max(1.0, len(directions) / 120)) / 2), 1, 4))
    cells = HEALPix(nside=n_side, order="ring")
    longitude, latitude = np.arctan2(directions[:, 1], directions[:, 0]), np.arcsin(directions[:, 2].clip(-1, 1))
    counts = np.bincount(_cell(cells, longitude, latitude), minlength=cells.npix)
    edges_longitude, edges_latitude = np.linspace(-np.pi, np.pi, 721), np.linspace(-np.pi / 2, np.pi / 2, 361)
    middle = [(edges[1:] + edges[:-1]) / 2 for edges in (edges_longitude, edges_latitude)]
    grid_longitude, grid_latitude = np.meshgrid(*middle)
    density = counts[_cell(cells, grid_longitude.ravel(), grid_latitude.ravel())].reshape(grid_longitude.shape)
    figure = Figure(figsize=(7.5, 4.6), facecolor="white", layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    mesh = axes.pcolormesh(edges_longitude, edges_latitude, density, cmap="viridis", vmin=0, vmax=max(1, density.max()), rasterized=True)
    axes.grid(color="white", alpha=0.25, linewidth=0.6)
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{math.degrees(value):.0f}°"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{90 - math.degrees(value):.0f}°"))
    axes.tick_params(axis="x", labelcolor="white", labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="rot", ylabel="tilt")
    label = "particles in a cell of equal area" + ("" if symmetry is None else ", with symmetry mates")
    figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.6, aspect=30, label=label, ticks=MaxNLocator(6, integer=True))
    mean = len(directions) / cells.npix
    figure.suptitle(f"{title}{': ' if title else ''}{len(rot)} viewing directions; uniform would be {mean:.1f} in a cell", fontsize=10)
    figure.savefig(path, dpi=_DPI)


def save_convergence_plot(path: str | Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Resolution and change of the poses against the iteration, from a job's events; what no event tells is left out."""
    panels = [
        ("resolution (Å)", "resolution_angstrom"),
        ("change of angle (°)", "angular_change_deg"),
        ("change of shift (Å)", "shift_change_angstrom"),
    ]
    told = [event for event in events if "iteration" in event]
    points = {name: [(event["iteration"], event[name]) for event in told if event.get(name) is not None] for _, name in panels}
    panels = [(label, name) for label, name in panels if points[name]]
    if not panels:
        raise InputError("convergence plot: no event holds an iteration with a resolution or a change of pose")
    figure = Figure(figsize=(6.5, 0.6 + 2.0 * len(panels)), facecolor="white", layout="constrained")
    for row, (axes, (label, name)) in enumerate(zip(np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)), panels, strict=True)):
        iterations, values = np.array(points[name], dtype=np.float64).T
        axes.plot(iterations, values, "o-", color=_COLOURS[row], linewidth=1.5, markersize=4)
        axes.set_ylabel(label, fontsize=9)
        axes.grid(color="0.9")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.annotate(f"{values[-1]:.3g}", (iterations[-1], values[-1]), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.margins(x=0.05, y=0.18)
        if name != "resolution_angstrom" and values.min() > 0 and values.max() / values.min() > 30:
            axes.set_yscale("log")
    axes.set_xlabel("iteration")
    figure.savefig(path, dpi=_DPI)


def _limits(image: np.ndarray) -> tuple[float, float]:
    """Grey limits: the 0.5 and 99.5 percentiles of the finite pixels, never equal."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def _grey(image: np.ndarray) -> np.ndarray:
    low, high = _limits(image)
    return ((np.nan_to_num(image, nan=low, posinf=high, neginf=low) - low) / (high - low)).clip(0, 1)


def _smooth(box: int, inches: float) -> str:
    """Interpolate between pixels where a picture enlarges them, as an eye would."""
    return "bicubic" if box < inches * _DPI else "antialiased"


def _angstrom(value: float, *, beyond: bool) -> str:
    """A resolution in words; `beyond` the last shell where the curve does not fall below the threshold."""
    if not math.isfinite(value):
        return "never"
    return ("beyond " if beyond else "") + (f"{value:.2f} Å" if value < 10 else f"{value:.1f} Å")


def _scale_bar(axes: Axes, box: int, pixel_size_angstrom: float) -> None:
    """A white bar of a round length, about a quarter of the picture, in its lower left corner."""
    wanted = box * pixel_size_angstrom / 4
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    left, bottom = box * 0.05, box * 0.05
    axes.plot([left, left + length / pixel_size_angstrom], [bottom, bottom], color="white", linewidth=3, solid_capstyle="butt")
    axes.text(left, bottom + box * 0.03, f"{length:g} Å", color="white", fontsize=8, va="bottom")
    axes.set(xlim=(-0.5, box - 0.5), ylim=(-0.5, box - 0.5))


def _resolution_axis(axes: Axes, last: float) -> None:
    """Resolution in Angstrom above the plot, at round numbers far enough apart to be read."""
    ticks: list[float] = []
    candidates = [step * 10.0**power for power in (3, 2, 1, 0, -1) for step in (8, 7, 6, 5, 4, 3.5, 3, 2.5, 2, 1.5, 1.2, 1)]
    for value in sorted(set(candidates), reverse=True):
        if 0.08 * last <= 1 / value <= last and (not ticks or 1 / value - 1 / ticks[-1] >= 0.07 * last):
            ticks.append(value)
    top = axes.secondary_xaxis("top")
    top.set_xticks([1 / value for value in ticks], [f"{value:g}" for value in ticks])
    top.set_xlabel("resolution (Å)")


def _cell(cells: HEALPix, longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    from astropy import units

    return cells.lonlat_to_healpix(longitude * units.rad, latitude * units.rad)
