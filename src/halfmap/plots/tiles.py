"""Class images and maps as tiles of a page, drawn by Pillow alone: cheap enough for every
iteration.

The same numbers give the same bytes.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from halfmap.errors import InputError

_TILE, _GAP, _TEXT = 128, 10, 11  # pixels: side of a picture, between pictures, height of letters
_HISTORY_CLASSES = 12
_MAP_SIDE = 230  # pixels of a slice
_OFF_CENTRE = 1 / 8  # of the box: half way out in a particle that fills half of it


def save_class_gallery(
    path: str | Path,
    images: ArrayLike,
    titles: Sequence[str],
    *,
    pixel_size_angstrom: float | None = None,
    columns: int | None = None,
) -> None:
    """Tile images (K, N, N) in the order given, each with its own contrast and its title (one or
    two short lines) below; under them, with a pixel size, a scale bar.

    Grey runs from the 0.5 to the 99.5 percentile of each image. Raises `InputError` where there is
    not one title per image.
    """
    stack = _stack(images)
    if len(stack) != len(titles):
        raise InputError(
            f"class gallery: expected images (K, N, N) and K titles, got {stack.shape} and "
            f"{len(titles)} titles"
        )
    columns = columns or min(len(stack), max(6, math.ceil(math.sqrt(len(stack) * 1.5))))
    rows = math.ceil(len(stack) / columns)
    side = _TILE if len(stack) <= 60 else 96  # many classes still fit a screen
    line = _TEXT + 4
    lines = [words for title in titles for words in title.split("\n")]
    wide = max(side, *(math.ceil(_font(_TEXT).getlength(words)) for words in lines))
    step_x = wide + _GAP
    step_y = side + _GAP + 6 + line * (1 + max(title.count("\n") for title in titles))
    footer = 0 if pixel_size_angstrom is None else 30
    page = Image.new("L", (columns * step_x + _GAP, rows * step_y + _GAP + footer), 255)
    for index, (image, title) in enumerate(zip(stack, titles, strict=True)):
        left, top = (
            _GAP + index % columns * step_x + (wide - side) // 2,
            _GAP + index // columns * step_y,
        )
        page.paste(_tile(image, side), (left, top))
        for n, words in enumerate(title.split("\n")):
            write(page, (left + side // 2, top + side + 4 + n * line), words, anchor="ma")
    if pixel_size_angstrom is not None:
        corner = (_GAP + (wide - side) // 2, page.height - 8)
        _scale_bar(page, corner, side, stack.shape[-1] * pixel_size_angstrom, ink=0)
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
    """Slices of a map (N, N, N), indexed [z, y, x], through its centre and an eighth of the box to
    both sides of it, and its projection; a row for each axis, with a scale bar."""
    density = np.asarray(volume, dtype=np.float32)
    if density.ndim != 3 or len(set(density.shape)) != 1:
        raise InputError(f"map picture: expected a cubic map (N, N, N), got {density.shape}")
    box = density.shape[0]
    away = round(_OFF_CENTRE * box)
    heights = [(h - box // 2) * pixel_size_angstrom for h in _heights(box, away)]
    side, margin, above, first = _MAP_SIDE, 22, 22, 34 if title else 4
    step_x, step_y = margin + side + _GAP, above + side + margin
    page = Image.new("L", (4 * step_x + _GAP, first + 3 * step_y + 4), 255)
    write(page, (page.width // 2, 10), title, anchor="ma", size=16)
    views = (  # along, its axis, to the right, upwards
        ("z", 0, "x", "y"),
        ("y", 1, "x", "z"),
        ("x", 2, "y", "z"),
    )
    slices = [
        [np.take(density, at, axis=axis) for at in _heights(box, away)] for _, axis, _, _ in views
    ]
    projections = [density.sum(axis=axis) for _, axis, _, _ in views]
    # one contrast for all slices and one for all projections, so that they can be compared
    grey, grey_sums = _limits(np.stack([one[1] for one in slices])), _limits(np.stack(projections))
    for row, (along, _, right, up) in enumerate(views):
        kinds = [
            f"slice, {along} = {height:+.0f} Å" if height else f"central slice, {along} = 0"
            for height in heights
        ] + [f"projection along {along}"]
        for column, (kind, picture) in enumerate(
            zip(kinds, [*slices[row], projections[row]], strict=True)
        ):
            left, top = margin + column * step_x, first + above + row * step_y
            limits = grey_sums if column == 3 else grey
            page.paste(_tile(picture[::-1], side, limits), (left, top))  # upwards is up
            write(page, (left + side // 2, top - 4), kind, anchor="ms", size=12)
            write(page, (left + side // 2, top + side + 3), f"{right} →", anchor="ma", size=12)
            upright = Image.new("L", (40, 18), 255)
            write(upright, (20, 9), f"{up} →", anchor="mm", size=12)
            page.paste(upright.rotate(90, expand=True), (left - 20, top + side // 2 - 20))
    _scale_bar(page, (margin + 14, first + above + side - 14), side, box * pixel_size_angstrom)
    save_page(page, path)


def _heights(box: int, away: int) -> tuple[int, int, int]:
    """Voxels of the three slices along an axis."""
    middle = box // 2
    return max(0, middle - away), middle, min(box - 1, middle + away)


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
    """Write a page as PNG."""
    page.save(
        path, compress_level=3, compress_type=zlib.Z_RLE
    )  # as small as the default, in half the time


def _scale_bar(
    page: Image.Image, corner: tuple[int, int], side: int, width_angstrom: float, *, ink: int = 255
) -> None:
    """A bar of a round length, about a quarter of a picture `side` wide, from its lower left
    corner on."""
    wanted = width_angstrom / 4
    power = 10 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    left, bottom = corner
    right = left + round(length / width_angstrom * side)
    ImageDraw.Draw(page).rectangle((left, bottom - 4, right, bottom), fill=ink)
    write(page, (left, bottom - 8), f"{length:g} Å", anchor="ls", size=13, ink=ink)
