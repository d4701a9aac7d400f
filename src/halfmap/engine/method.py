"""What the loop asks of a method and of a statistic, and what it hands them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.accumulation import expected_images, slice_terms
from halfmap.engine.image_model import load_images, whole_images_at
from halfmap.engine.preprocessing import Batch
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import Residuals, residuals
from halfmap.engine.state import Candidates, Poses, PosteriorWeights, State
from halfmap.fourier import HalfPlane
from halfmap.likelihood import ImageTerms
from halfmap.projection import FourierReferences, Sums, extract_slices

Search = Callable[[Batch, Poses], Candidates]
Partial = TypeVar("Partial")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Iteration:
    """What all batches of one iteration share: the state before, the half-plane of sums and noise,
    its part that is scored, and the half of each particle, -1 for those that sit it out; for the
    M-step, by name, what the statistics have added up."""

    problem: Problem
    state: State
    plane: HalfPlane
    scored: HalfPlane
    half: Int[Tensor, " N"]
    summed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def part(self) -> Int[Tensor, " N"]:
        """The part of the data that each particle is summed in (`Problem.part`)."""
        return self.problem.part(self.half)

    @property
    def parts(self) -> list[int]:
        """The parts that have particles."""
        return torch.unique(self.part[self.part >= 0]).tolist()

    def members(self, part: int) -> Int[Tensor, " M"]:
        """Rows of the particles of a part."""
        return torch.nonzero(self.part == part)[:, 0]


@dataclass(frozen=True)
class WeighedBatch:
    """A batch after the E-step: its images, the candidate poses, and their posterior weights."""

    iteration: Iteration
    references: FourierReferences
    batch: Batch
    candidates: Candidates
    weights: PosteriorWeights
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, function: Callable[["WeighedBatch"], Made]) -> Made:
        """`function(batch)`, computed once however many ask for it."""
        if function not in self._made:
            self._made[function] = function(self)
        return self._made[function]

    @cached_property
    def expected(self) -> ImageTerms:
        """For each image `sum_e Gamma_e S_t R_e` and `sum_e Gamma_e |R_e|^2` on scored samples."""
        scored = self.iteration.scored
        rotations, classes = self.weights.rotations, self.weights.classes
        slices = extract_slices(self.references, rotations, scored, classes=classes)
        return expected_images(slices, self.weights, len(self.batch.index), scored)

    @cached_property
    def residuals(self) -> Residuals:
        """What the model leaves of the images. Where norms and scales are learnt, references are on
        the images' grey scale after the first iteration, and outliers must not count in full."""
        learnt = self.iteration.problem.learn_norm_and_scale
        fit = not learnt or self.iteration.state.iteration == 0
        plane = self.iteration.plane
        return residuals(self.batch, self.expected, plane, fit=fit, robust=learnt)


@dataclass(frozen=True, kw_only=True)
class Update:
    """What the M-step gives back: references (H, K, ...), a correlation curve per class, the next
    radius; resolutions of the classes where halves were compared; further numbers for the record;
    and what the method keeps (`State.method`).

    `recentring_px` tells how far each class image was moved (2D; x, y in its own frame), so that
    the poses can follow.
    """

    references: Float[Tensor, "H K *box"]
    curves: Float[Tensor, "K S"]
    radius: int
    resolutions_angstrom: tuple[float, ...] = ()
    empty_classes: int = 0
    report: Mapping[str, float] = field(default_factory=dict)
    kept: Any = None
    recentring_px: Float[Tensor, "K 2"] | None = None


@runtime_checkable
class Statistic(Protocol[Partial]):
    """Whatever an iteration sums over images and posterior weights beside the two sums.

    `empty` starts a sum, `add` adds a batch to it, `reduce` adds up those of all processes, and
    `finish` turns it into the next state: what is kept is a dataclass of the statistic's own type,
    put there with `State.keeping` and found with `State.find` by whoever uses it.
    """

    @property
    def name(self) -> str:
        """For the seconds by stage."""
        ...

    def empty(self, iteration: Iteration) -> Partial: ...

    def add(self, partial: Partial, weighed: WeighedBatch) -> Partial: ...

    def reduce(self, partial: Partial) -> Partial: ...

    def finish(
        self, partial: Partial, iteration: Iteration, update: Update, state: State
    ) -> State: ...


def _whole_images(iteration: Iteration, index: Int[Tensor, " B"]) -> Batch:
    return load_images(
        iteration.problem, iteration.state, index, iteration.plane, radius=iteration.scored.radius
    )


def _weighted_images(weighed: WeighedBatch) -> ImageTerms:
    iteration, batch, weights = weighed.iteration, weighed.batch, weighed.weights
    mean_shift_px = torch.zeros(len(batch.index), 2, device=weights.shift_px.device).index_add_(
        0, weights.image, weights.weight[:, None] * weights.shift_px
    )
    whole = whole_images_at(
        iteration.problem, iteration.state, batch, iteration.plane, mean_shift_px
    )
    return slice_terms(whole, weights, iteration.plane)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method is a combination of choices.

    `prepare` makes, for one set of references and the present state, the search of a batch around
    its poses (with the score that it compares by); `assign` turns candidates into posterior
    weights; `update` turns the iteration, the new poses and the sums of both halves into the next
    references; `converged` tells when to stop. `statistics` are what is learnt beside maps.

    The rest have the usual choice as default. `start` adds to a first state what the method keeps;
    `select` picks the particles of an iteration: the halves (`Problem.half`) with -1 for those
    that sit it out; `plane` tells how far sums and noise reach beyond the radius that is scored;
    `load` prepares the images of a batch; `terms` tells what a batch adds to the two sums. Without
    `terms` a pass has statistics alone, and `update` gets no sums.
    """

    prepare: Callable[[FourierReferences, State], Search]
    assign: Callable[[Candidates], PosteriorWeights]
    update: Callable[[Iteration, Poses, list[Sums]], Update]
    converged: Callable[[State], bool]
    statistics: tuple[Statistic[Any], ...] = ()
    start: Callable[[State], State] = lambda state: state
    select: Callable[[State, Tensor], Tensor] = lambda state, half: half
    plane: Callable[[Problem, int], HalfPlane] = Problem.plane_for
    load: Callable[[Iteration, Tensor], Batch] = _whole_images
    terms: Callable[[WeighedBatch], ImageTerms] | None = _weighted_images
