"""Docstrings are plain text with formulas between backticks; autodoc reads reStructuredText."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

SPAN = re.compile(r"(``.+?``|`[^`]+`|:\w+:`[^`]+`)", re.DOTALL)


def as_restructured_text(text: str) -> str:
    """The same text, in which a span between backticks is code and no other sign is markup; a
    paragraph that is indented is shown as it stands."""
    paragraphs = re.split(r"\n\s*\n", text)
    out = []
    for n, paragraph in enumerate(paragraphs):
        if paragraph.startswith(">>> "):
            out.append(paragraph)  # a block of Python as it is
            continue
        indented = paragraph.startswith(" ")
        if indented and n and not _in_section(paragraphs[:n]):
            out.append("::\n\n" + paragraph)
        else:
            out.append(_escaped(_items_apart(paragraph)))
    return "\n\n".join(out)


def _in_section(before: list[str]) -> bool:
    """Whether the last paragraph that is not indented opened a section, such as Raises."""
    last = next((p for p in reversed(before) if not p.startswith(" ")), "")
    return bool(re.match(r"(Args|Raises|Returns|Yields):", last))


def _items_apart(paragraph: str) -> str:
    """A list, each item on one line with empty lines between; anything else as it is."""
    if not re.match(r"(\d+\.|-) ", paragraph):
        return paragraph
    lines = re.split(r"\n(?=\s*(?:\d+\.|-) )", paragraph)
    return "\n\n".join(" ".join(line.split()) for line in lines)


def _escaped(paragraph: str) -> str:
    parts = SPAN.split(paragraph)
    for n, part in enumerate(parts):
        if n % 2 == 0:
            parts[n] = re.sub(r"([*|\\])|_(?=\W|$)", lambda m: "\\" + m[0], part)
        elif not part.startswith((":", "``")):
            code = part.strip("`").replace("\n", " ")
            parts[n] = f"``{re.sub(' +', ' ', code).strip()}``"
        # a word may follow code at once: `Sums`'
        if n % 2 and n + 1 < len(parts) and re.match(r"[\w\\(]", parts[n + 1]):
            parts[n + 1] = "\\ " + parts[n + 1]
        if n % 2 and re.search(r"[\w)/]$", parts[n - 1]):
            parts[n - 1] += "\\ "
    return "".join(parts)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_restructured_text("\n".join(lines)).split("\n")
    uses = Path(app.srcdir, "_built", "uses", f"{name}.examples")
    if what in ("function", "class") and uses.exists() and uses.stat().st_size:
        lines += ["", "Scripts that use it:", "", f".. minigallery:: {name}", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
    return {"parallel_read_safe": True}
