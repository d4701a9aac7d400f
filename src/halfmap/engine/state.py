"""What one iteration hands to the next, and the currency of the parts: candidates and Gamma."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.pose_prior import Prior

Own = TypeVar("Own", bound="_PerImage")


class _PerImage:
    """Tensors whose first axis counts images."""

    def fields(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def select_images(self: Own, index: Int[Tensor, " M"]) -> Own:
        """Those of the chosen images."""
        return type(self)(*(f[index] for f in self.fields()))

    def to(self: Own, device: torch.device | str) -> Own:
        return type(self)(*(f.to(device) for f in self.fields()))


@dataclass(frozen=True)
class Poses(_PerImage):
    """One pose per particle, the best one: rotation A (object to view), the shift that centres the
    image, class (from 0), and score; with how sure it is: the largest weight of its posterior, the
    number of weights worth keeping, the logarithm of their sum, and the standard deviations of
    rotation (degrees) and shift (pixels) around it."""

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

    def take(self, index: Int[Tensor, " M"]) -> "Poses":
        return self.select_images(index)

    def put(self, index: Int[Tensor, " M"], new: "Poses") -> "Poses":
        """A copy in which the poses at `index` are `new`."""
        fields = []
        for old, value in zip(self.fields(), new.fields(), strict=True):
            copy = old.clone()
            copy[index] = value.to(old.device)
            fields.append(copy)
        return Poses(*fields)

    def in_one_class(self) -> "Poses":
        """The same poses, all of class 0."""
        return replace(self, classes=torch.zeros_like(self.classes))


def known_poses(
    rotations: Float[Tensor, "N 3 3"], shift_px: Float[Tensor, "N 2"], classes: Int[Tensor, " N"]
) -> Poses:
    """Poses that somebody else found: each is certain, and none has been scored yet."""
    n = len(rotations)
    zero, one = rotations.new_zeros(n), rotations.new_ones(n)
    return Poses(
        rotations,
        shift_px,
        classes,
        zero,
        one,
        torch.ones_like(classes),
        zero.clone(),
        rotations.new_full((n, 2), torch.nan),
    )


@dataclass(frozen=True)
class Candidates(_PerImage):
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

    def take(self, columns: Int[Tensor, "B m"]) -> "Candidates":
        """The chosen candidates of each image."""
        row = torch.arange(len(columns), device=columns.device)[:, None]
        return Candidates(*(f[row, columns] for f in self.fields()))

    def best(self, n: int) -> "Candidates":
        """The n with the largest weights, in their order; of equal weights the first."""
        return self.take(self.log_weight.sort(dim=1, descending=True, stable=True).indices[:, :n])

    def padded(self, n: int) -> "Candidates":
        """The same with empty places up to n per image."""
        missing = n - self.score.shape[1]
        if missing <= 0:
            return self
        copies = self.take(
            torch.zeros(len(self.score), missing, dtype=torch.long, device=self.score.device)
        )
        return self.append(
            replace(copies, log_weight=torch.full_like(copies.log_weight, -torch.inf))
        )

    def append(self, other: "Candidates") -> "Candidates":
        return Candidates(
            *(torch.cat([a, b], dim=1) for a, b in zip(self.fields(), other.fields(), strict=True))
        )


def identity_poses(classes: Int[Tensor, " N"]) -> Poses:
    """Poses of images that are neither turned nor moved."""
    n = len(classes)
    return known_poses(torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 2), classes)


def as_candidates(poses: Poses) -> Candidates:
    """One candidate per image."""
    weight, cell = torch.zeros_like(poses.score), torch.full_like(poses.classes, -1)
    here = (
        poses.rotations,
        poses.shift_px,
        poses.classes,
        poses.score,
        weight,
        cell,
        poses.accuracy,
    )
    return Candidates(*(field[:, None] for field in here))


def in_every_class(candidates: Candidates, n_classes: int) -> Candidates:
    """The best candidate of each image, once in each of K classes."""
    first = candidates.take(candidates.log_weight.argmax(1, keepdim=True).expand(-1, n_classes))
    classes = (
        torch.arange(n_classes, device=candidates.score.device)
        .expand(len(candidates.score), -1)
        .contiguous()
    )
    return replace(first, classes=classes)


@dataclass(frozen=True)
class PosteriorWeights:
    """The assignment PosteriorWeights(i, k, phi, t), sparse: entry e gives image `image[e]`, moved
    by `shift_px[e]`, the weight `weight[e]` on the slice `reference[e]`; slice r has orientation
    `rotations[r]` of class `classes[r]`. Entries of one image sum to 1."""

    image: Int[Tensor, " E"]
    reference: Int[Tensor, " E"]
    shift_px: Float[Tensor, "E 2"]
    weight: Float[Tensor, " E"]
    rotations: Float[Tensor, "M 3 3"]
    classes: Int[Tensor, " M"]


@dataclass(frozen=True)
class State:
    """Everything an iteration needs from the one before. `references` are H sets (one per half of
    the data, or one shared) of K each.

    `modes` are the few best poses of each image with their weights, where a method follows more
    than the best one; `prior` is what the last posteriors told of class, direction and shift;
    `norm` and `scale` tell how strong noise is in each image and signal in each group, where that
    is learnt (`intensity`).
    """

    iteration: int
    references: Float[Tensor, "H K *box"]
    poses: Poses
    noise_variance: Float[Tensor, "G S"]
    radius: int
    curves: Float[Tensor, "K S"]
    history: tuple[dict, ...] = ()
    modes: Candidates | None = None
    prior: Prior | None = None
    norm: Float[Tensor, " N"] | None = None
    scale: Float[Tensor, " Q"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name, for a checkpoint; `from_arrays` reads them back bit-equal."""
        return {name: tensor.cpu().numpy() for name, tensor in _tensors(self).items()}

    def meta(self) -> dict:
        """Its plain values, for the checkpoint's JSON."""
        plain = {"iteration": self.iteration, "radius": self.radius, "history": list(self.history)}
        if self.prior is not None:
            plain |= {
                "prior_order": self.prior.order,
                "prior_shift_sigma_px": self.prior.shift_sigma_px,
            }
        return plain


def _tensors(part: State | Poses | Candidates | Prior, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a dataclass and of those inside it, as `name` and `name.name`."""
    found: dict[str, Tensor] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, Tensor):
            found[prefix + f.name] = value
        elif isinstance(value, Poses | Candidates | Prior):
            found |= _tensors(value, f"{f.name}.")
    return found


def from_arrays(arrays: dict[str, np.ndarray], meta: dict, *, device: torch.device | str) -> State:
    """The state that a checkpoint holds."""
    t = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}

    def inside(name: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{name}."): value
            for key, value in t.items()
            if key.startswith(f"{name}.")
        }

    own = {name: value for name, value in t.items() if "." not in name}
    own |= {name: own[name].to(device) for name in ("references", "noise_variance")}
    modes = Candidates(**inside("modes")) if "modes.score" in t else None
    prior = None
    if "prior.classes" in t:
        tables = {name: value.to(device) for name, value in inside("prior").items()}
        prior = Prior(
            **tables, order=meta["prior_order"], shift_sigma_px=meta["prior_shift_sigma_px"]
        )
    return State(
        **own,
        iteration=meta["iteration"],
        radius=meta["radius"],
        history=tuple(meta["history"]),
        poses=Poses(**inside("poses")),
        modes=modes,
        prior=prior,
    )
