"""What one iteration hands to the next, and the currency of the parts: poses, candidates and
posterior weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

Own = TypeVar("Own", bound="PerImage")
Kept = TypeVar("Kept")


class PerImage:
    """Tensors whose first axis counts images."""

    def fields(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def select_images(self: Own, index: Int[Tensor, " M"]) -> Own:
        """Those of the chosen images."""
        return type(self)(*(f[index] for f in self.fields()))

    def to(self: Own, device: torch.device | str) -> Own:
        return type(self)(*(f.to(device) for f in self.fields()))


@dataclass(frozen=True)
class Poses(PerImage):
    """One pose per particle, the best one: rotation A (object to view), the shift that centres the
    image, class (from 0), and score; with how sure it is: the largest weight of its posterior, the
    number of significant poses, the logarithm of the sum of their weights, and the standard
    deviations of rotation (degrees) and shift (pixels) around it."""

    rotations: Float[Tensor, "N 3 3"]
    shift_px: Float[Tensor, "N 2"]
    classes: Int[Tensor, " N"]
    score: Float[Tensor, " N"]
    largest_weight: Float[Tensor, " N"]
    significant: Int[Tensor, " N"]
    log_likelihood: Float[Tensor, " N"]
    accuracy: Float[Tensor, "N 2"]

    def __len__(self) -> int:
        return len(self.rotations)

    def put(self, index: Int[Tensor, " M"], new: "Poses") -> "Poses":
        """A copy in which the poses at `index` are `new`."""
        changed = []
        for old, value in zip(self.fields(), new.fields(), strict=True):
            copy = old.clone()
            copy[index] = value.to(old.device)
            changed.append(copy)
        return Poses(*changed)

    def in_one_class(self) -> "Poses":
        """The same poses, all of class 0."""
        return replace(self, classes=torch.zeros_like(self.classes))


def known_poses(
    rotations: Float[Tensor, "N 3 3"], shift_px: Float[Tensor, "N 2"], classes: Int[Tensor, " N"]
) -> Poses:
    """Poses that somebody else found: each is certain, and none has been scored yet.

    >>> poses = known_poses(torch.eye(3)[None], torch.tensor([[1.5, 0.0]]), torch.tensor([0]))
    >>> poses.shift_px, poses.largest_weight
    (tensor([[1.5000, 0.0000]]), tensor([1.]))
    """
    n = len(rotations)
    zero, one = rotations.new_zeros(n), rotations.new_ones(n)
    return Poses(
        rotations=rotations,
        shift_px=shift_px,
        classes=classes,
        score=zero,
        largest_weight=one,
        significant=torch.ones_like(classes),
        log_likelihood=zero.clone(),
        accuracy=rotations.new_full((n, 2), torch.nan),
    )


def identity_poses(classes: Int[Tensor, " N"]) -> Poses:
    """Poses of images that are neither turned nor moved."""
    n = len(classes)
    return known_poses(torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 2), classes)


@dataclass(frozen=True)
class Candidates(PerImage):
    """Up to n poses for each of B images; what a search returns and an assignment weighs.

    `score` is what the method compares, `log_weight` the logarithm of the weight of a pose in its
    image's posterior, up to a constant per image; a place that holds no pose has the weight -inf.
    `cell` numbers the pose's orientation where it is one of a grid's, else -1; `accuracy` are the
    standard deviations of rotation (degrees) and shift (pixels), NaN where they are not known.
    """

    rotations: Float[Tensor, "B n 3 3"]
    shift_px: Float[Tensor, "B n 2"]
    classes: Int[Tensor, "B n"]
    score: Float[Tensor, "B n"]
    log_weight: Float[Tensor, "B n"]
    cell: Int[Tensor, "B n"]
    accuracy: Float[Tensor, "B n 2"]

    def select_poses(self, columns: Int[Tensor, "B m"]) -> "Candidates":
        """The chosen candidates of each image."""
        row = torch.arange(len(columns), device=columns.device)[:, None]
        return Candidates(*(f[row, columns] for f in self.fields()))

    def best(self, n: int) -> "Candidates":
        """The n with the largest weights, in their order; of equal weights the first."""
        order = self.log_weight.sort(dim=1, descending=True, stable=True).indices
        return self.select_poses(order[:, :n])

    def padded(self, n: int) -> "Candidates":
        """The same with empty places up to n per image."""
        missing = n - self.score.shape[1]
        if missing <= 0:
            return self
        first = torch.zeros(len(self.score), missing, dtype=torch.long, device=self.score.device)
        copies = self.select_poses(first)
        empty = torch.full_like(copies.log_weight, -torch.inf)
        return self.append(replace(copies, log_weight=empty))

    def append(self, other: "Candidates") -> "Candidates":
        pairs = zip(self.fields(), other.fields(), strict=True)
        return Candidates(*(torch.cat([a, b], dim=1) for a, b in pairs))


def as_candidates(poses: Poses) -> Candidates:
    """One candidate per image.

    >>> as_candidates(identity_poses(torch.tensor([0, 2]))).classes  # images, poses
    tensor([[0],
            [2]])
    """
    weight, cell = torch.zeros_like(poses.score), torch.full_like(poses.classes, -1)
    pose = (poses.rotations, poses.shift_px, poses.classes, poses.score)
    return Candidates(*(f[:, None] for f in (*pose, weight, cell, poses.accuracy)))


def in_every_class(candidates: Candidates, n_classes: int) -> Candidates:
    """The best candidate of each image, once in each of K classes."""
    best = candidates.log_weight.argmax(1, keepdim=True).expand(-1, n_classes)
    classes = torch.arange(n_classes, device=candidates.score.device)
    return replace(
        candidates.select_poses(best),
        classes=classes.expand(len(candidates.score), -1).contiguous(),
    )


@dataclass(frozen=True)
class PosteriorWeights:
    """The lecture's Gamma(i, k, phi, t), sparse: entry e gives image `image[e]`, moved by
    `shift_px[e]`, the weight `weight[e]` on the slice `reference[e]`; slice r has orientation
    `rotations[r]` of class `classes[r]`. Entries of one image sum to 1."""

    image: Int[Tensor, " E"]
    reference: Int[Tensor, " E"]
    shift_px: Float[Tensor, "E 2"]
    weight: Float[Tensor, " E"]
    rotations: Float[Tensor, "M 3 3"]
    classes: Int[Tensor, " M"]


@dataclass(frozen=True, kw_only=True)
class IterationRecord:
    """How one iteration went, over the particles that took part in it.

    `radius` and `scored_to_angstrom` are the limit up to which images were scored; the resolutions
    of the classes, where halves were compared, are what came out. Changes of pose and accuracies
    are medians, the rest means. `report` holds further numbers that the method and its statistics
    tell a reader; nothing is decided by them.
    """

    iteration: int
    radius: int
    scored_to_angstrom: float
    resolutions_angstrom: tuple[float, ...] = ()
    class_sizes: tuple[int, ...] = ()
    empty_classes: int = 0
    angular_change_deg: float = math.nan
    shift_change_angstrom: float = math.nan
    class_changes: float = 0.0
    mean_score: float = math.nan
    mean_largest_weight: float = math.nan
    mean_significant: float = math.nan
    mean_log_likelihood: float = math.nan
    accuracy_deg: float = math.nan
    accuracy_angstrom: float = math.nan
    report: Mapping[str, float] = field(default_factory=dict)

    @property
    def resolution_angstrom(self) -> float | None:
        """The best class's resolution; None where none was measured."""
        return min(self.resolutions_angstrom, default=None)

    def event(self) -> dict[str, Any]:
        """Its numbers by name, for the job's events."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "report"}
        return {**numbers, "resolution_angstrom": self.resolution_angstrom, **self.report}


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that an iteration needs from the one before; all of it lives on the CPU.

    `references` are H sets (one per half of the data, or one shared) of K each, `radius` the last
    Fourier shell that is scored next, `curves` the correlation of the halves by class and shell.
    `statistics` are what each statistic keeps, one dataclass of its own type each, and `method`
    what the method keeps: dataclasses, tuples and mappings of tensors and plain values, opaque to
    the loop and to checkpoints (`engine.checkpoint`).
    """

    iteration: int
    references: Float[Tensor, "H K *box"]
    poses: Poses
    radius: int
    curves: Float[Tensor, "K S"]
    history: tuple[IterationRecord, ...] = ()
    statistics: tuple[Any, ...] = ()
    method: Any = None

    def find(self, kind: type[Kept]) -> Kept | None:
        """What the statistic that keeps a `kind` has learnt; None before it has."""
        return next((kept for kept in self.statistics if type(kept) is kind), None)

    def keeping(self, *kept: Any) -> "State":
        """The same state in which these replace what was kept of their types before."""
        new = {type(one) for one in kept}
        others = tuple(one for one in self.statistics if type(one) not in new)
        return replace(self, statistics=(*others, *kept))

    def without_references(self) -> "State":
        """The same, for when no image is compared any more: with many folds or classes references
        take as much memory as the sums of final maps."""
        sets = self.references.shape[:2]
        none = self.references.new_empty(*sets, *([0] * (self.references.ndim - 2)))
        return replace(self, references=none)
