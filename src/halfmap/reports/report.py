"""`report.html`: one file that shows a finished job, or a chain of jobs, without a network.

The page's own scripts, its style and the libraries are written into it, beside the numbers, a light
mesh of each map and a few pictures. Its policy names its scripts by their digests: nothing else
runs, whatever a file or micrograph is called.
"""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from halfmap.errors import InputError
from halfmap.reports.colouring import colouring_of
from halfmap.reports.job_data import Signature, directions, job_data
from halfmap.reports.jobs import find_jobs, job_record, located, parents
from halfmap.reports.surface import read_density_of, surface_of
from halfmap.workspace.machine import write_whole
from halfmap.workspace.records import as_json

STATIC = Path(__file__).parent / "static"
REPORT = "report.html"
MESH_BOXES = (112, 80, 56, 40)  # voxels along a side of a mesh in a report: the first that is light
HEAVIEST_MESHES = 4_000_000  # bytes, all of a report's together; as text they are a third more
MOST_MAPS = 4  # meshes of one job
_PICTURES = (
    "classes.png",
    "class_history.png",
    "posterior_weights.png",
    "local_resolution.png",
    "aberrations.png",
    "micrographs.png",
    "directional_fsc.png",
    "particles.png",
    "map.png",
)
_MOST_PICTURES, _WIDEST = 3, 1000
_SCRIPTS = ("dom.js", "plots.js", "lighter.js", "mesh.js", "surface.js", "figures.js", "report.js")


def report_path(job: Path) -> Path:
    """Where a job's report lies: in its folder, or beside the file `FILE` that is the job, as
    `FILE.report.html`."""
    return job / REPORT if job.is_dir() else job.with_name(f"{job.name}.{REPORT}")


def write_report(job: Path, signature: Signature) -> None:
    """Write the report of a finished job to where it belongs, whole or not at all."""
    write_whole(report_path(job), report_page(job.parent, job.name, signature, False))


def report_page(root: Path, job: str, signature: Signature, chain: bool) -> str:
    """The report of a job, or of it and all it came from, those first.

    Raises:
        InputError: no such job.
    """
    shown = _chain(root, job) if chain else [job]
    told = [_told(root, one, signature, HEAVIEST_MESHES // len(shown)) for one in shown]
    name = told[-1]["name"] or job
    data = json.dumps(as_json({"jobs": told}), allow_nan=False)
    # nothing in the data can end the element that it lies in
    safe = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    policy = html.escape(report_policy(False))
    # the library of surfaces comes first, and is most of a report that has none
    scripts = _scripts()[0 if any(one["meshes"] for one in told) else 1 :]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(name)} · halfmap report</title>",
        f"<style>{_style()}</style></head><body>",
        '<main id="main"></main><noscript>This report needs JavaScript.</noscript>',
        f'<script type="application/json" id="data">{safe}</script>',
        *(f"<script>{one}</script>" for one in scripts),
        "</body></html>",
    ]
    return "\n".join(parts)


def report_policy(served: bool = True) -> str:
    """What a report may do: run its own scripts, known by digest, and show what is in it."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in _scripts()]
    scripts = " ".join(f"'sha256-{one}'" for one in digests)
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        f"{policy}; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
        if served
        else policy
    )


@cache
def _scripts() -> tuple[str, ...]:
    """The libraries, and the page's own modules as one: imports go, and with them `export`."""
    vendor = [(STATIC / "vendor" / name).read_text("utf-8") for name in ("three.js", "uplot.js")]
    own = []
    for name in _SCRIPTS:
        text = (STATIC / "js" / name).read_text(encoding="utf-8")
        text = re.sub(r"^import\s[^;]*;\n", "", text, flags=re.MULTILINE)
        own.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    joined = '(() => {\n"use strict";\n' + "\n".join(own) + "\n})();"
    return tuple(one.replace("</script", "<\\/script") for one in (*vendor, joined))


@cache
def _style() -> str:
    own = (STATIC / "style.css").read_text(encoding="utf-8")
    return (STATIC / "vendor" / "uplot.css").read_text(encoding="utf-8") + own


def _chain(root: Path, job: str) -> list[str]:
    """A job and all those that it came from, the first of them first."""
    known = set(find_jobs(root))
    order: list[str] = []

    def add(one: str, above: tuple[str, ...]) -> None:
        for parent in parents(root, one, known):
            if parent not in above and parent not in order:
                add(parent, (*above, one))
        order.append(one)

    add(job, (job,))
    return list(dict.fromkeys(order))


def _told(root: Path, job: str, signature: Signature, heaviest: int) -> dict[str, Any]:
    data, place = job_data(root, job, signature), root / job
    data["meshes"] = list(_meshes(place, data["maps"], heaviest))
    data["shown"] = _pictures(place, data["pictures"], bool(data["meshes"]))
    data["sphere"] = None
    if data["meshes"] and data["command"] != "simulate":
        symmetry = job_record(root, job)["parameters"].get("symmetry") or "C1"
        data["sphere"] = directions(place, symmetry)
    return data


def _meshes(place: Path, maps: list[dict[str, Any]], heaviest: int) -> Any:
    final = [m for m in maps if "iteration" not in m]
    told = [m for m in final if not re.search("half|mask|local_resolution", m["label"])]
    shown = (told or final)[:MOST_MAPS]  # of a mask, itself
    for one in shown:
        try:
            by = located(place, one["colour"]) if "colour" in one else None
            packed = _light_mesh(located(place, one["file"]), by, heaviest // len(shown))
        except (InputError, OSError, ValueError):
            continue  # a map that has no surface
        yield {"label": one["label"], "packed": base64.b64encode(packed).decode()}


def _light_mesh(path: Path, coloured_by: Path | None, heaviest: int) -> bytes:
    """The surface of a map in the finest box in which it is light enough."""
    volume, pixel = read_density_of(path)
    make = surface_of if coloured_by is None else colouring_of(coloured_by).surface_of
    for box in MESH_BOXES:
        packed = make(volume, pixel, size=box).packed()
        if len(packed) < heaviest:
            break
    return packed


def _picture_paths(place: Path, told: list[str], has_mesh: bool) -> Iterator[Path]:
    """Of a job with a folder those that say most; of a file the one beside it."""
    if not place.is_dir():
        own = place.with_suffix(".png")
        if own.name in told:
            yield own
        return
    for name in _PICTURES:
        there = [one for one in (place / "pictures" / name, place / name) if one.is_file()]
        if there and (name != "map.png" or has_mesh):
            yield there[0]


def _pictures(place: Path, told: list[str], has_mesh: bool) -> list[dict[str, str]]:
    found = []
    for path in _picture_paths(place, told, has_mesh):
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
                small.thumbnail((_WIDEST, 10 * _WIDEST))
                few = small.quantize(128)
        except (OSError, ValueError):
            continue
        out = io.BytesIO()
        few.save(out, "PNG", optimize=True)
        encoded = base64.b64encode(out.getvalue()).decode()
        found.append({"name": path.name, "address": f"data:image/png;base64,{encoded}"})
    return found[:_MOST_PICTURES]
