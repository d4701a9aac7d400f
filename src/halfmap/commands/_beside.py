"""What a command without a job folder leaves of itself: a record and a report beside the file that
it wrote."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from halfmap.commands._signatures import command_signature
from halfmap.options import recorded
from halfmap.reports.report import REPORT, write_report
from halfmap.workspace.progress import drawing
from halfmap.workspace.records import keep_record_beside


def leave_record(
    command: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: Path,
    others: Iterable[Path] = (),
    **results: Any,
) -> None:
    """`PATH.json`: that `path`, and the `others` that there are, were made by `command` with these
    arguments (its `locals()` at the start), and what it found; pages show it, and so does the
    report `PATH.report.html`. That this cannot be made is a word on the terminal."""
    files = [one.name for one in others if one.exists() and one.parent == path.parent]
    kept = {**recorded(command, arguments), "out": str(arguments["out"])}
    keep_record_beside(path, command.__name__, kept, files=files, **results)
    with drawing(f"{path.name}.{REPORT}"):
        write_report(path.absolute(), command_signature)
