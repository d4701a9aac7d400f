"""How much memory a job takes: a sum of what is held at once, for the shells that are summed now.

What an iteration holds grows with the cube of its last shell, and what final maps hold with that of
Nyquist. `python benchmarks/run.py sizes` prints estimates beside the peaks that came of them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from halfmap.fourier import largest_radius
from halfmap.projection import grid_shape

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
CELL = COMPLEX + REAL  # of the two sums
PROGRAM_BYTES = 450_000_000  # Python with its libraries
# of one search: slices of all cells of a grid, and of the passes over them; measured
SEARCH_BYTES = {3: 700_000_000, 2: 300_000_000}
TRANSFORM_BYTES = 600_000_000  # of three axes in the making, a few planes at a time, at most
# of an image in a batch: by pixel itself, its masked copy and both transforms; by sample of the
# half-plane the CTF, noise, the terms of E-step and M-step, and slices of ten significant poses
BYTES_PER_PIXEL, BYTES_PER_SAMPLE = 40, 300
DENSITIES_OF_CURVES = 12  # what a shell correlation of two volumes takes, in volumes


@dataclass(frozen=True)
class JobSize:
    """What a job's memory depends on: the images' box, dimensions, classes, folds of each half, and
    whether there is a symmetry, and final maps with half maps."""

    box: int
    dimensions: int
    n_classes: int
    folds: int = 1
    symmetric: bool = False
    makes_final_maps: bool = True

    @property
    def largest_radius(self) -> int:
        return largest_radius(self.box)

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

    def voxels(self, box: int) -> int:
        return box**self.dimensions

    def image_bytes(self, radius: int) -> int:
        """Of one image in a batch, on shells up to `radius`."""
        return int(BYTES_PER_PIXEL * self.box**2 + BYTES_PER_SAMPLE * math.pi / 2 * radius**2)

    def iteration_bytes(self, scored_radius: int) -> int:
        """Of an iteration without its batch: the sums of all parts, the references that images are
        compared with and the next ones, a search or the making of references, start and mask."""
        radius, k, parts = self.summed_radius(scored_radius), self.n_classes, 2 * self.folds
        own = self.voxels(self.reference_box(radius)) * REAL
        given = (k + 3) * self.voxels(self.box) * REAL
        sums = parts * k * self.cells(radius) * CELL
        references = 2 * parts * k * own
        compared = k * self.cells(min(scored_radius, radius)) * COMPLEX
        searching = compared + SEARCH_BYTES[self.dimensions]
        one_more = k * self.cells(radius) * CELL  # the sums of one set of references
        updating = one_more + self._transform_bytes(radius) + (2 * k + DENSITIES_OF_CURVES) * own
        return PROGRAM_BYTES + given + sums + references + max(searching, updating)

    def least_bytes(self, batch: int, scored_radius: int = 1) -> int:
        """What a job needs in any case that scores images up to a shell: of iterations and final
        maps the more."""
        summed = self.summed_radius(scored_radius)
        iteration = self.iteration_bytes(scored_radius) + batch * self.image_bytes(summed)
        if not self.makes_final_maps:
            return iteration
        last = batch * self.image_bytes(self.largest_radius)
        return max(iteration, self.final_bytes(scored_radius) + last)

    def final_bytes(self, reached_radius: int | None = None) -> int:
        """Of the final maps without a batch: both halves of one class summed to the last shell, the
        references of the last iteration, maps and half maps of all classes."""
        radius = self.largest_radius
        reached = self.summed_radius(reached_radius or 1)
        references = 2 * self.folds * self.n_classes * self.voxels(self.reference_box(reached))
        volumes = self.voxels(self.box) * REAL
        sums = 2 * self.cells(radius) * CELL
        mates = self.cells(radius) * COMPLEX if self.symmetric else 0
        making = max(mates, self._transform_bytes(radius), DENSITIES_OF_CURVES * volumes)
        held = (4 * self.n_classes + 3) * volumes + references * REAL
        return PROGRAM_BYTES + held + sums + making

    def _transform_bytes(self, radius: int) -> int:
        planes = self.box * (4 * radius + 5) * (2 * radius + 3) * COMPLEX
        return min(planes, TRANSFORM_BYTES) + planes if self.dimensions == 3 else 0

    def with_folds(self, folds: int) -> "JobSize":
        return replace(self, folds=folds)


def _transforms_fast(n: int) -> bool:
    """Even, and a product of 2, 3 and 5."""
    rest = n
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return n % 2 == 0 and rest == 1
