"""A part that does not follow a map's symmetry is found where it is; noise, interpolation and axes
a little off are not taken for one."""

import pytest
import torch

from halfmap.alignment import Alignment, symmetrised
from halfmap.asymmetry import departure_from, held_symmetry, noise_like_corners
from halfmap.fourier import lowpass
from halfmap.so3 import random_rotations
from halfmap.symmetries import symmetry_matrices
from halfmap.symmetry_search import FoundSymmetry, GroupScore

ACROSS = 30.0
PLACE = (6.0, 4.0, 5.0)  # x, y, z from the centre, of the part


def _blob(box: int, centre, sigma: float) -> torch.Tensor:
    axis = torch.arange(box).float() - box // 2
    x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * sigma**2)) for c in centre)
    return z[:, None, None] * y[None, :, None] * x[None, None, :]


@pytest.fixture(scope="module", params=[(40, "C4"), (41, "D2")])
def scene(request):
    box, group = request.param
    generator = torch.Generator().manual_seed(3)
    atoms = 5 * torch.randn(20, 3, generator=generator)
    carrier = torch.stack([_blob(box, atom.clamp(-10, 10).tolist(), 1.6) for atom in atoms]).sum(0)
    carrier = symmetrised(carrier, symmetry_matrices(group).float())
    turn, shift = random_rotations(1, generator)[0], torch.randn(3, generator=generator)
    return group, carrier / carrier.sum(), Alignment(turn, shift, False, 1.0)


def _found(scene, share: float, level: float, seed: int, *, off_deg: float = 0.0):
    """What is found of a map of which a part has this share of the mass, in noise of this many
    standard deviations of it, given axes that are so much off."""
    group, carrier, frame = scene
    box = len(carrier)
    part = _blob(box, PLACE, 1.6)
    whole = frame.apply_to_map(carrier + share * part / part.sum())
    draw = torch.Generator().manual_seed(seed)
    sigma = 2**0.5 * level * whole.std()
    halves = [whole + sigma * torch.randn(whole.shape, generator=draw) for _ in range(2)]
    # the frame that undoes `frame`, V'(x) = V(Q x + t), a little off
    back = frame.rotation.T
    angle = torch.tensor(off_deg).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    tilt = torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])
    placed = Alignment(back @ tilt, -back @ frame.shift_px, False, 1.0)
    average, noise = (halves[0] + halves[1]) / 2, (halves[0] - halves[1]) / 2
    return halves, departure_from(average, noise, placed, group, radius=9, diameter_px=ACROSS), back


@pytest.mark.parametrize("level", [0.02, 0.5, 1.5])
def test_a_map_of_the_group_departs_nowhere(scene, level: float) -> None:
    for seed in range(3):
        assert not _found(scene, 0.0, level, seed, off_deg=0.5)[1].sure


@pytest.mark.parametrize(("share", "level"), [(0.06, 1.0), (0.02, 0.5), (0.06, 0.05)])
def test_a_part_that_does_not_follow_is_found_where_it_is(scene, share, level) -> None:
    _, carrier, frame = scene
    found, back = _found(scene, share, level, 1)[1:]
    assert found.sure
    centre = len(carrier) // 2
    expected = back @ (torch.tensor(PLACE) - frame.shift_px) + centre
    assert (torch.tensor(found.place_px) - expected).norm() < 2


def test_corners_tell_the_noise_and_a_masked_map_tells_none(scene) -> None:
    halves = _found(scene, 0.0, 0.5, 2)[0]
    alike = noise_like_corners((halves[0] + halves[1]) / 2)
    assert alike is not None
    made, true = (
        lowpass(one, 3.0, 1.0, dimensions=3).std() for one in (alike, (halves[0] - halves[1]) / 2)
    )
    assert float(made / true) == pytest.approx(1, abs=0.1)
    assert noise_like_corners(torch.zeros(40, 40, 40) + _blob(40, (0, 0, 0), 1.5)) is None


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_group_that_a_part_breaks_is_not_the_maps(parts: int) -> None:
    """A C4 carrier whose mates all have the part, one has, or two opposite ones have: C4, C1, C2."""
    box, axis = 40, symmetry_matrices("C4").float()
    atoms = 5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(3))
    carrier = torch.stack([_blob(box, atom.clamp(-10, 10).tolist(), 1.6) for atom in atoms]).sum(0)
    carrier = symmetrised(carrier, axis)
    places = [mate @ torch.tensor(PLACE) for mate in axis]
    held = {0: places, 1: places[:1], 2: [places[0], -places[0] * torch.tensor([1.0, 1, -1])]}
    part = sum(_blob(box, one.tolist(), 1.6) for one in held[parts])
    volume = carrier + 0.1 * carrier.max() * part * (1 if parts == 0 else 3)
    noise = (
        0.3 * volume.std() * torch.randn(volume.shape, generator=torch.Generator().manual_seed(1))
    )
    here = Alignment(torch.eye(3), torch.zeros(3), False, 0.95)
    scores = tuple(GroupScore(group, here, 0.95, 0.01) for group in ("C4", "C2"))

    def departs(one: GroupScore):
        reached = {"radius": 9, "diameter_px": ACROSS}
        return departure_from(volume + noise, noise.flip(0), here, one.group, **reached)

    found, departure = held_symmetry(FoundSymmetry("C4", scores, 0.95, 0.1), departs)
    assert found.group == {0: "C4", 1: "C1", 2: "C2"}[parts]
    assert (found.nearly is None) == (parts == 0)
    assert departure.breaks == (parts != 0)
