"""The last line of a job."""

from pathlib import Path

import typer


def say_done(command: str, result: object, out: Path) -> None:
    """Resolution, if the job has one, and where its results are."""
    resolution = getattr(result, "resolution_angstrom", None)
    reached = f"{resolution:.2f} Angstrom; " if isinstance(resolution, float) else ""
    typer.echo(f"{command}: {reached}results in {out}")
