"""The two sums of every method, from images and Gamma."""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap import kernels
from halfmap.engine.state import PosteriorWeights
from halfmap.fourier import HalfPlane
from halfmap.likelihood import ImageTerms, squared_modulus
from halfmap.projection import Sums, empty_sums, hermitian_mates, insert_slices
from halfmap.symmetries import SymmetryOperators
from halfmap.symmetrisation import symmetrised


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
    entries = of[order], shift_px[order], weight[order]
    kx, ky = plane.kx.float(), plane.ky.float()
    return ImageTerms(
        *kernels.gather(rows.data, rows.power, *entries, starts, kx, ky, box=plane.box)
    )


def accumulate(
    sums: Sums,
    terms: ImageTerms,
    gamma: PosteriorWeights,
    plane: HalfPlane,
) -> None:
    """Add a batch into the sums, in place, from the terms of Gamma's slices (`slice_terms`):

        num += sum_e Gamma_e P^T S^-1 C X / sigma^2        den += sum_e Gamma_e P^T C^2 / sigma^2

    Each slice is inserted once, however many images it is the sum of; symmetry mates come in when
    all are there (`symmetrisation`).
    """
    rotations, classes = gamma.rotations, gamma.classes
    insert_slices(sums, terms.data, terms.power, rotations, plane, classes=classes)


def sums_of_images(
    terms: ImageTerms,
    gamma: PosteriorWeights,
    plane: HalfPlane,
    *,
    n_classes: int,
    dimensions: int,
    symmetry: SymmetryOperators | None = None,
) -> Sums:
    """The two sums of some images and their posterior weights, on every shell of `plane`, ready
    for an update (`reconstruction`): `num = sum Gamma P^T S^-1 C X / sigma^2` and `den = sum Gamma
    P^T C^2 / sigma^2` of K class images (`dimensions` 2) or volumes (3).

    >>> from halfmap.fourier import half_plane
    >>> from halfmap.projection import prepare_references
    >>> from halfmap.engine.posterior_weights import assign_posterior
    >>> from halfmap.pose_search.exhaustive import search_exhaustively
    >>> from halfmap.simulation.forward_model import Recipe, draw_truth
    >>> from halfmap.simulation.in_memory import simulate_images
    >>> from halfmap.simulation.phantom import phantom
    >>> from halfmap.so3 import orientation_grid
    >>> plane, volume = half_plane(32, 5), phantom(32, 6.0)
    >>> truth = draw_truth(Recipe(3, seed=1, shift_rms_px=0.0))
    >>> terms = simulate_images([volume], truth, pixel_size_angstrom=6.0, snr=0.1).terms(plane)
    >>> poses = search_exhaustively(
    ...     prepare_references(volume[None], 5),
    ...     terms,
    ...     plane,
    ...     rotations=orientation_grid(1).rotations,
    ... )
    >>> sums = sums_of_images(terms, assign_posterior(poses), plane, n_classes=1, dimensions=3)
    >>> bool(sums.den.sum() > 0)
    True
    """
    device = terms.power.device
    sums = empty_sums(n_classes, plane.box, plane.radius, dimensions, device=device)
    slices = slice_terms(terms, gamma, plane)
    accumulate(sums, slices, gamma, plane)
    whole = hermitian_mates(sums)
    return whole if symmetry is None else symmetrised(whole, symmetry)
