"""Ab initio maps stand in frames and hands of their own: laid on their symmetry axes, classes on
one another, runs on the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import Alignment, align, find_axes, symmetrised
from halfmap.engine.state import Poses, State
from halfmap.resolution import Curve, fourier_shell_correlation, resolution_at


def align_to_symmetry_axes(
    state: State, symmetry: Float[Tensor, "G 3 3"], *, diameter_px: float
) -> tuple[State, tuple[float, ...]]:
    """Each map, made without symmetry, laid with its axes where the group has them and averaged
    over its mates, its poses with it; and each map's correlation with its mates before that."""
    references, poses, alike = state.references.clone(), state.poses, []
    for k, volume in enumerate(state.references[0]):
        found = find_axes(volume, symmetry, radius=state.radius, diameter_px=diameter_px)
        references[0, k] = symmetrised(found.apply_to_map(volume), symmetry)
        poses = _poses_follow_map(poses, k, found)
        alike.append(found.correlation)
    return replace(state, references=references, poses=poses), tuple(alike)


def align_classes_to_first(state: State, *, diameter_px: float) -> State:
    """Each map laid onto the first, of whichever hand agrees better with it, its poses with it."""
    references, poses = state.references.clone(), state.poses
    for k, volume in enumerate(state.references[0, 1:], start=1):
        found = align(volume, references[0, 0], radius=state.radius, diameter_px=diameter_px)
        references[0, k] = found.apply_to_map(volume)
        poses = _poses_follow_map(poses, k, found)
    return replace(state, references=references, poses=poses)


def _poses_follow_map(poses: Poses, k: int, found: Alignment) -> Poses:
    """Poses in which those of class k follow their map."""
    mine = torch.nonzero(poses.classes == k)[:, 0]
    own = poses.select_images(mine)
    rotations, shift_px = found.apply_to_poses(own.rotations, own.shift_px)
    return poses.put(mine, replace(own, rotations=rotations, shift_px=shift_px))


@dataclass(frozen=True)
class Agreement:
    """Which of another run's maps agrees best with a map, whether its mirror image does, the map
    laid onto it, and their FSC."""

    other: int
    mirrored: bool
    laid: Float[Tensor, "N N N"]
    curve: Curve

    @property
    def resolutions_angstrom(self) -> tuple[float, float]:
        """Where the FSC falls below 0.5, and below 0.143."""
        return resolution_at(self.curve, 0.5), resolution_at(self.curve, 0.143)


def agreement(
    volume: Float[Tensor, "N N N"],
    others: Sequence[Float[Tensor, "N N N"]],
    *,
    radius: int,
    diameter_px: float,
    pixel_size_angstrom: float,
) -> Agreement:
    """Lay each of the other maps onto `volume`, whatever its frame and hand; the FSC of the one
    that agrees best, on all shells."""
    found = [align(other, volume, radius=radius, diameter_px=diameter_px) for other in others]
    best = max(range(len(others)), key=lambda k: found[k].correlation)
    laid = found[best].apply_to_map(others[best])
    return Agreement(
        best,
        found[best].mirrored,
        laid,
        fourier_shell_correlation(volume, laid, pixel_size_angstrom=pixel_size_angstrom),
    )
