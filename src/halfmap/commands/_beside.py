"""What a command without a job folder leaves of itself: a record beside the file that it wrote."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from halfmap.options import recorded
from halfmap.workspace.records import keep_record_beside


def leave_record(
    command: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: Path,
    others: Iterable[Path] = (),
    **results: Any,
) -> None:
    """`PATH.json`: that `path`, and the `others` that there are, were made by `command` with these
    arguments (its `locals()` at the start), and what it found; pages and reports show it."""
    files = [one.name for one in others if one.exists() and one.parent == path.parent]
    kept = {**recorded(command, arguments), "out": str(arguments["out"])}
    keep_record_beside(path, command.__name__, kept, files=files, **results)
