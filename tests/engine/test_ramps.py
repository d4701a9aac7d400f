"""Planes outside the particle: taken off exactly, and only where images have them."""

import pytest
import torch

from halfmap.engine.ramps import background_mask, background_modes, have_ramps, remove_planes
from halfmap.simulation.forward_model import noise_amplitude, noise_images


def _planes(box: int, slopes: torch.Tensor) -> torch.Tensor:
    """Planes whose standard deviation along each axis is the slope's."""
    axis = torch.arange(box) - (box - 1) / 2
    axis = axis / axis.std(correction=0)
    return slopes[:, :1, None] * axis + slopes[:, 1:, None] * axis[:, None]


def _noise(n: int, box: int, colour: float = 0.5, seed: int = 1) -> torch.Tensor:
    return noise_images(torch.arange(n), seed, noise_amplitude(box, 4.0, colour))


@pytest.mark.parametrize(("box", "radius"), [(32, 12.0), (33, 12.0), (33, 20.0)])
def test_a_plane_outside_the_particle_is_taken_off_and_the_particle_stays(box, radius):
    axis = torch.arange(box) - box // 2
    inside = torch.hypot(axis[:, None].float(), axis[None, :].float()) < min(radius, 0.48 * box) - 1
    particle = torch.randn(3, box, box, generator=torch.Generator().manual_seed(0)) * inside
    planes = _planes(box, torch.tensor([[1.0, 0.0], [-2.0, 3.0], [0.0, 0.5]])) + 7
    torch.testing.assert_close(
        remove_planes(particle + planes, radius), particle, atol=1e-4, rtol=0
    )


def test_modes_are_orthonormal_outside():
    modes, fit = background_modes(25, 9.0)
    torch.testing.assert_close(fit.T @ modes, torch.eye(5), atol=1e-5, rtol=0)
    assert not fit[~background_mask(25, 9.0).flatten()].any()


@pytest.mark.parametrize("n", [4, 20, 300])
@pytest.mark.parametrize("box", [32, 45])
@pytest.mark.parametrize("colour", [0.0, 3.0])
def test_noise_has_no_ramps_and_ramps_are_found(n, box, colour):
    noise = _noise(n, box, colour)
    assert not have_ramps(noise, 0.4 * box)
    slopes = torch.randn(n, 2, generator=torch.Generator().manual_seed(2))
    if n >= 20:
        assert have_ramps(1e3 + noise + _planes(box, slopes / 3 / 2**0.5), 0.4 * box)


def test_false_alarms_are_never_met():
    assert not any(have_ramps(_noise(12, 24, seed=seed), 10.0) for seed in range(200))


def test_a_few_images_with_ramps_are_enough():
    """One data set of several, a fifth of the images, came from another program."""
    slopes = torch.randn(300, 2, generator=torch.Generator().manual_seed(2)) / 3
    slopes[60:] = 0
    assert have_ramps(_noise(300, 40) + _planes(40, slopes), 16.0)


def test_neighbours_are_no_ramps():
    generator = torch.Generator().manual_seed(4)
    angle = 2 * torch.pi * torch.rand(200, generator=generator)
    axis = torch.arange(48) - 24
    x, y = (22 * f(angle)[:, None] for f in (torch.cos, torch.sin))
    blobs = torch.exp(-((axis - x)[:, None, :] ** 2 + (axis - y)[:, :, None] ** 2) / (2 * 6.0**2))
    assert not have_ramps(_noise(200, 48) + blobs, 18.0)


def test_class_averages_have_no_background_to_judge_by():
    averages = torch.randn(20, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not have_ramps(averages * ~background_mask(32, 12.0), 12.0)
    assert not have_ramps(torch.zeros(20, 32, 32), 12.0)
