"""halfmap abinitio on particles whose truth is known: the molecule from nothing, either hand; same bytes, resumed, best of runs."""

from pathlib import Path

import pytest
import torch

import halfmap
from halfmap import jobs
from halfmap.algorithms import results
from halfmap.algorithms.abinitio import mirrored
from halfmap.engine.state import State, known_poses
from halfmap.errors import InputError
from halfmap.fourier import half_plane
from halfmap.io.mrc import read_map
from halfmap.jobs import JobStopped, read_events
from halfmap.particles import load_particles
from halfmap.projection import prepare_references, project
from halfmap.so3 import angular_distance_deg, compose, euler_to_matrix, random_rotations
from halfmap.symmetry import symmetry_matrices

N, BOX, PIXEL, ITERATIONS = 300, 32, 6.0, 20
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
QUICK = {"symmetry": "C4", "diameter_angstrom": 150.0, "device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("abinitio") / "sim"
    return halfmap.simulate(
        "phantom", out, n=N, snr=0.5, box=BOX, pixel_size_angstrom=PIXEL, symmetry="C4", shift_rms_px=1.0, seed=7, quiet=True
    )


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory):
    return halfmap.abinitio(data / "particles.star", tmp_path_factory.mktemp("found") / "job", iterations=ITERATIONS, seed=1, **QUICK)


def _error_deg(folder: Path, data: Path) -> float:
    """Median error of the poses after the best global turn G, for the hand that fits better: A_est = A_true S G, S any of C4."""
    estimated, truth = (
        euler_to_matrix(torch.from_numpy(load_particles(star).rotations_deg)).float()
        for star in (folder / "particles.star", data / "truth.star")
    )
    errors = []
    for hand in (torch.eye(3), HALF_TURN):  # an inverted map shows the same views half a turn away
        turned = compose(hand, estimated)
        for frame in compose(truth.mT, turned)[::20]:
            errors.append(float(angular_distance_deg(truth, compose(turned, frame.mT), symmetry=symmetry_matrices("C4")).median()))
    return min(errors)


def test_poses_are_found_without_a_reference(found, data):
    """Chance would be 100 degrees or more."""
    assert _error_deg(found.folder, data) < 20


def test_the_map_is_one(found):
    density = read_map(found.folder / "map.mrc")[0]
    assert density.shape == (BOX,) * 3
    assert density.min() >= 0
    assert found.sizes == (N,)
    assert [e["iteration"] for e in read_events(found.folder)] == list(range(1, ITERATIONS + 3))


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("map.mrc", "particles.star")]


def test_a_job_stopped_and_resumed_gives_the_same_bytes(data, tmp_path, monkeypatch):
    whole = halfmap.abinitio(data / "particles.star", tmp_path / "whole", iterations=2, **QUICK)
    plain, calls = results.Job.save_checkpoint, []

    def stopped(*arguments, **options):
        plain(*arguments, **options)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results.Job, "save_checkpoint", stopped)
        with pytest.raises(JobStopped, match="halfmap resume"):
            halfmap.abinitio(data / "particles.star", tmp_path / "job", iterations=2, **QUICK)
    jobs.resume(tmp_path / "job", quiet=True)
    assert _bytes(tmp_path / "job") == _bytes(whole.folder)


def test_the_likeliest_run_is_kept(data, tmp_path):
    best = halfmap.abinitio(data / "particles.star", tmp_path / "job", iterations=1, runs=2, seed=4, **QUICK)
    told = best.log_likelihoods
    r = max((0, 1), key=lambda i: told[i])
    assert _bytes(tmp_path / "job") == _bytes(tmp_path / "job" / f"run00{r + 1}")


def test_mirror_images_have_the_same_projections():
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(1, 1, 16, 16, 16, generator=generator)
    volume[..., 0, :, :] = volume[..., :, 0, :] = volume[..., :, :, 0] = 0  # no voxel without a mate
    poses = known_poses(random_rotations(5, generator), torch.zeros(5, 2), torch.zeros(5, dtype=torch.long))
    state = State(0, volume, poses, torch.ones(1, 8), 5, torch.zeros(1, 8))
    other = mirrored(state)
    plane = half_plane(16, 5)
    a, b = (project(prepare_references(s.references[0], 5), s.poses.rotations, plane) for s in (state, other))
    assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))
    assert not torch.allclose(state.references, other.references)
    assert torch.equal(mirrored(other).references, volume)


def test_bad_options_are_refused_in_one_line(data, tmp_path):
    with pytest.raises(InputError, match="--runs"):
        halfmap.abinitio(data / "particles.star", tmp_path / "job", runs=0, **QUICK)
    with pytest.raises(InputError, match="--classes"):
        halfmap.abinitio(data / "particles.star", tmp_path / "job", classes=300, **QUICK)
