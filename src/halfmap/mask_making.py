"""Masks made of a density and its noise, of atoms, of other masks; dilated, with a soft edge.

`density -> low-pass -> threshold -> largest connected parts -> holes filled -> dilation -> edge`.
Connected parts and distances are scipy's, which is imported only for them.
"""

from dataclasses import dataclass, replace
from math import isfinite, pi
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import lowpass
from halfmap.resolution import fourier_shell_correlation, resolution_at

LOWPASS_ANGSTROM = 15.0  # what RELION's users are told to make masks at: the shape, no side chains
EXTEND_PX, EDGE_PX = 3.0, 6.0  # RELION's defaults of dilation and soft edge
# Of noise as it is outside, the chance that any of it exceeds the threshold
FALSE_ALARM = 0.05
# A choice: what is below a tenth of the maximum is no particle even in a map without noise; above
# what a low-pass leaves around a density
LEAST_SHARE_OF_MAXIMUM = 0.1
# A choice: a particle's maximum is at least twice what noise reaches, or the low-pass is coarser
CLEARLY = 0.5
COARSER = 1.25  # by steps of this
COARSEST = 6.0  # of the box: a low-pass beyond N / 6 pixels leaves no shape
# A choice: parts of less than a tenth of the largest are dust
LEAST_SHARE_OF_LARGEST = 0.1
# The shell in which noise is looked at, as shares of the box: at the rim of the inscribed sphere.
# Median and median deviation stand a particle that reaches into it.
NOISE_SHELL = (0.40, 0.50)
_MAD_TO_SIGMA = 1.4826  # of a Gaussian

Combination = Literal["union", "intersection", "difference"]


@dataclass(frozen=True)
class DensityMask:
    """A mask (N, N, N) with values 0..1, threshold and low-pass that were used, and how many
    connected parts were kept of how many."""

    values: Float[Tensor, "N N N"]
    threshold: float
    lowpass_angstrom: float
    parts: int
    parts_found: int


def noise_threshold(density: Float[Tensor, "N N N"], lowpass_px: float) -> float | None:
    """The density that noise, as it is at the rim of the box, exceeds nowhere with a probability of
    95 %; None where that is over half-way from median to maximum: nothing stands out.

    `t = median + z sigma`, sigma from the median deviation, z the Gaussian quantile of
    `FALSE_ALARM / n`, n = N^3 / (lowpass / 2)^3 the independent values of a map low-passed at
    `lowpass_px` pixels; never below a tenth of the way from median to maximum.
    """
    box = density.shape[-1]
    radius = _radius(box)
    rim = density[(radius >= NOISE_SHELL[0] * box) & (radius <= NOISE_SHELL[1] * box)]
    median = float(rim.median())
    sigma = _MAD_TO_SIGMA * float((rim - median).abs().median())
    independent = max(1.0, (2 * box / max(2.0, lowpass_px)) ** 3)
    above_noise = -NormalDist().inv_cdf(FALSE_ALARM / independent) * sigma
    reach = float(density.max()) - median
    if above_noise > CLEARLY * reach:
        return None
    return median + max(above_noise, LEAST_SHARE_OF_MAXIMUM * reach)


@takes_arrays
def mask_from_density(
    density: Float[Tensor, "N N N"],
    *,
    pixel_size_angstrom: float | int,
    threshold: float | None = None,
    lowpass_angstrom: float | int = LOWPASS_ANGSTROM,
    parts: int | None = None,
    extend_px: float | int = EXTEND_PX,
    edge_px: float | int = EDGE_PX,
) -> DensityMask | None:
    """Mask around what exceeds a threshold in a low-passed density; None where nothing does.

    Args:
        density: (N, N, N), white on dark.
        pixel_size_angstrom: for the low-pass.
        threshold: in the density's units, after the low-pass; None: `noise_threshold`.
        lowpass_angstrom: 0 for none; coarser where nothing stands out of the noise.
        parts: how many connected parts are kept, the largest first; None: those of at least a tenth
            of the largest.
        extend_px: dilation; edge_px: width of the raised cosine around it.
    """
    smooth, found = _smooth(density.float(), pixel_size_angstrom, lowpass_angstrom, threshold)
    if found is None or not bool((smooth.density > found).any()):
        return None
    from scipy.ndimage import binary_fill_holes

    kept, n_kept, n_found = _largest_parts((smooth.density > found).numpy(), parts)
    solid = torch.from_numpy(binary_fill_holes(kept))
    values = soften(solid, extend_px=extend_px, edge_px=edge_px)
    return DensityMask(values, found, smooth.lowpass_angstrom, n_kept, n_found)


@dataclass(frozen=True)
class _Smooth:
    density: Float[Tensor, "N N N"]
    lowpass_angstrom: float


def _smooth(
    density: Float[Tensor, "N N N"], pixel: float, lowpass_angstrom: float, threshold: float | None
) -> tuple[_Smooth, float | None]:
    """The density low-passed, and the threshold given, or that of its noise; where nothing stands
    out, low-passed further."""
    coarsest = density.shape[-1] * pixel / COARSEST
    while True:
        low = density
        if lowpass_angstrom > 0:
            low = lowpass(density, lowpass_angstrom, pixel, dimensions=3)
        found = noise_threshold(low, lowpass_angstrom / pixel) if threshold is None else threshold
        smooth = _Smooth(low, float(lowpass_angstrom))
        if found is not None or lowpass_angstrom <= 0 or COARSER * lowpass_angstrom > coarsest:
            return smooth, found
        lowpass_angstrom = COARSER * lowpass_angstrom


