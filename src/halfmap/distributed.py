"""Several processes at one job: shares of particles, sums over all of them, and one voice.

`torchrun` starts the same command several times. Every process takes its share of the particles and
the sums are added over all; the first (rank 0) owns the job's folder and decides what must not be
decided twice. Alone, a process takes everything, and adding and asking are the identity.

Sums and objects go through a `torch.distributed` group (NCCL between GPUs, else gloo); what is
asked before there is one, and who has the last word, through the launcher's key-value store.
"""

import atexit
import contextlib
import io
import itertools
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

Answer = TypeVar("Answer")

# A closed connection tells of a dead process at once; a host that has lost its network, or one that
# hangs, is only told by time. The longest step that others wait for is the writing of results.
TIMEOUT = timedelta(minutes=30)
# how long other processes wait for the first to say why a job ends, before they say it themselves
LAST_WORD_SECONDS = 5.0
# of a process's share, by which it may be longer than an even one so that sets stay whole: halves
# drawn by lot of 10,000 images differ by 1 % of it, and each set that is not shared saves the
# preparation of its references, which takes the time of several images
MOST_UNEVEN = 1 / 50


class ProcessLost(KeyboardInterrupt):
    """Another process of this job has ended, or does not answer; to the job it is as if it had been
    stopped."""


@dataclass
class _Meeting:
    """What this process has of the others: the launcher's store, where tensors must be to be
    reduced, and how many questions have been asked."""

    store: Any = None
    device: torch.device | None = None
    asked: int = 0
    reduced_bytes: int = 0


_met = _Meeting()


def rank() -> int:
    """The number of this process, from 0."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """How many processes work on the job: what torchrun says; 1 without it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def size_on_host() -> int:
    """How many of them are on this host and share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if size() > 1 else 1


def is_first() -> bool:
    """Whether this process owns the job's folder."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun has started the processes again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def start(device: torch.device) -> torch.device:
    """Meet the other processes, and the device of this one: its own GPU of the host where there are
    enough. Once per process; later calls change nothing.

    GPUs of their own talk by NCCL; processes that share a GPU, or have none, by gloo.
    """
    if size() == 1:
        return device
    local, own = int(os.environ.get("LOCAL_RANK", "0")), False
    if device.type == "cuda":
        count = torch.cuda.device_count()
        own = size_on_host() <= count
        device = torch.device("cuda", local % count)
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        with _others():
            torch.distributed.init_process_group(
                "nccl" if own else "gloo",
                store=torch.distributed.PrefixStore("group", _store()),
                rank=rank(),
                world_size=size(),
                timeout=TIMEOUT,
            )
        atexit.register(_leave_group)
        _met.device = device if own else torch.device("cpu")
    return device


def share_of(index: Tensor, rank: int, size: int) -> Tensor:
    """The part of an index of particles that one of `size` processes works on: every size-th, from
    its rank."""
    return index[rank::size]


def my_share(index: Tensor) -> Tensor:
    """`share_of` this process."""
    return share_of(index, *_world())


def share_of_sets(sets: Sequence[Tensor], rank: int, size: int) -> list[Tensor]:
    """The parts of several sets of particles, each compared with references of its own, that one of
    `size` processes works on: the sets one after the other, cut into runs, equal or nearly so.

    So each process prepares the references of few sets, two processes those of one half each. A set
    that one process has whole is summed by it in the order in which one process alone sums it: the
    same bits, and no rounding that iterations could make more of. Runs are cut between sets where
    that makes them no more than `MOST_UNEVEN` longer.
    """
    ends = list(itertools.accumulate(map(len, sets), initial=0))
    first, last = (_cut(n, size, ends) for n in (rank, rank + 1))
    return [
        members[max(0, first - start) : max(0, last - start)]
        for members, start in zip(sets, ends, strict=False)
    ]


def _cut(n: int, size: int, ends: list[int]) -> int:
    """Where the n-th of `size` runs begins, over sets that end at `ends` (the first is 0)."""
    total = ends[-1]
    nearest = min(ends, key=lambda end: abs(end * size - n * total))
    near = abs(nearest * size - n * total) <= MOST_UNEVEN * total
    return nearest if near else n * total // size


