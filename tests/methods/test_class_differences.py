"""Classes differ as much as their half maps agree they do: the posterior mean of a known mixture; and
images are as sure of their class as they are right."""

import numpy as np
import pytest
import torch

import halfmap
from halfmap.fourier import filter_shells
from halfmap.io.star import read_star
from halfmap.methods import class_check, reference_update
from halfmap.methods.class_differences import difference_ssnr, shrunk_differences
from halfmap.resolution import shell_power

BOX = 25  # odd
SIZES = torch.tensor([300, 100])


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, BOX, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def _mixture(difference: float) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Two classes that share most of their density, weighed by size apart by `difference`, and half
    maps with the noise that goes with one over the size of a class."""
    falling = torch.linspace(1, 0, BOX // 2 + 1)
    common, own = (filter_shells(_noise(seed), falling, dimensions=3) for seed in (1, 2))
    true = torch.stack([5 * common + difference * own, 5 * common - 3 * difference * own])
    spread = SIZES.double().rsqrt().float()[:, None, None, None]
    return true, tuple(true + 10 * spread * _noise(seed, 2) for seed in (3, 4))


def test_shrunk_maps_are_nearer_to_the_truth():
    """By the closed form, the error of a difference with the power P and noise N falls from N to
    P N / (P + N), shell by shell."""
    true, halves = _mixture(difference=0.5)
    ssnr = difference_ssnr(halves, SIZES, None)
    shrunk = shrunk_differences(halves[0], SIZES, ssnr)

    def error(maps: torch.Tensor) -> torch.Tensor:
        return shell_power((maps[0] - maps[1] - true[0] + true[1])[None])[0]

    noise, left = error(halves[0]), error(shrunk)
    signal = shell_power((true[0] - true[1])[None])[0]
    expected = signal * noise / (signal + noise)
    within = slice(3, BOX // 2)  # beyond a handful of coefficients
    assert left[within].sum() < 0.5 * noise[within].sum()
    assert left[within].sum() == pytest.approx(float(expected[within].sum()), rel=0.25)


def test_what_is_common_stays():
    _, halves = _mixture(difference=0.5)
    shrunk = shrunk_differences(halves[0], SIZES, difference_ssnr(halves, SIZES, None))
    share = (SIZES / SIZES.sum())[:, None, None, None]
    torch.testing.assert_close(
        (share * shrunk).sum(0), (share * halves[0]).sum(0), atol=1e-4, rtol=0
    )


def test_classes_that_do_not_differ_become_one():
    _, halves = _mixture(difference=0.0)
    shrunk = shrunk_differences(halves[0], SIZES, difference_ssnr(halves, SIZES, None))
    apart, before = (float((m[0] - m[1]).square().mean()) for m in (shrunk, halves[0]))
    assert apart < 0.02 * before


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    """Images of two states, whose poses are known."""
    return halfmap.simulate(
        ["phantom", "phantom:1"],
        tmp_path_factory.mktemp("states") / "sim",
        n=300,
        snr=0.2,
        box=24,
        pixel_size_angstrom=8.0,
        shift_rms_px=0.7,
        seed=3,
        quiet=True,
    ).folder


def _said_and_right(folder, out) -> tuple[float, float]:
    """The mean probability of the images' classes, and the share that are right."""
    halfmap.class3d(
        folder / "truth.star",
        [folder / "truth_1.mrc", folder / "truth_2.mrc"],
        out,
        classes=2,
        alignment=False,
        iterations=8,
        initial_lowpass_angstrom=40.0,
        diameter_angstrom=160.0,
        device="cpu",
        threads=1,
        quiet=True,
    )
    found, true = (
        read_star(star).blocks["particles"]
        for star in (out / "particles.star", folder / "truth.star")
    )
    same = np.equal(found.floats("rlnClassNumber"), true.floats("rlnClassNumber"))
    return float(np.mean(found.floats("halfmapClassProbability"))), float(same.mean())


def test_images_are_as_sure_of_their_class_as_they_are_right(two_states, tmp_path, monkeypatch):
    """With whole maps' prior alone they are surer, by more than chance."""
    said, right = _said_and_right(two_states, tmp_path / "with")
    chance = 2 * (said * (1 - said) / 300) ** 0.5
    assert right > 0.85
    assert said == pytest.approx(right, abs=chance)
    monkeypatch.setattr(reference_update, "shrunk_differences", lambda maps, sizes, ssnr: maps)
    monkeypatch.setattr(class_check, "SPLITTING_COSTS", 1.0)  # what is not borne out stays
    said, right = _said_and_right(two_states, tmp_path / "without")
    assert said > right + chance
