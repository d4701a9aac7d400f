"""Images that keep unequal numbers of cells: in groups of about as many, and in order again."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from halfmap.engine.state import Candidates


def groups_of_similar_count(
    order: Int[Tensor, " n"], counts: Int[Tensor, " B"], most: float
) -> Iterator[Int[Tensor, " b"]]:
    """Images, in an order in which their counts ascend, in groups that take up at most `most`
    places when all are as wide as the widest."""
    start = 0
    while start < len(order):
        places = counts[order[start:]] * torch.arange(
            1, len(order) - start + 1, device=order.device
        )  # ascends
        rows = order[start : start + max(1, int((places <= most).sum()))]
        yield rows
        start += len(rows)


def side_by_side(
    parts: list[tuple[Tensor, Tensor]], order: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B n"], Int[Tensor, " B"]]:
    """Parts one below the other, rows filled up, their rows put in order."""
    width = max(children.shape[1] for children, _ in parts)
    filled = [
        torch.nn.functional.pad(children, (0, width - children.shape[1])) for children, _ in parts
    ]
    return torch.cat(filled)[order], torch.cat([counts for _, counts in parts])[order]


def concatenated(parts: list[Candidates], order: Int[Tensor, " B"]) -> Candidates:
    """Parts one below the other, their rows put in order; places that a part lacks are empty."""
    width = max(part.score.shape[1] for part in parts)
    return Candidates(
        *(
            torch.cat(fields)[order]
            for fields in zip(*(part.padded(width).fields() for part in parts), strict=True)
        )
    )
