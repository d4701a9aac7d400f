"""halfmap reconstruct from poses that are known: the truth comes back, every option does what its
formula says."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.commands import reconstruct as reconstruct3d
from halfmap.commands.resume import resume
from halfmap.errors import InputError
from halfmap.fourier import (
    fourier_transform,
    half_plane,
    inverse_fourier_transform,
    largest_radius,
    lowpass,
    shift_phases,
)
from halfmap.gridding import gridding_correction
from halfmap.io.mrc import read_map, write_map
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import read_star, write_star
from halfmap.masks import soft_sphere
from halfmap.particles import Particles, load_particles
from halfmap.resolution import Curve, fourier_shell_correlation, resolution_at
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import ctf
from halfmap.workspace.job import Job, read_events, read_job

N, BOX, PIXEL = 320, 24, 8.0
DIAMETER = 20 * PIXEL


def _simulate(out: Path, *, box: int = BOX, n: int = N, snr: float = 1.0) -> Path:
    return halfmap.simulate(
        "phantom",
        out,
        n=n,
        snr=snr,
        box=box,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=1.0,
        seed=5,
        quiet=True,
    ).folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return _simulate(tmp_path_factory.mktemp("reconstruct") / "sim")


def _reconstruct(star: Path, out: Path, **options):
    return halfmap.reconstruct(
        star, out, **{"device": "cpu", "quiet": True, "diameter_angstrom": DIAMETER, **options}
    )


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    return _reconstruct(
        data / "truth.star", tmp_path_factory.mktemp("made") / "deep" / "map.mrc", halves=True
    )


def _volume(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_map(path)[0].copy())


def _fsc(a: torch.Tensor, b: torch.Tensor) -> Curve:
    mask = soft_sphere(len(a), radius_px=10, edge_px=2)
    return fourier_shell_correlation(a, b, pixel_size_angstrom=PIXEL, mask=mask)


def _asymmetry(volume: torch.Tensor) -> float:
    """Relative difference of a map and itself after a quarter turn about z through the voxel N //
    2, inside the particle."""
    inner = (volume * soft_sphere(BOX, radius_px=10, edge_px=2))[:, 1:, 1:]
    return ((inner - inner.rot90(1, (1, 2))).norm() / inner.norm()).item()


# --- the truth comes back -------------------------------------------------------------------------


def test_the_truth_comes_back_to_the_resolution_told(made, data):
    curve = _fsc(_volume(made.map_path), _volume(data / "truth_1.mrc"))
    assert made.resolution_angstrom < 2.4 * PIXEL
    assert (curve.correlation[1 : round(BOX * PIXEL / 20) + 1] > 0.9).all()  # to 20 A
    # FSC 0.143 between halves is FSC 0.5 of the whole map to the truth (Rosenthal and Henderson
    # 2003); one shell is allowed
    assert (
        abs(BOX * PIXEL / resolution_at(curve, 0.5) - BOX * PIXEL / made.resolution_angstrom) < 1.5
    )


def test_the_grey_scale_is_the_truths(data, tmp_path):
    """Images of the volume times a factor, in noise of deviation 1, give the volume times that
    factor."""
    clean = _simulate(tmp_path / "clean", snr=float("inf"))
    images = load_particles(clean / "truth.star").images(np.arange(N))
    factor = 2.0 / images.std()
    noise = np.random.default_rng(2).normal(size=images.shape)
    with StackWriter(clean / "particles.mrcs", PIXEL) as stack:
        stack.append((factor * images + noise).astype(np.float32))
    _reconstruct(clean / "truth.star", tmp_path / "map.mrc", symmetry="C4", wiener_constant=1e-3)
    a, b = (torch.fft.fftn(_volume(path)) for path in (data / "truth_1.mrc", tmp_path / "map.mrc"))
    k = torch.fft.fftfreq(BOX, 1 / BOX)
    distance = (k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2).sqrt()
    shells = (distance > 1.5) & (
        distance < 9
    )  # not the mean: the background's was taken off the images
    scale = ((a.conj() * b).real[shells].sum() / (a.abs() ** 2)[shells].sum()).item()
    assert scale == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("box", [23, 25])
def test_odd_boxes(tmp_path, box):
    odd = _simulate(tmp_path / "odd", box=box, n=200, snr=3.0)
    made = _reconstruct(odd / "truth.star", tmp_path / "map.mrc", symmetry="C4")
    curve = _fsc(_volume(tmp_path / "map.mrc"), _volume(odd / "truth_1.mrc"))
    assert (curve.correlation[1:10] > 0.9).all()
    assert made.resolution_angstrom < 2.4 * PIXEL


def test_half_maps_and_their_curve(made):
    folder, halves = (
        made.map_path.parent,
        [_volume(made.map_path.with_name(f"map_half{h}.mrc")) for h in (1, 2)],
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "map.mrc",
        "map.png",
        "map_fsc.png",
        "map_fsc.star",
        "map_half1.mrc",
        "map_half2.mrc",
        "map_job",
        "map_mask.mrc",
    ]
    assert sorted(p.name for p in (folder / "map_job").iterdir()) == [
        "events.jsonl",
        "job.json",
        "messages.txt",
        "report.html",
    ]
    assert not torch.equal(*halves)
    written = read_star(folder / "map_fsc.star").blocks["fsc"]
    ours = fourier_shell_correlation(*halves, pixel_size_angstrom=PIXEL).correlation.numpy()
    np.testing.assert_allclose(
        written.floats("rlnFourierShellCorrelationUnmaskedMaps"), ours[: len(written)], atol=1e-4
    )
    for path in folder.glob("*.mrc"):
        assert read_map(path)[1] == pytest.approx(PIXEL, rel=1e-4)


def test_the_curve_is_taken_in_a_mask_made_of_the_half_maps(tmp_path):
    """As at the end of a refinement: around a rod along z it is open far along z, and closed as far
    across it, where a sphere is open too."""
    box = 48
    line = torch.arange(box) - box // 2
    z, across = line[:, None, None].abs() <= 13, line[:, None] ** 2 + line**2 <= 16
    rod = lowpass((z & across).float(), 3 * PIXEL, PIXEL, dimensions=3)
    write_map(tmp_path / "rod.mrc", rod.numpy(), PIXEL)
    made_of = {"n": 200, "snr": 0.5, "quiet": True}
    halfmap.simulate(tmp_path / "rod.mrc", tmp_path / "sim", **made_of)
    made = halfmap.reconstruct(tmp_path / "sim/truth.star", tmp_path / "job", quiet=True)
    mask = _volume(made.folder / "mask.mrc")
    middle = box // 2
    assert mask[middle + 12, middle, middle] > 0.9
    assert mask[middle, middle, middle + 16] < 0.1
    halves = [_volume(made.folder / f"half{h}.mrc") for h in (1, 2)]
    ours = fourier_shell_correlation(*halves, pixel_size_angstrom=PIXEL, mask=mask).correlation
    written = read_star(made.folder / "fsc.star").blocks["fsc"]
    theirs = written.floats("rlnFourierShellCorrelationMaskedMaps")
    np.testing.assert_allclose(theirs, ours.numpy()[: len(theirs)], atol=1e-3)


def test_without_halves_there_is_the_map_alone(made, data, tmp_path):
    _reconstruct(data / "truth.star", tmp_path / "map.mrc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.mrc", "map.png", "map_job"]
    assert (
        tmp_path / "map.mrc"
    ).read_bytes() == made.map_path.read_bytes()  # and the same bytes again


def _but_for_the_mask(path: Path) -> bytes:
    """The file's bytes; a table names its mask by the names of its own folder."""
    return path.read_bytes().replace(b"map_mask.mrc", b"mask.mrc")


