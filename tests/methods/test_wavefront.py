"""Phase errors are measured place by place: a known wavefront is found, noise is told from it, and
what was not fitted is seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import halfmap
from halfmap.ctf_parameters import CTFParameters
from halfmap.fourier import half_plane
from halfmap.methods.phase_errors import odd_evidence
from halfmap.methods.wavefront import on_plane, phase_left
from halfmap.particles import load_particles
from halfmap.transfer_function import aberration_phase, ctf, wavefront_rad
from halfmap.workspace.figures import read_figures

BOX, RADIUS = 64, 28


def sums(error: torch.Tensor, weight: float, noise: float, seed: int = 1) -> torch.Tensor:
    """`s = w exp(i O)` with noise of that deviation in each part."""
    draw = torch.randn(2, len(error), generator=torch.Generator().manual_seed(seed)).double()
    return weight * torch.polar(torch.ones_like(error), error) + noise * torch.complex(*draw)


def test_a_known_wavefront_is_measured() -> None:
    plane = half_plane(BOX, RADIUS)
    x, y = plane.kx.double() / RADIUS, plane.ky.double() / RADIUS
    error = 0.4 * (x**2 + y**2) * x - 0.3 * (x**3 - 3 * x * y**2)
    _, slope, bend = odd_evidence(sums(error, 100, 10)[None])(torch.zeros_like(error)[None])
    found = phase_left(slope[0], bend[0], plane, odd=True)
    truth = on_plane(error, plane, odd=True)
    inside = np.isfinite(found) & np.isfinite(truth)
    assert inside.sum() > 0.95 * np.isfinite(truth).sum()
    assert np.sqrt(np.mean((found - truth)[inside] ** 2)) < 0.04  # of 0.1 in each sample
    assert np.abs(found - truth)[inside].max() < 0.15
    assert np.corrcoef(found[inside], truth[inside])[0, 1] > 0.99
    both = np.isfinite(found) & np.isfinite(found[::-1, ::-1])
    np.testing.assert_allclose(found[both], -found[::-1, ::-1][both], atol=1e-9)


def test_where_there_is_noise_alone_nothing_is_told() -> None:
    """And of what is told, the deviation is at most what may be."""
    plane = half_plane(BOX, RADIUS)
    zero = torch.zeros(len(plane)).double()
    signal = torch.where(plane.shell < 12, 1.0, 0.0).double()  # weight and variance alike, as w is
    drawn = torch.randn(len(plane), generator=torch.Generator().manual_seed(2)).double()
    found = phase_left(signal.sqrt() * drawn, -signal - 1e-6, plane, odd=True)
    far = on_plane((plane.shell > 17).double(), plane, odd=False) == 1
    assert np.isnan(found[far]).all()
    assert np.isfinite(found).any()
    assert np.nanstd(found) < 1
    assert np.isnan(phase_left(zero, zero, plane, odd=False)).all()


def test_the_wavefront_is_that_of_the_transfer_function() -> None:
    """Its odd part is the angle of the phase factor, its even part the phase inside the sine."""
    p = CTFParameters(
        defocus_u_angstrom=0.0,
        defocus_v_angstrom=0.0,
        amplitude_contrast=0.0,
        beam_tilt_x_mrad=0.5,
        beam_tilt_y_mrad=-0.3,
        odd_zernike=np.array([[0.0, 0.0, 20.0, 0.0, 0.0, -9.0]]),
        even_zernike=np.array([[0.0, 0.0, 0.0, 0.0, 30.0, 0.0, 0.0, 0.0, 50.0]]),
    )
    kx, ky = torch.rand(2, 50, generator=torch.Generator().manual_seed(3)).double() * 0.3
    odd, even = wavefront_rad(p, kx, ky)
    turned = torch.polar(torch.ones_like(odd), odd)
    torch.testing.assert_close(turned, aberration_phase(p, kx, ky))
    torch.testing.assert_close(torch.sin(even), ctf(p, kx, ky))


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A set whose beam tilt and trefoil are wrong, refined for the beam tilt alone: its folder, and
    the error that was put in, along x at the frequencies of its figure."""
    folder = tmp_path_factory.mktemp("wavefront").resolve()
    how = {"box": 60, "pixel_size_angstrom": 2.5, "particles_per_micrograph": 20, "seed": 4}
    halfmap.simulate(["phantom"], folder / "sim", n=240, snr=0.5, quiet=True, **how)
    truth = load_particles(folder / "sim" / "truth.star")
    right = truth.transfer
    one = np.ones(len(truth))
    wrong = replace(
        right,
        beam_tilt_x_mrad=1.5 * one,
        beam_tilt_y_mrad=-1.0 * one,
        odd_zernike=np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 25.0]]).repeat(len(truth), 0),
        defocus_u_angstrom=right.defocus_u_angstrom + 400 * (np.arange(len(truth)) // 20 - 5),
        defocus_v_angstrom=right.defocus_v_angstrom + 400 * (np.arange(len(truth)) // 20 - 5),
    )
    truth.with_transfer(wrong).write_star(folder / "spoiled.star")
    halfmap.ctfrefine(
        folder / "spoiled.star",
        folder / "ctf",
        symmetry="C4",
        beam_tilt=True,
        astigmatism=True,
        threads=1,
        quiet=True,
    )
    return folder / "ctf", right, wrong


def test_the_measured_wavefront_is_the_error_put_in_and_shows_what_was_not_fitted(refined) -> None:
    folder, right, wrong = refined
    told = {one["title"]: one for one in read_figures(folder)}
    figure = next(one for title, one in told.items() if title.startswith("Phase error of optics"))
    k = torch.tensor(figure["x"]).double()
    first = [one.take(np.array([0])) for one in (right, wrong)]
    odd = [wavefront_rad(one, k, torch.zeros_like(k))[0][0].numpy() for one in first]
    error = odd[0] - odd[1]
    measured, fitted = (
        np.array(figure["curves"][f"{name}, along x"], float) for name in ("measured", "fitted")
    )
    known = np.isfinite(measured)
    assert known.sum() > 0.5 * len(k)
    # a shift of all particles is a phase that no image tells from a wavefront: a straight line
    away = [one - np.polyval(np.polyfit(k[known], one[known], 1), k) for one in (measured, error)]
    assert np.abs(error[known]).max() > 0.5
    assert np.sqrt(np.mean((away[0] - away[1])[known] ** 2)) < 0.12
    assert np.abs((measured - fitted)[known]).max() > 0.15  # the trefoil


def test_pictures_of_what_was_refined_are_left(refined) -> None:
    folder = refined[0]
    for name in ("aberrations.png", "micrographs.png"):
        assert (folder / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert '"name": "aberrations.png"' in page
    assert '"name": "micrographs.png"' in page
    change = next(f for f in read_figures(folder) if f["title"].endswith("by micrograph"))
    expected = -400 * (np.arange(12) - 5)
    np.testing.assert_allclose(change["curves"]["median"], expected, atol=250)
