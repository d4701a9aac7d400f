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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from jaxtyping import Complex, Float, Int
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
Part = TypeVar("Part")
# of the finer step, by which children that start a refinement differ: more than one cell apart
CHILD_SEPARATION = 1.5


@dataclass(frozen=True)
class Scored:
    """Children of some images scored on a level: their numbers, a at every shift, b, and the log
    prior of each (-inf in places that an image does not use)."""

    children: Int[Tensor, "b n"]
    cross: Float[Tensor, "b T n"]
    power: Float[Tensor, "b n"]
    prior: Float[Tensor, "b n"]
    centre_px: Float[Tensor, "b 2"]


Table = tuple[Complex[Tensor, "m J"], Float[Tensor, "m J"]]


@dataclass(frozen=True)
class Level:
    """One scoring of the finer grid's cells: the shells, and the shifts."""

    plane: HalfPlane
    shifts: Float[Tensor, "T 2"]


@dataclass(frozen=True)
class GlobalSearch:
    """A search prepared for one set of references: both levels' planes and shifts, the level
    between them on which children are sifted (None: there is none), the coarse slices, and the fine
    ones if they fit and are asked for."""

    references: FourierReferences
    settings: SearchSettings
    grid: Grid
    planes: tuple[HalfPlane, HalfPlane]
    shifts: tuple[Float[Tensor, "T0 2"], Float[Tensor, "T1 2"]]
    sieve: Level | None
    slices: Complex[Tensor, "KM J0"]
    slices_squared: Float[Tensor, "J0 KM"]
    cell_prior: Float[Tensor, " KM"]
    kept: int
    coarse_grid_resolves: bool
    fine_grid_resolves: bool

    @property
    def most_children(self) -> int:
        """That go on from the level between."""
        return max(
            self.settings.fewest_cells,
            math.ceil(self.settings.largest_child_share * len(self.children[1])),
        )

    @property
    def finest(self) -> Level:
        """The finer grid's own level."""
        return Level(self.planes[1], self.shifts[1])

    @cached_property
    def children(self) -> tuple[Float[Tensor, "KMc 3 3"], Int[Tensor, " KMc"]]:
        """Orientation and class of all children, class by class, those of a cell side by side."""
        device, n_classes = self.references.grid.device, len(self.references)
        rotations = self.grid.children.flatten(0, 1).to(device)
        classes = torch.arange(n_classes, device=device).repeat_interleave(len(rotations))
        return rotations.repeat(n_classes, 1, 1), classes

    @cached_property
    def _tables(self) -> dict[int, Table]:
        return {}

    @cached_property
    def _cut_so_far(self) -> Counter[int]:
        return Counter()

    def _table(self, plane: HalfPlane, wanted: int) -> Table | None:
        """Slices of all children on a plane, and their squares, from when as many have been cut one
        by one as there are: less than twice the work that knowing all images would take. None
        before, and where they would take too much memory."""
        rotations, classes = self.children
        self._cut_so_far[plane.radius] += wanted
        small = 12 * len(classes) * len(plane) <= self.settings.passes.table_bytes
        often = self._cut_so_far[plane.radius] > len(classes)
        if small and often and plane.radius not in self._tables:
            self._tables[plane.radius] = self._cut(rotations, classes, plane)
        return self._tables.get(plane.radius)

    def slices_of(
        self, children: Int[Tensor, "b n"], plane: HalfPlane
    ) -> tuple[Complex[Tensor, "b n J"], Float[Tensor, "b n J"]]:
        """Slices of each image's children, and their squares."""
        own = children.flatten()
        table = self._table(plane, len(own))
        if table is None:
            rotations, classes = self.children
            cut = self._cut(rotations[own], classes[own], plane)
        else:
            cut = table[0].index_select(0, own), table[1].index_select(0, own)
        slices, squared = (part.view(*children.shape, len(plane)) for part in cut)
        return slices, squared

    def _cut(
        self, rotations: Float[Tensor, "m 3 3"], classes: Int[Tensor, " m"], plane: HalfPlane
    ) -> Table:
        slices = extract_slices(self.references, rotations, plane, classes=classes)
        return slices, squared_modulus(slices)


