"""The point group of a map in any frame is found with its axes, in noise and off centre; what is
only nearly symmetric is told apart."""

import pytest
import torch

from halfmap.alignment import Alignment, symmetrised
from halfmap.symmetries import symmetry_matrices
from halfmap.symmetry_search import (
    FoundSymmetry,
    candidate_groups,
    expected_by_shell,
    find_symmetry,
    mean_over_slices,
    subgroups,
    usable_radius,
)

DIAMETER_PX = 34.0


def blobs(box: int, seed: int, n: int = 30, spread: float = 2.8, away: float = 7.0):
    """A molecule without symmetry: atoms around a point off the centre."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0) * away
    axis = torch.arange(box) - box // 2
    volume = torch.zeros(box, box, box)
    for place in middle + spread * torch.randn(n, 3, generator=generator):
        x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * 1.3**2)) for c in place)
        volume += z[:, None, None] * y[None, :, None] * x[None, None, :]
    return volume / volume.sum()


def anywhere(seed: int) -> Alignment:
    from halfmap.so3 import random_rotations

    generator = torch.Generator().manual_seed(seed)
    return Alignment(
        random_rotations(1, generator)[0], 1.5 * torch.randn(3, generator=generator), False, 1.0
    )


def noisy(volume: torch.Tensor, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return volume + noise * volume.std() * torch.randn(volume.shape, generator=generator)


def look_at(volume: torch.Tensor, *, asked=None, highest=4) -> tuple[FoundSymmetry, float]:
    by_shell = expected_by_shell(volume, diameter_px=DIAMETER_PX)
    radius = min(8, usable_radius(by_shell, volume.shape[-1]))
    expected = mean_over_slices(by_shell, radius)
    return find_symmetry(
        volume,
        radius=radius,
        diameter_px=DIAMETER_PX,
        groups=candidate_groups(highest),
        asked=asked,
        expected=expected,
    ), expected


def alike(volume: torch.Tensor, group: str) -> float:
    """Real-space correlation of a map with its mean over the group's operators as RELION has
    them."""
    whole = symmetrised(volume, symmetry_matrices(group))
    return float(torch.corrcoef(torch.stack([whole.flatten(), volume.flatten()]))[0, 1])


@pytest.mark.parametrize(
    ("group", "box", "noise"),
    [("C1", 40, 0.5), ("C4", 40, 1.0), ("D2", 40, 0.0), ("O", 41, 0.5)],
)
def test_the_group_is_found_in_any_frame_and_noise(group, box, noise):
    clean = symmetrised(blobs(box, 1), symmetry_matrices(group))
    moved = anywhere(2).apply_to_map(clean)
    found, expected = look_at(noisy(moved, noise), highest=5 if group == "O" else 4)
    assert found.group == group
    if group == "C1":
        assert found.best is None
        assert found.scores[0].mean < 0.7 * expected
        return
    best, second = found.best, found.runner_up
    assert best.mean == pytest.approx(expected, abs=0.05)  # what noise allows
    assert second.weakest < 0.7 * best.weakest
    assert found.by_chance < 0.5 * best.mean
    assert alike(best.placed.apply_to_map(moved), group) > 0.99
    assert alike(moved, group) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", [*(f"C{n}" for n in (2, 3, 5, 6, 7)), *(f"D{n}" for n in range(3, 8)), "T", "I"]
)
def test_every_other_group(group):
    clean = symmetrised(blobs(40, 3), symmetry_matrices(group))
    moved = anywhere(4).apply_to_map(clean)
    found, _ = look_at(noisy(moved, 0.5), highest=8)
    assert found.group == group
    assert alike(found.best.placed.apply_to_map(moved), group) > 0.99


@pytest.mark.parametrize(
    ("nearly", "truly"), [("C4", "C2"), pytest.param("D2", "C2", marks=pytest.mark.slow)]
)
def test_nearly_symmetric_is_not_symmetric(nearly, truly):
    """Six parts in a hundred of the mass lie at fewer places than the group has."""
    volume = symmetrised(blobs(40, 3), symmetry_matrices(nearly))
    extra = symmetrised(blobs(40, 5, n=6, spread=1.5), symmetry_matrices(truly))
    moved = anywhere(6).apply_to_map(volume + 0.06 * extra)
    found, _ = look_at(noisy(moved, 0.3))
    assert found.group == truly
    assert next(s for s in found.scores if s.group == nearly).mean > 0.6 * found.best.mean


@pytest.mark.parametrize("group", ["I1", pytest.param("I3", marks=pytest.mark.slow)])
def test_icosahedral_settings_are_laid_as_named(group):
    moved = anywhere(7).apply_to_map(symmetrised(blobs(40, 1), symmetry_matrices("I")))
    found, _ = look_at(moved, asked=group)
    assert found.group == group
    assert alike(found.best.placed.apply_to_map(moved), group) > 0.98


def test_a_group_that_is_not_there_is_refused():
    found, expected = look_at(anywhere(8).apply_to_map(blobs(40, 4)), asked="I")
    assert found.group == "C1"
    assert found.scores[0].mean < 0.5 * expected


def test_subgroups_are_those_whose_operators_are_in_the_group():
    """Checked against the operators: up to a rotation, all operators' angles must be there."""
    for group in candidate_groups(6):
        order = len(symmetry_matrices(group))
        for part in subgroups(group):
            assert order % len(symmetry_matrices(part)) == 0
        assert group in subgroups(group)
    assert "C3" in subgroups("T")
    assert "C4" not in subgroups("T")


def test_noise_is_told_from_the_corners_of_the_box():
    volume = blobs(40, 1)
    clean = expected_by_shell(volume, diameter_px=DIAMETER_PX)
    assert bool((clean[1:10] > 0.99).all())
    half = expected_by_shell(noisy(volume, 1.0), diameter_px=DIAMETER_PX)
    both = torch.stack([noisy(volume, 1.0, seed=s) for s in (1, 2)])
    from halfmap.masks import soft_sphere
    from halfmap.resolution import shell_correlations

    sphere = soft_sphere(40, radius_px=DIAMETER_PX / 2, edge_px=2)
    truth = shell_correlations(*(both * sphere)[:, None])[0]
    assert float((half - truth)[2:12].abs().max()) < 0.15
