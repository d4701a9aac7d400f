"""The two sums with their symmetry mates, once an iteration, whatever the order of the group.

A slice seen at A is seen at A S as well, for every operator `x -> S x + t` of the group. Insertion
is linear, so that mates can be added when all slices are in:

    num(k) <- sum_g exp(2 pi i S_g k . t_g / N) num(S_g k)        den(k) <- sum_g den(S_g k)

Operators that turn the grid's axes into each other (all of C2, C4, D2, D4 and O, twelve of I's 60)
only move cells: the result is that of inserting each slice at all of its mates, and is made at one
cell for all that they move it to. Others read between
cells, trilinearly, which fades density far from the middle a second time, by as much as insertion
does; `grid_to_density` undoes it. `tests/test_symmetrisation.py` compares the maps with those of
inserting all mates; what either costs shows in `python benchmarks/run.py symmetry`.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from halfmap import kernels
from halfmap.gridding import PADDING
from halfmap.projection import Sums
from halfmap.symmetries import SymmetryOperators

EXACT = 1e-5  # of a rotation's element, by which it may differ from 0, 1 or -1 by rounding


def symmetrised(sums: Sums, symmetry: SymmetryOperators) -> Sums:
    """The sums of all mates, from those of the slices alone (`hermitian_mates` added).

    `sums` must not be used afterwards: its memory may hold the result.
    """
    if len(symmetry) == 1:
        return sums
    rotations = symmetry.rotations.to(sums.den)
    moved_px = symmetry.translations_px.to(sums.den)
    exact = only_moves_cells(rotations)
    rotations = torch.where(exact[:, None, None], rotations.round(), rotations)
    num, den, share = sums.num, sums.den, float((~exact).float().mean())
    none = (0, 0, 0, 0)
    result = replace(sums, num=num.new_empty(none), den=den.new_empty(none), interpolated=share)
    del sums  # each grid is given back when that of its mates is there
    fill = rotations[:1] if bool(moved_px.any()) else rotations[exact]
    for own, shifts in _factors(rotations, moved_px, exact):
        num = _of_all_mates(num, own, shifts, result, fill)
        den = _of_all_mates(den, own, shifts, result, fill)
    return replace(result, num=num, den=den)


def only_moves_cells(rotations: Float[Tensor, "G 3 3"]) -> Bool[Tensor, " G"]:
    """Which rotations turn the grid's axes into each other."""
    return ((rotations - rotations.round()).abs() < EXACT).flatten(1).all(1)


def _factors(
    rotations: Float[Tensor, "G 3 3"], moved_px: Float[Tensor, "G 3"], exact: Bool[Tensor, " G"]
) -> list[tuple[Tensor, Tensor]]:
    """Operators whose sums, one after the other, are that of all: the subgroup H that only moves
    cells, then one of each coset H S. 12 + 5 in place of 60 for I."""
    subgroup = rotations[exact]
    if bool(moved_px.any()) or len(subgroup) in (1, len(rotations)):
        return [(rotations, moved_px)]
    cosets: list[Tensor] = []
    for s in rotations:
        mates = subgroup @ s
        if not any(bool(((mates - c).abs() < 1e-3).flatten(1).all(1).any()) for c in cosets):
            cosets.append(s)
    of_each = torch.stack(cosets)
    return [(part, moved_px[: len(part)]) for part in (subgroup, of_each)]


def _of_all_mates(
    grid: Tensor, rotations: Tensor, moved_px: Tensor, sums: Sums, fill: Tensor
) -> Tensor:
    turn = 2 * torch.pi / (PADDING * sums.box)
    reach = PADDING * sums.radius + 1.5  # cells that lie nearest to a shell of the radius
    return kernels.symmetrised(grid, rotations, moved_px, turn=turn, reach=reach, fill=fill)
