"""No image meets itself: with folds, references are made of the other images of a half."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import halfmap
from halfmap.commands import _halves, _setup
from halfmap.commands._volumes import first_state
from halfmap.engine.image_model import NoiseSpectra, ReferenceVariance, load_images
from halfmap.engine.loop import iterate
from halfmap.engine.memory import JobSize
from halfmap.engine.method import Update
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.preprocessing import ImageSettings
from halfmap.engine.problem import Problem
from halfmap.engine.reference_variance import reference_variance
from halfmap.engine.state import State, as_candidates, known_poses
from halfmap.errors import InputError
from halfmap.fourier import half_plane
from halfmap.likelihood import slice_power_own, squared_modulus
from halfmap.methods.projection_matching import projection_matching
from halfmap.methods.settings import Settings
from halfmap.particles import load_particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix, random_rotations
from halfmap.symmetries import Specimen, point_group
from halfmap.workspace.progress import Progress

N, BOX, PIXEL, RADIUS = 200, 24, 8.0, 8
SPECIMEN = Specimen(point_group("C1"), 11.0)


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Images of next to nothing but noise."""
    out = tmp_path_factory.mktemp("noise") / "sim"
    return halfmap.simulate(
        "phantom", out, n=N, snr=1e-6, box=BOX, pixel_size_angstrom=PIXEL, seed=4, quiet=True
    ).folder


def _problem(folder: Path, n_folds: int) -> Problem:
    particles = load_particles(folder / "particles.star")
    images = ImageSettings(11.0, True, False, torch.device("cpu"))
    fold = _halves.divide_into_folds(particles, n_folds, 1) if n_folds > 1 else None
    half = torch.arange(N) % 2
    return Problem(particles, images, half, "own", SPECIMEN, 3, 1, 64, fold=fold, n_folds=n_folds)


def _first_state(problem: Problem, references: torch.Tensor) -> State:
    shells = problem.plane.radius + 1
    rotations = random_rotations(N, torch.Generator().manual_seed(2))
    return State(
        iteration=0,
        references=references,
        poses=known_poses(rotations, torch.zeros(N, 2), torch.zeros(N, dtype=torch.long)),
        radius=4,
        curves=torch.zeros(1, shells),
        statistics=(NoiseSpectra(torch.ones(1, shells)),),
    )


def _excess(folder: Path, n_folds: int) -> tuple[float, float]:
    """How much better an image scores beside the reference that it is compared with than noise
    would: the mean of a / sqrt(b) at the pose at which it was summed; and its standard error."""
    problem = _problem(folder, n_folds)
    whole = torch.ones(BOX, BOX, BOX)
    settings = Settings(SearchSettings(SPECIMEN), 0.143, reference_mask=whole, fsc_mask=whole)
    rotations = random_rotations(N, torch.Generator().manual_seed(2))
    poses = known_poses(rotations, torch.zeros(N, 2), torch.zeros(N, dtype=torch.long))
    method = replace(
        projection_matching(problem, replace(settings, wiener_constant=1.0)),
        prepare=lambda references, state: lambda batch, poses: as_candidates(poses),
        assign=assign_hard,
    )
    variance = torch.full((1, problem.plane.radius + 1), float(BOX**2))
    state = State(
        iteration=0,
        references=torch.zeros(problem.n_parts, 1, BOX, BOX, BOX),
        poses=poses,
        radius=RADIUS,
        curves=torch.zeros(1, problem.plane.radius + 1),
        statistics=(NoiseSpectra(variance),),
    )
    after, _ = iterate(problem, method, state)
    part, values = problem.part(problem.half), []
    for p in range(problem.n_parts):
        rows = torch.nonzero(part == p)[:, 0]
        batch = load_images(problem, state, rows, problem.plane, radius=RADIUS)
        references = prepare_references(after.references[problem.reference_set(p)], RADIUS)
        plane = half_plane(BOX, RADIUS)
        slices = extract_slices(references, rotations[rows], plane)
        a = ((batch.scored.data.conj() * slices).real * plane.hermitian_weight).sum(1)
        b = slice_power_own(batch.scored, squared_modulus(slices)[:, None], plane)[:, 0]
        values.append(a / b.clamp(min=1e-20).sqrt())
    every = torch.cat(values)
    return float(every.mean()), float(every.std() / N**0.5)


def test_noise_finds_itself_in_a_reference_made_of_it_and_not_in_one_made_of_the_others(noise):
    mean, error = _excess(noise, 1)
    assert mean > 20 * error
    mean, error = _excess(noise, 4)
    assert abs(mean) < 4 * error


