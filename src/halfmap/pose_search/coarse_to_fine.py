"""Cells of the coarse grid scored on few shells, and the children of the likely ones on more."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    cross_terms,
    cross_terms_own,
    slice_power,
)
from halfmap.pose_search.grid_posterior import grid_candidates
from halfmap.pose_search.image_groups import concatenated, groups_of_similar_count, side_by_side
from halfmap.pose_search.refinement import distinct_poses
from halfmap.pose_search.search_plan import GlobalSearch, Level, fast_products, terms_on_level

# kept of every image, however sure: a peak near an edge lies in up to four cells of the directions,
# and the centre of its own may score less than its neighbours'
FEWEST_CELLS = 4
# of the finer step, by which children that start a refinement differ: more than one cell apart
CHILD_SEPARATION = 1.5
Part = TypeVar("Part")


@dataclass(frozen=True)
class Scored:
    """Children of some images scored on a level: their numbers, a at every shift, b, and the log
    prior of each (-inf in places that an image does not use)."""

    children: Int[Tensor, "b n"]
    cross: Float[Tensor, "b T n"]
    power: Float[Tensor, "b n"]
    prior: Float[Tensor, "b n"]
    centre_px: Float[Tensor, "b 2"]


def coarse_scores(
    search: GlobalSearch, terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane
) -> Iterator[Float[Tensor, "b KM"]]:
    """Scores of consecutive images at their best shift in every coarse (class, orientation) cell: a
    matrix product and a pass over it."""
    level = search.planes[0]
    phases = shift_phases(search.shifts[0], level)
    inside = terms_on_level(terms, centre_px, plane, level)
    size = max(1, search.settings.passes.scores // (len(phases) * len(search.slices)))
    for start in range(0, len(terms), size):
        part = inside.select_images(
            torch.arange(start, min(start + size, len(terms)), device=centre_px.device)
        )
        with fast_products():
            cross = cross_terms(part, phases, search.slices, level).amax(
                1
            )  # b does not depend on the shift
            power = slice_power(part, search.slices_squared, level)
        yield search.settings.score(cross, power)


def best_cells(
    search: GlobalSearch, terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane
) -> tuple[Int[Tensor, "B kept"], Int[Tensor, " B"]]:
    """The coarse cells of each image, best first, and how many of them hold the settings' share of
    its posterior (at least `FEWEST_CELLS`; all, where more than `kept` would be needed)."""
    settings, cells, counts = search.settings, [], []
    for score in coarse_scores(search, terms, centre_px, plane):
        log_weight = settings.score.log_evidence(score) + search.cell_prior
        best = torch.topk(log_weight, search.kept, dim=1)
        share = torch.softmax(log_weight, dim=1).gather(1, best.indices)
        needed = (torch.cumsum(share, dim=1) < settings.significance).sum(1) + 1
        cells.append(best.indices)
        counts.append(needed.clamp(min=min(FEWEST_CELLS, search.kept), max=search.kept))
    return torch.cat(cells), torch.cat(counts)


def best_children(
    search: GlobalSearch,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    cells: Int[Tensor, "B kept"],
    counts: Int[Tensor, " B"],
) -> Candidates:
    """Subdivide the kept cells, score the children on the finer level's shells and shifts, and keep
    the best distinct ones; or, where the finer grid resolves all, what stands for the posterior.

    Where there is a level between, children are scored there first, and those go on that hold the
    settings' share of the posterior.
    """
    n = search.grid.children.shape[1]
    own = torch.arange(n, device=cells.device)
    children, counts = (cells[..., None] * n + own).flatten(1), counts * n
    if search.sieve is not None:
        sifted = partial(_sifted, search)
        children, counts = _by_count(
            search, search.sieve, terms, centre_px, plane, children, counts, sifted, side_by_side
        )
    return _by_count(
        search,
        search.finest,
        terms,
        centre_px,
        plane,
        children,
        counts,
        partial(_candidates, search),
        concatenated,
    )


def _by_count(
    search: GlobalSearch,
    level: Level,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    children: Int[Tensor, "B n"],
    counts: Int[Tensor, " B"],
    function: Callable[[Scored], Part],
    joined: Callable[[list[Part], Tensor], Part],
) -> Part:
    """What a function makes of each image's own children, scored on a level. Images that kept about
    as many go together, so that each costs what its own posterior asks for."""
    order, found = torch.argsort(counts, stable=True), []
    places = search.settings.passes.samples // len(level.plane)
    phases = shift_phases(level.shifts, level.plane)
    for rows in groups_of_similar_count(order, counts, places):
        kept = int(counts[rows[-1]])
        own = children[rows, :kept]
        inside = terms_on_level(terms.select_images(rows), centre_px[rows], plane, level.plane)
        with fast_products():
            slices, power = search.slices_and_power(own, inside, level.plane)
            cross = cross_terms_own(inside, phases, slices, level.plane)
        cell = own // search.grid.children.shape[1]
        unused = torch.arange(kept, device=rows.device) >= counts[rows, None]
        prior = search.cell_prior[cell].masked_fill(unused, -torch.inf)
        found.append(function(Scored(own, cross, power, prior, centre_px[rows])))
    return joined(found, torch.argsort(order))


def _sifted(search: GlobalSearch, scored: Scored) -> tuple[Int[Tensor, "b n"], Int[Tensor, " b"]]:
    """The children of each image that hold the settings' share of its posterior on the level that
    they were scored on, best first, and how many they are."""
    settings = search.settings
    score = settings.score(scored.cross.amax(1), scored.power)
    log_weight = settings.score.log_evidence(score) + scored.prior
    most = min(search.most_children, log_weight.shape[1])
    best = torch.topk(log_weight, most, dim=1)
    share = torch.exp(best.values - torch.logsumexp(log_weight, dim=1, keepdim=True))
    needed = (torch.cumsum(share, dim=1) < settings.significance).sum(1) + 1
    there = torch.isfinite(best.values).sum(1)
    fewest = torch.clamp(there, max=FEWEST_CELLS)
    counts = torch.minimum(torch.maximum(needed, fewest), there.clamp(min=1))
    return scored.children.gather(1, best.indices), counts


def _candidates(search: GlobalSearch, scored: Scored) -> Candidates:
    """The best distinct children as candidates; or, where the finer grid resolves all, what stands
    for the posterior."""
    settings, shifts = search.settings, search.shifts[1]
    rotations, classes = (of[scored.children] for of in search.children)
    if search.fine_grid_resolves:
        score = settings.score(scored.cross, scored.power[:, None])
        log_weight = settings.score.log_evidence(score) + scored.prior[:, None]
        number = scored.children % search.grid.children.shape[:2].numel()
        return grid_candidates(
            search,
            score,
            log_weight,
            rotations,
            number,
            classes,
            scored.centre_px,
            shifts,
            search.grid.child_fraction,
        )
    cross, best_shift = scored.cross.max(1)
    score = settings.score(cross, scored.power)
    log_weight = settings.score.log_evidence(score) + scored.prior
    where = scored.centre_px[:, None] + shifts[best_shift]
    candidates = Candidates(
        rotations,
        where,
        classes,
        score,
        log_weight,
        torch.full_like(classes, -1),
        torch.full_like(where, torch.nan),
    )
    separation_deg = search.grid.fine_step_deg * CHILD_SEPARATION
    return distinct_poses(
        candidates,
        settings.n_refined,
        separation_deg,
        most=settings.most_refined,
        share=settings.followed_share,
    )
