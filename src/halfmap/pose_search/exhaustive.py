"""Every pose of a grid scored for every image: the lecture's integral over phi as a plain sum.

What jobs do instead looks at a small part of these poses (`adaptive`, `branch_and_bound`); this is
for small problems, for teaching, and for checking them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import (
    LOG_LIKELIHOOD,
    ImageTerms,
    Score,
    cross_terms,
    slice_power,
    squared_modulus,
)
from halfmap.projection import FourierReferences, extract_slices

# poses of all images together, of 76 bytes each: 1.5 GB
MOST_CANDIDATES = 20_000_000


def search_exhaustively(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    *,
    rotations: Float[Tensor, "M 3 3"],
    shifts_px: Float[Tensor, "T 2"] | None = None,
    score: Score = LOG_LIKELIHOOD,
) -> Candidates:
    """All K M T poses (class, orientation, shift) of every image as candidates, all equally
    probable beforehand: `log_weight = ln P(X | A_k, phi)` up to a constant per image.

    `assign_posterior` makes the lecture's Gamma of them, `assign_hard` the best match. With the
    log likelihood a weight is relative to no particle at all, `-(|X - R|^2 - |X|^2) / (2 sigma^2)`.

    >>> from halfmap.fourier import half_plane
    >>> from halfmap.projection import prepare_references
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
    >>> poses.log_weight.shape  # images, poses
    torch.Size([3, 576])

    Args:
        references: K maps or class images, prepared up to the plane's radius at least.
        terms: `C X / sigma^2` and `C^2 / sigma^2` of B images on `plane`.
        rotations: object to view coordinates, an `orientation_grid`'s for instance.
        shifts_px: x, y; shifts that centre the image, a `shift_grid` for instance; None: images
            are centred.

    Raises:
        InputError: more than `MOST_CANDIDATES` poses of all images together.

    Source: lecture, part 3, "We know how to compute the likelihood".
    """
    shifts_px = rotations.new_zeros(1, 2) if shifts_px is None else shifts_px
    n_classes, n_rotations, n_shifts = len(references), len(rotations), len(shifts_px)
    total = len(terms) * n_classes * n_rotations * n_shifts
    if total > MOST_CANDIDATES:
        raise InputError(
            f"argument terms: expected at most {MOST_CANDIDATES:,} poses of all images together, "
            f"got {len(terms)} images with {total // max(1, len(terms)):,} poses each; take fewer "
            "images at a time, or a coarser grid"
        )
    classes = torch.arange(n_classes).repeat_interleave(n_rotations).to(rotations.device)
    turned = rotations.repeat(n_classes, 1, 1)
    slices = extract_slices(references, turned, plane, classes=classes)
    a = cross_terms(terms, shift_phases(shifts_px, plane), slices, plane)
    b = slice_power(terms, squared_modulus(slices).T.contiguous(), plane)[:, None].expand_as(a)
    value = score(a, b)
    cell = torch.arange(n_rotations, device=a.device).repeat(n_classes)

    def of_slices(field: Tensor) -> Tensor:
        return field.expand(len(terms), n_shifts, *field.shape).flatten(1, 2)

    shifts = shifts_px.repeat_interleave(len(turned), 0).expand(len(terms), -1, 2)
    return Candidates(
        rotations=of_slices(turned),
        shift_px=shifts,
        classes=of_slices(classes),
        score=value.flatten(1),
        log_weight=score.log_evidence(value).flatten(1),
        cell=of_slices(cell),
        accuracy=shifts_px.new_full((len(terms), total // max(1, len(terms)), 2), torch.nan),
    )


def log_likelihood(candidates: Candidates) -> Float[Tensor, " B"]:
    """`ln <P(X_i | V, phi)>` over the candidates of each image, all equally probable: its part of
    the lecture's `L = sum_i ln int P(X_i | V, phi) dphi`, relative to no particle at all.

    >>> from halfmap.engine.state import as_candidates, identity_poses
    >>> log_likelihood(as_candidates(identity_poses(torch.tensor([0]))))  # as good as none
    tensor([0.], dtype=torch.float64)
    """
    n = candidates.log_weight.shape[1]
    return torch.logsumexp(candidates.log_weight.double(), 1) - math.log(n)
