"""Surfaces of maps at a threshold, small enough to be sent to a page."""

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from halfmap.errors import InputError
from halfmap.io.mrc import read_map

MAGIC = 0x48464D31  # the first four bytes of a surface that is sent: "HFM1"
MAGIC_COLOURED = 0x48464D32  # and of one with colours: "HFM2"
# shares (uint8) of the colours at places (z, y, x) in voxels of the map
Colours: TypeAlias = Callable[[Float[np.ndarray, "n 3"]], UInt8[np.ndarray, " n"]]
_STEPS = 32767  # positions are sent as int16: a 256^3 box in steps of 1/256 pixel
# share of the box that the default threshold encloses: a particle fills about a fiftieth of a box
# twice its diameter; the search for a gap between density and solvent decides within these
_MOST_ENCLOSED, _LEAST_ENCLOSED = 0.06, 0.004


@dataclass(frozen=True)
class Surface:
    """Triangles `(m, 3)` of vertices `(n, 3)` (x, y, z in the box, -1 to 1, its centre at 0), with
    normals `(n, 3)` pointing out; the level it is at, and the range of levels there are. `shares`
    are colours of the vertices, 0 to 255 between the two values of `scale`."""

    vertices: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    triangles: np.ndarray
    level: float
    lowest: float
    highest: float
    side_angstrom: float
    shares: UInt8[np.ndarray, " n"] | None = None
    scale: tuple[float, float] = (0.0, 0.0)

    def packed(self) -> bytes:
        """The surface as it is sent: a header of `MAGIC`, n, m, then level, lowest, highest, side
        (float32), positions (int16), normals (int8, padded to 4 bytes each), triangles (uint32);
        with colours `MAGIC_COLOURED`, and at the end the two values of the scale (float32) and the
        shares (uint8)."""
        head = struct.pack(
            "<IIIffff",
            MAGIC if self.shares is None else MAGIC_COLOURED,
            len(self.vertices),
            len(self.triangles),
            self.level,
            self.lowest,
            self.highest,
            self.side_angstrom,
        )
        positions = np.zeros((len(self.vertices), 4), "<i2")
        positions[:, :3] = np.round(self.vertices * _STEPS)
        normals = np.zeros((len(self.normals), 4), "i1")
        normals[:, :3] = np.round(self.normals * 127)
        whole = (positions.tobytes(), normals.tobytes(), self.triangles.astype("<u4").tobytes())
        coloured = (
            () if self.shares is None else (struct.pack("<ff", *self.scale), self.shares.tobytes())
        )
        return b"".join((head, *whole, *coloured))


def read_density_of(path: Path, index: int = 0) -> tuple[np.ndarray, float]:
    """A map and its pixel size in Angstrom: of an MRC file, or of class `index` of the coarse maps
    that a job keeps of an iteration.

    Raises:
        InputError: unreadable, or no such class.
    """
    if path.suffix != ".npz":
        volume, sizes = read_map(path)
        return np.asarray(volume, np.float32), sizes if isinstance(sizes, float) else sizes[0]
    try:
        with np.load(path, allow_pickle=False) as kept:
            maps, pixel = kept["maps"], float(kept["pixel_size_angstrom"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: maps of an iteration were expected, it is damaged") from None
    if not 0 <= index < len(maps):
        raise InputError(f"{path}: class {index + 1} of {len(maps)} was asked for")
    return maps[index].astype(np.float32), pixel


def coarser(volume: Float[np.ndarray, "z y x"], size: int) -> Float[np.ndarray, "Z Y X"]:
    """The volume in a box of at most `size`, by averaging blocks of a whole number of pixels."""
    factor = -(-volume.shape[0] // size)
    if factor <= 1:
        return volume
    side = volume.shape[0] // factor * factor
    blocks = volume[:side, :side, :side].reshape(
        side // factor, factor, side // factor, factor, side // factor, factor
    )
    return blocks.mean((1, 3, 5))


def finer(volume: Float[np.ndarray, "z y x"], size: int) -> Float[np.ndarray, "Z Y X"]:
    """The same map on a grid of half the spacing, where that fits into `size`: between its pixels a
    band-limited map is what its Fourier transform says, and a surface of it has no facets."""
    n = volume.shape[0]
    if 2 * n > size or n % 2:
        return volume
    transform = np.fft.fftshift(np.fft.rfftn(volume), axes=(0, 1))
    wide = np.zeros((2 * n, 2 * n, n + 1), transform.dtype)
    half = n // 2
    wide[half : half + n, half : half + n, : half + 1] = transform
    return np.fft.irfftn(np.fft.ifftshift(wide, axes=(0, 1)), s=(2 * n,) * 3, axes=(0, 1, 2)) * 8


def default_level(volume: Float[np.ndarray, "z y x"]) -> float:
    """A threshold that shows the particle: where density parts from solvent (Otsu 1979), inside the
    range of shares of the box that a particle can fill."""
    from skimage.filters import threshold_otsu

    low, high = np.quantile(volume, [1 - _MOST_ENCLOSED, 1 - _LEAST_ENCLOSED])
    if low >= 0.999 * volume.max() > 0:  # a mask: its edge is where it is half
        return float(volume.max()) / 2
    return float(
        np.clip(threshold_otsu(volume[volume > 0] if (volume > 0).any() else volume), low, high)
    )


def surface_of(
    volume: Float[np.ndarray, "z y x"],
    pixel_size_angstrom: float,
    *,
    level: float | None = None,
    size: int = 128,
    colours: Colours | None = None,
    scale: tuple[float, float] = (0.0, 0.0),
) -> Surface:
    """The isosurface of a map (marching cubes) at `level`, in a box of at most `size`; at the
    default level if None, and at the nearest there is if the map never reaches it. `colours` gives
    the shares of the vertices, between the values of `scale`, from their places in voxels.

    Raises:
        InputError: a map that is not finite.
    """
    from skimage.measure import marching_cubes

    if not np.isfinite(volume).all():
        raise InputError("the map holds values that are not finite; there is no surface to show")
    side_angstrom = volume.shape[0] * pixel_size_angstrom
    small = np.ascontiguousarray(finer(coarser(volume, size), size), np.float32)
    lowest, highest = float(small.min()), float(small.max())
    chosen = default_level(small) if level is None else level
    span = highest - lowest
    inside = float(np.clip(chosen, lowest + 1e-3 * span, highest - 1e-3 * span))
    if span <= 0:
        empty = np.zeros((0, 3), np.float32)
        return Surface(empty, empty, empty.astype(int), chosen, lowest, highest, side_angstrom)
    vertices, triangles, normals, _ = marching_cubes(small, inside, gradient_direction="ascent")
    box = small.shape[0]
    # axes z, y, x of the array become x, y, z; that mirrors, so triangles turn round as well
    centred = (vertices[:, ::-1] - box // 2) / (box / 2)
    shares = None if colours is None else colours(_in_voxels(vertices, volume.shape[0], size))
    return Surface(
        np.clip(centred, -1, 1).astype(np.float32),
        normals[:, ::-1].astype(np.float32),
        triangles[:, ::-1],
        chosen,
        lowest,
        highest,
        side_angstrom,
        shares,
        scale,
    )


def _in_voxels(vertices: Float[np.ndarray, "n 3"], box: int, size: int) -> Float[np.ndarray, "n 3"]:
    """Places (z, y, x) on the grid of a surface in voxels of the map: a block's is its middle."""
    factor = -(-box // size)
    if factor > 1:
        return vertices * factor + (factor - 1) / 2
    return vertices / 2 if 2 * box <= size and box % 2 == 0 else vertices
