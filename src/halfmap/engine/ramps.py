"""Ramps across images: whether a data set has them, and a plane fitted outside the particle taken
off.

Ice that grows thicker and uneven illumination leave a ramp; programs that extract particles
subtract it, imported stacks often come with it. An image is aligned by its lowest frequencies, of
which a ramp has the most: it draws images into classes of equal ramps.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Without ramps the coefficients of planes and of the two saddles x^2 - y^2 and xy, which lie at
# nearly the same frequency, are equally strong in the background: measured 0.8 to 1.3 times on
# white and coloured noise, with junk, with neighbours in every image. A ramp of a tenth of the
# noise makes it 12 in a box of 64. Twice is a choice; planes are more than that in a tenth of the
# images at least, so that one data set of several is found out.
RAMP_POWER = 2.0
QUANTILES = (0.5, 0.75, 0.9)
# the standard deviation of the logarithm of a quotient of two medians of n exponential numbers is
# 2.1 / sqrt(n); four of them are never met by chance
SURE, SPREAD_OF_LOG = 4.0, 2.1

ROUNDING = 1e-8  # of an image's power: less is what arithmetic leaves where a background is empty


def background_mask(
    box: int, radius_px: float, device: torch.device | str = "cpu"
) -> Bool[Tensor, "N N"]:
    """True outside the particle's radius, or outside 0.48 boxes where that is less."""
    axis = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    distance = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    return distance > min(radius_px, 0.48 * box)


@lru_cache(maxsize=8)
def background_modes(
    box: int, radius_px: float, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "P 5"], Float[Tensor, "P 5"]]:
    """Constant, x, y, x^2 - y^2 and xy: `modes` at all P = N^2 pixels, orthonormal in this order
    over those outside the particle; and `fit`, the same with 0 inside, so that `image @ fit` are
    an image's coefficients."""
    axis = torch.linspace(-1, 1, box, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    functions = torch.stack([torch.ones_like(x), x, y, x**2 - y**2, x * y], -1).flatten(0, 1)
    at = background_mask(box, radius_px).flatten()
    _, triangle = torch.linalg.qr(functions[at])
    modes = torch.linalg.solve_triangular(triangle, functions, upper=True, left=False)
    fit = modes * at[:, None]
    return modes.float().to(device), fit.float().to(device)


def remove_planes(images: Float[Tensor, "B N N"], radius_px: float) -> Float[Tensor, "B N N"]:
    """Images without the plane (and mean) that fits their pixels outside the particle best."""
    modes, fit = background_modes(images.shape[-1], radius_px, images.device)
    planes = (images.flatten(1) @ fit[:, :3]) @ modes[:, :3].T
    return images - planes.view_as(images)


def have_ramps(images: Float[Tensor, "B N N"], radius_px: float) -> bool:
    """Whether planes in these images' backgrounds are stronger than saddles are, by more than
    noise, neighbours or chance would make them."""
    _, fit = background_modes(images.shape[-1], radius_px, images.device)
    level = images.mean(dim=(1, 2), keepdim=True)  # raw counts would cost digits
    flat = (images - level).flatten(1)
    power = (flat @ fit).square()
    power = torch.where(power > ROUNDING * flat.square().sum(dim=1, keepdim=True), power, 0)
    levels = torch.tensor(QUANTILES, device=images.device, dtype=images.dtype)
    plane, saddle = (
        torch.quantile(power[:, part].sum(dim=1), levels) for part in (slice(1, 3), slice(3, 5))
    )
    by_chance = math.exp(SURE * SPREAD_OF_LOG / math.sqrt(len(images)))
    return bool((plane > max(RAMP_POWER, by_chance) * saddle).any())
