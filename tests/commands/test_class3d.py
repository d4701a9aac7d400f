"""halfmap class3d on a mixture whose truth is known: the kinds are found from two maps and from
one; resumed; bad input refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.commands import _inputs
from halfmap.commands import class3d as module
from halfmap.commands._volumes import first_state
from halfmap.engine.preprocessing import ImageSettings
from halfmap.engine.problem import Problem
from halfmap.errors import InputError
from halfmap.io.mrc import read_map, write_map
from halfmap.masks import soft_sphere
from halfmap.methods.principal_components import principal_loadings
from halfmap.methods.settings import Settings
from halfmap.methods.splitting import cluster
from halfmap.particles import load_particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.resolution import fourier_shell_correlation
from halfmap.symmetries import Specimen, point_group
from halfmap.workspace.job import read_events, read_job
from killed import kill_after_checkpoint

N, BOX, PIXEL = 160, 24, 8.0
QUICK = {
    "symmetry": "C4",
    "angular_step_deg": 15.0,
    "shift_range_px": 2.0,
    "device": "cpu",
    "threads": 1,  # sums in the order of one thread, in every process
    "quiet": True,
}
DIAMETER = 20 * PIXEL


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two conformations, half and half."""
    out = tmp_path_factory.mktemp("class3d") / "sim"
    states = ["phantom", "phantom:1"]
    return halfmap.simulate(
        states,
        out,
        n=N,
        snr=1.5,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=0.7,
        seed=3,
        quiet=True,
    ).folder


def _class3d(data: Path, reference: list[Path], out: Path, **options):
    options = {**QUICK, "classes": 2, "iterations": 2, "diameter_angstrom": DIAMETER, **options}
    return halfmap.class3d(
        data / "particles.star", reference[0] if len(reference) == 1 else reference, out, **options
    )


