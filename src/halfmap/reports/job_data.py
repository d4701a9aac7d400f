"""Everything that a job's page shows, from its folder: JSON-able, in the order of iterations."""

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfmap.errors import InputError
from halfmap.io.mrc import open_stack
from halfmap.io.star import read_star
from halfmap.options import command_line, options_of, python_call
from halfmap.reports.colouring import LOCAL_RESOLUTION
from halfmap.reports.directions import count_by_cell, evenness, viewing_directions
from halfmap.reports.jobs import beside, find_jobs, job_record, job_row, located, parents
from halfmap.reports.prose import methods, references
from halfmap.workspace.figures import read_figures
from halfmap.workspace.progress import MESSAGES
from halfmap.workspace.records import as_json, last_lines, read_events

Signature = Callable[[str], Callable[..., Any]]  # the function of a command, by name
MOST_POINTS = 600  # of a curve by iteration: more than there are pixels
MOST_MESSAGES = 300  # lines of what a job told
MOST_MESSAGE_BYTES = 200_000  # in which they are looked for
MOST_EVENT_BYTES = 16_000_000  # of what iterations tell: some ten thousand of them
# commands that keep poses and make no map: what follows starts from the map before
GOES_ON = ("ctfrefine", "expand")
MOST_CURVES = 60  # FSC curves of iterations, evenly chosen
_SERIES = (
    "iteration",
    "resolution_angstrom",
    "scored_to_angstrom",
    "mean_log_likelihood",
    "mean_largest_weight",
    "mean_significant",
    "mean_score",
    "angular_change_deg",
    "shift_change_angstrom",
    "class_changes",
    "accuracy_deg",
    "accuracy_angstrom",
    "ms_per_image",
    "elapsed_seconds",
    "norm_outliers",
    "empty_classes",
)
_FSC_COLUMNS = {
    "corrected for the mask": "rlnFourierShellCorrelationCorrected",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "phases randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
}


def job_data(root: Path, job: str, signature: Signature) -> dict[str, Any]:
    """The whole of a job. `signature` gives the function whose options the parameters are.

    Raises:
        InputError: no such job.
    """
    record, place = job_record(root, job), root / job
    events = read_events(place, most_bytes=MOST_EVENT_BYTES) if place.is_dir() else []
    iterations = [one for one in events if "iteration" in one]
    row, others = job_row(root, job), beside(record, place)
    data = {
        **row,
        **how_to_repeat(record, place, signature),
        "folder": str(place),
        "seed": record.get("seed"),
        "runs": record.get("runs", 1),
        "versions": record.get("versions", {}),
        "machine": record.get("machine", {}),
        "results": record.get("results", {}),
        "series": series(iterations),
        "stages": stages(iterations),
        "curves": curves(iterations),
        "fsc": final_curves(place, others),
        "messages": messages(place),
        "figures": read_figures(place),
        "classes2d": class_table(place),
        "maps": map_files(place, others),
        "map_before": map_before(root, job) if record["command"] in GOES_ON else None,
        "pictures": [
            *_listed(place / "pictures", (".png",)),
            *_listed(place, (".png",)),
            *(name for name in others if name.endswith(".png")),
        ],
        "files": files(place, others),
    }
    data["methods"] = methods(record, data)
    data["references"] = references(record)
    return as_json(data)


def map_before(root: Path, job: str) -> str | None:
    """The map, from the root, of the nearest job before this one that has one: that which poses
    were found against, where particles were changed since."""
    known, before, seen = set(find_jobs(root)), [job], {job}
    while before:
        above = [one for name in before for one in parents(root, name, known)]
        before = [one for one in dict.fromkeys(above) if one not in seen]
        seen |= set(before)
        for one in before:
            if (root / one / "map.mrc").is_file():
                return f"{one}/map.mrc"
    return None


def messages(place: Path) -> list[str]:
    """The last lines that the job told, in plain words."""
    try:
        return last_lines(place / MESSAGES, MOST_MESSAGE_BYTES)[-MOST_MESSAGES:]
    except OSError:
        return []


def how_to_repeat(record: dict[str, Any], place: Path, signature: Signature) -> dict[str, Any]:
    """Parameters with their help, and the command and Python call that repeat the job."""
    given = {"out": str(place), **record["parameters"]}
    if "seed" in record:
        given.setdefault("seed", record["seed"])
    try:
        function = signature(record["command"])
    except (ImportError, AttributeError):  # a command of another version
        return {"parameters": [], "shell": "", "python": "", "working_directory": ""}
    named = {one.name: one for one in options_of(function)}
    told = [
        {
            "name": name,
            "value": value,
            "default": name in named and value == as_json(named[name].default),
            "unset": named[name].option.unset if name in named else "",
            "unit": named[name].option.unit if name in named else "",
            "help": named[name].description if name in named else "",
        }
        for name, value in record["parameters"].items()
    ]
    known = {name: value for name, value in given.items() if name in named}
    return {
        "parameters": told,
        "shell": shlex.join(["halfmap", *command_line(function, known)]),
        "python": python_call(function, known),
        "working_directory": record.get("working_directory", ""),
    }


