"""What each mode of a posterior holds, integrated over it rather than taken for a Gaussian.

Laplace's formula (`refinement`) knows a mode by its height and its curvature. At low signal modes
have ridges and shoulders, and modes near each other run into one: a mode then holds up to five
times what its formula says, one more than another, and what is said to be right with probability
0.99 is right in 0.95. So poses x are drawn from all modes' Gaussians q_m, widened, and scored:

    W_m = sum_x P(X | x) P(x) / sum_k n_k q_k(x) . q_m(x) / sum_k q_k(x)

with n_k poses drawn from mode k (deterministic mixture sampling; Veach & Guibas, SIGGRAPH 95, 419;
Owen & Zhou, J. Am. Stat. Assoc. 95, 135 (2000)); what lies between two modes is shared between them
and counted once. Images whose best mode holds all but a ten-thousandth by Laplace's formula keep
it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.pose_prior import PosePrior
from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane
from halfmap.likelihood import ImageTerms, Score
from halfmap.pose_search.gauss_newton import pose_equations
from halfmap.projection import FourierReferences
from halfmap.so3 import compose, matrix_to_rotation_vector, rotation_vector_to_matrix

SURE = 1 - 1e-4  # share of its best mode from which an image's posterior is left as it is
MOST_MODES = 16  # of an image, the likeliest; the others are raised as these are on the whole
# of log weight below the best: what a mode holds that lies further down, 0.03 % of it, does not
# matter, were it five times as much
FARTHEST_MODE = 8.0
WIDENED = 1.5  # standard deviations of what is drawn from, of the mode's own
# of the integral of a Gaussian mode by independent draws, as a share of it
STANDARD_DEVIATION = 0.2
# of log weight below the best: modes that hold less than a twentieth of what it holds, and of which
# a quarter of the draws, and so twice the standard deviation, is enough
LESSER_MODE, LESSER_DRAWS = 3.0, 1 / 4
_SEED = 7


@dataclass(frozen=True)
class PoseMeasure:
    """What a pose is weighed by: the score, the prior, the log density of a uniform orientation
    (per cubic radian in 3D, per radian in 2D; symmetry mates count together), and the proper
    rotations of the point group."""

    score: Score
    prior: PosePrior
    log_density: float
    mates: Float[Tensor, "G 3 3"]


def integrate_modes(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    candidates: Candidates,
    hessian: Float[Tensor, "B n d d"],
    measure: PoseMeasure,
    *,
    radius: int,
    at_once: int,
) -> Float[Tensor, "B n"]:
    """Log weights of the modes by the sum above, on shells up to `radius`.

    `candidates` are optima of distinct modes whose log weight is Laplace's, `hessian` the precision
    of each in radians and pixels; no more than `at_once` poses are scored together.
    """
    log_weight = candidates.log_weight.clone()
    best = torch.softmax(log_weight.double(), 1).amax(1)
    unsure = torch.nonzero(best < SURE)[:, 0]
    n_modes = min(MOST_MODES, log_weight.shape[1])
    for rows in unsure.split(max(1, at_once // (n_modes * draws_of_mode(hessian.shape[-1])))):
        order = log_weight[rows].argsort(dim=1, descending=True, stable=True)[:, :n_modes]
        modes = candidates.select_images(rows).select_poses(order)
        precision = hessian[rows[:, None], order]
        held = _integrals(references, terms, plane, modes, rows, precision, measure, radius)
        before = torch.logsumexp(modes.log_weight.masked_fill(~held.isfinite(), -torch.inf), 1)
        raised = torch.logsumexp(held, 1) - before
        log_weight[rows] += torch.where(raised.isfinite(), raised, 0)[:, None]
        own = log_weight[rows].gather(1, order)
        log_weight[rows[:, None], order] = torch.where(held.isfinite(), held, own)
    return log_weight


def turns_between(
    rotations: Float[Tensor, "R n 3 3"], symmetry: Float[Tensor, "G 3 3"]
) -> Float[Tensor, "R n n 3"]:
    """The rotation vector from each candidate to each other of its image, the shortest of the
    symmetry mates': that of the largest trace."""
    mates = symmetry.to(rotations)
    if len(mates) == 1:
        return matrix_to_rotation_vector(compose(rotations[:, None], rotations[:, :, None].mT))
    trace = torch.einsum("rjab,gbc,riac->rijg", rotations, mates, rotations)
    others = compose(rotations[:, None], mates[trace.argmax(-1)])
    return matrix_to_rotation_vector(compose(others, rotations[:, :, None].mT))


