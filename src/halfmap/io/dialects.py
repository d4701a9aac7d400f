"""The two layouts of RELION's particle STAR: optics groups (3.1 and newer) and one table (3.0 and
before)."""

from collections.abc import Iterable

import numpy as np

from halfmap.ctf_parameters import LISTS, PER_GROUP
from halfmap.io.relion import OLD_ORIGINS, ORIGINS, ParticleTables
from halfmap.io.table import Table


def relion31_blocks(
    tables: ParticleTables,
    *,
    shift_angstrom: np.ndarray,
    pixel_size_angstrom: np.ndarray,
    box: np.ndarray | None = None,
) -> dict[str, Table]:
    """Blocks `optics` and `particles` of RELION 3.1 and newer; shift, pixel size and box are those
    of each stored image.

    The one-table layout gets one optics group for each set of microscope values and grid of images,
    and its shifts in pixels (rlnOriginX, rlnOriginY) are replaced by Angstrom. All other cells keep
    their text; columns that RELION 3.1 needs are added where missing.
    """
    particles, optics = tables.particles, tables.optics
    inverse = tables.optics_group
    if any(name in particles for name in OLD_ORIGINS):
        if ORIGINS[0] not in particles:
            particles = particles.with_columns(dict(zip(ORIGINS, shift_angstrom.T, strict=True)))
        particles = particles.without(*OLD_ORIGINS)
    if optics is None:
        per_group = {
            name: np.unique(particles.strings(name), return_inverse=True)[1].ravel()
            if name in LISTS
            else tables.floats(name)
            for name in PER_GROUP
            if name in particles
        }
        grid = [pixel_size_angstrom] if box is None else [pixel_size_angstrom, box]
        keys = np.stack([tables.optics_group, *grid, *per_group.values()], axis=1)
        groups, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.ravel()
        kept = "rlnOpticsGroup" in particles and len(groups) == len(np.unique(tables.optics_group))
        numbers = particles.ints("rlnOpticsGroup")[first] if kept else np.arange(1, len(groups) + 1)
        optics = Table.from_columns({"rlnOpticsGroup": numbers}, path=tables.path)
        named = (
            "rlnOpticsGroupName",
            "rlnImagePixelSize",
            "rlnImageSize",
            "rlnImageDimensionality",
        )
        optics = optics.with_cells(
            {
                name: particles.cells(name).take(first)
                for name in (*named, *per_group)
                if name in particles
            }
        )
        if not kept:
            particles = particles.with_columns({"rlnOpticsGroup": numbers[inverse]})
    added: dict[str, Iterable[object]] = {
        "rlnOpticsGroupName": [f"opticsGroup{label}" for label in optics.strings("rlnOpticsGroup")],
        "rlnImagePixelSize": _by_group(pixel_size_angstrom, inverse, len(optics)),
        "rlnImageDimensionality": [2] * len(optics),
    }
    if box is not None:
        added["rlnImageSize"] = _by_group(box, inverse, len(optics))
    if "rlnOpticsGroup" not in particles:
        particles = particles.with_columns(
            {"rlnOpticsGroup": optics.ints("rlnOpticsGroup")[tables.optics_group]}
        )
    optics = optics.with_columns(
        {name: values for name, values in added.items() if name not in optics}
    )
    return {"optics": optics, "particles": particles}


def _by_group(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """The value of each group's first image; of a group without images, that of the first row."""
    out = np.full(n_groups, values[0])
    found, first = np.unique(group, return_index=True)
    out[found] = values[first]
    return out


def relion30_blocks(
    tables: ParticleTables, *, shift_angstrom: np.ndarray, pixel_size_angstrom: np.ndarray
) -> dict[str, Table]:
    """The one-table block of RELION 3.0 and before: optics columns repeated in each row, shifts in
    pixels; shift and pixel size are those of each stored image.

    The pixel size is written as a magnification of 10000 and a detector pixel of as many
    micrometres as the pixel has Angstrom.
    """
    table, n = tables.particles, len(tables.particles)
    if tables.optics is not None:
        table = table.with_cells(
            {
                name: tables.optics.cells(name).take(tables.optics_group)
                for name in tables.optics.names
            }
        )
    added: dict[str, Iterable[object]] = {}
    if ORIGINS[0] in table or ORIGINS[1] in table:
        table = table.without(*ORIGINS)
        added |= dict(zip(OLD_ORIGINS, (shift_angstrom.T / pixel_size_angstrom), strict=True))
    names = ("rlnMagnification", "rlnDetectorPixelSize")
    stale = True  # or there is none, or what other programs left says another pixel size
    if all(name in table for name in names):
        magnification, detector = (table.floats(name) for name in names)
        stale = not np.allclose(detector * 1e4, pixel_size_angstrom * magnification, rtol=1e-3)
    if stale:
        added |= {
            "rlnMagnification": [10000.0] * n,
            "rlnDetectorPixelSize": pixel_size_angstrom,
        }
    return {"": table.with_columns(added)}