def test_a_folder_gets_the_same_maps_under_a_jobs_usual_names(made, data, tmp_path):
    result = _reconstruct(data / "truth.star", tmp_path / "job")
    assert result.folder == tmp_path / "job"
    assert result.resolution_angstrom == made.resolution_angstrom
    beside = made.map_path.parent
    for name, theirs in (
        ("map.mrc", "map.mrc"),
        ("half1.mrc", "map_half1.mrc"),
        ("half2.mrc", "map_half2.mrc"),
        ("mask.mrc", "map_mask.mrc"),
        ("fsc.star", "map_fsc.star"),
    ):
        assert _but_for_the_mask(tmp_path / "job" / name) == _but_for_the_mask(beside / theirs)
    assert sorted(p.name for p in (tmp_path / "job" / "pictures").iterdir()) == [
        "fsc.png",
        "map.png",
    ]
    record = read_job(tmp_path / "job")
    assert record["status"] == "finished"
    assert record["results"]["images"] == N
    assert not (tmp_path / "job" / "checkpoint").exists()


class _Killed(BaseException):
    """Ends a job as a signal would that cannot be caught."""


@pytest.mark.parametrize("out", ["map.mrc", "job"])
@pytest.mark.parametrize("half", [1, 2])
def test_a_killed_job_goes_on_and_gives_the_same_bytes(
    made, data, tmp_path, monkeypatch, out, half
):
    saved = Job.save_checkpoint

    def save_and_die(job, arrays, meta):
        saved(job, arrays, meta)
        if meta["iteration"] == half:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Job, "save_checkpoint", save_and_die)
        with pytest.raises(_Killed):
            _reconstruct(data / "truth.star", tmp_path / out, halves=True)
    assert not list(tmp_path.glob("**/*.mrc"))
    folder = tmp_path / ("job" if out == "job" else "map_job")
    summed = []
    real = reconstruct3d.sum_at_poses
    monkeypatch.setattr(
        reconstruct3d,
        "sum_at_poses",
        lambda problem, *rest, **more: summed.append(1) or real(problem, *rest, **more),
    )
    resume(folder, quiet=True)
    assert len(summed) == 2 - half  # what was summed is not summed again
    stem = "" if out == "job" else "map_"
    at = folder if out == "job" else tmp_path
    for name in ("half1.mrc", "half2.mrc", "fsc.star"):
        theirs = made.map_path.with_name(f"map_{name}")
        assert _but_for_the_mask(at / f"{stem}{name}") == _but_for_the_mask(theirs), name
    assert (at / "map.mrc").read_bytes() == made.map_path.read_bytes()
    record = read_job(folder)
    assert (record["status"], record["runs"]) == ("finished", 2)
    assert [event["half"] for event in read_events(folder)] == [1, 2]


