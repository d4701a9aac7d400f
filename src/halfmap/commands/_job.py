"""A job from a command's own arguments: its folder, progress line and device; of several processes
the first has the folder and the terminal."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from halfmap import distributed
from halfmap.commands._setup import use_device
from halfmap.commands._signatures import command_signature
from halfmap.options import options_of, recorded
from halfmap.reports.report import REPORT, write_report
from halfmap.workspace.job import Job, JobStopped, read_job
from halfmap.workspace.progress import PROGRESS, Progress, drawing


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
    device = use_device(arguments.get("device", "cpu"), _threads(arguments.get("threads")))
    name, parameters = command.__name__, recorded(command, arguments)
    where = Path(arguments["out"] if folder is None else folder)
    quiet = arguments.get("quiet", False) or not distributed.is_first()
    processes = distributed.size()
    try:
        with (
            _open_folder(command, parameters, arguments, where) as job,
            Progress(
                name,
                iterations=iterations,
                quiet=quiet,
                processes=processes,
                file=job.folder / PROGRESS,
            ) as progress,
        ):
            yield OpenJob(job, progress, distributed.start(device), parameters)
    except KeyboardInterrupt as error:
        if distributed.size() == 1:
            raise
        raise JobStopped(
            "stopped: a process of the job was lost, or all were told to stop; go on with: "
            f"torchrun ... --no-python halfmap resume {where.absolute()}"
        ) from error
    leave_report(where)


def leave_report(folder: Path) -> None:
    """`report.html` of a job that has finished; what goes wrong there is a word, and no more."""
    if distributed.is_first():
        with drawing(REPORT):
            write_report(folder.absolute(), command_signature)


def _open_folder(
    command: Callable[..., Any],
    parameters: Mapping[str, Any],
    arguments: Mapping[str, Any],
    folder: Path,
) -> Job:
    """The job's folder in the first process, nothing in the others; what is wrong with it is an
    error in all of them. Processes that torchrun has started again go on where they were lost."""
    made: list[Job] = []

    def create() -> None:
        again = distributed.restarted() and _is_unfinished(folder)
        made.append(
            Job.create(
                command.__name__,
                parameters,
                folder,
                seed=arguments.get("seed", 1),
                overwrite=arguments.get("overwrite", False) and not again,
                resume=arguments.get("resume", False) or again,
                options=options_of(command),
            )
        )

    distributed.ask_first(create)
    return made[0] if made else JobElsewhere()


def _is_unfinished(folder: Path) -> bool:
    return (folder / "job.json").exists() and read_job(folder)["status"] != "finished"


def _threads(asked: int | None) -> int | None:
    """CPU threads of this process; of several on one machine each takes what torchrun says (1)."""
    if asked is not None or distributed.size() == 1:
        return asked
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


class JobElsewhere(Job):
    """What a job is to every process but the first: nothing is kept of it, and what is written into
    its folder is written into one that is removed at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="halfmap-"))
        self._sigterm: Any = None  # what a job's `__enter__` keeps

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Known to the first process."""
        return {}

    @property
    def results(self) -> dict[str, Any]:
        """Known to the first process."""
        return {}

    def event(self, **fields: Any) -> None:
        """Told by the first process."""

    def save_checkpoint(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Saved by the first process."""

    def load_checkpoint(self) -> None:
        """Read by the first process."""

    def update(self, **fields: Any) -> None:
        """Told by the first process."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back_sigterm(error)
        shutil.rmtree(self.folder, ignore_errors=True)
