"""`halfmap convert`: particle files from one program's dialect to another's."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="STAR of any RELION version, or cryoSPARC .cs (its passthrough is found beside it).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".star (RELION 3.1 and newer) or .cs.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Convert a particle file: any STAR dialect or .cs in, RELION 3.1 STAR or .cs out.

    Example: halfmap convert cryosparc_P1_J20_particles.cs particles.star
    """
    from halfmap.errors import InputError
    from halfmap.io.convert import convert as job

    if out.exists() and not overwrite:
        raise InputError(f"{out}: the file exists; choose another name, or --overwrite it")
    job(source, out)
    typer.echo(f"convert: wrote {out}")
