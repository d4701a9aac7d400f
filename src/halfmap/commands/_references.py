"""What `--reference` takes: maps, job folders, and the tables in which RELION names its maps."""

from collections.abc import Sequence
from pathlib import Path

from halfmap.commands._maps import map_of
from halfmap.errors import InputError
from halfmap.io.paths import resolve
from halfmap.io.star import read_star

NAMES = "rlnReferenceImage"


def references_of(sources: Sequence[str | Path]) -> list[Path]:
    """The starting maps: files, the map of a job folder, or those that a table of classes names
    (`_rlnReferenceImage`), such as RELION's `run_it025_model.star`.

    Raises:
        InputError: as `map_of`; a table without such names, or whose maps are not found; class
            averages, which are no maps.
    """
    found: list[Path] = []
    for source in sources:
        path = map_of(source)
        found += _maps_in(path) if path.suffix.lower() == ".star" else [path]
    return found


def one_reference(source: str | Path) -> Path:
    """The starting map: `references_of`, where there is one.

    Raises:
        InputError: as `references_of`; a table that names several.
    """
    found = references_of([source])
    if len(found) > 1:
        raise InputError(
            f"{source}: names {len(found)} maps; give one of them, such as {found[0]}, or take "
            "all as the start of halfmap class3d"
        )
    return found[0]


def _maps_in(star: Path) -> list[Path]:
    """The maps that a table of classes names."""
    blocks = read_star(star).blocks.values()
    names = [one.strings(NAMES) for one in blocks if NAMES in one]
    if not names:
        raise InputError(
            f"{star}: expected a map, or a table of classes with a column _{NAMES}; give the "
            "map (MRC) itself"
        )
    maps = []
    for row, name in enumerate(names[0].tolist(), 1):
        place = f"{star}: row {row}, column _{NAMES}: {name}"
        if "@" in name:
            raise InputError(
                f"{place} is a class average (2D), expected a map; halfmap abinitio makes one of "
                "the particles"
            )
        path = resolve(name, star)
        if path is None:
            raise InputError(f"{place} was not found, from the table's folder or its parents")
        maps.append(path)
    return maps
