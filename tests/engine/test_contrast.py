"""White and dark particles are told apart, and where nothing can be told nothing is said."""

import numpy as np
import pytest
import torch

from halfmap.commands.simulate import simulate
from halfmap.engine.contrast import map_looks_dark, measure_contrast
from halfmap.engine.preprocessing import ImageSettings
from halfmap.io.mrc import write_map
from halfmap.io.stack_writer import write_stack
from halfmap.particles import Particles, load_particles
from halfmap.simulation.forward_model import noise_amplitude, noise_images


def _settings(particles: Particles, *, ctf: bool = True, share: float = 0.45) -> ImageSettings:
    return ImageSettings(share * particles.box, ctf, False, torch.device("cpu"))


def _found(particles: Particles, **how) -> float:
    used = torch.arange(len(particles))
    return measure_contrast(particles, used, _settings(particles, **how)).standard_errors


def _inverted(folder) -> Particles:
    """The same particles with dark images."""
    white = load_particles(folder / "particles.star")
    pixel = white.pixel_size_angstrom
    write_stack(folder / "particles.mrcs", -white.images(np.arange(len(white))), pixel)
    return load_particles(folder / "particles.star")


@pytest.mark.parametrize(
    ("box", "how"),
    [
        (36, {"snr": 0.02}),
        (37, {"snr": 0.05, "dirty": True}),
        (36, {"snr": 0.05, "dirty": True, "junk_fraction": 0.4, "neighbour_fraction": 1.0}),
        (37, {"snr": 0.1, "phase_shift_deg": 90.0}),
    ],
)
def test_dark_particles_look_dark_and_white_ones_do_not(tmp_path, box, how):
    folder = simulate(
        "phantom", tmp_path / "set", n=300, box=box, pixel_size_angstrom=6.0, quiet=True, **how
    ).folder
    white = load_particles(folder / "particles.star")
    for share in (0.45, 0.38):
        assert _found(white, share=share) > 5
        assert _found(white, share=share, ctf=False) > 0
    dark = _inverted(folder)
    for share in (0.45, 0.38):
        assert _found(dark, share=share) < -5


@pytest.mark.parametrize("radius", [8.0, 12.0, 15.0])
def test_a_hollow_particle_is_white_too(tmp_path, radius):
    """Its transform changes sign at a low frequency, `sin(2 pi k r / N) = 0`."""
    axis = torch.arange(36) - 18
    r = torch.sqrt((axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float())
    write_map(tmp_path / "shell.mrc", torch.exp(-((r - radius) ** 2) / 2).numpy(), 6.0)
    folder = simulate(tmp_path / "shell.mrc", tmp_path / "set", n=200, snr=0.1, quiet=True).folder
    particles = load_particles(folder / "particles.star")
    assert all(
        _found(particles, share=share, ctf=ctf) > 5
        for share in (0.43, 0.45)
        for ctf in (True, False)
    )


@pytest.mark.parametrize("colour", [0.0, 3.0])
def test_noise_alone_says_nothing(tmp_path, colour):
    """Its standard errors are those of a normal distribution: no false alarm."""
    noise = noise_images(torch.arange(2000), 1, noise_amplitude(24, 9.0, colour)).numpy()
    write_stack(tmp_path / "noise.mrcs", noise, 9.0)
    particles = Particles.from_stack(tmp_path / "noise.mrcs")
    parts = torch.arange(2000).split(100)
    settings = _settings(particles, ctf=False)
    found = [measure_contrast(particles, part, settings).standard_errors for part in parts]
    assert max(map(abs, found)) < 4
    assert 0.5 < np.std(found) < 1.7


def test_too_few_images_say_nothing(tmp_path):
    folder = simulate(
        "phantom", tmp_path / "set", n=20, snr=1.0, box=24, pixel_size_angstrom=9.0, quiet=True
    ).folder
    assert _found(_inverted(folder)) == 0


def test_a_map_turned_round_looks_dark():
    axis = torch.arange(32) - 16
    r = torch.sqrt((axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float())
    for white in (torch.exp(-(r**2) / 50), torch.exp(-((r - 11) ** 2) / 8)):
        noisy = white + 0.1 * torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
        assert not map_looks_dark(noisy + 3)
        assert map_looks_dark(3 - noisy)


def test_dark_groups_beside_white_ones_are_told_apart(tmp_path):
    """Together they look like neither."""
    folder = simulate(
        "phantom",
        tmp_path / "set",
        n=400,
        box=36,
        pixel_size_angstrom=6.0,
        snr=0.05,
        optics_groups=2,
        particles_per_micrograph=10,
        quiet=True,
    ).folder
    white = load_particles(folder / "truth.star")
    images = white.images(np.arange(len(white)))
    images[white.optics_group == 1] *= -1
    write_stack(folder / "particles.mrcs", images, white.pixel_size_angstrom)
    used, settings = torch.arange(len(white)), _settings(white)
    mixed = measure_contrast(load_particles(folder / "truth.star"), used, settings)
    assert mixed.dark_groups == (1,)
    assert not mixed.looks_dark
    half = torch.nonzero(torch.from_numpy(white.optics_group == 1))[:, 0]
    dark = measure_contrast(load_particles(folder / "truth.star"), half, settings)
    assert dark.looks_dark
    assert dark.dark_groups == ()
