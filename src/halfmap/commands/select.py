"""Keep the particles of some classes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmap.commands._options import Annotated, Option, OverwriteFile, Sequence, parse_classes
from halfmap.errors import InputError
from halfmap.io.star import read_star
from halfmap.options import command
from halfmap.particles import load_particles
from halfmap.workspace.machine import versions
from halfmap.workspace.records import now


@dataclass(frozen=True)
class Selected:
    """The STAR written, how many particles of how many are in it, and of which classes."""

    path: Path
    kept: int
    of: int
    classes: tuple[int, ...]

    @property
    def summary(self) -> str:
        classes = ", ".join(map(str, self.classes))
        return f"{self.kept} of {self.of} particles in {self.path} (classes {classes})"


@command
def select(
    source: Annotated[
        str | Path,
        Option(
            "Job folder of a classification, or its particle STAR",
            positional=True,
            metavar="DIR|STAR",
        ),
    ],
    out: Annotated[str | Path, Option("STAR file to write", metavar="STAR", recorded=False)],
    *,
    classes: Annotated[
        Sequence[int] | None,
        Option(
            "Class numbers to keep; ranges such as 1-5 too",
            at_least=1,
            metavar="1,4,7",
            parse=parse_classes,
        ),
    ] = None,
    resolved_within: Annotated[
        float | None,
        Option(
            "Keep 2D classes resolved to X times the median particle's resolution or better; 1.5 "
            "drops junk",
            at_least=1,
            metavar="X",
        ),
    ] = None,
    overwrite: OverwriteFile = False,
) -> Selected:
    """Write the particles of the chosen classes to a new STAR.

    Example: halfmap select classes --classes 1,4,7 --out good.star

    Raises:
        InputError: no such file, a class that no particle is in, neither or both ways to choose, or
            `out` exists.
    """
    if (classes is None) == (resolved_within is None):
        raise InputError("select: expected either --classes or --resolved-within")
    if classes is not None:
        wanted = list(classes)
    else:
        wanted = best_resolved_classes(source, within=resolved_within or 1.0)
    kept, total = select_classes(source, wanted, out, overwrite=overwrite)
    return Selected(Path(out), kept, total, tuple(wanted))


def select_classes(
    source: str | Path, classes: list[int], out: str | Path, *, overwrite: bool = False
) -> tuple[int, int]:
    """Write the particles of `source` (a STAR or .cs, or the job folder that holds
    `particles.star`) in `classes` to the STAR `out`.

    Returns:
        How many particles were kept, and of how many.

    Raises:
        InputError: no such file, a class that no particle is in, or `out` exists.
    """
    source, out = Path(source), Path(out)
    if out.exists() and not overwrite:
        raise InputError(f"{out}: the file exists; choose another name, or --overwrite it")
    if source.is_dir():
        source = source / "particles.star"
        if not source.exists():
            raise InputError(
                f"{source}: no such file; give the folder of a finished classification, or a STAR "
                "file"
            )
    particles = load_particles(source, check_images=False)
    present = np.unique(particles.class_number)
    absent = sorted(set(classes) - set(present.tolist()))
    if absent:
        there = ", ".join(map(str, present[:20])) + (" ..." if len(present) > 20 else "")
        raise InputError(
            f"--classes {absent[0]}: no particle of {source} is in class {absent[0]}; classes "
            f"there: {there}"
        )
    kept = np.isin(particles.class_number, classes)
    particles.take(kept).write_star(out)
    _keep_record(source, classes, out, int(kept.sum()), len(particles))
    return int(kept.sum()), len(particles)


def _keep_record(source: Path, classes: list[int], out: Path, kept: int, of: int) -> None:
    """`OUT.json` beside the STAR: what was chosen from what, for whoever asks later where these
    particles come from."""
    record = {
        "command": "select",
        "parameters": {"source": str(source), "classes": classes},
        "working_directory": os.getcwd(),
        "started": now(),
        "results": {"kept": kept, "of": of},
        "versions": versions(),
    }
    beside = out.with_name(f"{out.name}.json")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def best_resolved_classes(folder: str | Path, *, within: float = 1.5) -> list[int]:
    """Numbers of the classes in `classes.star` of a 2D classification whose estimated resolution is
    at most `within` times that of the class in which the median particle is: classes that stay
    blurred hold junk, or too few particles.

    Raises:
        InputError: no such table.
    """
    path = Path(folder) / "classes.star"
    if not path.exists():
        raise InputError(
            f"{path}: no such file; --resolved-within wants the folder of a finished class2d"
        )
    blocks = read_star(path).blocks
    if "model_classes" not in blocks:
        raise InputError(
            f"{path}: expected a table data_model_classes, found {', '.join(blocks) or 'none'}"
        )
    table = blocks["model_classes"]
    resolution, size = table.floats("rlnEstimatedResolution"), table.floats("halfmapClassSize")
    order = np.argsort(resolution, kind="stable")
    median = resolution[order][np.searchsorted(np.cumsum(size[order]), size.sum() / 2)]
    return [int(k) + 1 for k in np.flatnonzero((resolution <= within * median) & (size > 0))]
