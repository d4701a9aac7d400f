"""Data sets whose optics groups lie on other grids: read, selected, written and converted without
loss."""

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.fourier import fourier_transform, half_plane
from halfmap.io.convert import convert
from halfmap.io.mrc import open_stack
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.particles import load_particles
from optics_scenes import CLEAN, COARSE, DISTORTED, Group, two_groups, without


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return two_groups(tmp_path_factory.mktemp("grids"), [CLEAN, COARSE], 60)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return two_groups(tmp_path_factory.mktemp("clean"), [CLEAN], 60)


def test_images_arrive_on_the_finest_grid_and_undistorted(mixed, clean) -> None:
    """Sample by sample what the same particles show on one grid, once phases are corrected and
    both are divided by their CTF."""
    data, one = load_particles(mixed), load_particles(clean)
    assert (data.box, data.pixel_size_angstrom) == (CLEAN.box, CLEAN.pixel)
    rows = np.arange(36, 60)
    assert set(data.optics_group[rows].tolist()) == {0, 1}
    plane = half_plane(data.box, 18)
    samples = []
    for particles in (data, one):
        images = torch.from_numpy(particles.images(rows))
        transfer = particles.transfer_at(rows, *plane.frequencies(particles.pixel_size_angstrom))
        x = transfer.correct_phases(fourier_transform(images, plane)) * transfer.ctf
        samples.append((x, transfer.ctf**2))
    (a, power_a), (b, power_b) = samples
    cross = ((a * power_b) * (b * power_a).conj()).real.sum(1)
    norms = (a * power_b).abs().square().sum(1) * (b * power_a).abs().square().sum(1)
    assert (cross / norms.sqrt()).min() > 0.98
    raw = data.take(rows)
    undone = raw.with_transfer(None)  # magnification stays, aberrations do not
    assert undone.grids == raw.grids
    assert not undone.transfer.odd_zernike.size


def test_shifts_are_told_in_the_stored_images_frame(mixed, clean) -> None:
    data, one = load_particles(mixed), load_particles(clean)
    rows = data.optics_group == 1
    moved = data.shift_angstrom[rows] - one.shift_angstrom[rows]
    assert np.abs(moved).max() > 0.01
    written = data.with_results(shift_angstrom=data.shift_angstrom, half_set=np.ones(60))
    written.write_star(mixed.with_name("again.star"))
    again = load_particles(mixed.with_name("again.star"))
    np.testing.assert_allclose(again.shift_angstrom, data.shift_angstrom, atol=2e-6)
    columns = read_star(mixed.with_name("again.star")).blocks["particles"]
    np.testing.assert_allclose(
        columns.floats("rlnOriginXAngst"), one.shift_angstrom[:, 0], atol=2e-6
    )
    optics = read_star(mixed.with_name("again.star")).blocks["optics"]
    before = read_star(mixed).blocks["optics"]
    for name in before.names:
        assert optics.strings(name).tolist() == before.strings(name).tolist(), name


