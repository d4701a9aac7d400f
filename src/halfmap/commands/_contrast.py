"""Telling users that particles look dark, and which option mends it."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.distributed import is_first
from halfmap.engine.contrast import map_looks_dark, measure_contrast
from halfmap.engine.problem import Problem
from halfmap.workspace.progress import Progress


def tell_contrast(
    problem: Problem, progress: Progress, reference: Float[Tensor, "N N N"] | None = None
) -> None:
    """A line where the images, or a low-passed `reference`, look as if their contrast were
    inverted. Nothing is changed: the user decides."""
    if reference is not None and map_looks_dark(reference):
        progress.note(
            "the reference looks dark, its density lies below its surroundings: a white map is "
            "expected, multiply it by -1"
        )
    if not is_first():
        return
    found = measure_contrast(problem.particles, problem.used, problem.images)
    if not found.looks_dark:
        return
    turned = bool((torch.from_numpy(problem.particles.image_sign) < 0).all())
    other = "white" if turned else "dark"
    progress.note(
        f"the particles look darker than what is around them, by {-found.standard_errors:.0f} "
        f"standard errors, but white ones are expected: contrast inverted? Then start again with "
        f"--contrast {other}"
    )
