"""Pictures of maps, class images and jobs, as PNG; all of it is made in a worker's process."""

import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from halfmap.errors import InputError
from halfmap.io.mrc import open_stack
from halfmap.particles import load_particles
from halfmap.reports.colouring import Colouring, colouring_of
from halfmap.reports.job_data import directions
from halfmap.reports.jobs import beside, located
from halfmap.reports.surface import coarser, read_density_of, surface_of
from halfmap.workspace.records import load_record

TILE = 96  # pixels of a class image on a page
THUMBNAIL = 72
_SIGMAS = 3.5  # grey runs over so many deviations to either side
_SHARPEST = 400  # pixels of a slice on a page


@functools.lru_cache(maxsize=2)
def _kept(path: str, stamp: float, index: int) -> tuple[np.ndarray, float]:
    return read_density_of(Path(path), index)


def _density(path: str, index: int) -> tuple[np.ndarray, float]:
    """A map, read once while it is looked at."""
    return _kept(path, Path(path).stat().st_mtime, index)


@functools.lru_cache(maxsize=2)
def _colouring(path: str, stamp: float) -> Colouring:
    return colouring_of(Path(path))


def surface(
    path: str, index: int, level: float | None, size: int, coloured_by: str | None = None
) -> bytes:
    """The packed surface of a map, coloured by the values of another of the same box."""
    volume, pixel = _density(path, index)
    if coloured_by is None:
        return surface_of(volume, pixel, level=level, size=size).packed()
    colouring = _colouring(coloured_by, Path(coloured_by).stat().st_mtime)
    return colouring.surface_of(volume, pixel, level=level, size=size).packed()


def slice_png(path: str, index: int, axis: int, position: float) -> bytes:
    """A slice across `axis` (0 z, 1 y, 2 x) at `position` (0 to 1), greys alike in all slices."""
    volume, _ = _density(path, index)
    at = min(volume.shape[0] - 1, max(0, round(position * (volume.shape[0] - 1))))
    low, high = _window(coarser(volume, 64))
    return png(_grey(np.take(volume, at, axis=axis)[::-1], low, high), _SHARPEST)


def projection_png(path: str, index: int, axis: int) -> bytes:
    """The sum along an axis."""
    volume, _ = _density(path, index)
    return png(to_grey(coarser(volume, 128).sum(axis)[::-1]), _SHARPEST)


def classes_png(path: str) -> bytes:
    """All class images in rows of `columns(n)`, each with its own greys."""
    stack = open_stack(path)
    images = np.stack([_small(image) for image in stack.read(np.arange(len(stack)))])
    return png(mosaic([to_grey(one) for one in images]), None)


def columns(n: int) -> int:
    """Images in a row of the picture of all classes."""
    return max(1, math.ceil(math.sqrt(n)))


