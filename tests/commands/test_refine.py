"""halfmap refine on particles whose truth is known: good map, same bytes, resumed anywhere, bad
input in one line, no Einstein."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.commands import _final_maps, _halves, _inputs, _setup
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.io.stack_writer import StackWriter
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table
from halfmap.masks import soft_sphere
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace import job as jobs
from halfmap.workspace.job import JobStopped, read_events, read_job
from halfmap.workspace.progress import Progress

N, BOX, PIXEL = 160, 32, 6.0
RESULTS = (
    *("map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "particles.star"),
    *("mask.mrc", "map_sharpened.mrc", "postprocess.star"),
)
METHODS = ("ml", "projection-matching")
QUICK = {
    "symmetry": "C4",
    "angular_step_deg": 15.0,
    "shift_range_px": 3.0,
    "initial_lowpass_angstrom": 40.0,
    "device": "cpu",
    "quiet": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("refine") / "sim"
    return halfmap.simulate(
        "phantom",
        out,
        n=N,
        snr=0.4,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=1.0,
        seed=7,
        quiet=True,
    ).folder


def _refine(data: Path, out: Path, **options):
    return halfmap.refine(
        data / "particles.star", data / "truth_1.mrc", out, **{**QUICK, "iterations": 2, **options}
    )


@pytest.fixture(scope="module", params=METHODS)
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def refined(data: Path, method: str, tmp_path_factory):
    return _refine(data, tmp_path_factory.mktemp("refined") / "job", method=method)


def _bytes(folder: Path) -> dict[str, bytes]:
    drawn = (
        ("pictures/posterior_weights.png",)
        if read_job(folder)["parameters"]["method"] == "ml"
        else ()
    )
    return {name: (folder / name).read_bytes() for name in (*RESULTS, *drawn)}


def _errors(star: Path, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Angle (modulo C4) and shift (A) from the truth, matched by image name."""
    known, found = load_particles(data / "truth.star"), load_particles(star)
    row = dict(zip(known.image_index.tolist(), range(len(known)), strict=True))
    rows = np.array([row[i] for i in found.image_index.tolist()])
    a, b = (euler_to_matrix(torch.from_numpy(p.rotations_deg)) for p in (found, known.take(rows)))
    shift = torch.from_numpy(found.shift_angstrom - known.shift_angstrom[rows]).norm(dim=1)
    return angular_distance_deg(a, b, symmetry=symmetry_matrices("C4")), shift


def _blocks(path: Path):
    return read_star(path).blocks


def _volume(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_map(path)[0].copy())


def _to_truth(folder: Path, data: Path) -> torch.Tensor:
    """FSC of the map to the truth, inside the particle."""
    mask, maps = (
        soft_sphere(BOX, radius_px=13, edge_px=2),
        [_volume(path) for path in (folder / "map.mrc", data / "truth_1.mrc")],
    )
    return fourier_shell_correlation(*maps, pixel_size_angstrom=PIXEL, mask=mask).correlation


# --- a good run -----------------------------------------------------------------------------------


def test_poses_are_the_true_ones(refined, data):
    angle, shift = _errors(refined.folder / "particles.star", data)
    assert len(angle) == N
    assert angle.median() < 2
    assert (angle < 6).float().mean() > 0.9
    assert shift.median() < 0.2 * PIXEL


def test_branch_and_bound_finds_the_same_poses_and_says_the_same_twice(method, data, tmp_path):
    first, again = (
        _refine(data, tmp_path / name, method=method, search="branch-and-bound")
        for name in ("first", "again")
    )
    angle, shift = _errors(first.folder / "particles.star", data)
    assert angle.median() < 2
    assert (angle < 6).float().mean() > 0.9
    assert shift.median() < 0.2 * PIXEL
    assert _bytes(first.folder) == _bytes(again.folder)


