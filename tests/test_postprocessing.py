"""Sharpening: closed forms of B-factor and MTF, noise alone stays noise, RELION beside, bad input."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.fourier import filter_shells, lowpass
from halfmap.io.mrc import read_map, write_map
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.masks import soft_sphere
from halfmap.postprocessing import SharpeningOptions, fsc_weights, read_mtf, sharpen
from halfmap.resolution import half_map_curves, resolution_at, shell_power

PIXEL = 1.5
B_FACTOR = -150.0


def _noise(box: int, seed: int) -> torch.Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))


def _frequency(box: int) -> torch.Tensor:
    return torch.arange(box // 2 + 1).double() / (box * PIXEL)


def _decaying(box: int, b_factor: float, seed: int = 1) -> torch.Tensor:
    """Random atoms in a sphere: a flat spectrum inside it, times exp(b s^2 / 4)."""
    inside = soft_sphere(box, radius_px=0.3 * box, edge_px=3)
    atoms = _noise(box, seed) * inside
    return filter_shells(atoms, torch.exp(b_factor / 4 * _frequency(box) ** 2), dimensions=3)


@pytest.fixture(scope="module", params=[64, 65])
def halves(request) -> list[torch.Tensor]:
    box = request.param
    truth = _decaying(box, B_FACTOR)
    return [truth + 0.08 * _noise(box, seed) for seed in (2, 3)]


@pytest.fixture(scope="module")
def mask(halves) -> torch.Tensor:
    box = len(halves[0])
    return soft_sphere(box, radius_px=0.33 * box, edge_px=5)


@pytest.fixture(scope="module")
def curves(halves, mask):
    return half_map_curves(*halves, pixel_size_angstrom=PIXEL, mask=mask)


def test_the_decay_put_in_is_fitted_and_taken_out(halves, curves) -> None:
    made = sharpen(*halves, curves, SharpeningOptions(fit_to_angstrom=5.0))
    assert made.b_factor == pytest.approx(B_FACTOR, abs=0.1 * abs(B_FACTOR))
    # what was a decay is flat between 10 and 5 A
    frequency = made.guinier.squared_frequency.sqrt()
    flat = made.guinier.sharpened[(frequency > 1 / 10) & (frequency < 1 / 5)]
    assert np.ptp(flat.numpy()) < 0.3
    given = sharpen(*halves, curves, SharpeningOptions(b_factor=made.b_factor))
    torch.testing.assert_close(given.density, made.density)
    assert given.guinier.slope is None


def test_the_map_has_the_gain_that_is_told(halves, curves) -> None:
    """Between the resolution and Nyquist nothing is left, below it `w exp(-B s^2 / 4)`."""
    made = sharpen(*halves, curves, SharpeningOptions(b_factor=-50.0))
    average = (halves[0] + halves[1]) / 2
    gain = (shell_power(made.density[None]) / shell_power(average[None]))[0].sqrt()
    at = len(average) * PIXEL / made.lowpass_angstrom
    weight = fsc_weights(curves.final.correlation)
    expected = weight * torch.exp(50 / 4 * _frequency(len(average)) ** 2)
    below = slice(2, int(at) - 2)
    torch.testing.assert_close(gain[below], expected[below].to(gain), rtol=0.1, atol=0.01)
    assert int(at) + 3 < len(gain)
    assert gain[int(at) + 3 :].max() < 1e-3


def test_weights_end_where_the_fsc_does() -> None:
    weights = fsc_weights(torch.tensor([1.0, 0.5, 0.0, 0.5]))
    torch.testing.assert_close(weights, torch.tensor([1.0, (1 / 1.5) ** 0.5, 0.0, 0.0]))


def test_an_mtf_is_divided_out(halves, curves, tmp_path) -> None:
    nyquist = np.linspace(0, 0.5, 11)
    table = {"rlnResolutionInversePixel": nyquist, "rlnMtfValue": 1 - nyquist}
    write_star(tmp_path / "mtf.star", {"mtf": Table.from_columns(table)})
    plain, over = (
        sharpen(*halves, curves, SharpeningOptions(b_factor=0.0, mtf=mtf))
        for mtf in (None, read_mtf(tmp_path / "mtf.star", 2 * PIXEL))
    )
    gain = (shell_power(over.density[None]) / shell_power(plain.density[None]))[0].sqrt()
    # detector pixels of twice the map's: a frequency per A is twice as many per detector pixel
    expected = 1 / (1 - (2 * PIXEL * _frequency(len(halves[0]))).clamp_max(0.5))
    below = slice(2, int(0.8 * len(halves[0]) * PIXEL / plain.lowpass_angstrom))
    torch.testing.assert_close(gain[below], expected[below].to(gain), rtol=0.03, atol=0)


def test_a_coarse_map_is_not_sharpened_and_says_so() -> None:
    truth = lowpass(_decaying(48, 0.0), 14.0, PIXEL, dimensions=3)
    halves = [truth + 1e-4 * _noise(48, seed) for seed in (5, 6)]
    curves = half_map_curves(*halves, pixel_size_angstrom=PIXEL)
    made = sharpen(*halves, curves, SharpeningOptions(lowpass_angstrom=14.0))
    assert made.b_factor <= 0
    few = sharpen(*halves, curves, SharpeningOptions(fit_from_angstrom=3.2))
    assert few.b_factor == 0
    assert "too few" in few.notes[0]
    with pytest.raises(InputError, match="too few"):
        sharpen(*halves, curves, SharpeningOptions(fit_from_angstrom=10, fit_to_angstrom=9.5))


@pytest.mark.parametrize("radius", [5.0, 9.0, 14.0])
def test_a_tight_mask_on_noise_gains_nothing(radius: float) -> None:
    """Corrected curves of noise are 0 on average, however tight the mask is, and never above the
    masked ones."""
    mask = soft_sphere(48, radius_px=radius, edge_px=2)
    curves = [
        half_map_curves(
            *(_noise(48, 100 + 2 * seed + h) for h in (0, 1)), pixel_size_angstrom=PIXEL, mask=mask
        )
        for seed in range(12)
    ]
    found = torch.stack([one.corrected.correlation for one in curves])[:, 3:]
    assert found.mean().abs() < 0.05
    # a shell of so small a mask holds few coefficients
    assert (found.mean(0) < 4 * found.std(0) / len(curves) ** 0.5).all()
    for one in curves:
        assert (one.corrected.correlation <= one.masked.correlation + 1e-9).all()


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(halves, mask, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    for number, half in enumerate(halves, start=1):
        write_map(folder / f"half{number}.mrc", half.numpy(), PIXEL)
    write_map(folder / "mask.mrc", mask.numpy(), PIXEL)
    return folder


def _pair(folder: Path) -> list[Path]:
    return [folder / "half1.mrc", folder / "half2.mrc"]


def test_the_command_writes_map_table_and_pictures(files, tmp_path) -> None:
    import starfile

    done = halfmap.postprocess(
        _pair(files), tmp_path / "pp", mask=files / "mask.mrc", fit_to_angstrom=5.0, quiet=True
    )
    blocks = starfile.read(tmp_path / "pp" / "postprocess.star")
    assert set(blocks) == {"general", "fsc", "guinier"}
    assert float(blocks["general"]["rlnBfactorUsedForSharpening"]) == pytest.approx(
        done.b_factor, abs=1e-3
    )
    assert blocks["general"]["rlnMaskName"] == str(files / "mask.mrc")
    assert "mask.mrc" in done.summary
    for name in ("map_sharpened.mrc", "map_sharpened_masked.mrc", "mask.mrc", "fsc.star"):
        assert (tmp_path / "pp" / name).stat().st_size > 500
    for name in ("fsc.png", "guinier.png", "map_sharpened.png"):
        assert (tmp_path / "pp" / "pictures" / name).stat().st_size > 5000


@pytest.mark.skipif(
    shutil.which("relion_postprocess") is None, reason="relion_postprocess is not installed"
)
def test_relion_finds_the_same_curves_b_factor_and_resolution(files, curves, halves) -> None:
    asked = SharpeningOptions(fit_to_angstrom=5.0)
    made = sharpen(*halves, curves, asked)
    command = ["relion_postprocess", "--i", "half1.mrc", "--i2", "half2.mrc", "--o", "relion"]
    command += ["--angpix", f"{PIXEL}", "--mask", "mask.mrc", "--auto_bfac", "--autob_lowres", "10"]
    command += ["--autob_highres", "5", "--low_pass", "-1"]
    subprocess.run(command, cwd=files, capture_output=True)  # it wants ghostscript at the end
    blocks = read_star(files / "relion.star").blocks
    table = blocks["fsc"]
    general = blocks["general"]
    for curve, name, tolerance in (
        (curves.unmasked, "rlnFourierShellCorrelationUnmaskedMaps", 0.01),
        (curves.masked, "rlnFourierShellCorrelationMaskedMaps", 0.01),
        # random phases are drawn by each: the mean over shells is what can be compared
        (curves.corrected, "rlnFourierShellCorrelationCorrected", None),
    ):
        ours, theirs = curve.correlation.numpy(), table.floats(name)
        apart = np.abs(ours.clip(0) - theirs.clip(0))[2:]
        assert apart.mean() < 0.01
        assert tolerance is None or apart.max() < 2 * tolerance
    b_factor = general.floats("rlnBfactorUsedForSharpening")[0]
    assert made.b_factor == pytest.approx(b_factor, rel=0.05)
    extent = len(halves[0]) * PIXEL
    theirs = extent / general.floats("rlnFinalResolution")[0]
    assert (
        abs(extent / resolution_at(curves.final, 0.143) - theirs) <= 1.5
    )  # they count whole shells
    map_of_theirs = torch.from_numpy(read_map(files / "relion.mrc")[0])
    both = torch.stack([map_of_theirs.flatten(), made.density.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.98


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"source": ("half1.mrc", "half1.mrc")}, "is the same map"),
        ({"source": ("half1.mrc", "small.mrc")}, "box is 32"),
        ({"source": ("half1.mrc", "turned.mrc")}, "agree nowhere"),
        ({"source": "none"}, "nothing is there"),
        ({"mask": "small.mrc"}, "box is"),
        ({"mask": "empty.mrc"}, "nothing is left|every value is 0"),
        ({"mask": "all.mrc"}, "cut by the box"),
        ({"mtf": "none.star"}, "cannot be read"),
        ({"mtf": "wrong.star"}, "rlnResolutionInversePixel"),
        ({"mtf_pixel_size_angstrom": 1.0}, "--mtf"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(files, tmp_path, arguments, what) -> None:
    box = len(read_map(files / "half1.mrc")[0])
    write_map(files / "small.mrc", _noise(32, 1).numpy(), PIXEL)
    write_map(files / "turned.mrc", -read_map(files / "half2.mrc")[0], PIXEL)
    write_map(files / "empty.mrc", np.zeros((box,) * 3, np.float32), PIXEL)
    write_map(files / "all.mrc", np.ones((box,) * 3, np.float32), PIXEL)
    write_star(files / "wrong.star", {"x": Table.from_columns({"rlnMtfValue": [1.0, 0.5]})})
    given = {
        name: files / value if isinstance(value, str) else value
        for name, value in arguments.items()
        if name != "source"
    }
    source = arguments.get("source", ("half1.mrc", "half2.mrc"))
    place = files / source if isinstance(source, str) else [files / one for one in source]
    with pytest.raises(InputError, match=what) as refused:
        halfmap.postprocess(place, tmp_path / "out", quiet=True, **given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
