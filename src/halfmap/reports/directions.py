"""How evenly particles were seen from all sides, as numbers and as counts over the sphere."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from halfmap.workspace.machine import write_whole

BAND_DEG = 7.5  # height of a band of tilt, and about the width of its cells
VIEWS = "shown/views.json"
_MOST_VIEWS = 20_000  # views that the coverage is counted of; more change its third digit
_PROBES = 500  # Fourier directions at which coverage is asked for
_LEAST = 0.05  # coverage below which a direction counts as missing; keeps the mean finite


def viewing_directions(
    rotations_deg: Float[np.ndarray, "n 3"], symmetry: Float[np.ndarray, "G 3 3"]
) -> Float[np.ndarray, "m 3"]:
    """Unit vectors from where the object was seen, all symmetry mates: rot, tilt in degrees give
    `(sin tilt cos rot, sin tilt sin rot, cos tilt)`."""
    rot, tilt = np.radians(rotations_deg[:, 0]), np.radians(rotations_deg[:, 1])
    one = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    return with_mates(one, symmetry)


def with_mates(
    directions: Float[np.ndarray, "n 3"], symmetry: Float[np.ndarray, "G 3 3"]
) -> Float[np.ndarray, "m 3"]:
    """Directions and their symmetry mates."""
    return np.einsum("gij,nj->ngi", symmetry, directions).reshape(-1, 3)


def save_views(
    folder: Path,
    directions: Float[np.ndarray, "n 3"],
    symmetry: Float[np.ndarray, "G 3 3"],
    iteration: int,
) -> None:
    """Keep of a job that runs from where its particles are seen after an iteration: counts over the
    sphere and the numbers of evenness, in `shown/views.json`."""
    views = with_mates(directions, symmetry)
    told = {**count_by_cell(views), **evenness(views, len(directions)), "iteration": iteration}
    path = folder / VIEWS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(told))


def read_views(folder: Path) -> dict[str, Any] | None:
    """What `save_views` kept last; None where nothing is, or it cannot be read."""
    try:
        told = json.loads((folder / VIEWS).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) and "counts" in told else None
    except (OSError, ValueError):
        return None


def count_by_cell(views: Float[np.ndarray, "m 3"]) -> dict[str, Any]:
    """Counts of views in bands of tilt, each cut into cells of about equal area.

    Returns:
        `counts`, a list of bands from tilt 0 to 180, each a list of cells from rot -180 to 180;
        `areas`, the share of the sphere of one cell of each band.
    """
    edges = np.radians(np.arange(0, 180 + BAND_DEG / 2, BAND_DEG))
    tilt = np.arccos(np.clip(views[:, 2], -1, 1))
    rot = np.arctan2(views[:, 1], views[:, 0])
    band = np.clip(np.digitize(tilt, edges) - 1, 0, len(edges) - 2)
    counts, areas = [], []
    for b in range(len(edges) - 1):
        middle = (edges[b] + edges[b + 1]) / 2
        cells = max(3, round(2 * math.pi * math.sin(middle) / math.radians(BAND_DEG)))
        column = ((rot[band == b] + math.pi) / (2 * math.pi) * cells).astype(int) % cells
        counts.append(np.bincount(column, minlength=cells).tolist())
        areas.append((math.cos(edges[b]) - math.cos(edges[b + 1])) / 2 / cells)
    return {"counts": counts, "areas": areas}


def evenness(views: Float[np.ndarray, "m 3"], particles: int) -> dict[str, float]:
    """Numbers that say how even the views are.

    Returns:
        `coverage`: the harmonic mean, over Fourier directions, of how often a direction lies in a
        particle's slice, 1 where all are met alike (the sampling compensation factor of Baldwin and
        Lyumkis 2020, up to its constant); `missing`: the share of Fourier directions met less than
        a twentieth as often as the mean; `most`: how many times the mean the densest cell holds.
    """
    if len(views) > _MOST_VIEWS:
        views = views[np.random.default_rng(1).choice(len(views), _MOST_VIEWS, replace=False)]
    probes = _spiral(_PROBES)
    width = math.sin(math.radians(BAND_DEG / 2))  # half the thickness of a slice, as an angle
    met = np.concatenate(
        [(np.abs(part @ views.T) < width).mean(1) for part in np.array_split(probes, 10)]
    )
    relative = met / width  # a random slice meets a direction with the probability of the width
    cells = count_by_cell(views)
    density = [
        max(band) / area / len(views)
        for band, area in zip(cells["counts"], cells["areas"], strict=True)
    ]
    return {
        "coverage": float(1 / np.mean(1 / np.maximum(relative, _LEAST))),
        "missing": float((relative < _LEAST).mean()),
        "most": float(max(density)),
        "particles": particles,
    }


def _spiral(n: int) -> Float[np.ndarray, "n 3"]:
    """n directions spread evenly over the sphere: a Fibonacci spiral."""
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.arange(n) * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)
