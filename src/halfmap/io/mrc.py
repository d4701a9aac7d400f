"""MRC stacks and maps: read where asked for, every real mode and byte order, permuted axes; written
atomically."""

import io
import lzma
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np

from halfmap.errors import InputError
from halfmap.io.files import replacing
from halfmap.io.mrc_layout import (
    HEADER_BYTES,
    Layout,
    compression,
    layout_of,
    layout_of_file,
    new_header,
    open_decompressed,
)

# of a map; its square, summed over all voxels, must be a number in single precision
LARGEST_DENSITY = 1e12
PIXEL_SIZE_TOLERANCE = (
    0.01  # maps, masks and images whose pixel sizes differ by more are not on one grid
)


@dataclass(frozen=True)
class MrcStack:
    """A stack of images `(n, ny, nx)` on disk, read where it is asked for.

    Read, not mapped: a stack that is cut short while a job is at work is an error then, where a
    mapped one would end the process.
    """

    path: str
    layout: Layout
    pixel_size_angstrom: float  # 0 when the header has none
    transposed: bool  # stored columns along y

    @property
    def shape(self) -> tuple[int, int, int]:
        n, rows, columns = self.layout.shape
        return (n, columns, rows) if self.transposed else (n, rows, columns)

    @property
    def is_volume(self) -> bool:
        """Whether the header says that it is a map: ISPG 1, as many sections as rows and columns.
        Some programs write 1 for stacks as well."""
        return int(self.layout.header["ispg"]) == 1 and len(set(self.layout.shape)) == 1 < len(self)

    def __len__(self) -> int:
        return self.layout.shape[0]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images `(b, ny, nx)` as float32, in the order of `indices`.

        Raises:
            InputError: an index is outside the stack, or the file is not there any more, or not as
                long as it was.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise InputError(
                f"{self.path}: image {int(indices.max()) + 1} was asked for; the stack holds "
                f"{len(self)}"
            )
        stored = np.empty((len(indices), *self.layout.shape[1:]), np.float32)
        first = np.flatnonzero(np.diff(indices, prepend=-2) != 1)  # of each run of images
        try:
            with open(self.path, "rb", buffering=0) as file:
                for start, stop in zip(first, [*first[1:], len(indices)], strict=True):
                    stored[start:stop] = self._run(file, int(indices[start]), int(stop - start))
        except OSError as error:
            raise InputError(
                f"{self.path}: the stack, which was there, cannot be read any more "
                f"({error.strerror or error}); bring it back to its place"
            ) from error
        if self.layout.added:
            stored += self.layout.added
        return np.ascontiguousarray(stored.swapaxes(1, 2)) if self.transposed else stored

    def _run(self, file: io.RawIOBase, first: int, n: int) -> np.ndarray:
        """Images `first` to `first + n` as they are stored."""
        raw = np.empty((n, *self.layout.shape[1:]), self.layout.dtype)
        view, done = raw.reshape(-1).view(np.uint8).data, 0
        file.seek(self.layout.offset + first * (raw.nbytes // n))
        while done < len(view) and (got := file.readinto(view[done:])):
            done += got
        if done < len(view):
            raise InputError(
                f"{self.path}: ends before image {first + n} of {len(self)}, which it had at the "
                "start; copy the stack again"
            )
        return raw


def open_stack(path: str | os.PathLike[str]) -> MrcStack:
    """Open an image stack, of which nothing is read but the header; a single image is a stack of
    one.

    >>> import tempfile
    >>> from halfmap.io.stack_writer import write_stack
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_stack(f"{folder}/two.mrcs", np.ones((2, 8, 8), np.float32), 5.0)
    ...     open_stack(f"{folder}/two.mrcs").read(np.array([1])).shape
    (1, 8, 8)

    Raises:
        InputError: missing, truncated (expected and actual bytes are named), compressed, not MRC,
            unsupported mode, or axes other than images along z.
    """
    path = Path(path)
    if (how := compression(path)) is not None:
        raise InputError(
            f"{path}: is compressed ({how}), and of a stack images are read one by one; decompress "
            "it first"
        )
    layout = layout_of_file(path)
    axes = tuple(int(layout.header[name]) for name in ("mapc", "mapr"))
    if axes not in ((1, 2), (2, 1), (0, 0)):
        raise InputError(
            f"{path}: an image stack needs columns and rows along x and y; its header says axes "
            f"{axes}"
        )
    return MrcStack(str(path), layout, layout.voxel_angstrom()[0], axes == (2, 1))


@overload
def read_map(
    path: str | os.PathLike[str], *, cubic: Literal[True] = True
) -> tuple[np.ndarray, float]: ...
@overload
def read_map(
    path: str | os.PathLike[str], *, cubic: Literal[False]
) -> tuple[np.ndarray, tuple[float, float, float]]: ...
def read_map(path, *, cubic=True):
    """Read a map as `(volume float32 [z, y, x], voxel size in Angstrom)`, permuted axes (mapc,
    mapr, maps) brought to x-y-z.

    `cubic=True` asks for a cube with equal voxel sizes and returns one size (0 when the header has
    none); `cubic=False` takes any map and returns the sizes along x, y, z.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_map(f"{folder}/map.mrc", np.ones((4, 5, 6), np.float32), 2.0)
    ...     volume, sizes_angstrom = read_map(f"{folder}/map.mrc", cubic=False)
    >>> volume.shape, sizes_angstrom
    ((4, 5, 6), (2.0, 2.0, 2.0))

    Raises:
        InputError: missing, truncated, not MRC, impossible axes; or with `cubic` unequal sides or
            voxels.
    """
    path = Path(path)
    layout, data = _voxels(path)
    stored = tuple(
        int(layout.header[name]) for name in ("maps", "mapr", "mapc")
    )  # axis of sections, rows, columns; 1 is x
    stored = (3, 2, 1) if stored == (0, 0, 0) else stored
    if sorted(stored) != [1, 2, 3]:
        raise InputError(
            f"{path}: the header's mapc, mapr, maps are {stored[::-1]}; expected a permutation of "
            "1, 2, 3"
        )
    volume = np.array(
        data.transpose([stored.index(axis) for axis in (3, 2, 1)]), np.float32, order="C"
    )
    volume += np.float32(layout.added)
    voxel = layout.voxel_angstrom()
    if not cubic:
        return volume, voxel
    if len(set(volume.shape)) > 1:
        raise InputError(
            f"{path}: expected a cube, found {volume.shape[::-1]} voxels along x, y, z; pad or "
            "crop the map"
        )
    if max(voxel) - min(voxel) > 1e-3 * max(voxel):
        sizes = ", ".join(f"{size:.4f}" for size in voxel)
        raise InputError(
            f"{path}: expected equal voxel sizes, found {sizes} A along x, y, z; resample the map"
        )
    return volume, voxel[0]


def origin_angstrom(path: str | os.PathLike[str]) -> tuple[float, float, float]:
    """Where the first voxel of a map lies in the frame of its atomic models, A along x, y, z: the
    header's origin, and its start in voxels.

    Raises:
        InputError: as `read_map`.
    """
    layout, _ = _voxels(Path(path))
    header, voxel = layout.header, layout.voxel_angstrom()
    axes = [int(header[name]) for name in ("mapc", "mapr", "maps")]
    starts = [int(header[name]) for name in ("nxstart", "nystart", "nzstart")]
    places = dict(zip(axes, starts, strict=True)) if sorted(axes) == [1, 2, 3] else {}
    return tuple(
        float(header["origin"][name]) + places.get(axis, 0) * voxel[axis - 1]
        for axis, name in ((1, "x"), (2, "y"), (3, "z"))
    )  # type: ignore[return-value]


def _voxels(path: Path) -> tuple[Layout, np.ndarray]:
    """Layout and voxels of a map, which may be compressed as the databank has them."""
    how = compression(path)
    try:
        with open(path, "rb") if how is None else open_decompressed(path, how) as file:
            raw = file.read() if how else file.read(HEADER_BYTES)
            size = len(raw) if how else path.stat().st_size
            layout = layout_of(path, raw[:HEADER_BYTES], size)
            wanted = layout.offset + layout.count * layout.dtype.itemsize
            raw += b"" if how else file.read(wanted - HEADER_BYTES)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the path "
            "or copy the file again"
        ) from error
    if len(raw) < wanted:
        raise InputError(f"{path}: is truncated; copy it again")
    data = np.frombuffer(raw, layout.dtype, layout.count, layout.offset)
    return layout, data.reshape(layout.shape)


def read_density(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """As `read_map`, a map with something in it.

    Raises:
        InputError: as `read_map`; voxels that are not finite, or all the same.
    """
    volume, pixel_size_angstrom = read_map(path)
    if not np.isfinite(volume).all():
        raise InputError(
            f"{path}: the map holds values that are not finite (NaN or infinity); a density was "
            "expected, mend or mask it first"
        )
    largest = float(np.abs(volume).max())
    if largest > LARGEST_DENSITY:
        raise InputError(
            f"{path}: the map has values up to {largest:.3g}, expected at most "
            f"{LARGEST_DENSITY:g}; scale it, or copy it again"
        )
    if np.ptp(volume) == 0:
        raise InputError(
            f"{path}: the map is constant, every voxel is {volume.flat[0]:g}; a density was "
            "expected"
        )
    return volume, pixel_size_angstrom


def same_pixel_size(one_angstrom: float, other_angstrom: float) -> bool:
    """Whether two pixel sizes agree within `PIXEL_SIZE_TOLERANCE`; one of 0, which a header does
    not tell, agrees with any."""
    return (
        min(one_angstrom, other_angstrom) <= 0
        or abs(one_angstrom / other_angstrom - 1) <= PIXEL_SIZE_TOLERANCE
    )


def write_map(path: str | os.PathLike[str], volume: np.ndarray, pixel_size_angstrom: float) -> None:
    """Write a volume `[z, y, x]` as a float32 map, atomically.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_map(f"{folder}/map.mrc", np.zeros((8, 8, 8), np.float32), 1.5)
    ...     volume, pixel_size_angstrom = read_map(f"{folder}/map.mrc")
    >>> volume.shape, pixel_size_angstrom
    ((8, 8, 8), 1.5)

    Raises:
        InputError: the array has not three dimensions, or the folder is missing.
    """
    volume = np.ascontiguousarray(volume, "<f4")
    if volume.ndim != 3:
        raise InputError(
            f"{path}: a map needs an array [z, y, x]; one of shape {volume.shape} arrived"
        )
    statistics = (
        float(volume.min()),
        float(volume.max()),
        float(volume.mean(dtype=np.float64)),
        float(volume.std(dtype=np.float64)),
    )
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(new_header(volume.shape, pixel_size_angstrom, statistics, stack=False))
        file.write(volume.data.cast("B"))
