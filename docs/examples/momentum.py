"""A statistic and a method from outside the package; CONTRIBUTING.md shows this file."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.method import Iteration, Method, Update, WeighedBatch
from halfmap.engine.state import Poses, State
from halfmap.projection import Sums


@dataclass(frozen=True)
class SideViews:
    """Share of the posterior weight on views within 30 degrees of the equator."""

    share: float


class SideViewsStatistic:
    name = "side views"  # its stage, where seconds are counted

    def empty(self, iteration: Iteration) -> Tensor:
        return torch.zeros(2, device=iteration.problem.device)

    def add(self, partial: Tensor, weighed: WeighedBatch) -> Tensor:
        weights = weighed.weights
        side = weights.rotations[weights.reference, 2, 2].abs() < 0.5  # cosine of the tilt
        return partial + torch.stack([weights.weight[side].sum(), weights.weight.sum()])

    def reduce(self, partial: Tensor) -> Tensor:
        return all_sum(partial)

    def finish(self, partial: Tensor, iteration: Iteration, update: Update, state: State) -> State:
        return state.keeping(SideViews(float(partial[0] / partial[1])))


@dataclass(frozen=True)
class Velocity:
    """What the method keeps: the step of the last iteration, (H, K, N, N, N)."""

    step: Tensor


def with_momentum(method: Method, share: float) -> Method:
    """The same method, going on by a share of its last step: `v <- (A_new - A) + share v`."""

    def update(iteration: Iteration, poses: Poses, halves: list[Sums]) -> Update:
        new, before = method.update(iteration, poses, halves), iteration.state
        last = before.method.step if before.method else torch.zeros_like(before.references)
        step = new.references.cpu() - before.references + share * last
        return replace(new, references=before.references + step, kept=Velocity(step))

    return replace(method, update=update, statistics=(*method.statistics, SideViewsStatistic()))
