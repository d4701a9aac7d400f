"""How sure each image is of its class, whatever its pose: the posterior of the class, summed over
all poses that were weighed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.particle_values import ByParticle, gather_over_processes
from halfmap.engine.state import Candidates, PerImage, State


@dataclass(frozen=True)
class ClassProbability(PerImage):
    """The posterior probability of the class in which each of N particles is."""

    probability: Float[Tensor, " N"]


class ClassProbabilityStatistic(ByParticle[ClassProbability]):
    """Keeps the probability of every image's class; of all candidates, which are more than the few
    poses that are carried on."""

    name = "class posterior"

    def add(self, partial: list, weighed: WeighedBatch) -> list:
        probability = ClassProbability(class_probability(weighed.candidates).cpu())
        partial.append((weighed.batch.index.cpu(), probability))
        return partial

    def finish(self, partial: list, iteration: Iteration, update: Update, state: State) -> State:
        known = state.find(ClassProbability)
        before = ClassProbability(torch.ones(len(iteration.half))) if known is None else known
        return state.keeping(gather_over_processes(before, partial, iteration.half >= 0))


def class_probability(candidates: Candidates) -> Float[Tensor, " B"]:
    """`P(k | X) = sum_phi P(k, phi | X)` of the class k that the best pose of each image is in.

    >>> from halfmap.engine.state import known_poses
    >>> pose = known_poses(torch.eye(3)[None], torch.zeros(1, 2), torch.tensor([1]))
    >>> from halfmap.engine.state import as_candidates
    >>> class_probability(as_candidates(pose))  # no other class was found
    tensor([1.])
    """
    weight = torch.softmax(candidates.log_weight, dim=1)
    same = candidates.classes == candidates.best(1).classes
    return (weight * same).sum(1).clamp(max=1)
