"""A folder with a small simulated set, in which odd files are tried."""

from pathlib import Path

import pytest

import halfmap
from odd_scene import BOX, PIXEL, N


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "sim"
    size = {"n": N, "snr": 0.5, "box": BOX, "pixel_size_angstrom": PIXEL, "seed": 3}
    halfmap.simulate("phantom", folder, particles_per_micrograph=8, quiet=True, **size)
    return folder


@pytest.fixture
def scene(clean, tmp_path, monkeypatch) -> Path:
    """A folder of its own to work in, with `truth.star` and its stack."""
    for name in ("truth.star", "particles.mrcs", "truth_1.mrc"):
        (tmp_path / name).write_bytes((clean / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path
