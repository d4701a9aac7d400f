"""What is known of class, direction and shift before an image is looked at: p(k) p(direction | k)
p(t), learnt from the last iteration."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.state import PosteriorWeights, State
from halfmap.so3 import compose, direction_pixels

SHIFT_SIGMA_LEAST_PX = 0.5
# images that every direction has been seen by beforehand: no direction is ever impossible
_PSEUDO_COUNT = 1.0
# a class counts as empty below a fiftieth of an equal share: seeded anew, it must be enterable
EMPTY_CLASS_SHARE = 1 / 50


@dataclass(frozen=True)
class PosePrior:
    """Logarithms of the class probabilities and of each class's density over viewing directions
    (HEALPix pixels of `order`, nested; 1 is uniform), and the standard deviation of a shift along
    one axis. In 2D `directions` has the shape (K, 1)."""

    classes: Float[Tensor, " K"]
    directions: Float[Tensor, "K D"]
    order: int
    shift_sigma_px: float

    def to(self, device: torch.device | str) -> "PosePrior":
        tables = self.classes.to(device), self.directions.to(device)
        return PosePrior(*tables, self.order, self.shift_sigma_px)

    def of_shift(self, shift_px: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
        """`ln p(t) = -|t|^2 / (2 s^2) - ln(2 pi s^2)`, per square pixel."""
        variance = self.shift_sigma_px**2
        return -(shift_px**2).sum(-1) / (2 * variance) - math.log(2 * math.pi * variance)

    def of_direction(
        self, rotations: Float[Tensor, "*b 3 3"], classes: Int[Tensor, "*b"]
    ) -> Float[Tensor, "*b"]:
        """`ln p(k) + ln p(direction | k)`, relative to a uniform density."""
        pixel = 0 if self.directions.shape[1] == 1 else direction_pixels(rotations, self.order)
        return self.classes[classes] + self.directions[classes, pixel]


def uniform_prior(
    n_classes: int,
    dimensions: int,
    *,
    order: int,
    shift_sigma_px: float,
    device: torch.device | str,
) -> PosePrior:
    """Nothing known but the scatter of the shifts."""
    n_directions = 12 * 4**order if dimensions == 3 else 1
    classes = torch.full((n_classes,), -math.log(n_classes), device=device)
    return PosePrior(
        classes, torch.zeros(n_classes, n_directions, device=device), order, shift_sigma_px
    )


def next_prior(prior: PosePrior, sums: Float[Tensor, " P"]) -> PosePrior:
    """The prior that the last iteration's posteriors amount to (RELION's pdf_class, pdf_direction
    and sigma_offset).

    `p(k) = (N_k + N / 50 K) / (1.02 N)`, `p(d | k) = (N_kd + 1) / (N_k + D)`, `s^2 = <|t|^2> / 2`.
    """
    counts = sums[:-2].view_as(prior.directions) + 0.0
    total, n_directions = counts.sum(1), counts.shape[1]
    fewest = total.sum() / len(total) / 50
    classes = ((total + fewest) / (total + fewest).sum()).log()
    directions = (
        (counts + _PSEUDO_COUNT) / (total[:, None] + _PSEUDO_COUNT * n_directions) * n_directions
    ).log()
    sigma = math.sqrt(float(sums[-1]) / max(float(sums[-2]), 1e-20) / 2)
    return PosePrior(classes, directions, prior.order, max(SHIFT_SIGMA_LEAST_PX, sigma))


def prior_sums(
    prior: PosePrior, gamma: PosteriorWeights, symmetry: Float[Tensor, "G 3 3"]
) -> Float[Tensor, " P"]:
    """What Gamma says of the prior, as one vector that processes can add: weight per class and
    direction (K D), the weight and the summed square of the shifts. A direction counts for all of
    its symmetry mates, each 1 / G."""
    n_classes, n_directions = prior.directions.shape
    classes = gamma.classes[gamma.reference]
    counts = gamma.weight.new_zeros(n_classes * n_directions)
    if n_directions == 1:
        counts.index_add_(0, classes, gamma.weight)
    else:
        weight = gamma.weight.new_zeros(len(gamma.rotations)).index_add_(
            0, gamma.reference, gamma.weight
        ) / len(symmetry)
        for mate in symmetry.to(gamma.rotations):
            counts.index_add_(
                0,
                gamma.classes * n_directions
                + direction_pixels(compose(gamma.rotations, mate), prior.order),
                weight,
            )
    squared = (gamma.weight * (gamma.shift_px**2).sum(-1)).sum()
    return torch.cat([counts, torch.stack([gamma.weight.sum(), squared])])


class PosePriorStatistic:
    """Adds up the posterior weights by class and direction, and the squares of the shifts."""

    name = "pose prior"

    def empty(self, iteration: Iteration) -> Float[Tensor, " P"]:
        prior = self._before(iteration)
        # in double precision: one process and several must learn the same
        empty = torch.zeros(prior.directions.numel() + 2, dtype=torch.float64)
        return empty.to(iteration.problem.device)

    def add(self, partial: Float[Tensor, " P"], weighed: WeighedBatch) -> Float[Tensor, " P"]:
        mates = weighed.iteration.problem.symmetry.rotations
        partial += prior_sums(self._before(weighed.iteration), weighed.weights, mates)
        return partial

    def reduce(self, partial: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, " P"], iteration: Iteration, update: Update, state: State
    ) -> State:
        return state.keeping(next_prior(self._before(iteration), partial.float()).to("cpu"))

    def _before(self, iteration: Iteration) -> PosePrior:
        prior = iteration.state.find(PosePrior)
        assert prior is not None  # Method.start puts a uniform one there
        return prior
