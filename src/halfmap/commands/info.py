"""What a file or a job folder holds, as plain facts for people and programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfmap.commands._options import (
    Annotated,
    DataDir,
    Option,
    Passthrough,
)
from halfmap.errors import InputError
from halfmap.io.cs_files import passthroughs_of
from halfmap.io.mrc import open_stack, read_map
from halfmap.io.other_programs import refuse_other_files
from halfmap.io.star import read_star
from halfmap.options import command
from halfmap.particles import Particles, load_particles
from halfmap.workspace.job import JOB, read_events, read_job

_BATCH_BYTES = 1 << 26
_COMPRESSED = (".gz", ".bz2", ".xz")
_STACKS, _MAPS = (".mrcs", ".st"), (".mrc", ".map", ".ccp4", ".rec")


@dataclass(frozen=True)
class Facts:
    """The facts of each file, in order, and whether they are told as JSON."""

    facts: tuple[dict[str, Any], ...]
    as_json: bool = False

    @property
    def lines(self) -> list[str]:
        """A JSON object per file, or a line per fact."""
        if self.as_json:
            return [json.dumps(one) for one in self.facts]
        return [line for one in self.facts for line in _lines(one)]


@command
def info(
    files: Annotated[
        str | Path | Sequence[str | Path],
        Option("STAR, .cs, MRC maps and stacks, job folders", positional=True, metavar="FILE..."),
    ],
    *,
    as_json: Annotated[
        bool, Option("One JSON object per file, for programs", flag="--json")
    ] = False,
    passthrough: Passthrough = None,
    data_dir: DataDir = None,
) -> Facts:
    """Tell what a STAR, .cs or MRC file or a job folder holds.

    Example: halfmap info particles.star map.mrc refined

    Raises:
        InputError: a file that is missing, of another kind, or damaged.
    """
    paths = [files] if isinstance(files, str | Path) else list(files)
    of_each = passthroughs_of(paths, passthrough)
    facts = [describe(one, of, data_dir) for one, of in zip(paths, of_each, strict=True)]
    return Facts(tuple(facts), as_json)


def _lines(facts: dict[str, Any]) -> list[str]:
    told = [name for name in facts if name not in ("file", "kind", "notes")]
    return [
        f"{facts['file']}: {facts['kind']}",
        *(f"  {name.replace('_', ' '):24} {_words(facts[name])}" for name in told),
        *(f"  {'note':24} {note}" for note in facts.get("notes", ())),
    ]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def describe(
    path: str | Path,
    passthrough: Sequence[str | Path] | None = None,
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Facts about a STAR, .cs (with its `passthrough` files) or MRC file or a job folder:
    JSON-able, `file` and `kind` first; `notes` on what is wrong with the stacks that particles
    name, which are looked for in `data_dir` too.

    Raises:
        InputError: missing, of another kind, or damaged.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        suffix = Path(path.stem).suffix.lower()
    if path.is_dir():
        facts = _describe_job(path)
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder; check the name")
    elif suffix in _STACKS:
        facts = _describe_stack(path)
    elif suffix in _MAPS:
        facts = _describe_mrc(path)
    elif suffix == ".star":
        facts = _describe_star(path, data_dir)
    elif suffix == ".cs":
        facts = {
            "kind": "cryoSPARC particles",
            **_describe_particles(
                load_particles(
                    path, data_dir=data_dir, check_images="told", passthrough=passthrough
                )
            ),
        }
    else:
        refuse_other_files(path)
        raise InputError(
            f"{path}: expected .star, .cs, {', '.join((*_MAPS, *_STACKS))} or a job folder; "
            "rename or convert the file"
        )
    return {"file": str(path), **facts}


def _describe_job(folder: Path) -> dict[str, Any]:
    record, events = read_job(folder), read_events(folder)
    facts = {"kind": f"halfmap {record['command']} job", "status": record["status"]}
    if record.get("message"):
        facts["message"] = record["message"]
    if events and (iterations := [event["iteration"] for event in events if "iteration" in event]):
        facts["iterations done"] = iterations[-1]
    resolutions = [
        event["resolution_angstrom"] for event in events if event.get("resolution_angstrom")
    ]
    if resolutions:
        facts["resolution_angstrom"] = resolutions[-1]
    facts |= record.get("results", {})
    facts["parameters"] = {
        name: value for name, value in record["parameters"].items() if value is not None
    }
    facts |= {
        name: record.get(name)
        for name in (
            "seed",
            "started",
            "ended",
            "wall_seconds",
            "cpu_seconds",
            "peak_memory_bytes",
            "versions",
        )
    }
    facts["files"] = sorted(entry.name for entry in folder.iterdir() if entry.name != JOB)
    return facts


def _describe_star(path: Path, data_dir: str | Path | None) -> dict[str, Any]:
    star = read_star(path)
    blocks = {
        name or "(no name)": f"{len(table)} rows x {len(table.names)} columns"
        for name, table in star.blocks.items()
    }
    columns = {name or "(no name)": list(table.names) for name, table in star.blocks.items()}
    if not any("rlnImageName" in table for table in star.blocks.values()):
        return {"kind": "STAR file", "blocks": blocks, "columns": columns}
    return {
        "kind": "particles",
        "blocks": blocks,
        **_describe_particles(load_particles(path, data_dir=data_dir, check_images="told")),
        "columns": columns,
    }


def _describe_particles(particles: Particles) -> dict[str, Any]:
    classes, class_sizes = np.unique(particles.class_number, return_counts=True)
    halves, half_sizes = np.unique(particles.half_set[particles.half_set > 0], return_counts=True)
    facts: dict[str, Any] = {
        "particles": len(particles),
        "box": particles.box,
        "pixel_size_angstrom": particles.pixel_size_angstrom,
        "poses": "yes"
        if particles.has_poses
        else ("in the plane" if particles.has_in_plane_poses else "no"),
        "ctf": "yes" if particles.has_ctf else "no",
        "optics_groups": len(np.unique(particles.optics_group)),
        "micrographs": len(np.unique(particles.micrograph)),
        "stacks": len(particles.files),
    }
    if particles.has_ctf:
        transfer = particles.transfer
        defocus = (transfer.defocus_u_angstrom + transfer.defocus_v_angstrom) / 2
        facts["voltage_kv"] = float(transfer.voltage_kv[0])
        facts["defocus_angstrom"] = [float(defocus.min()), float(defocus.max())]
        facts["ctf_premultiplied"] = "yes" if transfer.premultiplied.any() else "no"
    if len(classes) > 1:
        facts["class_sizes"] = {
            str(name): int(size) for name, size in zip(classes, class_sizes, strict=True)
        }
    if len(halves):
        facts["half_set_sizes"] = {
            str(name): int(size) for name, size in zip(halves, half_sizes, strict=True)
        }
    if particles.notes:
        facts["notes"] = list(particles.notes)
    return facts


def _describe_stack(path: Path) -> dict[str, Any]:
    stack = open_stack(path)
    images, rows, columns = stack.shape
    step = max(1, _BATCH_BYTES // (rows * columns * 4))
    low, high, total, bad = np.inf, -np.inf, 0.0, 0
    for first in range(0, images, step):
        batch = stack.read(np.arange(first, min(first + step, images)))
        finite = np.isfinite(batch)
        bad += int(batch.size - np.count_nonzero(finite))
        low = min(low, float(batch.min(where=finite, initial=np.inf)))
        high = max(high, float(batch.max(where=finite, initial=-np.inf)))
        total += float(batch.sum(where=finite, dtype=np.float64))
    pixels = images * rows * columns - bad
    facts: dict[str, Any] = {
        "kind": "image stack",
        "images": images,
        "box": rows if rows == columns else [columns, rows],
    }
    facts |= {"pixel_size_angstrom": stack.pixel_size_angstrom, "type": str(stack.layout.dtype)}
    facts |= {"min": low, "max": high, "mean": total / pixels} if pixels else {}
    return facts | ({"not_finite_pixels": bad} if bad else {})


def _describe_mrc(path: Path) -> dict[str, Any]:
    volume, sizes = read_map(path, cubic=False)
    cube = len(set(volume.shape)) == 1
    facts: dict[str, Any] = {
        "kind": "map" if cube else "map or image stack",
        "box": volume.shape[0] if cube else list(volume.shape[::-1]),
    }
    facts["pixel_size_angstrom"] = (
        sizes[0] if max(sizes) - min(sizes) < 1e-4 * max(sizes) else list(sizes)
    )
    finite = volume[np.isfinite(volume)]
    if finite.size:
        facts |= {
            "min": float(finite.min()),
            "max": float(finite.max()),
            "mean": float(finite.mean(dtype=np.float64)),
        }
        facts["standard_deviation"] = float(finite.std(dtype=np.float64))
    return facts | (
        {"not_finite_voxels": int(volume.size - finite.size)} if finite.size < volume.size else {}
    )
