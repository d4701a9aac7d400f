"""Where the next iteration looks: images that are unsure of their poses are searched everywhere."""

import torch

import halfmap
from halfmap.commands._inputs import poses_of
from halfmap.engine.image_model import NoiseSpectra, load_images
from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.preprocessing import ImageSettings
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.engine.significant_poses import SignificantPoses
from halfmap.engine.state import IterationRecord, State, as_candidates, known_poses
from halfmap.likelihood import CORRELATION
from halfmap.masks import soft_sphere
from halfmap.methods.search_schedule import is_settled, prepare, unsure_images
from halfmap.methods.settings import Settings
from halfmap.particles import load_particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import prepare_references
from halfmap.simulation.phantom import phantom
from halfmap.so3 import (
    angular_distance_deg,
    compose,
    random_rotations,
    rotation_vector_to_matrix,
)
from halfmap.symmetries import Specimen, point_group, symmetry_matrices

N, RADIUS = 8, 12
C1 = Specimen(point_group("C1"), 12.5)


def _two_modes(first: torch.Tensor, second: torch.Tensor, shares: list[tuple[float, float]]):
    """Poses of images, each with two modes that hold these shares of its posterior."""
    poses = known_poses(first, torch.zeros(len(first), 2), torch.zeros(len(first)).long())
    other = known_poses(second, torch.zeros(len(first), 2), torch.zeros(len(first)).long())
    modes = as_candidates(poses).append(as_candidates(other))
    modes.log_weight.copy_(torch.tensor(shares).log())
    return poses, modes


def test_an_image_is_unsure_where_modes_apart_hold_its_posterior():
    generator, mates = torch.Generator().manual_seed(3), symmetry_matrices("C4")
    best = random_rotations(5, generator).float()
    near = compose(rotation_vector_to_matrix(torch.tensor([[0.03, 0.0, 0.0]])), best)
    far = random_rotations(5, generator).float()
    second = torch.stack([far[0], far[1], near[2], compose(near[3], mates[1].float()), far[4]])
    even, sharp, most_is_missing = (0.6, 0.4), (0.995, 0.005), (0.5, 0.001)
    shares = [even, sharp, even, even, most_is_missing]
    poses, modes = _two_modes(best, second, shares)
    assert unsure_images(modes, poses, 7.5, mates).tolist() == [0, 4]
    assert unsure_images(modes, poses, 7.5, symmetry_matrices("C1")).tolist() == [0, 3, 4]


def test_unsure_images_are_searched_and_sure_ones_are_refined_where_they_are(tmp_path):
    """All are given wrong poses, of which half of the images are sure."""
    folder = tmp_path / "images"
    halfmap.simulate("phantom", folder, n=N, snr=1.0, box=32, pixel_size_angstrom=6.0, quiet=True)
    images = ImageSettings(12.5, True, False, torch.device("cpu"))
    half = torch.arange(N) % 2
    particles = load_particles(folder / "particles.star")
    problem = Problem(particles, images, half, "own", C1, 3, 1, 64)
    wrong, other = random_rotations(2 * N, torch.Generator().manual_seed(9)).float().split(N)
    shares = [(0.9, 0.1)] * (N // 2) + [(0.999, 0.001)] * (N // 2)
    poses, modes = _two_modes(wrong, other, shares)
    prior = uniform_prior(1, 3, order=2, shift_sigma_px=2.0, device="cpu")
    mask = soft_sphere(32, radius_px=13, edge_px=2)
    # maps of any grey scale will do for correlation
    search = SearchSettings(C1, score=CORRELATION, prior=prior)
    settings = Settings(search, 0.143, mask, mask)
    record = IterationRecord(
        iteration=5,
        radius=RADIUS,
        scored_to_angstrom=16.0,
        resolutions_angstrom=(16.0,),
        angular_change_deg=0.1,
        shift_change_angstrom=0.1,
    )
    plane, everyone = problem.plane, torch.arange(N)
    noise = initial_noise(particles, everyone, plane, 1, images, batch_size=N)
    volume = phantom(32, 6.0)
    state = State(
        iteration=5,
        references=volume[None, None],
        poses=poses,
        radius=RADIUS,
        curves=torch.zeros(1, 16),
        history=(record,),
        statistics=(NoiseSpectra(noise), SignificantPoses(modes)),
    )
    assert is_settled(settings, state)
    look = prepare(problem, settings, prepare_references(volume[None], RADIUS), state)
    batch = load_images(problem, state, everyone, plane, radius=RADIUS)
    best = look(batch, poses).best(1).rotations[:, 0]
    truth = poses_of(load_particles(folder / "truth.star")).rotations
    # its four subunits are nearly alike
    away = angular_distance_deg(best, truth, symmetry=symmetry_matrices("C4"))
    assert (away[: N // 2] < 5).all()
    assert away[N // 2 :].median() > 20
