"""Images on other grids, and free of magnification, against closed forms: Gaussian blobs."""

import numpy as np
import pytest
import torch

from halfmap.image_grids import ImageGrid, asked_grid, finest_grid
from halfmap.resampling import resample_images

M = np.array([[1.04, 0.02], [-0.015, 0.97]])


def blobs(
    box: int, pixel: float, *, distorted: np.ndarray | None = None, level: float = 0.0
) -> torch.Tensor:
    """Two images of Gaussians of 9 A at places of their own, sampled; distorted, they show
    f(x) = g(M^-T x) / |det M|, whose transform at q is that of g at M q."""
    axis = (torch.arange(box, dtype=torch.float64) - box // 2) * pixel
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    scale = 1.0
    if distorted is not None:
        back = np.linalg.inv(distorted).T
        x, y = back[0, 0] * x + back[0, 1] * y, back[1, 0] * x + back[1, 1] * y
        scale = 1 / abs(np.linalg.det(distorted))
    images = []
    for cx, cy in ((11.0, -23.0), (-16.0, 7.0)):
        squared = (x - cx) ** 2 + (y - cy) ** 2
        images.append(level + scale * torch.exp(-squared / (2 * 9.0**2)))
    return torch.stack(images).float()


@pytest.mark.parametrize("distorted", [None, M], ids=["plain", "distorted"])
@pytest.mark.parametrize(
    ("box", "pixel", "new_box", "new_pixel"),
    [
        (48, 3.0, 36, 4.0),  # the same extent: cropped
        (36, 4.0, 48, 3.0),  # padded
        (45, 3.1, 48, 3.0),
        (51, 3.0, 44, 3.3),
        (41, 3.3, 45, 3.0),
        (64, 3.0, 48, 3.0),
        (40, 3.4, 60, 3.0),  # beyond the border, the background goes on
    ],
)
def test_blobs_are_what_they_are_on_every_grid(box, pixel, new_box, new_pixel, distorted) -> None:
    images = blobs(box, pixel, distorted=distorted, level=2.0)
    found = resample_images(
        images, pixel, box=new_box, new_pixel_size_angstrom=new_pixel, magnification=distorted
    )
    torch.testing.assert_close(found, blobs(new_box, new_pixel, level=2.0), atol=4e-4, rtol=0)


def test_a_ramp_goes_on_beyond_the_border() -> None:
    """So that a plane fitted to the background is the image's, whatever the grid."""
    axis = torch.arange(40.0) - 20
    ramp = (3 + 0.02 * axis - 0.05 * axis[:, None])[None]
    found = resample_images(ramp, 2.0, box=64, new_pixel_size_angstrom=1.6, magnification=M)
    axis = (torch.arange(64.0) - 32) * 1.6 / 2.0
    x, y = axis, axis[:, None]
    x, y = M[0, 0] * x + M[1, 0] * y, M[0, 1] * x + M[1, 1] * y
    torch.testing.assert_close(found[0], 3 + 0.02 * x - 0.05 * y, atol=1e-4, rtol=0)


def test_what_is_on_no_common_frequency_is_not_made_up() -> None:
    """White noise keeps its power up to the coarser grid's Nyquist frequency, and has none beyond
    but that of the plane through its border, which is put back as it is."""
    noise = torch.randn(30, 40, 40, generator=torch.Generator().manual_seed(0))
    fine = resample_images(noise, 4.0, box=64, new_pixel_size_angstrom=2.5)
    power = torch.fft.rfft2(fine).abs().square().mean(0)[0]
    shell = torch.fft.rfftfreq(64) * 64
    expected = (40 * 4.0**2 / 2.5**2) ** 2
    assert power[shell > 20].max() < 0.01 * expected
    assert float(power[1:19].mean()) == pytest.approx(expected, rel=0.1)


def test_grids_tell_what_they_cover_and_reach() -> None:
    fine, coarse = ImageGrid(96, 1.0), ImageGrid(90, 1.07)
    assert finest_grid([coarse, fine]) == fine
    assert coarse.covers(fine) == 1
    assert ImageGrid(48, 1.0).covers(fine) == pytest.approx(0.25)
    assert fine.holds_all_of(fine)
    assert fine.holds_all_of(coarse)
    assert not coarse.holds_all_of(fine)
    assert asked_grid(fine, box=48, pixel_size_angstrom=None) == ImageGrid(48, 2.0)
    assert asked_grid(fine, box=None, pixel_size_angstrom=1.5) == ImageGrid(64, 1.5)
    assert asked_grid(fine, box=None, pixel_size_angstrom=None) == fine
    bent = ImageGrid(96, 1.0, tuple(M.ravel()))
    shift = np.array([[3.0, -4.0], [0.5, 1.0]])
    np.testing.assert_allclose(bent.stored_shift(bent.true_shift(shift)), shift)
    k = np.array([0.03, -0.02])
    q = np.linalg.solve(M, k)  # the particle is moved by the same phase, told in k or in q
    np.testing.assert_allclose(bent.true_shift(shift) @ k, shift @ q)