@pytest.fixture(scope="module", params=["ml", "projection-matching"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def from_two(data, method, tmp_path_factory):
    """The second state's map is given first."""
    maps = [data / "truth_2.mrc", data / "truth_1.mrc"]
    return _class3d(
        data,
        maps,
        tmp_path_factory.mktemp("two") / "job",
        initial_lowpass_angstrom=25.0,
        iterations=1,
        method=method,
    )


@pytest.fixture(scope="module")
def from_one(data, method, tmp_path_factory):
    return _class3d(
        data,
        [data / "truth_1.mrc"],
        tmp_path_factory.mktemp("one") / "job",
        initial_lowpass_angstrom=40.0,
        method=method,
    )


def _volume(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_map(path)[0].copy())


def _classes(data: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """True and found class of each particle, from 0."""
    known, found = load_particles(data / "truth.star"), load_particles(folder / "particles.star")
    np.testing.assert_array_equal(known.image_index, found.image_index)
    return known.class_number - 1, found.class_number - 1


def adjusted_rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """(pairs together in both - expected) / (mean of pairs together in each - expected): Hubert and
    Arabie, J. Classif. 2, 193 (1985)."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    rows, columns = pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([len(a)]))
    return (pairs(table) - expected) / ((rows + columns) / 2 - expected)


def _agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean FSC over the middle shells, inside the particle."""
    mask = soft_sphere(BOX, radius_px=10, edge_px=2)
    return float(
        fourier_shell_correlation(a, b, pixel_size_angstrom=PIXEL, mask=mask)
        .correlation[4:10]
        .mean()
    )


# --- the kinds are found --------------------------------------------------------------------------


def test_the_rand_index_is_one_for_the_same_partition_and_nothing_by_chance():
    a = np.repeat([0, 1, 2], [50, 30, 20])
    assert adjusted_rand_index(a, np.array([2, 0, 1])[a]) == pytest.approx(1)
    by_chance = [adjusted_rand_index(a, np.random.default_rng(s).permutation(a)) for s in range(50)]
    assert np.mean(by_chance) == pytest.approx(0, abs=0.01)


def test_two_maps_find_their_particles(from_two, data):
    """And keep their places: class 1 is the first map's, the truth's second state."""
    known, found = _classes(data, from_two.folder)
    assert adjusted_rand_index(known, found) > 0.8
    assert (known == 1 - found).mean() > 0.9


def test_one_map_finds_both_kinds(from_one, data):
    known, found = _classes(data, from_one.folder)
    assert adjusted_rand_index(known, found) > 0.5
    assert max((known == found).mean(), (known != found).mean()) > 0.85


@pytest.mark.parametrize("start", ["from_one", "from_two"])
def test_maps_are_those_of_their_own_particles(request, data, method, start):
    """Each class's map is the one that `reconstruct` makes of the particles that particles.star
    gives to it, and shows their kind."""
    job = request.getfixturevalue(start)
    known, found = _classes(data, job.folder)
    particles, truths = (
        load_particles(job.folder / "particles.star"),
        [_volume(data / f"truth_{k}.mrc") for k in (1, 2)],
    )
    maps = [_volume(job.folder / f"class{k:03d}.mrc") for k in (1, 2)]
    for k in range(2):
        particles.take(found == k).write_star(job.folder / f"class{k}.star")
        options = {
            "symmetry": "C4",
            "diameter_angstrom": DIAMETER,
            "device": "cpu",
            "quiet": True,
            "overwrite": True,
        }
        halfmap.reconstruct(job.folder / f"class{k}.star", job.folder / "own.mrc", **options)
        own = _volume(job.folder / "own.mrc")
        assert torch.corrcoef(torch.stack([own.flatten(), maps[k].flatten()]))[0, 1] > 0.99
        assert _agreement(own, maps[k]) > _agreement(own, maps[1 - k]) + 0.02
        state = int(known[found == k].mean() > 0.5)
        assert _agreement(maps[k], truths[state]) > 0.85
    # and the maps differ where the states do
    first = int(known[found == 0].mean() > 0.5)
    mask = soft_sphere(BOX, radius_px=10, edge_px=2)
    differences = torch.stack(
        [
            ((maps[0] - maps[1]) * mask).flatten(),
            ((truths[first] - truths[1 - first]) * mask).flatten(),
        ]
    )
    assert torch.corrcoef(differences)[0, 1] > 0.4


def test_the_folder_holds_what_was_promised(from_two, data):
    folder, results = from_two.folder, read_job(from_two.folder)["results"]
    _, found = _classes(data, folder)
    for name in ("class001", "class002"):
        for file in (
            f"{name}.mrc",
            f"{name}_half1.mrc",
            f"{name}_half2.mrc",
            f"{name}_fsc.star",
            f"pictures/{name}.png",
        ):
            assert (folder / file).exists(), file
    assert results["sizes"] == np.bincount(found, minlength=2).tolist()
    assert (
        from_two.resolution_angstrom
        == min(from_two.resolutions_angstrom)
        == pytest.approx(results["resolution_angstrom"])
    )
    assert all(r < 2.6 * PIXEL for r in from_two.resolutions_angstrom)
    assert [e["iteration"] for e in read_events(folder)] == [1]


def test_one_class_is_a_map_of_everything(data, tmp_path):
    job = _class3d(
        data,
        [data / "truth_1.mrc"],
        tmp_path / "job",
        classes=1,
        iterations=1,
        initial_lowpass_angstrom=25.0,
    )
    assert (load_particles(tmp_path / "job" / "particles.star").class_number == 1).all()
    known = load_particles(data / "truth.star").class_number
    mean = sum((known == k).mean() * _volume(data / f"truth_{k}.mrc") for k in (1, 2))
    assert _agreement(_volume(tmp_path / "job" / "class001.mrc"), mean) > 0.9
    assert len(job.resolutions_angstrom) == 1
    assert not (tmp_path / "job" / "class002.mrc").exists()


# --- where the classes start ----------------------------------------------------------------------


def test_the_principal_coordinate_tells_the_kinds_apart(data):
    """At the true poses, from the mean map, its coordinate orders the particles by kind:
    probability of a right order of a pair > 0.95."""
    truth = load_particles(data / "truth.star")
    half = torch.arange(N) % 2
    half[:10] = -1  # set aside
    images = ImageSettings(10.0, True, False, torch.device("cpu"))
    problem = Problem(truth, images, half, "other", Specimen(point_group("C4"), 10.0), 3, 1, 64)
    mask = soft_sphere(BOX, radius_px=10, edge_px=2)
    settings = Settings(SearchSettings(problem.specimen), 0.5, mask, mask)
    mean = (_volume(data / "truth_1.mrc") + _volume(data / "truth_2.mrc")) / 2
    scale = _grey_scale(problem, mean)
    state = first_state(problem, (scale * mean * mask)[None, None], 20.0)
    z = principal_loadings(problem, settings, state, 2, seed=1)
    assert z.shape == (N, 2)
    used = (half >= 0).numpy()
    assert (z[~torch.from_numpy(used)] == 0).all()
    a, b = (z[torch.from_numpy(used & (truth.class_number == k)), 0] for k in (1, 2))
    right = (a[:, None] < b).float().mean().item()
    assert max(right, 1 - right) > 0.95
    # the second component is what is left over: not the first again
    assert abs(torch.corrcoef(z[torch.from_numpy(used)].T)[0, 1]) < 0.5
    # the same again, and of halves that are divided into folds: all of them count
    folded = replace(problem, fold=torch.arange(N) // 2 % 4, n_folds=4)
    assert torch.equal(z, principal_loadings(folded, settings, state, 2, seed=1))


def _grey_scale(problem: Problem, volume: torch.Tensor) -> float:
    """Factor that brings a map to the images' scale: least squares over all images at the poses of
    the file."""
    from halfmap.engine.preprocessing import load_batch
    from halfmap.fourier import shift_phases
    from halfmap.projection import extract_slices, prepare_references

    poses, plane = _inputs.poses_of(problem.particles).in_one_class(), problem.plane
    noise = torch.ones(problem.n_groups, plane.radius + 1)
    batch = load_batch(
        problem.particles, torch.arange(N), plane, noise, poses.shift_px, problem.images
    )
    slices = extract_slices(prepare_references(volume[None], plane.radius), poses.rotations, plane)
    model = batch.ctf * slices * shift_phases(-poses.shift_px, plane)
    return float(
        (model.conj() * batch.transforms)[:, 1:].real.sum() / (model.abs() ** 2)[:, 1:].sum()
    )


def test_clusters_of_points_are_found_whatever_the_seed():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(90) % 3
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    points = centres[truth] + 0.4 * torch.randn(90, 2, generator=generator)
    for seed in range(5):
        assert adjusted_rand_index(
            truth.numpy(), cluster(points, 3, seed).numpy()
        ) == pytest.approx(1)
    assert torch.equal(cluster(points, 3, 1), cluster(points, 3, 1))


@pytest.mark.parametrize(
    "points",
    [torch.zeros(12, 1), torch.cat([torch.zeros(11, 1), torch.ones(1, 1)])],
    ids=["all-alike", "two-values"],
)
def test_fewer_different_points_than_clusters_still_fill_every_cluster(points):
    labels = cluster(points, 3, 1)
    assert sorted(set(labels.tolist())) == [0, 1, 2]
    assert len(labels) == 12


# --- same seed, same bytes; stopped and resumed ---------------------------------------------------


def _bytes(folder: Path) -> dict[str, bytes]:
    names = [
        "particles.star",
        *(
            f"class00{k}{part}"
            for k in (1, 2)
            for part in (".mrc", "_half1.mrc", "_half2.mrc", "_fsc.star")
        ),
    ]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_job_killed_and_resumed_gives_the_same_bytes(
    from_one, method, data, tmp_path, monkeypatch
):
    """Killed after its first iteration; the start from one map is not made again."""
    kill_after_checkpoint(
        "class3d",
        data / "particles.star",
        data / "truth_1.mrc",
        out=tmp_path / "job",
        after=1,
        **{**QUICK, "classes": 2, "iterations": 2, "diameter_angstrom": DIAMETER},
        initial_lowpass_angstrom=40.0,
        method=method,
    )
    assert not (tmp_path / "job" / "class001.mrc").exists()

    def refuse(*_, **__):
        raise AssertionError("started again")

    monkeypatch.setattr(module, "split_start", refuse)
    halfmap.resume(tmp_path / "job", quiet=True)
    assert _bytes(tmp_path / "job") == _bytes(from_one.folder)
    assert [e["iteration"] for e in read_events(tmp_path / "job")] == [1, 2]


# --- bad input ------------------------------------------------------------------------------------


def _refused(data: Path, reference: list[Path], out: Path, message: str, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _class3d(data, reference, out, **{"iterations": 1, **options})
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3}, "--reference: expected 1 map, or one for each of the 3 classes, got 2"),
        ({"method": "magic"}, "--method magic"),
        ({"symmetry": "banana"}, "banana"),
        ({"iterations": 0}, "--iterations 0"),
        ({"initial_lowpass_angstrom": float("nan")}, "--initial-lowpass nan"),
        ({"local": True}, r"no poses \(rlnAngleRot.*--local"),
        ({"memory": 1000}, "--memory"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_an_option_out_of_range_is_refused(data, tmp_path, options, message):
    _refused(
        data, [data / "truth_1.mrc", data / "truth_2.mrc"], tmp_path / "job", message, **options
    )


def test_no_classes_at_all_are_refused(data, tmp_path):
    _refused(data, [data / "truth_1.mrc"], tmp_path / "job", "--classes 0", classes=0)


def test_more_classes_than_particles_are_refused(data, tmp_path):
    few = load_particles(data / "particles.star").take(np.arange(8))
    (tmp_path / "few").mkdir()
    few.write_star(tmp_path / "few" / "particles.star")
    message = "--classes 5: expected at most half the number of usable images, 4"
    _refused(tmp_path / "few", [data / "truth_1.mrc"], tmp_path / "job", message, classes=5)


def test_the_second_map_is_checked_too(data, tmp_path):
    write_map(
        tmp_path / "small.mrc",
        np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32),
        0.0,
    )
    _refused(
        data,
        [data / "truth_1.mrc", tmp_path / "small.mrc"],
        tmp_path / "job",
        "small.mrc: the map's box is 20, the images' is 24",
    )
