"""Whether a job may be made, or go on, in a folder: nothing of the user's is ever overwritten, and
a resumed job computes what it was asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfmap.errors import InputError
from halfmap.options import NamedOption
from halfmap.particles import load_particles
from halfmap.workspace.records import as_json, can_resume, read_job


def check_same(
    previous: dict[str, Any],
    command: str,
    asked: dict[str, Any],
    seed: int,
    out: str | Path,
    options: Sequence[NamedOption],
) -> None:
    """Refuse to go on with another command, seed or arguments than the job was started with, but
    for options that are free on resume."""
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
    started = {**as_json({one.name: one.default for one in options}), **previous["parameters"]}
    for name in sorted((asked.keys() | previous["parameters"].keys()) - free):
        before, now = started.get(name), asked.get(name)
        if before != now:
            raise InputError(
                f"{name}={now!r}: the job in {out} was started with {before!r}; use: halfmap "
                f"resume {out}, or another folder"
            )


def check_may_overwrite(
    folder: Path,
    previous: dict[str, Any] | None,
    asked: dict[str, Any],
    overwrite: bool,
    out: str | Path,
) -> None:
    """Refuse a folder in use, with the way out of it.

    Raises:
        InputError: the folder is no job's, or holds a job and `overwrite` is not asked for.
    """
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
            stacks = [] if name == "passthrough" else _stacks_of(one, asked)
            for path in (Path(one), *stacks):
                if path.resolve().is_relative_to(folder.resolve()):
                    raise InputError(
                        f"--out {out}: --overwrite would remove the input {name} {path}; choose "
                        "another folder"
                    )


def _stacks_of(path: str, asked: dict[str, Any]) -> list[Path]:
    """The image stacks that a particle file names, where they are."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".star", ".cs"):
        return []
    particles = load_particles(
        path,
        data_dir=asked.get("data_dir"),
        check_images=False,
        use_ctf=bool(asked.get("ctf", True)),
        passthrough=asked.get("passthrough") if suffix == ".cs" else None,
    )
    return [stack for stack in particles.stack_paths if stack is not None]


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
