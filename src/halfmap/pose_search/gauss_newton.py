"""Continuous refinement of poses: Gauss-Newton on three rotation and two shift parameters, damped
as by Levenberg and Marquardt.

Maximises the score of an image against a slice, `a / sqrt(b)` (correlation) or `a - b / 2` (log
likelihood), both of which are `-min |X - s C R|^2` over the pose, with the scale s free or 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap import kernels
from halfmap.fourier import HalfPlane
from halfmap.gridding import PADDING
from halfmap.likelihood import CORRELATION, ImageTerms, Score
from halfmap.projection import FourierReferences
from halfmap.so3 import compose, matrix_to_rotation_vector, rotation_vector_to_matrix

OPTIMISM = 3.0  # far from its optimum an image gains more than the quadratic model promises
NEGLIGIBLE_GAIN = (
    0.005  # of log likelihood: a tenth of a standard deviation of the pose's posterior
)
# Marquardt's rule (J. SIAM 11, 431 (1963)): little damping at first, ten times as much after a
# step that failed, less after one that succeeded
FIRST_DAMPING, EASED, RAISED = 1e-3, 0.2, 10.0


def pose_equations(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    n_samples: int,
    *,
    image: Int[Tensor, " M"],
    rotations: Float[Tensor, "M 3 3"],
    shift_px: Float[Tensor, "M 2"],
    classes: Int[Tensor, " M"],
    derivatives: bool = True,
) -> Float[Tensor, "M sums"]:
    """The 27 sums of `kernels.reference.pose_equations` over the first n_samples of the plane, for
    poses of images `image` of the batch; without `derivatives`, where no pose is to move, the first
    two, a and b of the score."""
    return kernels.pose_equations(
        references.grid,
        rotations,
        shift_px,
        classes,
        image,
        terms.data,
        terms.power,
        plane.kx.float(),
        plane.ky.float(),
        plane.hermitian_weight,
        n_samples=n_samples,
        box=plane.box,
        padding=PADDING,
        derivatives=derivatives,
    )


def gauss_newton_system(
    equations: Float[Tensor, "M 27"], *, free_scale: bool
) -> tuple[Float[Tensor, "M 5"], Float[Tensor, "M 5 5"]]:
    """Gradient and Gauss-Newton Hessian of the score by the pose.

    With scale s = a / b (free) or 1: `gradient = s (u - s h)`, `Hessian = s^2 (G - h h^T / b)` with
    s free, `G` with s = 1.
    """
    a, b, u, h = equations[:, 0], equations[:, 1], equations[:, 2:7], equations[:, 7:12]
    gram = equations.new_zeros(len(equations), 5, 5)
    row, column = torch.triu_indices(5, 5, device=equations.device)
    gram[:, row, column] = equations[:, 12:]
    gram[:, column, row] = equations[:, 12:]
    if not free_scale:
        return u - h, gram
    b = b.clamp(min=1e-20)
    size = (a.abs() / b).clamp(min=1e-6)[:, None]
    return size * (u - (a / b)[:, None] * h), size[..., None] ** 2 * (
        gram - h[:, :, None] * h[:, None, :] / b[:, None, None]
    )


@dataclass(frozen=True)
class Restraint:
    """Gaussian prior on a pose around a given one: standard deviations of the rotation and the
    shift."""

    sigma_deg: float
    sigma_px: float


def refine_poses(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    *,
    radius: int,
    image: Int[Tensor, " M"],
    rotations: Float[Tensor, "M 3 3"],
    shift_px: Float[Tensor, "M 2"],
    classes: Int[Tensor, " M"],
    steps: int,
    largest_step_deg: float,
    largest_step_px: float,
    score: Score = CORRELATION,
    restraint: Restraint | None = None,
    anchor: tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 2"]] | None = None,
    improbable: float = math.inf,
) -> tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 2"], Float[Tensor, "M 27"]]:
    """Improve M poses by up to `steps` damped Gauss-Newton steps on shells 1..radius; returns
    rotations, shifts and their `pose_equations`.

    Maximised is the log likelihood at the best scale (`a^2 / 2b`, for the correlation score) or at
    scale 1 (`a - b / 2`), plus the log of the restraint to the `anchor` (where poses start, if
    None). A step that does not raise it is undone and the damping raised tenfold; steps are cut to
    the largest step given; a pose of which no step promises a gain of `NEGLIGIBLE_GAIN` is done,
    and one that is not expected to come within `improbable` of its image's best is given up:
    `OPTIMISM` times the gain that the quadratic model promises is not enough. In 2D only the
    rotation about the view axis and the shift move.
    """
    n_samples = plane.size(radius)
    free_scale = score.free_scale
    anchor_rotations, anchor_shift = (rotations, shift_px) if anchor is None else anchor
    precision = rotations.new_zeros(5)
    if restraint is not None:
        precision[:3] = 1 / math.radians(restraint.sigma_deg) ** 2
        precision[3:] = 1 / restraint.sigma_px**2

    def evaluate(rows: Tensor, rotations: Tensor, shift_px: Tensor) -> Tensor:
        return pose_equations(
            references,
            terms,
            plane,
            n_samples,
            image=image[rows],
            rotations=rotations,
            shift_px=shift_px,
            classes=classes[rows],
        )

    def away(rows: Tensor, rotations: Tensor, shift_px: Tensor) -> Tensor:
        """How far a pose is from its anchor, in the five parameters."""
        if restraint is None:
            return rotations.new_zeros(len(rotations), 5)
        turn = matrix_to_rotation_vector(compose(rotations, anchor_rotations[rows].mT))
        return torch.cat([turn, shift_px - anchor_shift[rows]], 1)

    def objective(equations: Tensor, offset: Tensor) -> Tensor:
        return score.log_evidence(score(equations[:, 0], equations[:, 1])) - 0.5 * (
            precision * offset**2
        ).sum(1)

    first = (
        0 if references.dimensions == 3 else 2
    )  # parameters: rotation vector x, y, z (view frame), shift x, y
    largest_rad = math.radians(largest_step_deg)
    every = torch.arange(len(rotations), device=rotations.device)
    rotations, shift_px = rotations.clone(), shift_px.clone()
    equations = evaluate(every, rotations, shift_px)
    offset = away(every, rotations, shift_px)
    value = objective(equations, offset)
    damping = torch.full_like(value, FIRST_DAMPING)
    active = every
    for _ in range(steps):
        gradient, hessian = gauss_newton_system(equations[active], free_scale=free_scale)
        gradient = (gradient - precision * offset[active])[:, first:]
        hessian = (hessian + torch.diag(precision))[:, first:, first:]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        ridge = damping[active, None] * diagonal + 1e-7 * diagonal.amax(1, keepdim=True) + 1e-20
        step = torch.nan_to_num(torch.linalg.solve(hessian + torch.diag_embed(ridge), gradient))
        promise = 0.5 * (gradient * step).sum(1)  # the gain if the objective were quadratic
        best = value.new_full((len(terms),), -torch.inf).scatter_reduce_(0, image, value, "amax")
        hopeful = value[active] + OPTIMISM * promise > best[image[active]] - improbable
        gains = (promise > NEGLIGIBLE_GAIN) & hopeful
        active, step = active[gains], torch.nn.functional.pad(step[gains], (first, 0))
        if not len(active):
            break
        step[:, :3] *= (largest_rad / step[:, :3].norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(
            max=1
        )
        step[:, 3:] *= (
            largest_step_px / step[:, 3:].norm(dim=1, keepdim=True).clamp(min=1e-12)
        ).clamp(max=1)
        trial_rotations = compose(rotation_vector_to_matrix(step[:, :3]), rotations[active])
        trial_shift = shift_px[active] + step[:, 3:]
        trial, trial_offset = (
            evaluate(active, trial_rotations, trial_shift),
            away(active, trial_rotations, trial_shift),
        )
        trial_value = objective(trial, trial_offset)
        better = trial_value > value[active]
        damping[active] *= torch.where(better, EASED, RAISED)
        won = active[better]
        rotations[won], shift_px[won], equations[won] = (
            trial_rotations[better],
            trial_shift[better],
            trial[better],
        )
        offset[won], value[won] = trial_offset[better], trial_value[better]
    return rotations, shift_px, equations
