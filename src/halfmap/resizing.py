"""Boxes and pixel sizes changed about the centre N // 2: cropped and padded in real space, cropped
and padded in Fourier space."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.arrays import takes_arrays

# `resampled_boxes` tries boxes padded up to this factor, and takes the first that meets the pixel
# size so well: a tenth of the tolerance of maps that count as one grid
_LARGEST_PADDING, _GOOD_ENOUGH = 1.5, 1e-3


@takes_arrays
def crop_or_pad(
    density: Float[Tensor, "..."],
    box: int,
    *,
    dimensions: int,
    fill: Float[Tensor, "..."] | float | None = None,
) -> Float[Tensor, "..."]:
    """Images or volumes in another box about the same centre, pixel N // 2.

    Args:
        density: (..., N, N) or (..., N, N, N). box: the new side. dimensions: 2 or 3.
        fill: what pads, a number; None: the mean over the faces (the border) of each.
    """
    for axis in range(-dimensions, 0):
        n = density.shape[axis]
        first = n // 2 - box // 2
        if box < n:
            density = density.narrow(axis, first, box)
    n = density.shape[-1]
    if box == n:
        return density.clone()
    value = border_mean(density, dimensions=dimensions) if fill is None else torch.as_tensor(fill)
    shape = (*density.shape[:-dimensions], *([box] * dimensions))
    out = value.to(density).reshape(*value.shape, *([1] * dimensions)).expand(shape).clone()
    inner = out
    for axis in range(-dimensions, 0):
        inner = inner.narrow(axis, box // 2 - n // 2, n)
    inner.copy_(density)
    return out


@takes_arrays
def border_mean(density: Float[Tensor, "..."], *, dimensions: int) -> Float[Tensor, "..."]:
    """Mean over the outermost pixels or voxels of each image or volume."""
    axes = tuple(range(-dimensions, 0))
    inner = density
    for axis in axes:
        inner = inner.narrow(axis, 1, density.shape[axis] - 2)
    count = density.shape[-1] ** dimensions - inner.shape[-1] ** dimensions
    return (density.sum(axes) - inner.sum(axes)) / count


@takes_arrays
def fourier_resize(
    density: Float[Tensor, "..."], box: int, *, dimensions: int
) -> Float[Tensor, "..."]:
    """The same density on a grid of `box` pixels a side over the same field of view: frequencies
    beyond the smaller Nyquist are cut off, or zeros added; grey values stay.

    `F'(k) = (M / N)^d F(k)`. A pixel size p becomes p N / M.
    """
    for axis in range(-dimensions, 0):
        density = _resize_axis(density, axis, box)
    return density


def _resize_axis(density: Tensor, axis: int, box: int) -> Tensor:
    """Along one axis. At an even smaller box, its Nyquist frequency stands for both signs: half of
    it goes to each where it is spread, and their mean stays where it is cut to."""
    n = density.shape[axis]
    if n == box:
        return density
    transform = torch.fft.rfft(torch.fft.ifftshift(density, dim=axis), dim=axis)
    kept = min(n, box) // 2 + 1
    transform = transform.narrow(axis, 0, kept)
    if n % 2 == 0 and n < box:
        transform = transform.clone()
        transform.narrow(axis, kept - 1, 1).mul_(0.5)
    resized = torch.fft.irfft(transform, n=box, dim=axis) * (box / n)
    return torch.fft.fftshift(resized, dim=axis)


def resampled_boxes(box: int, ratio: float) -> tuple[int, int]:
    """A box N' >= N to pad to, and a box M' to resize that to, both even, whose quotient N' / M' is
    near `ratio` (new over old pixel size): the smallest within a thousandth, or the nearest."""
    best, error = (box, box), float("inf")
    for padded in range(box + box % 2, max(box + 2, int(box * _LARGEST_PADDING)) + 1, 2):
        resized = max(2, 2 * round(padded / ratio / 2))
        off = abs(padded / resized / ratio - 1)
        if off < error - 1e-12:
            best, error = (padded, resized), off
        if error < _GOOD_ENOUGH:
            break
    return best
