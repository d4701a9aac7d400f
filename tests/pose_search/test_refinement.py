"""Posteriors from refined optima: Laplace's integral against the integral itself, twins, improbable
poses; priors; draws from a grid."""

import math
from dataclasses import replace

import pytest
import torch

from halfmap.engine.pose_prior import next_prior, uniform_prior
from halfmap.engine.posterior_weights import assign_posterior, best_poses
from halfmap.engine.state import Candidates, as_candidates, in_every_class, known_poses
from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import LOG_LIKELIHOOD, ImageTerms
from halfmap.pose_search.grid_posterior import significant_entries
from halfmap.pose_search.refinement import (
    NEGLIGIBLE_LOG_WEIGHT,
    SearchSettings,
    merged_with_known,
    refine_candidates,
    without_improbable,
)
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import compose, direction_pixels, random_rotations, rotation_vector_to_matrix
from halfmap.symmetries import Specimen, rotations_alone, symmetry_matrices

C1, C4 = symmetry_matrices("C1"), symmetry_matrices("C4")


def _uniform(dimensions: int = 3, sigma_px: float = 3.0):
    return uniform_prior(
        1, dimensions, order=0, shift_sigma_px=sigma_px, device=torch.device("cpu")
    )


def _settings(symmetry=C1, *, prior=None) -> SearchSettings:
    return SearchSettings(
        Specimen(rotations_alone(symmetry), 12.5),
        score=LOG_LIKELIHOOD,
        prior=_uniform() if prior is None else prior,
    )


def _refined(
    scene, references, candidates: Candidates, settings: SearchSettings, radius: int = 12
) -> Candidates:
    return refine_candidates(
        references,
        scene.terms,
        scene.plane,
        candidates,
        radius=radius,
        first_radius=radius,
        settings=settings,
        step_deg=7.5,
    )


def test_laplaces_integral_is_the_integral_of_the_likelihood(view, scene_of):
    """In 2D, angle and shift on a fine grid around the optimum: `ln sum exp(a - b / 2) p(phi) d
    phi` to a quarter: the peak is not quite a Gaussian."""
    scene = scene_of(view, 6, snr=1.0)
    references, prior = prepare_references(view, 12), _uniform(2)
    start = as_candidates(known_poses(scene.rotations, scene.shift_px, scene.classes))
    mode = _refined(scene, references, start, _settings(prior=prior))
    plane = half_plane(scene.plane.box, 12)
    inner = len(plane)
    angles = torch.linspace(-0.4, 0.4, 321)
    offsets = torch.linspace(-2, 2, 61)
    moves = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), -1).view(-1, 2)
    weight = scene.plane.hermitian_weight[:inner]
    for i in range(6):
        turn = torch.zeros(len(angles), 3)
        turn[:, 2] = angles
        slices = extract_slices(
            references, compose(rotation_vector_to_matrix(turn), mode.rotations[i]), plane
        )
        shift_px = mode.shift_px[i] + moves
        centred = scene.terms.data[i, :inner] * shift_phases(shift_px, plane)
        a = ((weight * centred).conj() @ slices.T).real
        b = (slices.abs() ** 2) @ (weight * scene.terms.power[i, :inner])
        log_density = a - b / 2 + prior.of_shift(shift_px)[:, None]
        cell = float((angles[1] - angles[0]) / (2 * math.pi) * (offsets[1] - offsets[0]) ** 2)
        integral = log_density.double().flatten().logsumexp(0) + math.log(cell)
        assert float(mode.log_weight[i, 0]) == pytest.approx(float(integral), abs=0.25)


def test_candidates_that_end_in_one_optimum_count_once(channel, scene_of):
    """Three starts near the truth and one at a symmetry mate are one mode; without the symmetry the
    mate is another."""
    scene = scene_of(channel, 10, snr=0.5)
    references = prepare_references(channel, 12)
    away = torch.deg2rad(torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, -2, 1]]))
    near = compose(rotation_vector_to_matrix(away)[None], scene.rotations[:, None])
    rotations = torch.cat([near, compose(scene.rotations, C4[1].float())[:, None]], 1)
    shift_px = scene.shift_px[:, None].expand(-1, 4, -1).contiguous()
    nothing = torch.zeros(10, 4)
    classes = torch.zeros(10, 4, dtype=torch.long)
    start = Candidates(
        rotations,
        shift_px,
        classes,
        nothing,
        nothing,
        classes - 1,
        torch.full((10, 4, 2), torch.nan),
    )
    assert (
        torch.isfinite(_refined(scene, references, start, _settings(C4)).log_weight).sum(1) == 1
    ).all()
    assert (
        torch.isfinite(_refined(scene, references, start, _settings(C1)).log_weight).sum(1) == 2
    ).all()


