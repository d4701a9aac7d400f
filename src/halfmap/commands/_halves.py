"""Half sets and folds: those of the file are kept, and copies of a particle are never in two."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from halfmap.commands._copies import find_copies
from halfmap.commands._summaries import counted
from halfmap.particles import Particles
from halfmap.workspace.progress import Progress

# a share of the particles: a chain of neighbours that holds more could leave a half empty
LARGEST_UNIT = 0.25


def divide_into_halves(
    particles: Particles, seed: int, *, progress: Progress | None = None, anew: bool = False
) -> Int[Tensor, " N"]:
    """0 or 1 per particle: the file's rlnRandomSubset where a row has it (unless it is to be drawn
    `anew`), else at random.

    Rows that show one particle stay together: tilts (rlnTomoParticleName), and copies of an image
    (see `find_copies`), which would tell a resolution of noise. A copy joins the first row that has
    a half set. What that changes is told.
    """
    unit, told = _units(particles)
    half = _drawn(unit, 2, [seed, 1])
    given = np.zeros_like(particles.half_set) if anew else particles.half_set
    rows = np.flatnonzero(given > 0)
    if len(rows):
        first, at = np.unique(unit[rows], return_index=True)
        half_of_unit = np.full(int(unit.max()) + 1, -1)
        half_of_unit[first] = given[rows[at]] - 1
        half = np.where(half_of_unit[unit] >= 0, half_of_unit[unit], half)
        added, moved = len(given) - len(rows), int((half[rows] != given[rows] - 1).sum())
        if added and progress is not None:
            progress.note(
                f"{particles.path}: {added} of {counted(len(given), 'row')} have no half set "
                f"(_rlnRandomSubset 0); they are added to the two at random, the other "
                f"{len(rows)} stay where they are"
            )
        if moved:
            told += f"; {moved} of them are moved to the half of the first"
    if told and progress is not None:
        progress.note(
            f"{particles.path}: {told}; copies are kept in one half; halfmap select --unique "
            "removes them"
        )
    return torch.from_numpy(half.astype(np.int64))


def divide_into_folds(particles: Particles, n: int, seed: int) -> Int[Tensor, " N"]:
    """0 .. n - 1 per particle, at random; rows that show one particle stay together."""
    return torch.from_numpy(_drawn(_units(particles)[0], n, [seed, 2]).astype(np.int64))


def halves_at_known_poses(particles: Particles, seed: int, progress: Progress) -> Int[Tensor, " N"]:
    """As `divide_into_halves`, and drawn at random where the file is one half of a refined data set
    by itself; the user is told."""
    alone = len(particles) > 1 and set(particles.half_set.tolist()) in ({1}, {2})
    if alone:
        progress.note(
            f"{particles.path}: column _rlnRandomSubset is {particles.half_set[0]} in every row "
            "used; the halves are drawn at random"
        )
    return divide_into_halves(particles, seed, progress=progress, anew=alone)


def _units(particles: Particles) -> tuple[np.ndarray, str]:
    """The physical particle of each row, from 0, and what is to be told of copies."""
    if "rlnTomoParticleName" in particles.table:
        names = particles.table.strings("rlnTomoParticleName").astype(str)
        return np.unique(names, return_inverse=True)[1], ""
    copies = find_copies(particles)
    if np.bincount(copies.unit).max() > max(2, LARGEST_UNIT * len(particles)):
        copies = find_copies(particles, 0.0)  # so dense that places do not tell copies
    if not copies.count:
        return np.arange(len(particles)), ""
    rows = "is a copy" if copies.count == 1 else "are copies"
    return copies.unit, f"{counted(copies.count, 'row')} {rows} ({copies.words})"


def _drawn(unit: np.ndarray, n: int, seeds: Sequence[int]) -> np.ndarray:
    """0 .. n - 1 per physical particle, at random."""
    order = np.random.default_rng(seeds).permutation(int(unit.max()) + 1)
    return order[unit] % n
