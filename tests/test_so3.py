"""Rotations against scipy and closed forms; grids by what a grid must be: equal nested cells that
cover SO(3)."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from halfmap.errors import InputError
from halfmap.so3 import (
    angular_distance_deg,
    cell_fraction,
    cell_of,
    children,
    compose,
    euler_to_matrix,
    grid_perturbation,
    grid_step_deg,
    in_plane_grid,
    matrix_to_euler,
    matrix_to_rotation_vector,
    orientation_grid,
    parent,
    random_rotations,
    rotation_2d,
    rotation_vector_to_matrix,
    rotations_of,
)
from halfmap.symmetries import symmetry_matrices

DTYPES = [(torch.float32, 2e-6), (torch.float64, 1e-12)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_rotations(n: int, seed: int) -> torch.Tensor:
    """Orthogonal to float64's rounding."""
    return euler_to_matrix(torch.rand(n, 3, generator=generator(seed), dtype=torch.float64) * 180)


def awkward_eulers(dtype: torch.dtype) -> torch.Tensor:
    """Random angles, the poles, and angles within rounding of the poles."""
    random = torch.rand(200, 3, generator=generator(), dtype=torch.float64) * torch.tensor(
        [360.0, 180.0, 360.0]
    ) - torch.tensor([180.0, 0, 180])
    poles = torch.tensor(
        [
            [a, t, b]
            for a in (0.0, 33.0, -120.0)
            for t in (0.0, 1e-6, 1e-3, 90.0, 179.9999, 180.0)
            for b in (0.0, 77.0, -170.0)
        ]
    )
    return torch.cat([random, poles.double()]).to(dtype)


# --- conversions ----------------------------------------------------------------------------------


def test_euler_matrix_is_scipys_intrinsic_zyz() -> None:
    """A changes axes, so it is the transpose of the active rotation; scipy's capital letters are
    intrinsic."""
    angles = awkward_eulers(torch.float64)
    expected = Rotation.from_euler("ZYZ", angles.numpy(), degrees=True).as_matrix().swapaxes(1, 2)
    np.testing.assert_allclose(euler_to_matrix(angles).numpy(), expected, atol=1e-12)