def test_the_estimated_accuracy_is_the_error(channel, scene_of):
    """Errors of angle and shift, over their estimated standard deviations, have mean squares near
    1."""
    scene = scene_of(channel, 200, snr=0.2)
    references = prepare_references(channel, 12)
    found = _refined(
        scene,
        references,
        as_candidates(known_poses(scene.rotations, scene.shift_px, scene.classes)),
        _settings(),
    )
    turn = torch.rad2deg(
        torch.acos(
            ((torch.einsum("bij,bij->b", found.rotations[:, 0], scene.rotations) - 1) / 2).clamp(
                -1, 1
            )
        )
    )
    assert float((turn / found.accuracy[:, 0, 0]).square().mean()) == pytest.approx(1, abs=0.3)
    shift = (found.shift_px[:, 0] - scene.shift_px).square().mean(1).sqrt()
    assert float((shift / found.accuracy[:, 0, 1]).square().mean()) == pytest.approx(1, abs=0.3)


def _candidates(log_weight: torch.Tensor, *, cell: bool = False) -> Candidates:
    b, n = log_weight.shape
    numbers = torch.arange(n).expand(b, n)
    turn = torch.zeros(b, n, 3)
    turn[..., 2] = 0.3 * numbers
    return Candidates(
        rotation_vector_to_matrix(turn),
        torch.zeros(b, n, 2),
        torch.zeros_like(numbers),
        log_weight,
        log_weight,
        numbers if cell else torch.full_like(numbers, -1),
        torch.full((b, n, 2), torch.nan),
    )


@pytest.mark.parametrize("cell", [True, False])
def test_the_posterior_is_the_softmax_of_what_matters(cell):
    log_weight = torch.tensor([[0.0, -1.0, -20.0, -torch.inf], [-3.0, -3.0, -3.0, -3.0]])
    candidates = _candidates(log_weight, cell=cell)
    gamma = assign_posterior(candidates)
    for image in range(2):
        mine = gamma.image == image
        assert float(gamma.weight[mine].sum()) == pytest.approx(1)
    e = math.exp(-1)
    assert sorted(gamma.weight[gamma.image == 0].tolist()) == pytest.approx(
        [e / (1 + e), 1 / (1 + e)]
    )
    assert len(gamma.rotations) == (4 if cell else 6)  # images share the slices of a grid
    poses = best_poses(candidates, gamma)
    assert poses.significant.tolist() == [2, 4]
    assert poses.log_likelihood.tolist() == pytest.approx(
        [math.log(1 + e + math.exp(-20)), -3 + math.log(4)]
    )


def test_improbable_places_are_emptied():
    kept = without_improbable(
        _candidates(
            torch.tensor([[0.0, -NEGLIGIBLE_LOG_WEIGHT + 0.1, -NEGLIGIBLE_LOG_WEIGHT - 0.1]])
        )
    )
    assert torch.isfinite(kept.log_weight).tolist() == [[True, True, False]]


def test_found_poses_near_known_ones_are_left_out():
    found = _candidates(torch.zeros(1, 3))  # 0, 17 and 34 degrees
    known = _candidates(torch.zeros(1, 1))
    both = merged_with_known(found, known, 20.0)
    assert torch.isfinite(both.log_weight).tolist() == [[False, False, True, True]]


def test_diffuse_posteriors_are_drawn_and_sharp_ones_kept():
    """The mean of any function over the drawn entries is that over the posterior, to the step of
    the draw."""
    generator = torch.Generator().manual_seed(5)
    log_weight = torch.stack(
        [torch.randn(5000, generator=generator), 8 * torch.randn(5000, generator=generator)]
    )
    log_weight[1, 77] += 60
    entry, weight = significant_entries(log_weight, 0.999, most=64)
    assert entry[1, 0] == 77
    torch.testing.assert_close(weight[1], log_weight[1].sort(descending=True).values[:64])
    torch.testing.assert_close(
        torch.logsumexp(weight[0], 0), torch.logsumexp(log_weight[0], 0), rtol=1e-5, atol=1e-5
    )
    position = torch.arange(5000) / 5000
    exact = (torch.softmax(log_weight[0], 0) * position).sum()
    drawn = (torch.softmax(weight[0], 0) * position[entry[0]]).sum()
    assert float(drawn) == pytest.approx(float(exact), abs=1 / 64)


