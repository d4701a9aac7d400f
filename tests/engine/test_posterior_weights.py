"""Poses drawn from a posterior: right in the mean, none where the posterior has nothing, one where
it is certain."""

from dataclasses import replace

import torch

from halfmap.engine.posterior_weights import assign_posterior, assign_sample, best_poses
from halfmap.engine.state import Candidates


def _candidates(weight: torch.Tensor) -> Candidates:
    b, n = weight.shape
    zero = torch.zeros(b, n, dtype=torch.long)
    cell = torch.arange(n).expand(b, -1).contiguous()
    eye = torch.eye(3).expand(b, n, 3, 3)
    shift = torch.stack([cell, cell], -1).float()  # tells the poses apart
    return Candidates(eye, shift, zero, weight.log(), weight.log(), cell, torch.zeros(b, n, 2))


def test_multiples_of_one_nth_are_drawn_exactly():
    weight = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.125, 0.125, 0.25, 0.5]])
    for gamma in (assign_sample(8, _candidates(weight)), assign_posterior(_candidates(weight))):
        drawn = torch.zeros_like(weight)
        drawn[gamma.image, gamma.shift_px[:, 0].long()] = gamma.weight
        assert torch.allclose(drawn, weight)


def test_each_weight_is_within_one_nth():
    weight = torch.rand(5, 40, generator=torch.Generator().manual_seed(1)) ** 4
    weight = weight / weight.sum(1, keepdim=True)
    for n in (1, 7, 24):
        gamma = assign_sample(n, _candidates(weight))
        drawn = torch.zeros_like(weight)
        drawn[gamma.image, gamma.shift_px[:, 0].long()] = gamma.weight
        assert torch.allclose(drawn.sum(1), torch.ones(5))
        assert float((drawn - weight).abs().max()) < 1 / n + 1e-6
        assert int((drawn > 0).sum(1).max()) <= n


def test_a_certain_image_costs_one_pose():
    weight = torch.tensor([[0.0, 1.0, 0.0]])
    gamma = assign_sample(24, _candidates(weight))
    assert gamma.weight.tolist() == [1.0]


def test_what_is_kept_sums_to_one_in_the_posteriors_proportions():
    """Three poses hold 99.9 % of the first image and the fourth is dropped; one holds the second."""
    weight = torch.tensor([[0.6, 0.3, 0.0995, 0.0005], [0.0002, 0.0002, 0.0001, 0.9995]])
    gamma = assign_posterior(_candidates(weight))
    assert gamma.image.tolist() == [0, 0, 0, 1]
    assert gamma.shift_px[:, 0].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(gamma.weight[:3], weight[0, :3] / 0.9995)
    assert gamma.weight[3] == 1


def test_poses_of_one_cell_share_a_slice_only_within_a_class():
    weight = torch.full((1, 4), 0.25)
    candidates = replace(
        _candidates(weight),
        cell=torch.tensor([[7, 7, 7, 2]]),
        classes=torch.tensor([[0, 1, 0, 1]]),
    )
    gamma = assign_posterior(candidates)
    assert len(gamma.rotations) == 3
    slice_of = gamma.reference[gamma.shift_px[:, 0].long().argsort()].tolist()
    assert slice_of[0] == slice_of[2]
    assert len(set(slice_of)) == 3
    assert gamma.classes[slice_of].tolist() == [0, 1, 0, 1]


def test_how_sure_an_image_is_of_its_pose():
    weight = torch.tensor([[0.2, 0.7, 0.1], [0.25, 0.25, 0.5]])
    candidates = _candidates(weight)
    poses = best_poses(candidates, assign_posterior(candidates))
    torch.testing.assert_close(poses.shift_px[:, 0], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(poses.largest_weight, torch.tensor([0.7, 0.5]))
    assert poses.significant.tolist() == [3, 3]
    torch.testing.assert_close(poses.log_likelihood, torch.zeros(2), atol=1e-6, rtol=0)
