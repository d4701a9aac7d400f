import numpy as np
import pytest
import torch

from halfmap.errors import InputError
from halfmap.fourier import shell_index
from halfmap.fsc_files import compare_maps, write_fsc_star
from halfmap.masks import soft_sphere
from halfmap.resolution import (
    Curve,
    fourier_shell_correlation,
    half_map_curves,
    phase_randomise,
    phase_randomised_fsc,
    resolution_at,
    shell_correlations,
    shell_power,
    ssnr_from_fsc,
)


def _noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _coloured(
    box: int, dimensions: int, *, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """White noise given an amplitude that falls as exp(-s / 6)."""
    shells = shell_index(box, dimensions)
    transform = torch.fft.rfftn(_noise(*(box,) * dimensions, seed=seed, dtype=dtype)) * torch.exp(
        -shells / 6
    )
    return torch.fft.irfftn(transform, s=(box,) * dimensions).to(dtype)


@pytest.mark.parametrize("box", [40, 41])
@pytest.mark.parametrize(
    ("dimensions", "dtype"), [(2, torch.float64), (3, torch.float32), (3, torch.float64)]
)
def test_fsc_of_signal_plus_independent_noise_is_ssnr_over_one_plus_ssnr(
    box: int, dimensions: int, dtype: torch.dtype
) -> None:
    signal = _coloured(box, dimensions, seed=1, dtype=dtype)
    size = (box,) * dimensions
    scale = 0.3
    a, b = (signal + scale * _noise(*size, seed=seed, dtype=dtype) for seed in (2, 3))
    curve = fourier_shell_correlation(a, b, pixel_size_angstrom=1.7)
    # the signal is known, so its power in each shell is exact; only the noise is random
    ssnr = shell_power(signal.unsqueeze(0))[0] / (scale**2 * box**dimensions)
    expected = ssnr / (1 + ssnr)
    shells = shell_index(box, dimensions)
    samples = torch.bincount(shells.flatten())[
        : box // 2 + 1
    ]  # about the independent complex coefficients of a shell
    error = (
        1 - expected**2
    ) / samples.sqrt()  # of a correlation coefficient of n samples, doubled below
    deviation = (curve.correlation - expected).abs()[1:] / error[1:]
    assert deviation.max() < 4
    assert deviation.mean() < 1.2
    estimated = ssnr_from_fsc(curve.correlation)
    well_known = (ssnr > 0.3) & (ssnr < 10) & (samples > 100)
    torch.testing.assert_close(estimated[well_known], ssnr[well_known], rtol=0.35, atol=0)


@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (16, 16, 16), (15, 15, 15)])
def test_each_coefficient_counts_once(shape: tuple[int, ...]) -> None:
    """The half transform with its weights is the plain sum over numpy's full transform."""
    a, b = _noise(*shape, seed=4, dtype=torch.float64), _noise(*shape, seed=5, dtype=torch.float64)
    box = shape[0]
    k = np.fft.fftfreq(box, 1 / box)
    radius = np.rint(np.sqrt(sum(axis**2 for axis in np.meshgrid(*[k] * len(shape))))).astype(int)
    fa, fb = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    expected = []
    for shell in range(box // 2 + 1):
        inside = radius == shell
        power = np.sqrt((np.abs(fa[inside]) ** 2).sum() * (np.abs(fb[inside]) ** 2).sum())
        expected.append((fa[inside] * fb[inside].conj()).real.sum() / power)
    expected[0] = 1
    np.testing.assert_allclose(
        fourier_shell_correlation(a, b, pixel_size_angstrom=1.0).correlation, expected, atol=1e-12
    )


def test_identical_maps_give_one_opposite_maps_minus_one_and_scale_does_not_matter() -> None:
    a = _noise(20, 20, 20, seed=6)
    torch.testing.assert_close(
        fourier_shell_correlation(a, 3 * a + 2, pixel_size_angstrom=1.0).correlation,
        torch.ones(11).double(),
    )
    assert fourier_shell_correlation(a, -a, pixel_size_angstrom=1.0).correlation[1:].max() == -1
    assert (
        fourier_shell_correlation(a, torch.zeros_like(a), pixel_size_angstrom=1.0)
        .correlation[1:]
        .abs()
        .max()
        == 0
    )


def test_a_shift_turns_the_phases_as_the_shift_theorem_says() -> None:
    """Shifted by t along x, white maps have FSC(s) = mean of cos(2 pi kx t / N) over the shell:
    sinc(2 s t / N) in 3D."""
    box, shift = 64, 1
    a = _noise(box, box, box, seed=7)
    curve = fourier_shell_correlation(a, a.roll(shift, 2), pixel_size_angstrom=1.0)
    s = np.arange(6, 30)
    np.testing.assert_allclose(curve.correlation[6:30], np.sinc(2 * s * shift / box), atol=0.05)


def test_batches_are_their_pairs() -> None:
    a, b = _noise(3, 18, 18, seed=8), _noise(3, 18, 18, seed=9)
    each = torch.stack(
        [
            fourier_shell_correlation(x, y, pixel_size_angstrom=1.0).correlation
            for x, y in zip(a, b, strict=True)
        ]
    )
    torch.testing.assert_close(shell_correlations(a, b), each)


def test_resolution_is_the_first_crossing_interpolated() -> None:
    def at(values: list[float], threshold: float) -> float:
        return resolution_at(
            Curve(box=20, pixel_size_angstrom=3.0, correlation=torch.tensor(values)), threshold
        )

    assert at([1, 0.9, 0.7, 0.3, 0.8, 0.1], 0.5) == pytest.approx(60 / 2.5)
    assert at([1, 0.9, 0.7, 0.5, 0.3, 0.1], 0.5) == pytest.approx(60 / 3)
    assert at([1, 0.9, 0.9, 0.9, 0.9, 0.9], 0.5) == pytest.approx(60 / 5)
    assert at([1, 0.4, 0.9, 0.9, 0.9, 0.9], 0.5) == float("inf")


def test_ssnr_of_the_sum_is_twice_that_of_a_half_and_stays_finite() -> None:
    fsc = torch.tensor([1.0, 0.5, 0.143, 0.0, -0.2])
    half, both = ssnr_from_fsc(fsc), ssnr_from_fsc(fsc, of_sum=True)
    torch.testing.assert_close(half[1:], torch.tensor([1.0, 0.143 / 0.857, 0.0, 0.0]))
    torch.testing.assert_close(both[1:], 2 * half[1:])
    assert torch.isfinite(half).all()
    assert half[0] == both[0] == 1e4


@pytest.mark.parametrize("box", [24, 25])
def test_randomised_phases_keep_amplitudes_and_lose_the_correlation(box: int) -> None:
    volume = _coloured(box, 3, seed=10)
    random = phase_randomise(volume, 6, torch.Generator().manual_seed(11))
    torch.testing.assert_close(
        shell_power(random[None]), shell_power(volume[None]), rtol=1e-3, atol=1e-6
    )
    curve = fourier_shell_correlation(volume, random, pixel_size_angstrom=1.0).correlation
    assert curve[:6].min() > 0.9999
    assert curve[6:].abs().max() < 0.3


@pytest.mark.parametrize("box", [24, 25])
def test_the_fsc_of_random_phases_is_the_mean_of_many_draws(box: int) -> None:
    mask = soft_sphere(box, radius_px=6, edge_px=1)
    generator = torch.Generator().manual_seed(20)
    common = _coloured(box, 3, seed=21) * soft_sphere(box, radius_px=7, edge_px=2)
    halves = [common + 0.02 * _noise(box, box, box, seed=seed) for seed in (22, 23)]
    drawn = torch.stack(
        [
            fourier_shell_correlation(
                *(phase_randomise(half, 4, generator) for half in halves),
                pixel_size_angstrom=1.0,
                mask=mask,
            ).correlation
            for _ in range(100)
        ]
    )
    error = (drawn.std(0) / 10).clamp_min(1e-3)
    found = phase_randomised_fsc(*halves, mask, 4)
    assert found[5] > 0.1  # leaked by the mask
    # where the correction is made; before, a few coefficients make a mean of quotients
    assert bool(((found - drawn.mean(0)).abs() < 4 * error)[5:].all())
    # one draw is off by far more than the closed form
    assert drawn.std(0)[6:].max() > 4 * (found - drawn.mean(0)).abs()[6:].max()


def test_the_mask_correction_takes_out_what_the_mask_put_in() -> None:
    """Two maps of independent noise beyond shell 10 agree there by a tight mask alone; the
    corrected curve must not."""
    box = 48
    shells = shell_index(box, 3)
    inside = soft_sphere(box, radius_px=8, edge_px=2)
    common = torch.fft.irfftn(
        torch.fft.rfftn(_coloured(box, 3, seed=12) * inside) * (shells <= 10), s=(box,) * 3
    )
    halves = [common + 0.002 * _noise(box, box, box, seed=seed) for seed in (13, 14)]
    mask = soft_sphere(box, radius_px=7, edge_px=1)
    curves = half_map_curves(*halves, pixel_size_angstrom=2.0, mask=mask)
    assert curves.masked is not None
    assert curves.corrected is not None
    assert curves.randomised_from == 11
    assert curves.masked.correlation[13:16].mean() > 0.2  # leaked by the mask
    assert curves.corrected.correlation[13:].abs().mean() < 0.1
    torch.testing.assert_close(curves.corrected.correlation[:13], curves.masked.correlation[:13])
    assert curves.final is curves.corrected


def test_shapes_that_do_not_fit_are_refused() -> None:
    a = torch.zeros(8, 8, 8)
    with pytest.raises(InputError, match="one shape"):
        fourier_shell_correlation(a, torch.zeros(10, 10, 10), pixel_size_angstrom=1.0)
    with pytest.raises(InputError, match="sides of equal length"):
        fourier_shell_correlation(a[:6], a[:6], pixel_size_angstrom=1.0)
    with pytest.raises(InputError, match="mask"):
        fourier_shell_correlation(a, a, pixel_size_angstrom=1.0, mask=torch.zeros(10, 10, 10))


def test_the_star_is_read_by_an_independent_reader(tmp_path) -> None:
    import starfile

    a, b = _coloured(16, 3, seed=15), _coloured(16, 3, seed=16)
    curves = half_map_curves(
        a, (a + b), pixel_size_angstrom=2.0, mask=soft_sphere(16, radius_px=5, edge_px=2)
    )
    write_fsc_star(tmp_path / "fsc.star", curves)
    blocks = starfile.read(tmp_path / "fsc.star")
    table = blocks["fsc"]
    assert float(blocks["general"]["rlnFinalResolution"]) == pytest.approx(
        resolution_at(curves.final, 0.143), abs=1e-5
    )
    np.testing.assert_array_equal(table["rlnSpectralIndex"], np.arange(9))
    np.testing.assert_allclose(
        table["rlnFourierShellCorrelationUnmaskedMaps"], curves.unmasked.correlation, atol=1e-6
    )
    np.testing.assert_allclose(
        table["rlnFourierShellCorrelationCorrected"], curves.corrected.correlation, atol=1e-6
    )
    np.testing.assert_allclose(table["rlnAngstromResolution"][1:], 32 / np.arange(1, 9), atol=1e-5)


def test_fsc_command_prints_and_writes_what_the_functions_give(tmp_path) -> None:
    import halfmap
    from halfmap.io.mrc import write_map

    a = _coloured(24, 3, seed=17)
    b = a + 0.1 * _noise(24, 24, 24, seed=18)
    write_map(tmp_path / "a.mrc", a.numpy(), 2.0)
    write_map(tmp_path / "b.mrc", b.numpy(), 2.0)
    write_map(tmp_path / "c.mrc", b.numpy(), 2.5)
    write_map(tmp_path / "d.mrc", b[:20, :20, :20].numpy(), 2.0)
    maps = [str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc")]
    result = halfmap.fsc(*maps, diameter_angstrom=30, out=tmp_path / "fsc.star")
    half = resolution_at(fourier_shell_correlation(a, b, pixel_size_angstrom=2.0), 0.5)
    assert f"{half:.2f}" in result.lines[1]
    assert (tmp_path / "fsc.star").exists()
    assert (tmp_path / "fsc.png").stat().st_size > 1000
    for other, what in (("c.mrc", "pixel size"), ("d.mrc", "box is 20")):
        with pytest.raises(InputError, match=what):
            halfmap.fsc(maps[0], tmp_path / other)
    with pytest.raises(InputError, match="at most one"):
        compare_maps(*maps, mask=maps[0], diameter_angstrom=30.0)
    with pytest.raises(InputError, match="at most the box"):
        compare_maps(*maps, diameter_angstrom=60.0)


def test_a_mask_that_the_box_cuts_is_refused_in_a_line(tmp_path) -> None:
    import halfmap
    from halfmap.io.mrc import write_map

    for name, seed in (("a", 1), ("b", 2)):
        write_map(tmp_path / f"{name}.mrc", _noise(24, 24, 24, seed=seed).numpy(), 2.0)
    ball = soft_sphere(24, radius_px=6, edge_px=2)
    for name, mask in (("inside", ball), ("cut", ball.roll(8, 2))):
        write_map(tmp_path / f"{name}.mrc", mask.numpy(), 2.0)
    maps = [tmp_path / "a.mrc", tmp_path / "b.mrc"]
    with pytest.raises(InputError, match=r"cut\.mrc: is cut by the box"):
        halfmap.fsc(*maps, mask=tmp_path / "cut.mrc", out=tmp_path / "fsc.star")
    assert not (tmp_path / "fsc.star").exists()
    assert halfmap.fsc(*maps, mask=tmp_path / "inside.mrc").curves.masked is not None
