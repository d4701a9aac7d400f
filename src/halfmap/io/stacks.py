"""The stacks of a data set: kept open in small number, and checked against the table that names
their images."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd

from halfmap.errors import InputError
from halfmap.io.mrc import MrcStack, open_stack
from halfmap.io.paths import ImageNames, not_found

_OPEN_FILES = 64


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


def check_stacks(
    path: str,
    names: ImageNames,
    found: tuple[Path | None, ...],
    data_dir: str | os.PathLike[str] | None,
    stacks: OpenStacks,
    *,
    first_only: bool,
) -> tuple[np.ndarray, float]:
    """Open the stacks' headers: all there, square, and long enough. Returns the box of each file
    (0 for those not opened), and the first header's pixel size."""
    first_row = pd.Series(np.arange(len(names.file))).groupby(names.file).first()
    longest = pd.Series(names.index).groupby(names.file).idxmax()
    boxes, header_size = np.zeros(len(names.files), np.int64), 0.0
    for number, (name, place) in enumerate(zip(names.files, found, strict=True)):
        row = int(first_row[number])
        if place is None:
            raise not_found(name, row, path, data_dir)
        stack = stacks.get(place)
        n, ny, nx = stack.shape
        if ny != nx:
            raise InputError(
                f"{path}: row {row + 1}: images of {place} are {nx} x {ny} pixels; square images "
                "are needed"
            )
        if number in names.single and n > 1:
            raise InputError(
                f"{path}: row {names.single[number] + 1}, column _rlnImageName: {place} holds {n} "
                f"images and the name gives no index; expected index@{name}"
            )
        last = int(longest[number])
        if names.index[last] >= n:
            raise InputError(
                f"{path}: row {last + 1}, column _rlnImageName: asks for image "
                f"{names.index[last] + 1} of {place}, which holds {n}; "
                "correct the row or copy the stack again"
            )
        boxes[number], header_size = nx, header_size or stack.pixel_size_angstrom
        if first_only:
            break
    return boxes, header_size