def series(events: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What the iterations tell, a list by name; of thousands every few."""
    chosen = _thinned(events, MOST_POINTS)
    told = {name: [one.get(name) for one in chosen] for name in _SERIES}
    kept = {name: values for name, values in told.items() if any(v is not None for v in values)}
    for name in ("resolutions_angstrom", "class_sizes"):
        width = max((len(one.get(name) or []) for one in chosen), default=0)
        if 1 < width <= 16:
            rows = [(one.get(name) or []) + [None] * width for one in chosen]
            kept[name] = [[row[k] for row in rows] for k in range(width)]
    return kept


def stages(events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of each stage by iteration, the longest stage first."""
    chosen = [one for one in _thinned(events, MOST_POINTS) if isinstance(one.get("seconds"), dict)]
    names = dict.fromkeys(name for one in chosen for name in one["seconds"])
    told = {name: [float(one["seconds"].get(name) or 0) for one in chosen] for name in names}
    return dict(sorted(told.items(), key=lambda item: -sum(item[1])))


def curves(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """FSC of the half maps by iteration, class and shell, with the shells' frequencies in 1/A."""
    told = _thinned([one for one in events if one.get("correlation")], MOST_CURVES)
    if not told:
        return None
    side = told[-1]["radius"] * told[-1]["scored_to_angstrom"]
    shells = len(told[-1]["correlation"][0])
    return {
        "frequency": [s / side for s in range(shells)],
        "iteration": [one["iteration"] for one in told],
        "correlation": [one["correlation"] for one in told],
    }


def final_curves(place: Path, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The curves of every FSC table of the job; `others` are its files beside its folder."""
    found = []
    tables = sorted(place.glob("*fsc.star")) if place.is_dir() else []
    tables += [located(place, name) for name in others if name.endswith("fsc.star")]
    for path in (one for one in tables if not one.is_symlink()):
        try:
            blocks = read_star(path).blocks
            table = blocks["fsc"]
            shown = {
                label: table.floats(name).tolist()
                for label, name in _FSC_COLUMNS.items()
                if name in table
            }
            frequency = table.floats("rlnResolution").tolist()
            resolution = float(blocks["general"].floats("rlnFinalResolution")[0])
        except (InputError, KeyError, OSError):
            continue
        name = path.stem.removesuffix("fsc").strip("_") or "map"
        optimistic = "halfmapResolutionIsOptimistic" in blocks["general"]
        found.append(
            {
                "name": name,
                "file": path.name,
                "frequency": frequency,
                "curves": shown,
                "resolution_angstrom": resolution,
                "optimistic": optimistic,
            }
        )
    return found


def class_table(place: Path) -> list[dict[str, Any]]:
    """Number, size, share and resolution of each class of a 2D classification."""
    path = place / "classes.star"
    if not path.exists() or not (place / "classes.mrcs").exists():
        return []
    try:
        table = read_star(path).blocks["model_classes"]
        sizes = table.ints("halfmapClassSize")
        resolution = table.floats("rlnEstimatedResolution")
        share = table.floats("rlnClassDistribution")
    except (InputError, KeyError, OSError):
        return []
    return [
        {
            "number": k + 1,
            "size": int(sizes[k]),
            "resolution_angstrom": float(resolution[k]) if resolution[k] < 999 else None,
            "share": float(share[k]),
        }
        for k in range(len(table))
    ]


def map_files(place: Path, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Maps that can be turned: final ones, half maps, and the coarse ones of iterations."""
    found: list[dict[str, Any]] = []
    maps = sorted(place.glob("*.mrc")) if place.is_dir() else []
    maps += [located(place, name) for name in others if name.endswith(".mrc")]
    for path in (one for one in maps if not one.is_symlink()):  # a link may lead anywhere
        try:
            shape, pixel = open_stack(path).shape, open_stack(path).pixel_size_angstrom
        except (InputError, OSError, ValueError):
            continue
        if len(set(shape)) == 1:
            found.append(
                {"file": path.name, "label": path.stem, "box": shape[0], "pixel_angstrom": pixel}
            )
    _colour(found)
    last = ("local_resolution", "mask", "half")  # of which a surface says less
    found.sort(key=lambda one: ([word in one["label"] for word in last], one["label"]))
    for name in _listed(place / "shown", (".npz",)):
        if name.startswith("maps_"):
            iteration = int(name[5:8])
            label = f"iteration {iteration}" if iteration else "start"
            found.append({"file": f"shown/{name}", "label": label, "iteration": iteration})
    return found


def _colour(maps: list[dict[str, Any]]) -> None:
    """Name, for each map but masks, the map of local resolution that there is of its box."""
    by = next((one for one in maps if one["file"] == LOCAL_RESOLUTION), None)
    for one in maps:
        if by and one["box"] == by["box"] and one is not by and "mask" not in one["label"]:
            one["colour"] = by["file"]


def files(place: Path, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Names and sizes of what can be downloaded."""
    told = []
    pictures = [f"pictures/{n}" for n in _listed(place / "pictures", None)]
    for name in [*_listed(place, None), *pictures, *others]:
        try:
            told.append({"name": name, "bytes": located(place, name).stat().st_size})
        except OSError:
            continue
    return told


def directions(place: Path, symmetry: str) -> dict[str, Any] | None:
    """Counts over the sphere and the numbers of evenness, of the particles of a 3D job."""
    from halfmap.particles import load_particles
    from halfmap.symmetries import symmetry_matrices

    path = place / "particles.star"
    if not path.exists():
        return None
    particles = load_particles(path, check_images=False, use_ctf=False)
    if not particles.has_poses:
        return None
    views = viewing_directions(particles.rotations_deg, np.asarray(symmetry_matrices(symmetry)))
    return {**count_by_cell(views), **evenness(views, len(particles)), "symmetry": symmetry}


def _thinned(events: Sequence[Any], most: int) -> list[Any]:
    """All, or so many evenly chosen, the last always among them."""
    if len(events) <= most:
        return list(events)
    step = (len(events) - 1) / (most - 1)
    return [events[round(k * step)] for k in range(most)]


def _listed(folder: Path, suffixes: tuple[str, ...] | None) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                one.name
                for one in entries
                if one.is_file(follow_symlinks=False)
                and one.name[0] != "."
                and (suffixes is None or one.name.endswith(suffixes))
            )
    except OSError:
        return []
