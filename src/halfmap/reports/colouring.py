"""Surfaces coloured by the values of a second map, such as the local resolution."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from halfmap.errors import InputError
from halfmap.reports.surface import (
    Surface,
    coarser,
    default_level,
    read_density_of,
    surface_of,
)

LOCAL_RESOLUTION = "local_resolution.mrc"  # of a job: what its other maps are coloured by
DENSITY, MASK = "map_locally_filtered.mrc", "mask.mrc"  # beside it: where its values count
FAINTEST = 0.5  # of the default threshold: it is lowered to see floppy parts
# of the values that count: a few odd places must not take the colours from the rest
_LOWEST, _HIGHEST = 0.02, 0.98
_NARROWEST = 0.1  # of the lowest value, between the ends of the scale where all are alike
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
    """The colouring by a map. Its scale is that of the values where there is density to be seen in
    `map_locally_filtered.mrc` beside it, else of those inside `mask.mrc`, else of all.

    Raises:
        InputError: the map cannot be read, or holds values that are not finite.
    """
    values, _ = read_density_of(path)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: values that are not finite cannot be shown as colours")
    low, high = (float(one) for one in np.quantile(_seen(path, values), [_LOWEST, _HIGHEST]))
    coarse = coarser(values, _MOST)
    step = -(-values.shape[0] // _MOST)
    widened = max(high, low + _NARROWEST * abs(low), low + 1e-6)
    return Colouring(coarse, step, values.shape[0], low, widened)


def _seen(path: Path, values: Float[np.ndarray, "Z Y X"]) -> Float[np.ndarray, " n"]:
    """The values that a surface can show."""
    for name, share in ((DENSITY, FAINTEST), (MASK, 1.0)):
        other = path.with_name(name)
        if not other.is_file() or other.is_symlink():
            continue
        density = read_density_of(other)[0]
        if density.shape == values.shape and np.isfinite(density).all():
            inside = density >= share * default_level(density)
            if inside.any():
                return values[inside]
    return values.ravel()
