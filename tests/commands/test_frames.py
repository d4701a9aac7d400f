"""Maps without a frame of their own: laid on their axes, and onto one another; poses follow."""

from dataclasses import replace

import pytest
import torch

from halfmap.alignment import Alignment, symmetrised
from halfmap.commands._frames import agreement, align_classes_to_first, align_to_symmetry_axes
from halfmap.engine.state import State, known_poses
from halfmap.fourier import half_plane, lowpass, shift_phases
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.phantom import phantom
from halfmap.so3 import random_rotations
from halfmap.symmetries import symmetry_matrices

BOX, PIXEL, RADIUS, N = 40, 5.0, 10, 12


def _map(symmetry: str) -> torch.Tensor:
    return lowpass(phantom(BOX, PIXEL, symmetry=symmetry), 20.0, PIXEL, dimensions=3).clamp(min=0)


def _moved(seed: int, volume: torch.Tensor, mirrored: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return Alignment(
        random_rotations(1, generator)[0], torch.randn(3, generator=generator), mirrored, 1.0
    ).apply_to_map(volume)


def _state(volumes: torch.Tensor) -> State:
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(N) % len(volumes)
    poses = known_poses(
        random_rotations(N, generator), torch.randn(N, 2, generator=generator), classes
    )
    return State(
        iteration=36,
        references=volumes[None],
        poses=poses,
        radius=RADIUS,
        curves=torch.zeros(len(volumes), 8),
    )


def _views(state: State) -> torch.Tensor:
    """What the particles look like in their images."""
    plane = half_plane(BOX, 8)
    slices = extract_slices(
        prepare_references(state.references[0], 8),
        state.poses.rotations,
        plane,
        classes=state.poses.classes,
    )
    return slices * shift_phases(-state.poses.shift_px, plane)


def _alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_each_map_is_laid_on_its_axes_and_its_poses_with_it():
    lost = torch.stack([_moved(2, _map("C4")), _moved(3, _map("C4"))])
    before = _state(lost)
    after, alike = align_to_symmetry_axes(before, symmetry_matrices("C4"), diameter_px=30.0)
    assert min(alike) > 0.95
    for k in range(2):
        assert (
            _alike(
                symmetrised(after.references[0, k], symmetry_matrices("C4")), after.references[0, k]
            )
            > 0.999
        )
        assert _alike(symmetrised(lost[k], symmetry_matrices("C4")), lost[k]) < 0.9
    assert float((_views(before) - _views(after)).abs().max()) < 0.05 * float(
        _views(before).abs().max()
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_classes_come_into_the_frame_and_hand_of_the_first(mirrored):
    molecule = _map("C1")
    before = _state(torch.stack([molecule, _moved(4, molecule, mirrored)]))
    after = align_classes_to_first(before, diameter_px=30.0)
    assert torch.equal(after.references[0, 0], molecule)
    assert _alike(after.references[0, 1], molecule) > 0.99
    assert _alike(before.references[0, 1], molecule) < 0.8
    assert float((_views(before) - _views(after)).abs().max()) < 0.05 * float(
        _views(before).abs().max()
    )


def test_runs_are_compared_with_the_map_that_agrees_best():
    molecule, other = _map("C1"), _map("C4")
    found = agreement(
        molecule,
        [_moved(5, other), _moved(6, molecule, True)],
        radius=RADIUS,
        diameter_px=30.0,
        pixel_size_angstrom=PIXEL,
    )
    assert (found.other, found.mirrored) == (1, True)
    assert found.resolutions_angstrom[0] < 20
    assert _alike(found.laid, molecule) > 0.99


def test_poses_of_other_classes_stay():
    before = _state(torch.stack([_map("C1"), _moved(7, _map("C1"))]))
    after = align_classes_to_first(before, diameter_px=30.0)
    first = before.poses.classes == 0
    assert torch.equal(after.poses.rotations[first], before.poses.rotations[first])
    assert not torch.equal(after.poses.rotations[~first], before.poses.rotations[~first])
    assert replace(after.poses, rotations=before.poses.rotations).classes.equal(
        before.poses.classes
    )
