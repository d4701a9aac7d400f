"""`halfmap subtract` and `halfmap expand` against the simulation's truth, and the way back."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

import halfmap
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.io.star import read_star
from halfmap.masks import soft_sphere
from halfmap.particles import load_particles
from halfmap.signal_subtraction import fit_scale, views_of
from halfmap.simulation.phantom import phantom
from halfmap.so3 import (
    compose,
    euler_to_matrix,
    matrix_to_euler,
    rotation_vector_to_matrix,
)

BOX, PIXEL, N = 40, 5.0, 120
PART = (5.0, 3.0, -2.0)  # of the part that is kept, x, y, z from the centre


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A map, a mask of a part beside its centre, the part alone, particles and their truth."""
    folder = tmp_path_factory.mktemp("subtract")
    whole = phantom(BOX, PIXEL, symmetry="C1").numpy()
    centre = tuple(c + BOX // 2 for c in PART)
    mask = soft_sphere(BOX, radius_px=6, edge_px=3, centre_px=centre).numpy()
    write_map(folder / "whole.mrc", whole, PIXEL)
    write_map(folder / "mask.mrc", mask, PIXEL)
    write_map(folder / "part.mrc", whole * mask, PIXEL)
    halfmap.simulate(
        folder / "whole.mrc", folder / "sim", n=N, snr=2.0, shift_rms_px=1.6, quiet=True
    )
    return folder


def _subtract(scene, out, **options):
    star = scene / "sim" / "truth.star"
    options = {"mask": scene / "mask.mrc", "reference": scene / "whole.mrc"} | options
    return halfmap.subtract(star, out, **options)


def _corr(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_what_is_left_is_the_part(scene, tmp_path):
    """Images, less the noise that they share with those before, are those of the part alone."""
    _subtract(scene, tmp_path / "sub.star")
    poses = tmp_path / "sub.star"
    halfmap.project(scene / "part.mrc", poses, tmp_path / "part.mrcs", ctf=True)
    halfmap.project(scene / "whole.mrc", poses, tmp_path / "whole.mrcs", ctf=True)
    rows = np.arange(N)
    before = load_particles(scene / "sim" / "truth.star").images(rows)
    after = load_particles(poses).images(rows)
    part, whole = (
        load_particles(tmp_path / f"{name}.star").images(rows) for name in ("part", "whole")
    )
    noise = before - (before * whole).sum() / (whole**2).sum() * whole
    signal = after - noise
    assert _corr(signal, part) > 0.98
    assert _corr(before - noise, part) < 0.8
    scale = (before * whole).sum() / (whole**2).sum()
    assert (signal * part).sum() / (part**2).sum() == pytest.approx(scale, rel=0.05)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A job that refined poses from some degrees and an Angstrom or two off, at SNR 0.05."""
    folder, n = tmp_path_factory.mktemp("refined"), 400
    whole = phantom(BOX, PIXEL, symmetry="C1").numpy()
    centre = tuple(c + BOX // 2 for c in PART)
    mask = soft_sphere(BOX, radius_px=6, edge_px=3, centre_px=centre).numpy()
    write_map(folder / "whole.mrc", whole, PIXEL)
    write_map(folder / "mask.mrc", mask, PIXEL)
    halfmap.simulate(folder / "whole.mrc", folder / "sim", n=n, snr=0.05, quiet=True)
    truth = load_particles(folder / "sim/truth.star")
    tilt = 0.07 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).double()
    old = euler_to_matrix(torch.from_numpy(truth.rotations_deg))
    turned = matrix_to_euler(compose(rotation_vector_to_matrix(tilt), old)).numpy()
    moved = truth.shift_angstrom + np.random.default_rng(0).normal(0, 2, (n, 2))
    spoiled = truth.with_results(rotations_deg=turned, shift_angstrom=moved)
    spoiled.write_star(folder / "off.star")
    halfmap.refine(
        folder / "off.star",
        folder / "whole.mrc",
        folder / "job",
        local=True,
        initial_lowpass_angstrom=30,
        iterations=3,
        folds=1,
        quiet=True,
    )
    return folder


def test_no_more_is_taken_off_than_is_there_in_any_shell(refined, tmp_path):
    """Of noisy images at refined poses: what was removed, along what is truly outside the mask, is
    all of it in low shells, less where map and poses are not sure, and nowhere more."""
    halfmap.subtract(refined / "job", tmp_path / "sub.star", mask=refined / "mask.mrc")
    truth, left = load_particles(refined / "sim/truth.star"), load_particles(tmp_path / "sub.star")
    rows = np.arange(len(truth))
    before, after = (torch.from_numpy(one.images(rows)) for one in (truth, left))
    whole, mask = (
        torch.from_numpy(read_map(refined / f"{name}.mrc")[0]) for name in ("whole", "mask")
    )
    views = views_of(whole, use_ctf=True)
    cross, power = fit_scale(before, views.of(truth, rows), views.plane)
    scale = cross.sum() / power.sum()
    outside = views_of(whole * (1 - mask), use_ctf=True).of(truth, rows) * scale
    cross, power = (one.sum(0) for one in fit_scale(before - after, outside, views.plane))
    slope = cross / power
    low = slice(1, 7)  # to 33 A
    assert float(cross[low].sum() / power[low].sum()) == pytest.approx(1, abs=0.12)
    assert slope[1:].max() < 1.06
    halfmap.subtract(tmp_path / "sub.star", tmp_path / "back.star", revert=True)
    back = load_particles(tmp_path / "back.star")
    assert np.array_equal(back.images(rows), truth.images(rows))


def test_cut_and_recentred_particles_give_the_part_in_the_small_box(scene, tmp_path):
    done = _subtract(scene, tmp_path / "sub.star", box=25, recentre=True)
    data = load_particles(tmp_path / "sub.star")
    assert data.box == 25
    assert np.abs(data.shift_angstrom).max() <= PIXEL / 2 + 1e-6
    halfmap.reconstruct(tmp_path / "sub.star", tmp_path / "small.mrc", quiet=True)
    small, wanted = read_map(tmp_path / "small.mrc")[0], read_map(done.map_path)[0]
    assert wanted.shape == (25, 25, 25)
    assert _corr(small, wanted) > 0.9
    assert _corr(small, read_map(scene / "whole.mrc")[0][8:33, 8:33, 8:33]) < 0.6


@pytest.mark.parametrize("options", [{}, {"box": 25, "recentre": True}])
def test_revert_gives_the_same_file(scene, tmp_path, options):
    star = scene / "sim" / "truth.star"
    load_particles(star).write_star(tmp_path / "before.star")
    _subtract(scene, tmp_path / "sub.star", **options)
    halfmap.subtract(tmp_path / "sub.star", tmp_path / "back.star", revert=True)
    before, back = (read_star(tmp_path / f"{name}.star").blocks for name in ("before", "back"))
    for block in ("optics", "particles"):
        assert set(before[block].names) == set(back[block].names)
        for name in before[block].names:
            old, new = (b[block].strings(name).tolist() for b in (before, back))
            assert old == new, name


def test_revert_takes_poses_found_since_then_along(scene, tmp_path):
    """The particle's own centre, seen from the pose that the part has now, stays where it is."""
    _subtract(scene, tmp_path / "sub.star", box=25, recentre=True)
    sub = load_particles(tmp_path / "sub.star")
    tilt = 0.05 * torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    old = euler_to_matrix(torch.from_numpy(sub.rotations_deg))
    new = compose(rotation_vector_to_matrix(tilt.double()), old)
    moved = sub.shift_angstrom + np.random.default_rng(0).normal(0, 2, (N, 2))
    sub.with_results(rotations_deg=matrix_to_euler(new).numpy(), shift_angstrom=moved).write_star(
        tmp_path / "refined.star"
    )
    halfmap.subtract(tmp_path / "refined.star", tmp_path / "back.star", revert=True)
    back, first = (
        load_particles(tmp_path / "back.star"),
        load_particles(scene / "sim" / "truth.star"),
    )
    table = read_star(tmp_path / "sub.star").blocks["particles"]
    centre = np.array([table.floats(f"halfmapCentre{axis}Angst")[0] for axis in "XYZ"])
    assert np.abs(centre / PIXEL - PART).max() < 2.0
    expected = (
        first.shift_angstrom
        - (old.numpy() @ centre)[:, :2]
        + (new.numpy() @ centre)[:, :2]
        + moved
        - sub.shift_angstrom
    )
    np.testing.assert_allclose(back.shift_angstrom, expected, atol=1e-4)
    assert back.box == BOX


def test_relion_goes_on_with_subtracted_particles(scene, tmp_path, monkeypatch):
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("relion_reconstruct not found")
    monkeypatch.chdir(tmp_path)
    done = _subtract(scene, "sub.star", box=26, recentre=True)
    command = "relion_reconstruct --i sub.star --o theirs.mrc --ctf"
    subprocess.run(command.split(), check=True, capture_output=True)
    assert _corr(read_map("theirs.mrc")[0], read_map(done.map_path)[0]) > 0.8
    names = read_star("sub.star").blocks["particles"].strings("rlnImageOriginalName")
    assert names[0].startswith("000001@")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mask": None}, "--mask: expected the mask"),
        ({"box": 64}, "at most 40"),
        ({"reference": None}, "give the refined map with --reference"),
        ({"revert": True}, "--mask .*: has no effect beside --revert"),
        ({"mask": "ones.mrc"}, "nothing is outside"),
    ],
)
def test_what_cannot_be_subtracted_is_refused(scene, tmp_path, options, told):
    write_map(scene / "ones.mrc", np.ones((BOX,) * 3), PIXEL)
    paths = {k: scene / v if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(InputError, match=told):
        _subtract(scene, tmp_path / "sub.star", **paths)
    assert not list(tmp_path.iterdir())


def test_revert_of_what_was_never_subtracted_is_refused(scene, tmp_path):
    with pytest.raises(InputError, match="rlnImageOriginalName is missing"):
        halfmap.subtract(scene / "sim" / "truth.star", tmp_path / "back.star", revert=True)


# --- expand ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expand")
    halfmap.simulate(
        "phantom", folder / "sim", n=40, snr=2.0, box=32, pixel_size_angstrom=6.0, quiet=True
    )
    return folder


def test_copies_give_what_symmetry_gives_and_stay_in_one_half(channel, tmp_path):
    """A map of the copies without symmetry is that of the particles with it."""
    star = channel / "sim" / "truth.star"
    halfmap.expand(star, "C4", tmp_path / "expanded.star")
    copies, once = load_particles(tmp_path / "expanded.star"), load_particles(star)
    assert len(copies) == 160
    halves = copies.half_set.reshape(40, 4)
    assert set(halves.ravel()) == {1, 2}
    assert bool((halves == halves[:, :1]).all())
    np.testing.assert_array_equal(copies.image_index.reshape(40, 4)[:, 3], once.image_index)
    options = {"wiener_constant": 1.0, "quiet": True}
    halfmap.reconstruct(tmp_path / "expanded.star", tmp_path / "c1.mrc", **options)
    halfmap.reconstruct(star, tmp_path / "c4.mrc", symmetry="C4", **options)
    halfmap.reconstruct(star, tmp_path / "none.mrc", **options)
    c1, c4, none = (read_map(tmp_path / f"{name}.mrc")[0] for name in ("c1", "c4", "none"))
    assert np.abs(c1 - c4).max() < 2e-3 * np.abs(c4).max()
    assert np.abs(none - c4).max() > 0.02 * np.abs(c4).max()


def test_folds_keep_copies_together(channel, tmp_path):
    from halfmap.commands._halves import divide_into_folds

    halfmap.expand(channel / "sim" / "truth.star", "D2", tmp_path / "expanded.star")
    data = load_particles(tmp_path / "expanded.star")
    folds = divide_into_folds(data, 4, 1).reshape(40, 4)
    assert bool((folds == folds[:, :1]).all())
    assert len(set(folds[:, 0].tolist())) == 4


def test_global_searches_refuse_copies_and_local_ones_do_not(channel, tmp_path):
    star = tmp_path / "expanded.star"
    halfmap.expand(channel / "sim" / "truth.star", "C4", star)
    write_map(tmp_path / "map.mrc", phantom(32, 6.0).numpy(), 6.0)
    for job in (
        lambda out: halfmap.refine(star, tmp_path / "map.mrc", out, quiet=True),
        lambda out: halfmap.class2d(star, classes=2, out=out, quiet=True),
        lambda out: halfmap.abinitio(star, out=out, quiet=True),
    ):
        with pytest.raises(InputError, match="is expanded by symmetry"):
            job(tmp_path / "job")
        shutil.rmtree(tmp_path / "job", ignore_errors=True)
    halfmap.refine(
        star, tmp_path / "map.mrc", tmp_path / "job", local=True, iterations=1, folds=1, quiet=True
    )


@pytest.mark.parametrize(
    ("symmetry", "told"), [("C1", "more than one operator"), ("C4", "is expanded already")]
)
def test_what_cannot_be_expanded_is_refused(channel, tmp_path, symmetry, told):
    star = channel / "sim" / "truth.star"
    if symmetry == "C4":
        halfmap.expand(star, "C4", tmp_path / "once.star")
        star = tmp_path / "once.star"
    with pytest.raises(InputError, match=told):
        halfmap.expand(star, symmetry, tmp_path / "out.star")
