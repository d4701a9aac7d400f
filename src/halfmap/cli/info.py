"""`halfmap info`: what a file or job folder holds."""

import json
from pathlib import Path
from typing import Annotated

import typer


def info(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="STAR, .cs, MRC maps and stacks, job folders."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per file, for programs.")
    ] = False,
) -> None:
    """Tell what a STAR, .cs or MRC file or a job folder holds.

    Example: halfmap info particles.star map.mrc refined
    """
    from halfmap.commands.info import describe

    for file in files:
        facts = describe(file)
        if as_json:
            typer.echo(json.dumps(facts))
            continue
        typer.echo(f"{file}: {facts.pop('kind')}")
        for name, value in facts.items():
            if name != "file":
                typer.echo(f"  {name.replace('_', ' '):24} {_words(value)}")


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
