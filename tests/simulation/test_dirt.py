"""Dirty simulated sets: each kind of dirt against its truth columns and the clean set of the same
seed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from halfmap.commands.simulate import simulate
from halfmap.errors import InputError
from halfmap.io.mrc import open_stack, write_map
from halfmap.io.star import read_star
from halfmap.simulation.dirt import (
    DirtRecipe,
    add_neighbours,
    draw_dirt,
    mixed_noise,
    particle_radius_px,
)
from halfmap.simulation.forward_model import Recipe, draw_truth, noise_amplitude
from halfmap.transfer_function import evaluate, rfft2_frequencies


def _ball(box: int, radius: float, centre: float = 0.0) -> torch.Tensor:
    axis = torch.arange(box, dtype=torch.float32) - box // 2
    r2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + (axis - centre) ** 2
    return torch.exp(-r2 / (2 * radius**2))


def _simulate(tmp_path: Path, name: str, *, snr: float, n: int = 40, box: int = 33, **how):
    """Images, and the columns of truth.star and particles.star."""
    if not (tmp_path / "map.mrc").exists():
        write_map(tmp_path / "map.mrc", _ball(box, 2.5, centre=3.0).numpy(), 4.0)
    out = simulate(
        tmp_path / "map.mrc", tmp_path / name, n=n, snr=snr, seed=3, quiet=True, **how
    ).folder
    tables = [
        read_star(out / f"{file}.star").blocks["particles"] for file in ("truth", "particles")
    ]
    columns = [
        {
            x: np.array(t.floats(x))
            for x in t.names
            if x not in ("rlnImageName", "rlnMicrographName")
        }
        for t in tables
    ]
    return open_stack(out / "particles.mrcs").read(np.arange(n)), *columns


@pytest.mark.parametrize("box", [32, 33])
def test_neighbours_stand_beside_and_come_in_at_no_other_side(box: int) -> None:
    volume = _ball(box, 1.2)
    truth = draw_truth(Recipe(n=60, phase_shift_deg=84.26, defocus_range_angstrom=(0.0, 0.0)))
    truth, dirt = draw_dirt(DirtRecipe(neighbour_fraction=1.0), truth)
    one = torch.nonzero(dirt.neighbours == 1).flatten()
    assert 30 < len(one) < 60  # the others have two
    images = add_neighbours(torch.zeros(len(one), box, box), [volume], truth, dirt, one, 4.0)
    axis = torch.arange(box) - box // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    whole = float(volume.sum(0).max())
    seen = images.amax(dim=(1, 2)) > 0.8 * whole
    assert int(seen.sum()) > 15
    for image in images[seen]:
        peak = int(image.argmax())
        py, px = y.flatten()[peak], x.flatten()[peak]
        assert torch.hypot(px.float(), py.float()) > 2 * particle_radius_px(volume) - 1
        elsewhere = torch.hypot((x - px).float(), (y - py).float()) > 7
        assert float(image[elsewhere].abs().max()) < 0.1 * whole


def test_the_sphere_of_a_ball_holds_it() -> None:
    axis = torch.arange(48) - 24
    r = torch.sqrt((axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float())
    assert particle_radius_px((r <= 10).float()) == pytest.approx(10, abs=1)


def test_ramps_have_the_slope_of_the_truth_columns(tmp_path: Path) -> None:
    clean, _, _ = _simulate(tmp_path, "clean", snr=0.1)
    images, truth, _ = _simulate(tmp_path, "ramps", snr=0.1, ramp=0.5)
    axis = (np.arange(33) - 16) / np.arange(33).std()
    slopes = {}
    for name, stack in (("clean", clean), ("ramps", images)):
        flat = stack - stack.mean(axis=(1, 2), keepdims=True)
        slopes[name] = np.stack(
            [(flat * axis).mean(axis=(1, 2)), (flat * axis[:, None]).mean(axis=(1, 2))], axis=-1
        )
    expected = np.stack([truth["halfmapTruthRampX"], truth["halfmapTruthRampY"]], axis=-1)
    assert np.sqrt((expected**2).sum(1).mean()) == pytest.approx(0.5, rel=0.3)
    # what noise and particle alone have of a slope is in both; a ramp is a tenth of the background's
    # variance, by which images are divided
    found = slopes["ramps"] - slopes["clean"]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    assert (found * expected).sum() / (expected**2).sum() == pytest.approx(0.9, abs=0.12)


def test_the_star_states_another_ctf_than_images_have(tmp_path: Path) -> None:
    clean, clean_truth, _ = _simulate(tmp_path, "clean", snr=math.inf, n=400)
    images, truth, stated = _simulate(
        tmp_path,
        "wrong",
        snr=math.inf,
        n=400,
        defocus_error_angstrom=300.0,
        astigmatism_error_angstrom=200.0,
    )
    np.testing.assert_array_equal(images, clean)
    for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnAngleRot", "rlnOriginXAngst"):
        np.testing.assert_array_equal(truth[name], clean_truth[name])
    means = [(t["rlnDefocusU"] + t["rlnDefocusV"]) / 2 for t in (stated, truth)]
    assert np.std(means[0] - means[1]) == pytest.approx(300, rel=0.12)
    vectors = [
        (t["rlnDefocusU"] - t["rlnDefocusV"]) * np.exp(2j * np.deg2rad(t["rlnDefocusAngle"]))
        for t in (stated, truth)
    ]
    difference = (vectors[0] - vectors[1])[::40]  # one for each of ten micrographs
    assert np.sqrt((abs(difference) ** 2).mean()) == pytest.approx(200, rel=0.6)
    assert (stated["rlnDefocusU"] >= stated["rlnDefocusV"]).all()


def test_signal_and_bfactors_are_those_of_the_truth(tmp_path: Path) -> None:
    clean, _, _ = _simulate(tmp_path, "clean", snr=math.inf)
    images, truth, stated = _simulate(tmp_path, "signal", snr=math.inf, signal_spread=0.4)
    ratio = (images * clean).sum(axis=(1, 2)) / (clean**2).sum(axis=(1, 2))
    np.testing.assert_allclose(ratio, truth["halfmapTruthSignal"], rtol=1e-4)
    assert np.log(ratio).std() == pytest.approx(0.4, rel=0.3)
    images, truth, stated = _simulate(
        tmp_path, "bfactors", snr=math.inf, bfactor_spread_angstrom2=200.0
    )
    assert not stated["rlnCtfBfactor"].any()
    i = int(truth["rlnCtfBfactor"].argmax())
    k = np.fft.fftfreq(33, 4.0)
    s2 = k[:, None] ** 2 + k[None, : 33 // 2 + 1] ** 2
    envelope = np.exp(-truth["rlnCtfBfactor"][i] * s2 / 4)
    expected = np.fft.irfft2(np.fft.rfft2(clean[i]) * envelope, s=(33, 33))
    np.testing.assert_allclose(images[i], expected, atol=1e-3 * abs(clean[i]).max())


@pytest.mark.parametrize("box", [32, 33])
def test_ice_noise_has_passed_the_ctf(box: int) -> None:
    truth = draw_truth(Recipe(n=300, defocus_range_angstrom=(15000.0, 15000.0)))
    one = draw_truth(Recipe(n=1)).ctf.take(torch.zeros(300, dtype=torch.long))
    truth = type(truth)(**{**vars(truth), "ctf": one})
    amplitude = noise_amplitude(box, 4.0, 0.5)
    for share in (0.0, 0.4, 1.0):
        noise = mixed_noise(torch.arange(300), truth, amplitude, 4.0, share)
        assert float((noise**2).mean()) == pytest.approx(1, abs=0.02)
        power = (torch.fft.rfft2(noise).abs() ** 2).mean(0)
        transfer = evaluate(one.take(torch.tensor([0])), *rfft2_frequencies(box, 4.0))
        ctf = transfer.amplitude.reshape(box, -1)
        in_zeros = ctf.abs() < 0.1
        left = float((power / amplitude**2)[in_zeros].mean()) / box**2
        assert left == pytest.approx(1 - share, abs=0.05)


def test_hot_pixels_are_counted(tmp_path: Path) -> None:
    images, truth, _ = _simulate(tmp_path, "hot", snr=0.2, n=60, hot_pixel_fraction=0.3)
    distance = abs(images - np.median(images, axis=(1, 2), keepdims=True))
    typical = np.percentile(distance, 95, axis=(1, 2), keepdims=True) / 2  # about one deviation
    found = (distance > 15 * typical).sum(axis=(1, 2))
    assert 8 <= (truth["halfmapTruthHotPixels"] > 0).sum() <= 28
    np.testing.assert_array_equal(found, truth["halfmapTruthHotPixels"])


def test_a_dirty_set_shows_the_particles_of_the_clean_one(tmp_path: Path) -> None:
    _, clean, _ = _simulate(tmp_path, "clean", snr=0.1)
    _, truth, _ = _simulate(tmp_path, "dirty", snr=0.1, dirty=True, junk_fraction=0.0)
    for name in clean:
        if name not in ("rlnCtfBfactor",):
            np.testing.assert_array_equal(clean[name], truth[name])
    assert (truth["halfmapTruthNeighbours"] > 0).mean() == pytest.approx(0.4, abs=0.25)
    assert not any(name.startswith("halfmapTruthRamp") for name in clean)


def test_what_noise_measures_needs_noise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ramp.*--snr is inf"):
        _simulate(tmp_path, "no", snr=math.inf, ramp=0.3)
