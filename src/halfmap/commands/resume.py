"""Go on with a job that was stopped or killed."""

import contextlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import halfmap
from halfmap.commands._options import Annotated, DeviceName, Option, Quiet, parse_memory
from halfmap.distributed import ask_first
from halfmap.errors import InputError
from halfmap.options import command, options_of
from halfmap.workspace import earlier_job
from halfmap.workspace.job import can_resume, read_job
from halfmap.workspace.moved import brought_here, keep_place


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
    threads and memory may be others, as on another machine. Where the project folder has moved,
    files are looked for from the job folder first, then as recorded.

    Example: halfmap resume refined

    Raises:
        InputError: `folder` is no job folder, is finished, or its command cannot go on.
    """
    changed = {"device": device, "threads": threads, "memory": memory}
    record, where = ask_first(partial(_recorded, Path(folder)))
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
    with contextlib.chdir(where):
        return function(**arguments)


def _recorded(folder: Path) -> tuple[dict[str, Any], Path]:
    """What the job was started with, and where to go on with it.

    Raises:
        InputError: there is nothing to go on with.
    """
    earlier_job.recover(folder)
    record = read_job(folder)
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
    options = options_of(getattr(halfmap, record["command"]))
    files = {one.name for one in options if one.kind is Path} - {"out"}
    here, where = brought_here(folder, record, files)
    data_dir = here["parameters"].get("data_dir")
    if data_dir and not (where / data_dir).is_dir():  # stacks may be found without it
        here = {**here, "parameters": {**here["parameters"], "data_dir": None}}
    if here != record and record["status"] != "running":
        keep_place(folder, here)
    return here, where
