"""Images of other grids than a job's: what the microscope did is undone on the grid where they are
stored, and only then are they resampled.

An image of n pixels of p Angstrom, taken for periodic, is known at the frequencies q = j / (n p),
where it shows the object R and its transfer function t = C phase at k = M q (M the magnification):

    X(q) = t(M q) S R(M q) + N(q).

A defocus dz moves what is at frequency k by lambda dz k, out of the box and in again at its other
side where that is more than half a box. Between the q such an image cannot be interpolated: t turns
by more than a cycle from one q to the next. But scores and sums need of it only

    a = sum_q Re(conj(t(M q)) X(q) conj(S R(M q))) / sigma^2,

and R, the transform of what lies inside the job's box, is at M q the sum over the job's frequencies
k of I(M q, k) R(k), I the interpolation of functions of that support. Hence

    a = sum_k Re(Y(k) conj(S R(k))) / sigma^2,       Y(k) = sum_q I(M q, k) conj(t(M q)) X(q):

`conj(t) X`, in which the particle is together again, is taken on the stored grid and resampled as
an image is. Y stands for the `C X` of the job's grid: such images are premultiplied.

Beside it, `b = sum_q C^2(M q) |R(M q)|^2 / sigma^2` is `sum_kk' conj(R(k)) A(k, k') R(k')` with
`A(k, k') = sum_q I(M q, k) C^2(M q) conj(I(M q, k'))`. Its diagonal, what of the C^2 near k has
come into Y(k), takes the place of C^2(k), which has zeros where Y has none. Noise is measured in X,
where C has not coloured it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.ctf_parameters import CTFParameters
from halfmap.image_grids import ImageGrid
from halfmap.transfer_function import Transfer, evaluate, rfft2_frequencies, true_frequencies


@dataclass(frozen=True)
class Multiplied:
    """Stored images multiplied by what their transfer functions are at their own samples:
    `conj(t) X`, or `conj(phase) X` of those that are stored premultiplied; and C^2 at the samples
    of `torch.fft.rfft2`."""

    images: Float[Tensor, "B n n"]
    squared_ctf: Float[Tensor, "B n h"]


def premultiplied(
    images: Float[Tensor, "B n n"], grid: ImageGrid, parameters: CTFParameters
) -> Multiplied:
    """Stored images (B, n, n) on their `grid` times the conjugate transfer functions of these
    parameters, theirs."""
    transfer = transfer_as_stored(grid, parameters)
    samples = torch.fft.rfft2(images)
    done = transfer.premultiplied[:, None]
    back = transfer.correct_phases(samples.flatten(1)) * torch.where(done, 1.0, transfer.ctf)
    return Multiplied(
        torch.fft.irfft2(back.view_as(samples), s=images.shape[1:]),
        transfer.ctf.square().expand(len(images), -1).view(samples.shape),
    )


def transfer_as_stored(grid: ImageGrid, parameters: CTFParameters) -> Transfer:
    """The transfer functions of images on a grid at their own samples, those of `torch.fft.rfft2`
    row by row."""
    kx, ky = rfft2_frequencies(grid.box, grid.pixel_size_angstrom)
    if grid.magnification is not None:
        kx, ky = (k.float() for k in true_frequencies(grid.matrix, kx.double(), ky.double()))
    return evaluate(parameters, kx, ky)


def between_samples(
    stored: Float[Tensor, "B n h"],
    grid: ImageGrid,
    kx_per_angstrom: Float[Tensor, " J"],
    ky_per_angstrom: Float[Tensor, " J"],
) -> Float[Tensor, "B J"]:
    """What is known at the samples of `torch.fft.rfft2` of a grid, and even in k, at frequencies of
    the object (1/A), by bilinear interpolation.

    Its kernel, the triangle, stands for the |I|^2 of a box, sinc^2: the same to a tenth.
    """
    n, k = grid.box, torch.stack([kx_per_angstrom, ky_per_angstrom]).double()
    qx, qy = torch.from_numpy(np.linalg.inv(grid.matrix)) @ k * grid.extent_angstrom
    turned = torch.where(qx < 0, -1.0, 1.0)  # into the half that is held
    qx, qy = qx * turned, qy * turned
    left, low = qx.floor().long(), qy.floor().long()
    u, v = (qx - left).to(stored), (qy - low).to(stored)
    flat = stored.flatten(1)
    out = stored.new_zeros(len(stored), len(qx))
    for i, x_share in ((left, 1 - u), (left + 1, u)):
        for j, y_share in ((low, 1 - v), (low + 1, v)):
            column = i.clamp(max=n // 2)  # beyond it, nothing is seen
            out += flat[:, (j % n) * (n // 2 + 1) + column] * (x_share * y_share)
    return out
