"""Cells scored on few shells, and pruned whose score cannot become as good as the best on all."""

import math
from dataclasses import replace

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
    slice_power_own,
    squared_modulus,
)
from halfmap.pose_search.bounded_search import (
    Bounded,
    BoundedSearch,
    Level,
    PruningThreshold,
    Survivors,
    as_starts,
)
from halfmap.pose_search.bounds import shell_visibility, unseen_power, upper_bound
from halfmap.pose_search.image_groups import groups_of_similar_count
from halfmap.pose_search.refinement import distinct_poses, merged_with_known, refine_candidates
from halfmap.pose_search.sampling import shift_grid
from halfmap.pose_search.search_plan import fast_products, terms_on_level
from halfmap.projection import extract_slices

INCUMBENTS = 2  # cells of each image that are refined first, so that there is a score to beat
SHARED_FROM = (
    0.2  # of all cells: an image with more survivors is scored against all, as a matrix product
)
# cells that each incumbent is chosen from: neighbours of the best are among the next best
CELLS_PER_INCUMBENT = 16
INCUMBENT_SEPARATION = 1.5  # steps of the grid: more than one cell apart


def bound_cells(
    search: BoundedSearch,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    radius: int,
    *,
    known: Candidates | None = None,
) -> Bounded:
    """Score all cells on the first level, refine a few poses for a threshold, prune; score what is
    left on the second level, prune.

    >>> from halfmap.fourier import half_plane
    >>> from halfmap.likelihood import LOG_LIKELIHOOD
    >>> from halfmap.pose_search.branch_and_bound import prepare_bounded
    >>> from halfmap.pose_search.refinement import SearchSettings
    >>> from halfmap.projection import prepare_references
    >>> from halfmap.simulation.forward_model import Recipe, draw_truth
    >>> from halfmap.simulation.in_memory import simulate_images
    >>> from halfmap.simulation.phantom import phantom
    >>> from halfmap.symmetries import Specimen, point_group
    >>> plane, volume = half_plane(32, 8), phantom(32, 6.0)
    >>> truth = draw_truth(Recipe(3, seed=1))
    >>> terms = simulate_images([volume], truth, pixel_size_angstrom=6.0, snr=1.0).terms(plane)
    >>> settings = SearchSettings(Specimen(point_group("C4"), radius_px=13.0), score=LOG_LIKELIHOOD)
    >>> search = prepare_bounded(prepare_references(volume[None], 8), settings, 8)
    >>> first, second = bound_cells(search, terms, torch.zeros(3, 2), plane, 8).levels
    >>> bool((second.counts <= first.counts).all())
    True
    """
    first, second = search.levels
    cells = torch.arange(len(search.classes), device=centre_px.device).expand(len(terms), -1)
    cross, power, shift_px = _in_all_cells(search, first, terms, centre_px, plane)
    best = _incumbents(
        search, terms, plane, radius, known, search.settings.score(cross, power), shift_px
    )
    threshold = pruning_threshold(search, terms, best)
    left = pruned(
        search,
        first,
        threshold,
        Survivors(cells, torch.zeros_like(cross), shift_px, cells[:, 0]),
        cross,
        power,
        shift_px,
    )
    return Bounded(
        best,
        threshold,
        (left, _second_level(search, second, terms, centre_px, plane, threshold, left)),
    )