def my_share_of_sets(sets: Sequence[Tensor]) -> list[Tensor]:
    """`share_of_sets` of this process."""
    return share_of_sets(sets, *_world())


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place and returned, the same bits in each; of a
    bool tensor whether any has it. A value that one process has and the others leave at 0 comes
    through, NaN and infinity too.

    Raises `ProcessLost` where another process has ended.
    """
    if _world()[1] == 1:
        return tensor
    there = tensor.detach()
    there = torch.view_as_real(there) if there.is_complex() else there
    there = there.to(torch.uint8) if there.dtype == torch.bool else there
    there = there.to(_met.device or there.device).contiguous()
    _met.reduced_bytes += there.numel() * there.element_size()
    with _others():
        torch.distributed.all_reduce(there)
    whole = torch.view_as_complex(there) if tensor.is_complex() else there
    return tensor if whole.data_ptr() == tensor.data_ptr() else tensor.copy_(whole)


def reduced_bytes() -> int:
    """Bytes that this process has given to `all_sum` so far."""
    return _met.reduced_bytes


def broadcast_object(value: Answer) -> Answer:
    """The first process's `value`, in all of them, its tensors on the device of each: whatever can
    be pickled.

    Raises `ProcessLost` where another process has ended.
    """
    if _world()[1] == 1:
        return value
    packed = io.BytesIO()
    if is_first():
        torch.save(value, packed)
    box = [packed.getvalue()]
    with _others():
        torch.distributed.broadcast_object_list(box, src=0, device=_met.device)
    if is_first():
        return value
    arrived: Answer = torch.load(io.BytesIO(box[0]), _on_own_device, weights_only=False)
    return arrived


def gather_objects(value: Answer) -> list[Answer]:
    """The `value` of every process, in the order of their ranks.

    Raises `ProcessLost` where another process has ended.
    """
    if _world()[1] == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _others():
        torch.distributed.all_gather_object(values, value)
    return values


def only_first(function: Callable[[], Answer]) -> Answer:
    """What `function()` returns in the first process, in all of them; what it raises there is
    raised in all of them. The others wait and do not call it."""
    if _world()[1] == 1:
        return function()
    answer: Any = None
    failure: Exception | None = None
    if is_first():
        try:
            answer = function()
        except Exception as error:
            failure = error
    answer, told = broadcast_object((answer, None if failure is None else _portable(failure)))
    if failure is not None:
        raise failure
    if told is not None:
        raise told
    return answer


def ask_first(function: Callable[[], Answer]) -> Answer:
    """As `only_first`, for small answers, through the launcher's store: before `start`."""
    if size() == 1:
        return function()
    _met.asked += 1
    name = f"answer{_met.asked}"
    if not is_first():
        with _others():
            failed, answer = pickle.loads(_store().get(name))
        if failed:
            raise answer
        return answer
    try:
        answer = function()
    except Exception as error:
        _store().set(name, pickle.dumps((True, _portable(error))))
        raise
    _store().set(name, pickle.dumps((False, answer)))
    return answer


def has_last_word() -> bool:
    """Whether this process is the one to say why the job ends: the first if it can, else whoever
    comes first after it has kept silent. From here on SIGTERM is ignored: the launcher, which
    stops all processes as soon as one has ended, must not cut the line short."""
    if size() == 1:
        return True
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if not is_first():
            with contextlib.suppress(RuntimeError):
                _store().wait(["last word"], timedelta(seconds=LAST_WORD_SECONDS))
        return _store().add("last word", 1) == 1
    except (RuntimeError, ProcessLost):  # the launcher itself is gone
        return True


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _store() -> Any:
    """The launcher's key-value store, the same in all processes."""
    if _met.store is None:
        store, _, _ = next(torch.distributed.rendezvous("env://", timeout=TIMEOUT))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # answers of the last are stale
        _met.store = torch.distributed.PrefixStore(f"halfmap{attempt}", store)
    return _met.store


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """What goes wrong between processes is a process lost."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(f"a process of the job was lost ({error})") from error


def _on_own_device(storage: Any, location: str) -> Any:
    """The first process's GPU is not this one's."""
    return storage if location == "cpu" else storage.cuda(torch.cuda.current_device())


def _portable(error: Exception) -> Exception:
    """The error as it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _leave_group() -> None:
    with contextlib.suppress(Exception):
        torch.distributed.destroy_process_group()
