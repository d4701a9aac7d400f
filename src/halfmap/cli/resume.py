"""`halfmap resume`: go on with a job that was stopped or killed."""

from pathlib import Path
from typing import Annotated

import typer

from halfmap.cli import options
from halfmap.cli.report import say_done


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Job folder.")],
    device: Annotated[
        options.Device | None,
        typer.Option("--device", help="Where to compute. Default: as the job was started."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="CPU threads. Default: as the job was started."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=options.parse_memory,
            metavar="SIZE",
            help="Memory to stay below. Default: as the job was started.",
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Go on with a stopped or killed job from its last finished iteration; it ends with the same
    bytes as if it had never stopped.

    Everything is as the job was started; --device, --threads and --memory may be others, as on
    another machine.

    Example: halfmap resume refined
    """
    from halfmap.workspace.job import read_job
    from halfmap.workspace.job import resume as job

    result = job(
        folder, device=device.value if device else None, threads=threads, memory=memory, quiet=quiet
    )
    say_done(read_job(folder)["command"], result, folder)
