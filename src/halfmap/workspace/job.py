"""Job folders: what was asked, how it went, where to go on.

A job folder holds `job.json` (command, parameters, versions, status, cost), `events.jsonl` (one
JSON object per iteration), `checkpoint` (the state after the last finished iteration) and the
results. Every file that says where the job stands is replaced by an atomic rename, so that a job
killed at any moment leaves a folder from which `halfmap resume DIR` goes on. Times stand in
`job.json` and `events.jsonl` only: the results are a function of inputs, parameters and seed.
"""

import contextlib
import inspect
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np

import halfmap
from halfmap.errors import InputError
from halfmap.options import NamedOption
from halfmap.particles import load_particles
from halfmap.workspace import earlier_job
from halfmap.workspace.earlier_job import CHECKPOINT, JOB
from halfmap.workspace.machine import (
    cpu_seconds,
    lock_folder,
    machine,
    peak_memory_bytes,
    rename_durably,
    versions,
)

EVENTS, ERROR, SET_ASIDE = "events.jsonl", "error.txt", "set_aside.star"
_META = "__meta__"


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
        asked = _plain(
            {
                name: value
                for name, value in parameters.items()
                if name not in ("overwrite", "resume")
            }
        )
        previous = _load_record(folder) if (folder / JOB).exists() else None
        if resume:
            if previous is None:
                raise InputError(
                    f"--out {out}: no {JOB} there, so there is nothing to resume; run halfmap "
                    f"{command} without resume"
                )
            _check_same(previous, command, asked, seed, out, options)
        elif folder.exists() and any(folder.iterdir()):
            _check_may_overwrite(folder, previous, asked, overwrite, out)
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        if lock is None:
            raise InputError(
                f"--out {out}: another halfmap process is at work there; wait for it, stop it, or "
                "choose another folder"
            )
        if not resume:
            earlier_job.set_aside(folder)  # only ever a job folder, see _check_may_overwrite
        record: dict[str, Any] = {
            "command": command,
            "parameters": asked,
            "seed": seed,
            "working_directory": os.getcwd(),
            "command_line": sys.argv,
            "versions": versions(),
            "machine": machine(),
            "started": _now(),
            "runs": 1,
        }
        if previous is not None and resume:
            kept = (
                "started",
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
                job._drop_events_after_checkpoint()
            job._write("running")
        except BaseException:
            os.close(lock)
            raise
        return job

    def path(self, name: str) -> Path:
        """The path of file `name` inside the job folder; folders on the way are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def event(self, **fields: Any) -> None:
        """Append one line to `events.jsonl`: the given fields (iteration, resolution_angstrom, ...)
        and the job's seconds so far."""
        line = json.dumps(
            _plain({**fields, "elapsed_seconds": round(self._elapsed(), 3)}), allow_nan=False
        )
        with open(self.folder / EVENTS, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save_checkpoint(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `arrays` and the JSON-able `meta`, whose key `iteration` tells
        which events it covers.

        Written to a temporary name, synced and renamed: at every moment either the previous or this
        checkpoint is whole on the disk.
        """
        encoded = np.frombuffer(json.dumps(_plain(meta, keep_nan=True)).encode(), dtype=np.uint8)
        temporary = self.folder / f"{CHECKPOINT}.new"
        with open(temporary, "wb") as file:
            contents: dict[str, Any] = {**arrays, _META: encoded}
            np.savez(file, **contents)
            file.flush()
            os.fsync(file.fileno())
        rename_durably(temporary, self.folder / CHECKPOINT)
        self._write("running")
        earlier_job.discard(self.folder)

    def load_checkpoint(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The last saved `(arrays, meta)`, or None where the job has not got that far."""
        return load_checkpoint(self.folder)

    def update(self, **fields: Any) -> None:
        """Add results worth showing beside the status (for example `resolution_angstrom`) to
        `job.json`."""
        self._record["results"] = {**self._record.get("results", {}), **_plain(fields)}
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
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
        try:
            if error is None:
                self._write("finished")
                earlier_job.discard(self.folder)
            elif isinstance(error, KeyboardInterrupt):
                message = f"stopped; {_how_to_go_on(self._record['command'], self.folder)}"
                self._write("stopped", message)
                raise JobStopped(message) from error
            elif isinstance(error, InputError):
                self._write("failed", str(error))
                self._withdraw()
            elif self._fresh and earlier_job.is_there(self.folder):
                earlier_job.put_back(self.folder)
                error.add_note(
                    f"the earlier job is back in {self.folder}; halfmap --debug COMMAND shows the "
                    "traceback"
                )
            else:
                (self.folder / ERROR).write_text(
                    "".join(traceback.format_exception(error)), encoding="utf-8"
                )
                self._write("failed", f"{type(error).__name__}: {error}")
                error.add_note(
                    f"the traceback is in {self.folder / ERROR}; "
                    f"{_how_to_go_on(self._record['command'], self.folder)}"
                )
        finally:
            os.close(self._lock)

    def _withdraw(self) -> None:
        """Leave the place as it was where bad input ended a job before it made anything, so that
        the corrected command just runs."""
        if not self._fresh:
            return
        if earlier_job.is_there(self.folder):
            earlier_job.put_back(self.folder)
        elif all(entry.name in (JOB, EVENTS, SET_ASIDE) for entry in self.folder.iterdir()):
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
            "ended": None if status == "running" else _now(),
            "threads": torch.get_num_threads() if torch else None,
            "wall_seconds": round(self._elapsed(), 3),
            "cpu_seconds": round(self._earlier["cpu_seconds"] + cpu_seconds() - self._cpu_start, 3),
            "peak_memory_bytes": int(max(self._earlier["peak_memory_bytes"], peak_memory_bytes())),
        }
        temporary = self.folder / f"{JOB}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps({**self._record, **cost}, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        rename_durably(temporary, self.folder / JOB)

    def _drop_events_after_checkpoint(self) -> None:
        """Cut `events.jsonl` at the first event that the checkpoint does not cover: its iteration
        will be run, and told, again."""
        checkpoint = self.load_checkpoint()
        last = -math.inf if checkpoint is None else checkpoint[1].get("iteration", math.inf)
        kept = []
        for event in read_events(self.folder):
            if event.get("iteration", -math.inf if checkpoint else math.inf) > last:
                break
            kept.append(json.dumps(event) + "\n")
        temporary = self.folder / f"{EVENTS}.new"
        temporary.write_text("".join(kept), encoding="utf-8")
        rename_durably(temporary, self.folder / EVENTS)


def read_job(folder: str | Path) -> dict[str, Any]:
    """`job.json` of a job folder; the status is `killed` where it says `running` and no process is
    at work.

    Raises `InputError` where `folder` is no job folder.
    """
    folder = Path(folder)
    record = _load_record(folder)
    if record["status"] == "running" and (lock := lock_folder(folder)) is not None:
        os.close(lock)
        record |= {"status": "killed", "message": _how_to_go_on(record["command"], folder)}
    return record


def read_events(folder: str | Path) -> list[dict[str, Any]]:
    """The events of a job folder in order; a last line torn by a kill is left out."""
    events = []
    path = Path(folder) / EVENTS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def load_checkpoint(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """`(arrays, meta)` of a job folder's checkpoint, or None. Raises `InputError` where the file is
    damaged."""
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            meta = json.loads(arrays.pop(_META).tobytes())
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ):  # numpy's words would not help
        raise InputError(
            f"{path}: a whole checkpoint was expected, the file is damaged; run the job anew with "
            "--overwrite"
        ) from None
    return arrays, meta


def can_resume(command: str) -> bool:
    """Whether `halfmap.<command>` is a function that goes on with a job."""
    function: Any = getattr(halfmap, command) if command in halfmap._PUBLIC else None
    return function is not None and "resume" in inspect.signature(function).parameters


def _how_to_go_on(command: str, folder: Path) -> str:
    if can_resume(command):
        return f"go on with: halfmap resume {folder}"
    return f"halfmap {command} starts from the beginning: run it again with --overwrite"


def _check_same(
    previous: dict[str, Any],
    command: str,
    asked: dict[str, Any],
    seed: int,
    out: str | Path,
    options: Sequence[NamedOption],
) -> None:
    if previous["command"] != command:
        raise InputError(
            f"--out {out}: the job there is halfmap {previous['command']}, not {command}; use: "
            f"halfmap resume {out}"
        )
    if previous["seed"] != seed:
        raise InputError(
            f"--seed {seed}: the job in {out} was started with seed {previous['seed']}; use: "
            f"halfmap resume {out}"
        )
    free = {one.name for one in options if one.option.free_on_resume} | {"seed"}
    # a job of an earlier version may lack an option that has come since
    started = {**_plain({one.name: one.default for one in options}), **previous["parameters"]}
    for name in sorted((asked.keys() | previous["parameters"].keys()) - free):
        before, now = started.get(name), asked.get(name)
        if before != now:
            raise InputError(
                f"{name}={now!r}: the job in {out} was started with {before!r}; use: halfmap "
                f"resume {out}, or another folder"
            )


def _check_may_overwrite(
    folder: Path,
    previous: dict[str, Any] | None,
    asked: dict[str, Any],
    overwrite: bool,
    out: str | Path,
) -> None:
    if previous is None:
        raise InputError(
            f"--out {out}: the folder holds {_listing(folder)} and is no halfmap job; choose "
            "another folder"
        )
    if not overwrite:
        state = read_job(folder)["status"]
        go_on = (
            f"go on with halfmap resume {out}, "
            if state != "finished" and can_resume(previous["command"])
            else ""
        )
        what = f"holds a {state} halfmap {previous['command']} job"
        raise InputError(
            f"--out {out}: the folder {what}; choose another folder, {go_on}or --overwrite it"
        )
    for name, value in asked.items():
        for one in value if isinstance(value, list) else [value]:
            if name == "out" or not isinstance(one, str) or not Path(one).exists():
                continue
            for path in (Path(one), *_stacks_of(one, asked)):
                if path.resolve().is_relative_to(folder.resolve()):
                    raise InputError(
                        f"--out {out}: --overwrite would remove the input {name} {path}; choose "
                        "another folder"
                    )


def _stacks_of(path: str, asked: dict[str, Any]) -> list[Path]:
    """The image stacks that a particle file names, where they are."""
    if Path(path).suffix.lower() not in (".star", ".cs"):
        return []
    particles = load_particles(
        path,
        data_dir=asked.get("data_dir"),
        check_images=False,
        use_ctf=bool(asked.get("ctf", True)),
    )
    return [stack for stack in particles.stack_paths if stack is not None]


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _load_record(folder: Path) -> dict[str, Any]:
    path = folder / JOB
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: a halfmap job folder was expected, there is no {JOB} in it; give the "
            "--out folder of a job"
        ) from None
    except ValueError:
        record = None
    if (
        not isinstance(record, dict)
        or not {"command", "parameters", "seed", "status", "versions"} <= record.keys()
    ):
        raise InputError(
            f"{path}: the {JOB} of a halfmap job was expected, this is something else; choose "
            "another folder"
        )
    return record


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _plain(value: Any, *, keep_nan: bool = False) -> Any:
    """`value` as what JSON knows: paths as text, numpy and torch numbers and arrays as lists,
    not-a-number and infinity as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one, keep_nan=keep_nan) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, keep_nan=keep_nan) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if keep_nan or math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), keep_nan=keep_nan)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
