"""What a search by bounds is made of: its levels, the cells that survive, and what prunes them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane
from halfmap.likelihood import squared_modulus
from halfmap.pose_search.bounds import Unseen, deviations
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import FourierReferences, extract_slices


@dataclass(frozen=True)
class Level:
    """One scoring of the grid's cells: the shells, the step of the shifts, and what it leaves
    unseen."""

    plane: HalfPlane
    shift_step_px: float
    unseen: Unseen


@dataclass(frozen=True)
class BoundedSearch:
    """A search prepared for one set of references. Cells are those of the grid's finer
    orientations, class by class, the 8 parts of each coarse one together; `power` is what the slice
    at the centre of each coarse one has on each of the shells of `plane`, all that are scored."""

    references: FourierReferences
    settings: SearchSettings
    step_deg: float
    levels: tuple[Level, Level]
    plane: HalfPlane
    rotations: Float[Tensor, "C 3 3"]
    classes: Int[Tensor, " C"]
    log_prior: Float[Tensor, " C"]
    power: Float[Tensor, "C8 S"]

    @property
    def climbs(self) -> tuple[int, ...]:
        """Shells on which survivors are climbed: those that the grid resolves, twice as many, and
        so on."""
        shells = [self.levels[1].plane.radius]
        while shells[-1] < self.plane.radius:
            shells.append(min(self.plane.radius, 2 * shells[-1]))
        return tuple(shells)

    @property
    def tests(self) -> int:
        """That a cell has to pass: one a level, and one at each radius climbed but the last."""
        return len(self.levels) + len(self.climbs) - 1

    @property
    def z(self) -> float:
        """Standard deviations of the bound."""
        return deviations(self.tests)

    @cached_property
    def table(self) -> tuple[Complex[Tensor, "C J1"], Float[Tensor, "C J1"]] | None:
        """Slices of all cells and their squares on the second level's shells, of which the first
        level's come first; None where they take too much memory."""
        plane = self.levels[1].plane
        if 12 * len(self.classes) * len(plane) > self.settings.passes.table_bytes:
            return None
        slices = extract_slices(self.references, self.rotations, plane, classes=self.classes)
        return slices, squared_modulus(slices)

    def slices(
        self, cells: slice | Int[Tensor, "*n"], plane: HalfPlane
    ) -> tuple[Complex[Tensor, "*n J"], Float[Tensor, "*n J"]]:
        """Slices of some cells, and their squares."""
        if self.table is not None:
            return self.table[0][cells, : len(plane)], self.table[1][cells, : len(plane)]
        rotations, classes = self.rotations[cells], self.classes[cells]
        slices = extract_slices(
            self.references, rotations.flatten(0, -3), plane, classes=classes.flatten()
        ).view(*classes.shape, -1)
        return slices, squared_modulus(slices)


@dataclass(frozen=True)
class Survivors:
    """Cells that may hold an image's best pose, best bound first: their log weights on a level's
    shells, and their best shifts; empty places have the weight -inf. `scored` counts the poses that
    the level scored for each image."""

    cells: Int[Tensor, "B n"]
    log_weight: Float[Tensor, "B n"]
    shift_px: Float[Tensor, "B n 2"]
    scored: Int[Tensor, " B"]

    @property
    def counts(self) -> Int[Tensor, " B"]:
        return torch.isfinite(self.log_weight).sum(1)

    def select_images(self, rows: Int[Tensor, " b"]) -> "Survivors":
        """Those of some images, as wide as the widest of them needs."""
        n = max(1, int(self.counts[rows].amax()))
        return Survivors(
            self.cells[rows, :n],
            self.log_weight[rows, :n],
            self.shift_px[rows, :n],
            self.scored[rows],
        )


@dataclass(frozen=True)
class Bounded:
    """What branch and bound leaves of some images: the refined poses that cells have to threshold,
    and the cells that survive each level."""

    best: Candidates
    threshold: "PruningThreshold"
    levels: tuple[Survivors, Survivors]


@dataclass(frozen=True)
class PruningThreshold:
    """For each image the log weight that a cell's bound must reach, the scale of references in it,
    and the power that it can show of each shell, `scale^2 <C^2 / sigma^2>`."""

    log_weight: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]
    visible: Float[Tensor, "B S"]

    def select_images(self, rows: Int[Tensor, " b"]) -> "PruningThreshold":
        return PruningThreshold(self.log_weight[rows], self.scale[rows], self.visible[rows])


def as_starts(search: BoundedSearch, left: Survivors) -> Candidates:
    """Survivors as candidates."""
    none, nan = torch.full_like(left.cells, -1), torch.full_like(left.shift_px, torch.nan)
    return Candidates(
        search.rotations[left.cells],
        left.shift_px,
        search.classes[left.cells],
        left.log_weight,
        left.log_weight,
        none,
        nan,
    )
