"""Tiles show what they say: the right image in the right place, at the right contrast."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmap.errors import InputError
from halfmap.plots.tiles import save_class_gallery, save_class_history, save_map_picture


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"), dtype=np.float64) / 255


def test_gallery_keeps_order_and_scales_each_image_by_itself(tmp_path: Path) -> None:
    images = np.zeros((3, 32, 32), dtype=np.float32)
    images[0, :16], images[1, :, :16], images[2, 16:] = (
        1.0,
        1e-3,
        5e4,
    )  # upper half, left half, lower half; very different scales
    save_class_gallery(tmp_path / "g.png", images, ["1", "2", "3"])
    shown = grey(tmp_path / "g.png")
    halves = {
        "upper": np.s_[:60],
        "lower": np.s_[68:],
        "left": np.s_[:, :60],
        "right": np.s_[:, 68:],
    }
    for k, (bright, dark) in enumerate((("upper", "lower"), ("left", "right"), ("lower", "upper"))):
        tile = shown[10:138, 10 + 138 * k :][:, :128]  # 128 pixels each, 10 between
        assert tile[halves[bright]].mean() > 0.97
        assert tile[halves[dark]].mean() < 0.03


def test_gallery_writes_titles_under_their_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    bare, titled = tmp_path / "bare.png", tmp_path / "titled.png"
    save_class_gallery(bare, images, [""] * 20)
    save_class_gallery(titled, images, ["12 images\n8.5 Å" if k == 9 else "" for k in range(20)])
    ink = grey(titled) < 0.9
    ink[:, : 10 + 138 * 3] = ink[:, 138 * 4 :] = False
    under = np.s_[
        138 + 40 + 128 : 138 + 40 + 128 + 40
    ]  # the second row of six: two lines of words under each row
    assert grey(bare).shape[1] == 6 * 138 + 10
    save_class_gallery(bare, images[:2], ["a title wider than its image", ""])
    assert grey(bare).shape[1] > 2 * 138 + 10
    assert ink[under].sum() > 100


def history(tmp_path: Path, **options) -> np.ndarray:
    """Classes of even grey steps: class k of iteration i is bright in its first k + i of 8
    columns."""
    images = {i: np.zeros((14, 8, 8), dtype=np.float32) for i in (0, 1, 2)}
    for i, stack in images.items():
        for k, image in enumerate(stack):
            image[:, : 1 + (k + i) % 7] = 1
    save_class_history(tmp_path / "h.png", images, **options)
    return grey(tmp_path / "h.png")


def bright_columns(shown: np.ndarray, row: int, column: int, *, top: int) -> int:
    tile = shown[top + row * 138 :][:128, 90 + column * 138 :][:, :128]
    return round(8 * float((tile > 0.5).mean()))


def test_history_has_a_row_per_iteration_and_the_largest_classes_first(tmp_path: Path) -> None:
    plain = history(tmp_path)
    assert plain.shape == (10 + 3 * 138, 90 + 12 * 138)  # 12 of 14 classes
    sized = history(tmp_path, sizes=np.arange(14))
    for row in range(3):
        for column in (0, 1, 5, 11):
            assert bright_columns(plain, row, column, top=10) == 1 + (column + row) % 7
            assert bright_columns(sized, row, column, top=29) == 1 + (13 - column + row) % 7
    with pytest.raises(InputError, match="same K and N"):
        save_class_history(tmp_path / "h.png", {0: np.zeros((2, 8, 8)), 1: np.zeros((3, 8, 8))})
    with pytest.raises(InputError, match="none"):
        save_class_history(tmp_path / "h.png", {})
    with pytest.raises(InputError, match="sizes of 2 classes"):
        save_class_history(tmp_path / "h.png", {0: np.zeros((2, 8, 8))}, sizes=[1, 2, 3])


def test_tiles_and_maps_are_drawn_without_matplotlib(tmp_path: Path) -> None:
    """They are drawn after every iteration; importing matplotlib and drawing through it would cost
    more than a short iteration."""
    code = f"""
import sys, numpy as np
from halfmap.plots.tiles import save_class_gallery, save_class_history, save_map_picture
images = np.random.default_rng(0).normal(size=(3, 16, 16))
save_class_gallery({str(tmp_path / "g.png")!r}, images, ["a", "b", "c"])
save_class_history({str(tmp_path / "h.png")!r}, {{0: images}})
save_map_picture({str(tmp_path / "m.png")!r}, np.ones((16, 16, 16)), 2.0, title="map")
sys.exit("matplotlib" in sys.modules or "astropy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gallery_bears_constant_and_broken_images(tmp_path: Path) -> None:
    images = np.ones((2, 9, 9), dtype=np.float32)
    images[1, 3, 3] = np.nan
    save_class_gallery(tmp_path / "g.png", torch.from_numpy(images), ["constant", "one NaN"])
    with pytest.raises(InputError, match="K titles"):
        save_class_gallery(tmp_path / "g.png", images, ["only one"])


def test_a_gallery_with_a_pixel_size_has_a_scale_bar_of_that_length(tmp_path: Path) -> None:
    images = np.zeros((2, 64, 64), dtype=np.float32)
    bare, barred = tmp_path / "bare.png", tmp_path / "barred.png"
    save_class_gallery(bare, images, ["", ""])
    save_class_gallery(barred, images, ["", ""], pixel_size_angstrom=3.2)
    height = grey(bare).shape[0]
    foot = grey(barred)[height:] < 0.5
    # a quarter of 204.8 A is 51.2 A: 50 A are drawn, of which an Angstrom is 128 / 204.8 pixels
    assert foot.sum(1).max() == pytest.approx(50 * 128 / 204.8, abs=2)


def test_map_picture_shows_slices_beside_the_centre(tmp_path: Path) -> None:
    volume = np.zeros((64, 64, 64), dtype=np.float32)
    volume[32 - 8], volume[32], volume[32 + 8] = 1.0, 2.0, 3.0
    save_map_picture(tmp_path / "m.png", volume, 2.0)
    shown = grey(tmp_path / "m.png")
    columns = [shown[26:, 22 + 262 * column :][:200, 20:200].mean() for column in range(3)]
    assert 0.1 < columns[0] < columns[1] < columns[2]


def test_map_picture_has_z_first_and_up_is_up(tmp_path: Path) -> None:
    volume = np.zeros((33, 33, 33), dtype=np.float32)
    volume[24:30, 14:19, 14:19] = 1.0  # a block high along z, off the central z slice
    save_map_picture(tmp_path / "m.png", volume, 2.0)
    shown = grey(tmp_path / "m.png")
    inside = [
        [shown[26 + 274 * row :][:200, 22 + 262 * column :][:, :230] for column in range(4)]
        for row in range(3)
    ]  # above the bar; a row for each of z, y, x, its central slice second, its projection last
    assert inside[0][1].mean() < 0.02  # central z slice misses the block
    assert inside[0][3].mean() > 0.02  # the projection along z sees it
    for panel in (inside[1][1], inside[2][1], inside[1][3], inside[2][3]):
        heights = np.nonzero(panel > 0.5)[0]
        assert heights.mean() < panel.shape[0] / 2  # z up
    with pytest.raises(InputError, match="cubic"):
        save_map_picture(tmp_path / "m.png", volume[:4], 2.0)
