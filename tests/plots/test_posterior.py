"""Spheres show each direction where it is, at its probability; accuracy plots bear what they are
given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmap.errors import InputError
from halfmap.plots.posterior import save_accuracy_plot, save_direction_posterior
from halfmap.so3 import rotations_of

LEFT, TOP, WIDE, HIGH = 104, 36, 320, 160  # of the first sphere


def sphere(path: Path, *, row: int = 0, column: int = 0) -> np.ndarray:
    """Brightness of one sphere, nan outside its ellipse."""
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64).mean(-1) / 255
    cut = picture[TOP + row * (HIGH + 36) :][:HIGH, LEFT + column * (WIDE + 14) :][:, :WIDE]
    y, x = np.meshgrid(np.linspace(-1, 1, HIGH), np.linspace(-1, 1, WIDE), indexing="ij")
    return np.where(x**2 + y**2 < 0.97, cut, np.nan)


def one_hot(*pixels: int, order: int = 3) -> np.ndarray:
    return np.eye(12 * 4**order)[list(pixels)]


def place(x: float, y: float, z: float) -> tuple[float, float]:
    """Where Mollweide puts a direction, pixels to the right and down: sin(latitude) = (2 theta +
    sin 2 theta) / pi."""
    theta = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    theta = theta[
        np.abs((2 * theta + np.sin(2 * theta)) / np.pi - z / np.hypot(np.hypot(x, y), z)).argmin()
    ]
    return WIDE / 2 * (1 + np.arctan2(y, x) / np.pi * np.cos(theta)), HIGH / 2 * (1 - np.sin(theta))


def test_a_direction_lies_where_rot_and_tilt_say(tmp_path: Path) -> None:
    pixels = [40, 200, 333, 500, 707]
    save_direction_posterior(
        tmp_path / "g.png", {"now": one_hot(*pixels)}, [str(p) for p in pixels]
    )
    directions = rotations_of(torch.tensor(pixels) * 48, 3)[:, 2].tolist()
    for row, direction in enumerate(directions):
        down, across = np.nonzero(np.nan_to_num(sphere(tmp_path / "g.png", row=row)) > 0.6)
        assert len(down) > 5
        assert (across.mean(), down.mean()) == pytest.approx(place(*direction), abs=4)


def test_areas_are_equal_and_colours_fall_by_decades(tmp_path: Path) -> None:
    """Half of the cells, a tenth as probable as the others, are half of the picture and of the
    colour two thirds up the scale."""
    even = np.full((1, 192), 1 / 192)
    half = even.copy()
    half[0, ::2] /= 10
    faint = even.copy()
    faint[0, 96:] /= 2000
    save_direction_posterior(
        tmp_path / "g.png",
        {"even": even, "half": half / half.sum(), "faint": faint / faint.sum()},
        ["a"],
    )
    whole, mixed, sharp = (sphere(tmp_path / "g.png", column=column) for column in range(3))
    top = np.nanmedian(whole)
    assert np.nanmin(whole) > 0.8 * top  # lines included
    bright = mixed > 0.9 * top
    assert bright.sum() / np.isfinite(mixed).sum() == pytest.approx(0.5, abs=0.08)
    assert np.nanmedian(mixed[~bright]) == pytest.approx(
        (229 + 80 + 100 + (251 + 135 + 97)) / 6 / 255, abs=0.1
    )
    assert np.nanmin(sharp) < 0.02


def test_rings_lie_on_the_direction_and_stages_may_differ_in_order(tmp_path: Path) -> None:
    directions = np.array([[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])  # rot 90; a pole
    stages = {"first": np.full((2, 192), 1 / 192), "last": one_hot(3, 9, order=4)}
    save_direction_posterior(
        tmp_path / "g.png", stages, ["a", "b"], directions=directions, mates=4, title="Gamma"
    )
    picture = np.asarray(Image.open(tmp_path / "g.png").convert("RGB"), dtype=np.int64)
    ring = (picture == (0x2E, 0xE6, 0xD6)).all(-1)
    down, across = np.nonzero(ring[TOP + 26 :][:HIGH, LEFT + WIDE + 14 :])
    assert (across.mean(), down.mean()) == pytest.approx(place(0.0, 1.0, 0.5), abs=2)
    pole = np.nonzero(ring[TOP + 26 + HIGH + 36 - 12 :][: HIGH + 12, LEFT + WIDE + 14 :])
    assert pole[0].mean() == pytest.approx(12, abs=4)
    assert pole[1].mean() == pytest.approx(WIDE / 2, abs=3)


def test_shapes_must_agree(tmp_path: Path) -> None:
    for stages, names in (
        ({"a": np.ones((2, 100))}, ["x", "y"]),
        ({"a": np.ones((1, 192))}, ["x", "y"]),
        ({"a": np.ones(192)}, ["x"]),
    ):
        with pytest.raises(InputError, match="12 4"):
            save_direction_posterior(tmp_path / "g.png", stages, names)
    with pytest.raises(InputError, match="at least one"):
        save_direction_posterior(tmp_path / "g.png", {}, [])


def test_accuracy_plot(tmp_path: Path) -> None:
    curves = {"SNR 0.1": ([48.0, 24.0, 12.0], [40.0, 6.0, 2.0]), "SNR 1": ([24.0], [1.0])}
    for name in ("a.png", "b.png"):
        save_accuracy_plot(
            tmp_path / name,
            curves,
            estimated={"SNR 1": ([24.0, 12.0], [0.9, 0.5])},
            title="accuracy",
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(InputError, match="no curve"):
        save_accuracy_plot(tmp_path / "a.png", {})
    for wrong in (([10.0], [1.0, 2.0]), ([10.0], [0.0]), ([], [])):
        with pytest.raises(InputError, match="SNR 3"):
            save_accuracy_plot(tmp_path / "a.png", {"SNR 3": wrong})
