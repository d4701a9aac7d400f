"""What one iteration hands to the next, and the currency of the parts: candidates and Gamma."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Poses:
    """One pose per particle: rotation A (object to view), the shift that centres the image, class (from 0), and score."""

    rotations: Float[Tensor, "N 3 3"]
    shift_px: Float[Tensor, "N 2"]
    classes: Int[Tensor, " N"]
    score: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.rotations)

    def take(self, index: Int[Tensor, " M"]) -> "Poses":
        return Poses(self.rotations[index], self.shift_px[index], self.classes[index], self.score[index])

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
        return Poses(self.rotations, self.shift_px, torch.zeros_like(self.classes), self.score)

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rotations, self.shift_px, self.classes, self.score

    def to(self, device: torch.device | str) -> "Poses":
        return Poses(*(f.to(device) for f in self.fields()))


@dataclass(frozen=True)
class Candidates:
    """Up to n poses for each of B images, best first; what a search returns and an assignment weighs."""

    rotations: Float[Tensor, "B n 3 3"]
    shift_px: Float[Tensor, "B n 2"]
    classes: Int[Tensor, "B n"]
    score: Float[Tensor, "B n"]

    def take(self, columns: Int[Tensor, "B m"]) -> "Candidates":
        """The chosen candidates of each image."""
        row = torch.arange(len(columns), device=columns.device)[:, None]
        return Candidates(self.rotations[row, columns], self.shift_px[row, columns], self.classes[row, columns], self.score[row, columns])

    def best(self, n: int) -> "Candidates":
        return self.take(torch.topk(self.score, min(n, self.score.shape[1]), dim=1).indices)

    def append(self, other: "Candidates") -> "Candidates":
        pairs = zip(self.fields(), other.fields(), strict=True)
        return Candidates(*(torch.cat([a, b], dim=1) for a, b in pairs))

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rotations, self.shift_px, self.classes, self.score


def as_they_lie(classes: Int[Tensor, " N"]) -> Poses:
    """Poses of images that are neither turned nor moved."""
    n = len(classes)
    return Poses(torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 2), classes, torch.zeros(n))


def as_candidates(poses: Poses) -> Candidates:
    """One candidate per image."""
    return Candidates(poses.rotations[:, None], poses.shift_px[:, None], poses.classes[:, None], poses.score[:, None])


def in_every_class(candidates: Candidates, n_classes: int) -> Candidates:
    """The first candidate of each image, once in each of K classes."""
    first = candidates.take(torch.zeros(len(candidates.score), n_classes, dtype=torch.long, device=candidates.score.device))
    classes = torch.arange(n_classes, device=candidates.score.device).expand(len(candidates.score), -1).contiguous()
    return Candidates(first.rotations, first.shift_px, classes, first.score)


@dataclass(frozen=True)
class Gamma:
    """The assignment Gamma(i, k, phi, t), sparse: entry e gives image `image[e]`, moved by `shift_px[e]`, the weight `weight[e]` on the
    slice `reference[e]`; slice r has orientation `rotations[r]` of class `classes[r]`. Entries of one image sum to 1."""

    image: Int[Tensor, " E"]
    reference: Int[Tensor, " E"]
    shift_px: Float[Tensor, "E 2"]
    weight: Float[Tensor, " E"]
    rotations: Float[Tensor, "M 3 3"]
    classes: Int[Tensor, " M"]


@dataclass(frozen=True)
class State:
    """Everything an iteration needs from the one before. `references` are H sets (one per half of the data, or one shared) of K each."""

    iteration: int
    references: Float[Tensor, "H K *box"]
    poses: Poses
    noise_variance: Float[Tensor, "G S"]
    radius: int
    curves: Float[Tensor, "K S"]
    history: tuple[dict, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name, for a checkpoint; `from_arrays` reads them back bit-equal."""
        tensors = {
            "references": self.references, "rotations": self.poses.rotations, "shift_px": self.poses.shift_px,
            "classes": self.poses.classes, "score": self.poses.score, "noise_variance": self.noise_variance, "curves": self.curves,
        }  # fmt: skip
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    def meta(self) -> dict:
        """Its plain values, for the checkpoint's JSON."""
        return {"iteration": self.iteration, "radius": self.radius, "history": list(self.history)}


def from_arrays(arrays: dict[str, np.ndarray], meta: dict, *, device: torch.device | str) -> State:
    """The state that a checkpoint holds."""
    t = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    poses = Poses(t["rotations"], t["shift_px"], t["classes"], t["score"])
    return State(
        meta["iteration"], t["references"].to(device), poses, t["noise_variance"].to(device), meta["radius"], t["curves"],
        tuple(meta["history"]),
    )  # fmt: skip
