"""Go on with a job that was stopped or killed."""

import contextlib
import inspect
import os
from pathlib import Path
from typing import Any

import halfmap
from halfmap.commands._options import Annotated, DeviceName, Option, Quiet, parse_memory
from halfmap.distributed import ask_first
from halfmap.errors import InputError
from halfmap.options import command
from halfmap.workspace import earlier_job
from halfmap.workspace.job import can_resume, read_job


@command
def resume(
    folder: Annotated[str | Path, Option("Job folder", positional=True, metavar="DIR")],
    *,
    device: Annotated[
        DeviceName | None, Option("Where to compute", unset="as the job was started")
    ] = None,
    threads: Annotated[
        int | None,
        Option("CPU threads", at_least=1, metavar="N", unset="as the job was started"),
    ] = None,
    memory: Annotated[
        int | None,
        Option(
            "Memory to stay below, for example 8GB",
            above=0,
            metavar="SIZE",
            unset="as the job was started",
            parse=parse_memory,
        ),
    ] = None,
    quiet: Quiet = False,
) -> Any:
    """Go on with a stopped or killed job from its last finished iteration; it ends with the same
    bytes as if it had never stopped.

    Calls `halfmap.<command>` with the saved arguments, from the working directory it was started
    in, and returns what that function returns. Everything is as the job was started; device,
    threads and memory may be others, as on another machine.

    Example: halfmap resume refined

    Raises:
        InputError: `folder` is no job folder, is finished, or its command cannot go on.
    """
    changed = {"device": device, "threads": threads, "memory": memory}

    def recorded() -> dict[str, Any]:
        earlier_job.recover(Path(folder))
        return read_job(folder)

    record = ask_first(recorded)
    if record["status"] == "finished":
        raise InputError(
            f"{folder}: this job is finished, there is nothing to resume; halfmap info {folder} "
            "shows it"
        )
    if not can_resume(record["command"]):
        raise InputError(
            f"{folder}: halfmap {record['command']} starts from the beginning; run it again with "
            "--overwrite"
        )
    function = getattr(halfmap, record["command"])
    given = {
        "seed": record["seed"],
        "quiet": quiet,
        **{name: value for name, value in changed.items() if value is not None},
    }
    accepted = inspect.signature(function).parameters
    arguments = {
        **record["parameters"],
        **{name: value for name, value in given.items() if name in accepted},
        "out": Path(folder).absolute(),
        "resume": True,
    }
    where = record.get("working_directory", ".")
    with contextlib.chdir(where if os.path.isdir(where) else "."):
        return function(**arguments)
