"""`simulate` with optics groups of several grids and aberrations: the same particles; what the STAR
says is what the images have, and to leave any of it out shows."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.io.mrc import read_map
from halfmap.io.star import read_star
from halfmap.masks import soft_sphere
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.optics_groups import magnification_matrix
from optics_scenes import without

N, BOX, PIXEL, SECOND = 400, 48, 4.0, (44, 4.28)
GROUPS = {
    "group_pixel_sizes_angstrom": (PIXEL, SECOND[1]),
    "group_boxes_px": (BOX, SECOND[0]),
    "group_magnifications": (0.0, 0.1),
    "group_beam_tilts_mrad": (0.0, 14.0),
    "group_trefoils": (0.0, 900.0),
}


def simulated(out: Path, **options) -> Path:
    same = {"n": N, "snr": float("inf"), "box": BOX, "pixel_size_angstrom": PIXEL, "seed": 4}
    told = {"symmetry": "C1", "shift_rms_px": 1.5, "optics_groups": 2, "quiet": True}
    return halfmap.simulate("phantom", out, **same, **told, **options).folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return simulated(tmp_path_factory.mktemp("groups") / "sim", **GROUPS)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return simulated(tmp_path_factory.mktemp("clean") / "sim")


def missing(star: Path, out: Path) -> float:
    """What FSC with the truth is missing to 1, on shells that both groups see."""
    halfmap.reconstruct(star, out, quiet=True, threads=1, diameter_angstrom=170.0)
    maps = [
        torch.from_numpy(np.ascontiguousarray(read_map(path)[0]))
        for path in (out, star.parent / "truth_1.mrc")
    ]
    mask = soft_sphere(BOX, radius_px=19.5, edge_px=3)
    curve = fourier_shell_correlation(*maps, pixel_size_angstrom=PIXEL, mask=mask)
    return float((1 - curve.correlation)[12:20].mean())


def test_the_particles_are_the_same_on_two_grids(mixed, clean) -> None:
    one, two = (load_particles(folder / "truth.star") for folder in (clean, mixed))
    np.testing.assert_array_equal(one.rotations_deg, two.rotations_deg)
    np.testing.assert_array_equal(one.transfer.defocus_u_angstrom, two.transfer.defocus_u_angstrom)
    written = [
        np.stack([p.table.floats(f"rlnOrigin{axis}Angst") for axis in "XY"]) for p in (one, two)
    ]
    np.testing.assert_allclose(*written, atol=1e-5)
    assert {(grid.box, grid.pixel_size_angstrom) for grid in two.grids} == {(BOX, PIXEL), SECOND}
    optics = read_star(mixed / "particles.star").blocks["optics"]
    matrix = [float(optics.floats(f"rlnMagMat{at}")[1]) for at in ("00", "01", "10", "11")]
    np.testing.assert_allclose(matrix, magnification_matrix(0.1).ravel(), atol=1e-6)
    scales = np.linalg.svd(magnification_matrix(0.1))[1]
    assert scales[0] - scales[1] == pytest.approx(0.1)
    assert optics.floats("rlnBeamTiltX").tolist() == pytest.approx([0, -14])
    files = {name.partition("@")[2] for name in two.table.strings("rlnImageName").tolist()}
    assert files == {"particles_1.mrcs", "particles_2.mrcs"}
    first = one.optics_group == 0  # whose images are those of the clean set
    rows = np.flatnonzero(first)[:5]
    stored = next(iter(two.stored_images(rows)))[2]
    np.testing.assert_allclose(stored, one.images(rows), atol=1e-4 * np.abs(stored).max())


def test_a_map_of_both_is_that_of_one_and_to_ignore_any_is_worse(mixed, clean, tmp_path) -> None:
    one = missing(clean / "truth.star", tmp_path / "one.mrc")
    both = missing(mixed / "truth.star", tmp_path / "both.mrc")
    assert both < one + 0.002
    ignored = (
        ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
        ("rlnBeamTiltX", "rlnBeamTiltY"),
        ("rlnOddZernike",),
    )
    for columns in ignored:
        worse = missing(without(mixed / "truth.star", *columns), tmp_path / f"{columns[0]}.mrc")
        assert worse > 1.2 * both, columns
    same = without(mixed / "truth.star", rlnImagePixelSize=PIXEL)
    assert missing(same, tmp_path / "pixel.mrc") > 3 * both


def test_another_number_of_values_than_groups_is_refused(tmp_path) -> None:
    with pytest.raises(halfmap.InputError, match=r"--group-trefoil 1,2,3: expected 2 values"):
        simulated(tmp_path / "x", group_trefoils=(1.0, 2.0, 3.0))
    assert not (tmp_path / "x").exists()
