"""`halfmap select`: keep the particles of some classes."""

from pathlib import Path
from typing import Annotated

import typer


def select(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|STAR", help="Job folder of a classification, or its particle STAR."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="STAR", help="STAR file to write.")],
    classes: Annotated[
        str | None,
        typer.Option(metavar="1,4,7", help="Class numbers to keep; ranges such as 1-5 too."),
    ] = None,
    resolved_within: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Keep 2D classes resolved to X times the median particle's resolution or better; 1.5 drops junk.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
) -> None:
    """Write the particles of the chosen classes to a new STAR.

    Example: halfmap select classes --classes 1,4,7 --out good.star
    """
    from halfmap.commands.select import best_resolved_classes, parse_classes, select_classes
    from halfmap.errors import InputError

    if (classes is None) == (resolved_within is None):
        raise InputError("select: expected either --classes or --resolved-within")
    wanted = (
        parse_classes(classes)
        if classes is not None
        else best_resolved_classes(source, within=resolved_within or 0.0)
    )
    kept, total = select_classes(source, wanted, out, overwrite=overwrite)
    named = "" if classes is not None else f" (classes {', '.join(map(str, wanted))})"
    typer.echo(f"select: {kept} of {total} particles in {out}{named}")