def prepare_search(
    references: FourierReferences, settings: SearchSettings, radius: int
) -> GlobalSearch:
    """Choose both levels' resolution and shift steps, and cut the coarse slices.

    >>> from halfmap.likelihood import LOG_LIKELIHOOD
    >>> from halfmap.projection import prepare_references
    >>> from halfmap.simulation.phantom import phantom
    >>> from halfmap.symmetries import Specimen, point_group
    >>> settings = SearchSettings(Specimen(point_group("C4"), radius_px=13.0), score=LOG_LIKELIHOOD)
    >>> search = prepare_search(prepare_references(phantom(32, 6.0)[None], 8), settings, 8)
    >>> len(search.slices) < len(search.children[0])  # a coarse cell has 8 children
    True
    """
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

    def level(shells: int) -> Level:
        step_px = searched_step_px(settings, box, shells)
        shifts = shift_grid(settings.shift_range_px, step_px, device=device)
        return Level(half_plane(box, shells, device), shifts)

    few, many = (
        level_radius(step, settings, box, radius)
        for step in (grid.coarse_step_deg, grid.fine_step_deg)
    )
    between = round(math.sqrt(few * many))
    sieve = level(between) if few < between < many and not fine_grid_resolves else None
    levels = level(few), level(many)
    n_classes, n_cells = len(references), len(grid.coarse)
    classes = torch.arange(n_classes, device=device).repeat_interleave(n_cells)
    coarse = extract_slices(
        references,
        grid.coarse.to(device).repeat(n_classes, 1, 1),
        levels[0].plane,
        classes=classes,
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
        (levels[0].plane, levels[1].plane),
        (levels[0].shifts, levels[1].shifts),
        sieve,
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

    >>> from halfmap.fourier import half_plane
    >>> from halfmap.likelihood import LOG_LIKELIHOOD
    >>> from halfmap.projection import prepare_references
    >>> from halfmap.simulation.forward_model import Recipe, draw_truth
    >>> from halfmap.simulation.in_memory import simulate_images
    >>> from halfmap.simulation.phantom import phantom
    >>> from halfmap.symmetries import Specimen, point_group
    >>> plane, volume = half_plane(32, 8), phantom(32, 6.0)
    >>> truth = draw_truth(Recipe(3, seed=1))
    >>> terms = simulate_images([volume], truth, pixel_size_angstrom=6.0, snr=1.0).terms(plane)
    >>> settings = SearchSettings(Specimen(point_group("C4"), radius_px=13.0), score=LOG_LIKELIHOOD)
    >>> search = prepare_search(prepare_references(volume[None], 8), settings, 8)
    >>> poses = search_globally(search, terms, torch.zeros(3, 2), plane, 8)
    >>> len(poses.best(1).rotations)
    3
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

    Where there is a level between, children are scored there first, and those go on that hold the
    settings' share of the posterior.
    """
    n = search.grid.children.shape[1]
    own = torch.arange(n, device=cells.device)
    children, counts = (cells[..., None] * n + own).flatten(1), counts * n
    if search.sieve is not None:
        sifted = partial(_sifted, search)
        children, counts = _by_count(
            search, search.sieve, terms, centre_px, plane, children, counts, sifted, _side_by_side
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
    for rows in groups_of_similar_count(order, counts, places):
        kept = int(counts[rows[-1]])
        own = children[rows, :kept]
        inside = terms_on_level(terms.select_images(rows), centre_px[rows], plane, level.plane)
        slices, squared = search.slices_of(own, level.plane)
        with fast_products():
            cross = cross_terms_own(
                inside, shift_phases(level.shifts, level.plane), slices, level.plane
            )
            power = slice_power_own(inside, squared, level.plane)
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


def _side_by_side(
    parts: list[tuple[Tensor, Tensor]], order: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B n"], Int[Tensor, " B"]]:
    """Parts one below the other, rows filled up, their rows put in order."""
    width = max(children.shape[1] for children, _ in parts)
    filled = [
        torch.nn.functional.pad(children, (0, width - children.shape[1])) for children, _ in parts
    ]
    return torch.cat(filled)[order], torch.cat([counts for _, counts in parts])[order]


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


def _candidates(search: GlobalSearch, scored: Scored) -> Candidates:
    """The best distinct children as candidates; or, where the finer grid resolves all, what stands
    for the posterior."""
    settings, shifts = search.settings, search.shifts[1]
    rotations, classes = (of[scored.children] for of in search.children)
    if search.fine_grid_resolves:
        score = settings.score(scored.cross, scored.power[:, None])
        log_weight = settings.score.log_evidence(score) + scored.prior[:, None]
        number = scored.children % search.grid.children.shape[:2].numel()
        return _grid_candidates(
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
    return distinct_poses(candidates, settings.n_refined, separation_deg)


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