def draws_of_mode(dimensions: int) -> int:
    """How many poses are drawn from a mode: a power of two, as a Sobol sequence wants, about as
    many as the standard deviation asks for.

    The weights `p / q` of draws from q, a Gaussian p widened by W in d dimensions, have the
    variance `(W^2 / sqrt(2 W^2 - 1))^d - 1`.

    >>> draws_of_mode(5), draws_of_mode(3)  # in 3D, and of class images
    (32, 16)
    """
    variance = (WIDENED**2 / math.sqrt(2 * WIDENED**2 - 1)) ** dimensions - 1
    return 2 ** round(math.log2(variance / STANDARD_DEVIATION**2))


@lru_cache
def _normal_draws(dimensions: int) -> Float[Tensor, "Q d"]:
    """Points of a Sobol sequence as standard normal ones: the same in every image and run."""
    n = draws_of_mode(dimensions)
    points = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=_SEED).draw(n)
    return torch.special.ndtri(points.double().clamp(1e-6, 1 - 1e-6)).float()


def _integrals(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    modes: Candidates,
    image: Tensor,
    precision: Float[Tensor, "b m d d"],
    measure: PoseMeasure,
    radius: int,
) -> Float[Tensor, "b m"]:
    """ln W of the modes of some images of the batch; -inf for those too far below the best."""
    below = modes.log_weight.amax(1, keepdim=True) - modes.log_weight
    taken = below < FARTHEST_MODE
    d = precision.shape[-1]
    first = 5 - d
    draws = _normal_draws(d).to(precision)
    number = torch.full_like(below, len(draws))
    number[below > LESSER_MODE] *= LESSER_DRAWS
    drawn = taken[..., None] & (torch.arange(len(draws), device=below.device) < number[..., None])
    half = torch.linalg.inv(torch.linalg.cholesky(precision.double())).to(precision)
    away = WIDENED * torch.einsum("bmji,qj->bmqi", half, draws)  # covariance W^2 H^-1
    target = _log_posteriors(references, terms, plane, modes, image, away, drawn, measure, radius)
    turn = turns_between(modes.rotations, measure.mates)
    move = modes.shift_px[:, None] - modes.shift_px[:, :, None]
    apart = torch.cat([turn, move], -1)[..., first:]  # from mode m to mode k
    from_k = away[:, :, None] - apart[:, :, :, None]  # b m k q d
    squared = (from_k * torch.einsum("bkij,bmkqj->bmkqi", precision, from_k)).sum(-1)
    log_q = (
        -squared / (2 * WIDENED**2)
        + (0.5 * torch.linalg.slogdet(precision)[1])[:, None, :, None]
        - d * (math.log(WIDENED) + 0.5 * math.log(2 * math.pi))
    )
    elsewhere = ~taken[:, None] | (modes.classes[:, :, None] != modes.classes[:, None])
    log_q = log_q.masked_fill(elsewhere[..., None], -torch.inf)
    worth = target - torch.logsumexp(log_q + number.log()[:, None, :, None], 2)
    shared = (worth - torch.logsumexp(log_q, 2))[:, :, None] + log_q
    shared = shared.masked_fill(~drawn[:, :, None], -torch.inf)
    held = torch.logsumexp(shared.transpose(1, 2).flatten(2), 2)
    return held.masked_fill(~taken, -torch.inf)


def _log_posteriors(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    modes: Candidates,
    image: Tensor,
    away: Float[Tensor, "b m q d"],
    drawn: Tensor,
    measure: PoseMeasure,
    radius: int,
) -> Float[Tensor, "b m q"]:
    """ln P(X | x) P(x) at the poses `away` from their modes that are drawn; -inf elsewhere."""
    row, mode, _ = torch.nonzero(drawn, as_tuple=True)
    step = torch.nn.functional.pad(away[drawn], (5 - away.shape[3], 0))
    classes = modes.classes[row, mode]
    shift_px = modes.shift_px[row, mode] + step[:, 3:]
    sums = pose_equations(
        references,
        terms,
        plane,
        plane.size(radius),
        image=image[row],
        rotations=compose(rotation_vector_to_matrix(step[:, :3]), modes.rotations[row, mode]),
        shift_px=shift_px,
        classes=classes,
        derivatives=False,
    )
    score = measure.score.log_evidence(measure.score(sums[:, 0], sums[:, 1]))
    # the prior of directions is that of the mode: its pixels are as wide as modes are
    prior = measure.prior.of_direction(modes.rotations, modes.classes)
    found = away.new_full(away.shape[:3], -torch.inf)
    found[drawn] = score + measure.prior.of_shift(shift_px)
    return found + prior[..., None] + measure.log_density
