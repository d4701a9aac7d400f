"""The last line of a job."""

import math
from pathlib import Path

import typer


def say_done(command: str, result: object, out: Path) -> None:
    """What was reached and where, or at least where."""
    typer.echo(f"{command}: {getattr(result, 'summary', f'results in {out}')}")


def in_words(resolution_angstrom: float, threshold: float) -> str:
    """`7.50 Angstrom`, or that there is none: infinity is a curve that begins below the
    threshold."""
    return (
        f"{resolution_angstrom:.2f} Angstrom"
        if math.isfinite(resolution_angstrom)
        else f"no resolution at {threshold:g}"
    )
