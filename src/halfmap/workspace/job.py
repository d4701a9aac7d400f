"""Job folders: what was asked, how it went, where to go on.

A job folder holds `job.json` (command, parameters, versions, status, cost), `events.jsonl` (one
JSON object per iteration), `checkpoint` (the state after the last finished iteration) and the
results. Every file that says where the job stands is replaced by an atomic rename, so that a job
killed at any moment leaves a folder from which `halfmap resume DIR` goes on. Times stand in
`job.json` and `events.jsonl` only: the results are a function of inputs, parameters and seed.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from halfmap.errors import (
    InputError,
    StorageError,
    is_gone,
    is_of_storage,
    is_out_of_memory,
    storage_error,
)
from halfmap.io.files import writing
from halfmap.options import NamedOption
from halfmap.workspace import earlier_job
from halfmap.workspace.admission import check_may_overwrite, check_same
from halfmap.workspace.checkpoint import load_checkpoint, save_checkpoint
from halfmap.workspace.earlier_job import CHECKPOINT, JOB
from halfmap.workspace.machine import (
    cpu_seconds,
    lock_folder,
    machine,
    peak_memory_bytes,
    versions,
    write_whole,
)
from halfmap.workspace.memory import memory_shortage
from halfmap.workspace.moved import FOLDER
from halfmap.workspace.progress import MESSAGES
from halfmap.workspace.records import (
    ERROR,
    EVENTS,
    SET_ASIDE,
    as_json,
    can_resume,
    how_to_go_on,
    keep_events,
    load_record,
    now,
    read_events,
    read_job,
)

# what a reader of job folders needs beside the job
__all__ = [
    "JOB",
    "SET_ASIDE",
    "Job",
    "JobStopped",
    "can_resume",
    "load_checkpoint",
    "read_events",
    "read_job",
]


_TOLD = (JOB, EVENTS, SET_ASIDE, MESSAGES)  # what is in a folder before there are results


class JobStopped(KeyboardInterrupt):
    """The user (Ctrl-C) or the system (SIGTERM) stopped the job; the message says how to go on."""


class Job:
    """A job folder in use by this process: a context manager around the work of one command.

    Leaving the block sets the status in `job.json`: `finished`; `failed` on an exception, with the
    message there and the traceback in `error.txt`; `stopped` on Ctrl-C or SIGTERM, which leaves as
    `JobStopped`. A job that was killed outright is told by `read_job`.
    """

    def __init__(
        self, folder: Path, record: dict[str, Any], *, fresh: bool, made: Sequence[Path], lock: int
    ) -> None:
        self.folder = folder
        self._record = record
        self._fresh = fresh  # made by this process: nothing of an earlier run is in it
        self._made = made  # folders that were not there before, innermost first
        self._lock = lock
        self._earlier = {
            name: float(record.get(name) or 0)
            for name in ("wall_seconds", "cpu_seconds", "peak_memory_bytes")
        }
        self._wall_start, self._cpu_start = time.monotonic(), cpu_seconds()
        self._sigterm: Any = None

    @classmethod
    def create(
        cls,
        command: str,
        parameters: Mapping[str, Any],
        out: str | Path,
        *,
        seed: int,
        overwrite: bool = False,
        resume: bool = False,
        options: Sequence[NamedOption] = (),
    ) -> "Job":
        """Make (or with `resume` reopen) the job folder `out` and write `job.json` with status
        `running`.

        `parameters` are the arguments of the public function `halfmap.<command>` by name, so that
        `resume` can call it again; `options` are those of that function: they say which of them a
        resumed job may change, and what an option is that the job was started without. With
        `overwrite` the earlier job is set aside (see `earlier_job`) until this one has saved its
        first checkpoint or finished. Raises `InputError` when `out` is in use: a non-empty folder
        without `overwrite` or `resume`; with `overwrite` a folder that is no job folder or holds an
        input; a folder in which a process is at work; with `resume` another command or other
        parameters.
        """
        if seed < 0:
            raise InputError(f"--seed {seed}: expected 0 or more")
        folder = Path(out).absolute()
        earlier_job.recover(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(
                f"--out {out}: a job folder was expected, this is a file; choose another name"
            )
        asked = as_json(
            {
                name: value
                for name, value in parameters.items()
                if name not in ("overwrite", "resume")
            }
        )
        previous = load_record(folder) if (folder / JOB).exists() else None
        if resume:
            if previous is None:
                raise InputError(
                    f"--out {out}: no {JOB} there, so there is nothing to resume; run halfmap "
                    f"{command} without resume"
                )
            check_same(previous, command, asked, seed, out, options)
        elif folder.exists() and any(folder.iterdir()):
            check_may_overwrite(folder, previous, asked, overwrite, out)
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        if lock is None:
            raise InputError(
                f"--out {out}: another halfmap process is at work there; wait for it, stop it, or "
                "choose another folder"
            )
        if not resume:
            earlier_job.set_aside(folder)  # only ever a job folder, see check_may_overwrite
        record: dict[str, Any] = {
            "command": command,
            "parameters": asked,
            "seed": seed,
            "working_directory": os.getcwd(),
            FOLDER: str(folder),
            "command_line": sys.argv,
            "versions": versions(),
            "machine": machine(),
            "process": os.getpid(),
            "started": now(),
            "runs": 1,
        }
        if previous is not None and resume:
            kept = (
                "started",
                FOLDER,
                "working_directory",
                "results",
                "wall_seconds",
                "cpu_seconds",
                "peak_memory_bytes",
            )
            record |= {name: previous[name] for name in kept if name in previous}
            record["runs"] = int(previous.get("runs", 1)) + 1
        job = cls(folder, record, fresh=not resume, made=made, lock=lock)
        try:
            if resume:
                saved = load_checkpoint(folder)
                done = None if saved is None else saved[1].get("iteration", math.inf)
                keep_events(folder, up_to=done)
            job._write("running")
        except BaseException:
            os.close(lock)
            raise
        return job

    def path(self, name: str) -> Path:
        """The path of file `name` inside the job folder; folders on the way are made."""
        path = self.folder / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def event(self, **fields: Any) -> None:
        """Append one line to `events.jsonl`: the given fields (iteration, resolution_angstrom, ...)
        and the job's seconds so far."""
        line = json.dumps(
            as_json({**fields, "elapsed_seconds": round(self._elapsed(), 3)}), allow_nan=False
        )
        path = self.folder / EVENTS
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save_checkpoint(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `arrays` and the JSON-able `meta`, whose key `iteration` tells
        which events it covers.
        """
        save_checkpoint(self.folder, arrays, meta)
        self._write("running")
        earlier_job.discard(self.folder)

    def load_checkpoint(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The last saved `(arrays, meta)`, or None where the job has not got that far."""
        return load_checkpoint(self.folder)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the command was called with; empty where the folder is another process's."""
        return dict(self._record.get("parameters", {}))

    @property
    def results(self) -> dict[str, Any]:
        """What `update` has added so far."""
        return dict(self._record.get("results", {}))

    def update(self, **fields: Any) -> None:
        """Add results worth showing beside the status (for example `resolution_angstrom`) to
        `job.json`."""
        self._record["results"] = {**self._record.get("results", {}), **as_json(fields)}
        self._write("running")

    def __enter__(self) -> "Job":
        if threading.current_thread() is threading.main_thread():
            self._sigterm = signal.signal(signal.SIGTERM, _raise_interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back_sigterm(error)
        try:
            if error is None:
                self._write("finished")
                earlier_job.discard(self.folder)
            elif isinstance(error, KeyboardInterrupt):
                message = f"stopped; {how_to_go_on(self._record['command'], self.folder)}"
                self._write("stopped", message)
                raise JobStopped(message) from error
            elif isinstance(error, StorageError) or is_of_storage(error):
                self._end_on_storage(error)
            elif isinstance(error, InputError):
                self._end_on_input(error)
            elif is_out_of_memory(error):
                self._end_on_memory(error)
            elif self._fresh and earlier_job.is_there(self.folder):
                earlier_job.put_back(self.folder)
                error.add_note(
                    f"the earlier job is back in {self.folder}; halfmap --debug COMMAND shows the "
                    "traceback"
                )
            else:
                with contextlib.suppress(OSError):
                    (self.folder / ERROR).write_text(
                        "".join(traceback.format_exception(error)), encoding="utf-8"
                    )
                self._write("failed", f"{type(error).__name__}: {error}")
                error.add_note(
                    f"the traceback is in {self.folder / ERROR}; "
                    f"{how_to_go_on(self._record['command'], self.folder)}"
                )
        finally:
            os.close(self._lock)

    def _give_back_sigterm(self, error: BaseException | None) -> None:
        """SIGTERM does what it did before the job. Of several processes the launcher stops all as
        soon as one has ended: one that ends on an error ignores it, so that what it has to write
        and say is not cut short."""
        if self._sigterm is None:
            return
        one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        ignored = error is not None and one_of_several
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ignored else self._sigterm)

    def _end_on_input(self, error: InputError) -> None:
        """Bad input, such as a stack that is not there any more: what was reached stays."""
        message = str(error)
        if (self.folder / CHECKPOINT).exists():
            message = f"{message}; then {how_to_go_on(self._record['command'], self.folder)}"
            error.add_note(f"then {how_to_go_on(self._record['command'], self.folder)}")
        self._write("failed", message)
        self._withdraw()

    def _end_on_storage(self, error: BaseException | None) -> None:
        """A disk that is full, gone or read-only: said in one line, and in `job.json` as far as
        that can still be written."""
        told = error if isinstance(error, StorageError) else None
        if told is None and isinstance(error, OSError):
            told = storage_error(error, error.filename or self.folder)
        if self._fresh and earlier_job.is_there(self.folder):
            with contextlib.suppress(OSError):
                earlier_job.put_back(self.folder)
            way = f"the earlier job is back in {self.folder}; run the command again"
        else:
            way = f"then {how_to_go_on(self._record['command'], self.folder)}"
            with contextlib.suppress(OSError, StorageError):
                self._write("failed", f"{told}; {way}")
        raise StorageError(f"{told}; {way}") from error

    def _end_on_memory(self, error: BaseException) -> None:
        """No memory left, and no batch that could be halved: what was reached stays."""
        if self._fresh and earlier_job.is_there(self.folder):
            earlier_job.put_back(self.folder)
            way = f"the earlier job is back in {self.folder}; run the command again with"
            raise memory_shortage(error, self.parameters, way) from error
        way = how_to_go_on(self._record["command"], self.folder)
        told = memory_shortage(error, self.parameters, way)
        self._write("failed", str(told))
        raise told from error

    def _withdraw(self) -> None:
        """Leave the place as it was where bad input ended a job before it made anything, so that
        the corrected command just runs."""
        if not self._fresh:
            return
        if earlier_job.is_there(self.folder):
            earlier_job.put_back(self.folder)
        elif all(entry.name in _TOLD for entry in self.folder.iterdir()):
            for entry in self.folder.iterdir():
                entry.unlink()
            with contextlib.suppress(OSError):  # a folder that someone else has begun to use stays
                for folder in self._made:
                    folder.rmdir()

    def _elapsed(self) -> float:
        return self._earlier["wall_seconds"] + time.monotonic() - self._wall_start

    def _write(self, status: str, message: str | None = None) -> None:
        torch = sys.modules.get("torch")  # asked only if the job has loaded it
        cost = {
            "status": status,
            "message": message,
            "ended": None if status == "running" else now(),
            "threads": torch.get_num_threads() if torch else None,
            "wall_seconds": round(self._elapsed(), 3),
            "cpu_seconds": round(self._earlier["cpu_seconds"] + cpu_seconds() - self._cpu_start, 3),
            "peak_memory_bytes": int(max(self._earlier["peak_memory_bytes"], peak_memory_bytes())),
        }
        text = json.dumps({**self._record, **cost}, indent=1) + "\n"
        try:
            write_whole(self.folder / JOB, text)
        except OSError as error:
            if status == "running" or is_gone(error):
                raise storage_error(error, self.folder / JOB) from error
            # no room for a second file: into the blocks that the first one has
            with open(self.folder / JOB, "r+", encoding="utf-8") as file:
                file.write(json.dumps({**self._record, **cost}) + "\n")
                file.truncate()


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
