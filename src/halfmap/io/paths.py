"""Image names of STAR and .cs files, and where on this machine the stacks lie."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from halfmap.errors import InputError
from halfmap.io.table import Table, cells_from_tokens, quote

STACK_MARK = ":mrcs"  # RELION's, after a name: take the file for a stack of images
_MAPS_OF_RELION = (".mrc", ".map", ".st", ".rec", ".ccp4")


@dataclass(frozen=True)
class ImageNames:
    """Image names `index@file` taken apart: row i is image `index[i]` (0-based) of
    `files[file[i]]`.

    `single` are the files that were named without an index, which must hold one image, with the
    first row (from 0) that does so.
    """

    files: tuple[str, ...]
    file: np.ndarray
    index: np.ndarray
    single: Mapping[int, int] = field(default_factory=dict)


def split_image_names(names: Sequence[str], where: str) -> ImageNames:
    """Take names `000001@stack.mrcs` (1-based) or `image.mrc` apart.

    Raises:
        InputError: a name is empty or its index is not a positive integer (`where` and the 1-based
            row are named).
    """
    numbers: dict[str, int] = {}
    single: dict[int, int] = {}
    file, index = np.empty(len(names), np.int32), np.empty(len(names), np.int64)
    for i, name in enumerate(names):
        number, at, stack = name.rpartition("@")
        if not stack:
            raise InputError(
                f"{where}: row {i + 1}, column _rlnImageName: the image name is empty; expected "
                "index@stack.mrcs"
            )
        if not at:
            number = "1"
            single.setdefault(numbers.setdefault(stack, len(numbers)), i)
        if not number.isdecimal() or int(number) < 1:
            from_zero = number.isdecimal()
            raise InputError(
                f"{where}: row {i + 1}, column _rlnImageName: expected a 1-based index before "
                f"'@', found {name!r}"
                + ("; if its program counts from 0, add 1 to all of them" if from_zero else "")
            )
        file[i], index[i] = numbers.setdefault(stack, len(numbers)), int(number) - 1
    return ImageNames(tuple(numbers), file, index, single)


def as_stack_name(name: str) -> str:
    """The file of an image name, without RELION's mark of a stack (`x.mrc:mrcs`) and cryoSPARC's
    leading '>'."""
    return name.removesuffix(STACK_MARK).removeprefix(">")


def as_relion_name(name: str) -> str:
    """A stack's name as RELION reads it: `.mrc` is a map there, unless it is marked as a stack."""
    return f"{name}{STACK_MARK}" if Path(name).suffix.lower() in _MAPS_OF_RELION else name


def candidates(
    name: str, table_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Places where a stack may lie under its whole name, in the order of trying.

    1. `data_dir`; 2. the name itself if absolute; 3. beside the table; 4. the working directory
    (RELION's rule); 5. every parent folder of the table (project roots of RELION and cryoSPARC).
    """
    path = Path(as_stack_name(name))
    found = [] if data_dir is None else [Path(data_dir) / path]
    roots = [] if path.is_absolute() else _roots(table_path)
    return list(
        dict.fromkeys(
            [*found, *([path] if path.is_absolute() else []), *(root / path for root in roots)]
        )
    )


def _roots(table_path: str | os.PathLike[str]) -> list[Path]:
    folder = Path(table_path).absolute().parent
    return [folder, Path.cwd(), *folder.parents]


def _last_folders(name: str) -> list[Path]:
    """The name with fewer and fewer of its folders, the bare file name last."""
    path = Path(as_stack_name(name))
    parts = path.parts[1:] if path.is_absolute() else path.parts
    return [Path(*parts[first:]) for first in range(len(parts))]


def _moved(name: str, table_path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where a stack with an absolute name may lie after its project has moved: its last folders, at
    least one, inside the table's parents; or beside the table."""
    if not Path(as_stack_name(name)).is_absolute():
        return
    roots, tails = _roots(table_path), _last_folders(name)
    yield from (root / tail for tail in tails[:-1] for root in roots)
    yield roots[0] / tails[-1]


def resolve(
    name: str, table_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> Path | None:
    """First place of `candidates` that is a file, or None."""
    return _first_file(candidates(name, table_path, data_dir))


def _first_file(places: Iterable[Path]) -> Path | None:
    return next((path for path in places if os.path.isfile(path)), None)


def resolve_all(
    names: Sequence[str],
    table_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path | None, ...]:
    """The file of each stack of a table, or None.

    First hit of: `data_dir` with the whole name, or with its last folders down to the bare file
    name; the other `candidates`; for absolute names, whose project may have moved, the last folders
    inside the table's parents. Different stacks never become one file: what a shortened name finds
    counts only for one of them.
    """
    whole = [resolve(name, table_path, data_dir) for name in names]
    if data_dir is not None:
        folder = Path(data_dir)
        inside = [_first_file(folder / tail for tail in _last_folders(name)) for name in names]
        whole = [one or other for one, other in zip(_no_rivals(inside), whole, strict=True)]
    moved = [
        _first_file(_moved(name, table_path)) if place is None else place
        for name, place in zip(names, whole, strict=True)
    ]
    return tuple(place or other for place, other in zip(whole, _no_rivals(moved), strict=True))


def _no_rivals(places: Sequence[Path | None]) -> list[Path | None]:
    """Places that more than one name leads to are none."""
    names = Counter(places)
    return [place if names[place] == 1 else None for place in places]


def not_found(
    name: str,
    row: int,
    table_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
) -> InputError:
    """Error that says where a stack was looked for."""
    folders = ", ".join(
        dict.fromkeys(str(path.parent) for path in candidates(name, table_path, data_dir))
    )
    several = ""
    if data_dir is not None and (bare := Path(data_dir) / Path(as_stack_name(name)).name).is_file():
        several = f"; {bare} is meant by stacks of several folders: keep their folders inside it"
    return InputError(
        f"{table_path}: row {row + 1}: image file {name} was not found; looked in {folders}"
        f"{several}; give its folder with --data-dir"
    )


def rename_images(
    table: Table, names: ImageNames, found: Sequence[Path | None], new_path: str | os.PathLike[str]
) -> Table:
    """Table whose image names find the same stacks when it is written to `new_path`.

    In a STAR, a stack with the name of a map is marked as a stack (see `as_relion_name`). Else a
    name stays to the letter when it is absolute, or leads to its stack from beside the new file
    or from the working directory (RELION takes names from the working directory). Else it becomes
    the absolute path, the one form that every program finds from anywhere. Names of stacks that
    were not found stay.
    """
    folder = Path(new_path).absolute().parent
    star = Path(new_path).suffix.lower() == ".star"
    files = []
    for number, (name, place) in enumerate(zip(names.files, found, strict=True)):
        plain = as_stack_name(name)
        new = name
        if place is not None:
            absolute = Path(plain).is_absolute()
            places = [Path(plain)] if absolute else [folder / plain, Path.cwd() / plain]
            first = _first_file(places)
            if first is None or not first.samefile(place):
                new = str(place.absolute())
        files.append(as_relion_name(new) if star and number not in names.single else new)
    if tuple(files) == names.files:
        return table
    rows = zip(names.index.tolist(), names.file.tolist(), strict=True)
    return table.with_cells(
        {"rlnImageName": cells_from_tokens([quote(f"{i + 1:06d}@{files[f]}") for i, f in rows])}
    )
