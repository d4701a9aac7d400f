"""MRC stacks written image by image, under their own name only when they are whole."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from halfmap.errors import InputError
from halfmap.io.files import rename_durably, replacing, writing
from halfmap.io.mrc_layout import HEADER_BYTES, new_header

_FLOAT32, _FLOAT16 = 2, 12  # modes that are written


@contextmanager
def _kept_on_failure(partial: Path, path: Path) -> Iterator[Path]:
    """As `replacing`, under a name that stays where the block fails."""
    with writing(path):
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        rename_durably(partial, path)


class StackWriter:
    """Write a stack batch by batch, without holding it in memory; the file appears whole when the
    block ends without an error.

    with StackWriter("particles.mrcs", 1.3) as out:
        out.append(images)

    A job that can be killed gives a `partial` file, which stays, to write in, and goes on with what
    `save` told. `half_precision`: float16, MRC mode 12, which RELION reads from version 4 on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pixel_size_angstrom: float,
        *,
        partial: str | os.PathLike[str] | None = None,
        saved: np.ndarray | None = None,
        half_precision: bool = False,
    ) -> None:
        self._path, self._pixel_size = Path(path), pixel_size_angstrom
        self._mode = _FLOAT16 if half_precision else _FLOAT32
        self._dtype = np.dtype("<f2" if half_precision else "<f4")
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
            self._file.write(bytes(HEADER_BYTES))
        else:
            count, ny, nx, self._sum, self._sum2, self._min, self._max = self._saved.tolist()
            self._count, self._shape = int(count), (int(ny), int(nx))
            pixels = self._count * self._shape[0] * self._shape[1]
            self._file.truncate(HEADER_BYTES + self._dtype.itemsize * pixels)
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
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        ny, nx = self._shape or (0, 0)
        return np.array([self._count, ny, nx, self._sum, self._sum2, self._min, self._max])

    def __len__(self) -> int:
        return self._count

    def append(self, images: np.ndarray) -> None:
        """Append images `(b, ny, nx)` or `(ny, nx)`.

        Raises:
            InputError: their size differs from the images before, or values do not fit float16.
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
        stored = images
        if self._mode == _FLOAT16:
            largest = float(np.abs(images).max())
            if largest > float(np.finfo(np.float16).max):
                raise InputError(
                    f"{self._path}: values up to {largest:.4g} do not fit float16, expected at "
                    f"most {float(np.finfo(np.float16).max):g}; normalise the images"
                )
            stored = images.astype(self._dtype)
            images = stored.astype(np.float32)
        self._shape = images.shape[1:]
        self._file.write(stored.data.cast("B"))
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
            new_header(
                (self._count, *self._shape),
                self._pixel_size,
                (self._min, self._max, mean, rms),
                stack=True,
                mode=self._mode,
            )
        )


def write_stack(
    path: str | os.PathLike[str], images: np.ndarray, pixel_size_angstrom: float
) -> None:
    """Write images `(n, ny, nx)` as a float32 stack, atomically."""
    with StackWriter(path, pixel_size_angstrom) as out:
        out.append(images)
