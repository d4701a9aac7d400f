"""Image names of STAR and .cs files, and where on this machine the stacks lie."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmap.errors import InputError
from halfmap.io.table import Table, cells_from_tokens, quote


@dataclass(frozen=True)
class ImageNames:
    """Image names `index@file` taken apart: row i is image `index[i]` (0-based) of
    `files[file[i]]`.

    `single` are the files that were named without an index, which must hold one image.
    """

    files: tuple[str, ...]
    file: np.ndarray
    index: np.ndarray
    single: frozenset[int] = frozenset()


def split_image_names(names: Sequence[str], where: str) -> ImageNames:
    """Take names `000001@stack.mrcs` (1-based) or `image.mrc` apart.

    Raises:
        InputError: a name is empty or its index is not a positive integer (`where` and the 1-based
            row are named).
    """
    numbers: dict[str, int] = {}
    single: set[int] = set()
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
            single.add(numbers.setdefault(stack, len(numbers)))
        if not number.isdecimal() or int(number) < 1:
            raise InputError(
                f"{where}: row {i + 1}, column _rlnImageName: expected a 1-based index before "
                f"'@', found {name!r}"
            )
        file[i], index[i] = numbers.setdefault(stack, len(numbers)), int(number) - 1
    return ImageNames(tuple(numbers), file, index, frozenset(single))


def candidates(
    name: str, table_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Places where a stack may lie, in the order of trying.

    1. `data_dir` with the whole name, then with the bare file name; 2. the name itself if absolute;
      3. beside the table;
    4. the working directory (RELION's rule); 5. every parent folder of the table (project roots of
      RELION and cryoSPARC).
    cryoSPARC's leading '>' is dropped.
    """
    path = Path(name.removeprefix(">"))
    folder = Path(table_path).absolute().parent
    found = [] if data_dir is None else [Path(data_dir) / path, Path(data_dir) / path.name]
    roots = [] if path.is_absolute() else [folder, Path.cwd(), *folder.parents]
    return list(
        dict.fromkeys(
            [*found, *([path] if path.is_absolute() else []), *(root / path for root in roots)]
        )
    )


def resolve(
    name: str, table_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> Path | None:
    """First place of `candidates` that is a file, or None."""
    return next((path for path in candidates(name, table_path, data_dir) if path.is_file()), None)


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
    return InputError(
        f"{table_path}: row {row + 1}: image file {name} was not found; looked in {folders}; give "
        "its folder with --data-dir"
    )


def rename_images(
    table: Table, names: ImageNames, found: Sequence[Path | None], new_path: str | os.PathLike[str]
) -> Table:
    """Table whose image names find the same stacks when it is written to `new_path`.

    A name stays to the letter when it is absolute, or leads to its stack from beside the new file
    or from the working directory (RELION takes names from the working directory). Else it becomes
    the absolute path, the one form that every program finds from anywhere. Names of stacks that
    were not found stay.
    """
    folder = Path(new_path).absolute().parent
    files = []
    for name, place in zip(names.files, found, strict=True):
        if place is None:
            files.append(name)
            continue
        places = [Path(name)] if Path(name).is_absolute() else [folder / name, Path.cwd() / name]
        first = next((path for path in places if path.is_file()), None)
        files.append(name if first is not None and first.samefile(place) else str(place.absolute()))
    if tuple(files) == names.files:
        return table
    rows = zip(names.index.tolist(), names.file.tolist(), strict=True)
    return table.with_cells(
        {"rlnImageName": cells_from_tokens([quote(f"{i + 1:06d}@{files[f]}") for i, f in rows])}
    )
