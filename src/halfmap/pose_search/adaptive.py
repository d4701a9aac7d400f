"""Global search, coarse to fine in resolution as well as angle, then continuous refinement.

A grid of step delta is only as fine as resolution d ~ D delta (D the particle's diameter), so the
coarse grid is scored on the few shells inside that resolution, where all orientations and shifts of
an image cost one small matrix product. Of each image the cells that hold 99.9 % of its posterior
are subdivided and scored on more shells: the sharper the posterior, the fewer. The best of their
children start refinements on shells up to the current radius (`modes`). Where the coarse grid
resolves all that the references show, there is nothing to refine: all of its scores are the
posterior.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    cross_terms,
    cross_terms_own,
    slice_power,
    slice_power_own,
    squared_modulus,
)
from halfmap.pose_search.refinement import (
    MOST_ENTRIES,
    SearchSettings,
    distinct_poses,
    merged_with_known,
    refine_candidates,
    without_improbable,
)
from halfmap.pose_search.sampling import (
    Grid,
    level_radius,
    radius_of_step,
    search_grid,
    searched_step_px,
    shift_grid,
    shift_step,
)
from halfmap.projection import FourierReferences, extract_slices

# kept of every image, however sure: a peak near an edge lies in up to four cells of the directions,
# and the centre of its own may score less than its neighbours'
FEWEST_CELLS = 4
# of the finer step, by which children that start a refinement differ: more than one cell apart
CHILD_SEPARATION = 1.5


@dataclass(frozen=True)
class GlobalSearch:
    """A search prepared for one set of references: both levels' planes and shifts, the coarse
    slices, and the fine ones if they fit and are asked for."""

    references: FourierReferences
    settings: SearchSettings
    grid: Grid
    planes: tuple[HalfPlane, HalfPlane]
    shifts: tuple[Float[Tensor, "T0 2"], Float[Tensor, "T1 2"]]
    slices: Complex[Tensor, "KM J0"]
    slices_squared: Float[Tensor, "J0 KM"]
    cell_prior: Float[Tensor, " KM"]
    kept: int
    coarse_grid_resolves: bool
    fine_grid_resolves: bool

    @cached_property
    def fine_table(self) -> tuple[Complex[Tensor, "KMc J1"], Float[Tensor, "KMc J1"]] | None:
        """Slices of all children, and their squares; None where they would take too much memory."""
        level, device = self.planes[1], self.references.grid.device
        n_classes, (n_cells, n_children) = len(self.references), self.grid.children.shape[:2]
        if 12 * n_classes * n_cells * n_children * len(level) > self.settings.passes.table_bytes:
            return None
        rotations = self.grid.children.flatten(0, 1).to(device).repeat(n_classes, 1, 1)
        classes = torch.arange(n_classes, device=device).repeat_interleave(n_cells * n_children)
        slices = extract_slices(self.references, rotations, level, classes=classes)
        return slices, squared_modulus(slices)


def prepare_search(
    references: FourierReferences, settings: SearchSettings, radius: int
) -> GlobalSearch:
    """Choose both levels' resolution and shift steps, and cut the coarse slices."""
    device = references.grid.device
    box, radius = references.box, min(radius, references.radius)
    grid = search_grid(settings, references.dimensions)
    finest, finer = (
        radius_of_step(step, box, settings.specimen.radius_px)
        for step in (grid.coarse_step_deg, grid.fine_step_deg)
    )
    sharp, global_posterior = (
        radius * settings.beta**0.5,
        settings.prior is not None and settings.restraint is None,
    )
    coarse_grid_resolves, fine_grid_resolves = (
        global_posterior and sharp <= finest,
        global_posterior and settings.posterior_on_grid and sharp <= finer,
    )
    planes, shifts = [], []
    for step in (grid.coarse_step_deg, grid.fine_step_deg):
        level = level_radius(step, settings, box, radius)
        planes.append(half_plane(box, level, device))
        shifts.append(
            shift_grid(
                settings.shift_range_px, searched_step_px(settings, box, level), device=device
            )
        )
    n_classes, n_cells = len(references), len(grid.coarse)
    classes = torch.arange(n_classes, device=device).repeat_interleave(n_cells)
    coarse = extract_slices(
        references, grid.coarse.to(device).repeat(n_classes, 1, 1), planes[0], classes=classes
    )
    kept = min(
        n_cells * n_classes,
        max(settings.fewest_cells, math.ceil(settings.largest_cell_share * n_cells * n_classes)),
    )
    prior = torch.zeros(n_classes * n_cells, device=device)
    if settings.prior is not None:
        prior = settings.prior.of_direction(grid.coarse.to(device).repeat(n_classes, 1, 1), classes)
    return GlobalSearch(
        references,
        settings,
        grid,
        (planes[0], planes[1]),
        (shifts[0], shifts[1]),
        coarse,
        squared_modulus(coarse).T.contiguous(),
        prior,
        kept,
        coarse_grid_resolves,
        fine_grid_resolves,
    )


