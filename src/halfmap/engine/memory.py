"""How much memory a job takes: a sum of what is held at once, for the shells that are summed now.

What an iteration holds grows with the cube of its last shell, and what final maps hold with that of
Nyquist. `python benchmarks/run.py sizes` prints estimates beside the peaks that came of them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from halfmap.fourier import largest_radius
from halfmap.gridding import CELLS_AT_ONCE, PADDING
from halfmap.projection import grid_shape
from halfmap.so3 import radius_of_step

# RELION's current image size is the same thought: the sums reach beyond what is scored, so that
# the resolution can grow by as much as an iteration ever lets it (methods.reference_update)
SUMMED_BEYOND_SCORED = 1.25
SUMMED_SHELLS_MORE = 3
SUMMED_SHARE_OF_BOX = 4  # and no less than half of what there is
# References are sampled as coarsely as their last shell allows, where that saves memory: a volume
# of 160 takes 16 MB. The margin holds what a mask's edge, five pixels of the image, adds.
COARSENED_ABOVE_BOX = 160
MARGIN_SHELLS = 8
COARSENED_BELOW = 0.85  # of the box; above, a third of the memory is all there is to gain

COMPLEX, REAL = 8, 4  # bytes
CELL = COMPLEX + REAL  # of the two sums, and of a slice and its square
# Python with its libraries, drawn pictures and compiled kernels, by dimensions: a job on tiny
# images; slices of volumes have kernels of their own
PROGRAM_BYTES = {2: 450_000_000, 3: 500_000_000}
# arrays of a piece of a grid that a transform along one axis holds: rows and their weights, padded,
# transformed, cropped
ARRAYS_OF_A_TRANSFORM = 4
# of an image in a batch: by pixel itself, its masked copy and both transforms; by sample of the
# half-plane the CTF, noise, the terms of E-step and M-step
BYTES_PER_PIXEL, BYTES_PER_SAMPLE = 40, 150
POSES_OF_AN_IMAGE = 4  # significant, once they are refined, in the mean
# a shell correlation holds both volumes masked, and their transforms
VOLUMES_OF_A_CORRELATION = 4
# with random phases: what is below their first shell and its masked transform of both, the powers
# beyond, and two autocorrelations
VOLUMES_OF_FINAL_CURVES = 10


@dataclass(frozen=True)
class SearchSize:
    """What a global search holds: cells of its coarse grid and their children, of one class, the
    last shells that its three levels are scored on, and how many poses stand for a posterior on
    the grid (`pose_search.adaptive`)."""

    cells: int
    children: int
    shells: tuple[int, int, int]
    entries: int = 256
    table_bytes: int = 1 << 30
    at_once_bytes: int = 30_000_000  # scores and slices between a product and the pass over it

    @classmethod
    def of(
        cls, box: int, dimensions: int, radius_px: float, step_deg: float, operators: int
    ) -> "SearchSize":
        """Of the grids of `pose_search.sampling`."""
        if dimensions == 2:
            cells, fine = math.ceil(180 / step_deg), step_deg
            children = 2 * cells
        else:
            order = max(1, math.ceil(math.log2(60 / step_deg) - 1e-6))
            fine = 60 / 2**order
            children = 72 * 8**order // operators
            cells = children // 8
        few, many = (radius_of_step(step, box, radius_px) for step in (2 * fine, fine))
        return cls(cells, children, (few, round(math.sqrt(few * many)), many))

    def bytes(self, radius: int, n_classes: int, images: int) -> int:
        """Of a search of so many images on shells up to `radius`: slices of the coarse cells, and
        tables of all children's on levels where as many are asked for."""
        each = [n_classes * CELL * samples(min(radius, shells)) for shells in self.shells]
        held = self.at_once_bytes + self.cells * each[0]
        if self.on_the_grid(radius):
            return held
        for size, asked in ((each[1], CHILDREN_SIFTED), (each[2], CHILDREN_FINISHED)):
            if images * asked > n_classes * self.children and self.children * size <= (
                self.table_bytes
            ):
                held += self.children * size
        return held

    def on_the_grid(self, radius: int) -> bool:
        """Whether coarse cells are the posterior."""
        return radius <= self.shells[0]


