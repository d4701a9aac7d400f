"""The grids on which images are stored, and the one on which a job works: box, pixel size and
anisotropic magnification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halfmap.errors import InputError


@dataclass(frozen=True)
class ImageGrid:
    """A grid of N x N pixels; `magnification` holds xx, xy, yx, yy of the matrix M by which what is
    on it is distorted (`CTFParameters`), None where it is 1. N is 0 where it is not known."""

    box: int
    pixel_size_angstrom: float
    magnification: tuple[float, ...] | None = None

    @property
    def extent_angstrom(self) -> float:
        return self.box * self.pixel_size_angstrom

    @property
    def matrix(self) -> np.ndarray:
        """M, (2, 2)."""
        return np.eye(2) if self.magnification is None else np.reshape(self.magnification, (2, 2))

    @property
    def reach_per_angstrom(self) -> float:
        """What images hold: up to the last whole shell below Nyquist, N // 2 - 1, and half a shell
        more. Simulations and programs that shrink images leave the next one empty."""
        return (self.box // 2 - 0.5) / self.extent_angstrom

    def covers(self, other: ImageGrid) -> float:
        """The share of the other grid's area that lies on this one: beyond it, images brought
        there show nothing, and so no noise either."""
        return min(1.0, self.extent_angstrom / other.extent_angstrom) ** 2

    def holds_all_of(self, other: ImageGrid) -> bool:
        """Whether every shell that references of the other grid can have is within reach."""
        last_shell = (other.box // 2 - 1) / other.extent_angstrom
        return self.magnification is None and self.reach_per_angstrom > last_shell

    def shares_frequencies(self, other: ImageGrid) -> bool:
        """Whether the Fourier samples of both lie at the same frequencies, so that images are
        brought from one to the other by cropping or padding their transforms."""
        same = abs(self.extent_angstrom / other.extent_angstrom - 1) < SAME_EXTENT
        return same and self.magnification is None

    def bring(self, images: np.ndarray, other: ImageGrid) -> np.ndarray:
        """Images (b, n, n) of this grid on the other, free of distortion
        (`halfmap.resampling.resample_images`)."""
        if self == other:
            return images
        import torch

        from halfmap.resampling import resample_images

        return resample_images(
            torch.from_numpy(images),
            self.pixel_size_angstrom,
            box=other.box,
            new_pixel_size_angstrom=other.pixel_size_angstrom,
            magnification=None if self.magnification is None else self.matrix,
        ).numpy()

    def true_shift(self, shift_angstrom: np.ndarray) -> np.ndarray:
        """Shifts (n, 2) free of distortion, of those in stored images: q . t = k . t' with k = M q,
        so t' = M^-T t."""
        return shift_angstrom @ np.linalg.inv(self.matrix) if self.magnification else shift_angstrom

    def stored_shift(self, shift_angstrom: np.ndarray) -> np.ndarray:
        """The inverse of `true_shift`."""
        return shift_angstrom @ self.matrix if self.magnification else shift_angstrom

    def __str__(self) -> str:
        distorted = "" if self.magnification is None else ", distorted"
        return f"{self.box} pixels of {self.pixel_size_angstrom:.4g} A{distorted}"


def distinct_grids(
    box: np.ndarray, pixel_size_angstrom: np.ndarray, magnification: np.ndarray | None
) -> tuple[tuple[ImageGrid, ...], np.ndarray]:
    """The grids that there are among n images, and that of each: box and pixel size `(n,)`, M
    `(n, 2, 2)`."""
    matrices = np.broadcast_to(np.eye(2), (len(box), 2, 2))
    matrices = matrices if magnification is None else magnification
    keys = np.column_stack([box, pixel_size_angstrom, matrices.reshape(-1, 4)])
    rows, index = np.unique(keys, axis=0, return_inverse=True)
    unity = np.eye(2).ravel().tolist()
    grids = (
        ImageGrid(int(row[0]), row[1], None if row[2:] == unity else tuple(row[2:]))
        for row in rows.tolist()
    )
    return tuple(grids), index.ravel()


def finest_grid(grids: Sequence[ImageGrid]) -> ImageGrid:
    """Where a job works by default: the smallest pixel, and of those the largest box."""
    best = min(grids, key=lambda grid: (grid.pixel_size_angstrom, -grid.box))
    return ImageGrid(best.box, best.pixel_size_angstrom)


def asked_grid(grid: ImageGrid, *, box: int | None, pixel_size_angstrom: float | None) -> ImageGrid:
    """A job's grid by the user's options; the extent stays where only one of both is given.

    Raises:
        InputError: a box of less than 8 pixels comes out.
    """
    pixel = pixel_size_angstrom
    if pixel is None:
        pixel = grid.extent_angstrom / box if box is not None else grid.pixel_size_angstrom
    if box is None:
        same = pixel == grid.pixel_size_angstrom
        box = grid.box if same else 2 * round(grid.extent_angstrom / pixel / 2)
    if box < LEAST_BOX:
        raise InputError(
            f"--pixel-size {pixel:g}: expected one that leaves a box of {LEAST_BOX} pixels or "
            f"more, {box} are left of {grid}"
        )
    return ImageGrid(box, pixel)


# of their share: extents that differ by less are one
SAME_EXTENT = 1e-6
LEAST_BOX = 8  # below, there are no shells to speak of
