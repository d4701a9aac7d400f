"""Grey values of maps: background normalised, one map scaled to another, their difference."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import filter_shells
from halfmap.masks import soft_sphere
from halfmap.resolution import shell_power

# Of a solvent that was masked away no deviation can be told: it is the whole map's then. The same
# share as for images.
_FLAT_SHARE = 1e-3
_SMOOTHED_SHELLS = 3  # powers are compared over three shells: one has few samples near the centre


@takes_arrays
def normalise_background(
    volume: Float[Tensor, "N N N"], *, radius_px: float
) -> Float[Tensor, "N N N"]:
    """Mean 0 and standard deviation 1 of the voxels beyond a radius (at most 0.48 of the box);
    where these are flat, because the map is masked, the standard deviation of the whole map is 1.
    """
    box = volume.shape[-1]
    outside = soft_sphere(box, radius_px=min(radius_px, 0.48 * box), edge_px=0) == 0
    background = volume[outside.to(volume.device)]
    deviation = background.std()
    if float(deviation) <= _FLAT_SHARE * float(volume.std()):
        deviation = volume.std()
    return (volume - background.mean()) / deviation.clamp(min=1e-30)


@takes_arrays
def scaled_to(
    volume: Float[Tensor, "N N N"],
    onto: Float[Tensor, "N N N"],
    *,
    mask: Float[Tensor, "N N N"] | None = None,
    radius: int | None = None,
) -> Float[Tensor, "N N N"]:
    """A map whose spectrum is that of another: each shell multiplied by the square root of the
    quotient of their powers (inside a mask, if given), mean over three shells; beyond `radius`
    (None: no limit) it is zero.

    Raises:
        InputError: the maps differ in size.
    """
    weight = torch.ones_like(onto) if mask is None else mask.to(onto)
    power = shell_power(torch.stack([onto * weight, volume * weight]))
    kernel = torch.ones(1, 1, _SMOOTHED_SHELLS, dtype=power.dtype) / _SMOOTHED_SHELLS
    padded = torch.nn.functional.pad(power[:, None, 1:], (1, 1), mode="replicate")
    smooth = torch.nn.functional.conv1d(padded, kernel)[:, 0]
    gain = (smooth[0] / smooth[1].clamp(min=1e-30)).sqrt()
    gain = torch.cat([gain[:1], gain])  # shell 0, the mean, as its neighbour
    if radius is not None:
        gain[radius + 1 :] = 0
    return filter_shells(volume, gain.to(volume), dimensions=3)


@takes_arrays
def difference_map(
    volume: Float[Tensor, "N N N"],
    other: Float[Tensor, "N N N"],
    *,
    mask: Float[Tensor, "N N N"] | None = None,
    radius: int | None = None,
) -> Float[Tensor, "N N N"]:
    """`volume - other`, the other map scaled to it shell by shell (`scaled_to`), both inside the
    mask and up to a shell if given: what the first has and the second has not is positive.

    Raises:
        InputError: the maps differ in size.
    """
    if radius is not None and not 1 <= radius <= volume.shape[-1] // 2:
        raise InputError(
            f"radius: expected 1 to {volume.shape[-1] // 2} shells for this box, got {radius}"
        )
    shells = volume.shape[-1] // 2 + 1
    kept = torch.ones(shells)
    if radius is not None:
        kept[radius + 1 :] = 0
    first = filter_shells(volume, kept.to(volume), dimensions=3)
    difference = first - scaled_to(other, first, mask=mask, radius=radius)
    return difference if mask is None else difference * mask.to(difference)