def test_the_map_is_the_true_one_to_the_resolution_told(refined, data):
    truth, mask = _volume(data / "truth_1.mrc"), soft_sphere(BOX, radius_px=13, edge_px=2)
    curve = fourier_shell_correlation(
        _volume(refined.folder / "map.mrc"), truth, pixel_size_angstrom=PIXEL, mask=mask
    )
    assert refined.resolution_angstrom < 2.5 * PIXEL
    # FSC 0.143 between halves is FSC 0.5 of the whole map to the truth (Rosenthal and Henderson
    # 2003); one shell is allowed
    to_truth = resolution_at(curve, 0.5)
    assert abs(BOX * PIXEL / to_truth - BOX * PIXEL / refined.resolution_angstrom) < 2.0
    halves = [_volume(refined.folder / f"half{h}.mrc") for h in (1, 2)]
    assert not torch.equal(*halves)
    _, pixel = read_map(refined.folder / "half1.mrc")
    assert pixel == pytest.approx(PIXEL, rel=1e-4)


def test_symmetry_is_in_the_map(refined):
    volume = _volume(refined.folder / "map.mrc")[:, 1:, 1:]  # a quarter turn about the voxel N // 2
    turned = volume.rot90(1, (1, 2))
    assert torch.corrcoef(torch.stack([volume.flatten(), turned.flatten()]))[0, 1] > 0.98


def test_the_folder_holds_what_was_promised(refined, data):
    folder = refined.folder
    record, events = read_job(folder), read_events(folder)
    assert record["status"] == "finished"
    assert record["results"]["resolution_angstrom"] == pytest.approx(refined.resolution_angstrom)
    assert [e["iteration"] for e in events] == [1, 2]
    assert {
        "resolution_angstrom",
        "angular_change_deg",
        "shift_change_angstrom",
        "seconds",
    } <= events[-1].keys()
    mask = read_map(folder / "mask.mrc")[0]
    assert 0 < mask.mean() < 0.5
    for table in ("fsc.star", "postprocess.star"):
        assert _blocks(folder / table)["general"].strings("rlnMaskName")[0] == "mask.mrc"
    assert refined.mask == "mask mask.mrc"
    for picture in ("map", "fsc", "guinier", "map_sharpened", "orientations", "convergence"):
        assert (folder / "pictures" / f"{picture}.png").stat().st_size > 1000, picture
    star = _blocks(folder / "particles.star")
    before = _blocks(data / "particles.star")
    kept = star["particles"]
    for column in before["particles"].names:
        if column not in ("rlnImageName",):
            assert kept.strings(column).tolist() == before["particles"].strings(column).tolist(), (
                column
            )
    assert set(kept.strings("rlnRandomSubset").tolist()) == {"1", "2"}
    assert (
        len(load_particles(folder / "particles.star").images(np.arange(3))) == 3
    )  # the images are found from there


def test_noise_never_gets_into_the_particles_file(refined):
    particles = load_particles(refined.folder / "particles.star")
    assert np.isfinite(particles.rotations_deg).all()
    assert np.isfinite(particles.shift_angstrom).all()
    assert (particles.class_number == 1).all()
    assert abs((particles.half_set == 1).sum() - N / 2) <= 1


# --- same seed, same bytes; stopped and resumed ---------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(refined, method, data, tmp_path):
    again = _refine(data, tmp_path / "again", method=method)
    assert _bytes(again.folder) == _bytes(refined.folder)
    assert again.resolution_angstrom == refined.resolution_angstrom
    particles = load_particles(data / "particles.star")
    one, same, other = (_halves.divide_into_halves(particles, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def _stop_in(monkeypatch, owner: object, name: str, call: int) -> None:
    """Ctrl-C in the given call of a function."""
    whole, calls = getattr(owner, name), []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, stopped)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(
            Progress, "finish_iteration", 1, marks=pytest.mark.slow
        ),  # after the first checkpoint
        (
            jobs.Job,
            "save_checkpoint",
            2,
        ),  # after the second iteration's event, before its checkpoint
        pytest.param(
            _final_maps, "sum_at_significant_poses", 1, marks=pytest.mark.slow
        ),  # in the final maps
    ],
    ids=["after-a-checkpoint", "before-a-checkpoint", "in-the-final-maps"],
)
def test_a_job_stopped_and_resumed_gives_the_same_bytes(
    refined, method, data, tmp_path, monkeypatch, owner, name, call
):
    with monkeypatch.context() as patch:
        _stop_in(patch, owner, name, call)
        with pytest.raises(JobStopped, match="halfmap resume"):
            _refine(data, tmp_path / "job", method=method)
    assert read_job(tmp_path / "job")["status"] == "stopped"
    assert not (tmp_path / "job" / "map.mrc").exists()
    halfmap.resume(tmp_path / "job", quiet=True)
    assert _bytes(tmp_path / "job") == _bytes(refined.folder)
    assert [e["iteration"] for e in read_events(tmp_path / "job")] == [1, 2]
    assert read_job(tmp_path / "job")["runs"] == 2


