"""Laying one map onto another, whatever its frame and hand; finding the axes of a map that was made
without its symmetry.

Both are searches for a rotation Q and a shift t: the map `V'(x) = V(Q x + t)` is compared with
another map, or with its own symmetry mates `V'(S x)`. Maps are compared on central slices B in
random directions, where V' has V's slice at A = B Q^T, moved by (A t)_xy. The score is the
correlation on shells 1..r, all shells whitened: the mean FSC weighted by the shells' sizes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.fourier import HalfPlane, half_plane, shell_mean, shift_phases
from halfmap.likelihood import squared_modulus
from halfmap.projection import FourierReferences, extract_slices, prepare_references
from halfmap.so3 import (
    compose,
    grid_step_deg,
    orientation_grid,
    radius_of_step,
    random_rotations,
    rotation_vector_to_matrix,
)

PLANES = 16  # directions of slices on which maps are compared
_GRID_ORDER = 2  # rotations 15 degrees apart
_FEWEST_SHELLS = 3  # on which the grid is compared, however small the box
_STARTS = 24  # best of the grid that are climbed
_MATES = 6  # of a point group that are compared, at most
_LEAST_STEP_DEG = 0.1
_SLICES_AT_ONCE = 40_000

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Alignment:
    """`V'(x) = V(Q x + t)`, x in pixels from the centre; where `mirrored`, V stands for the mirror
    image V(-x) of the map. `correlation` tells how alike the two maps are, or the map and its
    mates."""

    rotation: Float[Tensor, "3 3"]
    shift_px: Float[Tensor, " 3"]
    mirrored: bool
    correlation: float

    def apply_to_map(self, volume: Float[Tensor, "N N N"]) -> Float[Tensor, "N N N"]:
        """V' by cubic splines, zero where V has nothing."""
        from scipy.ndimage import affine_transform

        volume = mirror(volume) if self.mirrored else volume
        turn = self.rotation.cpu().double().numpy()[::-1, ::-1]  # z, y, x
        centre = np.full(3, volume.shape[-1] // 2, float)
        offset = centre - turn @ centre + self.shift_px.cpu().double().numpy()[::-1]
        moved = affine_transform(volume.cpu().double().numpy(), turn, offset=offset, order=3)
        return torch.from_numpy(moved).to(volume)

    def apply_to_poses(
        self, rotations: Float[Tensor, "n 3 3"], shift_px: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 2"]]:
        """Poses that show V' as the given ones show the map: `A Q`, centred by `t_i - (A t)_xy`."""
        if self.mirrored:
            rotations = mirror_poses(rotations)
        return compose(rotations, self.rotation.to(rotations)), shift_px - (
            rotations @ self.shift_px.to(rotations)
        )[:, :2]


@takes_arrays
def mirror(volume: Float[Tensor, "*b N N N"]) -> Float[Tensor, "*b N N N"]:
    """The other hand, V(-x). Inversion commutes with every rotation: symmetry axes stay where they
    are.

    >>> volume = torch.rand(1, 8, 8, 8)
    >>> torch.equal(mirror(mirror(volume)), volume)
    True
    """
    inverted = volume.flip((-3, -2, -1))
    return (
        inverted.roll((1, 1, 1), (-3, -2, -1)) if volume.shape[-1] % 2 == 0 else inverted
    )  # the centre N // 2 stays where it is


@takes_arrays
def mirror_poses(rotations: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """Orientations that show the same projections of the other hand: A turned by 180 degrees in the
    plane."""
    return rotations.new_tensor([-1.0, -1.0, 1.0])[:, None] * rotations


@takes_arrays
def align(
    volume: Float[Tensor, "N N N"],
    onto: Float[Tensor, "N N N"],
    *,
    radius: int,
    diameter_px: float,
    either_hand: bool = True,
) -> Alignment:
    """How `volume` must be laid to agree best with `onto` on shells up to `radius`; of either hand,
    if asked for, the better.

    Raises:
        InputError: the maps differ in size.
    """
    volume, onto = volume.cpu(), onto.cpu()  # a few thousand small slices: not worth an accelerator
    hands = [
        _aligned(v, onto, radius, diameter_px)
        for v in ([volume, mirror(volume)] if either_hand else [volume])
    ]
    best = max(range(len(hands)), key=lambda h: hands[h].correlation)
    return replace(hands[best], mirrored=best == 1)


def _aligned(volume: Tensor, onto: Tensor, radius: int, diameter_px: float) -> Alignment:
    fixed, directions = prepare_references(onto[None], radius), slice_directions()
    moving = prepare_references(volume[None], radius)
    middle, target = centre_of_mass_px(volume), centre_of_mass_px(onto)

    def score_on(plane: HalfPlane) -> Score:
        wanted = extract_slices(fixed, directions, plane)

        def score(q: Tensor, t: Tensor) -> Tensor:
            return slice_correlation(
                moved_slices(moving, q, t, directions, plane), wanted[None], plane
            )

        return score

    def shift_for(q: Tensor) -> Tensor:
        return middle - (q @ target)

    return _best(score_on, shift_for, radius, onto.shape[-1], diameter_px)


@takes_arrays
def find_axes(
    volume: Float[Tensor, "N N N"],
    matrices: Float[Tensor, "G 3 3"],
    *,
    radius: int,
    diameter_px: float,
) -> Alignment:
    """How a map must be laid to have its symmetry axes where the group has them; `correlation` is
    that with its symmetry mates, on shells up to `radius`."""
    moving, directions = prepare_references(volume.cpu()[None], radius), slice_directions()
    mates = matrices[1:].float().cpu()
    if len(mates) > _MATES:
        mates = mates[
            torch.randperm(len(mates), generator=torch.Generator().manual_seed(0))[:_MATES]
        ]
    middle = centre_of_mass_px(volume)

    def score_on(plane: HalfPlane) -> Score:
        def score(q: Tensor, t: Tensor) -> Tensor:
            own = moved_slices(moving, q, t, directions, plane)
            return torch.stack(
                [
                    slice_correlation(
                        moved_slices(moving, q, t, compose(directions, m), plane), own, plane
                    )
                    for m in mates
                ]
            ).mean(0)

        return score

    one_axis = bool(
        (mates[:, 2, 2] > 1 - 1e-6).all()
    )  # then V' may be turned about z, and its mates agree as well
    return _best(
        score_on,
        lambda q: middle.expand(len(q), 3),
        radius,
        volume.shape[-1],
        diameter_px,
        by_axis=one_axis,
    )


@takes_arrays
def symmetrised(
    volume: Float[Tensor, "N N N"], matrices: Float[Tensor, "G 3 3"]
) -> Float[Tensor, "N N N"]:
    """The mean of a map over its symmetry mates, V(S x), by cubic splines."""
    mates = [
        Alignment(m.float(), torch.zeros(3), False, 1.0).apply_to_map(volume) for m in matrices[1:]
    ]
    return torch.stack([volume, *mates]).mean(0)


@takes_arrays
def centre_of_mass_px(volume: Float[Tensor, "N N N"]) -> Float[Tensor, " 3"]:
    """Centre (x, y, z), from the box's, of what is brighter than a tenth of the maximum."""
    mass = (volume - 0.1 * volume.max()).clamp(min=0).cpu()
    axis = torch.arange(volume.shape[-1], dtype=mass.dtype) - volume.shape[-1] // 2
    moments = [(mass.sum(dims) * axis).sum() for dims in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(moments) / mass.sum().clamp(min=1e-20)


# --- the search -----------------------------------------------------------------------------------


def slice_directions(planes: int = PLANES) -> Float[Tensor, "m 3 3"]:
    """Directions B of the slices on which maps are compared, the same at every call."""
    return random_rotations(planes, torch.Generator().manual_seed(0))


def moved_slices(
    moving: FourierReferences,
    q: Float[Tensor, "g 3 3"],
    t: Float[Tensor, "g 3"],
    directions: Float[Tensor, "m 3 3"],
    plane: HalfPlane,
) -> Complex[Tensor, "g m J"]:
    """Slices of V' in each direction B, for each Q and t."""
    rotations = compose(directions, q[:, None].mT)
    device = moving.grid.device
    slices = extract_slices(moving, rotations.flatten(0, 1).to(device), plane).view(
        len(q), len(directions), -1
    )
    away = (rotations @ t[:, None, :, None])[..., :2, 0]
    return slices * shift_phases(-away.to(device), plane)


def slice_correlation(
    a: Complex[Tensor, "g m J"], b: Complex[Tensor, "#g m J"], plane: HalfPlane
) -> Float[Tensor, " g"]:
    """Mean FSC of sets of m slices over shells 1.., weighted by the shells' sizes."""
    n = plane.radius + 1

    def by_shell(values: Tensor) -> Tensor:
        return shell_mean(values.sum(1), plane.shell, n)

    cross = by_shell((a * b.conj()).real)
    fsc = cross / (by_shell(squared_modulus(a)) * by_shell(squared_modulus(b))).sqrt().clamp(
        min=1e-20
    )
    size = torch.bincount(plane.shell, minlength=n).float()
    return (fsc[:, 1:] @ size[1:] / size[1:].sum()).cpu()


def _best(
    score_on: Callable[[HalfPlane], Score],
    shift_for: Callable[[Tensor], Tensor],
    radius: int,
    box: int,
    diameter_px: float,
    *,
    by_axis: bool = False,
) -> Alignment:
    """The best rotation and shift: a grid of rotations on few shells, the best of them climbed
    there, the best of these on all shells. `by_axis`: only where the z axis goes matters, and the
    starts differ in that."""
    few = min(
        radius,
        max(_FEWEST_SHELLS, radius_of_step(grid_step_deg(_GRID_ORDER), box, diameter_px / 2)),
    )
    coarse, score = half_plane(box, few), score_on(half_plane(box, few))
    grid = orientation_grid(_GRID_ORDER).rotations
    size = max(1, _SLICES_AT_ONCE // PLANES)
    values = torch.cat([score(q, shift_for(q)) for q in grid.split(size)])
    if by_axis:  # in-plane angles of one direction lie side by side in the grid
        psi = 6 * 2**_GRID_ORDER
        best = values.view(-1, psi).max(1)
        grid, values = (
            grid.view(-1, psi, 3, 3)[torch.arange(len(best.indices)), best.indices],
            best.values,
        )
    starts = grid[torch.topk(values, _STARTS).indices]
    q, t, value = climb(
        score, starts, shift_for(starts), step_deg=7.5, step_px=box / (8 * coarse.radius)
    )
    last = score_on(half_plane(box, radius))
    top = torch.topk(value, 4).indices
    q, t, value = climb(last, q[top], t[top], step_deg=3.75, step_px=box / (16 * coarse.radius))
    winner = int(value.argmax())
    return Alignment(q[winner], t[winner], False, float(value[winner]))


def climb(
    score: Score,
    q: Float[Tensor, "n 3 3"],
    t: Float[Tensor, "n 3"],
    *,
    step_deg: float,
    step_px: float,
    least_step_deg: float = _LEAST_STEP_DEG,
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Compass search: each start moves to the best of its 12 neighbours, a step along or against
    each of six axes, and halves its steps where none is better, down to the least."""
    sides = torch.cat([torch.eye(6), -torch.eye(6)])
    q, t = q.clone(), t.clone()
    value, scale = score(q, t), torch.ones(len(q))
    while bool((active := torch.nonzero(scale * step_deg > least_step_deg)[:, 0]).numel()):
        move = sides * scale[active, None, None]
        turned = compose(
            rotation_vector_to_matrix(move[..., :3] * math.radians(step_deg)), q[active, None]
        )
        moved = t[active, None] + move[..., 3:] * step_px
        neighbours = score(turned.flatten(0, 1), moved.flatten(0, 1)).view(len(active), -1)
        best = neighbours.max(1)
        better = best.values > value[active] + 1e-6
        row = torch.arange(len(active))
        won, place = active[better], best.indices[better]
        q[won], t[won], value[won] = (
            turned[row[better], place],
            moved[row[better], place],
            best.values[better],
        )
        scale[active[~better]] /= 2
    return q, t, value
