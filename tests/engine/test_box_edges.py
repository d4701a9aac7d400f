"""A member that was shifted in from outside its box leaves no straight edge in an average."""

import numpy as np
import pytest
import torch

from halfmap.engine.box_edges import have_seams, without_seams
from halfmap.engine.image_model import NoiseSpectra, load_images, whole_images_at
from halfmap.engine.preprocessing import ImageSettings, load_batch
from halfmap.engine.problem import Problem
from halfmap.engine.state import State, identity_poses
from halfmap.fourier import half_plane, inverse_fourier_transform, shift_phases
from halfmap.io.stack_writer import write_stack
from halfmap.methods.class_centring import moved_images
from halfmap.particles import Particles
from halfmap.symmetries import Specimen, point_group


def test_seams_are_seen_inside_the_circle_only():
    shift = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, -6.0], [5.5, 1.0]])
    assert have_seams(shift, 32, 12.0).tolist() == [False, False, True, True]
    assert have_seams(shift, 33, 12.0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("box", [40, 41])
@pytest.mark.parametrize("s", [(9.0, 0.0), (-9.0, 0.0), (0.0, 7.4), (-6.2, 8.7)])
def test_what_comes_in_is_gone_and_the_rest_stays(box, s):
    """Ones, centred: 0 where the opposite side would come in, 1 away from the edge that the image
    had, and no step between neighbouring pixels."""
    shift = torch.tensor([s])
    plane = half_plane(box, (box - 1) // 2)
    faded = without_seams(torch.ones(1, box, box), shift)[0]
    rolled = torch.roll(faded, (round(s[1]), round(s[0])), dims=(0, 1))
    for axis, moved in ((1, round(s[0])), (0, round(s[1]))):
        line = rolled.select(1 - axis, box // 2)
        line = line.flip(0) if moved < 0 else line
        size = abs(moved)
        if size:
            assert float(line[2 : size - 1].abs().max()) < 0.1
            assert float((line[3:] - line[2:-1]).abs().max()) < 0.35
        assert float((line[size + 6 : box - 1] - 1).abs().max()) < 1e-5
    assert torch.equal(
        without_seams(torch.ones(1, box, box), torch.zeros(1, 2))[0, 3], torch.ones(box)
    )
    assert len(plane) > 0


@pytest.mark.parametrize("box", [40, 41])
def test_the_sums_see_no_seam_and_the_noise_sees_the_whole_image(tmp_path, box):
    """A particle 9 pixels off the middle, with a bright neighbour at the far side: centred by
    phases alone the neighbour comes in beside the particle, cut by a straight line."""
    x = np.arange(box) - box // 2
    r2 = (x[None, :] + 9) ** 2 + x[:, None] ** 2
    image = np.exp(-r2 / 18.0) + 3 * (x[None, :] > box // 2 - 8) + 0 * x[:, None]
    write_stack(tmp_path / "a.mrcs", image[None].astype(np.float32), 4.0)
    particles = Particles.from_stack(tmp_path / "a.mrcs")
    plane, settings = (
        half_plane(box, (box - 1) // 2),
        ImageSettings(16.0, False, False, torch.device("cpu")),
    )
    shift = torch.tensor([[9.0, 0.0]])
    ones = torch.ones(1, plane.radius + 1)
    batch = load_batch(particles, torch.arange(1), plane, ones, shift, settings)
    phases = shift_phases(shift, plane)
    centred = inverse_fourier_transform(batch.whole.data * phases, plane)[0]
    seam = inverse_fourier_transform(batch.transforms * phases, plane)[0]
    axis = torch.arange(box) - box // 2
    circle = torch.hypot(axis[:, None].float(), axis[None, :].float()) < 14
    particle = torch.from_numpy(np.exp(-((x[None, :]) ** 2 + x[:, None] ** 2) / 18.0)).float()
    beside = circle & (axis < -8)
    assert float((seam - seam.median())[beside].max()) > 1.5  # the subject switched off
    # on the background's own level, which the neighbour raised
    level = float(centred[circle & (axis > 5)].median())
    assert float((centred - level - particle)[circle & (axis > -6)].abs().max()) < 0.2
    assert float(centred[beside].max()) < 0.3
    unmoved = load_batch(particles, torch.arange(1), plane, ones, 0 * shift, settings)
    torch.testing.assert_close(unmoved.transforms, batch.transforms)
    torch.testing.assert_close(unmoved.whole.data, unmoved.transforms)


@pytest.mark.parametrize("box", [40, 41])
def test_a_class_that_is_recentred_has_no_seam(box):
    """A class image brought to the middle from far out, on a background that is not 0: no two
    neighbouring pixels inside the circle differ as its edge and the far side do."""
    axis = torch.arange(box) - box // 2
    image = 1 + 0.1 * axis[None, :] + torch.zeros(box, 1)  # the far side is 4 more
    references = image.expand(2, 2, box, box)
    far, near = torch.tensor([12, -3]), torch.tensor([1, 2])
    moved = moved_images(references, torch.stack([far, near]), 16.0)
    circle = torch.hypot(axis[:, None].float(), axis[None, :].float()) < 16
    inside = circle[:, 1:] & circle[:, :-1]
    assert float(image.roll((-3, 12), (0, 1)).diff(dim=1)[inside].abs().max()) > 3
    assert float(moved[0, 0].diff(dim=1)[inside].abs().max()) < 0.5
    assert torch.equal(moved[1, 1], image.roll((2, 1), (0, 1)))


def test_an_image_found_elsewhere_is_summed_as_it_lies_there(tmp_path):
    """The window follows the pose of this iteration, not that of the last."""
    box = 32
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, box, box, generator=generator).numpy()
    write_stack(tmp_path / "a.mrcs", images, 4.0)
    particles = Particles.from_stack(tmp_path / "a.mrcs")
    settings = ImageSettings(13.0, False, False, torch.device("cpu"))
    problem = Problem(
        particles,
        settings,
        torch.zeros(4, dtype=torch.long),
        "shared",
        Specimen(point_group("C1"), 13.0),
        2,
        1,
        4,
    )
    plane = half_plane(box, 15)
    state = State(
        iteration=0,
        references=torch.zeros(1, 1, box, box),
        poses=identity_poses(torch.zeros(4, dtype=torch.long)),
        radius=8,
        curves=torch.zeros(1, 16),
        statistics=(NoiseSpectra(torch.ones(1, 16)),),
    )
    index = torch.arange(4)
    batch = load_images(problem, state, index, plane)
    now = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 2.0], [-9.0, 7.0]])
    found = whole_images_at(problem, state, batch, plane, now)
    expected = load_images(problem, state, index, plane, centre=now)
    torch.testing.assert_close(found.data, expected.whole.data)
    same = (found.data == batch.whole.data).all(dim=1).tolist()
    assert same == [True, False, True, False]
