"""Particles: chosen by class, listed, and a few of them to look at; made in a worker's process."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from halfmap.commands.select import select_classes
from halfmap.pages.pictures import png, to_grey
from halfmap.particles import Particles, load_particles
from halfmap.reports.jobs import find_jobs

PREVIEWED = 10  # particles that are shown before a selection is written
ROWS = 100  # of the table of particles at a time
COLUMNS = {
    "class": "rlnClassNumber",
    "score": "halfmapScore",
    "largest_weight": "rlnMaxValueProbDistribution",
    "log_likelihood": "rlnLogLikeliContribution",
    "poses": "rlnNrOfSignificantSamples",
    "norm": "rlnNormCorrection",
    "defocus_angstrom": "rlnDefocusU",
    "micrograph": "rlnMicrographName",
}


def write_selection(folder: str, classes: list[int], out: str) -> tuple[int, int]:
    """`halfmap select`'s own function: how many particles were kept, and of how many."""
    return select_classes(folder, classes, out)


def _chosen(particles: Particles, classes: list[int]) -> np.ndarray:
    if not classes:
        return np.arange(len(particles))
    return np.flatnonzero(np.isin(particles.class_number, classes))


def some_particles_png(path: str, classes: list[int]) -> bytes:
    """Ten particles of the classes, evenly chosen, low-passed so that they can be seen."""
    particles = load_particles(path, check_images=False)
    rows = _chosen(particles, classes)
    places = np.unique(np.linspace(0, len(rows) - 1, min(PREVIEWED, len(rows))).astype(int))
    images = particles.images(rows[places]) if len(rows) else np.zeros((1, 8, 8), np.float32)
    tiles = [to_grey(smoothed(one)) for one in images]
    wide = np.concatenate(tiles + [np.zeros_like(tiles[0])] * (PREVIEWED - len(tiles)), axis=1)
    return png(wide, 96 * PREVIEWED)


def smoothed(image: np.ndarray) -> np.ndarray:
    """An image in which a particle can be seen: a Gaussian of a hundredth of the box or so."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, image.shape[0] / 64)


def particle_rows(path: str, first: int, sort: str, only: int) -> dict[str, Any]:
    """A part of the table of particles, in the order of the file or of a column."""
    particles = load_particles(path, check_images=False)
    table = particles.table
    found = {name: column for name, column in COLUMNS.items() if column in table}
    rows = _chosen(particles, [only] if only else [])
    down, key = sort.startswith("-"), sort.lstrip("-")
    if key in found and key != "micrograph":
        order = np.argsort(table.floats(found[key])[rows], kind="stable")
        rows = rows[order[::-1] if down else order]
    shown = rows[max(0, first) : max(0, first) + ROWS]
    part = table.take(shown)
    values: dict[str, list[Any]] = {}
    for name, column in found.items():
        text = name == "micrograph"
        values[name] = (
            list(map(str, part.strings(column))) if text else part.floats(column).tolist()
        )
    return {"of": len(rows), "first": first, "index": shown.tolist(), "columns": values}


def class_likelihoods(path: str) -> dict[int, float]:
    """Mean log likelihood of the particles of each class, where the file tells it."""
    particles = load_particles(path, check_images=False)
    if "rlnLogLikeliContribution" not in particles.table:
        return {}
    values = particles.table.floats("rlnLogLikeliContribution")
    numbers = np.unique(particles.class_number)
    return {int(k): float(values[particles.class_number == k].mean()) for k in numbers}


def inputs(root: Path) -> dict[str, list[str]]:
    """STAR files and maps below the folder, to be offered where a form asks for one."""
    stars, maps = [], []
    for folder in [".", *find_jobs(root)]:
        place = root / folder
        if not place.is_dir():
            continue
        with os.scandir(place) as entries:
            names = sorted(one.name for one in entries if one.is_file(follow_symlinks=False))
        prefix = "" if folder == "." else f"{folder}/"
        stars += [prefix + name for name in names if name.endswith((".star", ".cs"))]
        maps += [prefix + name for name in names if name.endswith(".mrc")]
    not_particles = ("fsc.star", "classes.star", "set_aside.star", "ssnr.star")
    stars = [one for one in stars if not one.endswith(not_particles)]
    return {"particles": list(dict.fromkeys(stars)), "maps": list(dict.fromkeys(maps))}
