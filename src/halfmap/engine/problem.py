"""What stays the same over the iterations of a job."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from halfmap.engine.memory import JobSize
from halfmap.engine.preprocessing import ImageSettings
from halfmap.fourier import HalfPlane, half_plane, largest_radius
from halfmap.particles import Particles
from halfmap.symmetries import Specimen, SymmetryOperators

LEAST_PER_MICROGRAPH = 5  # images; below, in the median, a scale per micrograph tells nothing


@dataclass(frozen=True)
class Problem:
    """The data, how images are prepared, the halves, the specimen and the box.

    `half` is 0 or 1 per particle, -1 for one set aside. `matched_to` tells which half's references
    an image is compared with: its "own" (gold standard: the halves never meet), the "other" half's
    (classification: no image is compared with itself), or references that both "share".
    Each half may be divided into `n_folds` folds (`fold`, from 0): an image is then compared with
    references made of its half without its fold, or, where they are shared, of all images but those
    of its fold and half, so that it does not meet its own noise there.
    With `memory_bytes` an iteration may not need more: folds are given up for it, when resolution
    grows.
    `learn_norm_and_scale` tells whether the strength of signal and noise in each image is learnt
    (`engine.norm_and_scale`) or taken to be 1.
    """

    particles: Particles
    images: ImageSettings
    half: Int[Tensor, " N"]
    matched_to: Literal["own", "other", "shared"]
    specimen: Specimen
    dimensions: int
    n_classes: int
    batch_size: int
    learn_norm_and_scale: bool = False
    fold: Int[Tensor, " N"] | None = None
    n_folds: int = 1
    memory_bytes: int | None = None
    angular_step_deg: float = 7.5  # of a global search, for its memory

    @property
    def symmetry(self) -> SymmetryOperators:
        return self.specimen.symmetry

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def plane(self) -> HalfPlane:
        """The half-plane of all shells that references can have."""
        return half_plane(self.particles.box, largest_radius(self.particles.box), self.device)

    def plane_for(self, radius: int) -> HalfPlane:
        """The plane of sums and noise of an iteration that scores up to `radius`: a quarter and
        three shells more, and no less than half of what there is."""
        reach = self.job_size.summed_radius(radius)
        return half_plane(self.particles.box, reach, self.device)

    @property
    def job_size(self) -> JobSize:
        """What its memory depends on."""
        return JobSize(
            self.particles.box,
            self.dimensions,
            self.n_classes,
            self.n_folds,
            operators=len(self.symmetry),
            makes_final_maps=self.matched_to != "shared",
            images=len(self.used),
            radius_px=self.specimen.radius_px,
            angular_step_deg=self.angular_step_deg,
        )

    def reference_box(self, radius: int) -> int:
        """The box that references with shells up to `radius` are kept in (`JobSize`)."""
        return self.job_size.reference_box(radius)

    def resolution_of(self, radius: int) -> float:
        """Resolution of a Fourier shell, Angstrom."""
        return self.particles.box * self.particles.pixel_size_angstrom / radius

    def part(self, half: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The part of the data that each particle is summed in: the folds of the first half, then
        those of the second; -1 where its half is."""
        if self.fold is None:
            return half
        return torch.where(half >= 0, half * self.n_folds + self.fold, half)

    @property
    def n_parts(self) -> int:
        """The halves, or the folds of both."""
        return 2 * self.n_folds

    @property
    def share_compared(self) -> float:
        """Of a half's images, or of all where references are shared, those that a set of references
        is made of."""
        if self.n_folds == 1:
            return 1.0
        return 1 - 1 / (self.n_parts if self.matched_to == "shared" else self.n_folds)

    @property
    def n_reference_sets(self) -> int:
        """One for each part, or one that all share."""
        return 1 if self.matched_to == "shared" and self.n_folds == 1 else self.n_parts

    def folds_at(self, scored_radius: int) -> int:
        """As many folds as the memory allows an iteration that scores up to a radius: all, or half
        as many, and so on."""
        folds = self.n_folds
        while folds > 1 and self.memory_bytes is not None:
            size = self.job_size.with_folds(folds)
            if size.iteration_bytes(scored_radius, self.batch_size) <= self.memory_bytes:
                break
            folds //= 2
        return folds

    def with_reference_sets(self, n: int) -> "Problem":
        """The problem whose folds belong to n sets of references: where there are fewer than
        before, folds are put together."""
        if self.fold is None or self.matched_to != "own" or n == self.n_parts:
            return self
        return replace(self, fold=self.fold % (n // 2), n_folds=n // 2)

    def reference_set(self, part: int) -> int:
        """Which set of references the images of a part are compared with."""
        half = part // self.n_folds
        left_out = part if self.n_folds > 1 else 0  # the one part that its references do not hold
        return {"own": part, "other": 1 - half, "shared": left_out}[self.matched_to]

    @property
    def used(self) -> Int[Tensor, " M"]:
        """Rows of the particles that are not set aside."""
        return torch.nonzero(self.half >= 0)[:, 0]

    @property
    def n_groups(self) -> int:
        """Noise groups."""
        return int(self.noise_group.max()) + 1

    @cached_property
    def noise_group(self) -> Int[Tensor, " N"]:
        """The group of each particle that shares a noise spectrum: its optics group."""
        return torch.from_numpy(self.particles.optics_group.astype(np.int64))

    @cached_property
    def scale_group(self) -> Int[Tensor, " N"]:
        """The group of each particle that shares a scale."""
        return scale_groups(self.particles.micrograph, self.particles.optics_group)


def scale_groups(micrograph: np.ndarray, optics_group: np.ndarray) -> Int[Tensor, " N"]:
    """The group that shares a scale: the micrograph, or the optics group where micrographs are
    unknown or hold few images."""
    sizes = np.bincount(micrograph)
    by_micrograph = (
        np.count_nonzero(sizes) > 1 and np.median(sizes[sizes > 0]) >= LEAST_PER_MICROGRAPH
    )
    return torch.from_numpy((micrograph if by_micrograph else optics_group).astype(np.int64))
