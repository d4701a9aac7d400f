"""MRC stacks and maps: read by memory map, every real mode and byte order, permuted axes; written
atomically."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from halfmap.errors import InputError
from halfmap.io.files import replacing

PIXEL_SIZE_TOLERANCE = (
    0.01  # maps, masks and images whose pixel sizes differ by more are not on one grid
)
_HEADER_BYTES = 1024
_MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


@dataclass(frozen=True)
class _Layout:
    """Where and how the voxels of a file lie."""

    header: np.void  # structured, in the file's byte order
    dtype: np.dtype
    shape: tuple[int, int, int]  # sections, rows, columns
    offset: int

    def voxel_angstrom(self) -> tuple[float, float, float]:
        """x, y, z voxel size; 0 where the header has none."""
        cell, grid = self.header["cella"], (self.header["mx"], self.header["my"], self.header["mz"])
        return tuple(
            float(np.float32(cell[axis]) / n) if n > 0 else 0.0
            for axis, n in zip("xyz", grid, strict=True)
        )  # type: ignore[return-value]


def _layout(path: Path) -> _Layout:
    """Read and check the header.

    Files without the `MAP ` stamp (written by many programs) are accepted: the byte order is the
    one under which the mode and the sizes make sense.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            raw = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(raw) < _HEADER_BYTES:
        raise InputError(
            f"{path}: expected an MRC header of {_HEADER_BYTES} bytes, the file has {size}; it is "
            "truncated or not MRC"
        )
    order: Literal["<", ">"]
    for order in ("<", ">"):
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
        if (
            0 <= header["mode"] < 1000
            and all(0 < n < 2**24 for n in shape)
            and header["nsymbt"] >= 0
        ):
            break
    else:
        raise InputError(
            f"{path}: is not an MRC file (no mode and sizes that make sense in its header)"
        )
    mode = int(header["mode"])
    if mode not in _MODES:
        raise InputError(
            f"{path}: MRC mode {mode} is not supported; expected one of {sorted(_MODES)}, convert "
            "the file"
        )
    dtype = np.dtype(_MODES[mode]).newbyteorder(order)
    offset = _HEADER_BYTES + int(header["nsymbt"])
    expected = offset + dtype.itemsize * shape[0] * shape[1] * shape[2]
    if size < expected:
        raise InputError(
            f"{path}: is truncated: its header asks for {expected} bytes, the file has {size}; "
            "copy it again"
        )
    return _Layout(header, dtype, shape, offset)


@dataclass(frozen=True)
class MrcStack:
    """A stack of images `(n, ny, nx)` on disk; `data` is a memory map in the file's own type."""

    path: str
    data: np.ndarray
    pixel_size_angstrom: float  # 0 when the header has none

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape

    def __len__(self) -> int:
        return self.data.shape[0]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images `(b, ny, nx)` as float32, in the order of `indices`.

        Raises:
            InputError: an index is outside the stack.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise InputError(
                f"{self.path}: image {int(indices.max()) + 1} was asked for; the stack holds "
                f"{len(self)}"
            )
        return np.asarray(self.data[indices], np.float32)


def open_stack(path: str | os.PathLike[str]) -> MrcStack:
    """Open an image stack by memory map; a single image is a stack of one.

    Raises:
        InputError: missing, truncated (expected and actual bytes are named), not MRC, unsupported
            mode, or permuted axes.
    """
    path = Path(path)
    layout = _layout(path)
    axes = tuple(int(layout.header[name]) for name in ("mapc", "mapr"))
    if axes not in ((1, 2), (0, 0)):
        raise InputError(
            f"{path}: an image stack needs columns along x and rows along y; its header says axes "
            f"{axes}"
        )
    data = np.memmap(path, layout.dtype, "r", layout.offset, layout.shape)
    return MrcStack(str(path), data, layout.voxel_angstrom()[0])


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

    Raises:
        InputError: missing, truncated, not MRC, impossible axes; or with `cubic` unequal sides or
            voxels.
    """
    path = Path(path)
    layout = _layout(path)
    stored = tuple(
        int(layout.header[name]) for name in ("maps", "mapr", "mapc")
    )  # axis of sections, rows, columns; 1 is x
    stored = (3, 2, 1) if stored == (0, 0, 0) else stored
    if sorted(stored) != [1, 2, 3]:
        raise InputError(
            f"{path}: the header's mapc, mapr, maps are {stored[::-1]}; expected a permutation of "
            "1, 2, 3"
        )
    data = np.memmap(path, layout.dtype, "r", layout.offset, layout.shape)
    volume = np.array(
        data.transpose([stored.index(axis) for axis in (3, 2, 1)]), np.float32, order="C"
    )
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
    layout = _layout(Path(path))
    header, voxel = layout.header, layout.voxel_angstrom()
    axes = [int(header[name]) for name in ("mapc", "mapr", "maps")]
    starts = [int(header[name]) for name in ("nxstart", "nystart", "nzstart")]
    places = dict(zip(axes, starts, strict=True)) if sorted(axes) == [1, 2, 3] else {}
    return tuple(
        float(header["origin"][name]) + places.get(axis, 0) * voxel[axis - 1]
        for axis, name in ((1, "x"), (2, "y"), (3, "z"))
    )  # type: ignore[return-value]


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


def _header(
    shape: tuple[int, int, int],
    pixel_size_angstrom: float,
    statistics: tuple[float, float, float, float],
    stack: bool,
) -> bytes:
    """MRC2014 header of float32 data. It holds no time, so that the same data gives the same
    bytes."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nz"], header["ny"], header["nx"] = shape
    header["mode"] = 2
    grid = (shape[2], shape[1], 1 if stack else shape[0])
    for axis, n in zip("xyz", grid, strict=True):
        header["m" + axis] = n
        header["cella"][axis] = n * pixel_size_angstrom
    header["cellb"]["alpha"] = header["cellb"]["beta"] = header["cellb"]["gamma"] = 90.0
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = statistics
    header["ispg"] = 0 if stack else 1
    header["nversion"] = 20141
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = b"halfmap"
    return header.tobytes()


