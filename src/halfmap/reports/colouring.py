"""Surfaces coloured by the values of a second map, such as the local resolution."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from halfmap.errors import InputError
from halfmap.reports.surface import Surface, coarser, read_density_of, surface_of

LOCAL_RESOLUTION = "local_resolution.mrc"  # of a job: what its other maps are coloured by
MASK = "mask.mrc"  # beside it: where its values count
# of the values inside the mask: a few odd places must not take the colours from the rest
_LOWEST, _HIGHEST = 0.02, 0.98
_NARROWEST = 0.1  # Angstrom between the ends of the scale, where all values are alike
_MOST = 128  # values along an axis: local resolution is smooth on its windows, of many voxels


@dataclass(frozen=True)
class Colouring:
    """Values on a grid of `step` voxels of a map of `box` voxels; colours run from `low` to `high`,
    in the values' unit."""

    values: Float[np.ndarray, "Z Y X"]
    step: int
    box: int
    low: float
    high: float

    def shares(self, voxels: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, " n"]:
        """Where the values at places of the map (z, y, x in voxels) lie between `low` (0) and
        `high` (255)."""
        from scipy.ndimage import map_coordinates

        # the value of a block of voxels is that of its middle
        places = (voxels - (self.step - 1) / 2) / self.step
        found = map_coordinates(self.values, places.T, order=1, mode="nearest")
        share = (found - self.low) / (self.high - self.low)
        return np.round(255 * np.clip(np.nan_to_num(share), 0, 1)).astype(np.uint8)

    def surface_of(
        self,
        volume: Float[np.ndarray, "z y x"],
        pixel_size_angstrom: float,
        *,
        level: float | None = None,
        size: int = 128,
    ) -> Surface:
        """`surface.surface_of`, with these colours.

        Raises:
            InputError: the map has another box, or values that are not finite.
        """
        if volume.shape[0] != self.box:
            raise InputError(
                f"a map of {self.box} pixels was expected, for which there are colours; this one "
                f"has {volume.shape[0]}"
            )
        return surface_of(
            volume,
            pixel_size_angstrom,
            level=level,
            size=size,
            colours=self.shares,
            scale=(self.low, self.high),
        )


def colouring_of(path: Path) -> Colouring:
    """The colouring by a map; its scale is that of the values inside `mask.mrc` beside it, if there
    is one of the same box.

    Raises:
        InputError: the map cannot be read, or holds values that are not finite.
    """
    values, _ = read_density_of(path)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: values that are not finite cannot be shown as colours")
    inside = values
    mask = path.with_name(MASK)
    if mask.is_file() and not mask.is_symlink():
        solvent = read_density_of(mask)[0]
        if solvent.shape == values.shape and (solvent > 0.5).any():
            inside = values[solvent > 0.5]
    low, high = (float(value) for value in np.quantile(inside, [_LOWEST, _HIGHEST]))
    coarse = coarser(values, _MOST)
    step = -(-values.shape[0] // _MOST)
    return Colouring(coarse, step, values.shape[0], low, max(high, low + _NARROWEST))
