"""`halfmap convert`: particle files from one program's dialect to another's."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options


class Relion(StrEnum):
    """STAR dialects."""

    v31 = "3.1"
    v30 = "3.0"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="STAR of any RELION version, or cryoSPARC .cs (its passthrough is found beside it).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".star or .cs.")],
    passthrough: Annotated[
        Path | None,
        typer.Option(
            metavar="CS", help="The .cs file with further columns, where it is not found beside IN."
        ),
    ] = None,
    relion: Annotated[
        Relion,
        typer.Option(help="STAR to write: optics groups as in RELION 3.1 to 5, or one table."),
    ] = Relion.v31,
    data_dir: options.DataDir = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
) -> None:
    """Convert a particle file: any STAR dialect or .cs in, STAR of RELION 3.1 (or 3.0) or .cs out.

    Example: halfmap convert cryosparc_P1_J20_particles.cs particles.star
    """
    from halfmap.errors import InputError
    from halfmap.io.convert import convert as job

    if out.exists() and not overwrite:
        raise InputError(f"{out}: the file exists; choose another name, or --overwrite it")
    for note in job(source, out, passthrough, relion=relion.value, data_dir=data_dir):
        typer.echo(note, err=True)
    typer.echo(f"convert: wrote {out}")
