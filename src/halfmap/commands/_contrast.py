"""Telling users that particles look dark, and which option mends it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands._summaries import counted
from halfmap.distributed import is_first
from halfmap.engine.contrast import Contrast, map_looks_dark, measure_contrast
from halfmap.engine.problem import Problem
from halfmap.particles import Particles
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
    particles = problem.particles
    found = measure_contrast(particles, problem.used, problem.images)
    if found.dark_groups:
        progress.note(_some_groups(particles, found))
    if not found.looks_dark:
        return
    turned = bool((torch.from_numpy(particles.image_sign) < 0).all())
    other = "white" if turned else "dark"
    progress.note(
        f"the particles look darker than what is around them, by {-found.standard_errors:.0f} "
        f"standard errors, but white ones are expected: contrast inverted? Then start again with "
        f"--contrast {other}"
    )


def _some_groups(particles: Particles, found: Contrast) -> str:
    """What is said where some optics groups look dark and others white."""
    dark = ", ".join(map(particles.optics_group_number, found.dark_groups))
    several = len(found.dark_groups) > 1
    errors = -max(found.of_groups[group] for group in found.dark_groups)
    number = int(np.isin(particles.optics_group, found.dark_groups).sum())
    return (
        f"the {counted(number, 'particle')} of optics group{'s' if several else ''} {dark} look "
        f"darker than what is around them, by {errors:.0f} standard errors, and others white: "
        "contrast inverted there? Then halfmap select --optics-group takes them apart, halfmap "
        "convert --contrast says of each what it is, and halfmap join brings them together"
    )
