"""The typer application, made from the signatures and docstrings of the commands: no option is
written here."""

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import halfmap
from halfmap.commands._signatures import command_signature
from halfmap.options import NamedOption, options_of

PANELS = {
    "Start here": ("demo", "info", "web"),
    "From particles to maps": (
        "class2d",
        "abinitio",
        "refine",
        "ctfrefine",
        "class3d",
        "reconstruct",
        "restore",
    ),
    "From half maps to a finished map": (
        "mask",
        "postprocess",
        "orientations",
        "localres",
        "symmetry",
        "volume",
    ),
    "Around them": (
        "simulate",
        "project",
        "fsc",
        "select",
        "stack",
        "join",
        "subtract",
        "expand",
        "convert",
        "resume",
    ),
}
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_KIND_METAVARS = {int: "N", float: "X", Path: "FILE", str: "TEXT"}
_UNIT_METAVARS = {"px": "PX", "deg": "DEG", "A": "A", "kV": "KV", "mm": "MM", "mrad": "MRAD"}


class Commands(typer.core.TyperGroup):
    """The commands of `PANELS`: listed by their help alone, made whole when one is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in PANELS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        panel = next((panel for panel, names in PANELS.items() if cmd_name in names), None)
        if panel is None:
            return None
        told = help_of(command_signature(cmd_name))
        return typer.core.TyperCommand(cmd_name, help=told, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        if name is None or found is None:
            return name, found, rest
        return name, command_of(command_signature(name), lambda: getattr(halfmap, name)), rest


def command_of(
    signature: Callable[..., Any], function: Callable[[], Callable[..., Any]] | None = None
) -> Any:
    """The command line of a function: options as `signature` has them, help from its docstring;
    when run, it calls what `function` gives (`signature` itself, if None) and prints the result.
    """
    name = signature.__name__

    def run(**arguments: Any) -> None:
        result = (function() if function else signature)(**arguments)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
            return  # of several processes that torchrun started, the first tells
        for note in getattr(result, "notes", ()):
            typer.echo(note, err=True)
        for line in lines_of(_speaker(name, arguments), result):
            typer.echo(line)

    shown = [one for one in options_of(signature) if not one.option.python_only]
    run.__signature__ = inspect.Signature([_parameter(one) for one in shown])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: _parameter(one).annotation for one in shown}
    alone = typer.Typer(**SETTINGS)
    alone.command(name, help=help_of(signature))(run)
    return typer.main.get_command(alone)


def help_of(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring, and the one that begins with `Example:`."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    shown = [paragraphs[0], *(one for one in paragraphs[1:] if one.startswith("Example:"))]
    return "\n\n".join(" ".join(one.split()) for one in shown)


def _speaker(name: str, arguments: dict[str, Any]) -> str:
    """The command that the last line is of: `resume` ends with that of the job it went on with."""
    if name != "resume":
        return name
    from halfmap.workspace.job import read_job

    return read_job(arguments["folder"])["command"]


def lines_of(name: str, result: object) -> Iterable[str]:
    """What a command says of its result: the lines it holds, if any, then its summary or where it
    is."""
    yield from getattr(result, "lines", ())
    if (summary := getattr(result, "summary", None)) is None and hasattr(result, "folder"):
        summary = f"results in {result.folder}"
    if summary:
        yield f"{name}: {summary}"


def _parameter(one: NamedOption) -> inspect.Parameter:
    """A typer parameter. Text that the option reads itself, and choices, come as they were typed:
    it is the option that refuses them, with the same words as in Python."""
    kind: Any = str if one.option.parse or one.choices else one.kind
    if one.count > 1:
        kind = tuple[(kind,) * one.count]  # type: ignore[misc]
    elif one.repeated and not one.option.parse:
        kind = list[kind]
    if one.optional and not one.required:
        kind = kind | None
    default = inspect.Parameter.empty if one.required else one.default
    annotation = Annotated[kind, _declared(one)]
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _declared(one: NamedOption) -> Any:
    option = one.option
    metavar = option.metavar or "|".join(one.choices) or _UNIT_METAVARS.get(option.unit)
    metavar = metavar or (_KIND_METAVARS.get(one.kind) if one.count == 1 else None)
    given: dict[str, Any] = {"help": one.description, "metavar": metavar}
    if option.unset:
        given["show_default"] = option.unset
    if option.positional:
        return typer.Argument(**given)
    return typer.Option(one.flag, **given)
