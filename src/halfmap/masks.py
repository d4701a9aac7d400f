"""Real-space masks: soft spheres, masks from a file, and filling the outside with the background as
RELION does."""

from math import pi
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, same_pixel_size

SPHERE_EDGE_PX = 5.0  # of a sphere in place of a mask


def resampled(mask: Float[Tensor, "*N"], box: int) -> Float[Tensor, "*n"]:
    """A mask on a grid of the same extent with `box` pixels, linear between its own, centre on
    centre `N // 2`: it stays between 0 and 1."""
    n = mask.shape[-1]
    if n == box:
        return mask
    place = ((torch.arange(box, device=mask.device) - box // 2) * (n / box) + n // 2).clamp(
        0, n - 1
    )
    low = place.floor().long()
    high, share = (low + 1).clamp(max=n - 1), place - low
    for axis in range(mask.ndim):
        along = share.view([-1 if a == axis else 1 for a in range(mask.ndim)])
        mask = torch.lerp(mask.index_select(axis, low), mask.index_select(axis, high), along)
    return mask


def soft_sphere(
    box: int,
    *,
    radius_px: float | int,
    edge_px: float | int,
    dimensions: Literal[2, 3] = 3,
    centre_px: tuple[float | int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "..."]:
    """Sphere (3D) or disc (2D) that falls from 1 to 0 along a raised cosine.

    ``m(r) = 1`` for ``r <= radius``, ``(1 + cos(pi (r - radius) / edge)) / 2`` up to ``radius +
    edge``, 0 beyond; an edge of 0 is hard.

    >>> mask = soft_sphere(32, radius_px=10, edge_px=4)
    >>> mask.shape, float(mask[16, 16, 16]), float(mask[0, 0, 0])
    (torch.Size([32, 32, 32]), 1.0, 0.0)

    Args:
        box: side N in pixels.
        radius_px: where the edge begins, pixels.
        edge_px: width of the edge, pixels.
        dimensions: 2 for an (N, N) disc, 3 for an (N, N, N) sphere.
        centre_px: pixel of the centre as (x, y) or (x, y, z); default ``N // 2`` on every axis.

    Returns:
        (N,) * dimensions, indexed [y, x] or [z, y, x], values in 0..1.

    Raises:
        InputError: a negative radius or edge, or a centre of the wrong length.
    """
    if radius_px < 0 or edge_px < 0:
        raise InputError(
            f"mask: expected radius_px and edge_px of at least 0, got {radius_px} and {edge_px}"
        )
    centre = tuple(centre_px) if centre_px is not None else (float(box // 2),) * dimensions
    if len(centre) != dimensions:
        raise InputError(f"mask: centre_px needs {dimensions} numbers (x first), got {len(centre)}")
    squared = torch.zeros((1,) * dimensions, dtype=dtype, device=device)
    for axis, middle in enumerate(reversed(centre)):  # axes are [z, y, x], the centre is x first
        line = torch.arange(box, dtype=dtype, device=device) - middle
        squared = squared + line.square().reshape(
            [box if a == axis else 1 for a in range(dimensions)]
        )
    radius = squared.sqrt()
    if edge_px == 0:
        return (radius <= radius_px).to(dtype)
    along_edge = ((radius - radius_px) / edge_px).clamp(0, 1)
    return 0.5 * (1 + torch.cos(pi * along_edge))


def read_mask(
    path: str | Path, box: int, pixel_size_angstrom: float
) -> Float[Tensor, "box box box"]:
    """Mask from an MRC file, checked against the maps it is for.

    Returns:
        (N, N, N) float32, values in 0..1.

    Raises:
        InputError: the file is missing or no MRC, its box or pixel size (by over 1 %) differs, its
            values leave 0..1 or are all zero.
    """
    data, mask_pixel_size = read_map(path)
    values = torch.from_numpy(data)
    if values.shape != (box,) * 3:
        raise InputError(
            f"mask {path}: box is {'x'.join(map(str, values.shape))}, the map's is {box}; make it "
            "from a map of this box"
        )
    if not same_pixel_size(mask_pixel_size, pixel_size_angstrom):
        raise InputError(
            f"mask {path}: pixel size {mask_pixel_size:.4g} A, the map's is "
            f"{pixel_size_angstrom:.4g} A; correct or resample it"
        )
    low, high = values.min().item(), values.max().item()
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # also catches NaN
        raise InputError(
            f"mask {path}: values run from {low:.4g} to {high:.4g}, expected 0 to 1; threshold "
            "and soften it first"
        )
    if high <= 0:
        raise InputError(
            f"mask {path}: every value is 0, nothing is left inside; make the mask from a lower "
            "threshold"
        )
    return values.clamp(0, 1)


def read_fsc_mask(
    path: str | Path, box: int, pixel_size_angstrom: float
) -> Float[Tensor, "box box box"]:
    """A mask to correlate maps in: `read_mask`, and whole inside the box.

    Raises:
        InputError: as `read_mask`; or the box cuts it, and its edge correlates the maps by itself.
    """
    mask = read_mask(path, box, pixel_size_angstrom)
    if reaches_edge(mask):
        raise InputError(
            f"mask {path}: is cut by the box: its values at a face reach 0.5 or more, expected 0; "
            "make a smaller one, or pad the maps"
        )
    return mask


def is_mask_of(path: str | Path, mask: Float[Tensor, "N N N"]) -> bool:
    """Whether a mask is still the one of its file, clamped to 0..1 as `read_mask` does."""
    values = torch.from_numpy(read_map(path)[0]).clamp(0, 1)
    return values.shape == mask.shape and bool((values == mask).all())


@takes_arrays
def reaches_edge(mask: Float[Tensor, "N N N"]) -> bool:
    """Whether the box cuts the mask: a value of one half or more on one of its six faces."""
    return any(bool((mask.select(axis, end) >= 0.5).any()) for axis in range(3) for end in (0, -1))


@takes_arrays
def inside_box(mask: Float[Tensor, "N N N"]) -> Float[Tensor, "N N N"]:
    """A mask that ends inside the box: one that the box cuts falls to 0 at its faces, along a
    raised cosine."""
    if not reaches_edge(mask):
        return mask
    box = mask.shape[-1]
    away = torch.arange(box, device=mask.device).minimum(
        torch.arange(box - 1, -1, -1).to(mask.device)
    )
    edge = 0.5 * (1 - torch.cos(pi * (away / SPHERE_EDGE_PX).clamp(max=1))).to(mask)
    faces = edge[:, None, None].minimum(edge[:, None]).minimum(edge)
    return mask.minimum(faces)


def whole_sphere(box: int) -> Float[Tensor, "N N N"]:
    """The largest soft sphere in the box."""
    return soft_sphere(
        box, radius_px=max(1.0, box / 2 - SPHERE_EDGE_PX - 1), edge_px=SPHERE_EDGE_PX
    )