@takes_arrays
def mask_from_half_maps(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    *,
    pixel_size_angstrom: float | int,
    within: Float[Tensor, "N N N"],
) -> DensityMask | None:
    """Mask of the average of two half maps, times the mask `within`; None where nothing stands out
    of the noise.

    The low-pass is 15 A, or where the FSC of the halves inside `within` falls below 0.143 if that
    is coarser: a mask made of frequencies that the halves do not share would follow their noise,
    and find it again in the FSC.
    """
    curve = fourier_shell_correlation(
        half1, half2, pixel_size_angstrom=pixel_size_angstrom, mask=within
    )
    supported = resolution_at(curve, 0.143)
    if not isfinite(supported):
        return None
    found = mask_from_density(
        (half1 + half2) / 2,
        pixel_size_angstrom=pixel_size_angstrom,
        lowpass_angstrom=max(LOWPASS_ANGSTROM, supported),
    )
    if found is None or not bool((found.values * within > 0.5).any()):
        return None
    return replace(found, values=found.values * within)


@takes_arrays
def mask_from_atoms(
    positions_px: Float[Tensor, "M 3"],
    box: int,
    *,
    radius_px: float | int,
    edge_px: float | int = EDGE_PX,
) -> Float[Tensor, "N N N"]:
    """Mask of all voxels within a radius of an atom, with a raised cosine around it.

    `positions_px` are x, y, z in voxels, voxel (0, 0, 0) at the origin.

    Raises:
        InputError: an atom, or what surrounds it, lies outside the box.
    """
    nearest = positions_px.round().long()
    low, high = positions_px.min(0).values - radius_px, positions_px.max(0).values + radius_px
    if bool((low < 0).any()) or bool((high > box - 1).any()):
        raise InputError(
            f"model: its atoms lie at voxels {_corner(low)} to {_corner(high)} (with the radius), "
            f"the box has 0 to {box - 1}; it is in another frame than the map"
        )
    solid = torch.zeros(box, box, box, dtype=torch.bool)
    solid[nearest[:, 2], nearest[:, 1], nearest[:, 0]] = True
    return soften(solid, extend_px=radius_px, edge_px=edge_px)


@takes_arrays
def soften(
    solid: Bool[Tensor, "N N N"], *, extend_px: float | int, edge_px: float | int
) -> Float[Tensor, "N N N"]:
    """A solid dilated and given a soft edge by the distance d to it.

    `m = 1` for `d <= extend`, `(1 + cos(pi (d - extend) / edge)) / 2` up to `extend + edge`, 0
    beyond. A negative `extend_px` takes a layer off.
    """
    box = solid.shape[-1]
    filled = torch.nonzero(solid)
    if not len(filled):
        return torch.zeros(solid.shape)
    margin = int(np.ceil(max(extend_px, 0) + edge_px)) + 1
    low = (filled.min(0).values - margin).clamp_min(0)
    high = (filled.max(0).values + margin + 1).clamp_max(box)
    part = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    from scipy.ndimage import distance_transform_edt

    inside = solid[part].numpy()
    distance = distance_transform_edt(~inside)
    if extend_px < 0:
        distance = distance - distance_transform_edt(inside) + inside
    along = torch.from_numpy(distance - extend_px).float()
    if edge_px > 0:
        values = 0.5 + 0.5 * torch.cos(pi * (along / edge_px).clamp(0, 1))
    else:
        values = (along <= 0).float()
    mask = torch.zeros(solid.shape)
    mask[part] = values
    return mask


@takes_arrays
def combine_masks(masks: Float[Tensor, "K N N N"], how: Combination) -> Float[Tensor, "N N N"]:
    """Union `max_k m_k`, intersection `min_k m_k`, or difference `m_1 prod_k>1 (1 - m_k)`: of soft
    masks again a soft one."""
    if how == "union":
        return masks.max(0).values
    if how == "intersection":
        return masks.min(0).values
    return masks[0] * (1 - masks[1:]).prod(0)


def _largest_parts(solid: np.ndarray, parts: int | None) -> tuple[np.ndarray, int, int]:
    """The largest connected parts (by faces), how many were kept, and how many there are."""
    from scipy.ndimage import label

    labels, found = label(solid)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    if parts is None:
        kept = order[sizes[order] >= LEAST_SHARE_OF_LARGEST * sizes.max()]
    else:
        kept = order[:parts]
    return np.isin(labels, kept + 1), len(kept), found


def _radius(box: int) -> Float[Tensor, "N N N"]:
    axis = torch.arange(box, dtype=torch.float32) - box // 2
    square = axis.square()
    return (square[:, None, None] + square[None, :, None] + square).sqrt()


def _corner(place: Float[Tensor, "3"]) -> str:
    return "(" + ", ".join(f"{value:.0f}" for value in place.tolist()) + ")"
