"""Masks of densities whose shape is known, of noise alone, of atoms; combined; bad input."""

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.mask_making import (
    combine_masks,
    mask_from_atoms,
    mask_from_density,
    mask_from_half_maps,
    soften,
)
from halfmap.masks import soft_sphere

PIXEL = 3.0


def _noise(box: int, seed: int) -> torch.Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))


def _ball(box: int, radius: float, centre=None) -> torch.Tensor:
    return soft_sphere(box, radius_px=radius, edge_px=1, centre_px=centre)


@pytest.mark.parametrize("box", [48, 51])
@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_a_ball_in_noise_is_found_again(box: int, noise: float) -> None:
    ball = _ball(box, 11)
    made = mask_from_density(
        ball + noise * _noise(box, 1), pixel_size_angstrom=PIXEL, extend_px=2, edge_px=0
    )
    assert made is not None
    inside, true = made.values > 0.5, ball > 0.5
    assert (inside & true).sum() / true.sum() > 0.95
    # dilated by two pixels; the low-pass of 5 pixels or more widens it by two or three
    assert (inside & ~(_ball(box, 16.5) > 0.5)).sum() == 0
    assert made.parts == 1


@pytest.mark.parametrize("seed", range(5))
def test_of_noise_alone_no_mask_is_made(seed: int) -> None:
    a, b = _noise(48, 10 + seed), _noise(48, 20 + seed)
    whole = soft_sphere(48, radius_px=20, edge_px=3)
    assert mask_from_half_maps(a, b, pixel_size_angstrom=PIXEL, within=whole) is None


def test_the_largest_parts_are_kept_and_holes_filled() -> None:
    two = _ball(48, 8, (15.0, 24.0, 24.0)) + _ball(48, 5, (36.0, 24.0, 24.0))
    dusty = two + _ball(48, 1.5, (24.0, 40.0, 24.0)) - _ball(48, 3, (15.0, 24.0, 24.0))

    def made(parts):
        return mask_from_density(
            dusty,
            pixel_size_angstrom=PIXEL,
            threshold=0.5,
            lowpass_angstrom=0,
            parts=parts,
            extend_px=0,
            edge_px=0,
        )

    assert (made(None).parts, made(None).parts_found) == (2, 3)
    assert made(1).values[24, 24, 15] == 1  # the hole
    assert made(1).values[24, 24, 36] == 0
    assert made(3).values[24, 40, 24] == 1
    assert made(1).values.sum() == pytest.approx(int((_ball(48, 8) > 0.5).sum()), rel=0.03)


def test_dilation_and_edge_are_distances() -> None:
    point = torch.zeros(31, 31, 31, dtype=torch.bool)
    point[15, 15, 15] = True
    torch.testing.assert_close(
        soften(point, extend_px=4, edge_px=5),
        soft_sphere(31, radius_px=4, edge_px=5),
        atol=1e-5,
        rtol=0,
    )
    solid = soft_sphere(31, radius_px=9, edge_px=0) > 0.5
    thinner = soften(solid, extend_px=-3, edge_px=0)
    # three layers of voxels, counted from the middle of the outermost
    assert int(thinner.sum()) == pytest.approx(4 / 3 * np.pi * 5.5**3, rel=0.15)
    assert soften(torch.zeros(8, 8, 8, dtype=torch.bool), extend_px=1, edge_px=1).sum() == 0


def test_masks_combine_as_sets() -> None:
    a, b = _ball(32, 8, (13.0, 16.0, 16.0)), _ball(32, 8, (19.0, 16.0, 16.0))
    both = torch.stack([a, b])
    union, cut, rest = (
        combine_masks(both, how) > 0.5 for how in ("union", "intersection", "difference")
    )
    assert torch.equal(union, (a > 0.5) | (b > 0.5))
    assert torch.equal(cut, (a > 0.5) & (b > 0.5))
    assert torch.equal(rest, (a > 0.5) & (b <= 0.5))


