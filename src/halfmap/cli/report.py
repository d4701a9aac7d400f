"""The last line of a job."""

import math
from pathlib import Path

import typer


def say_done(command: str, result: object, out: Path) -> None:
    """Resolution, if the job has one, and where its results are."""
    resolution = getattr(result, "resolution_angstrom", None)
    threshold = (
        0.5 if command == "class3d" else 0.143
    )  # the halves of a class share their reference
    reached = f"{in_words(resolution, threshold)}; " if isinstance(resolution, float) else ""
    typer.echo(f"{command}: {reached}results in {out}")


def in_words(resolution_angstrom: float, threshold: float) -> str:
    """`7.50 Angstrom`, or that there is none: infinity is a curve that begins below the
    threshold."""
    return (
        f"{resolution_angstrom:.2f} Angstrom"
        if math.isfinite(resolution_angstrom)
        else f"no resolution at {threshold:g}"
    )