def test_viewing_direction_is_the_third_row() -> None:
    a = euler_to_matrix(torch.tensor([30.0, 60.0, -75.0], dtype=torch.float64))
    polar, azimuth = np.radians(60), np.radians(30)
    expected = [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    np.testing.assert_allclose(a[2].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
def test_euler_round_trip_also_at_the_poles(dtype: torch.dtype, atol: float) -> None:
    a = euler_to_matrix(awkward_eulers(dtype))
    angles = matrix_to_euler(a)
    torch.testing.assert_close(euler_to_matrix(angles), a, atol=atol, rtol=0)
    assert ((angles[:, 1] >= 0) & (angles[:, 1] <= 180.001)).all()
    assert (angles.abs() <= 180.001).all()


def test_regular_angles_come_back() -> None:
    angles = torch.tensor(
        [[10.0, 20.0, 30.0], [-170.0, 90.0, 5.0], [100.0, 179.0, -100.0]], dtype=torch.float64
    )
    torch.testing.assert_close(matrix_to_euler(euler_to_matrix(angles)), angles)


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
def test_rotation_vectors_against_scipy(dtype: torch.dtype, atol: float) -> None:
    vectors = torch.randn(200, 3, generator=generator(1), dtype=torch.float64)
    vectors = torch.cat(
        [
            vectors,
            vectors[:20] * 1e-9,
            torch.zeros(1, 3),
            torch.tensor([[torch.pi, 0, 0], [0, -torch.pi, 0]]),
        ]
    ).to(dtype)
    expected = Rotation.from_rotvec(vectors.double().numpy()).as_matrix()
    matrices = rotation_vector_to_matrix(vectors)
    np.testing.assert_allclose(matrices.numpy(), expected, atol=atol)
    back = matrix_to_rotation_vector(matrices)
    torch.testing.assert_close(rotation_vector_to_matrix(back), matrices, atol=2 * atol, rtol=0)
    np.testing.assert_allclose(
        back[:200].numpy(), Rotation.from_matrix(expected[:200]).as_rotvec(), atol=30 * atol
    )
    torch.testing.assert_close(back[200:221], vectors[200:221], atol=atol, rtol=0)


def test_rotation_vector_is_accurate_near_180_degrees() -> None:
    axis = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64)
    vectors = axis * (torch.pi - torch.tensor([1e-3, 1e-6, 1e-9], dtype=torch.float64))[:, None]
    torch.testing.assert_close(
        matrix_to_rotation_vector(rotation_vector_to_matrix(vectors)), vectors, atol=1e-9, rtol=0
    )


def test_rotation_vector_gradient_at_identity() -> None:
    """d exp(v) / d v at 0 are the three cross-product matrices: local pose refinement starts
    there."""
    jacobian = torch.autograd.functional.jacobian(
        rotation_vector_to_matrix, torch.zeros(3, dtype=torch.float64)
    )
    x = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(jacobian[..., 0], x)
    torch.testing.assert_close(jacobian, -jacobian.transpose(0, 1))


def test_rotation_2d_is_the_in_plane_part() -> None:
    psi = torch.tensor([0.0, 30.0, -100.0, 270.0], dtype=torch.float64)
    angles = torch.stack([torch.zeros_like(psi), torch.zeros_like(psi), psi], -1)
    torch.testing.assert_close(rotation_2d(psi), euler_to_matrix(angles)[:, :2, :2])


def test_compose_keeps_full_precision_whatever_matmul_does() -> None:
    a, b = random_rotations(3000, generator(1)), random_rotations(3000, generator(2))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        product = compose(a, b)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(product, (a.double() @ b.double()).float(), atol=1e-6, rtol=0)


# --- distances and random rotations ---------------------------------------------------------------


def test_angular_distance_is_the_rotation_angle() -> None:
    a, b = exact_rotations(300, 4), exact_rotations(300, 5)
    expected = np.degrees(
        (Rotation.from_matrix(a.numpy()).inv() * Rotation.from_matrix(b.numpy())).magnitude()
    )
    np.testing.assert_allclose(angular_distance_deg(a, b).numpy(), expected, atol=1e-3)
    small = rotation_vector_to_matrix(
        torch.tensor([0.0, np.radians(0.01), 0.0], dtype=torch.float32)
    )
    assert angular_distance_deg(compose(a.float(), small), a.float()).sub(0.01).abs().max() < 1e-4


def test_angular_distance_modulo_symmetry() -> None:
    """Mates are at distance 0; a C4 turn by 50 degrees about z is one by 40."""
    group = symmetry_matrices("C4")
    a = exact_rotations(50, 6)
    for s in group:
        assert angular_distance_deg(a @ s, a, symmetry=group).max() < 1e-2
    turn = rotation_vector_to_matrix(torch.tensor([0, 0, np.radians(50)]))
    torch.testing.assert_close(
        angular_distance_deg(a @ turn, a, symmetry=group),
        torch.full((50,), 40.0, dtype=torch.float64),
    )


def test_random_rotations_are_uniform() -> None:
    """Moments of the uniform distribution: mean A = 0, mean A_ij^2 = 1/3, mean angle pi/2 + 2/pi
    radians; and reproducible."""
    a = random_rotations(20000, generator(7))
    assert a.mean(0).abs().max() < 0.02
    assert (a**2).mean(0).sub(1 / 3).abs().max() < 0.01
    mean_angle = angular_distance_deg(a, torch.eye(3)).mean()
    assert mean_angle == pytest.approx(np.degrees(np.pi / 2 + 2 / np.pi), abs=1)
    torch.testing.assert_close(torch.linalg.det(a), torch.ones(20000))
    assert torch.equal(a, random_rotations(20000, generator(7)))


# --- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "count", "step_deg"), [(0, 72, 60), (1, 576, 30), (2, 4608, 15), (3, 36864, 7.5)]
)
def test_grid_counts_are_relions(order: int, count: int, step_deg: float) -> None:
    grid = orientation_grid(order)
    assert grid.rotations.shape == (count, 3, 3)
    assert grid.rotations.dtype == torch.float32
    assert torch.equal(grid.cell_id, torch.arange(count))
    assert grid.step_deg == step_deg == grid_step_deg(order)
    assert cell_fraction(order) * count == pytest.approx(1)
    identity = torch.eye(3).expand(count, 3, 3)
    torch.testing.assert_close(
        compose(grid.rotations, grid.rotations.mT), identity, atol=1e-6, rtol=0
    )
    assert torch.equal(rotations_of(grid.cell_id[5:70], order), grid.rotations[5:70])


