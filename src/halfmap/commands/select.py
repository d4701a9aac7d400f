"""Keep the particles of some classes."""

from pathlib import Path

import numpy as np

from halfmap.errors import InputError
from halfmap.io.star import read_star
from halfmap.particles import load_particles


def parse_classes(text: str) -> list[int]:
    """Class numbers of `1,4,7` or `1-3,8`.

    Raises:
        InputError: something that is no number, or is not positive.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if (
            not first.isdecimal()
            or not (last or "1").isdecimal()
            or not 1 <= int(first) <= int(last or first)
        ):
            raise InputError(
                f"--classes {text}: expected class numbers from 1 such as 1,4,7 or 1-5, found "
                f"'{part.strip()}'"
            )
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def select_classes(
    source: str | Path, classes: str | list[int], out: str | Path, *, overwrite: bool = False
) -> tuple[int, int]:
    """Write the particles of `source` (a STAR or .cs, or the job folder that holds
    `particles.star`) in `classes` to the STAR `out`.

    Returns:
        How many particles were kept, and of how many.

    Raises:
        InputError: no such file, a class that no particle is in, or `out` exists.
    """
    source, out = Path(source), Path(out)
    wanted = parse_classes(classes) if isinstance(classes, str) else classes
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
    absent = sorted(set(wanted) - set(present.tolist()))
    if absent:
        there = ", ".join(map(str, present[:20])) + (" ..." if len(present) > 20 else "")
        raise InputError(
            f"--classes {absent[0]}: no particle of {source} is in class {absent[0]}; classes "
            f"there: {there}"
        )
    kept = np.isin(particles.class_number, wanted)
    particles.take(kept).write_star(out)
    return int(kept.sum()), len(particles)


def best_resolved_classes(folder: str | Path, *, within: float = 1.5) -> list[int]:
    """Numbers of the classes in `classes.star` of a 2D classification whose estimated resolution is
    at most `within` times that of the class in which the median particle is: classes that stay
    blurred hold junk, or too few particles.

    Raises:
        InputError: no such table, or `within` is less than 1.
    """
    if not within >= 1:
        raise InputError(
            f"--resolved-within {within:g}: expected 1 or more, times the median particle's "
            "resolution"
        )
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
