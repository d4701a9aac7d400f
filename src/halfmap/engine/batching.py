"""Work done batch by batch; when memory runs out the batch is halved, and nothing is lost."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from halfmap.engine.preprocessing import batches

Made = TypeVar("Made")

# of torch's messages, which raises a plain RuntimeError on the CPU
_NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "memory allocation error",  # of the transforms
)


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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(batch) < 2:
            raise
    made = None  # type: ignore[assignment]  # what was made must go before its halves come
    gc.collect()
    give_back_memory()
    halves = batches(batch, (len(batch) + 1) // 2)
    return min(_do(half, make, list(todo)) for half in halves)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of its accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in _NO_MEMORY
    )


def give_back_memory() -> None:
    """Let the system have what has been freed: glibc keeps arrays of up to 32 MB for later, and so
    many are made and freed in different orders that a third more is held than is used."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
