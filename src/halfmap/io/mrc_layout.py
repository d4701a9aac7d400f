"""What the header of an MRC file says: sizes, type, byte order and where the voxels lie, as the
programs of the field write it; and the header of files written here."""

import bz2
import gzip
import io
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from halfmap.errors import InputError
from halfmap.io.other_programs import as_told

HEADER_BYTES = 1024
MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}
_WHAT_MODES_ARE = {3: "complex 16-bit integers", 4: "complex numbers", 16: "colours", 101: "4 bits"}
# IMOD's stamp in `extra`, and its flag there: bytes are stored from -128 (else from 0)
_IMOD_STAMP, _IMOD_SIGNED_BYTES = 1146047817, 1
_IMOD_STAMP_AT, _IMOD_FLAGS_AT = 152, 156
# first bytes of compressed files
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_DECOMPRESS: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


@dataclass(frozen=True)
class Layout:
    """Where and how the voxels of a file lie: at `offset`, of type `dtype`, whose values are what
    is meant less `added` (IMOD's signed bytes)."""

    header: np.void  # structured, in the file's byte order
    dtype: np.dtype
    shape: tuple[int, int, int]  # sections, rows, columns
    offset: int
    added: float = 0.0

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def voxel_angstrom(self) -> tuple[float, float, float]:
        """x, y, z voxel size; 0 where the header has none.

        A volume whose header is that of a stack (sampling of 1 along z, cell of all sections) is
        measured by its sections; where the header has no size along y or z, that of x is taken.
        """
        cell, grid = self.header["cella"], (self.header["mx"], self.header["my"], self.header["mz"])
        sizes = [_size(float(cell[axis]), int(n)) for axis, n in zip("xyz", grid, strict=True)]
        sections = self.shape[0]
        if int(grid[2]) == 1 and sections > 1 and sizes[0] > 0:
            of_sections = sizes[2] / sections
            if abs(of_sections - sizes[0]) < abs(sizes[2] - sizes[0]):
                sizes[2] = of_sections
        x, y, z = (size or sizes[0] for size in sizes)
        return x, y, z


def _size(cell: float, n: int) -> float:
    size = float(np.float32(cell) / np.float32(n)) if n > 0 else 0.0
    return size if np.isfinite(size) and size > 0 else 0.0


def compression(path: Path) -> str | None:
    """gzip, bzip2 or xz, by the file's first bytes whatever its name; None if it is neither."""
    try:
        with open(path, "rb") as file:
            start = file.read(6)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def decompressed(path: Path, data: bytes) -> bytes:
    """The bytes of a file, decompressed if they are compressed.

    Raises:
        InputError: a file that is damaged.
    """
    how = next((name for magic, name in _COMPRESSED.items() if data.startswith(magic)), None)
    if how is None:
        return data
    try:
        with _DECOMPRESS[how](io.BytesIO(data), "rb") as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: is damaged ({how}: {error}); copy it again") from error


def open_decompressed(path: Path, how: str) -> Any:
    """A compressed file as if it were not."""
    return _DECOMPRESS[how](path, "rb")


def layout_of_file(path: Path) -> Layout:
    """The layout of a file that is not compressed.

    Raises:
        InputError: as `layout_of`; or the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return layout_of(path, raw, size)


def layout_of(path: Path, raw: bytes, size: int) -> Layout:
    """Read and check a header `raw` of a file of `size` bytes.

    Files without the `MAP ` stamp (written by many programs) are accepted: the byte order is the
    one under which the mode and the sizes make sense.

    Raises:
        InputError: not MRC, a mode that is not for maps and images, or truncated.
    """
    if len(raw) < HEADER_BYTES:
        raise InputError(
            f"{path}: expected an MRC header of {HEADER_BYTES} bytes, the file has {size}; it is "
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
            + (f"; by its name it is {told}" if (told := as_told(path)) else "")
        )
    mode = int(header["mode"])
    if mode not in MODES:
        what = f" ({_WHAT_MODES_ARE[mode]})" if mode in _WHAT_MODES_ARE else ""
        raise InputError(
            f"{path}: MRC mode {mode} is not supported{what}; expected one of {sorted(MODES)}, "
            "convert the file"
        )
    kind, added = (MODES[mode], 0.0) if mode else _bytes(header, raw, order)
    dtype = np.dtype(kind).newbyteorder(order)
    offset = HEADER_BYTES + int(header["nsymbt"])
    expected = offset + dtype.itemsize * shape[0] * shape[1] * shape[2]
    if size < expected:
        raise InputError(
            f"{path}: is truncated: its header asks for {expected} bytes, the file has {size}; "
            "copy it again"
        )
    return Layout(header, dtype, shape, offset, added)


def _bytes(header: np.void, raw: bytes, order: Literal["<", ">"]) -> tuple[type, float]:
    """Type of the bytes of mode 0, and what is to be added.

    MRC2014 has them signed. IMOD means 0 to 255 and stores that, or, with its flag set, 128 less;
    its header is told by a stamp. Programs older than both stored 0 to 255 too: their header tells
    a minimum and a maximum that signed bytes do not have.
    """
    stamp, flags = (
        int(np.frombuffer(raw, f"{order}i4", 1, at)[0]) for at in (_IMOD_STAMP_AT, _IMOD_FLAGS_AT)
    )
    if stamp == _IMOD_STAMP:
        return (np.int8, 128.0) if flags & _IMOD_SIGNED_BYTES else (np.uint8, 0.0)
    signed = not (header["dmin"] >= 0 and 127 < header["dmax"] <= 255)
    return (np.int8 if signed else np.uint8), 0.0


def new_header(
    shape: tuple[int, int, int],
    pixel_size_angstrom: float,
    statistics: tuple[float, float, float, float],
    stack: bool,
    mode: int = 2,
) -> bytes:
    """MRC2014 header, of float32 data unless another mode is given. It holds no time, so that the
    same data gives the same bytes."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nz"], header["ny"], header["nx"] = shape
    header["mode"] = mode
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
