"""`halfmap stack` and `halfmap join`: images and tables after them, against closed forms."""

import shutil
import subprocess

import mrcfile
import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.mrc import read_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.particles import load_particles

BOX, PIXEL = 48, 4.0


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    """Particles of the phantom with CTFs, and a map of them."""
    folder = tmp_path_factory.mktemp("stack")
    halfmap.simulate(
        "phantom", folder / "sim", n=60, snr=5.0, box=BOX, pixel_size_angstrom=PIXEL, quiet=True
    )
    return folder / "sim"


@pytest.mark.parametrize("box", [24, 31])
def test_downsampled_images_are_the_same_waves_on_a_coarser_grid(sim, tmp_path, box):
    done = halfmap.stack(sim / "truth.star", tmp_path / "small.star", downsample=box)
    before, after = load_particles(sim / "truth.star"), load_particles(tmp_path / "small.star")
    assert done.pixel_size_angstrom == pytest.approx(PIXEL * BOX / box)
    assert after.pixel_size_angstrom == pytest.approx(PIXEL * BOX / box, rel=1e-6)
    assert after.box == box
    old, new = before.images(np.arange(60)), after.images(np.arange(60))
    kept = (box - 1) // 2
    shifted = [np.fft.ifftshift(one, axes=(1, 2)) for one in (old, new)]
    a, b = (np.fft.rfft2(one)[:, 1:kept, 1:kept] for one in shifted)
    np.testing.assert_allclose(b, a * (box / BOX) ** 2, atol=2e-3 * np.abs(a).max())
    np.testing.assert_allclose(after.shift_angstrom, before.shift_angstrom, atol=1e-5)
    for name in before.table.names:
        if name != "rlnImageName":
            assert after.table.strings(name).tolist() == before.table.strings(name).tolist()


def test_downsampled_particles_give_the_same_map(sim, tmp_path):
    """Poses, CTF and origins still fit: the reconstruction is that of the full images."""
    halfmap.stack(sim / "truth.star", tmp_path / "small.star", downsample=32, normalise=True)
    halfmap.reconstruct(tmp_path / "small.star", tmp_path / "small.mrc", symmetry="C4", quiet=True)
    halfmap.reconstruct(sim / "truth.star", tmp_path / "full.mrc", symmetry="C4", quiet=True)
    halfmap.volume(tmp_path / "full.mrc", tmp_path / "like.mrc", like=tmp_path / "small.mrc")
    maps = [torch.from_numpy(read_map(tmp_path / f"{n}.mrc")[0]) for n in ("small", "like")]
    curve = halfmap.fourier_shell_correlation(*maps, pixel_size_angstrom=PIXEL * BOX / 32)
    assert float(curve.correlation[1:12].min()) > 0.95


def test_cropped_normalised_float16_and_split(sim, tmp_path):
    options = dict(box=40, normalise=True, diameter_angstrom=120.0, float16=True, split=25)
    done = halfmap.stack(sim / "particles.star", tmp_path / "p.star", **options)
    assert [path.name for path in done.stacks] == ["p_001.mrcs", "p_002.mrcs", "p_003.mrcs"]
    with mrcfile.open(done.stacks[0]) as opened:
        assert opened.data.dtype == np.float16
        assert opened.data.shape == (25, 40, 40)
        assert opened.voxel_size.x == pytest.approx(PIXEL)
    after, before = load_particles(tmp_path / "p.star"), load_particles(sim / "particles.star")
    images = after.images(np.arange(60))
    axis = np.arange(40) - 20
    outside = np.hypot(axis[:, None], axis) > 15
    assert np.abs(images[:, outside].mean(1)).max() < 2e-3
    assert np.abs(images[:, outside].std(1) - 1).max() < 5e-3
    centre, old = images[:, 10:30, 10:30], before.images(np.arange(60))[:, 14:34, 14:34]
    for a, b in zip(centre, old, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9999
    one = halfmap.stack(tmp_path / "p.star", tmp_path / "one.star")  # joined again
    assert len(one.stacks) == 1
    np.testing.assert_array_equal(load_particles(one.path).images(np.arange(60)), images)


def test_values_that_float16_has_not_are_refused(tmp_path):
    write_stack(tmp_path / "big.mrcs", np.full((2, 16, 16), 1e5, np.float32), 2.0)
    with pytest.raises(InputError, match=r"do not fit float16.*normalise"):
        halfmap.stack(tmp_path / "big.mrcs", tmp_path / "out.star", float16=True)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"downsample": 64}, "64 pixels of the 48"),
        ({"downsample": 24, "pixel_size_angstrom": 6.0}, "one of them"),
        ({"normalise": True, "diameter_angstrom": 500.0}, "less than the box"),
    ],
)
def test_what_cannot_be_is_refused(sim, tmp_path, options, told):
    with pytest.raises(InputError, match=told):
        halfmap.stack(sim / "particles.star", tmp_path / "out.star", **options)
    assert not list(tmp_path.glob("out*"))