def test_tilts_of_a_particle_stay_in_one_half(data, tmp_path):
    """Pairs of images with one name: each half map is what its pairs alone give."""
    particles = load_particles(data / "truth.star").take(np.arange(120))
    names = np.array([f"particle{i // 2}" for i in range(120)])
    star = data / "tilts.star"
    particles.with_results(extra={"rlnTomoParticleName": names}).write_star(star)
    seen = []
    real = reconstruct3d.sum_at_poses

    def look(problem, *rest, **more):
        seen.append(problem.half)
        return real(problem, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruct3d, "sum_at_poses", look)
        _reconstruct(star, tmp_path / "job")
    halves = torch.stack([half.reshape(60, 2) for half in seen])
    assert torch.equal(halves[..., 0], halves[..., 1])
    assert sorted(halves.amax(0)[:, 0].unique().tolist()) == [0, 1]


def test_half_sets_of_the_file_are_kept(data, tmp_path):
    """The first half map does not know the second half's images."""
    particles = load_particles(data / "truth.star")
    half = 1 + np.arange(N) % 2
    particles.with_results(half_set=half).write_star(data / "halves.star")
    spoilt = particles.rotations_deg.copy()
    spoilt[half == 2] += 50
    particles.with_results(half_set=half, rotations_deg=spoilt).write_star(data / "spoilt.star")
    for name in ("halves", "spoilt"):
        _reconstruct(data / f"{name}.star", tmp_path / f"{name}.mrc", halves=True)
    one, other = (_volume(tmp_path / f"{name}_half1.mrc") for name in ("halves", "spoilt"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    assert not torch.equal(
        _volume(tmp_path / "halves_half2.mrc"), _volume(tmp_path / "spoilt_half2.mrc")
    )


def test_symmetry_fills_in_the_views_that_are_missing(data, tmp_path):
    """Views from a quarter of all directions, of one side of the channel: all of them with C4, not
    without."""
    particles = load_particles(data / "truth.star")
    view = euler_to_matrix(torch.from_numpy(particles.rotations_deg))[
        :, 2
    ]  # the direction of view, in the object's frame
    azimuth = torch.atan2(view[:, 1], view[:, 0])
    particles.take((azimuth.abs() < torch.pi / 4).numpy()).write_star(data / "quarter.star")
    truth = _volume(data / "truth_1.mrc")
    asymmetry, correlation = [], []
    for group in ("C4", "C1"):
        _reconstruct(data / "quarter.star", tmp_path / f"{group}.mrc", symmetry=group)
        volume = _volume(tmp_path / f"{group}.mrc")
        asymmetry.append(_asymmetry(volume))
        correlation.append(_fsc(volume, truth).correlation[1:9].mean())
    assert asymmetry[0] < 0.02
    assert asymmetry[1] > 0.2
    assert correlation[0] > 0.9
    assert correlation[0] > correlation[1] + 0.02


# --- the formula ----------------------------------------------------------------------------------


def _with_ctf(particles: Particles) -> tuple[torch.Tensor, torch.Tensor]:
    """Transforms and CTFs of all images on the whole half-plane."""
    plane, rows = half_plane(BOX, largest_radius(BOX)), np.arange(len(particles))
    images = torch.from_numpy(particles.images(rows))
    return fourier_transform(images, plane), ctf(
        particles.transfer.take(rows), *plane.frequencies(PIXEL)
    )


@pytest.mark.parametrize("constant", [0.05, 3.0])
@pytest.mark.parametrize("use_ctf", [True, False])
def test_one_view_is_the_wiener_sum_of_its_images(data, tmp_path, constant, use_ctf):
    """At poses of rotation 0 every sample falls on a grid point of the plane z = 0, and the map is
    constant along z (but for the interpolation's correction): the image `sum C X / (k + sum C^2)`
    over 8 N, which is N^2 / (2 N)^3 of the padded transform."""
    n = 6
    few = load_particles(data / "particles.star").take(np.arange(n))
    shift_px = np.random.default_rng(1).uniform(-2, 2, (n, 2))
    few.with_results(rotations_deg=np.zeros((n, 3)), shift_angstrom=shift_px * PIXEL).write_star(
        data / "one_view.star"
    )
    _reconstruct(
        data / "one_view.star", tmp_path / "map.mrc", wiener_constant=constant, ctf=use_ctf
    )
    found = _volume(tmp_path / "map.mrc") * gridding_correction(BOX, 3)
    transforms, transfer = _with_ctf(few)
    transfer = transfer if use_ctf else torch.ones_like(transfer)
    plane = half_plane(BOX, largest_radius(BOX))
    centred = transforms * shift_phases(torch.from_numpy(shift_px).float(), plane)
    wiener = (transfer * centred).sum(0) / (constant + (transfer**2).sum(0))
    expected = inverse_fourier_transform(wiener[None], plane)[0] / (8 * BOX)
    assert (found - found.mean(0)).abs().max() < 1e-3 * found.abs().max()
    found, expected = (
        found[BOX // 2] - found[BOX // 2].mean(),
        expected - expected.mean(),
    )  # the background's mean was taken off the images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("given", [True, False], ids=["noise-given", "noise-estimated"])
def test_premultiplied_images_give_the_same_map(data, made, tmp_path, monkeypatch, given):
    """The same sums at the same noise. The noise is estimated a little differently: the signal in
    the images' power is C^4 S, not C^2 S."""
    particles = load_particles(data / "truth.star")
    plane = half_plane(BOX, largest_radius(BOX))
    transforms, transfer = _with_ctf(particles)
    with StackWriter(tmp_path / "particles.mrcs", PIXEL) as stack:
        stack.append(inverse_fourier_transform(transfer * transforms, plane).numpy())
    blocks = dict(read_star(data / "truth.star").blocks)
    blocks["optics"] = blocks["optics"].with_columns(
        {"rlnCtfDataAreCtfPremultiplied": np.ones(len(blocks["optics"]), np.int64)}
    )
    write_star(tmp_path / "premultiplied.star", blocks)
    assert load_particles(tmp_path / "premultiplied.star").transfer.premultiplied.all()
    plain = made.map_path
    if given:
        monkeypatch.setattr(
            reconstruct3d, "initial_noise", lambda *_, **__: torch.ones(1, plane.radius + 1)
        )
        plain = _reconstruct(data / "truth.star", tmp_path / "plain.mrc").map_path
    _reconstruct(tmp_path / "premultiplied.star", tmp_path / "map.mrc")
    # all but k = 0, where the background's mean was taken off: a constant through the
    # interpolation's correction
    correction = gridding_correction(BOX, 3)
    found, expected = (
        v * correction - (v * correction).mean()
        for v in (_volume(tmp_path / "map.mrc"), _volume(plain))
    )
    assert (found - expected).norm() < (1e-3 if given else 2e-2) * expected.norm()


def test_bad_images_are_left_out(data, tmp_path):
    particles = load_particles(data / "truth.star").take(np.arange(60))
    images = particles.images(np.arange(60))
    particles.take(np.arange(1, 60)).with_results(half_set=1 + np.arange(1, 60) % 2).write_star(
        data / "good.star"
    )
    images[0, 3, 3] = np.nan
    with StackWriter(tmp_path / "particles.mrcs", PIXEL) as stack:
        stack.append(images)
    particles.with_results(half_set=1 + np.arange(60) % 2).write_star(data / "all.star")
    text = (data / "all.star").read_text().replace("@particles.mrcs", f"@{tmp_path}/particles.mrcs")
    (tmp_path / "bad.star").write_text(text)
    assert np.isnan(load_particles(tmp_path / "bad.star").images(np.array([0]))).any()
    _reconstruct(tmp_path / "bad.star", tmp_path / "bad.mrc")
    _reconstruct(data / "good.star", tmp_path / "good.mrc")
    aside = read_star(tmp_path / "bad_job" / "set_aside.star").blocks["particles"]
    assert "NaN" in aside.strings("halfmapSetAside")[0]
    assert len(aside) == 1
    a, b = _volume(tmp_path / "bad.mrc"), _volume(tmp_path / "good.mrc")
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


# --- bad input ------------------------------------------------------------------------------------


def _refused(star: Path, out: Path, message: str, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _reconstruct(star, out, **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_exists_is_left_alone(data, tmp_path):
    (tmp_path / "map.mrc").write_text("mine")
    _refused(data / "truth.star", tmp_path / "map.mrc", "map.mrc: the file exists.*--overwrite")
    assert (tmp_path / "map.mrc").read_text() == "mine"
    assert not (tmp_path / "map_job").exists()
    _reconstruct(data / "truth.star", tmp_path / "map.mrc", overwrite=True)
    assert _volume(tmp_path / "map.mrc").shape == (BOX, BOX, BOX)


@pytest.mark.parametrize("name", ["map.map", "map.mrcs", "map.mrc.gz"])
def test_a_name_that_is_no_maps_is_refused(data, tmp_path, name):
    _refused(data / "truth.star", tmp_path / name, r"--out .*ending in \.mrc")


def test_particles_without_poses_are_refused(data, tmp_path):
    _refused(
        data / "particles.star",
        tmp_path / "map.mrc",
        "particles.star: no poses.*rlnAngleRot.*halfmap refine",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wiener_constant": 0.0}, "--wiener-constant 0"),
        ({"wiener_constant": float("nan")}, "--wiener-constant nan"),
        ({"symmetry": "C0"}, "C0"),
        ({"diameter_angstrom": 1e4}, "--diameter 10000"),
        ({"seed": -1}, "--seed -1"),
        ({"device": "abacus"}, "--device abacus"),
        ({"mask": "nowhere.mrc"}, r"nowhere\.mrc"),
        ({"memory": 1000}, "--memory"),
    ],
)
def test_an_option_out_of_range_is_refused(data, tmp_path, options, message):
    _refused(data / "truth.star", tmp_path / "map.mrc", message, **options)
    assert not (tmp_path / "map.mrc").exists()
