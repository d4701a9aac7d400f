"""The noise of images split in two: what is scored and what is summed have the variances that they
say, and nothing in common."""

import numpy as np
import pytest
import torch

from halfmap.engine.preprocessing import ImageSettings, load_batch
from halfmap.engine.split_noise import SplitNoise
from halfmap.fourier import half_plane
from halfmap.io.stack_writer import StackWriter
from halfmap.particles import Particles

IMAGES = 400


def _noise_stack(folder, box: int, deviation: float) -> Particles:
    path = folder / "noise.mrcs"
    images = np.random.default_rng(1).normal(0, deviation, (IMAGES, box, box)).astype(np.float32)
    with StackWriter(path, 3.0) as stack:
        stack.append(images)
    return Particles.from_stack(path)


def _products(split: SplitNoise | None, particles: Particles, deviation: float) -> torch.Tensor:
    """Mean power of the scored noise, of the summed noise, and their mean product, each in units of
    the variances that the terms are divided by."""
    box = particles.box
    plane = half_plane(box, box // 2 - 2)
    settings = ImageSettings(2.0 * box, False, False, torch.device("cpu"))
    variance = torch.full((1, plane.radius + 1), (deviation * box) ** 2)
    batch = load_batch(
        particles,
        torch.arange(IMAGES),
        plane,
        variance,
        torch.zeros(IMAGES, 2),
        settings,
        split=split,
    )
    # data = X / v and power = 1 / v: standard normal is data / sqrt(power)
    first, second = (
        (terms.data / terms.power.sqrt())[:, 1:] for terms in (batch.scored, batch.whole)
    )
    pairs = ((first, first), (second, second), (first, second))
    return torch.stack([(a.conj() * b).real.mean() for a, b in pairs])


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("g", [1.0, 0.6])
def test_halves_are_independent(tmp_path, box, g):
    """Without the split the two are the same noise; the mean of 400 images' products errs by a
    thousandth, and the variance of stored images by as much."""
    particles = _noise_stack(tmp_path, box, 0.7)
    same = _products(None, particles, 0.7)
    torch.testing.assert_close(same, torch.ones(3), atol=0.02, rtol=0)
    split = _products(SplitNoise(3, g), particles, 0.7)
    torch.testing.assert_close(split, torch.tensor([1.0, 1.0, 0.0]), atol=0.02, rtol=0)


def test_a_particle_has_its_own_draw():
    plane = half_plane(16, 5)
    split = SplitNoise(1)
    both = split.draw(torch.tensor([4, 9]), plane)
    assert torch.equal(split.draw(torch.tensor([9]), plane)[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(SplitNoise(2).draw(torch.tensor([4]), plane)[0], both[0])