# cells of the finer grid at which an image is scored, in the mean, on the two levels that have
# tables: of the embedded phantom at an SNR of 0.1
CHILDREN_SIFTED, CHILDREN_FINISHED = 200, 8


def samples(radius: int) -> int:
    """Of a half-plane."""
    return int(math.pi / 2 * radius**2)


@dataclass(frozen=True)
class JobSize:
    """What a job's memory depends on: the images' box, dimensions, classes, folds of each half, how
    many symmetry operators there are, whether final maps are made with half maps, how many images
    there are (None: many) and how large the particle is (None: two thirds of the box), the
    step of the search, and whether there are iterations at all."""

    box: int
    dimensions: int
    n_classes: int
    folds: int = 1
    operators: int = 1
    makes_final_maps: bool = True
    images: int | None = None
    radius_px: float | None = None
    angular_step_deg: float = 7.5
    iterates: bool = True

    @property
    def largest_radius(self) -> int:
        return largest_radius(self.box)

    @property
    def parts(self) -> int:
        return 2 * self.folds

    @property
    def search(self) -> SearchSize:
        radius = self.box / 3 if self.radius_px is None else self.radius_px
        step = self.angular_step_deg
        return SearchSize.of(self.box, self.dimensions, radius, step, self.operators)

    def summed_radius(self, scored_radius: int) -> int:
        """Up to which shell images are summed while they are scored to another: a quarter and three
        shells more, and no less than half of what there is."""
        reach = math.ceil(SUMMED_BEYOND_SCORED * scored_radius) + SUMMED_SHELLS_MORE
        return min(max(reach, self.box // SUMMED_SHARE_OF_BOX), self.largest_radius)

    def reference_box(self, radius: int) -> int:
        """The box that references with shells up to `radius` are kept in: that of the images, or an
        even one that FFTs like, of the same extent and larger pixels."""
        box, enough = self.box, 2 * (radius + MARGIN_SHELLS)
        if self.dimensions == 2 or box <= COARSENED_ABOVE_BOX or enough > COARSENED_BELOW * box:
            return box
        return next(n for n in range(enough, box + 1) if n == box or _transforms_fast(n))

    def cells(self, radius: int) -> int:
        """Of the padded grid that holds every shell up to a radius."""
        return int(np.prod(grid_shape(radius, self.dimensions)))

    def volume(self, box: int) -> int:
        """Bytes of a density."""
        return REAL * box**self.dimensions

    def image_bytes(self, radius: int) -> int:
        """Of one image in a batch, on shells up to `radius`, with the slices of its poses."""
        slices = 2 * CELL * POSES_OF_AN_IMAGE  # as they are summed, and weighted for insertion
        return BYTES_PER_PIXEL * self.box**2 + (BYTES_PER_SAMPLE + slices) * samples(radius)

    def batch_bytes(self, batch: int, scored_radius: int) -> int:
        """Of a batch in an iteration."""
        summed, search, k = self.summed_radius(scored_radius), self.search, self.n_classes
        batch = self._in_a_batch(batch)
        if not search.on_the_grid(scored_radius):
            return batch * self.image_bytes(summed)
        slices = min(batch * search.entries, k * search.cells)  # of all poses of a posterior
        alone = BYTES_PER_PIXEL * self.box**2 + BYTES_PER_SAMPLE * samples(summed)
        return batch * alone + 2 * CELL * slices * samples(summed)

    def _in_a_batch(self, batch: int) -> int:
        return batch if self.images is None else min(batch, -(-self.images // self.parts))

    def iteration_bytes(self, scored_radius: int, batch: int = 1) -> int:
        """Of an iteration: start and mask, the sums of all parts, the references that images are
        compared with; and what is most of a batch and its search, symmetry mates, half maps and
        their correlation, and the making of the next references."""
        k, parts, radius = self.n_classes, self.parts, self.summed_radius(scored_radius)
        own, grid = self.volume(self.reference_box(radius)), k * self.cells(radius)
        held = (k + 2) * self.volume(self.box) + parts * k * own + parts * grid * CELL
        compared = 2 * k * self.cells(min(scored_radius, radius)) * COMPLEX  # and the other half's
        images = (1 << 30) if self.images is None else self.images // self.parts
        searching = compared + self.search.bytes(scored_radius, k, images)
        mates = grid * COMPLEX if self.operators > 1 else 0
        joined = grid * CELL if self.folds > 1 or not self.makes_final_maps else 0
        making = joined + self._transform_bytes(radius, self.reference_box(radius))
        curves = max(making + 2 * k * own, (2 * k + VOLUMES_OF_A_CORRELATION) * own)
        updating = max(mates, curves, making + (parts + 1) * k * own)
        searching += self.batch_bytes(batch, scored_radius)
        return PROGRAM_BYTES[self.dimensions] + held + max(searching, updating)

    def check_bytes(self, scored_radius: int, batch: int = 1) -> int:
        """Of an iteration in which classes are checked (`methods.class_check`): the sums of all
        parts twice more, of earlier draws and along the directions of labels."""
        grid = self.n_classes * self.cells(self.summed_radius(scored_radius))
        return self.iteration_bytes(scored_radius, batch) + 2 * self.parts * grid * CELL

    def final_bytes(self, batch: int = 1) -> int:
        """Of the final maps: start and mask, the last references of all parts, maps and half maps
        of all classes, both halves of one class summed to the last shell, and what is most of a
        batch, symmetry mates and the making of a half map; then the sums of both, curves and the
        map."""
        k, radius, volume = self.n_classes, self.largest_radius, self.volume(self.box)
        last = self.parts * k * self.volume(self.reference_box(self.box // SUMMED_SHARE_OF_BOX))
        held = (k + 2 + 3 * k) * volume + (last if self.iterates else 0)
        sums, transform = self.cells(radius) * CELL, self._transform_bytes(radius, self.box)
        mates = self.cells(radius) * COMPLEX if self.operators > 1 else 0
        batches = self._in_a_batch(batch) * self.image_bytes(radius)
        halves = 2 * sums + max(batches, mates, transform + 3 * volume)
        of_both = sums + 2 * volume + max(transform + volume, VOLUMES_OF_FINAL_CURVES * volume)
        return PROGRAM_BYTES[self.dimensions] + held + max(halves, of_both)

    def least_bytes(self, batch: int, scored_radius: int = 1) -> int:
        """What a job needs in any case that scores images up to a shell, in batches: of iterations
        and final maps the more."""
        if not self.iterates:
            return self.final_bytes(batch)
        iteration = self.iteration_bytes(scored_radius, batch)
        return max(iteration, self.final_bytes(batch)) if self.makes_final_maps else iteration

    def _transform_bytes(self, radius: int, box: int) -> int:
        """Of a transform along one axis after the other: planes padded in no direction, and pieces
        of them."""
        if self.dimensions == 2:
            return 0
        rows, columns = 4 * radius + 5, 2 * radius + 3
        piece = min(PADDING * box * rows * columns, max(CELLS_AT_ONCE, PADDING * box * columns))
        return COMPLEX * (box * rows * columns + ARRAYS_OF_A_TRANSFORM * piece)

    def with_folds(self, folds: int) -> "JobSize":
        return replace(self, folds=folds)


def _transforms_fast(n: int) -> bool:
    """Even, and a product of 2, 3 and 5."""
    rest = n
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return n % 2 == 0 and rest == 1
