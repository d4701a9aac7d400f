"""refine --local --centre: the same map, lying about another point."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.masks import soft_sphere
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.so3 import angular_distance_deg, euler_to_matrix

BOX, PIXEL = 36, 6.0
CENTRE_PX = (3, -2, 4)  # x, y, z
CENTRE = tuple(PIXEL * c for c in CENTRE_PX)
QUICK = {"initial_lowpass_angstrom": 20.0, "diameter_angstrom": 150.0, "local": True, "quiet": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("centre") / "sim"
    size = {"n": 120, "snr": 0.5, "box": BOX, "pixel_size_angstrom": PIXEL, "seed": 5}
    return halfmap.simulate("phantom", out, symmetry="C1", quiet=True, **size).folder


def _refine(data: Path, out: Path, **options):
    star, start = data / "truth.star", data / "truth_1.mrc"
    return halfmap.refine(star, start, out, **{**QUICK, "iterations": 2, **options})


def _about_centre(volume: np.ndarray) -> torch.Tensor:
    """`V'(x) = V(x + c)`, whole voxels, none of which the molecule has near the faces."""
    return torch.from_numpy(volume).roll([-c for c in reversed(CENTRE_PX)], (0, 1, 2))


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A job about the old centre, and one about the new, with the same sphere around it."""
    folder = tmp_path_factory.mktemp("both")
    x, y, z = (BOX // 2 + c for c in CENTRE_PX)
    sphere = soft_sphere(BOX, radius_px=14, edge_px=4, centre_px=(x, y, z))
    write_map(folder / "mask.mrc", sphere.numpy(), PIXEL)
    for name, extra in (("old", {}), ("new", {"centre_angstrom": CENTRE})):
        _refine(data, folder / name, mask=folder / "mask.mrc", **extra)
    return folder / "old", folder / "new"


def test_the_map_is_the_same_but_shifted(both) -> None:
    old, new = (read_map(folder / "map.mrc")[0] for folder in both)
    inside = soft_sphere(BOX, radius_px=12, edge_px=3)
    curve = fourier_shell_correlation(
        _about_centre(old), torch.from_numpy(new), pixel_size_angstrom=PIXEL, mask=inside
    )
    assert float(curve.correlation[1:13].min()) > 0.98
    unmoved = fourier_shell_correlation(
        torch.from_numpy(old), torch.from_numpy(new), pixel_size_angstrom=PIXEL, mask=inside
    )
    assert resolution_at(unmoved, 0.5) > 2 * resolution_at(curve, 0.5)


def test_poses_follow(both, data: Path) -> None:
    """Each shows the new centre where the old pose showed that point."""
    truth, found = load_particles(data / "truth.star"), load_particles(both[1] / "particles.star")
    rotations = euler_to_matrix(torch.from_numpy(truth.rotations_deg))
    expected = truth.shift_angstrom - (rotations @ torch.tensor(CENTRE).double())[:, :2].numpy()
    assert np.median(np.linalg.norm(found.shift_angstrom - expected, axis=1)) < 0.25 * PIXEL
    turned = angular_distance_deg(rotations, euler_to_matrix(torch.from_numpy(found.rotations_deg)))
    assert float(turned.median()) < 3


def test_the_mask_moves_and_is_named(both) -> None:
    given, moved = (
        read_map(path)[0] for path in (both[0].parent / "mask.mrc", both[1] / "mask.mrc")
    )
    assert np.abs(_about_centre(given).numpy() - moved).max() < 1e-3
    assert "mask.mrc" in (both[1] / "fsc.star").read_text()
    assert str(both[0].parent) not in (both[1] / "fsc.star").read_text()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"centre_angstrom": (6.0, 0.0, 0.0), "symmetry": "C4"}, "axes of C4"),
        ({"centre_angstrom": (0.0, 0.0, 6.0), "relax_symmetry": "D2"}, "axes of D2"),
        ({"centre_angstrom": (0.0, 0.0, 500.0)}, "point of the map"),
        ({"centre_angstrom": (6.0, 0.0, 0.0), "local": False}, "--centre"),
    ],
)
def test_a_centre_that_cannot_be_is_told(data: Path, tmp_path, options, named: str) -> None:
    with pytest.raises(InputError, match=named):
        _refine(data, tmp_path / "job", **options)
    assert not (tmp_path / "job" / "map.mrc").exists()
