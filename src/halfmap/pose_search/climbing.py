"""Cells that survive are climbed to their optima, on more shells each time, and pruned at each
radius."""

from dataclasses import replace

import torch

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane
from halfmap.likelihood import ImageTerms
from halfmap.pose_search.bounded_search import Bounded, BoundedSearch, PruningThreshold, as_starts
from halfmap.pose_search.bounds import upper_bound
from halfmap.pose_search.image_groups import concatenated, groups_of_similar_count
from halfmap.pose_search.refinement import distinct_poses, refine_each

OPTIMA = 16  # distinct ones of each image that are followed
STEPS = 3  # of a climb on the same shells


def climbed(
    search: BoundedSearch, terms: ImageTerms, plane: HalfPlane, bounded: Bounded
) -> Candidates:
    """The optima above the cells that survive: climbed on more and more shells, pruned on each by
    what the shells beyond may add."""
    left, parts = bounded.levels[1], []
    order = torch.argsort(left.counts, stable=True)
    for rows in groups_of_similar_count(order, left.counts, search.settings.passes.poses):
        starts = as_starts(search, left.select_images(rows))
        parts.append(
            _climb(
                search,
                terms.select_images(rows),
                plane,
                bounded.threshold.select_images(rows),
                starts,
            )
        )
    return concatenated(parts, torch.argsort(order))


def _climb(
    search: BoundedSearch,
    terms: ImageTerms,
    plane: HalfPlane,
    threshold: PruningThreshold,
    found: Candidates,
) -> Candidates:
    settings, shell = (
        search.settings,
        torch.arange(search.plane.radius + 1, device=threshold.scale.device),
    )
    strongest = search.power.view(len(search.references), -1, len(shell)).amax(
        1
    )  # of each class's slices, on each shell
    for shells in search.climbs[:-1] or search.climbs:
        found, _ = refine_each(
            search.references,
            terms,
            plane,
            found,
            radius=shells,
            steps=STEPS,
            step_deg=search.step_deg,
            settings=settings,
        )
        hidden = ((threshold.visible * (shell > shells)) @ strongest.T).gather(1, found.classes)
        prior = (
            0.0
            if settings.prior is None
            else settings.prior.of_direction(found.rotations, found.classes)
        )
        bound = upper_bound(found.log_weight + prior, hidden, deviations=search.z)
        found = replace(
            found,
            log_weight=found.log_weight.masked_fill(
                bound < threshold.log_weight[:, None], -torch.inf
            ),
        )
        found = distinct_poses(found, OPTIMA, search.step_deg / 4)
    return found