def test_atoms_are_covered_to_their_radius() -> None:
    atoms = torch.tensor([[10.0, 16.0, 16.0], [20.0, 16.0, 16.0]])
    made = mask_from_atoms(atoms, 32, radius_px=3, edge_px=0)
    assert torch.equal(
        made > 0.5, (_ball(32, 3, (10.0, 16.0, 16.0)) + _ball(32, 3, (20.0, 16.0, 16.0))) >= 1
    )
    with pytest.raises(InputError, match="another frame"):
        mask_from_atoms(atoms - 9, 32, radius_px=3)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def ball(tmp_path):
    write_map(tmp_path / "map.mrc", _ball(48, 10).numpy(), PIXEL)
    for half in (1, 2):
        noisy = _ball(48, 10) + 0.5 * _noise(48, half)
        write_map(tmp_path / f"half{half}.mrc", noisy.numpy(), PIXEL)
    return tmp_path


def test_pixels_and_angstrom_are_the_same_mask(ball) -> None:
    px = halfmap.mask(ball / "map.mrc", ball / "px.mrc", extend="2px", soft_edge="4px")
    halfmap.mask(ball / "map.mrc", ball / "a.mrc", extend="6A", soft_edge="12 A")
    assert (ball / "px.mrc").read_bytes() == (ball / "a.mrc").read_bytes()
    assert (ball / "px.png").stat().st_size > 1000
    values, pixel = read_map(ball / "px.mrc")
    assert pixel == pytest.approx(PIXEL)
    assert px.share == pytest.approx(float(values.mean()), rel=1e-4)


def test_half_maps_and_their_folder_give_one_mask(ball) -> None:
    halfmap.mask([ball / "half1.mrc", ball / "half2.mrc"], ball / "a.mrc")
    halfmap.mask(ball, ball / "b.mrc")
    assert (ball / "a.mrc").read_bytes() == (ball / "b.mrc").read_bytes()
    made = halfmap.mask([ball / "a.mrc", ball / "b.mrc"], ball / "c.mrc", combine="intersection")
    assert made.share == pytest.approx(float(read_map(ball / "a.mrc")[0].mean()), rel=1e-4)


def test_a_model_is_masked_in_the_frame_of_its_map(ball) -> None:
    line = "ATOM      1  CA  GLY A   1    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           C"
    (ball / "m.pdb").write_text(line.format(60, 72, 75) + "\nEND\n")
    halfmap.mask(ball / "m.pdb", ball / "m.mrc", like=ball / "map.mrc", soft_edge="0px")
    inside = np.argwhere(read_map(ball / "m.mrc")[0] > 0.5)
    np.testing.assert_allclose(inside.mean(0)[::-1] * PIXEL, (60, 72, 75), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"source": "none.mrc"}, "cannot be read"),
        ({"source": "map.mrc", "threshold": 7.0}, "nothing in .* exceeds it"),
        ({"source": "map.mrc", "extend": "60A"}, "cut by the box"),
        ({"source": "map.mrc", "extend": "3"}, "a length in pixels or Angstrom"),
        ({"source": "map.mrc", "soft_edge": "-3px"}, "0 or more"),
        ({"source": ("half1.mrc", "half1.mrc")}, "is the same map"),
        ({"source": ("half1.mrc", "small.mrc")}, "box is 32"),
        ({"source": ("map.mrc",), "combine": "union"}, "two masks or more"),
        ({"source": ("mask.mrc", "none_left.mrc"), "combine": "intersection"}, "nothing is left"),
        ({"source": "empty"}, "no half1.mrc"),
        ({"source": "noise.mrc"}, "nothing stands out"),
        ({"source": "m.pdb"}, "needs --like"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(ball, arguments, what) -> None:
    write_map(ball / "small.mrc", _ball(32, 8).numpy(), PIXEL)
    write_map(ball / "noise.mrc", _noise(48, 5).numpy(), PIXEL)
    write_map(ball / "mask.mrc", _ball(48, 5, (12.0, 24.0, 24.0)).numpy(), PIXEL)
    write_map(ball / "none_left.mrc", _ball(48, 5, (36.0, 24.0, 24.0)).numpy(), PIXEL)
    (ball / "empty").mkdir()
    source = arguments.pop("source")
    given = ball / source if isinstance(source, str) else [ball / one for one in source]
    with pytest.raises(InputError, match=what) as refused:
        halfmap.mask(given, ball / "out.mrc", **arguments)
    assert "\n" not in str(refused.value)
    assert not (ball / "out.mrc").exists()
