"""Boxes about the centre N // 2, odd and even; band-limited densities survive resampling."""

import pytest
import torch

from halfmap.grey_scale import difference_map, normalise_background, scaled_to
from halfmap.resizing import crop_or_pad, fourier_resize, resampled_boxes


def gaussian(box: int, sigma_px: float, offset_px: float = 0.0, dimensions: int = 2):
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    line = torch.exp(-((axis - offset_px) ** 2) / (2 * sigma_px**2))
    out = line
    for _ in range(dimensions - 1):
        out = out[..., None] * line
    return out


@pytest.mark.parametrize("old", [24, 25])
@pytest.mark.parametrize("new", [32, 33, 40, 49])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_gaussian_resampled_is_the_gaussian_on_the_new_grid(old, new, dimensions):
    """Its frequencies beyond Nyquist are below 1e-4; the closed form is a Gaussian of the same
    height, N'/N times as wide, about the new centre."""
    factor = new / old
    small = gaussian(old, 1.6, 0.7, dimensions)
    large = gaussian(new, 1.6 * factor, 0.7 * factor, dimensions)
    up = fourier_resize(small[None].float(), new, dimensions=dimensions)[0]
    torch.testing.assert_close(up, large.float(), atol=2e-4, rtol=0)
    down = fourier_resize(large[None].float(), old, dimensions=dimensions)[0]
    torch.testing.assert_close(down, small.float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(24, 17), (25, 16), (16, 25), (17, 24), (20, 20)])
def test_cropping_keeps_the_centre_and_padding_undoes_it(old, new):
    images = torch.randn(3, old, old, generator=torch.Generator().manual_seed(0))
    out = crop_or_pad(images, new, dimensions=2)
    assert out.shape == (3, new, new)
    torch.testing.assert_close(out[:, new // 2, new // 2], images[:, old // 2, old // 2])
    if new > old:
        torch.testing.assert_close(crop_or_pad(out, old, dimensions=2), images)
        border = torch.ones(old, old, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        torch.testing.assert_close(out[:, 0, 0], images[:, border].mean(1))


@pytest.mark.parametrize("ratio", [0.81, 1.06, 1.3333, 2.0, 3.7])
def test_boxes_that_meet_a_pixel_size(ratio):
    padded, resized = resampled_boxes(96, ratio)
    assert padded >= 96
    assert padded / resized == pytest.approx(ratio, rel=4e-3)


def test_background_is_normalised_and_a_masked_map_is_not_blown_up():
    volume = 3.0 * torch.randn(20, 20, 20, generator=torch.Generator().manual_seed(1)) + 7.0
    level = normalise_background(volume, radius_px=5)
    axis = torch.arange(20) - 10
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    assert abs(float(level[distance > 5].mean())) < 1e-4
    assert float(level[distance > 5].std()) == pytest.approx(1, abs=1e-3)
    masked = torch.where(distance <= 4, volume, 0.0)
    assert float(normalise_background(masked, radius_px=5).abs().max()) < 100


def test_what_is_more_in_one_map_is_left_whatever_its_grey_scale_and_filter():
    """A blob that the other map lacks is what remains, though that is darker and blurred."""
    from halfmap.fourier import filter_shells

    common = gaussian(32, 3.0, -4.0, 3).float() + gaussian(32, 2.0, 3.0, 3).float()
    axis = torch.arange(32) - 16.0
    lines = [torch.exp(-((axis - c) ** 2) / (2 * 2.0**2)) for c in (6.0, -6.0, 0.0)]
    extra = 0.3 * lines[0][:, None, None] * lines[1][:, None] * lines[2]
    blur = torch.exp(-0.01 * torch.arange(17.0) ** 2)
    other = 0.2 * filter_shells(common, blur, dimensions=3)
    left = difference_map(common + extra, other, radius=10)
    cosine = float((left * extra).sum() / (left.norm() * extra.norm()))
    unscaled = common + extra - other
    assert cosine > 0.75
    assert float((unscaled * extra).sum() / (unscaled.norm() * extra.norm())) < 0.3
    torch.testing.assert_close(
        scaled_to(0.2 * common, common, radius=10),
        scaled_to(common, common, radius=10),
        atol=1e-4,
        rtol=1e-3,
    )
