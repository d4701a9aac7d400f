"""Continuous refinement of poses: Gauss-Newton on three rotation and two shift parameters, damped as by Levenberg and Marquardt.

Maximises the score of an image against a slice, `a / sqrt(b)` (correlation) or `a - b / 2` (log likelihood), both of which are
`-min |X - s C R|^2` over the pose, with the scale s free or 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.fourier import HalfPlane
from halfmap.kernels import reference as torch_kernels
from halfmap.likelihood import ImageTerms, correlation_score
from halfmap.projection import PADDING, FourierReferences
from halfmap.so3 import compose, matrix_to_rotation_vector, rotation_vector_to_matrix

Score = Callable[[Tensor, Tensor], Tensor]
_UPPER = torch.triu_indices(5, 5)


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
) -> Float[Tensor, "M 27"]:
    """The 27 sums of `kernels.reference.pose_equations` over the first n_samples of the plane, for poses of images `image` of the batch."""
    kx, ky, weight = plane.kx.float(), plane.ky.float(), plane.hermitian_weight
    if rotations.device.type != "cpu":
        return torch_kernels.pose_equations(
            references.grid, rotations, shift_px, classes, terms.data[image, :n_samples], terms.power[image, :n_samples],
            kx[:n_samples], ky[:n_samples], weight[:n_samples], plane.box, PADDING,
        )  # fmt: skip
    from halfmap.kernels import cpu

    out = torch.empty(len(rotations), 27)
    cpu.pose_equations(
        torch.view_as_real(references.grid).numpy(), rotations.contiguous().numpy(), shift_px.contiguous().numpy(),
        classes.contiguous().numpy(), image.contiguous().numpy(), torch.view_as_real(terms.data).numpy(), terms.power.numpy(),
        kx.numpy(), ky.numpy(), weight.numpy(), n_samples, plane.box, PADDING, out.numpy(),
    )  # fmt: skip
    return out


def gauss_newton_system(equations: Float[Tensor, "M 27"], *, free_scale: bool) -> tuple[Float[Tensor, "M 5"], Float[Tensor, "M 5 5"]]:
    """Gradient and Gauss-Newton Hessian of the score by the pose.

    With scale s = a / b (free) or 1: `gradient = s (u - s h)`, `Hessian = s^2 (G - h h^T / b)` with s free, `G` with s = 1.
    """
    a, b, u, h = equations[:, 0], equations[:, 1], equations[:, 2:7], equations[:, 7:12]
    gram = equations.new_zeros(len(equations), 5, 5)
    gram[:, _UPPER[0], _UPPER[1]] = equations[:, 12:]
    gram[:, _UPPER[1], _UPPER[0]] = equations[:, 12:]
    if not free_scale:
        return u - h, gram
    b = b.clamp(min=1e-20)
    size = (a.abs() / b).clamp(min=1e-6)[:, None]
    return size * (u - (a / b)[:, None] * h), size[..., None] ** 2 * (gram - h[:, :, None] * h[:, None, :] / b[:, None, None])


@dataclass(frozen=True)
class Restraint:
    """Gaussian prior on a pose around a given one: standard deviations of the rotation and the shift."""

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
    score: Score = correlation_score,
    restraint: Restraint | None = None,
    anchor: tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 2"]] | None = None,
) -> tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 2"], Float[Tensor, " M"]]:
    """Improve M poses by `steps` damped Gauss-Newton steps on shells 1..radius; returns rotations, shifts and scores.

    Maximised is the log likelihood at the best scale (`a^2 / 2b`, for the correlation score) or at scale 1 (`a - b / 2`), plus the log of
    the restraint to the `anchor` (where poses start, if None). A step that does not raise it is undone and the damping raised tenfold;
    steps are cut to the largest step given. In 2D only the rotation about the view axis and the shift move.
    """
    n_samples = plane.size(radius)
    free_scale = score is correlation_score
    anchor_rotations, anchor_shift = (rotations, shift_px) if anchor is None else anchor
    precision = rotations.new_zeros(5)
    if restraint is not None:
        precision[:3] = 1 / math.radians(restraint.sigma_deg) ** 2
        precision[3:] = 1 / restraint.sigma_px**2

    def evaluate(rotations: Tensor, shift_px: Tensor) -> Tensor:
        return pose_equations(references, terms, plane, n_samples, image=image, rotations=rotations, shift_px=shift_px, classes=classes)

    def away(rotations: Tensor, shift_px: Tensor) -> Tensor:
        """How far a pose is from its anchor, in the five parameters."""
        if restraint is None:
            return rotations.new_zeros(len(rotations), 5)
        turn = matrix_to_rotation_vector(compose(rotations, anchor_rotations.mT))
        return torch.cat([turn, shift_px - anchor_shift], 1)

    def objective(equations: Tensor, offset: Tensor) -> Tensor:
        a, b = equations[:, 0], equations[:, 1]
        fit = a * a.abs() / (2 * b.clamp(min=1e-20)) if free_scale else a - b / 2
        return fit - 0.5 * (precision * offset**2).sum(1)

    first = 0 if references.dimensions == 3 else 2  # parameters: rotation vector x, y, z (view frame), shift x, y
    largest_rad = math.radians(largest_step_deg)
    equations, offset = evaluate(rotations, shift_px), away(rotations, shift_px)
    value = objective(equations, offset)
    damping = torch.full_like(value, 1e-3)
    for _ in range(steps):
        gradient, hessian = gauss_newton_system(equations, free_scale=free_scale)
        gradient = (gradient - precision * offset)[:, first:]
        hessian = (hessian + torch.diag(precision))[:, first:, first:]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * diagonal + 1e-7 * diagonal.amax(1, keepdim=True) + 1e-20
        step = torch.linalg.solve(hessian + torch.diag_embed(ridge), gradient)
        step = torch.nn.functional.pad(torch.nan_to_num(step), (first, 0))
        step[:, :3] *= (largest_rad / step[:, :3].norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        step[:, 3:] *= (largest_step_px / step[:, 3:].norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        trial_rotations = compose(rotation_vector_to_matrix(step[:, :3]), rotations)
        trial_shift = shift_px + step[:, 3:]
        trial, trial_offset = evaluate(trial_rotations, trial_shift), away(trial_rotations, trial_shift)
        trial_value = objective(trial, trial_offset)
        better = trial_value > value
        rotations = torch.where(better[:, None, None], trial_rotations, rotations)
        shift_px = torch.where(better[:, None], trial_shift, shift_px)
        equations, offset = torch.where(better[:, None], trial, equations), torch.where(better[:, None], trial_offset, offset)
        value = torch.where(better, trial_value, value)
        damping = torch.where(better, damping / 5, damping * 10)
    return rotations, shift_px, score(equations[:, 0], equations[:, 1])
