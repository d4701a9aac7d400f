"""The radius grows on correlation beyond chance."""

from dataclasses import replace

import pytest
import torch

from halfmap.engine.particle_values import recentred_poses
from halfmap.engine.problem import Problem
from halfmap.engine.state import identity_poses
from halfmap.methods.class_centring import FARTHEST_CENTRE, bounded_centring_px
from halfmap.methods.reference_update import (
    chance_correlation,
    compared_sums,
    evident_shell,
)
from halfmap.projection import empty_sums
from halfmap.reconstruction import grid_shells
from halfmap.resolution import Curve, shell_correlations
from halfmap.so3 import rotation_2d
from halfmap.symmetries import SymmetryOperators, point_group

BOX = 33  # odd: the operators of C4 and O permute its voxels


def _evident(correlation: torch.Tensor, operators: int, share: float = 0.2) -> float:
    n = len(correlation)
    curve = Curve(correlation=correlation, box=2 * (n - 1), pixel_size_angstrom=1.0)
    chance = chance_correlation(n, dimensions=3, share=share, operators=operators)
    return evident_shell(curve, chance, 0.143)


def _symmetrised(volumes: torch.Tensor, group: SymmetryOperators) -> torch.Tensor:
    """The mean over operators that permute and flip axes."""
    total = torch.zeros_like(volumes)
    for matrix in group.rotations.round().long():
        reversed_axes = matrix.flip(0, 1)  # arrays are z, y, x
        axes = [int(row.abs().argmax()) for row in reversed_axes]
        moved = volumes.permute(0, *(1 + a for a in axes))
        total += moved.flip([1 + i for i, row in enumerate(reversed_axes) if row.sum() < 0])
    return total / len(group)


@pytest.mark.parametrize("name", ["C1", "C4", "O"])
def test_noise_correlates_with_noise_as_much_as_chance_says(name):
    """Shells 4 to 12 of pairs of noise volumes with the symmetry, three shells averaged."""
    group = point_group(name)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(60, BOX, BOX, BOX, generator=generator)
    halves = _symmetrised(noise, group)
    curves = shell_correlations(halves[:30], halves[30:]).float()
    mean = torch.nn.functional.avg_pool1d(curves[:, None], 3, stride=1, padding=1)[:, 0]
    found = mean[:, 4:13].square().mean().sqrt()
    chance = chance_correlation(curves.shape[1], dimensions=3, share=1.0, operators=len(group))
    expected = chance[4:13].square().mean().sqrt()
    assert float(found / expected) == pytest.approx(1, abs=0.25)


def test_a_chance_rise_beyond_the_fall_does_not_count():
    correlation = torch.ones(17)
    correlation[8:] = 0.0
    correlation[12] = 0.5
    assert 5 <= _evident(correlation, 1) <= 8


def test_few_samples_need_more_correlation():
    """0.4 on shells 4 to 6: many independent coefficients without symmetry, hardly ten with O."""
    correlation = torch.ones(17)
    correlation[4:7] = 0.4
    correlation[7:] = 0
    assert _evident(correlation, 1) > _evident(correlation, 24) >= 2


def test_all_shells_count_where_all_agree_and_none_where_none_does():
    assert _evident(torch.ones(17), 24) == 16
    assert _evident(torch.zeros(17), 1) == 0


def test_a_class_is_not_moved_out_of_its_images():
    """One that asks for three pixels again and again stops at the bound, turned particles too; one
    beyond it may come back; a class of good particles is moved as it asks."""
    n, box = 40, 32
    poses = replace(
        identity_poses(torch.arange(n) % 2),
        rotations=torch.nn.functional.pad(rotation_2d(torch.arange(n) * 25.0), (0, 1, 0, 1)),
    )
    wanted = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    moved = torch.zeros(2, 2)
    for iteration in range(6):
        step = bounded_centring_px(wanted, poses, box)
        assert torch.equal(step[1], wanted[1])
        moved, poses = moved + step, recentred_poses(poses, step)
        assert moved[0].norm() <= FARTHEST_CENTRE * box, iteration
    assert moved[0].tolist() == [6.0, 0.0]  # a step more would be 9 of the 8 allowed
    far = recentred_poses(poses, torch.tensor([[20.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(bounded_centring_px(-wanted, far, box)[0], -wanted[0])
    assert not bounded_centring_px(wanted, far, box)[0].any()


@pytest.mark.parametrize("folds", [1, 2])
def test_halves_are_joined_near_the_middle_and_left_as_they_were(folds):
    """Up to shell 3 each set is the mean with the other half's sums; elsewhere its own; and the
    parts are the same afterwards."""
    generator, parts = torch.Generator().manual_seed(5), []
    for _ in range(2 * folds):
        sums = empty_sums(1, 16, 6, 3)
        sums.num.copy_(torch.randn(sums.num.shape, generator=generator, dtype=torch.complex64))
        sums.den.copy_(torch.rand(sums.den.shape, generator=generator))
        parts.append(sums)
    before = [part.num.clone() for part in parts]
    near = grid_shells(parts[0]) <= 3
    halves = [sum(before[half * folds : (half + 1) * folds]) for half in range(2)]
    problem = object.__new__(Problem)  # of which two fields are asked for
    for name, value in {"matched_to": "own", "n_folds": folds}.items():
        object.__setattr__(problem, name, value)
    for p, sums in enumerate(compared_sums(problem, parts, 3.0, folds)):
        half, fold = p // folds, p % folds
        own = halves[half] - (before[p] if folds > 1 else 0)
        assert fold < folds
        torch.testing.assert_close(sums.num[:, ~near], own[:, ~near])
        torch.testing.assert_close(sums.num[:, near], (own + halves[1 - half])[:, near] / 2)
    assert all(torch.equal(part.num, was) for part, was in zip(parts, before, strict=True))
