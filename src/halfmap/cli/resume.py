"""`halfmap resume`: go on with a job that was stopped or killed."""

from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Job folder.")],
    quiet: options.Quiet = False,
) -> None:
    """Go on with a stopped or killed job from its last finished iteration; it ends with the same bytes as if it had never stopped.

    Example: halfmap resume refined
    """
    from halfmap.jobs import resume as job

    say_done("resume", job(folder, quiet=quiet), folder)
