"""Data sets whose optics groups differ, in one job: what comes out is what one clean group gives,
RELION's programs agree, and to ignore any difference is worse."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.io.mrc import read_map
from halfmap.masks import soft_sphere
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.phantom import phantom
from optics_scenes import BOX, CLEAN, COARSE, PIXEL, two_groups, without

N = 600


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return phantom(BOX, PIXEL, symmetry="C1")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A clean group, and one of another pixel size and box with every aberration."""
    return two_groups(tmp_path_factory.mktemp("mixed"), [CLEAN, COARSE], N)


def correlation(path: Path, truth: torch.Tensor) -> np.ndarray:
    """FSC with the truth, inside the particle."""
    volume = torch.from_numpy(np.ascontiguousarray(read_map(path)[0]))
    mask = soft_sphere(BOX, radius_px=19.5, edge_px=3)
    return fourier_shell_correlation(
        volume, truth, pixel_size_angstrom=PIXEL, mask=mask
    ).correlation.numpy()


def reconstructed(star: Path, out: Path, truth: torch.Tensor) -> np.ndarray:
    halfmap.reconstruct(star, out, quiet=True, threads=1, diameter_angstrom=170.0)
    return correlation(out, truth)


def test_a_set_of_two_groups_gives_the_map_of_one_and_ignoring_any_is_worse(
    mixed, truth, tmp_path
) -> None:
    """What FSC with the truth is missing to 1, on shells that both groups see: no more than a clean
    group's, and more where the second group's magnification, tilt, trefoil, tetrafoil or pixel size
    is left out. Beyond the coarser group's Nyquist frequency half of the images are as good."""
    clean = reconstructed(two_groups(tmp_path / "one", [CLEAN], N), tmp_path / "one.mrc", truth)
    both = reconstructed(mixed, tmp_path / "both.mrc", truth)
    assert (clean - both)[2:20].max() < 0.002, both
    ignored = (
        ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
        ("rlnBeamTiltX", "rlnBeamTiltY"),
        ("rlnOddZernike",),
        ("rlnEvenZernike",),
    )
    missing = (1 - both)[12:20].mean()
    for columns in ignored:
        worse = reconstructed(without(mixed, *columns), tmp_path / f"{columns[0]}.mrc", truth)
        assert (1 - worse)[12:20].mean() > 3 * missing, columns
    same = without(mixed, rlnImagePixelSize=PIXEL)
    worse = reconstructed(same, tmp_path / "pixel.mrc", truth)
    assert (1 - worse)[12:20].mean() > 10 * missing


@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="RELION is not installed")
def test_relion_reconstruct_agrees(mixed, truth, tmp_path) -> None:
    """On the same file, RELION's map of both groups and ours: FSC 0.5 with the truth within a
    shell, and with each other beyond 0.9 where both see."""
    ours = reconstructed(mixed, tmp_path / "ours.mrc", truth)
    out = tmp_path / "relion.mrc"
    subprocess.run(
        ["relion_reconstruct", "--i", mixed.name, "--o", str(out), "--ctf"],
        cwd=mixed.parent,
        check=True,
        capture_output=True,
    )
    theirs = correlation(out, truth)
    last = [int(np.argmax(np.append(fsc[2:], 0) < 0.5)) + 1 for fsc in (ours, theirs)]
    assert abs(last[0] - last[1]) <= 1, (ours, theirs)
    assert (ours - theirs)[2:21].min() > -0.005
    assert theirs[2:21].min() > 0.98, theirs
