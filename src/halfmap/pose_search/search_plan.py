"""A global search prepared for a set of references: shells, shifts and slices of its levels."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import ImageTerms, slice_power, slice_power_own, squared_modulus
from halfmap.pose_search.refinement import SearchSettings
from halfmap.pose_search.sampling import Grid
from halfmap.projection import FourierReferences, extract_slices

# of all children that images have as their own, from which b of all takes less time than
# fetching the squares of these: 83 images, 960 children of 211 samples break even at 3 %
SHARE_FOR_ALL = 1 / 32
Table = tuple[Complex[Tensor, "m J"], Float[Tensor, "m J"]]


@dataclass(frozen=True)
class Level:
    """One scoring of the finer grid's cells: the shells, and the shifts."""

    plane: HalfPlane
    shifts: Float[Tensor, "T 2"]


@dataclass(frozen=True)
class GlobalSearch:
    """A search prepared for one set of references: both levels' planes and shifts, the level
    between them on which children are sifted (None: there is none), the coarse slices, and the fine
    ones if they fit and are asked for."""

    references: FourierReferences
    settings: SearchSettings
    grid: Grid
    planes: tuple[HalfPlane, HalfPlane]
    shifts: tuple[Float[Tensor, "T0 2"], Float[Tensor, "T1 2"]]
    sieve: Level | None
    slices: Complex[Tensor, "KM J0"]
    slices_squared: Float[Tensor, "J0 KM"]
    cell_prior: Float[Tensor, " KM"]
    kept: int
    coarse_grid_resolves: bool
    fine_grid_resolves: bool

    @property
    def most_children(self) -> int:
        """That go on from the level between."""
        return max(
            self.settings.fewest_cells,
            math.ceil(self.settings.largest_child_share * len(self.children[1])),
        )

    @property
    def finest(self) -> Level:
        """The finer grid's own level."""
        return Level(self.planes[1], self.shifts[1])

    @cached_property
    def children(self) -> tuple[Float[Tensor, "KMc 3 3"], Int[Tensor, " KMc"]]:
        """Orientation and class of all children, class by class, those of a cell side by side."""
        device, n_classes = self.references.grid.device, len(self.references)
        rotations = self.grid.children.flatten(0, 1).to(device)
        classes = torch.arange(n_classes, device=device).repeat_interleave(len(rotations))
        return rotations.repeat(n_classes, 1, 1), classes

    @cached_property
    def _tables(self) -> dict[int, Table]:
        return {}

    @cached_property
    def _cut_so_far(self) -> Counter[int]:
        return Counter()

    def _table(self, plane: HalfPlane, wanted: int) -> Table | None:
        """Slices of all children on a plane, and their squares, from when as many have been cut one
        by one as there are: less than twice the work that knowing all images would take. None
        before, and where they would take too much memory."""
        rotations, classes = self.children
        self._cut_so_far[plane.radius] += wanted
        small = 12 * len(classes) * len(plane) <= self.settings.passes.table_bytes
        often = self._cut_so_far[plane.radius] > len(classes)
        if small and often and plane.radius not in self._tables:
            self._tables[plane.radius] = self._cut(rotations, classes, plane)
        return self._tables.get(plane.radius)

    def slices_and_power(
        self, children: Int[Tensor, "b n"], terms: ImageTerms, plane: HalfPlane
    ) -> tuple[Complex[Tensor, "b n J"], Float[Tensor, "b n"]]:
        """Slices of each image's children, and b of the image and each."""
        own, shape = children.flatten(), (*children.shape, len(plane))
        rotations, classes = self.children
        table = self._table(plane, len(own))
        if table is None:
            slices, squared = self._cut(rotations[own], classes[own], plane)
        else:
            slices = table[0].index_select(0, own)
            if children.shape[1] > SHARE_FOR_ALL * len(classes):
                power = slice_power(terms, table[1].T, plane).gather(1, children)
                return slices.view(shape), power
            squared = table[1].index_select(0, own)
        return slices.view(shape), slice_power_own(terms, squared.view(shape), plane)

    def _cut(
        self, rotations: Float[Tensor, "m 3 3"], classes: Int[Tensor, " m"], plane: HalfPlane
    ) -> Table:
        slices = extract_slices(self.references, rotations, plane, classes=classes)
        return slices, squared_modulus(slices)


def terms_on_level(
    terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane, level: HalfPlane
) -> ImageTerms:
    """Terms on a level's shells (a prefix of the plane), each image centred by its present
    shift."""
    n = len(level)
    return ImageTerms(terms.data[:, :n] * shift_phases(centre_px, level), terms.power[:, :n])


@contextmanager
def fast_products() -> Iterator[None]:
    """Matrix products of float32 in whatever way the machine is fastest at (bfloat16 inputs where
    it has units for them, sums in float32): good enough to choose cells that are scored again."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
