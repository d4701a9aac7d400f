"""Viewing directions stand where rot and tilt say."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from halfmap.plots.orientations import save_orientation_plot


def brightest(path: Path) -> list[tuple[float, float]]:
    """Where the fullest cells are, as fractions of the ellipse: (-1..1 to the right, -1..1
    upwards)."""
    picture = imread(path)[..., :3]
    yellow = (picture[..., 0] > 0.95) & (picture[..., 1] > 0.85) & (picture[..., 2] < 0.3)
    yellow[int(0.82 * len(yellow)) :] = False  # the colour bar
    rows = np.nonzero((picture < 0.9).any(axis=-1)[: int(0.8 * len(yellow))].sum(axis=1) > 60)[0]
    columns = np.nonzero(
        (picture[rows.min() : rows.max()] < 0.5).all(axis=-1).any(axis=0) | yellow.any(axis=0)
    )[0]
    middle_x, half_x = (columns.min() + columns.max()) / 2, (columns.max() - columns.min()) / 2
    middle_y, half_y = (rows.min() + rows.max()) / 2, (rows.max() - rows.min()) / 2
    across = np.nonzero(yellow.any(axis=0))[0]
    groups = np.split(across, np.nonzero(np.diff(across) > 5)[0] + 1)
    return [
        (
            (group.mean() - middle_x) / half_x,
            (middle_y - np.nonzero(yellow[:, group])[0].mean()) / half_y,
        )
        for group in groups
    ]


def test_orientation_plot_puts_directions_where_rot_and_tilt_say(tmp_path: Path) -> None:
    rotations = np.tile([90.0, 60.0, 12.0], (2000, 1)) + np.random.default_rng(0).normal(
        0, 0.3, (2000, 3)
    )
    save_orientation_plot(tmp_path / "o.png", rotations)
    ((x, y),) = brightest(tmp_path / "o.png")
    assert x == pytest.approx(0.5 * 0.9, abs=0.1)  # rot 90 is half way to the right edge
    assert 0.2 < y < 0.6  # 30 degrees above the equator
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    group = np.stack([np.linalg.matrix_power(quarter, n) for n in range(4)])
    save_orientation_plot(tmp_path / "o4.png", rotations - np.array([45, 0, 0]), symmetry=group)
    assert len(brightest(tmp_path / "o4.png")) == 4
