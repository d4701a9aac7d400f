"""The two sums of every method, from images and Gamma."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.state import Gamma
from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import ImageTerms
from halfmap.projection import Sums, insert_slices


def accumulate(sums: Sums, terms: ImageTerms, gamma: Gamma, plane: HalfPlane, symmetry: Float[Tensor, "G 3 3"]) -> None:
    """Add a batch into the sums, in place:

        num += sum_e Gamma_e P^T S^-1 C X / sigma^2        den += sum_e Gamma_e P^T C^2 / sigma^2

    Images are summed per slice first, so that each slice is inserted once (and once more for each symmetry mate A S).
    """
    values = terms.data[gamma.image] * shift_phases(gamma.shift_px, plane) * gamma.weight[:, None]
    weights = terms.power[gamma.image] * gamma.weight[:, None]
    n_slices = len(gamma.rotations)
    if not (len(gamma.reference) == n_slices and torch.equal(gamma.reference, torch.arange(n_slices, device=gamma.reference.device))):
        values = values.new_zeros(n_slices, len(plane)).index_add_(0, gamma.reference, values)
        weights = weights.new_zeros(n_slices, len(plane)).index_add_(0, gamma.reference, weights)
    insert_slices(sums, values, weights, gamma.rotations, plane, classes=gamma.classes, symmetry=symmetry)