def test_folds_are_even_and_keep_the_tilts_of_a_particle_together(noise):
    particles = load_particles(noise / "particles.star")
    fold = _halves.divide_into_folds(particles, 4, 1)
    assert torch.bincount(fold).tolist() == [N // 4] * 4
    named = particles.table.with_columns(
        {"rlnTomoParticleName": [f"tomo1/{i // 5}" for i in range(N)]}
    )
    together = _halves.divide_into_folds(replace(particles, table=named), 4, 1)
    assert (together.view(-1, 5) == together.view(-1, 5)[:, :1]).all()
    assert len(together.unique()) == 4


def test_each_part_of_the_data_has_its_own_references(noise):
    problem = _problem(noise, 3)
    part = problem.part(torch.where(torch.arange(N) < 10, -1, problem.half))
    assert part.min() == -1
    assert (
        sorted(part[part >= 0].unique().tolist()) == list(range(6)) == list(range(problem.n_parts))
    )
    assert [problem.reference_set(p) for p in range(6)] == list(range(6))
    crossed = replace(problem, matched_to="other", fold=None, n_folds=1)
    assert [crossed.reference_set(h) for h in range(2)] == [1, 0]


def test_memory_that_is_too_small_for_folds_gives_fewer_and_says_so(monkeypatch):
    notes: list[str] = []

    class Told(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    def needed(folds: int) -> int:
        return JobSize(128, 3, 1, folds).least_bytes(1)

    def affordable(memory: int) -> int:
        with Told("test", quiet=True) as progress:
            return _setup.affordable_folds(
                JobSize(128, 3, 1, 4), memory=memory, device=torch.device("cpu"), progress=progress
            )

    monkeypatch.setattr(JobSize, "final_bytes", lambda size, batch: 0)
    assert affordable(needed(4)) == 4
    assert not notes
    assert affordable(needed(4) - 1) == 2
    assert "2 of 4 folds" in notes[-1]
    assert affordable(needed(2) - 1) == 1
    assert "meet themselves" in notes[-1]
    with pytest.raises(InputError, match="--memory: images of 128 pixels"):
        affordable(needed(1) - 1)


def test_folds_are_given_up_when_resolution_grows_beyond_the_memory(noise):
    """What four folds need on few shells is not enough for them on many; each fold of two is two of
    the four, and the next iteration goes on with it."""
    problem = _problem(noise, 4)
    size = problem.job_size
    limits = [size.iteration_bytes(r, 64) for r in (3, problem.plane.radius)]
    limit = sum(limits) // 2
    tight = replace(problem, memory_bytes=limit)
    assert problem.folds_at(problem.plane.radius) == 4
    assert tight.folds_at(3) == 4
    assert tight.folds_at(problem.plane.radius) in (1, 2)
    two = problem.with_reference_sets(4)
    assert two.n_folds == 2
    assert torch.equal(two.fold, problem.fold % 2)
    nothing = replace(problem, memory_bytes=1)
    whole = torch.ones(BOX, BOX, BOX)
    state = _first_state(problem, phantom(BOX, PIXEL)[None, None].repeat(8, 1, 1, 1, 1))
    search = SearchSettings(SPECIMEN)
    settings = Settings(search, 0.143, reference_mask=whole, fsc_mask=whole, anchor=state.poses)
    method = projection_matching(problem, settings)
    one, _ = iterate(nothing, method, state)
    assert len(one.references) == 2  # a set for each half, of all of its parts
    again, _ = iterate(nothing, method, one)
    assert again.iteration == 2
    full, _ = iterate(problem, method, state)
    assert len(full.references) == 8
    both = full.references.unflatten(0, (2, 4)).mean(1)  # of what leaves out each quarter once
    assert (
        torch.nn.functional.cosine_similarity(both.flatten(1), one.references.flatten(1)).min()
        > 0.9
    )


def test_the_first_iteration_has_as_many_folds_as_the_memory_allows(noise):
    problem, start = _problem(noise, 4), phantom(BOX, PIXEL)[None, None].expand(8, 1, BOX, BOX, BOX)
    assert len(first_state(problem, start, 3 * PIXEL).references) == 8
    nothing = replace(problem, memory_bytes=1)
    assert len(first_state(nothing, start, 3 * PIXEL).references) == 2


def test_the_variance_of_references_is_that_of_their_errors(noise):
    """R = S / (S + 1) (A + N) of maps with a flat spectrum, S = 2: v is the power of R - A."""
    generator = torch.Generator().manual_seed(0)
    problem, ssnr = _problem(noise, 1), 2.0
    truth = torch.randn(BOX, BOX, BOX, generator=generator)
    error = torch.randn(BOX, BOX, BOX, generator=generator) / ssnr**0.5
    reference = ssnr / (ssnr + 1) * (truth + error)
    curves = torch.full((1, BOX // 2), ssnr / (ssnr + 1))
    update = Update(references=reference.repeat(2, 1, 1, 1, 1), curves=curves, radius=RADIUS)
    expected = BOX**3 * float((reference - truth).square().mean())
    assert float(reference_variance(problem, update)[2:].mean()) == pytest.approx(
        expected, rel=0.05
    )


def test_what_references_do_not_know_counts_as_noise_where_images_are_scored(noise):
    problem, rows = _problem(noise, 1), torch.arange(6)
    known = load_particles(noise / "truth.star")
    poses = known_poses(
        euler_to_matrix(torch.from_numpy(known.rotations_deg)).float(),
        torch.zeros(N, 2),
        torch.zeros(N, dtype=torch.long),
    )
    shells = problem.plane.radius + 1
    state = State(
        iteration=0,
        references=phantom(BOX, PIXEL)[None, None],
        poses=poses,
        radius=RADIUS,
        curves=torch.zeros(1, shells),
        statistics=(NoiseSpectra(torch.full((1, shells), 100.0)),),
    )
    certain = load_images(problem, state, rows, problem.plane)
    unsure = load_images(
        problem, state.keeping(ReferenceVariance(torch.full((shells,), 50.0))), rows, problem.plane
    )
    share = 100 / (100 + 50 * certain.ctf**2)
    torch.testing.assert_close(unsure.scored.power, certain.scored.power * share)
    torch.testing.assert_close(unsure.scored.data, certain.scored.data * share)
    torch.testing.assert_close(unsure.whole.data, certain.whole.data)
