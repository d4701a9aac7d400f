"""Hot pixels: found, mended to what was there, and nothing else touched."""

import numpy as np
import pytest

from halfmap.io.image_faults import examine, mend
from halfmap.io.stack_writer import write_stack
from halfmap.particles import Particles
from halfmap.simulation.forward_model import noise_amplitude, noise_images


def _noise(n: int, box: int, *, colour: float = 0.5, seed: int = 0) -> np.ndarray:
    import torch

    return noise_images(torch.arange(n), seed, noise_amplitude(box, 4.0, colour)).numpy()


@pytest.mark.parametrize("box", [32, 45, 96])
@pytest.mark.parametrize("height", [15.0, -20.0, 40.0, 1e5])
@pytest.mark.parametrize("place", [(10, 11), (0, 0), (5, 31)])
def test_one_hot_pixel_is_found_and_mended(box, height, place):
    image = _noise(1, box)[0]
    hot = image.copy()
    hot[place] = height
    reason, found = examine(hot)
    assert reason == ""
    np.testing.assert_array_equal(found, [np.ravel_multi_index(place, hot.shape)])
    mend(hot, found)
    difference = hot - image
    assert abs(difference[place]) < 4  # what noise has there no one knows
    difference[place] = 0
    assert not difference.any()


def test_spots_and_several_pixels_are_mended_and_beads_are_not():
    image = _noise(1, 64)[0]
    spot = image.copy()
    spot[20:22, 30:33] = 80
    spot[40, 40] = -60
    reason, found = examine(spot)
    assert reason == ""
    assert len(found) == 7
    mend(spot, found)
    assert abs(spot).max() < 6
    bead = image.copy()
    bead[20:24, 30:34] = 80
    assert examine(bead)[0].startswith("16 hot pixels")
    many = image.copy()
    many[::16, ::16] = 100
    assert examine(many)[0].startswith("16 hot pixels")


@pytest.mark.parametrize("colour", [0.0, 5.0])
def test_clean_images_are_left_alone(colour):
    """A thousand images of noise, and particles as strong as they come, with and without noise."""
    y, x = np.indices((48, 48)) - 24
    particle = np.exp(-(x**2 + y**2) / (2 * 7.0**2)) * (1 + np.cos(1.5 * x) * np.cos(1.4 * y))
    sharp = np.exp(-((x - 3) ** 2 + y**2) / (2 * 0.9**2))  # as narrow as a microscope shows
    for image in _noise(1000, 48, colour=colour):
        assert examine(image)[1].size == 0
    for strength in (0.3, 3, 30, 1e6):
        for image in _noise(5, 48, colour=colour, seed=2):
            for shown in (particle, particle + 0.3 * sharp):
                reason, hot = examine(image + strength * shown)
                assert (reason, hot.size) == ("", 0)


def test_images_are_mended_as_they_are_read(tmp_path):
    images = _noise(6, 40)
    spoilt = images.copy()
    spoilt[1, 7, 8], spoilt[4, 0, 39] = 90, -200
    spoilt[2, 3, 3] = np.nan
    write_stack(tmp_path / "a.mrcs", spoilt, 1.0)
    particles = Particles.from_stack(tmp_path / "a.mrcs")
    found = particles.examine_images(np.arange(6))
    assert sorted(found.bad) == [2]
    assert sorted(found.hot) == [1, 4]
    mended = particles.mended(found.hot)
    assert mended.is_mended(np.arange(6)).tolist() == [False, True, False, False, True, False]
    part = mended.take(np.array([4, 0, 1]))
    for row, image in zip((4, 0, 1), part.images(np.arange(3)), strict=True):
        assert abs(image - images[row]).max() < 4.5
        assert np.count_nonzero(image != images[row]) == (row != 0)
    assert part.examine_images(np.arange(3)).hot == {}
    np.testing.assert_array_equal(particles.images([1]), spoilt[[1]])