def test_the_best_pose_of_a_diffuse_posterior_is_a_likely_one():
    """Drawn entries weigh the same; the image's pose is the likeliest of them, not the first of the
    grid."""
    log_weight = torch.randn(8, 5000, generator=torch.Generator().manual_seed(6))
    entry, weight = significant_entries(log_weight, 0.999, most=64)
    found = _candidates(weight)
    best = entry.gather(1, found.best(1).log_weight.new_zeros(8, 1).long())
    assert torch.equal(
        log_weight.gather(1, best), log_weight.gather(1, entry).amax(1, keepdim=True)
    )
    assert torch.equal(
        found.best(1).rotations[:, 0], found.rotations[:, 0]
    )  # of equal weights the first
    assert float(best.float().mean()) == pytest.approx(2500, abs=1500)


def test_the_prior_is_what_posteriors_amount_to():
    prior = uniform_prior(2, 3, order=0, shift_sigma_px=5.0, device=torch.device("cpu"))
    counts = torch.zeros(2, 12)
    counts[0, 3], counts[1] = 89.0, 10.0
    sums = torch.cat([counts.flatten(), torch.tensor([209.0, 2 * 4.0 * 209])])
    new = next_prior(prior, sums)
    assert new.shift_sigma_px == pytest.approx(2.0)
    fewest = 209 / 2 / 50
    assert new.classes.exp().tolist() == pytest.approx(
        [(89 + fewest) / (209 + 2 * fewest), (120 + fewest) / (209 + 2 * fewest)]
    )
    torch.testing.assert_close(new.directions.exp().mean(1), torch.ones(2))
    assert float(new.directions[0, 3].exp()) == pytest.approx(12 * 90 / 101)
    torch.testing.assert_close(new.directions[1].exp(), torch.ones(12))


def test_a_direction_and_a_class_weigh_by_their_prior(channel, scene_of):
    """One pose in two classes of one map, of which one is nine times as common: its weight is nine
    times the other's. And a prior is a density: over all directions its mean is 1."""
    prior = uniform_prior(2, 3, order=1, shift_sigma_px=3.0, device=torch.device("cpu"))
    prior = replace(prior, classes=torch.tensor([0.9, 0.1]).log())
    scene, twins = scene_of(channel, 5, snr=0.5), prepare_references(channel.repeat(2, 1, 1, 1), 12)
    start = in_every_class(
        as_candidates(known_poses(scene.rotations, scene.shift_px, scene.classes)), 2
    )
    found = _refined(scene, twins, start, _settings(prior=prior))
    share = torch.softmax(found.log_weight, 1)
    torch.testing.assert_close(share[found.classes == 0], torch.full((5,), 0.9), atol=1e-3, rtol=0)
    counts = torch.rand(2, 48, generator=torch.Generator().manual_seed(0)) * 50
    learnt = next_prior(prior, torch.cat([counts.flatten(), torch.tensor([1.0, 1.0])]))
    rotations = random_rotations(40_000, torch.Generator().manual_seed(1)).float()
    everywhere = sum(
        learnt.of_direction(rotations, torch.full((40_000,), k)).exp().mean() for k in (0, 1)
    )
    assert float(everywhere) == pytest.approx(1, abs=0.02)
    counts = torch.zeros(2, 48)
    pixel = direction_pixels(rotations, 1)
    counts[0, pixel[0]] = 99.0  # images in one direction, beside the one of every direction
    learnt = next_prior(prior, torch.cat([counts.flatten(), torch.tensor([1.0, 1.0])]))
    seen = learnt.of_direction(rotations, torch.zeros(40_000, dtype=torch.long))
    often = pixel == pixel[0]
    torch.testing.assert_close(
        seen[often].mean() - seen[~often].mean(), torch.tensor(math.log(100.0))
    )


def test_symmetry_mates_count_together_and_nothing_known_is_a_grid_step(channel, scene_of):
    """The four mates of one optimum weigh four times as much as one; of a blank image a pose is
    known to two steps of each angle and to the prior of the shifts."""
    scene, references = scene_of(channel, 3, snr=0.5), prepare_references(channel, 12)
    start = as_candidates(known_poses(scene.rotations, scene.shift_px, scene.classes))
    with_mates, alone = (
        _refined(scene, references, start, _settings(group)).log_weight for group in (C4, C1)
    )
    torch.testing.assert_close(with_mates - alone, torch.full((3, 1), math.log(4.0)))
    blank = replace(scene, terms=ImageTerms(0 * scene.terms.data, 1e-12 * scene.terms.power))
    accuracy = _refined(blank, references, start, _settings(C1)).accuracy[:, 0]
    torch.testing.assert_close(accuracy[:, 0], torch.full((3,), 15 * 3**0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(accuracy[:, 1], torch.full((3,), 3.0), rtol=1e-3, atol=0)
