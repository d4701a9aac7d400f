"""Filters by place: gains that are known in closed form, maps that come nearer the truth, and halves
that stay strangers where there is only noise."""

import math

import pytest
import torch

from halfmap.fourier import filter_shells
from halfmap.local_regularisation import BandGain, bands, local_gains, regularised_locally
from halfmap.masks import soft_sphere
from halfmap.simulation.forward_model import symmetrise_volume
from halfmap.symmetries import symmetry_matrices

LEFT, RIGHT = 4.0, 0.25  # SSNR of a half map in the two halves of the box


def _wiener(ssnr: float) -> float:
    return ssnr / (1 + ssnr)


def _two_sided(box: int, ssnrs: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    """A random map whose power is another on the left than on the right, its half maps with white
    noise of variance 1, and where left and right are."""
    generator = torch.Generator().manual_seed(box)
    right = torch.sigmoid((torch.arange(box) - box // 2).float()).expand(box, box, box)
    strength = math.sqrt(ssnrs[0]) * (1 - right) + math.sqrt(ssnrs[1]) * right
    truth = torch.randn(box, box, box, generator=generator) * strength
    half1, half2 = truth + torch.randn(2, box, box, box, generator=generator)
    return truth, half1, half2, right


@pytest.mark.parametrize("box", [48, 53])
def test_gains_of_one_change_nothing(box: int) -> None:
    density = torch.randn(box, box, box, generator=torch.Generator().manual_seed(1))
    halves = _two_sided(box, (LEFT, RIGHT))[1:3]
    found = local_gains(*halves, mask=torch.ones(box, box, box), radius=box // 2 - 1)
    assert found
    ones = [BandGain(g.low, g.middle, g.high, torch.ones_like(g.gain)) for g in found]
    torch.testing.assert_close(regularised_locally(density, ones), density, atol=1e-5, rtol=0)


@pytest.mark.parametrize("radius", [7, 20, 31, 100])
def test_bands_add_up_to_one(radius: int) -> None:
    shell = torch.arange(radius + 1).double()
    total = torch.zeros_like(shell)
    for low, middle, high in bands(radius):
        falling = (high - shell) / max(high - middle, 1e-6)
        hat = torch.where(shell <= middle, (shell - low) / (middle - low), falling)
        total += hat.clamp(0, 1)
    first = bands(radius)[0][1]
    torch.testing.assert_close(total[shell >= first], torch.ones_like(total[shell >= first]))


@pytest.mark.parametrize("share", [1.0, 0.75])
def test_a_gain_is_the_quotient_of_the_wiener_filters_of_place_and_map(share: float) -> None:
    """White signals of known strength on both sides: `W(left) / W(right)` is known. Places are
    drawn towards each other by a little, as each is known by a window alone."""
    box = 64
    _, half1, half2, _ = _two_sided(box, (LEFT, RIGHT))
    found = local_gains(
        half1, half2, mask=torch.ones(box, box, box), radius=box // 2 - 1, share=share
    )
    last = found[-2].gain  # the last whole one
    n = len(last)
    sides = last[:, :, n // 5 : 3 * n // 10], last[:, :, 7 * n // 10 : 4 * n // 5]
    quotient = float(sides[0].mean() / sides[1].mean())
    assert quotient == pytest.approx(_wiener(share * LEFT) / _wiener(share * RIGHT), rel=0.2)


@pytest.mark.parametrize("box", [48, 53])
def test_a_map_comes_nearer_the_truth_than_the_best_filter_of_shells_brings_it(box: int) -> None:
    truth, half1, half2, _ = _two_sided(box, (LEFT, 0.0))
    whole = float((half1 * half2).sum() / (half1.square() + half2.square()).sum() * 2)
    shells = half1 * whole  # the Wiener filter of white signal and noise
    found = local_gains(half1, half2, mask=torch.ones(box, box, box), radius=box // 2 - 1)
    places = regularised_locally(shells, found)
    line = torch.fft.fftfreq(box, 1 / box).square()
    shell = (line[:, None, None] + line[None, :, None] + line).sqrt()
    judged = (shell > 12) & (shell < box // 2 - 2)  # frequencies that bands cover whole

    def error(density: torch.Tensor) -> float:
        return float(torch.fft.fftn(density - truth).abs().square()[judged].sum())

    assert error(places) < 0.85 * error(shells)


@pytest.mark.parametrize("group", ["C1", "D2", "O"])
def test_halves_of_noise_are_left_alone(group: str) -> None:
    """No gain: what two noises have in common by chance must not get into both references."""
    mates, ball = symmetry_matrices(group), soft_sphere(40, radius_px=14, edge_px=4)
    for seed in range(2 if len(mates) > 4 else 4):
        noise = torch.randn(2, 40, 40, 40, generator=torch.Generator().manual_seed(seed))
        if len(mates) > 1:
            noise = torch.stack([symmetrise_volume(half, mates) for half in noise])
        assert not local_gains(*noise, mask=ball, radius=19, operators=len(mates))


def test_a_signal_that_is_the_same_everywhere_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(48, 48, 48, generator=generator)
    half1, half2 = truth + torch.randn(2, 48, 48, 48, generator=generator)
    assert not local_gains(half1, half2, mask=soft_sphere(48, radius_px=20, edge_px=3), radius=23)


def test_noise_beside_a_signal_does_not_begin_to_agree() -> None:
    """A molecule on the left, noise on the right: what the filtered halves have in common on the
    right is a trifle beside what the half maps have there by chance."""
    box = 64
    _, half1, half2, _ = _two_sided(box, (LEFT, 0.0))
    found = local_gains(half1, half2, mask=torch.ones(box, box, box), radius=31)
    shell = torch.arange(box // 2 + 1)  # waves that do not reach over from the left
    fine = ((shell - 12) / 6).clamp(0, 1) * ((30 - shell) / 6).clamp(0, 1)

    def on_the_right(half: torch.Tensor) -> torch.Tensor:
        return filter_shells(half, fine, dimensions=3)[:, :, 42:54]

    before = [on_the_right(half) for half in (half1, half2)]
    after = [on_the_right(regularised_locally(half, found)) for half in (half1, half2)]
    power = float(before[0].square().sum())
    assert float(after[0].square().sum()) < 0.01 * power
    assert abs(float((after[0] * after[1]).sum())) < 0.003 * power


def test_symmetric_halves_give_symmetric_maps() -> None:
    """Quarter turns about the middle voxel of an odd box are exact."""
    _, half1, half2, _ = _two_sided(41, (LEFT, RIGHT))

    def fourfold(density: torch.Tensor) -> torch.Tensor:
        return torch.stack([density.rot90(turn, (1, 2)) for turn in range(4)]).mean(0)

    ball = soft_sphere(41, radius_px=12, edge_px=3, centre_px=(20, 20, 13))
    half1, half2 = fourfold(half1 * ball), fourfold(half2 * ball)
    noise = torch.randn(2, 41, 41, 41, generator=torch.Generator().manual_seed(5)) * 0.3
    half1, half2 = half1 + fourfold(noise[0]), half2 + fourfold(noise[1])
    found = local_gains(half1, half2, mask=torch.ones(41, 41, 41), radius=19, operators=4)
    assert found
    filtered = regularised_locally(half1, found)
    turned = filtered.rot90(1, (1, 2))
    assert float((filtered - turned).abs().max()) < 0.01 * float(filtered.std())