def mosaic(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles of one size side by side, in rows of `columns`."""
    wide, (height, width) = columns(len(tiles)), tiles[0].shape
    whole = np.zeros((-(-len(tiles) // wide) * height, wide * width), np.uint8)
    for k, tile in enumerate(tiles):
        y, x = divmod(k, wide)
        whole[y * height : (y + 1) * height, x * width : (x + 1) * width] = tile
    return whole


def thumbnail(folder: str) -> bytes:
    """What a job is known by in the table: its classes, its map, or its first picture; plain grey
    where there is nothing to be seen yet, or it is being written."""
    try:
        return _thumbnail(Path(folder))
    except (InputError, OSError, ValueError):
        return png(np.full((8, 8), 128, np.uint8), None)


def _thumbnail(place: Path) -> bytes:
    if place.is_file():
        return _thumbnail_of_file(place)
    if (place / "classes.mrcs").exists():
        stack = open_stack(place / "classes.mrcs")
        images = stack.read(np.arange(min(4, len(stack))))
        return png(mosaic([to_grey(_small(one)) for one in images]), THUMBNAIL)
    for path in _maps_of(place):
        try:
            volume, _ = read_density_of(path)
        except InputError:
            continue
        return png(to_grey(coarser(volume, 64).sum(1)[::-1]), THUMBNAIL)
    for pattern in ("restored.mrcs", "particles.mrcs", "*.mrcs"):
        for path in sorted(place.glob(pattern))[:1]:
            stack = open_stack(path)
            images = stack.read(np.arange(min(4, len(stack))))
            return png(mosaic([to_grey(_small(one)) for one in images]), THUMBNAIL)
    if (place / "particles.star").exists():
        return _thumbnail_of_file(place / "particles.star")
    for path in sorted((place / "pictures").glob("*.png")):
        with Image.open(path) as picture:
            return png(np.asarray(picture.convert("L")), THUMBNAIL)
    raise InputError(f"{place}: nothing to be seen yet")


def _maps_of(place: Path) -> list[Path]:
    """Maps by which a job can be known, the best first."""
    maps = [p for p in (place / "map.mrc", place / "class001.mrc") if p.exists()]
    maps += sorted((place / "shown").glob("maps_*.npz"), reverse=True)[:1]
    maps += sorted(place.glob("map*.mrc"))[:1] + sorted(place.glob("*.mrc"))[:1]
    try:
        others = beside(load_record(place), place)
    except InputError:
        others = []
    maps += [located(place, name) for name in others if name.endswith(".mrc")][:1]
    return [one for one in maps if not one.is_symlink()]


def _thumbnail_of_file(path: Path) -> bytes:
    """A few particles, the map seen from the side, or the picture beside the file."""
    if path.suffix == ".mrc":
        volume, _ = read_density_of(path)
        return png(to_grey(coarser(volume, 64).sum(1)[::-1]), THUMBNAIL)
    picture = path.with_suffix(".png")
    if picture.exists() and not picture.is_symlink():
        with Image.open(picture) as opened:
            return png(np.asarray(opened.convert("L")), THUMBNAIL)
    particles = load_particles(path, check_images=False)
    rows = np.linspace(0, len(particles) - 1, 4).astype(int)
    seen = [coarse(one) for one in particles.images(rows)]
    return png(mosaic([to_grey(_small(one)) for one in seen]), THUMBNAIL)


def directions_of(folder: str, symmetry: str) -> dict[str, Any] | None:
    """Viewing directions of the particles, for the sphere."""
    return directions(Path(folder), symmetry)


def coarse(image: np.ndarray) -> np.ndarray:
    """An image in which a particle can be seen: low-passed by a Gaussian of a 32nd of the box."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, image.shape[0] / 32)


def _small(image: np.ndarray) -> np.ndarray:
    """An image of a tile's size, larger ones by averaging."""
    side = image.shape[0]
    if side <= TILE:
        return image
    shrunk = Image.fromarray(image.astype(np.float32)).resize((TILE, TILE), Image.Resampling.BOX)
    return np.asarray(shrunk)


def _window(values: np.ndarray) -> tuple[float, float]:
    middle, spread = float(np.median(values)), float(values.std()) or 1.0
    low, high = float(values.min()), float(values.max())
    return max(low, middle - _SIGMAS * spread), min(high, middle + 2 * _SIGMAS * spread)


def to_grey(image: np.ndarray) -> np.ndarray:
    """An image in its own greys, white where it is dense."""
    finite = np.nan_to_num(np.asarray(image, np.float32))
    low, high = (float(v) for v in np.quantile(finite, [0.005, 0.998]))
    return _grey(finite, low, high)


def _grey(image: np.ndarray, low: float, high: float) -> np.ndarray:
    span = high - low if high > low else 1.0
    return (np.clip((image - low) / span, 0, 1) * 255).astype(np.uint8)


def png(grey: np.ndarray, longest: int | None) -> bytes:
    """A PNG, its longer side no more than `longest` pixels."""
    picture = Image.fromarray(np.ascontiguousarray(grey))
    if longest and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
