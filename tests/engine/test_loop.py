"""One iteration is a pure function that keeps true poses; a run that is stopped anywhere and goes
on ends with the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import halfmap
from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
from halfmap.engine.image_model import NoiseSpectra, noise_variance
from halfmap.engine.loop import iterate, run, sum_at_poses
from halfmap.engine.method import Iteration, Method, Update
from halfmap.engine.preprocessing import ImageSettings
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.engine.state import (
    Poses,
    State,
    as_candidates,
    identity_poses,
    known_poses,
)
from halfmap.fourier import lowpass
from halfmap.io.mrc import read_map
from halfmap.masks import soft_sphere
from halfmap.methods.projection_matching import projection_matching
from halfmap.methods.settings import Settings
from halfmap.particles import load_particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import FourierReferences
from halfmap.so3 import angular_distance_deg, euler_to_matrix
from halfmap.symmetries import Specimen, point_group, symmetry_matrices

N, BOX, PIXEL, SNR = 160, 32, 6.0, 0.3
C4 = symmetry_matrices("C4").float()
CHANNEL = Specimen(point_group("C4"), 13.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "sim"
    return halfmap.simulate(
        "phantom",
        out,
        n=N,
        snr=SNR,
        box=BOX,
        pixel_size_angstrom=PIXEL,
        shift_rms_px=1.0,
        seed=3,
        quiet=True,
    ).folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> Poses:
    known = load_particles(folder / "truth.star")
    rotations = euler_to_matrix(torch.from_numpy(known.rotations_deg)).float()
    return known_poses(
        rotations,
        torch.from_numpy(known.shift_angstrom / PIXEL).float(),
        torch.zeros(N, dtype=torch.long),
    )


@pytest.fixture(scope="module")
def volume(folder: Path) -> torch.Tensor:
    return torch.from_numpy(read_map(folder / "truth_1.mrc")[0].copy())


@pytest.fixture(scope="module")
def problem(folder: Path) -> Problem:
    half = torch.arange(N) % 2
    half[[5, 40]] = -1  # set aside
    images = ImageSettings(13.0, True, False, torch.device("cpu"))
    return Problem(
        load_particles(folder / "particles.star"), images, half, "own", CHANNEL, 3, 1, batch_size=48
    )


@pytest.fixture(scope="module")
def method(problem: Problem) -> Method:
    search = SearchSettings(CHANNEL, angular_step_deg=15.0, shift_range_px=2.0)
    return projection_matching(problem, _settings(search))


def _settings(search: SearchSettings, **options) -> Settings:
    mask = soft_sphere(BOX, radius_px=13, edge_px=2)
    return Settings(search, 0.143, reference_mask=mask, fsc_mask=mask, **options)


def _start(
    problem: Problem,
    volume: torch.Tensor,
    poses: Poses,
    *,
    resolution_angstrom: float = 30.0,
    radius: int = 8,
) -> State:
    used = torch.nonzero(problem.half >= 0)[:, 0]
    noise = initial_noise(problem.particles, used, problem.plane, 1, problem.images, batch_size=64)
    references = lowpass(volume[None, None], resolution_angstrom, PIXEL, dimensions=3).repeat(
        2, 1, 1, 1, 1
    )
    return State(
        iteration=0,
        references=references,
        poses=poses,
        radius=radius,
        curves=torch.zeros(1, problem.plane.radius + 1),
        statistics=(NoiseSpectra(noise),),
    )


def _nowhere(n: int) -> Poses:
    return identity_poses(torch.zeros(n, dtype=torch.long))


@pytest.fixture(scope="module")
def start(problem, volume) -> State:
    return _start(problem, volume, _nowhere(N))


@pytest.fixture(scope="module")
def one(problem, method, start) -> State:
    """The state after one iteration."""
    return iterate(problem, method, start)[0]


def _assert_same(a: State, b: State) -> None:
    (arrays, meta), (others, other_meta) = state_to_arrays(a), state_to_arrays(b)
    assert repr(meta) == repr(other_meta)  # every digit; and NaN is NaN
    for name, values in arrays.items():
        assert values.tobytes() == others[name].tobytes(), name


def test_an_iteration_is_pure(problem, method, start, one):
    before = state_from_arrays(*state_to_arrays(start))
    told: list[int] = []
    again, seconds = iterate(problem, method, start, advance=told.append)
    _assert_same(start, before)
    _assert_same(again, one)
    assert again.iteration == len(again.history) == 1
    assert {"images", "search", "sums", "update"} <= seconds.keys()
    assert sum(told) == N - 2  # every image in use is told once


def test_an_iteration_finds_the_poses(problem, one, truth):
    used = problem.half >= 0
    error = angular_distance_deg(one.poses.rotations, truth.rotations, symmetry=C4)[used]
    assert (error < 10).float().mean() > 0.8
    assert error.median() < 5


def test_an_iteration_works_on_what_its_radius_needs(problem, start, one):
    """Sums and noise reach a quarter beyond the scored radius; noise beyond stays what it was,
    curves keep their length."""
    reach = problem.plane_for(start.radius).radius
    assert reach == 13 < problem.plane.radius
    new, old = noise_variance(one), noise_variance(start)
    assert torch.equal(new[:, reach + 1 :], old[:, reach + 1 :])
    assert (new[:, 1:9] < 0.9 * old[:, 1:9]).any()
    assert one.curves.shape == start.curves.shape
    assert (one.curves[:, reach + 1 :] == 0).all()
    assert one.radius <= problem.plane.radius
    for radius in range(2, problem.plane.radius + 1):
        assert problem.plane_for(radius).radius >= min(radius + 3, problem.plane.radius)


def test_images_set_aside_are_left_where_they_were(problem, start, one):
    aside = problem.half < 0
    assert aside.sum() == 2
    assert torch.equal(one.poses.rotations[aside], start.poses.rotations[aside])
    assert not torch.equal(one.poses.rotations[~aside], start.poses.rotations[~aside])


def test_true_poses_stay(problem, volume, truth):
    """Refined locally against the true map, poses move by no more than noise moves them, and the
    map comes out as it should."""
    search = SearchSettings(CHANNEL, angular_step_deg=7.5, shift_range_px=2.0)
    local = projection_matching(problem, _settings(search, anchor=truth))
    state, _ = iterate(
        problem, local, _start(problem, volume, truth, resolution_angstrom=2.1 * PIXEL, radius=14)
    )
    used = problem.half >= 0
    error = angular_distance_deg(state.poses.rotations, truth.rotations, symmetry=C4)[used]
    assert error.median() < 1.5
    assert (state.poses.shift_px - truth.shift_px)[used].norm(dim=1).median() < 0.15
    assert state.history[-1].resolutions_angstrom[0] < 2.6 * PIXEL
    assert state.history[-1].angular_change_deg == pytest.approx(error.median().item(), rel=1e-3)


def test_the_noise_is_found_under_the_signal(problem, method, volume, truth):
    """At the true poses with the true map on its grey scale, sigma^2 is what the simulation added:
    white, the same in every shell."""
    scale = sum_at_poses(problem, truth, torch.ones(1, problem.plane.radius + 1))
    whole = scale[0] + scale[1]
    from halfmap.reconstruction import shell_weight, wiener_update

    best = wiener_update(whole, 1e-2 * shell_weight(whole))[0]
    on_scale = volume * (best * volume).sum() / (volume**2).sum()

    def stay(references: FourierReferences, state: State):
        return lambda batch, poses: as_candidates(poses)

    state = replace(
        _start(problem, volume, truth, radius=14),
        references=on_scale[None, None].repeat(2, 1, 1, 1, 1),
    )
    new, _ = iterate(problem, replace(method, prepare=stay), state)
    # backgrounds have deviation 1, so E|N(k)|^2 = N^2
    torch.testing.assert_close(
        noise_variance(new)[0, 2:15], torch.full((13,), float(BOX**2)), rtol=0.12, atol=0
    )


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_the_references_grey_scale_is_not_taken_for_noise(problem, method, start, factor):
    """Starting maps come on any scale. The score does not see it, and what a pose leaves
    unexplained cannot much exceed the image."""
    new, _ = iterate(problem, method, replace(start, references=factor * start.references))
    assert (noise_variance(new) < 1.5 * noise_variance(start)).all()


def test_halves_are_independent(problem, method, start, one):
    """What happens to the images of one half changes nothing in the other half's poses: the gold
    standard."""
    swapped = problem.half.clone()
    swapped[torch.nonzero(problem.half == 1)[:40, 0]] = -1
    second, _ = iterate(replace(problem, half=swapped), method, start)
    mine = problem.half == 0
    assert torch.equal(one.poses.rotations[mine], second.poses.rotations[mine])
    assert not torch.equal(one.references[1], second.references[1])


def test_batch_size_changes_next_to_nothing(problem, method, start, one):
    other, _ = iterate(replace(problem, batch_size=30), method, start)
    apart = angular_distance_deg(one.poses.rotations, other.poses.rotations)
    assert (apart < 0.05).float().mean() > 0.98
    torch.testing.assert_close(noise_variance(one), noise_variance(other), rtol=1e-2, atol=0)


# --- stop and go on -------------------------------------------------------------------------------


def test_a_run_stopped_after_any_iteration_ends_with_the_same_bits(problem, method, start):
    whole = [state for state, _ in run(problem, method, start, iterations=3)]
    assert [state.iteration for state in whole] == [1, 2, 3]
    for stopped in whole[:-1]:
        saved = state_from_arrays(*state_to_arrays(stopped))
        *_, (end, _) = run(problem, method, saved, iterations=3)
        _assert_same(end, whole[-1])


def test_run_ends_when_the_method_says_so_and_does_nothing_once_done(problem, method, start):
    until_two = replace(method, converged=lambda state: state.iteration >= 2)
    states = [state for state, _ in run(problem, until_two, start, iterations=9)]
    assert states[-1].iteration == 2
    nothing: Iterator = run(problem, until_two, states[-1], iterations=9)
    assert list(nothing) == []
    assert list(run(problem, method, states[-1], iterations=2)) == []


# --- its parts ------------------------------------------------------------------------------------


def test_movement_is_measured_up_to_symmetry_and_without_those_set_aside(
    problem, method, volume, truth
):
    quarter = replace(
        truth, rotations=truth.rotations @ C4[1], shift_px=truth.shift_px + torch.tensor([0.3, 0.4])
    )
    aside = problem.half < 0
    wild = quarter.put(torch.nonzero(aside)[:, 0], _nowhere(int(aside.sum())))

    def move(references: FourierReferences, state: State):
        return lambda batch, poses: as_candidates(wild.select_images(batch.index))

    there = replace(method, prepare=move)
    moved = iterate(problem, there, _start(problem, volume, truth))[0].history[-1]
    assert moved.angular_change_deg < 0.1
    assert moved.shift_change_angstrom == pytest.approx(0.5 * PIXEL, rel=1e-3)
    assert moved.class_changes == 0
    assert moved.class_sizes == (N - 2,)


def test_sums_at_true_poses_make_the_map(problem, truth, volume):
    from halfmap.reconstruction import unregularised
    from halfmap.resolution import fourier_shell_correlation

    halves = sum_at_poses(problem, truth, torch.ones(1, problem.plane.radius + 1))
    mask = soft_sphere(BOX, radius_px=13, edge_px=2)
    for sums in halves:
        fsc = fourier_shell_correlation(
            unregularised(sums)[0], volume, pixel_size_angstrom=PIXEL, mask=mask
        ).correlation
        assert fsc[:12].min() > 0.8


def test_update_is_given_the_new_poses_and_both_halves(problem, method, start):
    seen = []

    def update(iteration: Iteration, poses: Poses, halves: list) -> Update:
        seen.append((poses, [float(h.den.sum()) for h in halves]))
        state = iteration.state
        return Update(
            references=state.references,
            curves=state.curves,
            radius=9,
            resolutions_angstrom=(30.0,),
            report={"told": 3.0},
            kept="what the method keeps",
        )

    new, _ = iterate(problem, replace(method, update=update), start)
    assert new.radius == 9
    assert torch.equal(seen[0][0].rotations, new.poses.rotations)
    assert min(seen[0][1]) > 0
    assert new.history[-1].resolution_angstrom == 30.0
    assert new.history[-1].event()["told"] == 3.0
    assert new.method == "what the method keeps"
