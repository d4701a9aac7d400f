"""Forms made from the commands' signatures, and the command line that a filled-in form stands for.

No option is written here: names, help, units, limits, choices and defaults are those of the
functions in `commands/`, and a form starts what the same words in a shell would start.
"""

import functools
import inspect
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import halfmap
from halfmap.commands._signatures import command_signature
from halfmap.errors import InputError
from halfmap.options import NamedOption, command_line, options_of
from halfmap.workspace.records import as_json

# commands that tell something, serve, or are buttons of their own
NO_FORM = ("info", "resume", "web", "demo")


def commands() -> list[str]:
    """Names of the commands that have a form."""
    return [name for name in halfmap._COMMANDS if name not in NO_FORM]


@functools.cache
def form(name: str) -> dict[str, Any]:
    """What a page needs to draw the form of a command.

    Raises:
        InputError: no such command.
    """
    if name not in commands():
        raise InputError(f"{name}: no such command")
    function = command_signature(name)
    text = (inspect.getdoc(function) or "").split("\n\n")
    return {
        "command": name,
        "help": " ".join(text[0].split()),
        "options": [_field(one) for one in options_of(function) if not one.option.python_only],
    }


def _field(one: NamedOption) -> dict[str, Any]:
    option = one.option
    return {
        "name": one.name,
        "flag": one.flag,
        "help": option.help,
        "limits": one.limits,
        "unit": option.unit,
        "kind": one.kind.__name__,
        "choices": list(one.choices),
        "several": one.repeated or one.count > 1,
        "required": one.required,
        "default": as_json(one.default),
        "unset": option.unset,
        "metavar": option.metavar,
        "at_least": option.at_least if option.at_least is not None else option.above,
        "at_most": option.at_most if option.at_most is not None else option.below,
        "on_resume": option.free_on_resume,
    }


def values_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a command's options from what a form sent, checked as the command checks them.

    Raises:
        InputError: an option that there is not, or a value that the command would refuse; with the
            option's name first.
    """
    if name not in commands():
        raise InputError(f"{name}: no such command")
    known = {one.name: one for one in options_of(command_signature(name))}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known or known[key].option.python_only:
            raise InputError(f"{key}: halfmap {name} has no such option")
        one = known[key]
        if value is None or value == "":
            continue
        values[key] = _read(one, value)
    missing = [
        one.name if one.option.positional else one.flag
        for one in known.values()
        if one.required and one.name not in values
    ]
    if missing:
        raise InputError(f"{missing[0]}: a value is needed")
    return values


def _read(one: NamedOption, value: Any) -> Any:
    """A value as the command line would read it; text that an option reads itself stays text."""
    # what needs more than the value itself is checked by the command, before it starts
    here = replace(one, option=replace(one.option, check=None))
    if one.option.parse is not None:
        here.checked(str(value))
        return str(value)
    if isinstance(value, str) and (one.repeated or one.count > 1):
        value = _several(value)
    if isinstance(value, list):
        read: Any = [_number(one, v) for v in value]
        if one.count > 1:
            read = tuple(read)
    else:
        read = _number(one, value)
    return here.checked(read)


def _several(text: str) -> list[str]:
    """Values with commas or spaces between; one with spaces in it stands in quotation marks."""
    try:
        return shlex.split(text.replace(",", " "))
    except ValueError:  # a quotation mark without its fellow
        return [text]


def _number(one: NamedOption, value: Any) -> Any:
    if one.kind not in (int, float) or not isinstance(value, str):
        if isinstance(value, str) and any(c in value for c in "\0\n\r"):
            raise InputError(f"{one.flag}: text of one line is expected")
        return value
    try:
        return one.kind(value)
    except ValueError:
        return value  # refused by the option, in its own words


def words_of(name: str, given: Mapping[str, Any]) -> list[str]:
    """The words after `halfmap` that a filled-in form stands for.

    Raises:
        InputError: as `values_of`.
    """
    values = values_of(name, given)  # first of all, whether there is such a command
    return command_line(command_signature(name), values)


def estimate(name: str, values: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Memory that a job will need, counted as the job itself counts it before it starts: made in a
    worker's process, since the count is the engine's.

    Raises:
        InputError: no such particles.
    """
    from halfmap.engine.memory import JobSize
    from halfmap.particles import load_particles
    from halfmap.symmetries import point_group
    from halfmap.workspace.memory import allowed_memory_bytes

    options = {one.name: one.default for one in options_of(command_signature(name))}
    source = values.get("particles")
    if not source or "memory" not in options:  # what the engine does not do needs little
        return {"bytes": None}
    path = Path(root, str(source))
    particles = load_particles(path, check_images=False, use_ctf=False)
    dimensions = 2 if name == "class2d" else 3
    classes = int(values.get("classes") or 1)
    folds = int(values.get("folds") or options.get("folds") or 1)
    size = JobSize(
        particles.box,
        dimensions,
        classes,
        folds,
        operators=len(point_group(str(values.get("symmetry") or "C1"))),
        makes_final_maps=name not in ("class2d", "abinitio"),
        images=len(particles),
        iterates=name != "reconstruct",
    )
    return {
        "bytes": size.least_bytes(64),
        "machine_bytes": allowed_memory_bytes(),
        "particles": len(particles),
        "box": particles.box,
        "pixel_angstrom": particles.pixel_size_angstrom,
    }
