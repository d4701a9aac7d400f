"""The two sums of every method, from images and Gamma."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.prior import Prior
from halfmap.engine.state import Gamma
from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import ImageTerms
from halfmap.projection import Sums, insert_slices
from halfmap.so3 import compose, direction_pixels


def centred(terms: ImageTerms, gamma: Gamma, plane: HalfPlane) -> ImageTerms:
    """For each entry of Gamma `Gamma_e S_t^-1 C X / sigma^2` and `Gamma_e C^2 / sigma^2`: its image, moved to the middle, and weighted."""
    weight = gamma.weight[:, None]
    phases = shift_phases(gamma.shift_px, plane)
    return ImageTerms(phases.mul_(terms.data[gamma.image]).mul_(weight), terms.power[gamma.image].mul_(weight))


def accumulate(sums: Sums, entries: ImageTerms, gamma: Gamma, plane: HalfPlane, symmetry: Float[Tensor, "G 3 3"]) -> None:
    """Add a batch into the sums, in place, from the `centred` terms of Gamma's entries:

        num += sum_e Gamma_e P^T S^-1 C X / sigma^2        den += sum_e Gamma_e P^T C^2 / sigma^2

    Images are summed per slice first, so that each slice is inserted once (and once more for each symmetry mate A S).
    """
    values, weights = entries.data, entries.power
    n_slices = len(gamma.rotations)
    if not (len(gamma.reference) == n_slices and torch.equal(gamma.reference, torch.arange(n_slices, device=gamma.reference.device))):
        values = values.new_zeros(n_slices, len(plane)).index_add_(0, gamma.reference, values)
        weights = weights.new_zeros(n_slices, len(plane)).index_add_(0, gamma.reference, weights)
    insert_slices(sums, values, weights, gamma.rotations, plane, classes=gamma.classes, symmetry=symmetry)


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
