"""Rows that show one particle: the same image twice, or two picks of one place in a micrograph."""

import os
from dataclasses import dataclass

import numpy as np

from halfmap.particles import Particles

# RELION's default, when it removes duplicates: centres of particles are farther apart
MIN_DISTANCE_ANGSTROM = 30.0
_COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")
_MICROGRAPH_PIXELS = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")
# with these, rows are tilts of one particle, or lie in tomograms: places in a plane say nothing
_OF_TOMOGRAMS = ("rlnTomoParticleName", "rlnCoordinateZ", "rlnTomoName")


@dataclass(frozen=True)
class Copies:
    """`unit` (n,) numbers the particles that rows show: rows of one number are copies of each
    other. `same_image` and `near` count the rows that repeat an earlier one, by the image and by
    the place."""

    unit: np.ndarray
    same_image: int
    near: int
    min_distance_angstrom: float

    @property
    def count(self) -> int:
        return self.same_image + self.near

    @property
    def repeated(self) -> np.ndarray:
        """Rows (n,) that repeat an earlier one."""
        first = np.unique(self.unit, return_index=True)[1]
        repeated = np.ones(len(self.unit), bool)
        repeated[first] = False
        return repeated

    @property
    def words(self) -> str:
        """How many of which kind."""
        kinds = [f"{self.same_image} of the same stack and number"] * bool(self.same_image)
        near = f"{self.near} within {self.min_distance_angstrom:g} A of another in the micrograph"
        return " and ".join(kinds + [near] * bool(self.near))


def find_copies(particles: Particles, min_distance_angstrom: float | None = None) -> Copies:
    """Find rows of the same stack and number, and rows whose centres (coordinate less origin) in
    one micrograph are closer than `min_distance_angstrom`; chains of such are one particle."""
    reach = MIN_DISTANCE_ANGSTROM if min_distance_angstrom is None else min_distance_angstrom
    image = _image_numbers(particles)
    same = len(image) - (int(image.max()) + 1 if len(image) else 0)
    pairs = _near_pairs(particles, reach)
    if not len(pairs):
        return Copies(image, same, 0, reach)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = np.unique(image, return_index=True)[1]
    links = np.concatenate([pairs, np.stack([np.arange(len(image)), first[image]], axis=1)])
    graph = coo_array((np.ones(len(links), bool), links.T), shape=(len(image),) * 2)
    count, unit = connected_components(graph, directed=False)
    return Copies(unit.astype(np.int64), same, int(image.max()) + 1 - count, reach)


def _image_numbers(particles: Particles) -> np.ndarray:
    """One number for each image, whatever its stack is called, and by whatever links it is
    reached."""
    places = [
        os.path.realpath(found) if found is not None else name
        for name, found in zip(particles.files, particles.stack_paths, strict=True)
    ]
    file = np.unique(places, return_inverse=True)[1][particles.image_file]
    keys = np.stack([file, particles.image_index], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _near_pairs(particles: Particles, reach_angstrom: float) -> np.ndarray:
    """Pairs (m, 2) of rows in one micrograph whose centres are closer than the reach; none where
    the file does not tell the places."""
    table, optics = particles.table, particles.optics
    wanted = (*_COORDINATES, "rlnMicrographName")
    if not all(name in table for name in wanted) or reach_angstrom <= 0:
        return np.zeros((0, 2), np.int64)
    if any(name in table or (optics is not None and name in optics) for name in _OF_TOMOGRAMS):
        return np.zeros((0, 2), np.int64)
    place = np.stack([table.floats(name) for name in _COORDINATES], axis=1)
    known = np.isfinite(place).all(axis=1)
    if not known.any() or not np.ptp(place[known], axis=0).any():  # written to write something
        return np.zeros((0, 2), np.int64)
    from scipy.spatial import cKDTree

    place = place * micrograph_pixel_angstrom(particles)[:, None] - particles.shift_angstrom
    order = np.argsort(particles.micrograph, kind="stable")
    starts = np.flatnonzero(np.diff(particles.micrograph[order], prepend=-1))
    found = []
    for rows in np.split(order, starts[1:]):
        rows = rows[known[rows]]
        # at exactly the reach two particles are two
        pairs = cKDTree(place[rows]).query_pairs(
            np.nextafter(reach_angstrom, 0), output_type="ndarray"
        )
        found.append(rows[pairs.reshape(-1, 2)])
    return np.concatenate(found)


def micrograph_pixel_angstrom(particles: Particles) -> np.ndarray:
    """Pixel size of the micrograph in which coordinates count (n,); that of the images, which is
    no smaller, if no column tells."""
    for table in (particles.optics, particles.table):
        for name in _MICROGRAPH_PIXELS:
            if table is not None and name in table:
                values = table.floats(name)
                return values if table is particles.table else values[particles.optics_group]
    return np.full(len(particles), particles.pixel_size_angstrom)
