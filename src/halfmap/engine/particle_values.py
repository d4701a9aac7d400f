"""Values of single particles, found batch by batch and by several processes, brought together; and
poses that follow a class image that was moved."""

from dataclasses import replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.method import Iteration
from halfmap.engine.state import Candidates, PerImage, Poses

Own = TypeVar("Own", bound=PerImage)
Posed = TypeVar("Posed", Poses, Candidates)


class ByParticle(Generic[Own]):
    """What statistics share that keep values of single particles: nothing is summed, and `finish`
    brings together what each batch has found (`gather_over_processes`)."""

    def empty(self, iteration: Iteration) -> list[tuple[Tensor, Own]]:
        return []

    def reduce(self, partial: list[tuple[Tensor, Own]]) -> list[tuple[Tensor, Own]]:
        return partial


def gather_over_processes(
    before: Own, found: list[tuple[Tensor, Own]], used: Bool[Tensor, " N"]
) -> Own:
    """The new values of all processes together; particles that were not used keep theirs."""
    gathered = []
    for n, old in enumerate(before.fields()):
        new = torch.zeros_like(old)
        for index, values in found:
            new[index] = values.fields()[n]
        new = all_sum(new)
        gathered.append(torch.where(used.view(-1, *[1] * (old.ndim - 1)), new, old))
    return type(before)(*gathered)


def recentred_poses(poses: Posed, recentring_px: Float[Tensor, "K 2"]) -> Posed:
    """Poses after each class image was moved by m: the shift that centres a particle grows by
    A m."""
    move = recentring_px[poses.classes][..., None, :]
    step = (poses.rotations[..., :2, :2] * move).sum(-1)
    return replace(poses, shift_px=poses.shift_px + step)