def _in_all_cells(
    search: BoundedSearch,
    level: Level,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"], Float[Tensor, "B C 2"]]:
    """a, at the best shift, b and that shift in every cell. Slices are shared by all images."""
    shifts = _shifts(search, level)
    phases, inside = (
        shift_phases(shifts, level.plane),
        terms_on_level(terms, centre_px, plane, level.plane),
    )
    n = len(search.classes)
    cross, power = (torch.empty(len(terms), n, device=centre_px.device) for _ in range(2))
    which = torch.empty(len(terms), n, dtype=torch.int16, device=centre_px.device)
    columns = (
        n
        if search.table is not None
        else max(1, search.settings.passes.samples // len(level.plane))
    )
    for first in range(0, n, columns):
        here = slice(first, min(first + columns, n))
        slices, squared = search.slices(here, level.plane)
        size = max(1, search.settings.passes.scores // (len(shifts) * len(slices)))
        for start in range(0, len(terms), size):
            rows = slice(start, start + size)
            part = ImageTerms(inside.data[rows], inside.power[rows])
            with fast_products():
                most = cross_terms(part, phases, slices, level.plane).max(1)
                cross[rows, here], which[rows, here] = most.values, most.indices.short()
                power[rows, here] = slice_power(part, squared.T, level.plane)
    return cross, power, centre_px[:, None] + shifts[which.long()]


def _in_own_cells(
    search: BoundedSearch,
    level: Level,
    terms: ImageTerms,
    centre_px: Float[Tensor, "b 2"],
    plane: HalfPlane,
    cells: Int[Tensor, "b n"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"], Float[Tensor, "b n 2"]]:
    """The same in each image's own cells."""
    shifts = _shifts(search, level)
    inside = terms_on_level(terms, centre_px, plane, level.plane)
    slices, squared = search.slices(cells, level.plane)
    with fast_products():
        most = cross_terms_own(inside, shift_phases(shifts, level.plane), slices, level.plane).max(
            1
        )
        power = slice_power_own(inside, squared, level.plane)
    return most.values, power, centre_px[:, None] + shifts[most.indices]


def _second_level(
    search: BoundedSearch,
    level: Level,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    threshold: PruningThreshold,
    left: Survivors,
) -> Survivors:
    """Score what survives on the second level, and prune; each image costs what its own posterior
    asks for."""
    n_shifts = len(_shifts(search, level))
    order = torch.argsort(left.counts, stable=True)
    many = left.counts[order] > SHARED_FROM * len(search.classes)
    passes = search.settings.passes
    most = min(passes.samples // len(level.plane), 4 * passes.scores // n_shifts)
    groups = [
        *groups_of_similar_count(order[~many], left.counts, most),
        *([order[many]] if bool(many.any()) else []),
    ]
    parts = []
    for rows in groups:
        some, centre, here = terms.select_images(rows), centre_px[rows], left.select_images(rows)
        if bool(many.any()) and rows is groups[-1]:
            cross, power, shift_px = _in_all_cells(search, level, some, centre, plane)
            cross, power = cross.gather(1, here.cells), power.gather(1, here.cells)
            shift_px = shift_px.gather(1, here.cells[..., None].expand(-1, -1, 2))
        else:
            cross, power, shift_px = _in_own_cells(search, level, some, centre, plane, here.cells)
        parts.append(
            pruned(search, level, threshold.select_images(rows), here, cross, power, shift_px)
        )
    return _in_order(parts, torch.argsort(order))


def _shifts(search: BoundedSearch, level: Level) -> Float[Tensor, "T 2"]:
    """Centres of the cells that cover the range of shifts."""
    reach = search.settings.shift_range_px
    return shift_grid(
        reach + level.shift_step_px / 2 if reach > 0 else 0.0,
        level.shift_step_px,
        device=search.classes.device,
    )


def pruned(
    search: BoundedSearch,
    level: Level,
    threshold: PruningThreshold,
    cells: Survivors,
    cross: Tensor,
    power: Tensor,
    shift_px: Tensor,
) -> Survivors:
    """The cells whose bound is high enough, best bound first."""
    scale = threshold.scale[:, None]
    log_weight = scale * cross - scale**2 * power / 2 + search.log_prior[cells.cells]
    log_weight = log_weight.masked_fill(torch.isinf(cells.log_weight), -torch.inf)
    hidden = (
        unseen_power(level.unseen, threshold.visible, tests=search.tests) @ search.power.T
    ).gather(1, cells.cells // 8)
    bound = upper_bound(log_weight, hidden, deviations=search.z)
    keep = bound >= threshold.log_weight[:, None]
    order = (
        bound.masked_fill(~keep, -torch.inf).topk(max(1, int(keep.sum(1).amax())), dim=1).indices
    )
    return Survivors(
        cells.cells.gather(1, order),
        log_weight.masked_fill(~keep, -torch.inf).gather(1, order),
        shift_px.gather(1, order[..., None].expand(-1, -1, 2)),
        cells.counts * len(_shifts(search, level)),
    )


def _incumbents(
    search: BoundedSearch,
    terms: ImageTerms,
    plane: HalfPlane,
    radius: int,
    known: Candidates | None,
    score: Float[Tensor, "B C"],
    shift_px: Float[Tensor, "B C 2"],
) -> Candidates:
    """Poses refined on all shells: what was known before, and the best distinct ones of the first
    level."""
    weight = search.settings.score.log_evidence(score) + search.log_prior
    top = torch.topk(weight, min(CELLS_PER_INCUMBENT * INCUMBENTS, weight.shape[1]), dim=1)
    where = shift_px.gather(1, top.indices[..., None].expand(-1, -1, 2))
    starts = as_starts(search, Survivors(top.indices, top.values, where, top.indices[:, 0]))
    found = distinct_poses(
        replace(starts, score=score.gather(1, top.indices)),
        INCUMBENTS,
        INCUMBENT_SEPARATION * search.step_deg,
    )
    if known is not None:
        found = merged_with_known(found, known, search.step_deg)
    return refine_candidates(
        search.references,
        terms,
        plane,
        found,
        radius=radius,
        first_radius=search.climbs[0],
        settings=search.settings,
        step_deg=search.step_deg,
    )


def pruning_threshold(
    search: BoundedSearch, terms: ImageTerms, best: Candidates
) -> PruningThreshold:
    """A posterior also counts what is below its best: there poses that hold less than 1 -
    `significance` of it need not be found."""
    settings, top = search.settings, best.select_poses(best.log_weight.argmax(1, keepdim=True))
    value, shells = settings.score.log_evidence(top.score[:, 0]), len(search.plane)
    scale = torch.ones_like(value)
    if settings.score.free_scale:  # a / sqrt(b), where the best scale is a / b
        squared = squared_modulus(
            extract_slices(
                search.references, top.rotations[:, 0], search.plane, classes=top.classes[:, 0]
            )
        )
        inside = ImageTerms(terms.data[:, :shells], terms.power[:, :shells])
        power = slice_power_own(inside, squared[:, None], search.plane)[:, 0]
        scale = top.score[:, 0].clamp(min=0) / power.clamp(min=1e-20).sqrt()
    if settings.prior is not None:
        value = (
            value
            + settings.prior.of_direction(top.rotations, top.classes)[:, 0]
            + math.log(1 - settings.significance)
        )
    return PruningThreshold(
        value, scale, shell_visibility(terms, search.plane) * scale[:, None] ** 2
    )


def _in_order(parts: list[Survivors], order: Int[Tensor, " B"]) -> Survivors:
    """Parts one below the other, their rows put in order."""
    width = max(part.cells.shape[1] for part in parts)

    def together(name: str, empty: float) -> Tensor:
        values = [getattr(part, name) for part in parts]
        padded = [
            torch.cat([v, v.new_full((len(v), width - v.shape[1], *v.shape[2:]), empty)], 1)
            for v in values
        ]
        return torch.cat(padded)[order]

    scored = torch.cat([part.scored for part in parts])[order]
    return Survivors(
        together("cells", 0), together("log_weight", -math.inf), together("shift_px", 0.0), scored
    )
