"""How much better could a cell of poses score at full resolution? The bound of branch and bound,
and its failure probability.

The model is the likelihood's, `X = C S_t P_phi A + N`, everything divided by sigma, so that <N, R>
has the variance |R|^2 (<,> sums over the samples of an image). On shells up to L a pose scores `s_L
= <X, R>_L - |R|_L^2 / 2`, on all shells s. Let the image's true pose * lie in a cell whose centre c
has been scored on shells up to L, and let h be the shells beyond. Putting X = R* + N into both
scores,

    s(*) - s_L(c) = |R*|_h^2 / 2 + <N, R*>_h + |R* - R_c|_L^2 / 2 + <N, R* - R_c>_L:

what the shells beyond have not shown yet, and what the distance to the cell's centre has cost. Both
are one thing, the *unseen power* `q = |R*|_h^2 + |R* - R_c|_L^2`: the difference is Gaussian with
mean q / 2 and variance q. The best pose of an image lies beside the true one and fits the noise as
well; by Wilks' theorem it gains half a chi^2 of 5 degrees of freedom, the pose variables. Its mean
and variance are 5 / 2, but its tail is heavier than a Gaussian's; `FIT` = 7 further units of unseen
power hold it for the z used here (tested). So, but for a probability of 1 - Phi(z),

    best score in the cell <= s_L(c) + (q + 7) / 2 + z sqrt(q + 7).

A cell whose bound is below a score that some pose has reached on all shells cannot hold the best
pose; it is pruned. An image that passes V tests loses its best pose with a probability of at most V
(1 - Phi(z)) = `FAILURE`.

q is known but for the place of the pose in its cell. Slices at random poses, and at the centres of
the cells that hold them, tell how |R* - R_c|_L^2 scatters; it counts kappa times its mean, with
kappa for each image such that the probability of failure, the mean of 1 - Phi over these poses, is
the one stated: near 1 where noise decides, near 3, the corners of a cell, where signal does.

Assumed are the model; a best pose beside the true one (images without enough signal have their best
pose anywhere; theirs is found wherever noise leaves it); for R* the power of the slice at the
centre of the coarse cell, shell by shell, and for C^2 / sigma^2 its mean over each shell
(astigmatism is averaged); references on the images' grey scale: where they need not be
(correlation), they are scaled to fit each image's best pose so far.

cryoSPARC bounds the shells beyond by the most powerful slice of the map (Punjani et al., Nat.
Methods 14, 290 (2017)); here each cell has its own power, and the cell's size is part of the bound.
"""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.fourier import HalfPlane, shell_mean, shift_phases
from halfmap.likelihood import ImageTerms, squared_modulus
from halfmap.projection import FourierReferences, extract_slices
from halfmap.so3 import cell_of, random_rotations, rotations_of

FAILURE = 1e-3  # probability that the best pose of an image is pruned, all tests together
FIT = 7.0
_SAMPLED = 1000  # poses in cells
_LARGEST_FACTOR = 8.0


@dataclass(frozen=True)
class Unseen:
    """What a level leaves unseen of slices: all of the shells beyond `radius`; inside, between a
    cell's centre and the poses in it, the share `lost` of each shell's mean `power`. Of the poses
    sampled the slices' power and what they lose, shell by shell."""

    radius: int
    power: Float[Tensor, " S"]
    lost: Float[Tensor, " S"]
    sampled_lost: Float[Tensor, "M S"]
    sampled_power: Float[Tensor, "M S"]


def deviations(levels: int, failure: float = FAILURE) -> float:
    """z such that V one-sided tests at z standard deviations fail with a probability of at most
    `failure` together.

    >>> round(deviations(1, failure=0.0228), 2)
    2.0
    """
    return NormalDist().inv_cdf(1 - failure / levels)


def upper_bound(
    score: Float[Tensor, "B n"], unseen: Float[Tensor, "B n"], *, deviations: float
) -> Float[Tensor, "B n"]:
    """`s_L + (q + 7) / 2 + z sqrt(q + 7)`: what the best pose in each cell scores on all shells at
    most.

    >>> upper_bound(torch.tensor([[10.0]]), torch.tensor([[2.0]]), deviations=4.0)
    tensor([[26.5000]])
    """
    loose = unseen + FIT
    return score + loose / 2 + deviations * loose.sqrt()


