"""Work done batch by batch; when memory runs out the batch is halved, and nothing is lost."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from halfmap.engine.preprocessing import batches
from halfmap.errors import is_out_of_memory

Made = TypeVar("Made")


def in_batches(
    index: Int[Tensor, " N"],
    size: int,
    make: Callable[[Int[Tensor, " B"]], Made],
    steps: Sequence[Callable[[Made], None]],
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> int:
    """For each batch `made = make(batch)`, then every step with it. Where memory runs out, halves
    of the batch take its place in what has not been done, and batches are no larger from then on;
    returns their size.

    A step that fails must leave things as they were: whatever takes memory comes before what is
    changed in place.
    """
    start = 0
    while start < len(index):
        batch = index[start : start + size]
        least = _do(batch, make, list(steps))
        if least < len(batch):
            size = least
        start += len(batch)
        advance(len(batch))
    return size


def _do(
    batch: Int[Tensor, " B"],
    make: Callable[[Int[Tensor, " B"]], Made],
    todo: list[Callable[[Made], None]],
) -> int:
    """The size of the batch that fitted in the end."""
    try:
        made = make(batch)
        while todo:
            todo[0](made)
            todo.pop(0)
        return len(batch)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(batch) < 2:
            raise
    made = None  # type: ignore[assignment]  # what was made must go before its halves come
    gc.collect()
    give_back_memory()
    halves = batches(batch, (len(batch) + 1) // 2)
    return min(_do(half, make, list(todo)) for half in halves)


def in_halves(
    rows: np.ndarray, work: Callable[[np.ndarray], Made]
) -> Iterator[tuple[np.ndarray, Made]]:
    """Rows and what `work` makes of them; where memory runs out, one half of them after the other.
    For work whose results are taken in order."""
    made = None
    try:
        made = work(rows)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(rows) < 2:
            raise
    if made is not None:
        yield rows, made
        return
    gc.collect()
    give_back_memory()
    middle = (len(rows) + 1) // 2
    for half in (rows[:middle], rows[middle:]):
        yield from in_halves(half, work)


def give_back_memory() -> None:
    """Let the system have what has been freed: glibc keeps arrays of up to 32 MB for later, and so
    many are made and freed in different orders that a third more is held than is used."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
