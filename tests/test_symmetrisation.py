"""Symmetrised sums against slices inserted at all of their mates."""

from dataclasses import replace

import pytest
import torch

from halfmap.fourier import half_plane
from halfmap.masks import soft_sphere
from halfmap.projection import (
    Sums,
    empty_sums,
    extract_slices,
    hermitian_mates,
    insert_slices,
    prepare_references,
)
from halfmap.reconstruction import grid_shells, shell_weight, wiener_update
from halfmap.resolution import shell_correlations
from halfmap.so3 import compose, random_rotations
from halfmap.symmetries import SymmetryOperators, expand, point_group, rotations_alone
from halfmap.symmetrisation import symmetrised

BOX, RADIUS = 32, 12
PLANE = half_plane(BOX, RADIUS)


def _blob(place: torch.Tensor, width: float) -> torch.Tensor:
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    away = torch.stack([x, y, z], -1) - place
    return torch.exp(-away.square().sum(-1) / (2 * width**2))


def _symmetric_density(operators: SymmetryOperators) -> torch.Tensor:
    """Three blobs and all of their mates."""
    places = torch.tensor([[5.0, 3.0, -4.0], [-3.0, 1.0, 6.0], [4.0, -8.0, 5.0]])
    volume = torch.zeros(BOX, BOX, BOX)
    for weight, place in zip((1.0, 0.6, 0.8), places, strict=True):
        mates = operators.rotations @ place + operators.translations_px
        for mate in mates:
            volume = volume + weight * _blob(mate, 1.5)
    return volume


def _rotations(n: int) -> torch.Tensor:
    return random_rotations(n, torch.Generator().manual_seed(1))


def _sums(slices: torch.Tensor, weights: torch.Tensor, rotations: torch.Tensor) -> Sums:
    sums = empty_sums(1, BOX, RADIUS, 3, device=slices.device)
    insert_slices(sums, slices, weights, rotations, PLANE)
    return hermitian_mates(sums)


def _inside(sums: Sums) -> Sums:
    """The cells that maps are made of."""
    inside = grid_shells(sums) <= sums.radius
    return replace(sums, num=sums.num * inside, den=sums.den * inside)


def _noisy(rotations: torch.Tensor, volume: torch.Tensor, noise: float = 1.0) -> torch.Tensor:
    slices = extract_slices(prepare_references(volume[None], RADIUS), rotations, PLANE)
    g = torch.Generator().manual_seed(2)
    return slices + noise * slices.std() * torch.randn(
        slices.shape, dtype=slices.dtype, generator=g
    )


def _of_all_mates(slices, weights, rotations, operators) -> Sums:
    mates = expand(rotations, operators.rotations).flatten(0, 1)
    n = len(operators)
    return _sums(slices.repeat_interleave(n, 0), weights.repeat_interleave(n, 0), mates)


@pytest.mark.parametrize("group", ["C2", "C4", "D2", "D4", "O"])
def test_groups_that_move_cells_give_the_sums_of_all_mates(group):
    operators, rotations = point_group(group), _rotations(6)
    slices = _noisy(rotations, _symmetric_density(point_group("C1")))
    weights = torch.rand(slices.shape, generator=torch.Generator().manual_seed(3))
    ours = _inside(symmetrised(_sums(slices, weights, rotations), operators))
    theirs = _inside(_of_all_mates(slices, weights, rotations, operators))
    assert ours.interpolated == 0
    assert (ours.num - theirs.num).norm() < 1e-4 * theirs.num.norm()
    assert (ours.den - theirs.den).norm() < 1e-4 * theirs.den.norm()
    alone = _inside(_sums(slices, weights, rotations))  # without its mates it is something else
    assert (alone.den - theirs.den).norm() > 0.2 * theirs.den.norm()


@pytest.mark.parametrize("group", ["C3", "D7", "T", "I1"])
def test_maps_are_as_good_as_with_all_mates_inserted(group):
    """By the truth, shell by shell; and as bright at the particle's rim beside its middle."""
    operators, rotations = point_group(group), _rotations(150)
    truth = _symmetric_density(operators)
    slices = _noisy(rotations, truth)
    weights = torch.ones(slices.shape)
    mask = soft_sphere(BOX, radius_px=0.4 * BOX, edge_px=4)

    def map_of(sums: Sums) -> torch.Tensor:
        return wiener_update(sums, 1e-2 * shell_weight(sums))[0] * mask

    ours = map_of(symmetrised(_sums(slices, weights, rotations), operators))
    theirs = map_of(_of_all_mates(slices, weights, rotations, operators))
    alone = map_of(_sums(slices, weights, rotations))
    masked = truth * mask
    fsc = [shell_correlations(m[None], masked[None])[0, 1:RADIUS] for m in (ours, theirs, alone)]
    assert (fsc[0] - fsc[1]).mean() > -0.003
    assert (fsc[0] - fsc[2]).mean() > 0.02  # mates tell more than one copy does
    outer = mask * (1 - soft_sphere(BOX, radius_px=0.25 * BOX, edge_px=2))
    inner = soft_sphere(BOX, radius_px=0.22 * BOX, edge_px=2)
    rim, other = ((m * masked * outer).sum() / (m * masked * inner).sum() for m in (ours, theirs))
    if group != "I1":  # whose copies fill the rim: all mates inserted are 4 % too faint there
        assert float(rim) == pytest.approx(float(other), rel=0.02)


def test_a_helix_keeps_its_rise():
    """A two-fold axis beside the centre, `x -> S x + t` with t = c - S c."""
    turn, axis = torch.diag(torch.tensor([-1.0, -1.0, 1.0])), torch.tensor([2.0, -1.5, 0.0])
    operators = SymmetryOperators(
        torch.stack([torch.eye(3), turn]), torch.stack([torch.zeros(3), axis - turn @ axis])
    )
    volume, rotations = _symmetric_density(operators), _rotations(7)
    seen, seen_at_mate = (
        extract_slices(prepare_references(volume[None], RADIUS), a, PLANE)
        for a in (rotations, compose(rotations, turn))
    )
    weights = torch.ones(seen.shape)
    ours = _inside(symmetrised(_sums(seen, weights, rotations), operators))
    both = torch.cat([rotations, compose(rotations, turn)])
    theirs = _inside(_sums(torch.cat([seen, seen_at_mate]), weights.repeat(2, 1), both))
    assert (ours.num - theirs.num).norm() < 0.04 * theirs.num.norm()
    torch.testing.assert_close(ours.den, theirs.den, rtol=1e-3, atol=1e-4)
    turned = rotations_alone(operators.rotations)  # without the translation it is not so
    wrong = _inside(symmetrised(_sums(seen, weights, rotations), turned))
    assert (wrong.num - theirs.num).norm() > 0.2 * theirs.num.norm()
