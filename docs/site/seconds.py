"""What each script of the gallery takes, and the whole build: seconds.json beside the pages."""

import json
import time
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_seconds: dict[str, dict[str, float]] = {}
_began: dict[str, tuple[float, float]] = {}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def note(gallery: dict[str, Any], script: str, when: str) -> None:
    """Called by the gallery before and after each script that it runs."""
    name = Path(script).stem
    if when == "before":
        _began[name] = _now()
        return
    wall, cpu = (now - then for now, then in zip(_now(), _began[name], strict=True))
    _seconds[name] = {"wall_s": wall, "cpu_s": cpu}


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is None and _seconds:
        text = json.dumps(_seconds, indent=1) + "\n"
        Path(app.outdir, "seconds.json").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True}
