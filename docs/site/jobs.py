"""A page for every job, made of its docstring and of its annotated options; what its files mean
stands in docs/job_notes/NAME.md, if there is one. A new command appears by itself."""

import inspect
import shlex
from pathlib import Path

from sphinx.application import Sphinx

import halfmap
from halfmap.cli.application import PANELS, command_of
from halfmap.commands._signatures import command_signature
from halfmap.options import NamedOption, options_of


def write_pages(docs: Path, out: Path) -> None:
    """All pages and their index, in Markdown; files that would not change are left alone."""
    out.mkdir(parents=True, exist_ok=True)
    index = ["# The jobs", "", _INTRODUCTION, ""]
    for panel, names in PANELS.items():
        rows = [f"| [`halfmap {n}`]({n}.md) | {_first_sentence(n)} |" for n in names]
        index += [f"## {panel}", "", "| job | what it does |", "|---|---|", *rows, ""]
        for name in names:
            notes = docs / "job_notes" / f"{name}.md"
            _write(out / f"{name}.md", page_of(name, notes))
    names = [name for panel in PANELS.values() for name in panel]
    index += ["```{toctree}", ":hidden:", "", *names, "```", ""]
    _write(out / "index.md", "\n".join(index))


_INTRODUCTION = (
    "Every job is a command, `halfmap NAME`, and a function of Python, `halfmap.NAME(...)`, with "
    "the same options. These pages are made from the functions themselves, as `--help` is."
)


def page_of(name: str, notes: Path) -> str:
    """The page of a job."""
    function = getattr(halfmap, name)
    shown = options_of(function)
    text = [f"# halfmap {name}", "", *_text(name), ""]
    if notes.exists():
        text += [notes.read_text(encoding="utf-8"), ""]
    text += ["## Options", "", "| option | in Python | default | |", "|---|---|---|---|"]
    text += [_row(one) for one in shown]
    text += ["", f"`{_short_signature(name, shown)}`", ""]
    return "\n".join(text)


def _text(name: str) -> list[str]:
    """The docstring as Markdown: sections in bold, the example as one would type it in a shell and
    in Python."""
    out = []
    for paragraph in (inspect.getdoc(getattr(halfmap, name)) or "").split("\n\n"):
        section, _, rest = paragraph.partition("\n")
        if paragraph.startswith("Example: "):
            shell = " ".join(paragraph.removeprefix("Example: ").split())
            out += ["```", shell, "```", "", "```python", "import halfmap", ""]
            out += [in_python(shell), "```"]
        elif section in ("Args:", "Raises:", "Returns:"):
            out += [f"**{section.rstrip(':')}**", "", rest]
        else:
            out.append(paragraph)
        out.append("")
    return out


def in_python(shell: str) -> str:
    """The call that is the same as a command line: `halfmap fsc a.mrc b.mrc` is
    `halfmap.fsc(a='a.mrc', b='b.mrc')`, with the names that the function has."""
    _, name, *words = shlex.split(shell)
    command = command_of(command_signature(name))
    context = command.make_context(name, words)
    given = [
        f"{option}={_plain(context.params[option])!r}"
        for option in inspect.signature(getattr(halfmap, name)).parameters
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE"
    ]
    call = f"halfmap.{name}({', '.join(given)})"
    return call if len(call) < 88 else f"halfmap.{name}(\n    " + ",\n    ".join(given) + ",\n)"


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _first_sentence(name: str) -> str:
    paragraph = (inspect.getdoc(getattr(halfmap, name)) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def _row(one: NamedOption) -> str:
    default = "needed" if one.required else _default(one)
    flag = "(Python only)" if one.option.python_only else f"`{one.flag}`"
    choices = f" One of {', '.join(f'`{c}`' for c in one.choices)}." if one.choices else ""
    told = (one.description + choices).replace("|", "\\|").replace("\n", " ")
    return f"| {flag} | `{one.name}` | {default} | {told} |"


def _default(one: NamedOption) -> str:
    if one.default is None:
        return one.option.unset.replace("|", "\\|") or "none"
    if isinstance(one.default, bool):
        return "yes" if one.default else "no"
    return f"`{one.default}`"


def _short_signature(name: str, shown: tuple[NamedOption, ...]) -> str:
    return f"halfmap.{name}({', '.join(one.name for one in shown if one.required)}, ...)"


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _begin(app: Sphinx) -> None:
    write_pages(Path(app.srcdir), Path(app.srcdir) / "_built" / "jobs")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _begin)
    return {"parallel_read_safe": True}