# --- what must not matter -------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-5.0, 0.0, 5.0])
def test_the_references_background_does_not_decide_the_particles_size(data, offset):
    """A map that is negative everywhere, or has a constant background, holds a particle of a size
    between a few pixels and the box."""
    particles = load_particles(data / "particles.star")
    volume = _volume(data / "truth_1.mrc")
    radius = _inputs.particle_radius_px(None, particles, volume + offset * volume.max())
    assert 4 < radius <= 0.47 * BOX + 1e-3


def test_local_refinement_starts_from_the_files_poses_of_any_class(data, tmp_path):
    """Poses a few degrees off come back; rlnClassNumber of an earlier classification is no class
    here."""
    rng = np.random.default_rng(0)
    known = load_particles(data / "truth.star")
    angles = known.rotations_deg + rng.normal(size=(N, 3)) * 2
    near = known.with_results(
        rotations_deg=angles,
        shift_angstrom=known.shift_angstrom + rng.normal(size=(N, 2)) * 3,
        class_number=rng.integers(1, 9, N),
    )
    near.write_star(data / "near.star")
    job = halfmap.refine(
        data / "near.star",
        data / "truth_1.mrc",
        tmp_path / "job",
        local=True,
        **{**QUICK, "iterations": 2},
    )
    before, after = (
        _errors(data / "near.star", data)[0],
        _errors(tmp_path / "job" / "particles.star", data)[0],
    )
    assert after.median() < 0.6 * before.median()
    given, found = (
        euler_to_matrix(torch.from_numpy(load_particles(p).rotations_deg))
        for p in (data / "near.star", job.folder / "particles.star")
    )
    moved = angular_distance_deg(given, found)
    assert moved.max() < 8  # three standard deviations of the prior are 5 degrees
    assert job.resolution_angstrom < 2.6 * PIXEL
    assert (load_particles(tmp_path / "job" / "particles.star").class_number == 1).all()


# --- trouble --------------------------------------------------------------------------------------


def _copy_with_images(data: Path, out: Path, change) -> Path:
    """The same metadata with other images; returns the STAR."""
    out.mkdir()
    images = change(load_particles(data / "particles.star").images(np.arange(N)).copy())
    with StackWriter(out / "particles.mrcs", PIXEL) as stack:
        stack.append(images.astype(np.float32))
    shutil.copy(data / "particles.star", out / "particles.star")
    return out / "particles.star"


