"""The earlier job that `--overwrite` replaces: kept in the hidden folder `.replaced` of the job
folder until the new job has something.

`job.json` is the last file that moves in either direction. So `.replaced/job.json` beside no
`job.json`, or the other way round, tells of a move that was cut short, and `recover` brings the
earlier job back; both tell of a job that has not reached its first checkpoint.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

from halfmap.workspace.machine import lock_folder

JOB, CHECKPOINT = "job.json", "checkpoint"
_KEPT, _GOING = ".replaced", ".removed"


def is_there(folder: Path) -> bool:
    """Whether the folder holds an earlier job beside its own."""
    return (folder / _KEPT / JOB).exists()


def set_aside(folder: Path) -> None:
    """Move what the folder holds to `.replaced`. One that is there already stays: what came after
    it never saved anything."""
    if is_there(folder):
        _clear(folder)
    elif entries := _entries(folder):
        (folder / _KEPT).mkdir()
        for entry in entries:
            os.replace(entry, folder / _KEPT / entry.name)


def put_back(folder: Path) -> None:
    """Remove what the new job wrote, and move the earlier job back."""
    _clear(folder)
    _move_back(folder)


def discard(folder: Path) -> None:
    """Remove the earlier job, if there is one: the new one has saved what it needs to go on."""
    if (folder / _KEPT).exists():
        os.replace(
            folder / _KEPT, folder / _GOING
        )  # at once, so that half an earlier job never looks like one
        shutil.rmtree(folder / _GOING)


def recover(folder: Path) -> None:
    """Finish what a crash cut short, unless a process is at work in the folder."""
    if (
        not any((folder / name).exists() for name in (_KEPT, _GOING))
        or (lock := lock_folder(folder)) is None
    ):
        return
    try:
        shutil.rmtree(folder / _GOING, ignore_errors=True)
        if not (is_there(folder) and (folder / JOB).exists()):
            if (folder / _KEPT).exists():
                _move_back(folder)
        elif (folder / CHECKPOINT).exists() or _status(folder) == "finished":
            discard(folder)
    finally:
        os.close(lock)


def _entries(folder: Path) -> list[Path]:
    """What lies in the folder, `job.json` last."""
    return sorted(
        (entry for entry in folder.iterdir() if entry.name not in (_KEPT, _GOING)),
        key=lambda entry: (entry.name == JOB, entry),
    )


def _clear(folder: Path) -> None:
    for entry in reversed(_entries(folder)):
        _remove(entry)


def _move_back(folder: Path) -> None:
    for entry in _entries(folder / _KEPT):
        _remove(folder / entry.name)
        os.replace(entry, folder / entry.name)
    (folder / _KEPT).rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _status(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((folder / JOB).read_text(encoding="utf-8")).get("status"))
    return ""
