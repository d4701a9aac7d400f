"""The stacks of a data set: kept open in small number, and checked against the table that names
their images."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from halfmap.errors import InputError
from halfmap.io.mrc import MrcStack, open_stack
from halfmap.io.paths import ImageNames, not_found

_OPEN_FILES = 64
# whether the headers of stacks are read: all, and a fault is an error or told; or one, where needed
CheckImages = bool | Literal["told"]


class OpenStacks:
    """The stacks read last, kept mapped; shared by all selections of a data set. Travels to other
    processes empty."""

    def __init__(self) -> None:
        self._stacks: OrderedDict[Path, MrcStack] = OrderedDict()

    def __reduce__(self):
        return OpenStacks, ()

    def get(self, path: Path) -> MrcStack:
        stack = self._stacks.pop(path, None) or open_stack(path)
        self._stacks[path] = stack
        if len(self._stacks) > _OPEN_FILES:
            self._stacks.popitem(last=False)
        return stack


@dataclass(frozen=True)
class StackFault:
    """A stack that a job could not read as its rows ask for: of which kind, in how many rows, and
    the line that a job would end with, of this stack or another of the kind."""

    kind: str  # goes on after "stacks"
    rows: int
    error: InputError


@dataclass(frozen=True, eq=False)
class StackHeaders:
    """What the headers of a table's stacks say, file by file, 0 where that is not known, and what
    is wrong with them."""

    boxes: np.ndarray  # (files,)
    pixel_sizes_angstrom: np.ndarray  # (files,)
    faults: tuple[StackFault, ...]

    def box_of(self, names: ImageNames) -> np.ndarray:
        """The box of each row's image `(n,)`; that of the first stack that tells where its own does
        not, 0 where none does."""
        return _filled(self.boxes)[names.file]

    def pixel_size_of(self, names: ImageNames) -> np.ndarray:
        """The pixel size of each row's image `(n,)` in Angstrom, as `box_of`."""
        return _filled(self.pixel_sizes_angstrom)[names.file]


def _filled(values: np.ndarray) -> np.ndarray:
    known = values[values > 0]
    return np.where(values > 0, values, known[0]) if len(known) else values


def read_headers(
    path: str,
    names: ImageNames,
    found: tuple[Path | None, ...],
    data_dir: str | os.PathLike[str] | None,
    stacks: OpenStacks,
    *,
    expected_box: np.ndarray | None = None,
    first_only: bool = False,
) -> StackHeaders:
    """Open the headers of all stacks, or only of the first that can be read: all there, square, as
    long as rows ask for, and of the box that each row expects `(n,)`, if the table says one."""
    boxes, sizes = np.zeros(len(names.files), np.int64), np.zeros(len(names.files))
    faults: list[StackFault] = []
    missing: InputError | None = None
    by_file = np.argsort(names.file, kind="stable")
    starts = np.searchsorted(names.file, np.arange(len(found) + 1), sorter=by_file)
    for number, place in enumerate(found):
        of_it = by_file[starts[number] : starts[number + 1]]
        if place is None:
            missing = missing or not_found(names.files[number], int(of_it[0]), path, data_dir)
            faults.append(StackFault("not found", len(of_it), missing))
            continue
        try:
            stack = stacks.get(place)
        except InputError as error:
            faults.append(StackFault("that cannot be read", len(of_it), error))
            continue
        boxes[number], sizes[number] = stack.shape[2], stack.pixel_size_angstrom
        faults += _against_the_rows(path, names, number, of_it, stack, expected_box)
        if first_only:
            break
    return StackHeaders(boxes, sizes, tuple(faults))


def _against_the_rows(
    path: str,
    names: ImageNames,
    number: int,
    of_it: np.ndarray,
    stack: MrcStack,
    expected_box: np.ndarray | None,
) -> Iterator[StackFault]:
    """What rows ask of a stack that it does not hold; `of_it` are the rows (from 0) that name
    it."""
    n, ny, nx = stack.shape
    if ny != nx:
        what = f"images of {stack.path} are {nx} x {ny} pixels; square images are needed"
        yield StackFault("whose images are not square", len(of_it), _at(path, int(of_it[0]), what))
        return
    if number in names.single and n > 1:
        what = (
            f"{stack.path} holds {n} images and the name gives no index; expected "
            f"index@{names.files[number]}"
        )
        yield StackFault(
            "named without the number of an image", 1, _at_name(path, names.single[number], what)
        )
    beyond = of_it[names.index[of_it] >= n]
    if len(beyond):
        row = int(beyond[np.argmax(names.index[beyond])])
        what = (
            f"asks for image {names.index[row] + 1} of {stack.path}, which holds {n}; "
            "correct the row or copy the stack again"
        )
        yield StackFault(
            "with fewer images than rows ask for", len(beyond), _at_name(path, row, what)
        )
    if expected_box is None:
        return
    differs = of_it[expected_box[of_it] != nx]
    if len(differs):
        row = int(differs[0])
        what = (
            f"the table says _rlnImageSize {expected_box[row]:g}, the stack has {nx} pixels "
            f"({stack.path}); correct the column, or the image's name"
        )
        yield StackFault("of another box than _rlnImageSize", len(differs), _at(path, row, what))


def _at(path: str, row: int, what: str) -> InputError:
    return InputError(f"{path}: row {row + 1}: {what}")


def _at_name(path: str, row: int, what: str) -> InputError:
    return InputError(f"{path}: row {row + 1}, column _rlnImageName: {what}")


def notes_on_faults(
    path: str, names: ImageNames, faults: tuple[StackFault, ...]
) -> tuple[str, ...]:
    """A line for each kind of fault: how many stacks and particles it concerns, and one of them."""
    kinds: dict[str, list[StackFault]] = {}
    for one in faults:
        kinds.setdefault(one.kind, []).append(one)
    return tuple(
        f"{path}: stacks {kind}: {len(some):,} of {len(names.files):,} "
        f"({sum(one.rows for one in some):,} of {len(names.file):,} particles), for example "
        f"{str(some[0].error).removeprefix(f'{path}: ')}"
        for kind, some in kinds.items()
    )
