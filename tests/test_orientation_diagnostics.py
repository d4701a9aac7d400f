"""Sampling factors against closed forms; cFAR of noise made anisotropic as views make it; the
command on maps and on a job."""

import math

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.mrc import write_map
from halfmap.io.star import read_star
from halfmap.masks import soft_sphere
from halfmap.orientation_diagnostics import (
    conical_fsc,
    fibonacci_hemisphere,
    fourier_sampling,
    viewing_directions,
    warning_in_words,
)
from halfmap.so3 import random_rotations
from halfmap.symmetries import symmetry_matrices

PIXEL = 2.0


def _even_views(n: int) -> torch.Tensor:
    half = fibonacci_hemisphere(n // 2)
    return torch.cat([half, -half])


def test_even_views_have_a_factor_of_one_and_side_views_eight_over_pi_squared() -> None:
    assert fourier_sampling(_even_views(20000)).scf_star == pytest.approx(1, abs=0.02)
    turn = torch.arange(20000).double() * (2 * math.pi / 20000)
    side = torch.stack([turn.cos(), turn.sin(), torch.zeros_like(turn)], 1)
    found = fourier_sampling(side)
    assert found.scf_star == pytest.approx(8 / math.pi**2, abs=0.03)
    assert found.missing == 0


@pytest.mark.parametrize("half_angle_deg", [15, 30, 60])
def test_views_from_a_cone_leave_out_the_cone_about_its_axis(half_angle_deg: float) -> None:
    views = _even_views(60000)
    top = views[views[:, 2] >= math.cos(math.radians(half_angle_deg))]
    found = fourier_sampling(top)
    # a direction d is met by a view perpendicular to it, within the thickness of a slice: those
    # within 90 - angle of z are not
    thickness = math.asin(max(0.01, 50 / min(len(top), 20000)))
    reached = math.sin(math.radians(half_angle_deg) + thickness)
    assert found.missing == pytest.approx(1 - reached, abs=0.02)
    assert found.scf_star < 1 - found.missing + 0.02


def test_symmetry_mates_count_as_views() -> None:
    rotations = random_rotations(50, torch.Generator().manual_seed(1))
    mates = viewing_directions(rotations, symmetry_matrices("C4"))
    assert mates.shape == (200, 3)
    own = rotations[:, 2].double()
    turned = torch.einsum("gij,nj->ngi", symmetry_matrices("C4").mT, own).reshape(-1, 3)
    distance = torch.cdist(mates, turned).min(1).values
    assert distance.max() < 1e-6
    # all views from one side: C4 spreads them round the axis
    one = torch.eye(3)[None] @ symmetry_matrices("D2")[:1].float()
    assert len(viewing_directions(one, symmetry_matrices("O"))) == 24


def _halves(shape: str, severity: float, *, box: int = 64, seed: int = 1) -> list[torch.Tensor]:
    """A rod, a ball or a disc of random atoms in noise whose variance is one over the sampling of
    views of which all but a share are near z."""
    line = torch.arange(box).double() - box // 2
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    half_axes = {"ball": (15, 15, 15), "rod": (10, 10, 24), "disc": (22, 22, 9)}[shape]
    inside = sum((a / r) ** 2 for a, r in zip((x, y, z), half_axes, strict=True)) <= 1
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(box, box, box, generator=generator) * inside
    frequency = torch.fft.fftfreq(box, 1 / box)
    kz, ky, kx = torch.meshgrid(
        frequency, frequency, torch.arange(box // 2 + 1).float(), indexing="ij"
    )
    radius = (kx**2 + ky**2 + kz**2).sqrt().clamp_min(0.5)
    signal = torch.fft.irfftn(
        torch.fft.rfftn(atoms) * torch.exp(-((radius / (box / 5)) ** 2)), s=(box,) * 3
    )
    # views near z meet k with the probability of a slice at right angles to z: more near the
    # equator, hardly any near z
    sine = (1 - (kz / radius) ** 2).clamp_min(0).sqrt()
    sampling = (1 - severity) + severity * sine**8 * 2
    noise = [
        torch.fft.irfftn(
            torch.fft.rfftn(torch.randn(box, box, box, generator=generator)) / sampling.sqrt(),
            s=(box,) * 3,
        )
        for _ in range(2)
    ]
    level = 0.03 * float(signal[inside].std()) * 5
    return [(signal + level * one).float() for one in noise]


def _cfar(shape: str, severity: float) -> float:
    half1, half2 = _halves(shape, severity)
    mask = soft_sphere(64, radius_px=25, edge_px=4)
    return conical_fsc(half1, half2, pixel_size_angstrom=PIXEL, mask=mask).cfar


def test_even_mild_and_severe_views_are_ranked_and_the_shape_does_not_matter() -> None:
    found = {
        severity: [_cfar(shape, severity) for shape in ("ball", "rod", "disc")]
        for severity in (0.0, 0.8, 0.97)
    }
    even, mild, severe = (found[s] for s in (0.0, 0.8, 0.97))
    assert min(even) > 0.8
    assert max(mild) < min(even) - 0.05
    assert max(severe) < min(mild) - 0.1
    for values in (even, mild, severe):
        assert max(values) - min(values) < 0.1 * max(max(values), 0.5)


def test_where_a_direction_is_hardly_seen_chance_in_few_coefficients_does_not_decide() -> None:
    """Nine of ten parts of the sampling near z are gone and more: curves end where signal does, and
    not at the first shells, whose cones hold a dozen coefficients."""
    mask = soft_sphere(64, radius_px=25, edge_px=4)
    found = {
        shape: np.median(
            [
                conical_fsc(
                    *_halves(shape, 0.99, seed=seed), pixel_size_angstrom=PIXEL, mask=mask
                ).cfar
                for seed in (1, 2, 3)
            ]
        )
        for shape in ("ball", "rod", "disc")
    }
    assert min(found.values()) > 0.3
    assert max(found.values()) < 0.5
    assert max(found.values()) - min(found.values()) < 0.1 * max(found.values())


def test_cones_of_one_map_see_it_as_the_whole_does() -> None:
    half1, half2 = _halves("ball", 0.0, box=49)
    cones = conical_fsc(half1, half2, pixel_size_angstrom=PIXEL, axes=60)
    apart = cones.curves.mean(0) - cones.whole.correlation[: cones.curves.shape[1]]
    assert apart.abs().max() < 0.06
    assert warning_in_words(cones) is None
    # the whole sphere as one cone is the FSC itself
    one = conical_fsc(half1, half2, pixel_size_angstrom=PIXEL, axes=1, half_angle_deg=90)
    torch.testing.assert_close(
        one.curves[0], one.whole.correlation[: one.curves.shape[1]], atol=2e-3, rtol=0
    )


def test_the_worst_direction_is_where_the_noise_is() -> None:
    cones = conical_fsc(
        *_halves("ball", 0.995),
        pixel_size_angstrom=PIXEL,
        mask=soft_sphere(64, radius_px=25, edge_px=4),
    )
    assert cones.axes[int(cones.areas.argmin()), 2] > 0.85
    assert cones.axes[int(cones.areas.argmax()), 2] < 0.4
    words = warning_in_words(cones)
    assert words is not None
    assert "cFAR" in words


def test_the_command_on_half_maps_and_particles(tmp_path) -> None:
    for number, half in enumerate(_halves("rod", 0.995), start=1):
        write_map(tmp_path / f"half{number}.mrc", half.numpy(), PIXEL)
    simulated = halfmap.simulate(
        "phantom", tmp_path / "sim", n=60, snr=1.0, box=24, pixel_size_angstrom=8.0, quiet=True
    )
    pair = [tmp_path / "half1.mrc", tmp_path / "half2.mrc"]
    found = halfmap.orientations(
        pair, tmp_path / "out", particles=simulated.folder / "truth.star", quiet=True
    )
    assert found.cfar < 0.5
    assert "cFAR" in found.notes[0]
    general = read_star(tmp_path / "out" / "orientations.star").blocks["general"]
    assert general.floats("halfmapConicalFscAreaRatio")[0] == pytest.approx(found.cfar, abs=1e-5)
    assert general.floats("halfmapSamplingCompensationFactor")[0] == pytest.approx(
        found.scf_star, abs=1e-5
    )
    for name in ("directional_fsc.png", "orientations.png"):
        assert (tmp_path / "out" / "pictures" / name).stat().st_size > 5000
    alone = halfmap.orientations(pair, tmp_path / "alone", quiet=True)
    assert (alone.cfar, alone.scf_star) == (found.cfar, None)
    with pytest.raises(InputError, match="no poses"):
        halfmap.orientations(
            pair, tmp_path / "no", particles=simulated.folder / "particles.star", quiet=True
        )
    assert not (tmp_path / "no").exists()
    assert np.isfinite(found.best_angstrom)