@contextmanager
def _kept_on_failure(partial: Path, path: Path) -> Iterator[Path]:
    """As `replacing`, under a name that stays where the block fails."""
    yield partial
    with open(partial, "rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, path)


class StackWriter:
    """Write a stack batch by batch, without holding it in memory; the file appears whole when the
    block ends without an error.

    with StackWriter("particles.mrcs", 1.3) as out:
        out.append(images)

    A job that can be killed gives a `partial` file, which stays, to write in, and goes on with what
    `save` told.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pixel_size_angstrom: float,
        *,
        partial: str | os.PathLike[str] | None = None,
        saved: np.ndarray | None = None,
    ) -> None:
        self._path, self._pixel_size = Path(path), pixel_size_angstrom
        self._partial, self._saved = None if partial is None else Path(partial), saved
        self._shape: tuple[int, int] | None = None
        self._count, self._sum, self._sum2, self._min, self._max = 0, 0.0, 0.0, np.inf, -np.inf

    def __enter__(self) -> "StackWriter":
        self._open = ExitStack()
        if self._partial is None:
            temporary = self._open.enter_context(replacing(self._path))
        else:
            temporary = self._open.enter_context(_kept_on_failure(self._partial, self._path))
        going_on = self._saved is not None
        self._file = self._open.enter_context(open(temporary, "r+b" if going_on else "wb"))
        if self._saved is None:
            self._file.write(bytes(_HEADER_BYTES))
        else:
            count, ny, nx, self._sum, self._sum2, self._min, self._max = self._saved.tolist()
            self._count, self._shape = int(count), (int(ny), int(nx))
            self._file.truncate(_HEADER_BYTES + 4 * self._count * self._shape[0] * self._shape[1])
            self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, kind, error, trace) -> bool | None:
        if error is None:
            with self._open:  # an error while finishing leaves no file
                self._finish()
            return None
        return self._open.__exit__(kind, error, trace)

    def save(self) -> np.ndarray:
        """Bring what was appended to the disk; the numbers with which another writer goes on
        (`saved`) from here, in the `partial` file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        ny, nx = self._shape or (0, 0)
        return np.array([self._count, ny, nx, self._sum, self._sum2, self._min, self._max])

    def __len__(self) -> int:
        return self._count

    def append(self, images: np.ndarray) -> None:
        """Append images `(b, ny, nx)` or `(ny, nx)`.

        Raises:
            InputError: their size differs from the images before.
        """
        images = np.ascontiguousarray(images, "<f4")
        images = images[None] if images.ndim == 2 else images
        if images.ndim != 3 or (self._shape is not None and images.shape[1:] != self._shape):
            raise InputError(
                f"{self._path}: expected images of {self._shape or '(b, ny, nx)'}, an array of "
                f"shape {images.shape} arrived"
            )
        if not len(images):
            return
        self._shape = images.shape[1:]
        self._file.write(images.data.cast("B"))
        self._count += len(images)
        self._sum += float(images.sum(dtype=np.float64))
        self._sum2 += float(np.square(images, dtype=np.float64).sum())
        self._min, self._max = (
            min(self._min, float(images.min())),
            max(self._max, float(images.max())),
        )

    def _finish(self) -> None:
        if self._shape is None:
            raise InputError(f"{self._path}: no images to write; a stack needs at least one")
        n = self._count * self._shape[0] * self._shape[1]
        mean = self._sum / n
        rms = float(np.sqrt(max(0.0, self._sum2 / n - mean**2)))
        self._file.seek(0)
        self._file.write(
            _header(
                (self._count, *self._shape),
                self._pixel_size,
                (self._min, self._max, mean, rms),
                stack=True,
            )
        )


def write_stack(
    path: str | os.PathLike[str], images: np.ndarray, pixel_size_angstrom: float
) -> None:
    """Write images `(n, ny, nx)` as a float32 stack, atomically."""
    with StackWriter(path, pixel_size_angstrom) as out:
        out.append(images)


def write_map(path: str | os.PathLike[str], volume: np.ndarray, pixel_size_angstrom: float) -> None:
    """Write a volume `[z, y, x]` as a float32 map, atomically.

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
        file.write(_header(volume.shape, pixel_size_angstrom, statistics, stack=False))
        file.write(volume.data.cast("B"))
