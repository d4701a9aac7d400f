"""Local resolution of maps blurred by a known amount by region, of noise, and the maps it gives."""

import math

import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.fourier import filter_shells
from halfmap.io.mrc import read_map, write_map
from halfmap.local_resolution import local_fsc, locally_filtered
from halfmap.masks import soft_sphere

BOX, PIXEL, SSNR = 96, 1.3, 10.0
B_LEFT, B_RIGHT = 120.0, 350.0


def _truth(b_factor: float) -> float:
    """Where the SSNR of a half is 1/6, the FSC 0.143: `SSNR exp(-B s^2 / 2) = 1/6`."""
    return math.sqrt(b_factor / 2 / math.log(6 * SSNR))


@pytest.fixture(scope="module")
def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ball = soft_sphere(BOX, radius_px=36, edge_px=3)
    atoms = torch.randn(BOX, BOX, BOX, generator=generator) * ball
    right = torch.sigmoid((torch.arange(BOX) - BOX // 2).float()).expand(BOX, BOX, BOX)
    frequency = torch.arange(BOX // 2 + 1) / (BOX * PIXEL)
    blurred = [
        filter_shells(atoms * share, torch.exp(-b / 4 * frequency**2), dimensions=3)
        for share, b in ((1 - right, B_LEFT), (right, B_RIGHT))
    ]
    noise = torch.randn(2, BOX, BOX, BOX, generator=generator) / SSNR**0.5
    half1, half2 = blurred[0] + blurred[1] + noise
    return half1, half2, ball


def test_regions_blurred_by_known_amounts_are_told_to_ten_percent(halves) -> None:
    half1, half2, ball = halves
    found = local_fsc(half1, half2, pixel_size_angstrom=PIXEL, mask=ball, window_angstrom=45)
    resolution, x = found.resolutions_angstrom, found.places[:, 2] - BOX // 2
    core = (found.places - BOX // 2).float().norm(dim=1) < 28
    for side, b_factor in ((x < -12, B_LEFT), (x > 12, B_RIGHT)):
        assert float(resolution[core & side].median()) == pytest.approx(_truth(b_factor), rel=0.1)


def test_noise_is_resolved_nowhere() -> None:
    noise = torch.randn(2, 64, 64, 64, generator=torch.Generator().manual_seed(2))
    ball = soft_sphere(64, radius_px=24, edge_px=3)
    found = local_fsc(*noise, pixel_size_angstrom=1.0, mask=ball, window_angstrom=32)
    resolution = found.resolutions_angstrom
    assert (resolution >= 32 / 4).double().mean() > 0.95


def test_the_filtered_map_keeps_what_is_there_and_drops_noise(halves) -> None:
    half1, half2, ball = halves
    found = local_fsc(half1, half2, pixel_size_angstrom=PIXEL, mask=ball, window_angstrom=45)
    filtered = locally_filtered((half1 + half2) / 2, found)
    outside = soft_sphere(BOX, radius_px=46, edge_px=1) < 0.01
    inside = ball > 0.9
    assert filtered[outside].std() < 0.25 * ((half1 + half2) / 2)[outside].std()
    right = inside & (torch.arange(BOX) > BOX // 2 + 6)
    left = inside & (torch.arange(BOX) < BOX // 2 - 6)
    assert filtered[left].std() > 1.5 * filtered[right].std()


def test_the_command(halves, tmp_path) -> None:
    for number, half in enumerate(halves[:2], start=1):
        write_map(tmp_path / f"half{number}.mrc", half.numpy(), PIXEL)
    write_map(tmp_path / "mask.mrc", halves[2].numpy(), PIXEL)
    pair = [tmp_path / "half1.mrc", tmp_path / "half2.mrc"]
    done = halfmap.localres(pair, tmp_path / "out", mask=tmp_path / "mask.mrc", quiet=True)
    assert done.best_angstrom < done.median_angstrom < done.worst_angstrom
    volume, pixel = read_map(tmp_path / "out" / "local_resolution.mrc")
    assert volume.shape == (BOX,) * 3
    assert pixel == pytest.approx(PIXEL, rel=1e-3)
    for name in ("map_locally_filtered.mrc", "map_locally_sharpened.mrc"):
        assert (tmp_path / "out" / name).exists()
    assert (tmp_path / "out" / "pictures" / "local_resolution.png").stat().st_size > 5000
    with pytest.raises(InputError, match="at most the box"):
        halfmap.localres(pair, tmp_path / "no", window_angstrom=500.0, quiet=True)
    assert not (tmp_path / "no").exists()
