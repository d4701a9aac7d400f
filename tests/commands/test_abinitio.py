"""halfmap abinitio on particles whose truth is known: the molecule from nothing, either hand; axes
found late; resumed; runs laid onto the best and compared; classes told apart from junk."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmap
from halfmap.alignment import mirror, mirror_poses, symmetrised
from halfmap.commands._initial_maps import doubtful_classes
from halfmap.commands.abinitio import SHARE_WITHOUT_SYMMETRY
from halfmap.errors import InputError
from halfmap.io.mrc import read_map
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import read_star
from halfmap.particles import load_particles
from halfmap.resolution import fourier_shell_correlation, resolution_at
from halfmap.so3 import angular_distance_deg, compose, euler_to_matrix
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace.job import read_events, read_job
from killed import kill_after_checkpoint

N, BOX, PIXEL, ITERATIONS = 300, 32, 6.0, 20
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
QUICK = {
    "symmetry": "C4",
    "early_symmetry": True,
    "diameter_angstrom": 150.0,
    "device": "cpu",
    "threads": 1,  # sums in the order of one thread, in every process
    "quiet": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("abinitio") / "sim"
    return halfmap.simulate(
        "phantom",
        out,
        n=N,
        snr=0.5,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        symmetry="C4",
        shift_rms_px=1.0,
        seed=7,
        quiet=True,
    ).folder


@pytest.fixture(scope="module")
def few(data: Path) -> Path:
    """The first images alone: enough to see that options do what they say."""
    star = data / "few.star"
    load_particles(data / "particles.star").take(np.arange(48)).write_star(star)
    return star


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory):
    return halfmap.abinitio(
        data / "particles.star",
        tmp_path_factory.mktemp("found") / "job",
        iterations=ITERATIONS,
        seed=1,
        **QUICK,
    )


def _error_deg(folder: Path, data: Path) -> float:
    """Median error of the poses after the best global turn G, for the hand that fits better: A_est
    = A_true S G, S any of C4."""
    estimated, truth = (
        euler_to_matrix(torch.from_numpy(load_particles(star).rotations_deg)).float()
        for star in (folder / "particles.star", data / "truth.star")
    )
    errors = []
    for hand in (torch.eye(3), HALF_TURN):  # an inverted map shows the same views half a turn away
        turned = compose(hand, estimated)
        for frame in compose(truth.mT, turned)[::20]:
            errors.append(
                float(
                    angular_distance_deg(
                        truth, compose(turned, frame.mT), symmetry=symmetry_matrices("C4")
                    ).median()
                )
            )
    return min(errors)


def test_poses_are_found_without_a_reference(found, data):
    """Chance would be 100 degrees or more."""
    assert _error_deg(found.folder, data) < 20


def test_the_map_is_one(found):
    density = read_map(found.folder / "map.mrc")[0]
    assert density.shape == (BOX,) * 3
    assert density.min() >= 0
    assert found.sizes == (N,)
    iterations = [e["iteration"] for e in read_events(found.folder)]
    assert iterations == list(range(1, len(iterations) + 1))
    assert ITERATIONS + 2 <= len(iterations) <= ITERATIONS + 8


def _bytes(folder: Path, maps: tuple[str, ...] = ("map.mrc",)) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (*maps, "particles.star")]


def _killed_and_resumed(few: Path, out: Path, *, after: int, **options) -> Path:
    kill_after_checkpoint("abinitio", few, out=out, after=after, **{**QUICK, **options})
    halfmap.resume(out, quiet=True)
    return out


def test_a_job_killed_and_resumed_gives_the_same_bytes(few, tmp_path):
    whole = halfmap.abinitio(few, tmp_path / "whole", iterations=2, **QUICK)
    again = _killed_and_resumed(few, tmp_path / "job", after=2, iterations=2)
    assert _bytes(again) == _bytes(whole.folder)


def test_symmetry_found_late_is_there_and_so_it_is_after_a_stop_between(few, tmp_path):
    options = {"iterations": 10, "early_symmetry": False}
    whole = halfmap.abinitio(few, tmp_path / "whole", **{**QUICK, **options})
    density = torch.from_numpy(read_map(whole.folder / "map.mrc")[0])
    mates = symmetrised(density, symmetry_matrices("C4"))
    assert float(torch.corrcoef(torch.stack([density.flatten(), mates.flatten()]))[0, 1]) > 0.99
    assert len(read_job(whole.folder)["results"]["correlation_with_mates"]) == 1
    again = _killed_and_resumed(
        few, tmp_path / "job", after=round(SHARE_WITHOUT_SYMMETRY * 10), **options
    )
    assert _bytes(again) == _bytes(whole.folder)


def test_the_likeliest_run_is_kept_and_the_others_laid_onto_it(few, tmp_path):
    best = halfmap.abinitio(few, tmp_path / "job", iterations=6, runs=2, seed=6, **QUICK)
    told = best.log_likelihoods
    r = max((0, 1), key=lambda i: told[i])
    assert _bytes(tmp_path / "job") == _bytes(tmp_path / "job" / f"run00{r + 1}")
    kept, laid = (
        torch.from_numpy(read_map(tmp_path / "job" / name)[0])
        for name in ("map.mrc", f"run00{2 - r}.mrc")
    )
    curve = fourier_shell_correlation(kept, laid, pixel_size_angstrom=PIXEL)
    told_at = [max(best.scored_to_angstrom, resolution_at(curve, level)) for level in (0.5, 0.143)]
    assert best.agreement_angstrom[1 - r] == pytest.approx(told_at, rel=1e-3)
    as_it_was = torch.from_numpy(read_map(tmp_path / "job" / f"run00{2 - r}" / "map.mrc")[0])
    before, after = (
        float(torch.corrcoef(torch.stack([kept.flatten(), v.flatten()]))[0, 1])
        for v in (as_it_was, laid)
    )
    assert after > before + 0.1
    assert (tmp_path / "job" / "pictures" / "runs_fsc.png").exists()


def test_classes_unlike_the_others_are_named():
    """Ice, empty images and particles, as they were found in a simulation; two molecules of
    different weight; nothing found at all."""
    said = doubtful_classes([1385, 66, 49, 0], [68.5, -3.6, 757.6, 0.0])
    assert ["noise" in said[1], "stronger" in said[2]] == [True, True]
    assert (said[0], said[3]) == ("", "")
    assert doubtful_classes([1040, 960], [40.0, 23.0]) == ["", ""]
    assert doubtful_classes([90, 10], [-2.0, -5.0]) == ["", ""]


def test_the_other_hand_is_the_mirror_image(few, tmp_path):
    one, other = (
        halfmap.abinitio(few, tmp_path / name, iterations=2, flip_hand=flip, **QUICK).folder
        for name, flip in (("one", False), ("other", True))
    )
    a, b = (torch.from_numpy(read_map(folder / "map.mrc")[0]) for folder in (one, other))
    assert torch.equal(mirror(a), b)
    poses = [
        euler_to_matrix(
            torch.from_numpy(load_particles(folder / "particles.star").rotations_deg)
        ).float()
        for folder in (one, other)
    ]
    torch.testing.assert_close(mirror_poses(poses[0]), poses[1], atol=1e-3, rtol=0)


def test_negative_density_is_kept_where_it_is_asked_for(few, tmp_path):
    job = halfmap.abinitio(few, tmp_path / "job", iterations=2, allow_negative=True, **QUICK)
    assert read_map(job.folder / "map.mrc")[0].min() < 0


def test_resolutions_asked_for_are_those_scored(few, tmp_path):
    job = halfmap.abinitio(
        few,
        tmp_path / "job",
        iterations=3,
        initial_lowpass_angstrom=48,
        final_lowpass_angstrom=24,
        **QUICK,
    )
    told = [event["scored_to_angstrom"] for event in read_events(job.folder)]
    assert told[0] == 48
    assert told[2] == told[-1] == 24


def test_a_bare_stack_needs_no_star(few, tmp_path):
    stack = tmp_path / "stack.mrcs"
    write_stack(stack, load_particles(few).images(np.arange(48)), PIXEL)
    job = halfmap.abinitio(
        stack, tmp_path / "job", iterations=1, ctf=False, pixel_size_angstrom=PIXEL, **QUICK
    )
    assert len(load_particles(job.folder / "particles.star")) == 48


def test_classes_come_by_size_with_a_table_of_what_each_holds(few, tmp_path):
    job = halfmap.abinitio(
        few,
        tmp_path / "job",
        classes=2,
        iterations=3,
        **{**QUICK, "symmetry": "C1", "early_symmetry": False},
    )
    table = read_star(job.folder / "classes.star").blocks["model_classes"]
    sizes = np.bincount(load_particles(job.folder / "particles.star").class_number, minlength=3)[1:]
    assert tuple(sizes) == job.sizes == tuple(table.ints("halfmapClassSize"))
    assert sizes[0] >= sizes[1]
    assert (job.folder / "class002.mrc").exists()


def test_bad_input_leaves_no_folder_behind_even_with_several_runs(few, tmp_path):
    for runs in (1, 2):
        with pytest.raises(InputError, match="nothere"):
            halfmap.abinitio(tmp_path / "nothere.star", tmp_path / "job", runs=runs, **QUICK)
        assert not (tmp_path / "job").exists()


def test_a_schedule_is_not_changed_on_the_way(few, tmp_path):
    halfmap.abinitio(few, tmp_path / "job", iterations=1, **QUICK)
    with pytest.raises(InputError, match="iterations=2"):
        halfmap.abinitio(few, tmp_path / "job", iterations=2, resume=True, **QUICK)


def test_bad_options_are_refused_in_one_line(few, tmp_path):
    for options, told in (
        ({"runs": 0}, "--runs"),
        ({"classes": 30}, "--classes"),
        ({"initial_lowpass_angstrom": 20, "final_lowpass_angstrom": 30}, "--final-lowpass 30"),
        ({"initial_lowpass_angstrom": -1}, "--initial-lowpass"),
    ):
        with pytest.raises(InputError, match=told):
            halfmap.abinitio(few, tmp_path / "job", **{**QUICK, **options})


def test_runs_killed_in_the_second_are_resumed_there(few, tmp_path):
    whole = halfmap.abinitio(few, tmp_path / "whole", iterations=1, runs=2, **QUICK)
    again = _killed_and_resumed(few, tmp_path / "job", after=1, part="run002", iterations=1, runs=2)
    assert _bytes(again) == _bytes(whole.folder)
    assert read_job(again)["results"]["log_likelihoods"] == list(whole.log_likelihoods)
