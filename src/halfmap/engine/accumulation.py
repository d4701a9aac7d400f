"""The two sums of every method, from images and Gamma."""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.engine.state import PosteriorWeights
from halfmap.fourier import HalfPlane
from halfmap.kernels import reference as torch_kernels
from halfmap.likelihood import ImageTerms, squared_modulus
from halfmap.projection import Sums, insert_slices


def slice_terms(terms: ImageTerms, gamma: PosteriorWeights, plane: HalfPlane) -> ImageTerms:
    """For each slice of Gamma `sum_e Gamma_e S_t^-1 C X / sigma^2` and `sum_e Gamma_e C^2 /
    sigma^2` on the plane's samples: its images, moved to the middle, weighted and added up."""
    return _gathered(
        terms,
        gamma.image,
        gamma.shift_px,
        gamma.weight,
        gamma.reference,
        len(gamma.rotations),
        plane,
    )


def expected_images(
    slices: Complex[Tensor, "M I"], gamma: PosteriorWeights, n_images: int, plane: HalfPlane
) -> ImageTerms:
    """For each image `sum_e Gamma_e S_t R_e` and `sum_e Gamma_e |R_e|^2` on the plane's I samples:
    the adjoint of `slice_terms`."""
    power = ImageTerms(slices, squared_modulus(slices))
    return _gathered(
        power, gamma.reference, -gamma.shift_px, gamma.weight, gamma.image, n_images, plane
    )


def _gathered(
    rows: ImageTerms,
    of: Int[Tensor, " E"],
    shift_px: Float[Tensor, "E 2"],
    weight: Float[Tensor, " E"],
    to: Int[Tensor, " E"],
    n_out: int,
    plane: HalfPlane,
) -> ImageTerms:
    """Row `to[e]` of n_out gets `weight[e]` times row `of[e]`, its data moved back by
    `shift_px[e]`."""
    order = torch.argsort(to, stable=True)
    starts = torch.nn.functional.pad(torch.bincount(to, minlength=n_out).cumsum(0), (1, 0))
    of, shift_px, weight = of[order], shift_px[order].contiguous(), weight[order]
    kx, ky, n = plane.kx.float(), plane.ky.float(), len(plane)
    if weight.device.type != "cpu":
        return ImageTerms(
            *torch_kernels.gather(
                rows.data[:, :n], rows.power[:, :n], of, shift_px, weight, starts, kx, ky, plane.box
            )
        )
    from halfmap.kernels import cpu

    values, weights = torch.empty(n_out, n, dtype=torch.complex64), torch.empty(n_out, n)
    cpu.gather(
        torch.view_as_real(rows.data).numpy(),
        rows.power.numpy(),
        of.numpy(),
        shift_px.numpy(),
        weight.numpy(),
        starts.numpy(),
        kx.numpy(),
        ky.numpy(),
        plane.box,
        torch.view_as_real(values).numpy(),
        weights.numpy(),
    )
    return ImageTerms(values, weights)


def accumulate(
    sums: Sums,
    terms: ImageTerms,
    gamma: PosteriorWeights,
    plane: HalfPlane,
    symmetry: Float[Tensor, "G 3 3"],
) -> None:
    """Add a batch into the sums, in place, from the terms of Gamma's slices (`slice_terms`):

        num += sum_e Gamma_e P^T S^-1 C X / sigma^2        den += sum_e Gamma_e P^T C^2 / sigma^2

    Each slice is inserted once (and once more for each symmetry mate A S), however many images it
    is the sum of.
    """
    insert_slices(
        sums,
        terms.data,
        terms.power,
        gamma.rotations,
        plane,
        classes=gamma.classes,
        symmetry=symmetry,
    )