def test_a_files_beam_tilt_stands_for_the_coma_among_its_zernike_terms(mixed) -> None:
    """As RELION reads it: where both are there, the third-order terms of one direction are not
    added to the tilt; without tilt columns they count."""
    odd = "[1,2,3,4,5,6]"
    both = load_particles(without(mixed, rlnOddZernike=odd))
    assert both.transfer.odd_zernike[0].tolist() == [1, 2, 3, 0, 0, 6]
    blocks = dict(read_star(without(mixed, "rlnBeamTiltX", "rlnBeamTiltY")).blocks)
    blocks["optics"] = blocks["optics"].with_columns({"rlnOddZernike": [odd, "[7]"]})
    write_star(mixed.with_name("odd.star"), blocks)
    alone = load_particles(mixed.with_name("odd.star"))
    assert alone.transfer.odd_zernike[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert alone.transfer.odd_zernike[-1].tolist() == [7, 0, 0, 0, 0, 0]
    wrong = without(mixed, rlnEvenZernike="[1,x]")
    with pytest.raises(InputError, match=r"row 1 .*_rlnEvenZernike: expected a list of numbers"):
        load_particles(wrong)
    with pytest.raises(InputError, match=r"_rlnMagMat00.*within 0.4 of 1, 0, 0, 1, found 2, 0"):
        load_particles(without(mixed, rlnMagMat00=2.0))


def test_new_aberrations_and_magnifications_are_written_and_read_back(mixed) -> None:
    data = load_particles(mixed)
    odd = np.where(data.optics_group[:, None] == 0, [[0.5, 0, 1.5]], [[0.0, 0, -2.25]])
    xx = np.where(data.optics_group == 0, 1.01, 0.995)
    new = halfmap.ctf_parameters.replace(data.transfer, odd_zernike=odd, magnification_xx=xx)
    changed = data.with_transfer(new)
    changed.write_star(mixed.with_name("new.star"))
    again = load_particles(mixed.with_name("new.star"))
    np.testing.assert_allclose(again.transfer.odd_zernike[:, :3], odd)
    np.testing.assert_allclose(again.transfer.magnification_xx, xx)
    assert {grid.magnification[0] for grid in again.grids} == {1.01, 0.995}
    assert changed.grids == again.grids


def test_a_magnification_is_written_with_all_four_elements(tmp_path) -> None:
    """Two of them that differ from 1, of a file that had none."""
    simulated = halfmap.simulate(
        ["phantom"], tmp_path / "sim", n=4, box=80, snr=0.5, seed=1, quiet=True
    )
    data = load_particles(simulated.folder / "particles.star")
    assert data.transfer.magnification is None
    sizes = {"magnification_xx": np.full(4, 1.01), "magnification_yy": np.full(4, 1.01)}
    larger = halfmap.ctf_parameters.replace(data.transfer, **sizes)
    data.with_transfer(larger).write_star(tmp_path / "sim" / "larger.star")
    again = load_particles(tmp_path / "sim" / "larger.star")
    np.testing.assert_allclose(again.transfer.magnification, np.tile(1.01 * np.eye(2), (4, 1, 1)))


def test_one_table_with_several_pixel_sizes_is_several_groups(tmp_path, mixed) -> None:
    """RELION 3.0's layout; back to 3.1 the groups have their own sizes."""
    convert(mixed, tmp_path / "old.star", relion="3.0")
    old, data = load_particles(tmp_path / "old.star"), load_particles(mixed)
    assert {(grid.box, round(grid.pixel_size_angstrom, 6)) for grid in old.grids} == {
        (CLEAN.box, CLEAN.pixel),
        (COARSE.box, COARSE.pixel),
    }
    np.testing.assert_array_equal(old.optics_group, data.optics_group)
    np.testing.assert_allclose(old.shift_angstrom, data.shift_angstrom, atol=2e-5)
    old.write_star(tmp_path / "new.star")
    optics = read_star(tmp_path / "new.star").blocks["optics"]
    assert optics.floats("rlnImagePixelSize").tolist() == [CLEAN.pixel, COARSE.pixel]
    assert optics.floats("rlnImageSize").tolist() == [CLEAN.box, COARSE.box]


def test_cs_files_keep_the_grid_of_each_row(tmp_path, mixed) -> None:
    convert(mixed, tmp_path / "p.cs")
    fields, data = np.load(tmp_path / "p.cs"), load_particles(mixed)
    coarse = data.optics_group == 1
    assert set(fields["blob/shape"][coarse].ravel().tolist()) == {COARSE.box}
    np.testing.assert_allclose(fields["blob/psize_A"][coarse], COARSE.pixel)
    back = load_particles(tmp_path / "p.cs", data_dir=mixed.parent)
    assert (back.box, len(back.grids)) == (CLEAN.box, 2)
    assert back.images([0, 59]).shape == (2, CLEAN.box, CLEAN.box)


def test_a_few_fine_images_that_make_a_job_large_are_told(tmp_path, mixed) -> None:
    """Which images, how many, and the option that works at the grid of most: with pixels 1.07 times
    as large, maps take 1.2 times less memory."""
    data = load_particles(mixed)
    few = np.flatnonzero(data.optics_group == 0)[:1]
    coarse = np.flatnonzero(data.optics_group == 1)
    data.take(np.concatenate([few, coarse])).write_star(tmp_path / "few.star")
    (note,) = (n for n in load_particles(tmp_path / "few.star").notes if "brought to" in n)
    assert f"{len(coarse)} images of 44 pixels of 4.28 A, 1 image of 48 pixels of 4 A" in note
    assert "to 48 pixels of 4 A, the finest; --pixel-size 4.28 would take 1.2 times less" in note
    (note,) = (n for n in load_particles(mixed).notes if "brought to" in n)
    assert "--pixel-size" not in note  # as many are fine
    at_coarser = load_particles(tmp_path / "few.star").on_grid(pixel_size_angstrom=4.28)
    (note,) = (n for n in at_coarser.notes if "brought to" in n)
    assert "times less" not in note


def test_other_grids_can_be_asked_for_and_mixed_groups_are_refused(tmp_path, mixed) -> None:
    data = load_particles(mixed)
    assert any("44 pixels of 4.28 A" in note for note in data.notes)
    assert any("anisotropic magnification" in note for note in data.notes)
    small = data.on_grid(pixel_size_angstrom=6.0)
    assert (small.box, small.images([0]).shape) == (32, (1, 32, 32))
    assert any("brought to 32 pixels of 6 A" in note for note in small.notes)
    assert not any("brought to 48" in note for note in small.notes)
    blocks = dict(read_star(mixed).blocks)
    blocks["particles"] = blocks["particles"].with_columns({"rlnOpticsGroup": [1] * 60})
    blocks["optics"] = blocks["optics"].take([0]).without("rlnImageSize")
    write_star(mixed.with_name("one.star"), blocks)
    with pytest.raises(
        InputError, match=r"optics group 1 has images of 44 pixels of 4 A and of 48"
    ):
        load_particles(mixed.with_name("one.star"))


def test_wild_pixels_are_looked_for_in_the_images_as_they_are_stored(tmp_path) -> None:
    """On a coarser grid they would be smeared out."""
    star = two_groups(tmp_path, [Group(96, 2.0, DISTORTED)], 12, snr=0.1)
    images = open_stack(tmp_path / "group1.mrcs").read(np.arange(12)).copy()
    images[3, 10, 20] = 400.0
    write_stack(tmp_path / "group1.mrcs", images, 2.0)
    data = load_particles(star).on_grid(box=32)
    assert list(data.examine_images(np.arange(12)).hot) == [3]
