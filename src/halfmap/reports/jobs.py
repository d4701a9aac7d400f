"""The jobs of a folder: where each stands, in one row, and what came from what."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from halfmap.errors import InputError
from halfmap.workspace.earlier_job import JOB
from halfmap.workspace.machine import lock_folder
from halfmap.workspace.moved import FOLDER
from halfmap.workspace.progress import PROGRESS
from halfmap.workspace.records import BESIDE, EVENTS, load_record, read_events

DEPTH = 5  # folders below the one that is served in which jobs are looked for
MOST_JOBS = 2000  # a folder with more is no folder of jobs of one project
# a job of another machine holds no lock that is seen here: it is at work while it writes
SILENT_SECONDS = 900.0
# A file may have grown beyond all measure, or be anybody's: so much of it is read, and no more. A
# row needs the last iteration; an iteration of many classes tells some 100 kB.
LAST_EVENT_BYTES = 1_000_000
MOST_RECORD_BYTES = 16_000_000
# what commands without a job folder write: the file, with its record beside it, is the job
FILES = (".star", ".cs", ".mrc", ".mrcs", ".st")
_PARTS = ("_map", "_mask", "_half1", "_half2", "_fsc")  # of names of files beside such a file
# results that are told at the head of a job's page
_NUMBERS = (
    "b_factor_angstrom2",
    "cfar",
    "scf_star",
    "median_angstrom",
    "best_angstrom",
    "worst_angstrom",
)
_SKIPPED = ("pictures", "shown", "node_modules", "__pycache__")


def find_jobs(root: Path) -> list[str]:
    """Paths, below `root`, of all job folders and of all files that have a record beside them,
    sorted; links are not followed."""
    found: list[str] = []
    for folder, names, files in _walk(root, DEPTH):
        relative = folder.relative_to(root).as_posix()
        if JOB in files:
            found.append(relative)
        found += [
            f"{relative}/{name.removesuffix(BESIDE)}".removeprefix("./")
            for name in files
            if name.endswith(tuple(f"{suffix}{BESIDE}" for suffix in FILES))
            and name.removesuffix(BESIDE) in files
        ]
        if len(found) >= MOST_JOBS:
            break
        names[:] = [name for name in names if name not in _SKIPPED and name[0] != "."]
    return sorted(found)


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, list[str], list[str]]]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
            folders = [one.name for one in listed if one.is_dir(follow_symlinks=False)]
            files = [one.name for one in listed if one.is_file(follow_symlinks=False)]
    except OSError:  # removed under our eyes, or not ours to read
        return
    yield folder, folders, files
    if depth:
        for name in folders:
            yield from _walk(folder / name, depth - 1)


def stamp(root: Path, job: str) -> tuple[float, ...]:
    """Changes whenever a job has something new to say: times and sizes of the files that it writes
    as it goes, and of its folder."""
    place = root / job
    if place.suffix in FILES:
        return _stamp_of(place) + _stamp_of(place.with_name(place.name + BESIDE))
    told = (JOB, EVENTS, PROGRESS, "pictures", "shown")
    return _stamp_of(place) + tuple(n for name in told for n in _stamp_of(place / name))


def _stamp_of(path: Path) -> tuple[float, float]:
    try:
        found = path.stat()
    except OSError:
        return (0.0, 0.0)
    return (found.st_mtime, float(found.st_size))


def job_record(root: Path, job: str) -> dict[str, Any]:
    """`job.json` of a job, or what a command kept beside its file; the status told as it is.

    Raises:
        InputError: no such job.
    """
    place = root / job
    is_file = place.suffix in FILES
    told_by = place.with_name(place.name + BESIDE) if is_file else place / JOB
    if _stamp_of(told_by)[1] > MOST_RECORD_BYTES:
        raise InputError(
            f"{told_by}: a record of a job was expected, this is far too large for one"
        )
    if not is_file:
        record = load_record(place)
        # `read_job` says how to go on, for which it loads the command, and torch with it
        if record["status"] == "running" and (lock := lock_folder(place)) is not None:
            os.close(lock)
            record |= _without_process(record, place)
        return record
    try:
        record = json.loads(told_by.read_text(encoding="utf-8"))
        return record | {"status": "finished", "command": str(record["command"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{place}: no record of how it was made was found beside it") from None


def beside(record: Mapping[str, Any], place: Path) -> list[str]:
    """Names of files that are a job's and lie beside its folder, as its record tells; of a file
    that is the job, that file first. Plain names only: none leads elsewhere."""
    told = (record.get("results") or {}).get("files") or []
    names = [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
    plain = [one for one in names if one and one[0] != "." and Path(one).name == one]
    return plain if place.is_dir() else [place.name, *plain]


def located(place: Path, name: str) -> Path:
    """Where a file of a job lies: in its folder, or beside it."""
    inside = place / name
    return inside if place.is_dir() and inside.exists() else place.parent / name


def _without_process(record: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Status and message of a job that says that it runs, and of which no process is seen here."""
    gone = "its process is gone"
    if _is_elsewhere(record):
        silent = time.time() - max(_stamp_of(place / name)[0] for name in (JOB, EVENTS, PROGRESS))
        if silent < SILENT_SECONDS:
            return {}
        gone = f"no word from {record['machine']['host']} for {silent / 60:.0f} minutes"
    return {"status": "killed", "message": f"{gone}; go on with: halfmap resume {place}"}


