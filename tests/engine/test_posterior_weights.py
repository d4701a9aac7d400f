"""Poses drawn from a posterior: right in the mean, none where the posterior has nothing, one where
it is certain."""

import torch

from halfmap.engine.posterior_weights import assign_posterior, assign_sample
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
