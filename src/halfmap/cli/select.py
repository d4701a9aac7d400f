"""`halfmap select`: keep the particles of some classes."""

from pathlib import Path
from typing import Annotated

import typer


def select(
    source: Annotated[Path, typer.Argument(metavar="DIR|STAR", help="Job folder of a classification, or its particle STAR.")],
    classes: Annotated[str, typer.Option(metavar="1,4,7", help="Class numbers to keep; ranges such as 1-5 too.")],
    out: Annotated[Path, typer.Option("--out", metavar="STAR", help="STAR file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write the particles of the chosen classes to a new STAR.

    Example: halfmap select classes --classes 1,4,7 --out good.star
    """
    from halfmap.selection import select_classes

    kept, total = select_classes(source, classes, out, overwrite=overwrite)
    typer.echo(f"select: {kept} of {total} particles in {out}")
