"""Alone, sharing and adding are the identity; several processes divide the particles and end with
the same sums."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from halfmap import distributed


def test_alone_everything_is_mine():
    index = torch.tensor([4, 1, 7])
    assert torch.equal(distributed.my_share(index), index)
    values = torch.randn(3, dtype=torch.complex64)
    kept = values.clone()
    assert distributed.all_sum(values) is values
    assert torch.equal(values, kept)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_disjoint_complete_and_even(size):
    index = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shares = [distributed.share_of(index, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_of_two_halves_are_disjoint_complete_and_even(size):
    halves = [torch.arange(0, 21, 2), torch.arange(1, 20, 2)]
    shares = [distributed.share_of_sets(halves, rank, size) for rank in range(size)]
    for half, members in enumerate(halves):
        assert torch.equal(torch.cat([share[half] for share in shares]), members)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_two_processes_need_the_references_of_one_half_each():
    halves = [torch.arange(0, 20, 2), torch.arange(1, 20, 2)]
    first, second = (distributed.share_of_sets(halves, rank, 2) for rank in range(2))
    assert torch.equal(first[0], halves[0])
    assert torch.equal(second[1], halves[1])
    assert len(first[1]) == len(second[0]) == 0


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sets_stay_whole_where_that_is_nearly_even(size, seed):
    """Halves and folds drawn by lot: complete, in order, nearly even, and cut between sets where a
    set ends near an even cut."""
    lengths = torch.multinomial(
        torch.ones(8), 8000, replacement=True, generator=torch.Generator().manual_seed(seed)
    ).bincount(minlength=8)
    sets = [torch.arange(n) for n in lengths.tolist()]
    shares = [distributed.share_of_sets(sets, rank, size) for rank in range(size)]
    for n, members in enumerate(sets):
        assert torch.equal(torch.cat([share[n] for share in shares]), members)
    even = 8000 / size
    assert max(abs(sum(map(len, share)) - even) for share in shares) <= 2 * even / 50 + 1
    divided = sum(sum(len(share[n]) > 0 for share in shares) > 1 for n in range(8))
    ends = lengths.cumsum(0)
    near = sum(bool(((ends - cut * even).abs() <= even / 50).any()) for cut in range(1, size))
    assert divided == size - 1 - near
    assert size != 2 or divided == 0


def test_two_processes_end_with_the_same_sums(tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from halfmap.distributed import all_sum, my_share
            rank = int(sys.argv[1])
            torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
            numbers = torch.arange(1.0, 8.0)  # 1 .. 7, sum 28
            mine = my_share(torch.arange(7))
            real, both = numbers[mine].sum()[None], torch.complex(numbers[mine].sum(), -numbers[mine].sum())[None]
            all_sum(real), all_sum(both)
            assert 0 < len(mine) < 7
            assert real.item() == 28 and both.item() == 28 - 28j, (real, both)
            torch.distributed.destroy_process_group()
            """
        )
    )
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
