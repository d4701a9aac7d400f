"""From candidate poses to Gamma, the weight of each pose of each image."""

import torch

from halfmap.engine.state import Candidates, Gamma


def assign_hard(candidates: Candidates) -> Gamma:
    """`Gamma = 1` at the best score of each image and 0 elsewhere (lecture: template matching, FREALIGN)."""
    best = candidates.best(1)
    n = len(best.score)
    index = torch.arange(n, device=best.score.device)
    return Gamma(index, index, best.shift_px[:, 0], torch.ones_like(best.score[:, 0]), best.rotations[:, 0], best.classes[:, 0])
