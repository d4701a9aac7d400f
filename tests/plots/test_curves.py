"""Curves bear the edges, say what they are, and give the same bytes every time."""

from pathlib import Path

import pytest
import torch

from halfmap.errors import InputError
from halfmap.plots.curves import save_convergence_plot, save_fsc_plot
from halfmap.resolution import Curve


def curve(values: list[float]) -> Curve:
    return Curve(
        box=2 * (len(values) - 1),
        pixel_size_angstrom=2.0,
        correlation=torch.tensor(values, dtype=torch.float64),
    )


def test_fsc_and_convergence_plots_bear_the_edges(tmp_path: Path) -> None:
    curves = {
        "never falls": curve([1.0] * 9),
        "falls at once": curve([1, 0, 0.1, -0.1, 0, 0, 0, 0, 0]),
        "usual": curve([1, 1, 0.9, 0.6, 0.3, 0.1, 0, 0, 0]),
    }
    save_fsc_plot(tmp_path / "f.png", curves, title="edges")
    save_fsc_plot(tmp_path / "f5.png", curves, reference=0.5)
    with pytest.raises(InputError, match="no curve"):
        save_fsc_plot(tmp_path / "f.png", {})
    save_convergence_plot(
        tmp_path / "c.png",
        [
            {"iteration": 1, "resolution_angstrom": 30.0},
            {"note": "x"},
            {"iteration": 2, "angular_change_deg": 0.0},
        ],
    )
    with pytest.raises(InputError, match="no event"):
        save_convergence_plot(tmp_path / "c.png", [{"iteration": 1}])


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_fsc_plot(tmp_path / name, {"half maps": curve([1, 0.9, 0.5, 0.1, 0])})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
