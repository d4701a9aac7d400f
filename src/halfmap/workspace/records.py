"""What a job folder says of its job: `job.json` and `events.jsonl`, read and written as JSON."""

import inspect
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import halfmap
from halfmap.errors import InputError
from halfmap.workspace.earlier_job import JOB
from halfmap.workspace.machine import lock_folder, versions, write_whole

EVENTS, ERROR, SET_ASIDE = "events.jsonl", "error.txt", "set_aside.star"
BESIDE = ".json"  # after the name of a file, the record of how it was made


def read_job(folder: str | Path) -> dict[str, Any]:
    """`job.json` of a job folder; the status is `killed` where it says `running` and no process is
    at work.

    Raises `InputError` where `folder` is no job folder.
    """
    folder = Path(folder)
    record = load_record(folder)
    if record["status"] == "running" and (lock := lock_folder(folder)) is not None:
        os.close(lock)
        record |= {"status": "killed", "message": how_to_go_on(record["command"], folder)}
    return record


def read_events(folder: str | Path, *, most_bytes: int | None = None) -> list[dict[str, Any]]:
    """The events of a job folder in order, of a file of more than `most_bytes` the last ones; a
    last line torn by a kill is left out."""
    events = []
    path = Path(folder) / EVENTS
    if not path.exists():
        return []
    for line in last_lines(path, most_bytes) if most_bytes else _lines(path):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def last_lines(path: Path, most_bytes: int) -> list[str]:
    """The lines of a text file that are whole in its last bytes."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most_bytes))
        lines = file.read(most_bytes).decode("utf-8", "replace").splitlines()
    return lines[1:] if size > most_bytes else lines


def keep_events(folder: Path, *, up_to: float | None) -> None:
    """Cut `events.jsonl` at the first event after iteration `up_to`, the checkpoint's, or without a
    checkpoint (None) at the first: what it tells of will be run, and told, again."""
    kept = []
    for event in read_events(folder):
        if up_to is None or event.get("iteration", -math.inf) > up_to:
            break
        kept.append(json.dumps(event) + "\n")
    write_whole(folder / EVENTS, "".join(kept))


def load_record(folder: Path) -> dict[str, Any]:
    """What `job.json` of a job folder holds.

    Raises:
        InputError: there is none, or it cannot be read.
    """
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


def can_resume(command: str) -> bool:
    """Whether `halfmap.<command>` is a function that goes on with a job."""
    function: Any = getattr(halfmap, command) if command in halfmap._PUBLIC else None
    return function is not None and "resume" in inspect.signature(function).parameters


def how_to_go_on(command: str, folder: Path) -> str:
    """What a user may do with a job that was stopped, in words."""
    if can_resume(command):
        return f"go on with: halfmap resume {folder}"
    return f"halfmap {command} starts from the beginning: run it again with --overwrite"


def keep_record_beside(
    file: Path, command: str, parameters: Mapping[str, Any], **results: Any
) -> None:
    """`FILE.json` beside a file that a command without a job folder wrote: what it was made of and
    how, for whoever asks later where it comes from."""
    record = {
        "command": command,
        "parameters": parameters,
        "working_directory": os.getcwd(),
        "folder": str(file.absolute()),
        "started": now(),
        "results": results,
        "versions": versions(),
    }
    beside = file.with_name(f"{file.name}{BESIDE}")
    beside.write_text(json.dumps(as_json(record), indent=1) + "\n", encoding="utf-8")


def as_json(value: Any, *, keep_nan: bool = False) -> Any:
    """`value` as what JSON knows: paths as text, numpy and torch numbers and arrays as lists,
    not-a-number and infinity as null."""
    if isinstance(value, Mapping):
        return {str(name): as_json(one, keep_nan=keep_nan) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one, keep_nan=keep_nan) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if keep_nan or math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return as_json(value.tolist(), keep_nan=keep_nan)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def now() -> str:
    """The time, UTC, to the second, as in every record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