def search_globally(
    search: GlobalSearch,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    radius: int,
    *,
    known: Candidates | None = None,
) -> Candidates:
    """Poses of each image that matter: a grid's posterior where that is resolved, else poses
    refined on shells up to `radius`.

    Shifts are searched around `centre_px`; `known` poses compete where poses are refined.
    """
    if search.coarse_grid_resolves:
        return grid_posterior(search, terms, centre_px, plane)
    cells, counts = best_cells(search, terms, centre_px, plane)
    found = best_children(search, terms, centre_px, plane, cells, counts)
    if search.fine_grid_resolves:
        return found
    found = without_improbable(found)
    if known is not None:
        found = merged_with_known(found, known, search.grid.fine_step_deg)
    return refine_candidates(
        search.references,
        terms,
        plane,
        found,
        radius=radius,
        first_radius=search.planes[1].radius,
        settings=search.settings,
        step_deg=search.grid.fine_step_deg,
    )


def terms_on_level(
    terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane, level: HalfPlane
) -> ImageTerms:
    """Terms on a level's shells (a prefix of the plane), each image centred by its present
    shift."""
    n = len(level)
    return ImageTerms(terms.data[:, :n] * shift_phases(centre_px, level), terms.power[:, :n])


@contextmanager
def fast_products() -> Iterator[None]:
    """Matrix products of float32 in whatever way the machine is fastest at (bfloat16 inputs where
    it has units for them, sums in float32): good enough to choose cells that are scored again."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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

    Images that kept about as many cells go together, so that each costs what its own posterior asks
    for.
    """
    level, found = search.planes[1], []
    order = torch.argsort(counts, stable=True)
    for rows in groups_of_similar_count(
        order,
        counts,
        search.settings.passes.samples // (search.grid.children.shape[1] * len(level)),
    ):
        kept = int(counts[rows[-1]])
        unused = torch.arange(kept, device=rows.device) >= counts[rows, None]
        inside = terms_on_level(terms.select_images(rows), centre_px[rows], plane, level)
        found.append(_children_of(search, inside, centre_px[rows], cells[rows, :kept], unused))
    return concatenated(found, torch.argsort(order))


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