def test_bad_images_are_set_aside_and_listed(data, tmp_path):
    """And the half sets of the file are kept."""

    def spoil(images):
        images[3, 5, 5], images[10], images[20, 0, 0] = np.nan, 2.0, np.inf
        return images

    star = _copy_with_images(data, tmp_path / "bad", spoil)
    half = 1 + (np.arange(N) // 7) % 2
    load_particles(star).with_results(half_set=half).write_star(star)
    halfmap.refine(star, data / "truth_1.mrc", tmp_path / "job", **{**QUICK, "iterations": 1})
    listed = _blocks(tmp_path / "job" / "set_aside.star")["particles"]
    assert [int(name.split("@")[0]) for name in listed.strings("rlnImageName")] == [4, 11, 21]
    reasons = listed.strings("halfmapSetAside").tolist()
    assert "NaN" in reasons[0]
    assert "constant" in reasons[1]
    kept = load_particles(tmp_path / "job" / "particles.star")
    assert len(kept) == N - 3
    assert not set(kept.image_index.tolist()) & {3, 10, 20}
    assert (kept.half_set == half[kept.image_index]).all()
    assert np.isfinite(read_map(tmp_path / "job" / "map.mrc")[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_pure_noise_does_not_become_the_reference(data, tmp_path, method):
    """Einstein from noise: poses are fitted to a detailed reference, and still the resolution told,
    from independent halves, stays at that of the reference's low-pass."""
    rng = np.random.default_rng(3)
    star = _copy_with_images(data, tmp_path / "noise", lambda images: rng.normal(size=images.shape))
    job = halfmap.refine(
        star, data / "truth_1.mrc", tmp_path / "job", method=method, **{**QUICK, "iterations": 4}
    )
    # the low-pass at 40 A ends 2 Fourier pixels later, at 28 A, and shells of so small a box agree
    # by chance; true images reach 13 A
    assert job.resolution_angstrom > 22
    mask = soft_sphere(BOX, radius_px=13, edge_px=2)
    found, truth = _volume(job.folder / "map.mrc"), _volume(data / "truth_1.mrc")
    seen = fourier_shell_correlation(found, truth, pixel_size_angstrom=PIXEL, mask=mask).correlation
    assert seen[9:15].mean() < 0.25  # no detail of the reference has come back


# --- bad input ------------------------------------------------------------------------------------


def _refused(
    data: Path,
    tmp_path: Path,
    message: str,
    *,
    particles: Path | None = None,
    reference: Path | None = None,
    **options,
) -> None:
    """One clear line, and no folder left behind."""
    with pytest.raises(InputError, match=message) as caught:
        halfmap.refine(
            particles or data / "particles.star",
            reference or data / "truth_1.mrc",
            tmp_path / "job",
            **{**QUICK, "iterations": 1, **options},
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "job").exists()


def test_a_map_of_another_box_whose_pixel_size_nobody_knows_is_refused(data, tmp_path):
    volume = np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32)
    write_map(tmp_path / "small.mrc", volume, 0.0)
    _refused(
        data,
        tmp_path,
        "small.mrc: the map's box is 30, the images' is 32, and its header has no pixel size",
        reference=tmp_path / "small.mrc",
    )


@pytest.mark.parametrize(
    ("value", "word"), [(0.0, "constant"), (3.0, "constant"), (np.nan, "not finite")]
)
def test_a_map_with_nothing_in_it_is_refused(data, tmp_path, value, word):
    write_map(tmp_path / "empty.mrc", np.full((BOX, BOX, BOX), value, np.float32), PIXEL)
    _refused(data, tmp_path, word, reference=tmp_path / "empty.mrc")


def test_particles_without_ctf_are_refused_unless_told(data, tmp_path):
    star = _blocks(data / "particles.star")
    plain = star["particles"].without("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    write_star(data / "noctf.star", {"optics": star["optics"], "particles": plain})
    _refused(data, tmp_path, "noctf.star.*(CTF|Defocus)", particles=data / "noctf.star")
    halfmap.refine(
        data / "noctf.star",
        data / "truth_1.mrc",
        tmp_path / "job",
        **{**QUICK, "iterations": 1, "ctf": False},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symmetry": "C4v"}, "symmetry.*C4v"),
        ({"symmetry": "banana"}, "banana"),
        ({"method": "magic"}, "--method magic"),
        ({"angular_step_deg": 0.0}, "--angular-step 0"),
        ({"angular_step_deg": float("nan")}, "--angular-step nan"),
        ({"initial_lowpass_angstrom": -3.0}, "--initial-lowpass -3"),
        ({"iterations": 0}, "--iterations 0"),
        ({"shift_range_px": -1.0}, "shift-range"),
        ({"shift_range_px": float("nan")}, "shift-range"),
        ({"diameter_angstrom": 1e4}, "--diameter"),
        ({"diameter_angstrom": -5.0}, "--diameter"),
        ({"seed": -1}, "seed"),
        ({"device": "abacus"}, "--device abacus"),
        ({"threads": 0}, "--threads 0"),
        ({"memory": 1000}, "--memory"),
        ({"local": True}, r"no poses \(rlnAngleRot.*--local"),
        ({"search": "guess"}, "--search guess: expected one of adaptive, branch-and-bound"),
        ({"search": "branch-and-bound", "local": True}, "--search branch-and-bound.*--local"),
    ],
    ids=lambda value: (
        "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_an_option_out_of_range_is_refused(data, tmp_path, options, message):
    _refused(data, tmp_path, message, **options)


def test_missing_files_are_refused(data, tmp_path):
    _refused(data, tmp_path, r"nowhere\.star", particles=data / "nowhere.star")
    _refused(data, tmp_path, r"nowhere\.mrc", reference=data / "nowhere.mrc")
    _refused(data, tmp_path, r"nowhere\.mrc", mask=data / "nowhere.mrc")


def test_one_particle_is_not_enough(data, tmp_path):
    load_particles(data / "particles.star").take(np.array([0])).write_star(data / "one.star")
    _refused(data, tmp_path, "one.star.*hal", particles=data / "one.star")


def test_a_star_without_rows_is_refused(data, tmp_path):
    star = _blocks(data / "particles.star")
    nothing = Table.from_columns({name: [] for name in star["particles"].names})
    write_star(data / "nobody.star", {"optics": star["optics"], "particles": nothing})
    _refused(data, tmp_path, "nobody.star", particles=data / "nobody.star")


def test_a_folder_in_use_is_left_as_it_is(refined, data):
    before = _bytes(refined.folder)
    with pytest.raises(InputError, match="finished halfmap refine job"):
        _refine(data, refined.folder)
    assert _bytes(refined.folder) == before


# --- maximum likelihood ---------------------------------------------------------------------------

TOLD = {
    "rlnMaxValueProbDistribution",
    "rlnLogLikeliContribution",
    "rlnNrOfSignificantSamples",
    "rlnNormCorrection",
    "rlnGroupScaleCorrection",
}


def _columns(folder: Path) -> dict[str, np.ndarray]:
    table = _blocks(folder / "particles.star")["particles"]
    assert len(set(table.names)) == len(table.names)
    return {name: table.floats(name) for name in TOLD & set(table.names)}


def test_what_the_posteriors_tell_is_in_the_file_once(data, tmp_path):
    """Under RELION's names; and a job that starts from such a file writes its own in their
    place."""
    first = _refine(data, tmp_path / "first", iterations=1)
    told = _columns(first.folder)
    assert told.keys() == TOLD
    largest, significant = told["rlnMaxValueProbDistribution"], told["rlnNrOfSignificantSamples"]
    assert ((largest > 0) & (largest <= 1)).all()
    assert (
        largest >= 0.999 / significant - 1e-4
    ).all()  # the largest of so many weights that sum to 1
    assert significant.mean() > 2  # several optima compete at first
    assert np.median(told["rlnNormCorrection"]) == pytest.approx(1, abs=0.05)
    second = halfmap.refine(
        first.folder / "particles.star",
        data / "truth_1.mrc",
        tmp_path / "second",
        **{**QUICK, "iterations": 3, "method": "ml"},
    )
    again = _columns(second.folder)
    assert again.keys() == TOLD
    assert again["rlnNrOfSignificantSamples"].mean() < 1.5  # and one is left in the end
    assert again["rlnMaxValueProbDistribution"].mean() > 0.9
    # the log of how much likelier an image is with the map than without
    assert np.median(again["rlnLogLikeliContribution"]) > 5
    third = halfmap.refine(
        second.folder / "particles.star",
        data / "truth_1.mrc",
        tmp_path / "third",
        **{**QUICK, "iterations": 1, "method": "projection-matching"},
    )
    _columns(third.folder)


def test_gamma_is_drawn_of_particles_that_the_data_decide(data, tmp_path):
    """Three stages, from diffuse to sharp; and no stage twice in a job of one iteration."""
    from PIL import Image

    three, one = (_refine(data, tmp_path / f"job{n}", iterations=n) for n in (3, 1))
    widths = []
    for job in (three, one):
        with Image.open(job.folder / "pictures/posterior_weights.png") as page:
            widths.append(page.width)
    assert widths[0] - widths[1] == pytest.approx(334, abs=20)  # a sphere more
    spread = []
    for iteration in (0, 2):
        with np.load(three.folder / f"shown/directions_{iteration:03d}.npz") as file:
            gamma = torch.from_numpy(file["gamma"])
        assert gamma.shape == (4, 192)
        torch.testing.assert_close(gamma.sum(1), torch.ones(4))
        spread.append(torch.special.entr(gamma).sum(1).exp().mean())
    assert spread[1] < 0.5 * spread[0]


def test_the_references_grey_scale_does_not_matter(data, tmp_path):
    """128 times as strong, a reference would make every image sure of one pose; the first iteration
    compares by correlation. (A power of two: products round as they do without it, also where the
    machine multiplies in bfloat16.)"""
    write_map(tmp_path / "bright.mrc", 128 * read_map(data / "truth_1.mrc")[0], PIXEL)
    same = _refine(data, tmp_path / "same")
    bright = halfmap.refine(
        data / "particles.star",
        tmp_path / "bright.mrc",
        tmp_path / "bright",
        **{**QUICK, "iterations": 2},
    )
    assert bright.resolution_angstrom == pytest.approx(same.resolution_angstrom, rel=1e-3)
    a, b = (
        euler_to_matrix(
            torch.from_numpy(load_particles(job.folder / "particles.star").rotations_deg)
        )
        for job in (same, bright)
    )
    moved = angular_distance_deg(a, b, symmetry=symmetry_matrices("C4"))
    assert (moved < 0.05).float().mean() > 0.95
    maps = torch.stack([_volume(job.folder / "map.mrc").flatten() for job in (same, bright)])
    assert torch.corrcoef(maps)[0, 1] > 0.999
    gammas = [np.load(job.folder / "shown/directions_000.npz")["gamma"] for job in (same, bright)]
    np.testing.assert_allclose(*gammas, atol=1e-3)


def test_images_full_of_something_else_are_known_by_their_norm_and_do_no_harm(
    data, tmp_path, monkeypatch
):
    """One image in twenty holds an ice crystal or noise of four times the deviation: those have the
    largest norms, and the map is better than where all images are taken to be equally strong."""
    junk = np.arange(5, N, 20)
    rng = np.random.default_rng(1)

    def spoil(images):
        y, x = np.mgrid[:BOX, :BOX]
        for i in junk[::2]:
            images[i] += 6 * np.sin(
                2 * np.pi * (x * rng.uniform(2, 6) + y * rng.uniform(2, 6)) / BOX
            )
        images[junk[1::2]] = 4 * rng.normal(size=(len(junk[1::2]), BOX, BOX))
        return images

    star = _copy_with_images(data, tmp_path / "junk", spoil)
    robust = halfmap.refine(
        star, data / "truth_1.mrc", tmp_path / "robust", **{**QUICK, "iterations": 3}
    )
    table = _blocks(robust.folder / "particles.star")["particles"]
    norm = table.floats("rlnNormCorrection")
    assert set(np.argsort(-norm)[: len(junk)].tolist()) == set(junk.tolist())
    assert norm[junk].min() > 1.3 * np.delete(norm, junk).max()
    assert read_job(robust.folder)["results"]["norm_outliers"] >= len(junk)
    whole = _setup.make_problem

    def indifferent(*arguments, **options):
        return whole(*arguments, **{**options, "learn_norm_and_scale": False})

    monkeypatch.setattr(_setup, "make_problem", indifferent)
    equal = halfmap.refine(
        star, data / "truth_1.mrc", tmp_path / "equal", **{**QUICK, "iterations": 3}
    )
    with_norm, without = (_to_truth(job.folder, data)[3:14].mean() for job in (robust, equal))
    assert with_norm > without + 0.005  # without learning norms both are the same map
