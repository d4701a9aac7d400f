"""Shards of particles and the reduction of sums: all that several processes would need of the loop.

With `torch.distributed` initialised (one process per GPU or node) every process takes its share of
the particles and the sums are added over all; alone, a process takes everything and adding is the
identity.
"""

import torch
from torch import Tensor


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def share_of(index: Tensor, rank: int, size: int) -> Tensor:
    """The part of an index of particles that one of `size` processes works on: every size-th, from
    its rank."""
    return index[rank::size]


def my_share(index: Tensor) -> Tensor:
    """`share_of` this process."""
    return share_of(index, *_world())


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place and returned."""
    if _world()[1] > 1:
        torch.distributed.all_reduce(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    return tensor
