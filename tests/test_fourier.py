"""Half-planes, shells and filters against sums written out and plane waves."""

import math

import pytest
import torch

from halfmap.errors import InputError
from halfmap.fourier import (
    filter_shells,
    fourier_transform,
    half_plane,
    inverse_fourier_transform,
    largest_radius,
    lowpass,
    shell_index,
    shell_mean,
    shift_phases,
)


def _plane_wave(box: int, k: tuple[int, ...]) -> torch.Tensor:
    """cos(2 pi k.r / N) with r from the centre voxel; k = (kx, ky[, kz])."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    grids = torch.meshgrid(*([axis] * len(k)), indexing="ij")[::-1]
    return torch.cos(sum(2 * math.pi * q * g / box for q, g in zip(k, grids, strict=True))).float()


@pytest.mark.parametrize("box", [16, 17])
def test_lower_resolution_is_a_prefix(box):
    whole = half_plane(box, (box - 1) // 2)
    for radius in range(1, (box - 1) // 2 + 1):
        part = half_plane(box, radius)
        n = whole.size(radius)
        assert len(part) == n
        for name in ("kx", "ky", "shell", "hermitian_weight"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[:n]), name
    assert whole.size(10 * box) == len(whole)


@pytest.mark.parametrize("box", [16, 17])
def test_every_frequency_or_its_mate_is_there_once(box):
    plane = half_plane(box, (box - 1) // 2)
    ours = list(zip(plane.kx.tolist(), plane.ky.tolist(), strict=True))
    assert ours[0] == (0, 0)
    assert all(x > 0 or (x == 0 and y >= 0) for x, y in ours)
    r = plane.radius
    expected = {
        (x, y) for x in range(-r, r + 1) for y in range(-r, r + 1) if round(math.hypot(x, y)) <= r
    }
    both = ours + [(-x, -y) for x, y in ours[1:]]
    assert len(both) == len(set(both))
    assert set(both) == expected
    assert plane.shell.tolist() == [round(math.hypot(x, y)) for x, y in ours]
    for radius in range(r + 1):
        assert plane.shell_sizes[radius] == sum(round(math.hypot(x, y)) <= radius for x, y in ours)


@pytest.mark.parametrize("box", [12, 13])
def test_transform_is_the_centred_sum(box):
    image = torch.randn(1, box, box, generator=torch.Generator().manual_seed(1))
    plane = half_plane(box, largest_radius(box))
    n = torch.arange(box, dtype=torch.float64) - box // 2
    ex = torch.exp(-2j * math.pi * plane.kx.double()[:, None] * n / box)
    ey = torch.exp(-2j * math.pi * plane.ky.double()[:, None] * n / box)
    expected = torch.einsum("jy,jx,yx->j", ey, ex, image[0].to(torch.complex128))
    torch.testing.assert_close(
        fourier_transform(image, plane)[0].to(torch.complex128), expected, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("box", [16, 17])
def test_weighted_half_plane_sum_is_the_whole_planes_by_parseval(box):
    plane = half_plane(box, largest_radius(box))
    noise = torch.randn(2, box, box, generator=torch.Generator().manual_seed(0))
    a, b = inverse_fourier_transform(
        fourier_transform(noise, plane), plane
    )  # nothing beyond the plane
    fa, fb = fourier_transform(torch.stack([a, b]), plane)
    ours = (plane.hermitian_weight * (fa.conj() * fb).real).sum()
    torch.testing.assert_close(ours, (a * b).sum() * box**2, rtol=1e-4, atol=1e-2)


def test_frequencies_are_in_cycles_per_angstrom():
    plane = half_plane(20, 9)
    kx, ky = plane.frequencies(2.5)
    torch.testing.assert_close(kx * 50.0, plane.kx.float())
    torch.testing.assert_close(ky * 50.0, plane.ky.float())


@pytest.mark.parametrize(
    ("radius", "box", "limit"), [(0, 16, 7), (8, 16, 7), (-1, 17, 8), (9, 17, 8)]
)
def test_a_radius_outside_the_box_is_refused(radius, box, limit):
    with pytest.raises(InputError, match=f"radius: expected 1 to {limit}"):
        half_plane(box, radius)


def test_another_box_is_refused():
    with pytest.raises(InputError, match="expected a box of 16 pixels, got 18"):
        fourier_transform(torch.zeros(1, 18, 18), half_plane(16, 5))


def test_shift_phases_add_up_and_turn_back():
    plane = half_plane(16, 7)
    a, b = torch.tensor([[1.3, -0.4], [0.2, 2.0]]), torch.tensor([[-2.1, 0.7], [0.5, 0.1]])
    torch.testing.assert_close(
        shift_phases(a, plane) * shift_phases(b, plane),
        shift_phases(a + b, plane),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(shift_phases(-a, plane), shift_phases(a, plane).conj())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("box", [10, 11])
def test_shell_index_counts_every_frequency(box, dimensions):
    shells = shell_index(box, dimensions)
    assert shells.shape == (box,) * (dimensions - 1) + (box // 2 + 1,)
    signed = [k if k <= (box - 1) // 2 else k - box for k in range(box)]
    index = (3, 7, 2)[3 - dimensions :]
    k = [signed[i] for i in index[:-1]] + [index[-1]]
    assert shells[index].item() == round(math.sqrt(sum(q * q for q in k)))


def test_shell_mean_of_unequal_shells_and_of_an_empty_one():
    values = torch.tensor([[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 0.0, 3.0]])
    mean = shell_mean(values, torch.tensor([0, 1, 1, 3]), 4)
    torch.testing.assert_close(mean, torch.tensor([[1.0, 3.0, 0.0, 6.0], [0.0, 0.0, 0.0, 3.0]]))


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_lowpass_keeps_slow_waves_and_cuts_fast_ones(box, dimensions):
    pixel, cut = 2.0, 6  # shell 6
    resolution = box * pixel / cut
    slow, edge, fast = ((3, 2, 1), (6, 0, 0), (0, 8, 3))
    for k, expected in ((slow, 1.0), (edge, 0.5), (fast, 0.0)):
        wave = _plane_wave(box, k[:dimensions])
        before = wave.clone()
        filtered = lowpass(wave, resolution, pixel, dimensions=dimensions)
        torch.testing.assert_close(filtered, expected * wave, rtol=0, atol=2e-5)
        assert torch.equal(wave, before)


@pytest.mark.parametrize("box", [16, 17])
def test_filter_shells_takes_each_waves_gain_between_shells_too(box):
    gain = torch.tensor([1.0, 3.0, 2.0, 5.0, 0.5])
    for k, expected in (
        ((2, 0), 2.0),
        ((0, 3), 5.0),
        ((1, 1), 3.0 + (2.0 - 3.0) * (2**0.5 - 1)),
        ((0, 0), 1.0),
        ((5, 0), 0.0),
        ((4, 5), 0.0),
    ):
        waves = torch.stack([_plane_wave(box, k), -2 * _plane_wave(box, k)])  # a batch
        torch.testing.assert_close(
            filter_shells(waves, gain, dimensions=2), expected * waves, rtol=0, atol=2e-5
        )
    volume = _plane_wave(box, (0, 2, 0))
    torch.testing.assert_close(
        filter_shells(volume, gain, dimensions=3), 2 * volume, rtol=0, atol=2e-5
    )