def slice_shell_power(slices: Complex[Tensor, "M J"], plane: HalfPlane) -> Float[Tensor, "M S"]:
    """Sum of `w |R|^2` over each shell of slices, w the half-plane weights.

    >>> from halfmap.fourier import half_plane
    >>> plane = half_plane(8, 2)
    >>> slice_shell_power(torch.ones(1, len(plane), dtype=torch.complex64), plane)  # counts samples
    tensor([[ 1.,  8., 12.]])
    """
    squared = squared_modulus(slices) * plane.hermitian_weight
    return squared.new_zeros(len(squared), plane.radius + 1).index_add_(1, plane.shell, squared)


def shell_visibility(terms: ImageTerms, plane: HalfPlane) -> Float[Tensor, "B S"]:
    """Mean of `C^2 / sigma^2` over each shell: times a shell's power it is what the image can show
    of it.

    >>> from halfmap.fourier import half_plane
    >>> plane = half_plane(8, 2)
    >>> power = torch.full((1, len(plane)), 0.5)  # C^2 / sigma^2
    >>> shell_visibility(ImageTerms(power + 0j, power), plane)
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    return shell_mean(terms.power[:, : len(plane)], plane.shell, plane.radius + 1)


def unseen_in_cells(
    references: FourierReferences,
    plane: HalfPlane,
    *,
    radius: int,
    order: int,
    shift_step_px: float,
) -> Unseen:
    """What a level scored on shells up to `radius` leaves unseen, for the cells of the orientation
    grid of `order` and squares of `shift_step_px`.

    Poses are drawn at random, the same ones in every call.
    """
    device = references.grid.device
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(_SAMPLED, generator)
    centres = rotations_of(cell_of(rotations, order), order).to(device)
    move = ((torch.rand(_SAMPLED, 2, generator=generator) - 0.5) * shift_step_px).to(device)
    classes = torch.arange(_SAMPLED, device=device) % len(references)
    at_centre = extract_slices(references, centres, plane, classes=classes)
    away = (
        extract_slices(references, rotations.to(device), plane, classes=classes)
        * shift_phases(move, plane)
        - at_centre
    )
    power, lost = slice_shell_power(at_centre, plane), slice_shell_power(away, plane)
    lost[:, 0], power[:, 0] = 0.0, 0.0  # the mean grey value is not scored
    lost[:, radius + 1 :] = 0.0
    mean = power.mean(0)
    return Unseen(
        radius, mean, lost.mean(0) / mean.clamp(min=torch.finfo(mean.dtype).tiny), lost, power
    )


def unseen_power(
    unseen: Unseen, visible: Float[Tensor, "B S"], *, tests: int, failure: float = FAILURE
) -> Float[Tensor, "B S"]:
    """Each shell's unseen share times what the image shows of it: times a slice's power by shell
    and summed it is q.

    kappa is found for a slice of mean power by bisection, so that the mean over sampled poses m of

        1 - Phi((x - (q_m + 7) / 2) / sqrt(q_m + 7)),
        x = (q + 7) / 2 + z sqrt(q + 7),    q = beyond + kappa <loss>,

    is `failure / tests`.
    """
    z = deviations(tests, failure)
    shell = torch.arange(visible.shape[1], device=visible.device)
    beyond = (visible * (shell > unseen.radius)) @ unseen.power
    inside = visible * (shell <= unseen.radius)
    relative = (inside @ unseen.sampled_lost.T) / (inside @ unseen.sampled_power.T).clamp(
        min=torch.finfo(visible.dtype).tiny
    )
    loss = relative * (inside @ unseen.power)[:, None]
    mean = loss.mean(1)
    q = beyond[:, None] + loss + FIT
    low, high = torch.ones_like(mean), torch.full_like(mean, _LARGEST_FACTOR)
    for _ in range(16):
        factor = (low + high) / 2
        allowed = beyond + factor * mean + FIT
        x = (allowed / 2 + z * allowed.sqrt())[:, None]
        fails = 0.5 * torch.special.erfc((x - q / 2) / (2 * q).sqrt()).mean(1) > failure / tests
        low, high = torch.where(fails, factor, low), torch.where(fails, high, factor)
    return visible * ((shell > unseen.radius) + high[:, None] * unseen.lost)
