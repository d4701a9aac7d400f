"""Figures that a job leaves as numbers, `shown/figures.json`: its page and its report draw them and
give them as pictures and tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from halfmap.workspace.machine import write_whole
from halfmap.workspace.records import as_json

FIGURES = "shown/figures.json"


@dataclass(frozen=True)
class Figure:
    """Curves over one x, or counts in bins that begin at x (`kind` "bins"), each with its unit in
    the label; `x_kind` "resolution": x is a spatial frequency in 1/A, told in Angstrom. `lines` are
    horizontal ones with their names."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    curves: Mapping[str, Sequence[float]]
    kind: Literal["curves", "bins"] = "curves"
    x_kind: Literal["number", "resolution", "squared"] = "number"
    lines: Mapping[str, float] = field(default_factory=dict)


def add_figures(folder: Path, *figures: Figure) -> None:
    """Put figures beside those that the job folder has; one of the same title is replaced."""
    kept = {one["title"]: one for one in read_figures(folder)}
    kept |= {one.title: as_json(asdict(one)) for one in figures}
    path = folder / FIGURES
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(list(kept.values())))


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """Those of a job folder, as JSON; none where there are none, or where they cannot be read."""
    try:
        told = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in told if _is_whole(one)] if isinstance(told, list) else []


def _is_whole(one: Any) -> bool:
    if not isinstance(one, dict) or not all(isinstance(one.get(n), str) for n in ("title", "kind")):
        return False
    x, curves = one.get("x"), one.get("curves")
    return (
        isinstance(x, list)
        and isinstance(curves, dict)
        and all(isinstance(y, list) and len(y) == len(x) for y in curves.values())
    )
