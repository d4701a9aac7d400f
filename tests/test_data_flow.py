"""The transfer function of a data set is one object: what is changed in it changes everywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.engine.preprocessing import Batch, ImageSettings, load_batch
from halfmap.fourier import fourier_transform, half_plane
from halfmap.io.mrc import read_map
from halfmap.io.star import read_star
from halfmap.masks import soft_sphere
from halfmap.particles import Particles, load_particles
from halfmap.resolution import fourier_shell_correlation
from halfmap.transfer_function import ctf

BOX, PIXEL = 40, 4.0
PLANE = half_plane(BOX, (BOX - 1) // 2)
CHANGED, MORE_ANGSTROM = 2, 1500.0


def _simulate(out: Path, *, n: int, tilt_mrad: float = 0.0) -> Path:
    return halfmap.simulate(
        "phantom",
        out,
        n=n,
        snr=float("inf"),
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=1.0,
        particles_per_micrograph=5,
        optics_groups=2,
        beam_tilt_mrad=tilt_mrad,
        quiet=True,
    ).folder


def _batch(particles: Particles) -> Batch:
    n = len(particles)
    settings = ImageSettings(18.0, use_ctf=True, normalise=False, device=torch.device("cpu"))
    return load_batch(
        particles, torch.arange(n), PLANE, torch.ones(2, 25), torch.zeros(n, 2), settings
    )


def _transforms(star: Path) -> torch.Tensor:
    particles = load_particles(star)
    return fourier_transform(torch.from_numpy(particles.images(np.arange(len(particles)))), PLANE)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """A data set, and the same with a larger defocus of one particle, as STAR files."""
    folder = _simulate(tmp_path_factory.mktemp("flow") / "sim", n=6)
    particles = load_particles(folder / "truth.star")
    more = MORE_ANGSTROM * (np.arange(6) == CHANGED)
    transfer = replace(
        particles.transfer,
        defocus_u_angstrom=particles.transfer.defocus_u_angstrom + more,
        defocus_v_angstrom=particles.transfer.defocus_v_angstrom + more,
    )
    particles.with_results().write_star(folder / "before.star")
    particles.with_transfer(transfer).write_star(folder / "after.star")
    return folder / "before.star", folder / "after.star"


@pytest.fixture(scope="module")
def values(files) -> tuple[torch.Tensor, torch.Tensor]:
    """The CTFs that the two STAR files tell."""
    before, after = (
        ctf(load_particles(star).transfer, *PLANE.frequencies(PIXEL)) for star in files
    )
    rest = np.arange(6) != CHANGED
    assert torch.equal(before[rest], after[rest])
    assert (before[CHANGED] - after[CHANGED]).abs().max() > 0.5
    return before, after


def test_a_new_defocus_is_written_and_nothing_else(files) -> None:
    before, after = (read_star(star).blocks for star in files)
    for name in before["particles"].names:
        old, new = (blocks["particles"].strings(name) for blocks in (before, after))
        if name in ("rlnDefocusU", "rlnDefocusV"):
            more = new.astype(float) - old.astype(float)
            assert more.tolist() == [MORE_ANGSTROM if i == CHANGED else 0 for i in range(6)]
        else:
            assert old.tolist() == new.tolist(), name
    for name in before["optics"].names:
        old, new = (blocks["optics"].strings(name).tolist() for blocks in (before, after))
        assert old == new, name


def test_a_new_defocus_is_in_the_terms_of_the_e_step_and_the_m_step(files, values) -> None:
    old, new = (_batch(load_particles(star)) for star in files)
    for part in ("scored", "whole"):
        a, b = getattr(old, part), getattr(new, part)
        torch.testing.assert_close(b.data * values[0], a.data * values[1], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(
            b.power * values[0] ** 2, a.power * values[1] ** 2, rtol=1e-4, atol=1e-5
        )
        assert (a.data[CHANGED] - b.data[CHANGED]).abs().max() > 0.1 * a.data.abs().max()


def test_a_new_defocus_is_in_projections(files, values, tmp_path) -> None:
    seen = []
    for star in files:
        out = tmp_path / f"{star.stem}.mrcs"
        halfmap.project(star.with_name("truth_1.mrc"), star, out, ctf=True)
        seen.append(_transforms(out.with_suffix(".star")))
        again = load_particles(out.with_suffix(".star")).transfer.defocus_u_angstrom
        np.testing.assert_array_equal(again, load_particles(star).transfer.defocus_u_angstrom)
    scale = seen[0].abs().max().item()
    torch.testing.assert_close(seen[1] * values[0], seen[0] * values[1], rtol=0, atol=1e-4 * scale)
    assert (seen[0][CHANGED] - seen[1][CHANGED]).abs().max() > 0.1 * scale


def test_a_new_defocus_is_in_what_is_restored(files, values, tmp_path) -> None:
    k, seen = 0.1, []
    for star in files:
        halfmap.restore(star, "wiener", tmp_path / star.stem, constant=k, quiet=True)
        seen.append(_transforms(tmp_path / star.stem / "particles.star"))
        assert not load_particles(tmp_path / star.stem / "particles.star").has_ctf
    old, new = (c / (c**2 + k) for c in values)
    scale = seen[0].abs().max().item()
    torch.testing.assert_close(seen[1] * old, seen[0] * new, rtol=0, atol=1e-4 * scale)
    assert (seen[0][CHANGED] - seen[1][CHANGED]).abs().max() > 0.1 * scale


def test_beam_tilt_goes_in_and_comes_out_again(tmp_path) -> None:
    """Simulated, prepared for the E-step and reconstructed: images of a tilted beam give what those
    of a straight one give; with the tilt forgotten, they do not."""
    tilted = _simulate(tmp_path / "tilted", n=160, tilt_mrad=50.0)
    straight = _simulate(tmp_path / "straight", n=160)
    particles = load_particles(tilted / "truth.star")
    assert np.hypot(
        particles.transfer.beam_tilt_x_mrad, particles.transfer.beam_tilt_y_mrad
    ) == pytest.approx(50.0)
    rows = np.arange(10)
    first, other = (
        _batch(load_particles(folder / "truth.star").take(rows)) for folder in (tilted, straight)
    )
    first, other = first.transforms[:, 1:], other.transforms[:, 1:]  # not the background's mean
    scale = other.abs().max().item()
    torch.testing.assert_close(first, other, rtol=0, atol=1e-4 * scale)
    forgotten = particles.with_transfer(
        replace(particles.transfer, beam_tilt_x_mrad=0.0, beam_tilt_y_mrad=0.0)
    )
    wrong = _batch(forgotten.take(rows)).transforms[:, 1:]
    assert (wrong - other).abs().max() > 0.1 * scale
    forgotten.write_star(tilted / "forgotten.star")
    truth = torch.from_numpy(read_map(tilted / "truth_1.mrc")[0].copy())
    mask, found = soft_sphere(BOX, radius_px=18, edge_px=2), {}
    for name in ("truth", "forgotten"):
        halfmap.reconstruct(
            tilted / f"{name}.star",
            tmp_path / f"{name}.mrc",
            symmetry="C4",
            device="cpu",
            quiet=True,
        )
        volume = torch.from_numpy(read_map(tmp_path / f"{name}.mrc")[0].copy())
        found[name] = fourier_shell_correlation(
            volume, truth, pixel_size_angstrom=PIXEL, mask=mask
        ).correlation[13:18]
    assert found["truth"].min() > 0.9
    assert found["forgotten"].mean() < 0.5