def test_relion_reads_a_downsampled_set(sim, tmp_path, monkeypatch):
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("relion_reconstruct not found")
    monkeypatch.chdir(tmp_path)
    halfmap.stack(sim / "truth.star", "small.star", downsample=32, normalise=True)
    halfmap.reconstruct("small.star", "own.mrc", symmetry="C4", quiet=True)
    command = "relion_reconstruct --i small.star --o theirs.mrc --ctf --sym C4"
    subprocess.run(command.split(), check=True, capture_output=True)
    (own, pixel), (theirs, their_pixel) = read_map("own.mrc"), read_map("theirs.mrc")
    assert their_pixel == pytest.approx(pixel, rel=1e-3)
    curve = halfmap.fourier_shell_correlation(
        torch.from_numpy(own), torch.from_numpy(theirs), pixel_size_angstrom=pixel
    )
    assert float(curve.correlation[1:12].min()) > 0.95


# --- join -----------------------------------------------------------------------------------------


def _star(path, groups, *, first=0, extra=None, n=6):
    """A file with these optics groups (name, voltage), n particles in turn."""
    particles = {
        "rlnImageName": [f"{first + i + 1:06d}@s.mrcs" for i in range(n)],
        "rlnOpticsGroup": np.arange(n) % len(groups) + 1,
        "rlnDefocusU": np.linspace(1e4, 2e4, n),
        "rlnGroupNumber": np.arange(n) % 2 + 1,
        **(extra or {}),
    }
    optics = {
        "rlnOpticsGroup": np.arange(len(groups)) + 1,
        "rlnOpticsGroupName": [name for name, _ in groups],
        "rlnVoltage": [voltage for _, voltage in groups],
        "rlnImagePixelSize": [2.0] * len(groups),
        "rlnImageSize": [16] * len(groups),
    }
    write_star(
        path, {"optics": Table.from_columns(optics), "particles": Table.from_columns(particles)}
    )
    return path


def test_same_groups_become_one_and_clashing_names_two(tmp_path):
    one = _star(
        tmp_path / "a.star", [("x", 300.0), ("y", 200.0)], extra={"rlnPhaseShift": [90.0] * 6}
    )
    two = _star(tmp_path / "b.star", [("y", 200.0), ("x", 120.0)], first=3)
    done = halfmap.join([one, two], tmp_path / "both.star")
    blocks = read_star(tmp_path / "both.star").blocks
    optics, particles = blocks["optics"], blocks["particles"]
    assert optics.floats("rlnVoltage").tolist() == [300, 200, 120]
    assert optics.strings("rlnOpticsGroupName").tolist() == ["x", "y", "x_2"]
    voltage = optics.floats("rlnVoltage")[particles.ints("rlnOpticsGroup") - 1]
    assert voltage.tolist() == [300, 200] * 3 + [200, 120] * 3
    assert particles.floats("rlnPhaseShift").tolist() == [90] * 6 + [0] * 6  # what absence means
    assert particles.ints("rlnGroupNumber").tolist() == [1, 2] * 3 + [3, 4] * 3
    assert any("3 of 12 rows name an image" in note for note in done.notes)
    assert "12 particles in 3 optics groups" in done.summary


def test_what_is_not_in_every_file_is_told(tmp_path):
    one = _star(tmp_path / "a.star", [("x", 300.0)], extra={"rlnClassNumber": [1] * 6})
    two = _star(tmp_path / "b.star", [("x", 300.0)])
    done = halfmap.join([one, two], tmp_path / "both.star")
    assert done.notes[0] == "left out, not in every file: _rlnClassNumber"
    with pytest.raises(InputError, match="two files or more"):
        halfmap.join([one], tmp_path / "one.star")
    with pytest.raises(InputError, match="exists"):
        halfmap.join([one, two], tmp_path / "both.star")


def test_images_of_joined_files_and_of_cs_are_found(sim, tmp_path):
    halfmap.convert(sim / "truth.star", tmp_path / "truth.cs")
    halfmap.join([sim / "truth.star", tmp_path / "truth.cs"], tmp_path / "both.star")
    both, one = load_particles(tmp_path / "both.star"), load_particles(sim / "truth.star")
    assert len(both) == 2 * len(one)
    np.testing.assert_array_equal(both.images([0, 60]), one.images([0, 0]))
    np.testing.assert_allclose(both.rotations_deg[60:], one.rotations_deg, atol=1e-3)
