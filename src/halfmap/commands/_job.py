"""A job from a command's own arguments: its folder, progress line and device."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from halfmap.commands._setup import use_device
from halfmap.options import options_of, recorded
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress


@dataclass(frozen=True)
class OpenJob:
    """A job at work: its folder, its progress line, where it computes, and the arguments that
    `job.json` keeps."""

    job: Job
    progress: Progress
    device: torch.device
    parameters: dict[str, Any]


@contextmanager
def open_job(
    command: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    iterations: int | None = None,
    folder: Path | None = None,
) -> Iterator[OpenJob]:
    """The job of the public function `command`, called with `arguments` (its `locals()` at the
    start): in `folder` (`out` if None), anew or to be resumed, with `seed`, `device`, `threads` and
    `quiet` as they say; a command that has no such option takes the usual.

    Raises:
        InputError: a device or threads that are not there, or a folder in use.
    """
    device = use_device(arguments.get("device", "cpu"), arguments.get("threads"))
    name = command.__name__
    parameters = recorded(command, arguments)
    with (
        Job.create(
            name,
            parameters,
            arguments["out"] if folder is None else folder,
            seed=arguments.get("seed", 1),
            overwrite=arguments.get("overwrite", False),
            resume=arguments.get("resume", False),
            options=options_of(command),
        ) as job,
        Progress(name, iterations=iterations, quiet=arguments.get("quiet", False)) as progress,
    ):
        yield OpenJob(job, progress, device, parameters)