def _is_elsewhere(record: Mapping[str, Any]) -> bool:
    host = record.get("machine", {}).get("host")
    return bool(host) and host != platform.node()


def job_row(root: Path, job: str) -> dict[str, Any]:
    """Where a job stands, as one row of a table: JSON-able.

    Raises:
        InputError: no such job.
    """
    record = job_record(root, job)
    place = root / job
    events = read_events(place, most_bytes=LAST_EVENT_BYTES) if place.is_dir() else []
    last: dict[str, Any] = next((one for one in reversed(events) if "iteration" in one), {})
    results, parameters = record.get("results", {}), record["parameters"]
    progress = _progress(place) if record["status"] == "running" else {}
    sizes = last.get("class_sizes") or []
    resolution = last.get("resolution_angstrom")
    limit = progress.get("iterations") or parameters.get("iterations")
    return {
        "id": job,
        "name": place.name if job != "." else root.name,
        "command": record["command"],
        "status": record["status"],
        "message": record.get("message"),
        "started": record.get("started"),
        "ended": record.get("ended"),
        "wall_seconds": record.get("wall_seconds"),
        "cpu_seconds": record.get("cpu_seconds"),
        "memory_bytes": progress.get("memory_bytes") or record.get("peak_memory_bytes"),
        "host": record.get("machine", {}).get("host"),
        "iteration": progress.get("iteration") or last.get("iteration"),
        "iterations": limit,
        "stage": progress.get("stage"),
        "done": progress.get("done"),
        "total": progress.get("total"),
        "left_seconds": progress.get("stage_seconds_left"),
        "most_left_seconds": progress.get("most_seconds_left"),
        "resolution_angstrom": results.get("resolution_angstrom", resolution),
        "particles": _particles(results, sizes),
        "classes": results.get("classes") or parameters.get("classes") or len(sizes) or None,
        "summary": _in_words(results),
        "numbers": {n: v for n in _NUMBERS if isinstance(v := results.get(n), int | float)},
        "shown": _stamp_of(place / "shown")[0],
    }


def _in_words(results: Mapping[str, Any]) -> str | None:
    """What a job says that it found, if it says so."""
    found = results.get("found")
    if isinstance(found, list):
        return "; ".join(map(str, found))
    return str(results["summary"]) if results.get("summary") else None


def _particles(results: Mapping[str, Any], sizes: list[int]) -> int | None:
    told = [results.get(name) for name in ("particles", "images", "kept")]
    return next((int(n) for n in told if isinstance(n, int | float)), sum(sizes) or None)


def _progress(place: Path) -> dict[str, Any]:
    try:
        told = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        return {}


def parents(root: Path, job: str, known: set[str]) -> list[str]:
    """The jobs, of those known, in whose folders the files lie that this one was given."""
    try:
        record = load_record(root / job) if (root / job).is_dir() else job_record(root, job)
    except InputError:
        return []
    found = []
    for value in record["parameters"].values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and (above := owner(root, record, one, known, root / job)):
                found.append(above)
    return [one for one in dict.fromkeys(found) if one != job]


def _below(path: Path, root: Path) -> Path | None:
    return path.relative_to(root) if path.is_relative_to(root) else None


def _as_moved(path: Path, record: Mapping[str, Any], place: Path) -> Path:
    """Where a path lies from a job's folder as it did when the record was written: a project folder
    may have been moved, or copied from another machine."""
    old = record.get(FOLDER)
    if not isinstance(old, str):
        return path
    return Path(os.path.normpath(place / os.path.relpath(path, old)))


def owner(
    root: Path, record: Mapping[str, Any], value: str, known: set[str], place: Path
) -> str | None:
    """The job in whose folder a file lies, given as the job of `record`, at `place`, was given
    it."""
    if "/" not in value and "." not in value and value not in known:
        return None
    path = Path(os.path.normpath(Path(record.get("working_directory", ".")) / value))
    inside = _below(path, root) or _below(_as_moved(path, record, place), root)
    if inside is None:
        return None
    for one in (inside, *inside.parents):
        if one.as_posix() in known:
            return one.as_posix()
    return _made_beside(inside, known)


def _made_beside(file: Path, known: set[str]) -> str | None:
    """The job that wrote a file beside its folder or its own file: `x_map.mrc` is of `x.star`,
    `x.mrc` of `x_job`."""
    part = next((one for one in _PARTS if file.stem.endswith(one)), "")
    for stem in dict.fromkeys((file.stem, file.stem.removesuffix(part))):
        for suffix in ("_job", *FILES):
            if (name := file.with_name(f"{stem}{suffix}").as_posix()) in known:
                return name
    return None
