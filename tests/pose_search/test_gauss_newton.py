"""Pose refinement: derivatives against finite differences, known poses found again, no step that
makes an image worse."""

import math

import pytest
import torch

from halfmap.fourier import half_plane, shift_phases
from halfmap.gridding import PADDING
from halfmap.kernels import reference as torch_kernels
from halfmap.likelihood import CORRELATION, LOG_LIKELIHOOD
from halfmap.pose_search.gauss_newton import (
    Restraint,
    gauss_newton_system,
    pose_equations,
    refine_poses,
)
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import angular_distance_deg, random_rotations, rotation_vector_to_matrix

SCORES = pytest.mark.parametrize("score", [CORRELATION, LOG_LIKELIHOOD])


class _Tiny:
    """A random reference, data, power and poses in float64, and their equations by the plain torch
    kernel."""

    def __init__(self, dimensions: int):
        generator = torch.Generator().manual_seed(1)
        self.plane, m = half_plane(16, 5), 4
        self.references = prepare_references(
            torch.randn(2, *([16] * dimensions), generator=generator), 5
        )
        self.grid = self.references.grid.to(torch.complex128)
        self.kx, self.ky, self.weight = (
            self.plane.kx.double(),
            self.plane.ky.double(),
            self.plane.hermitian_weight.double(),
        )
        vector = torch.randn(m, 3, generator=generator).double()
        if dimensions == 2:
            vector[:, :2] = 0
        self.rotations = rotation_vector_to_matrix(vector)
        self.shift, self.classes = (
            torch.randn(m, 2, generator=generator).double(),
            torch.tensor([0, 1, 1, 0]),
        )
        shape = (m, len(self.plane))
        self.power = 0.1 + torch.rand(shape, generator=generator).double()
        # data that agree with the reference in part, so that a > 0
        noise = torch.complex(
            torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        ).to(torch.complex128)
        slices = self.slices(self.rotations) * self.phases(self.shift).conj()
        self.data = self.power * slices + 3 * noise

    def slices(self, rotations: torch.Tensor) -> torch.Tensor:
        return torch_kernels.slices(self.grid, rotations, self.classes, self.kx, self.ky, PADDING)

    def phases(self, shift: torch.Tensor) -> torch.Tensor:
        return shift_phases(shift, self.plane)

    def a_and_b(self, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b of poses moved by step (m, 5): rotation vector in the view frame, radians, then
        shift; sums written out."""
        slices = self.slices(rotation_vector_to_matrix(step[:, :3]) @ self.rotations)
        data = self.data * self.phases(self.shift + step[:, 3:])
        return (self.weight * (data.conj() * slices).real).sum(1), (
            self.weight * self.power * slices.abs() ** 2
        ).sum(1)

    def equations(self) -> torch.Tensor:
        return torch_kernels.pose_equations(
            self.grid,
            self.rotations,
            self.shift,
            self.classes,
            self.data,
            self.power,
            self.kx,
            self.ky,
            self.weight,
            16,
            PADDING,
        )


def _difference(value, m: int, parameter: int, h: float = 1e-6) -> torch.Tensor:
    step = torch.zeros(m, 5, dtype=torch.float64)
    step[:, parameter] = h
    return (value(step) - value(-step)) / (2 * h)


def _moves(dimensions: int) -> list[int]:
    return [0, 1, 2, 3, 4] if dimensions == 3 else [2, 3, 4]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_and_b_are_their_sums(dimensions):
    tiny = _Tiny(dimensions)
    a, b = tiny.a_and_b(torch.zeros(4, 5, dtype=torch.float64))
    torch.testing.assert_close(tiny.equations()[:, 0], a)
    torch.testing.assert_close(tiny.equations()[:, 1], b)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_gradient_is_the_finite_difference_of_the_score(dimensions):
    """Of a - b / 2 with scale 1; of a^2 / (2 b), which rises and falls with a / sqrt(b), with the
    scale free."""
    tiny = _Tiny(dimensions)

    def free(step):
        a, b = tiny.a_and_b(step)
        return a**2 / (2 * b)

    def fixed(step):
        a, b = tiny.a_and_b(step)
        return a - b / 2

    assert (tiny.equations()[:, 0] > 0).all()
    for free_scale, value in ((True, free), (False, fixed)):
        gradient, _ = gauss_newton_system(tiny.equations(), free_scale=free_scale)
        for parameter in _moves(dimensions):
            expected = _difference(value, 4, parameter)
            torch.testing.assert_close(
                gradient[:, parameter], expected, rtol=1e-5, atol=1e-5 * gradient.abs().max().item()
            )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hessian_is_the_gram_matrix_of_the_models_derivatives(dimensions):
    """Of s C R with the scale s = 1, or with s free: what s can absorb is projected out."""
    tiny = _Tiny(dimensions)
    moves = _moves(dimensions)
    a, b = tiny.a_and_b(torch.zeros(4, 5, dtype=torch.float64))

    def model(
        step,
    ):  # the reference brought onto the image, weighted so that plain sums are the likelihood's
        moved = (
            tiny.slices(rotation_vector_to_matrix(step[:, :3]) @ tiny.rotations)
            * tiny.phases(tiny.shift + step[:, 3:]).conj()
        )
        return torch.view_as_real((tiny.weight * tiny.power).sqrt() * moved).flatten(1)

    here = model(torch.zeros(4, 5, dtype=torch.float64))
    jacobian = torch.stack([_difference(model, 4, p) for p in moves], 1)
    for free_scale in (True, False):
        _, hessian = gauss_newton_system(tiny.equations(), free_scale=free_scale)
        columns = jacobian
        if free_scale:
            along = (jacobian @ here[..., None]) / (here**2).sum(1)[:, None, None]
            columns = (jacobian - along * here[:, None]) * (a / b)[:, None, None]
        expected = columns @ columns.mT
        found = hessian[:, moves][:, :, moves]
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
        )


def test_the_cpu_kernel_gives_the_same_system():
    tiny = _Tiny(3)
    from halfmap.likelihood import ImageTerms

    terms = ImageTerms(tiny.data.to(torch.complex64), tiny.power.float())
    ours = pose_equations(
        tiny.references,
        terms,
        tiny.plane,
        len(tiny.plane),
        image=torch.arange(4),
        rotations=tiny.rotations.float(),
        shift_px=tiny.shift.float(),
        classes=tiny.classes,
    )
    for mine, theirs in zip(
        gauss_newton_system(ours, free_scale=True),
        gauss_newton_system(tiny.equations(), free_scale=True),
        strict=True,
    ):
        torch.testing.assert_close(
            mine.double(), theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item()
        )


def _perturb(rotations, shift_px, degrees: float, pixels: float, *, in_plane_only: bool):
    generator = torch.Generator().manual_seed(4)
    axis = torch.randn(len(rotations), 3, generator=generator)
    if in_plane_only:
        axis[:, :2] = 0
    away = torch.randn(len(rotations), 2, generator=generator)
    turn = rotation_vector_to_matrix(axis / axis.norm(dim=1, keepdim=True) * math.radians(degrees))
    return turn @ rotations, shift_px + pixels * away / away.norm(dim=1, keepdim=True)


def _refine(
    scene,
    references,
    rotations,
    shift_px,
    *,
    radius: int,
    steps: int,
    score=CORRELATION,
    restraint=None,
):
    rotations, shift_px, equations = refine_poses(
        references,
        scene.terms,
        scene.plane,
        radius=radius,
        image=torch.arange(len(rotations)),
        rotations=rotations,
        shift_px=shift_px,
        classes=scene.classes,
        steps=steps,
        largest_step_deg=3.75,
        largest_step_px=1.0,
        score=score,
        restraint=restraint,
    )
    return rotations, shift_px, score(equations[:, 0], equations[:, 1])


@SCORES
@pytest.mark.parametrize("use_ctf", [True, False])
def test_a_pose_4_degrees_and_a_pixel_and_a_half_away_is_found_again(
    channel, scene_of, score, use_ctf
):
    """From low resolution to high, as the search does; astigmatic CTFs. Images are the references'
    own slices: no interpolation error."""
    scene = scene_of(channel, 40, use_ctf=use_ctf)
    references = prepare_references(channel, 15)
    slices = (
        extract_slices(references, scene.rotations, scene.plane)
        * shift_phases(scene.shift_px, scene.plane).conj()
    )
    scene.terms.data.copy_(scene.terms.power * slices)
    scene.terms.data[:, 0] = 0
    rotations, shift_px = _perturb(scene.rotations, scene.shift_px, 4.0, 1.5, in_plane_only=False)
    for radius in (6, 10, 15):
        rotations, shift_px, _ = _refine(
            scene, references, rotations, shift_px, radius=radius, steps=6, score=score
        )
    assert angular_distance_deg(rotations, scene.rotations).max() < 0.05
    assert (shift_px - scene.shift_px).norm(dim=1).max() < 0.02


def test_with_exact_projections_interpolation_costs_a_twentieth_of_a_degree(channel, scene_of):
    scene = scene_of(channel, 60)
    references = prepare_references(channel, 15)
    rotations, shift_px = _perturb(scene.rotations, scene.shift_px, 4.0, 1.5, in_plane_only=False)
    for radius in (6, 15):
        rotations, shift_px, _ = _refine(
            scene, references, rotations, shift_px, radius=radius, steps=8
        )
    error = angular_distance_deg(rotations, scene.rotations)
    assert error.median() < 0.05
    assert error.max() < 0.2
    assert (shift_px - scene.shift_px).norm(dim=1).max() < 0.02


@SCORES
def test_in_2d_only_the_view_axis_turns(view, scene_of, score):
    scene = scene_of(view, 30)
    rotations, shift_px = _perturb(scene.rotations, scene.shift_px, 4.0, 1.5, in_plane_only=True)
    references = prepare_references(view, 15)
    for radius in (6, 15):
        rotations, shift_px, _ = _refine(
            scene, references, rotations, shift_px, radius=radius, steps=8, score=score
        )
    torch.testing.assert_close(
        rotations[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(30, 3), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(rotations[:, :2, 2], torch.zeros(30, 2), rtol=0, atol=1e-6)
    assert angular_distance_deg(rotations, scene.rotations).max() < 0.2
    assert (shift_px - scene.shift_px).norm(dim=1).max() < 0.02


@SCORES
@pytest.mark.parametrize("snr", [1e9, 0.05])
def test_no_step_makes_an_image_worse(channel, scene_of, score, snr):
    """From anywhere: the score reported is that of the pose returned, and never below the one
    before."""
    scene = scene_of(channel, 50, snr=snr)
    references = prepare_references(channel, 15)
    rotations, shift_px = (
        random_rotations(50, torch.Generator().manual_seed(8)),
        scene.shift_px + 1.0,
    )
    before = torch.full((50,), -torch.inf)
    for _ in range(6):
        rotations, shift_px, value = _refine(
            scene, references, rotations, shift_px, radius=12, steps=1, score=score
        )
        assert (value >= before).all()
        before = value
    equations = pose_equations(
        references,
        scene.terms,
        scene.plane,
        scene.plane.size(12),
        image=torch.arange(50),
        rotations=rotations,
        shift_px=shift_px,
        classes=scene.classes,
    )
    torch.testing.assert_close(score(equations[:, 0], equations[:, 1]), value)


def test_rotations_stay_rotations_and_inputs_stay_as_they_were(channel, scene_of):
    scene = scene_of(channel, 20, snr=0.05)
    rotations, shift_px = _perturb(scene.rotations, scene.shift_px, 4.0, 1.5, in_plane_only=False)
    kept = rotations.clone(), shift_px.clone()
    found, _, _ = _refine(
        scene, prepare_references(channel, 15), rotations, shift_px, radius=15, steps=30
    )
    torch.testing.assert_close(found @ found.mT, torch.eye(3).expand(20, 3, 3), rtol=0, atol=1e-5)
    assert torch.equal(rotations, kept[0])
    assert torch.equal(shift_px, kept[1])


def test_a_step_is_no_longer_than_it_may_be(channel, scene_of):
    scene = scene_of(channel, 30)
    rotations, shift_px = _perturb(scene.rotations, scene.shift_px, 20.0, 3.0, in_plane_only=False)
    found, moved, _ = refine_poses(
        prepare_references(channel, 15),
        scene.terms,
        scene.plane,
        radius=6,
        image=torch.arange(30),
        rotations=rotations,
        shift_px=shift_px,
        classes=scene.classes,
        steps=1,
        largest_step_deg=2.0,
        largest_step_px=0.3,
    )
    assert 1.0 < angular_distance_deg(found, rotations).max() < 2.01
    assert 0.15 < (moved - shift_px).norm(dim=1).max() < 0.301


@SCORES
def test_a_restraint_holds_noise_where_it_started_and_lets_go_of_nothing_else(
    channel, scene_of, score
):
    """Pure noise wanders without a restraint, stays within its range with one; a restraint as wide
    as the sky changes nothing."""
    scene, references = scene_of(channel, 60, snr=1e-4), prepare_references(channel, 15)
    start = random_rotations(60, torch.Generator().manual_seed(8)), torch.zeros(60, 2)

    def moved(restraint):
        rotations, shift_px, _ = _refine(
            scene, references, *start, radius=12, steps=12, score=score, restraint=restraint
        )
        return rotations, angular_distance_deg(rotations, start[0]), shift_px.norm(dim=1)

    free, held, wide = (moved(r) for r in (None, Restraint(0.5, 0.1), Restraint(1e12, 1e12)))
    assert free[1].median() > 5
    assert held[1].max() < 3.0
    assert held[2].max() < 0.6
    assert (angular_distance_deg(wide[0], free[0]) < 0.1).float().mean() > 0.9


def test_data_and_restraint_meet_where_their_gradients_cancel(channel, scene_of):
    """With little noise the data win; pulled from 2 degrees away by a tight restraint the pose
    stops in between."""
    scene, references = scene_of(channel, 30, snr=0.3), prepare_references(channel, 15)
    start = _perturb(scene.rotations, scene.shift_px, 2.0, 0.0, in_plane_only=False)
    errors = []
    for sigma in (0.02, 0.3, 30.0):
        rotations, _, _ = _refine(
            scene, references, *start, radius=12, steps=10, restraint=Restraint(sigma, 1.0)
        )
        errors.append(angular_distance_deg(rotations, start[0]).median())
    assert errors[0] < 0.1
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 1.5


def test_an_image_that_starts_with_a_negative_correlation_moves_under_a_restraint_too(
    channel, scene_of
):
    """At the SNR of a tilt image many correlations are negative at a good pose; those images must
    not be frozen there."""
    scene, references = scene_of(channel, 200, snr=0.002), prepare_references(channel, 15)
    start = _perturb(scene.rotations, scene.shift_px, 4.0, 0.0, in_plane_only=False)
    before, after = (
        _refine(scene, references, *start, radius=12, steps=n, restraint=Restraint(30.0, 5.0))
        for n in (0, 8)
    )
    negative = before[2] < 0
    assert 5 < negative.sum() < 100
    moved = angular_distance_deg(after[0], start[0])
    assert moved[~negative].median() > 1
    assert moved[negative].median() > 1
