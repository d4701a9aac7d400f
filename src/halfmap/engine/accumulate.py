"""The two sums of every method, from images and Gamma."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.prior import Prior
from halfmap.engine.state import Gamma
from halfmap.fourier import HalfPlane
from halfmap.kernels import reference as torch_kernels
from halfmap.likelihood import ImageTerms
from halfmap.projection import Sums, insert_slices
from halfmap.so3 import compose, direction_pixels


def entry_terms(terms: ImageTerms, gamma: Gamma, plane: HalfPlane) -> ImageTerms:
    """For each entry of Gamma `Gamma_e S_t^-1 C X / sigma^2` and `Gamma_e C^2 / sigma^2` on the plane's samples: its image, moved to the
    middle, and weighted."""
    every = torch.arange(len(gamma.image) + 1, device=gamma.image.device)
    return _gathered(terms, gamma, every[:-1], every, plane)


def slice_terms(terms: ImageTerms, gamma: Gamma, plane: HalfPlane) -> ImageTerms:
    """The `entry_terms` of each slice's entries, added up."""
    if one_entry_each(gamma):
        return entry_terms(terms, gamma, plane)
    counts = torch.bincount(gamma.reference, minlength=len(gamma.rotations))
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return _gathered(terms, gamma, torch.argsort(gamma.reference, stable=True), starts, plane)


def _gathered(terms: ImageTerms, gamma: Gamma, order: Int[Tensor, " E"], starts: Int[Tensor, " R1"], plane: HalfPlane) -> ImageTerms:
    image, shift_px, weight = gamma.image[order], gamma.shift_px[order], gamma.weight[order]
    kx, ky, n = plane.kx.float(), plane.ky.float(), len(plane)
    if weight.device.type != "cpu":
        return ImageTerms(*torch_kernels.gather(terms.data[:, :n], terms.power[:, :n], image, shift_px, weight, starts, kx, ky, plane.box))
    from halfmap.kernels import cpu

    values, weights = torch.empty(len(starts) - 1, n, dtype=torch.complex64), torch.empty(len(starts) - 1, n)
    cpu.gather(
        torch.view_as_real(terms.data).numpy(), terms.power.numpy(), image.numpy(), shift_px.numpy(), weight.numpy(), starts.numpy(),
        kx.numpy(), ky.numpy(), plane.box, torch.view_as_real(values).numpy(), weights.numpy(),
    )  # fmt: skip
    return ImageTerms(values, weights)


def one_entry_each(gamma: Gamma) -> bool:
    """Whether entry e is the one entry of slice e, as for poses that are on no grid."""
    n_slices = len(gamma.rotations)
    return len(gamma.reference) == n_slices and torch.equal(gamma.reference, torch.arange(n_slices, device=gamma.reference.device))


def accumulate(sums: Sums, terms: ImageTerms, gamma: Gamma, plane: HalfPlane, symmetry: Float[Tensor, "G 3 3"]) -> None:
    """Add a batch into the sums, in place, from the terms of Gamma's slices (`slice_terms`):

        num += sum_e Gamma_e P^T S^-1 C X / sigma^2        den += sum_e Gamma_e P^T C^2 / sigma^2

    Each slice is inserted once (and once more for each symmetry mate A S), however many images it is the sum of.
    """
    insert_slices(sums, terms.data, terms.power, gamma.rotations, plane, classes=gamma.classes, symmetry=symmetry)


def prior_sums(prior: Prior, gamma: Gamma, symmetry: Float[Tensor, "G 3 3"]) -> Float[Tensor, " P"]:
    """What Gamma says of the prior, as one vector that processes can add: weight per class and direction (K D), the weight and the summed
    square of the shifts. A direction counts for all of its symmetry mates, each 1 / G."""
    n_classes, n_directions = prior.directions.shape
    classes = gamma.classes[gamma.reference]
    counts = gamma.weight.new_zeros(n_classes * n_directions)
    if n_directions == 1:
        counts.index_add_(0, classes, gamma.weight)
    else:
        weight = gamma.weight.new_zeros(len(gamma.rotations)).index_add_(0, gamma.reference, gamma.weight) / len(symmetry)
        for mate in symmetry.to(gamma.rotations):
            counts.index_add_(0, gamma.classes * n_directions + direction_pixels(compose(gamma.rotations, mate), prior.order), weight)
    squared = (gamma.weight * (gamma.shift_px**2).sum(-1)).sum()
    return torch.cat([counts, torch.stack([gamma.weight.sum(), squared])])
