"""A job whose project folder has moved, or been copied: its inputs are found again where they lie
now, seen from the job folder."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from halfmap.io.files import writing
from halfmap.workspace.earlier_job import JOB
from halfmap.workspace.machine import write_whole

FOLDER = "folder"  # in `job.json`: where the job folder was when the record was written


def brought_here(
    folder: Path, record: Mapping[str, Any], paths: Collection[str]
) -> tuple[dict[str, Any], Path]:
    """The record of a job, with the files named by its parameters `paths` as they are found from
    `folder`, and the directory to go on in.

    A name is looked for at its old place seen from the job folder, then as recorded. It keeps its
    letters where the directory leads there, so that what is written is the same; else it becomes
    absolute. Where the job lies as recorded, nothing changes.
    """
    folder = folder.absolute()
    started_in = Path(record.get("working_directory", "."))
    old = Path(record.get(FOLDER, folder))
    beside = _seen_from(folder, old, started_in)
    where = next((one for one in (beside, started_in) if one.is_dir()), Path.cwd())
    if folder == old and where == started_in:
        return dict(record), where

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(one) for one in value]
        if not isinstance(value, str):
            return value
        recorded = started_in / value
        places = (_seen_from(folder, old, recorded), recorded, where / value)
        place = next((one for one in places if one.exists()), None)
        return value if place is None or _leads(where / value, place) else str(place)

    parameters = {
        name: found(value) if name in paths else value
        for name, value in record["parameters"].items()
    }
    here = {"working_directory": str(where), FOLDER: str(folder), "parameters": parameters}
    return {**record, **here}, where


def _seen_from(folder: Path, old: Path, path: Path) -> Path:
    """Where a path lies from `folder` as it did from the old one."""
    return Path(os.path.normpath(folder / os.path.relpath(path, old)))


def _leads(name: Path, place: Path) -> bool:
    return name.exists() and name.samefile(place)


def keep_place(folder: Path, record: Mapping[str, Any]) -> None:
    """Replace `job.json` by the record of a job that has moved.

    Raises:
        StorageError: the disk is full, or read-only.
    """
    with writing(folder / JOB):
        write_whole(folder / JOB, json.dumps(record, indent=1) + "\n")