def _children_of(
    search: GlobalSearch,
    inside: ImageTerms,
    centre_px: Float[Tensor, "b 2"],
    cells: Int[Tensor, "b kept"],
    unused: Bool[Tensor, "b kept"],
) -> Candidates:
    level, shifts, settings, grid = search.planes[1], search.shifts[1], search.settings, search.grid
    n_cells, n_children = grid.children.shape[:2]
    rotations = grid.children.to(cells.device)[cells % n_cells].flatten(1, 2)
    classes = (cells // n_cells).repeat_interleave(n_children, dim=1)
    if search.fine_table is None:
        slices = extract_slices(
            search.references, rotations.flatten(0, 1), level, classes=classes.flatten()
        )
        squared = squared_modulus(slices)
    else:  # rows of parents: their children lie side by side
        slices, squared = (
            table.view(-1, n_children * len(level)).index_select(0, cells.flatten())
            for table in search.fine_table
        )
    slices, squared = (
        slices.view(len(cells), -1, len(level)),
        squared.view(len(cells), -1, len(level)),
    )
    with fast_products():
        cross = cross_terms_own(inside, shift_phases(shifts, level), slices, level)
        power = slice_power_own(inside, squared, level)
    prior = (
        search.cell_prior[cells]
        .masked_fill(unused, -torch.inf)
        .repeat_interleave(n_children, dim=1)
    )
    if search.fine_grid_resolves:
        score = settings.score(cross, power[:, None])
        log_weight = settings.score.log_evidence(score) + prior[:, None]
        number = (
            cells[..., None] % n_cells * n_children + torch.arange(n_children, device=cells.device)
        ).flatten(1)
        return _grid_candidates(
            search,
            score,
            log_weight,
            rotations,
            number,
            classes,
            centre_px,
            shifts,
            search.grid.child_fraction,
        )
    cross, best_shift = cross.max(1)
    score = settings.score(cross, power)
    log_weight = settings.score.log_evidence(score) + prior
    where = centre_px[:, None] + shifts[best_shift]
    candidates = Candidates(
        rotations,
        where,
        classes,
        score,
        log_weight,
        torch.full_like(classes, -1),
        torch.full_like(where, torch.nan),
    )
    return distinct_poses(candidates, settings.n_refined, grid.fine_step_deg * CHILD_SEPARATION)


def grid_posterior(
    search: GlobalSearch, terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane
) -> Candidates:
    """The posterior over all coarse cells and shifts, for a grid that resolves all that the
    references show.

    Of each image the `most_entries` largest weights, where they hold the settings' share of it. Of
    a more diffuse posterior as many poses are drawn, at even steps of its cumulative sum and of
    even weight: what is summed over images with them is right on average.
    """
    level, shifts, settings = search.planes[0], search.shifts[0], search.settings
    phases, inside, n_cells = (
        shift_phases(shifts, level),
        terms_on_level(terms, centre_px, plane, level),
        len(search.grid.coarse),
    )
    fraction = search.grid.child_fraction * search.grid.children.shape[1]
    everywhere = torch.arange(len(search.slices), device=centre_px.device)
    coarse, parts = search.grid.coarse.to(centre_px.device)[everywhere % n_cells], []
    size = max(1, search.settings.passes.scores // (len(phases) * len(search.slices)))
    for rows in torch.arange(len(terms), device=centre_px.device).split(size):
        part = inside.select_images(rows)
        score = settings.score(
            cross_terms(part, phases, search.slices, level),
            slice_power(part, search.slices_squared, level)[:, None],
        )
        log_weight = settings.score.log_evidence(score) + search.cell_prior
        rotations, number, classes = (
            t.expand(len(rows), *t.shape)
            for t in (coarse, everywhere % n_cells, everywhere // n_cells)
        )
        parts.append(
            _grid_candidates(
                search,
                score,
                log_weight,
                rotations,
                number,
                classes,
                centre_px[rows],
                shifts,
                fraction,
            )
        )
    return concatenated(parts, torch.arange(len(terms), device=centre_px.device))


def _grid_candidates(
    search: GlobalSearch,
    score: Float[Tensor, "b T n"],
    log_weight: Float[Tensor, "b T n"],
    rotations: Float[Tensor, "b n 3 3"],
    number: Int[Tensor, "b n"],
    classes: Int[Tensor, "b n"],
    centre_px: Float[Tensor, "b 2"],
    shifts: Float[Tensor, "T 2"],
    fraction: float,
) -> Candidates:
    """The cells and shifts that stand for the posterior; each weighs its volume, `fraction` of all
    orientations, and its shift's prior."""
    prior, n, where = search.settings.prior, score.shape[2], centre_px[:, None] + shifts
    assert prior is not None
    log_weight = (
        log_weight + prior.of_shift(where)[..., None] + math.log(shift_step(shifts) ** 2 * fraction)
    )
    settings = search.settings
    entry, weight = significant_entries(
        log_weight.flatten(1), settings.significance, most=settings.most_entries
    )
    row, t, cell = torch.arange(len(score), device=score.device)[:, None], entry // n, entry % n
    shift_px = where[row, t]
    return Candidates(
        rotations[row, cell],
        shift_px,
        classes[row, cell],
        score.flatten(1)[row, entry],
        weight,
        number[row, cell],
        torch.full_like(shift_px, torch.nan),
    )


def significant_entries(
    log_weight: Float[Tensor, "b E"], significance: float, *, most: int = MOST_ENTRIES
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Which entries stand for each image's posterior, `most` of them at most, and with what log
    weights: see `grid_posterior`."""
    best = torch.topk(log_weight, min(most, log_weight.shape[1]), dim=1)
    entry, weight = best.indices, best.values
    total = torch.logsumexp(log_weight, dim=1, keepdim=True)
    diffuse = torch.nonzero(torch.logsumexp(weight, dim=1) < total[:, 0] + math.log(significance))[
        :, 0
    ]
    if len(diffuse):
        n = entry.shape[1]
        rising = torch.cumsum(torch.softmax(log_weight[diffuse], dim=1), dim=1)
        steps = (torch.arange(n, device=entry.device) + 0.5) / n * rising[:, -1:]
        drawn = torch.searchsorted(rising, steps).clamp(max=log_weight.shape[1] - 1)
        order = (
            log_weight[diffuse].gather(1, drawn).argsort(dim=1, descending=True)
        )  # the likeliest first: it is the image's best pose
        entry[diffuse] = drawn.gather(1, order)
        weight[diffuse] = total[diffuse] - math.log(n)
    return entry, weight


def concatenated(parts: list[Candidates], order: Int[Tensor, " B"]) -> Candidates:
    """Parts one below the other, their rows put in order; places that a part lacks are empty."""
    width = max(part.score.shape[1] for part in parts)
    return Candidates(
        *(
            torch.cat(fields)[order]
            for fields in zip(*(part.padded(width).fields() for part in parts), strict=True)
        )
    )
