"""The lecture's pictures of posterior weights: Gamma over the sphere, from diffuse to sharp, and
how accurately angles are known."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from halfmap.errors import InputError
from halfmap.plots.curves import COLOURS, DPI, resolution_axis
from halfmap.plots.tiles import save_page, write

_WIDE, _GAP, _LEFT = 320, 14, 104  # pixels: a sphere, between spheres, the column of words
_HIGH = _WIDE // 2
_FINER = 2  # spheres are drawn larger and reduced, so that their edges are smooth
_DECADES = 3
_GLOW = (
    (0, 0, 4),
    (28, 16, 68),
    (79, 18, 123),
    (129, 37, 129),
    (181, 54, 122),
    (229, 80, 100),
    (251, 135, 97),
    (254, 194, 135),
    (252, 253, 191),
)


def save_direction_posterior(
    path: str | Path,
    posteriors: Mapping[str, ArrayLike],
    particles: Sequence[str],
    *,
    mates: int = 1,
    directions: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Gamma over the sphere of viewing directions: a row of spheres for each of B particles, a
    column for each stage of a run.

    `posteriors` holds by the stage's label an array (B, D) over the D = 12 4^order pixels of
    HEALPix in nested order, as `engine.posterior.direction_posterior` gives; stages may differ in
    order. Spheres are Mollweide's equal-area projection, longitude rot, latitude 90 - tilt. Colour
    is the logarithm of a cell's probability over the highest on its sphere, down to a thousandth;
    the number below is `exp(-sum p log p)`, the effective number of cells, both numbers divided by
    the number of symmetry `mates`, at least 1. `directions` (B, 3), x, y, z in the object, mark
    what is known of each particle by a ring.

    Raises `InputError` where the shapes do not agree.
    """
    stages = {label: np.asarray(gamma, dtype=np.float64) for label, gamma in posteriors.items()}
    for label, gamma in stages.items():
        if (
            gamma.ndim != 2
            or len(gamma) != len(particles)
            or gamma.shape[1] != 12 * 4 ** _order(gamma.shape[1])
        ):
            raise InputError(
                f"direction posterior {label!r}: expected (B, 12 4^order) and B = "
                f"{len(particles)} names, got {gamma.shape}"
            )
    if not stages or not len(particles):
        raise InputError(
            "direction posterior: expected at least one stage and one particle, got none"
        )
    step_x, step_y, top = _WIDE + _GAP, _HIGH + 36, 36 + 26 * bool(title)
    page = Image.new(
        "RGB", (_LEFT + len(stages) * step_x, top + len(particles) * step_y + 46), "white"
    )
    write(page, (page.width // 2, 10), title, anchor="ma", size=16)
    for column, (label, gamma) in enumerate(stages.items()):
        left = _LEFT + column * step_x
        write(page, (left + _WIDE // 2, top - 12), label, anchor="ms", size=13)
        for row, probability in enumerate(gamma):
            upper = top + row * step_y
            _sphere(page, (left, upper), probability)
            if directions is not None:
                _ring(page, (left, upper), *np.asarray(directions, dtype=np.float64)[row])
            words = directions_in_words(probability, mates)
            write(page, (left + _WIDE // 2, upper + _HIGH + 5), words, anchor="ma", size=12)
    for row, name in enumerate(particles):
        write(page, (_LEFT // 2, top + row * step_y + _HIGH // 2), name, anchor="mm", size=13)
    _colour_bar(page)
    save_page(page, path)


def save_accuracy_plot(
    path: str | Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    estimated: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    title: str = "",
) -> None:
    """Angular accuracy against resolution: by label (an SNR, say) the resolutions in Angstrom and
    the 50th percentile of the error there.

    `curves` are drawn as lines with points; what a program `estimated` of its own accuracy, dashed
    in the colour of the same label. Raises `InputError` where a curve is not a pair of equally long
    arrays of positive numbers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    last = 0.0
    colours = {
        label: COLOURS[number % len(COLOURS)]
        for number, label in enumerate({**curves, **(estimated or {})})
    }
    for lines, style, word in ((curves, "o-", ""), (estimated or {}, "--", ", estimated")):
        for label, pair in lines.items():
            resolution, error = (np.asarray(values, dtype=np.float64) for values in pair)
            if (
                resolution.ndim != 1
                or resolution.shape != error.shape
                or not resolution.size
                or min(resolution.min(), error.min()) <= 0
            ):
                raise InputError(
                    f"accuracy plot, {label}: expected positive resolutions and errors (n,), got "
                    f"{resolution.shape}, {error.shape}"
                )
            last = max(last, float(1 / resolution.min()))
            axes.plot(
                1 / resolution,
                error,
                style,
                color=colours[label],
                linewidth=1.6,
                markersize=4,
                label=label + word,
            )
    if not last:
        raise InputError("accuracy plot: no curve was given")
    axes.set(
        xlabel="spatial frequency (1/Å)",
        ylabel="angular error, 50th percentile (°)",
        yscale="log",
        xlim=(0, 1.03 * last),
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color="0.9")
    resolution_axis(axes, last)
    axes.legend(fontsize=8.5, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def _order(pixels: int) -> int:
    return max(0, round(math.log(max(12, pixels) / 12, 4)))


def directions_in_words(probability: np.ndarray, mates: int) -> str:
    """`1.8 of 192 directions`: never fewer than one, as an image has one, however few of a
    symmetric object's mates a cell of the grid tells apart."""
    effective = max(1.0, _effective(probability) / mates)
    of = max(1, round(len(probability) / mates))
    return f"{_few_digits(effective)} of {of} direction{'' if of == 1 else 's'}"


def _effective(probability: np.ndarray) -> float:
    """exp of the entropy."""
    some = probability[probability > 0]
    return math.exp(-float(some @ np.log(some)))


def _few_digits(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


@lru_cache(maxsize=4)
def _mollweide(order: int) -> tuple[np.ndarray, np.ndarray, Image.Image]:
    """HEALPix pixel under each point of a picture of the sphere, `_FINER` times too large; its
    graticule of 30 degrees, 1 on a line; and the ellipse at its true size.

    With x in -1..1 and y in -1..1: sin(theta) = y, longitude = pi x / cos(theta), sin(latitude) =
    (2 theta + sin 2 theta) / pi.
    """
    from astropy_healpix import xyz_to_healpix  # imports astropy, 0.3 s

    y, x = np.meshgrid(
        *(1 - (2 * np.arange(n * _FINER) + 1) / (n * _FINER) for n in (_HIGH, _WIDE)), indexing="ij"
    )
    theta = np.arcsin(y)
    longitude, latitude = (
        -np.pi * x / np.cos(theta),
        np.arcsin((2 * theta + np.sin(2 * theta)) / np.pi),
    )
    direction = (
        np.cos(latitude) * np.cos(longitude),
        np.cos(latitude) * np.sin(longitude),
        np.sin(latitude),
    )
    cells = xyz_to_healpix(*(axis.ravel() for axis in direction), 2**order, order="nested")
    lines = np.zeros(x.shape, dtype=bool)
    for angle in (longitude, latitude):
        number = np.floor(np.degrees(angle) / 30)
        lines[:, 1:] |= number[:, 1:] != number[:, :-1]
        lines[1:] |= number[1:] != number[:-1]
    inside = Image.fromarray((255 * (np.abs(longitude) <= np.pi)).astype(np.uint8))
    return cells.reshape(x.shape), lines, inside.resize((_WIDE, _HIGH), Image.Resampling.BOX)


def _colours(level: np.ndarray) -> np.ndarray:
    """From black (0) through red to pale yellow (1), lightness rising evenly, as matplotlib's
    magma."""
    steps = np.linspace(0, 1, len(_GLOW))
    return np.rint(
        np.stack([np.interp(level, steps, channel) for channel in zip(*_GLOW, strict=True)], -1)
    ).astype(np.uint8)


def _sphere(page: Image.Image, place: tuple[int, int], probability: np.ndarray) -> None:
    cells, lines, inside = _mollweide(_order(len(probability)))
    level = 1 + np.log10(np.maximum(probability / probability.max(), 10.0**-_DECADES)) / _DECADES
    drawn = _colours(level)[cells]
    drawn[lines] = 0.75 * drawn[lines] + 0.25 * 150
    page.paste(Image.fromarray(drawn).resize((_WIDE, _HIGH), Image.Resampling.BOX), place, inside)


def _ring(page: Image.Image, place: tuple[int, int], x: float, y: float, z: float) -> None:
    """A ring around a direction; theta by Newton's method from its latitude."""
    longitude, sine = math.atan2(y, x), max(-1.0, min(1.0, z / math.hypot(x, y, z)))
    theta = math.asin(sine)
    for _ in range(30):
        theta -= (2 * theta + math.sin(2 * theta) - math.pi * sine) / max(
            2 + 2 * math.cos(2 * theta), 1e-3
        )
    across = place[0] + _WIDE / 2 * (1 + longitude / math.pi * math.cos(theta))
    down = place[1] + _HIGH / 2 * (1 - math.sin(theta))
    ImageDraw.Draw(page).ellipse(
        (across - 9, down - 9, across + 9, down + 9), outline="#2ee6d6", width=2
    )


def _colour_bar(page: Image.Image) -> None:
    width, left, top = 240, (page.width - 240) // 2, page.height - 36
    bar = Image.fromarray(_colours(np.linspace(0, 1, width))[None])
    page.paste(bar.resize((width, 9)), (left, top))
    for decade in range(_DECADES + 1):
        words = f"{10.0 ** (decade - _DECADES):g}"
        write(page, (left + round(width * decade / _DECADES), top + 13), words, anchor="ma")
    write(page, (left - 10, top + 4), "probability of a direction / highest", anchor="rm")
