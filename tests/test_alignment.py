"""Maps laid onto each other from any frame and hand; axes found in a map that lies anywhere; poses
follow."""

import pytest
import torch

from halfmap.alignment import (
    Alignment,
    align,
    centre_of_mass_px,
    find_axes,
    mirror,
    mirror_poses,
    symmetrised,
)
from halfmap.errors import InputError
from halfmap.fourier import half_plane, lowpass, shift_phases
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.phantom import phantom
from halfmap.so3 import angular_distance_deg, random_rotations
from halfmap.symmetries import symmetry_matrices

BOX, PIXEL, DIAMETER_PX, RADIUS = 40, 5.0, 30.0, 12


@pytest.fixture(scope="module")
def molecule() -> torch.Tensor:
    return lowpass(phantom(BOX, PIXEL, symmetry="C1"), 15.0, PIXEL, dimensions=3).clamp(min=0)


@pytest.fixture(scope="module")
def channel() -> torch.Tensor:
    return lowpass(phantom(BOX, PIXEL), 15.0, PIXEL, dimensions=3).clamp(min=0)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def _anywhere(seed: int, mirrored: bool = False) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    return Alignment(
        random_rotations(1, generator)[0], 1.5 * torch.randn(3, generator=generator), mirrored, 1.0
    )


@pytest.mark.parametrize(("seed", "mirrored"), [(1, False), (2, True), (3, False)])
def test_a_map_in_any_frame_and_hand_is_laid_back(molecule, seed, mirrored):
    moved = _anywhere(seed, mirrored).apply_to_map(molecule)
    assert _correlation(moved, molecule) < 0.8
    found = align(moved, molecule, radius=RADIUS, diameter_px=DIAMETER_PX)
    assert found.mirrored == mirrored
    assert found.correlation > 0.99
    assert _correlation(found.apply_to_map(moved), molecule) > 0.995


def test_in_noise_the_frame_is_still_found(molecule):
    where = _anywhere(4)
    moved = where.apply_to_map(molecule)
    noisy = moved + 0.5 * float(moved.std()) * torch.randn(
        moved.shape, generator=torch.Generator().manual_seed(0)
    )
    found = align(noisy, molecule, radius=RADIUS, diameter_px=DIAMETER_PX)
    assert not found.mirrored
    assert float(angular_distance_deg(found.rotation, where.rotation.T)) < 1.0
    torch.testing.assert_close(
        found.shift_px, -(where.rotation.T @ where.shift_px), rtol=0, atol=0.3
    )


def test_the_other_hand_alone_is_another_molecule(molecule):
    one_hand = align(
        mirror(molecule), molecule, radius=RADIUS, diameter_px=DIAMETER_PX, either_hand=False
    )
    assert one_hand.correlation < 0.95
    assert not one_hand.mirrored


@pytest.mark.parametrize("mirrored", [False, True])
def test_poses_follow_the_map(molecule, mirrored):
    """The laid map at the poses that follow shows what the map showed at the given ones."""
    where, generator = _anywhere(5, mirrored), torch.Generator().manual_seed(6)
    rotations, shifts = random_rotations(8, generator), torch.randn(8, 2, generator=generator)
    plane = half_plane(BOX, 8)

    def centred_views(volume, rotations, shift_px):
        """What a particle of the map looks like in its image: shifted by minus its origin."""
        return extract_slices(prepare_references(volume[None], 8), rotations, plane) * shift_phases(
            -shift_px, plane
        )

    before = centred_views(molecule, rotations, shifts)
    after = centred_views(where.apply_to_map(molecule), *where.apply_to_poses(rotations, shifts))
    assert float((before - after).abs().max()) < 0.03 * float(before.abs().max())


def test_axes_are_found_and_brought_to_where_the_group_has_them(channel):
    matrices = symmetry_matrices("C4")
    lost = _anywhere(7).apply_to_map(channel)
    found = find_axes(lost, matrices, radius=RADIUS, diameter_px=DIAMETER_PX)
    assert found.correlation > 0.97
    laid = found.apply_to_map(lost)
    assert _correlation(symmetrised(laid, matrices), laid) > 0.99
    assert (
        align(
            symmetrised(laid, matrices), channel, radius=RADIUS, diameter_px=DIAMETER_PX
        ).correlation
        > 0.99
    )


@pytest.mark.parametrize("group", ["D2", "T"])
def test_axes_of_other_groups(molecule, group):
    matrices = symmetry_matrices(group)
    whole = symmetrised(molecule, matrices)
    found = find_axes(
        _anywhere(8).apply_to_map(whole), matrices, radius=RADIUS, diameter_px=DIAMETER_PX
    )
    assert found.correlation > 0.95


def test_a_molecule_without_the_symmetry_tells_by_its_correlation(molecule, channel):
    matrices = symmetry_matrices("C4")
    without, with_it = (
        find_axes(m, matrices, radius=RADIUS, diameter_px=DIAMETER_PX).correlation
        for m in (molecule, channel)
    )
    assert without < 0.9 < with_it


def test_symmetrised_is_symmetric_and_keeps_what_is(molecule, channel):
    matrices = symmetry_matrices("C4")
    whole = symmetrised(molecule, matrices)
    assert _correlation(symmetrised(whole, matrices), whole) > 0.999
    assert _correlation(symmetrised(channel, matrices), channel) > 0.999


def test_mirroring_twice_is_nothing_and_projections_do_not_tell(molecule):
    assert torch.equal(mirror(mirror(molecule)), molecule)
    odd = molecule[1:, 1:, 1:]
    assert torch.equal(mirror(mirror(odd)), odd)
    rotations, plane = random_rotations(5, torch.Generator().manual_seed(1)), half_plane(BOX, 8)
    inner = molecule.clone()
    inner[0], inner[:, 0], inner[:, :, 0] = 0, 0, 0  # voxels without a mate
    a = extract_slices(prepare_references(inner[None], 8), rotations, plane)
    b = extract_slices(prepare_references(mirror(inner)[None], 8), mirror_poses(rotations), plane)
    assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))


def test_centre_of_mass_and_sizes():
    volume = torch.zeros(20, 20, 20)
    volume[12, 9, 7] = 2.0
    torch.testing.assert_close(centre_of_mass_px(volume), torch.tensor([-3.0, -1.0, 2.0]))
    with pytest.raises(InputError, match="N = 20 as in volume, got"):
        align(volume, torch.zeros(22, 22, 22), radius=4, diameter_px=10)
