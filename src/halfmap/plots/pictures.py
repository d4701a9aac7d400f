"""Pictures that a job leaves, so that a user can look instead of read.

Images and maps are tiled by Pillow alone, cheap enough for every iteration; plots go through
matplotlib's objects, never pyplot, and matplotlib is imported only for them. Nothing global is set,
and the same numbers give the same bytes.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from halfmap.errors import InputError
from halfmap.resolution import Curve, resolution_at

if TYPE_CHECKING:
    from astropy_healpix import HEALPix
    from matplotlib.axes import Axes

DPI = 120
COLOURS = ("#1b4f9c", "#d1495b", "#2e933c", "#edae49", "#7a4ea3", "#3aaed8", "#8c5a2b", "#555555")
_THRESHOLDS = (0.143, 0.5)
_TILE, _GAP, _TEXT = 128, 10, 11  # pixels: side of a picture, between pictures, height of letters
_HISTORY_CLASSES = 12
_CONVERGENCE = {
    "resolution_angstrom": "resolution (Å)",
    "angular_change_deg": "change of angle (°)",
    "shift_change_angstrom": "change of shift (Å)",
    "accuracy_deg": "estimated error of angle (°)",
    "accuracy_angstrom": "estimated error of shift (Å)",
    "mean_largest_weight": "largest weight (mean Pmax)",
    "mean_significant": "poses per image (mean)",
    "ms_per_image": "time per image (ms)",
}


def save_class_gallery(path: str | Path, images: ArrayLike, titles: Sequence[str]) -> None:
    """Tile class images (K, N, N) in the order given, each with its own contrast and its title (one
    or two short lines) below.

    Grey runs from the 0.5 to the 99.5 percentile of each image. Raises `InputError` where there is
    not one title per image.
    """
    stack = _stack(images)
    if len(stack) != len(titles):
        raise InputError(
            f"class gallery: expected images (K, N, N) and K titles, got {stack.shape} and "
            f"{len(titles)} titles"
        )
    columns = min(len(stack), max(6, math.ceil(math.sqrt(len(stack) * 1.5))))
    rows = math.ceil(len(stack) / columns)
    side = _TILE if len(stack) <= 60 else 96  # many classes still fit a screen
    line = _TEXT + 4
    wide = max(
        side,
        math.ceil(
            max(_font(_TEXT).getlength(words) for title in titles for words in title.split("\n"))
        ),
    )
    step_x, step_y = (
        wide + _GAP,
        side + _GAP + 6 + line * (1 + max(title.count("\n") for title in titles)),
    )
    page = Image.new("L", (columns * step_x + _GAP, rows * step_y + _GAP), 255)
    for index, (image, title) in enumerate(zip(stack, titles, strict=True)):
        left, top = (
            _GAP + index % columns * step_x + (wide - side) // 2,
            _GAP + index // columns * step_y,
        )
        page.paste(_tile(image, side), (left, top))
        for n, words in enumerate(title.split("\n")):
            write(page, (left + side // 2, top + side + 4 + n * line), words, anchor="ma")
    save_page(page, path)


def save_class_history(
    path: str | Path, history: Mapping[int, ArrayLike], *, sizes: ArrayLike | None = None
) -> None:
    """Class images over the iterations: a row of up to 12 classes for each iteration told, from
    images (K, N, N) by iteration.

    `sizes` (K,) are the classes' final numbers of particles: the largest come first, each with its
    number; without them classes keep their order. Raises `InputError` where the iterations do not
    all have the same classes.
    """
    stacks = {iteration: _stack(history[iteration]) for iteration in sorted(history)}
    shapes = {stack.shape for stack in stacks.values()}
    if len(shapes) != 1:
        raise InputError(
            "class history: expected images (K, N, N) of the same K and N at every iteration, "
            f"got {sorted(shapes) or 'none'}"
        )
    classes = shapes.pop()[0]
    count = np.zeros(classes, dtype=np.int64) if sizes is None else np.asarray(sizes)
    if count.shape != (classes,):
        raise InputError(
            f"class history: expected the sizes of {classes} classes, got {count.shape}"
        )
    order = np.argsort(-count, kind="stable")[:_HISTORY_CLASSES]
    margin, top = 90, _GAP + (_TEXT + 8 if sizes is not None else 0)
    page = Image.new(
        "L", (margin + len(order) * (_TILE + _GAP), top + len(stacks) * (_TILE + _GAP)), 255
    )
    for row, (iteration, stack) in enumerate(stacks.items()):
        upper = top + row * (_TILE + _GAP)
        write(
            page,
            (margin // 2, upper + _TILE // 2),
            "start" if iteration == 0 else f"iteration {iteration}",
            anchor="mm",
            size=13,
        )
        for column, k in enumerate(order):
            page.paste(_tile(stack[k], _TILE), (margin + column * (_TILE + _GAP), upper))
    for column, k in enumerate(order if sizes is not None else ()):
        write(
            page,
            (margin + column * (_TILE + _GAP) + _TILE // 2, 8),
            f"{count[k]:,} images",
            anchor="ma",
        )
    save_page(page, path)


def save_map_picture(
    path: str | Path, volume: ArrayLike, pixel_size_angstrom: float, *, title: str = ""
) -> None:
    """Three central slices and three projections of a map (N, N, N), indexed [z, y, x], with a
    scale bar."""
    density = np.asarray(volume, dtype=np.float32)
    if density.ndim != 3 or len(set(density.shape)) != 1:
        raise InputError(f"map picture: expected a cubic map (N, N, N), got {density.shape}")
    box = density.shape[0]
    side, margin, above = 290, 22, 24  # pixels: a panel, left of it, over it
    step_x, step_y, first = margin + side + _GAP, above + side + margin, 32 if title else 4
    page = Image.new("L", (3 * step_x + _GAP, first + 2 * step_y + 4), 255)
    write(page, (page.width // 2, 10), title, anchor="ma", size=16)
    views = (
        ("z", 0, "x", "y"),
        ("y", 1, "x", "z"),
        ("x", 2, "y", "z"),
    )  # along, its axis, to the right, upwards
    slices = [np.take(density, box // 2, axis=axis) for _, axis, _, _ in views]
    projections = [density.sum(axis=axis) for _, axis, _, _ in views]
    for row, (kind, pictures) in enumerate(
        (("central slice, {} = 0", slices), ("projection along {}", projections))
    ):
        limits = _limits(
            np.stack(pictures)
        )  # one contrast per row, so that the three can be compared
        for column, (picture, (along, _, right, up)) in enumerate(
            zip(pictures, views, strict=True)
        ):
            left, top = margin + column * step_x, first + above + row * step_y
            page.paste(_tile(picture[::-1], side, limits), (left, top))  # upwards is up
            write(page, (left + side // 2, top - 5), kind.format(along), anchor="ms", size=13)
            write(page, (left + side // 2, top + side + 3), f"{right} →", anchor="ma", size=13)
            upright = Image.new("L", (40, 18), 255)
            write(upright, (20, 9), f"{up} →", anchor="mm", size=13)
            page.paste(upright.rotate(90, expand=True), (left - 20, top + side // 2 - 20))
    _scale_bar(page, (margin, first + above + side), side, box * pixel_size_angstrom)
    save_page(page, path)


def save_fsc_plot(
    path: str | Path,
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    reference: float | None = None,
) -> None:
    """Fourier shell (or ring) correlation curves by label, with the thresholds 0.143 and 0.5 and
    where each curve falls below them.

    `reference` restricts the marks to that threshold (0.5 for a comparison with a known map, 0.143
    for half maps).
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
        words = ", ".join(
            f"{_angstrom(value, beyond=not falls[threshold])} at {threshold:g}"
            for threshold, value in found.items()
        )
        axes.plot(
            curve.frequency_per_angstrom,
            curve.correlation,
            color=colour,
            linewidth=1.6,
            label=f"{label}: {words}",
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
    for threshold in thresholds:
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


def save_orientation_plot(
    path: str | Path,
    rotations_deg: ArrayLike,
    *,
    symmetry: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Density of viewing directions over the sphere, in Mollweide's equal-area projection:
    longitude rot, latitude 90 - tilt.

    `rotations_deg` (n, 3) are rot, tilt, psi; the viewing direction in the object is `(sin tilt cos
    rot, sin tilt sin rot, cos tilt)`. `symmetry` (G, 3, 3) are the matrices of a point group: each
    particle then counts in all its G equivalent directions. Cells are HEALPix pixels of equal area,
    their number chosen so that a uniform distribution has some ten particles in each.
    """
    from astropy_healpix import HEALPix
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rot, tilt = np.radians(np.asarray(rotations_deg, dtype=np.float64)[:, :2].T)
    directions = np.stack(
        [np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=-1
    )
    if symmetry is not None:
        directions = np.einsum(
            "gij,nj->gni", np.asarray(symmetry, dtype=np.float64), directions
        ).reshape(-1, 3)
    n_side = 2 ** int(np.clip(round(math.log2(max(1.0, len(directions) / 120)) / 2), 1, 4))
    cells = HEALPix(nside=n_side, order="ring")
    longitude, latitude = (
        np.arctan2(directions[:, 1], directions[:, 0]),
        np.arcsin(directions[:, 2].clip(-1, 1)),
    )
    counts = np.bincount(_cell(cells, longitude, latitude), minlength=cells.npix)
    edges_longitude, edges_latitude = (
        np.linspace(-np.pi, np.pi, 721),
        np.linspace(-np.pi / 2, np.pi / 2, 361),
    )
    middle = [(edges[1:] + edges[:-1]) / 2 for edges in (edges_longitude, edges_latitude)]
    grid_longitude, grid_latitude = np.meshgrid(*middle)
    density = counts[_cell(cells, grid_longitude.ravel(), grid_latitude.ravel())].reshape(
        grid_longitude.shape
    )
    figure = Figure(figsize=(7.5, 4.6), facecolor="white", layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    mesh = axes.pcolormesh(
        edges_longitude,
        edges_latitude,
        density,
        cmap="viridis",
        vmin=0,
        vmax=max(1, density.max()),
        rasterized=True,
    )
    axes.grid(color="white", alpha=0.25, linewidth=0.6)
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{math.degrees(value):.0f}°"))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{90 - math.degrees(value):.0f}°")
    )
    axes.tick_params(axis="x", labelcolor="white", labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="rot", ylabel="tilt")
    label = "particles in a cell of equal area" + (
        "" if symmetry is None else ", with symmetry mates"
    )
    figure.colorbar(
        mesh,
        ax=axes,
        orientation="horizontal",
        shrink=0.6,
        aspect=30,
        label=label,
        ticks=MaxNLocator(6, integer=True),
    )
    mean = len(directions) / cells.npix
    figure.suptitle(
        f"{title}{': ' if title else ''}{len(rot)} viewing directions; uniform would be "
        f"{mean:.1f} in a cell",
        fontsize=10,
    )
    figure.savefig(path, dpi=DPI)


def save_convergence_plot(path: str | Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Resolution, change of the poses, how sure they are, and time per image against the iteration,
    from a job's events. What no event tells is left out, and so is how sure a hard assignment is.
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
    if not points.keys() & {"resolution_angstrom", "angular_change_deg", "shift_change_angstrom"}:
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
        axes.set_ylabel(_CONVERGENCE[name], fontsize=9)
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
            name not in ("resolution_angstrom", "mean_largest_weight")
            and values.min() > 0
            and values.max() / values.min() > 30
        ):
            axes.set_yscale("log")
        if number % rows == rows - 1:
            axes.set_xlabel("iteration")
    figure.savefig(path, dpi=DPI)


def write(
    page: Image.Image,
    place: tuple[int, int],
    words: str,
    *,
    anchor: str = "la",
    size: int = _TEXT,
    ink: int = 0,
) -> None:
    """Words at a place, held there by Pillow's anchor (left, middle or right; ascender, middle or
    baseline)."""
    ImageDraw.Draw(page).text(
        place, words, font=_font(size), anchor=anchor, fill=ink if page.mode == "L" else (ink,) * 3
    )


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from matplotlib's files (without importing it), which has the letters that
    Pillow's own font lacks: Å, →."""
    found = find_spec("matplotlib")
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _stack(images: ArrayLike) -> np.ndarray:
    stack = np.asarray(images, dtype=np.float32)
    if stack.ndim != 3 or not len(stack):
        raise InputError(f"class images: expected (K, N, N) with K above 0, got {stack.shape}")
    return stack


def _tile(image: np.ndarray, side: int, limits: tuple[float, float] | None = None) -> Image.Image:
    """An image in grey, enlarged or reduced smoothly, as an eye would."""
    low, high = limits or _limits(image)
    scaled = (np.nan_to_num(image, nan=low, posinf=high, neginf=low) - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8)).resize(
        (side, side), Image.Resampling.LANCZOS
    )


def _limits(image: np.ndarray) -> tuple[float, float]:
    """Grey limits: the 0.5 and 99.5 percentiles of the finite pixels, never equal."""
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    last = finite.size - 1
    ranks = (round(0.005 * last), round(0.995 * last))
    low, high = np.partition(finite, ranks)[[*ranks]].tolist()
    return low, high if high > low else low + 1


def save_page(page: Image.Image, path: str | Path) -> None:
    page.save(
        path, compress_level=3, compress_type=zlib.Z_RLE
    )  # as small as the default, in half the time


def _scale_bar(
    page: Image.Image, corner: tuple[int, int], side: int, width_angstrom: float
) -> None:
    """A white bar of a round length, about a quarter of the picture, in its lower left corner."""
    wanted = width_angstrom / 4
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    left, bottom = corner[0] + 14, corner[1] - 14
    ImageDraw.Draw(page).rectangle(
        (left, bottom - 4, left + round(length / width_angstrom * side), bottom), fill=255
    )
    write(page, (left, bottom - 8), f"{length:g} Å", anchor="ls", size=13, ink=255)


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


def _cell(cells: "HEALPix", longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    from astropy import units

    return cells.lonlat_to_healpix(longitude * units.rad, latitude * units.rad)
