"""Memory that runs out halves a batch; nothing is lost, nothing counts twice."""

import errno

import pytest
import torch

from halfmap.engine.batching import in_batches
from halfmap.errors import is_out_of_memory

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["python", "accelerator", "torch", "system"])
@pytest.mark.parametrize("where", ["make", "first", "second"])
def test_every_step_sees_every_image_once(error, where):
    """More than 5 images at once are too many for one of the three places."""
    seen = {"first": [], "second": []}
    advanced = []

    def fails(place: str, batch: torch.Tensor) -> None:
        if place == where and len(batch) > 5:
            raise error

    def make(batch: torch.Tensor) -> torch.Tensor:
        fails("make", batch)
        return batch

    def step(name: str):
        def done(batch: torch.Tensor) -> None:
            fails(name, batch)
            seen[name] += batch.tolist()

        return done

    steps = [step("first"), step("second")]
    size = in_batches(torch.arange(37), 16, make, steps, advance=advanced.append)
    assert sorted(seen["first"]) == sorted(seen["second"]) == list(range(37))
    assert sum(advanced) == 37
    assert size == 4
    assert max(advanced[1:]) <= 4  # from then on batches are small


def test_other_errors_and_single_images_end_the_job():
    def fails(batch: torch.Tensor) -> None:
        raise RuntimeError("expected scalar type Float")

    with pytest.raises(RuntimeError, match="scalar"):
        in_batches(torch.arange(4), 2, fails, [])

    def never_fits(batch: torch.Tensor) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        in_batches(torch.arange(4), 2, never_fits, [])
    assert not is_out_of_memory(ValueError("out of memory"))
