"""Between the STAR dialects of RELION and cryoSPARC's `.cs`."""

import contextlib
import os
from pathlib import Path
from typing import Literal

import numpy as np

from halfmap.errors import InputError
from halfmap.io.cryosparc import cs_to_star, star_to_cs
from halfmap.io.cs_files import Passthrough, read_cs, write_cs
from halfmap.io.dialects import relion30_blocks, relion31_blocks
from halfmap.io.mrc import open_stack
from halfmap.io.other_programs import refuse_other_files
from halfmap.io.paths import rename_images, resolve, resolve_all, split_image_names
from halfmap.io.relion import (
    ParticleTables,
    as_few_sizes,
    particle_tables,
    pixel_sizes,
    poses,
)
from halfmap.io.stacks import OpenStacks, notes_on_faults, read_headers
from halfmap.io.star import read_star, write_star


def convert(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    passthrough: Passthrough | None = None,
    *,
    relion: Literal["3.1", "3.0"] = "3.1",
    data_dir: str | os.PathLike[str] | None = None,
    contrast: Literal["dark", "white"] | None = None,
) -> tuple[str, ...]:
    """Convert a particle file; the suffixes `.star` and `.cs` say from what to what. Returns notes
    for the user.

    `relion="3.0"` writes one table as RELION 3.0 and before; the default writes optics groups, as
    RELION 3.1 to 5. Image names are kept where they resolve from the new place, see
    `rename_images`; images need not be there.

    Raises:
        InputError: unknown suffix, bad input, no pixel size; for `.cs` also no image size (no
            column, and no stack to look at).
    """
    source, target = Path(input), Path(output)
    refuse_other_files(source)
    for path in (source, target):
        if path.suffix.lower() not in (".star", ".cs"):
            raise InputError(f"{path}: expected a file name ending in .star or .cs")
    if passthrough is not None and source.suffix.lower() != ".cs":
        raise InputError(
            f"passthrough: {passthrough} was given, but only a .cs input has a passthrough file; "
            f"{source} is a STAR file"
        )
    notes: tuple[str, ...] = ()
    if source.suffix.lower() == ".cs":
        data, found_notes = read_cs(source, passthrough=passthrough)
        star, notes = cs_to_star(data, str(source))
        notes = found_notes + notes
    else:
        star = read_star(source)
    tables = particle_tables(star)
    if contrast is not None:
        sign = [-1 if contrast == "dark" else 1] * len(tables.particles)
        particles = tables.particles.with_columns({"csBlobSign": sign})
        optics = None if tables.optics is None else tables.optics.without("csBlobSign")
        tables = ParticleTables(tables.path, particles, optics, tables.optics_group)
    names = split_image_names(tables.particles.strings("rlnImageName").tolist(), star.path)
    found = resolve_all(names.files, star.path, data_dir)
    expected = tables.floats("rlnImageSize") if tables.has("rlnImageSize") else None
    headers = read_headers(star.path, names, found, data_dir, OpenStacks(), expected_box=expected)
    notes += notes_on_faults(star.path, names, headers.faults)
    size = pixel_sizes(tables)
    if size is None:
        size = as_few_sizes(headers.pixel_size_of(names))
    if size.min() <= 0:
        raise InputError(
            f"{source}: no pixel size: no column _rlnImagePixelSize (or _rlnDetectorPixelSize "
            "with _rlnMagnification); add it"
        )
    box = headers.box_of(names) if expected is None else expected.astype(np.int64)
    particles = rename_images(tables.particles, names, found, target)
    tables = ParticleTables(tables.path, particles, tables.optics, tables.optics_group)
    if target.suffix.lower() == ".cs":
        if box.min() <= 0:
            raise InputError(
                f"{source}: no image size: no column _rlnImageSize, and {names.files[0]} was not "
                "found; add the column"
            )
        cs, lost = star_to_cs(
            tables,
            box=box,
            pixel_size_angstrom=size,
            micrograph_sizes=_micrograph_sizes(tables, data_dir),
        )
        write_cs(target, cs)
        return notes + lost
    shift = poses(tables, size)[1]
    if relion == "3.0":
        write_star(target, relion30_blocks(tables, shift_angstrom=shift, pixel_size_angstrom=size))
    else:
        write_star(
            target,
            relion31_blocks(
                tables,
                shift_angstrom=shift,
                pixel_size_angstrom=size,
                box=box if box.all() else None,
            ),
        )
    return notes


def _micrograph_sizes(
    tables: ParticleTables, data_dir: str | os.PathLike[str] | None
) -> dict[str, tuple[int, int]]:
    """Pixels along x and y of the micrographs that are there as MRC, by name."""
    sizes = {}
    if "rlnMicrographName" in tables.particles:
        for name in set(tables.particles.strings("rlnMicrographName").tolist()):
            place = resolve(name, tables.path, data_dir)
            with contextlib.suppress(InputError):  # of another format
                if place is not None:
                    _, rows, columns = open_stack(place).shape
                    sizes[name] = (columns, rows)
    return sizes