def test_grid_covers_so3_and_is_balanced() -> None:
    """Every rotation lies within a step of some centre, and the cells hold equal shares of random
    rotations."""
    grid = orientation_grid(1)
    a = random_rotations(57600, generator(8))
    nearest = torch.stack([angular_distance_deg(grid.rotations, r).min() for r in a[:300]])
    assert nearest.max() < 0.85 * grid.step_deg
    held = torch.bincount(cell_of(a, 1), minlength=576)
    chi_squared = ((held - 100.0) ** 2 / 100).sum()  # 575 degrees of freedom
    assert chi_squared < 575 + 5 * np.sqrt(2 * 575)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_children_partition_the_parents(order: int) -> None:
    grid = orientation_grid(order)
    child = children(grid.cell_id, order)
    assert torch.equal(child.flatten().sort().values, torch.arange(8 * len(grid.cell_id)))
    assert torch.equal(parent(child, order + 1), grid.cell_id[:, None].expand(-1, 8))
    a = random_rotations(2000, generator(9))
    assert torch.equal(parent(cell_of(a, order + 1), order + 1), cell_of(a, order)), (
        "a rotation's fine cell is a child of its coarse cell"
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_children_surround_the_parents_centre(order: int) -> None:
    """Also at the poles: all 8 within 0.65 of a step, their mean at the parent's centre, the pairs
    half a step of psi apart."""
    cells = torch.arange(0, 72 * 8**order, 37)
    centres, child = rotations_of(cells, order), rotations_of(children(cells, order), order + 1)
    assert angular_distance_deg(child, centres[:, None]).max() < 0.65 * grid_step_deg(order)
    mean = torch.linalg.svd(child.double().mean(1))
    assert angular_distance_deg(mean.U @ mean.Vh, centres.double()).max() < 0.15 * grid_step_deg(
        order
    )
    pairs = child.unflatten(1, (4, 2))
    half_step = rotation_2d(torch.tensor(grid_step_deg(order) / 2))
    in_plane = compose(pairs[:, :, 1], pairs[:, :, 0].mT)
    torch.testing.assert_close(
        in_plane[..., :2, :2], half_step.expand(*in_plane.shape[:2], 2, 2), atol=1e-5, rtol=0
    )


def test_cell_of_a_centre_is_the_cell() -> None:
    grid = orientation_grid(2)
    assert torch.equal(cell_of(grid.rotations, 2), grid.cell_id)


def test_perturbation_turns_the_whole_grid() -> None:
    turn = grid_perturbation(15.0, generator(10))
    assert 0 < angular_distance_deg(turn, torch.eye(3)) <= 7.5
    grid, turned = orientation_grid(2), orientation_grid(2, perturbation=turn)
    torch.testing.assert_close(turned.rotations, compose(grid.rotations, turn), atol=1e-6, rtol=0)
    assert torch.equal(cell_of(compose(turned.rotations, turn.T), 2), turned.cell_id)


def test_in_plane_grid_divides_the_circle() -> None:
    torch.testing.assert_close(in_plane_grid(90.0), torch.tensor([0.0, 90.0, 180.0, 270.0]))
    assert len(in_plane_grid(5.0)) == 72
    assert len(in_plane_grid(7.0)) == 52  # the largest step up to 7 degrees is 360 / 52
    with pytest.raises(
        InputError, match=r"angular step: expected degrees above 0 and up to 360, found 0"
    ):
        in_plane_grid(0.0)
