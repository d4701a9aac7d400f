"""refine --local-regularisation: a core in a disordered belt gains by it, images of noise gain
nothing, and what is reported stays that of half maps that nobody filtered."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import halfmap
from halfmap.errors import InputError
from halfmap.particles import load_particles
from halfmap.simulation.phantom import phantom
from halfmap.workspace.job import Job, JobStopped
from optics_scenes import Group, two_groups

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import local_regularisation
import truth

BOX, PIXEL = 32, 7.0
QUICK = {
    "initial_lowpass_angstrom": 40.0,
    "diameter_angstrom": 190.0,
    "angular_step_deg": 15.0,
    "device": "cpu",
    "quiet": True,
}


@pytest.fixture(autouse=True, scope="module")
def _coarser() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_regularisation, "BOX", BOX)
        patch.setattr(local_regularisation, "PIXEL", PIXEL)
        yield


@pytest.fixture(scope="module")
def rigid(_coarser, tmp_path_factory) -> Path:
    return local_regularisation.made(tmp_path_factory.mktemp("rigid"), "rigid", n=100, snr=0.4)


@pytest.fixture(scope="module")
def refined(rigid: Path, tmp_path_factory) -> dict[tuple[bool, int], Path]:
    """Jobs with the filter and without, of one iteration and of two."""
    folder = tmp_path_factory.mktemp("refined")
    made = {(ours, n): folder / f"{ours}{n}" for ours in (False, True) for n in (1, 2)}
    for (ours, n), out in made.items():
        _refine(rigid, out, iterations=n, local_regularisation=ours)
    return made


def _refine(folder: Path, out: Path, **options):
    return halfmap.refine(
        folder / "particles.star", folder / "start.mrc", out, **{**QUICK, **options}
    )


@pytest.mark.parametrize("file", ["half1.mrc", "half2.mrc", "fsc.star"])
def test_an_iteration_reports_what_it_would_without(refined, file: str) -> None:
    """The filter comes after the M-step: poses, half maps and FSC of the first iteration know
    nothing of it, those of the second do."""
    found = {key: (out / file).read_bytes() for key, out in refined.items()}
    assert found[False, 1] == found[True, 1]
    assert found[False, 2] != found[True, 2]


def test_a_stopped_job_goes_on_as_if_it_had_not(rigid, refined, tmp_path, monkeypatch) -> None:
    kept, calls = Job.save_checkpoint, []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "save_checkpoint", stopped)
        with pytest.raises(JobStopped):
            _refine(rigid, tmp_path / "job", iterations=2, local_regularisation=True)
    halfmap.resume(tmp_path / "job", quiet=True)
    for file in ("map.mrc", "half1.mrc", "particles.star"):
        assert (tmp_path / "job" / file).read_bytes() == (refined[True, 2] / file).read_bytes()


def test_images_of_noise_gain_nothing(tmp_path) -> None:
    data = local_regularisation.made(tmp_path / "data", "noise", n=150, snr=0.1)
    areas = []
    for ours in (False, True):
        out = tmp_path / f"job{ours}"
        _refine(data, out, iterations=3, local_regularisation=ours)
        halves = [halfmap.read_map(out / f"half{h}.mrc")[0] for h in (1, 2)]
        areas.append(float(truth.fsc(*halves)[1:].sum()))
    assert areas[1] <= areas[0] + 0.1


def test_grids_of_two_groups_and_local_searches_gain_no_less(tmp_path) -> None:
    """Optics groups of other boxes and pixel sizes, poses near the truth: the filter runs on the
    references' grid, and the resolution of a rigid molecule stays."""
    star = two_groups(tmp_path / "two", [Group(32, 6.0), Group(30, 6.4)], 120, snr=0.5)
    halfmap.write_map(tmp_path / "start.mrc", phantom(32, 6.0, symmetry="C1").numpy(), 6.0)
    found = [
        halfmap.refine(
            star,
            tmp_path / "start.mrc",
            tmp_path / f"job{ours}",
            local=True,
            iterations=2,
            local_regularisation=ours,
            **QUICK,
        )
        for ours in (False, True)
    ]
    plain, filtered = (32 * 6.0 / one.resolution_angstrom for one in found)
    assert filtered > plain - 0.5  # shells
    plain_map, other = (halfmap.read_map(one.folder / "half1.mrc")[0] for one in found)
    assert not np.array_equal(plain_map, other)  # the second iteration knows of the filter


@pytest.mark.slow
def test_a_local_search_gains_in_a_disordered_belt(tmp_path) -> None:
    """From poses that are a few degrees off, as a refinement goes on."""
    data = local_regularisation.made(tmp_path / "data", "micelle", n=400, snr=0.1)
    known, draw = load_particles(data / "truth.star"), np.random.default_rng(3)
    off = known.rotations_deg + 4 * draw.standard_normal(known.rotations_deg.shape)
    known.with_results(rotations_deg=off).write_star(data / "particles.star")
    found = []
    for ours in (False, True):
        out = tmp_path / f"job{ours}"
        _refine(data, out, iterations=6, local=True, local_regularisation=ours)
        found.append(local_regularisation.judged(data, out))
    plain, filtered = found
    assert filtered["error_median_deg"] < plain["error_median_deg"]
    assert filtered["core_fsc_area_shells"] > plain["core_fsc_area_shells"]


@pytest.mark.slow
def test_a_core_in_a_disordered_belt_gains(tmp_path) -> None:
    """Poses of the core, and its FSC to the truth."""
    data = local_regularisation.made(tmp_path / "data", "micelle", n=400, snr=0.1)
    found = []
    for ours in (False, True):
        out = tmp_path / f"job{ours}"
        _refine(data, out, iterations=8, local_regularisation=ours)
        found.append(local_regularisation.judged(data, out))
    plain, filtered = found
    assert filtered["error_median_deg"] < 0.9 * plain["error_median_deg"]
    assert filtered["core_fsc_area_shells"] > plain["core_fsc_area_shells"]


def test_one_constant_for_the_whole_map_does_not_go_with_it(tmp_path) -> None:
    with pytest.raises(InputError, match="--wiener-constant"):
        halfmap.refine(
            "p.star",
            "m.mrc",
            tmp_path / "job",
            method="projection-matching",
            wiener_constant=1.0,
            local_regularisation=True,
        )
    assert not (tmp_path / "job").exists()
