"""Branch and bound over orientation, shift and class (lecture, last part; cryoSPARC).

1. All cells of a grid are scored on few shells.
2. The best of them, and the poses that an image had before, are refined on all shells: scores that
  some pose reaches.
3. A cell is pruned whose score cannot become as good on all shells (`bounds`). The rest are scored
   on as many shells as the grid resolves, at shifts as fine as these ask for, and pruned again.
4. What survives is not subdivided any further but climbed: each cell's best pose is found by
   Gauss-Newton steps, on these shells and then on twice as many until all are seen. At an optimum
   nothing is lost inside a cell any more; what cannot come up to the best is pruned at each radius.
5. The integral around each optimum that is left is its share of the posterior (`modes`). As long as
   the coarse grid resolves all shells, none of this is needed: cells and their volumes are the
   posterior (`search.grid_posterior`).

Of cells nothing is cut off but what the bound excludes; of the optima above them `OPTIMA` distinct
ones are followed. An image that knows little about its pose costs more than one that knows much.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

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
from halfmap.pose_search.adaptive import (
    concatenated,
    fast_products,
    groups_of_similar_count,
    terms_on_level,
)
from halfmap.pose_search.bounds import (
    Unseen,
    deviations,
    shell_visibility,
    slice_shell_power,
    unseen_in_cells,
    unseen_power,
    upper_bound,
)
from halfmap.pose_search.refinement import (
    SearchSettings,
    distinct_poses,
    merged_with_known,
    refine_candidates,
    refine_each,
)
from halfmap.pose_search.sampling import (
    SHIFTS_PER_PERIOD,
    fine_order,
    level_radius,
    search_grid,
    shift_grid,
)
from halfmap.projection import FourierReferences, extract_slices

# of those that the grid resolves: what is unseen beyond them is about what cells lose inside
FIRST_SHELLS = 0.65
INCUMBENTS = 2  # cells of each image that are refined first, so that there is a score to beat
SHARED_FROM = (
    0.2  # of all cells: an image with more survivors is scored against all, as a matrix product
)
OPTIMA = 16  # distinct ones of each image that are followed
# cells that each incumbent is chosen from: neighbours of the best are among the next best
CELLS_PER_INCUMBENT = 16
INCUMBENT_SEPARATION = 1.5  # steps of the grid: more than one cell apart
STEPS = 3  # of a climb on the same shells


@dataclass(frozen=True)
class Level:
    """One scoring of the grid's cells: the shells, the step of the shifts, and what it leaves
    unseen."""

    plane: HalfPlane
    shift_step_px: float
    unseen: Unseen


@dataclass(frozen=True)
class BoundedSearch:
    """A search prepared for one set of references. Cells are those of the grid's finer
    orientations, class by class, the 8 parts of each coarse one together; `power` is what the slice
    at the centre of each coarse one has on each of the shells of `plane`, all that are scored."""

    references: FourierReferences
    settings: SearchSettings
    step_deg: float
    levels: tuple[Level, Level]
    plane: HalfPlane
    rotations: Float[Tensor, "C 3 3"]
    classes: Int[Tensor, " C"]
    log_prior: Float[Tensor, " C"]
    power: Float[Tensor, "C8 S"]

    @property
    def climbs(self) -> tuple[int, ...]:
        """Shells on which survivors are climbed: those that the grid resolves, twice as many, and
        so on."""
        shells = [self.levels[1].plane.radius]
        while shells[-1] < self.plane.radius:
            shells.append(min(self.plane.radius, 2 * shells[-1]))
        return tuple(shells)

    @property
    def tests(self) -> int:
        """That a cell has to pass: one a level, and one at each radius climbed but the last."""
        return len(self.levels) + len(self.climbs) - 1

    @property
    def z(self) -> float:
        """Standard deviations of the bound."""
        return deviations(self.tests)

    @cached_property
    def table(self) -> tuple[Complex[Tensor, "C J1"], Float[Tensor, "C J1"]] | None:
        """Slices of all cells and their squares on the second level's shells, of which the first
        level's come first; None where they take too much memory."""
        plane = self.levels[1].plane
        if 12 * len(self.classes) * len(plane) > self.settings.passes.table_bytes:
            return None
        slices = extract_slices(self.references, self.rotations, plane, classes=self.classes)
        return slices, squared_modulus(slices)

    def slices(
        self, cells: slice | Int[Tensor, "*n"], plane: HalfPlane
    ) -> tuple[Complex[Tensor, "*n J"], Float[Tensor, "*n J"]]:
        """Slices of some cells, and their squares."""
        if self.table is not None:
            return self.table[0][cells, : len(plane)], self.table[1][cells, : len(plane)]
        rotations, classes = self.rotations[cells], self.classes[cells]
        slices = extract_slices(
            self.references, rotations.flatten(0, -3), plane, classes=classes.flatten()
        ).view(*classes.shape, -1)
        return slices, squared_modulus(slices)


@dataclass(frozen=True)
class Survivors:
    """Cells that may hold an image's best pose, best bound first: their log weights on a level's
    shells, and their best shifts; empty places have the weight -inf. `scored` counts the poses that
    the level scored for each image."""

    cells: Int[Tensor, "B n"]
    log_weight: Float[Tensor, "B n"]
    shift_px: Float[Tensor, "B n 2"]
    scored: Int[Tensor, " B"]

    @property
    def counts(self) -> Int[Tensor, " B"]:
        return torch.isfinite(self.log_weight).sum(1)

    def select_images(self, rows: Int[Tensor, " b"]) -> "Survivors":
        """Those of some images, as wide as the widest of them needs."""
        n = max(1, int(self.counts[rows].amax()))
        return Survivors(
            self.cells[rows, :n],
            self.log_weight[rows, :n],
            self.shift_px[rows, :n],
            self.scored[rows],
        )


@dataclass(frozen=True)
class Bounded:
    """What branch and bound leaves of some images: the refined poses that cells have to threshold,
    and the cells that survive each level."""

    best: Candidates
    threshold: "PruningThreshold"
    levels: tuple[Survivors, Survivors]


@dataclass(frozen=True)
class PruningThreshold:
    """For each image the log weight that a cell's bound must reach, the scale of references in it,
    and the power that it can show of each shell, `scale^2 <C^2 / sigma^2>`."""

    log_weight: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]
    visible: Float[Tensor, "B S"]

    def select_images(self, rows: Int[Tensor, " b"]) -> "PruningThreshold":
        return PruningThreshold(self.log_weight[rows], self.scale[rows], self.visible[rows])


def prepare_bounded(
    references: FourierReferences, settings: SearchSettings, radius: int
) -> BoundedSearch:
    """Choose both levels' shells and shifts, and find what each leaves unseen. Of volumes only.

    >>> from halfmap.likelihood import LOG_LIKELIHOOD
    >>> from halfmap.projection import prepare_references
    >>> from halfmap.simulation.phantom import phantom
    >>> from halfmap.symmetries import Specimen, point_group
    >>> settings = SearchSettings(Specimen(point_group("C4"), radius_px=13.0), score=LOG_LIKELIHOOD)
    >>> search = prepare_bounded(prepare_references(phantom(32, 6.0)[None], 8), settings, 8)
    >>> search.levels[0].plane.radius < search.levels[1].plane.radius < 9
    True
    """
    box, radius, device = references.box, min(radius, references.radius), references.grid.device
    plane, grid = half_plane(box, radius, device), search_grid(settings, 3)

    def level(shells: int) -> Level:
        shift_step = min(box / (SHIFTS_PER_PERIOD * shells), max(settings.shift_range_px, 1e-3))
        unseen = unseen_in_cells(
            references, plane, radius=shells, order=fine_order(settings), shift_step_px=shift_step
        )
        return Level(half_plane(box, shells, device), shift_step, unseen)

    resolved = level_radius(grid.fine_step_deg, settings, box, radius)
    n_classes, coarse, fine = (
        len(references),
        grid.coarse.to(device),
        grid.children.flatten(0, 1).to(device),
    )
    of_class = (torch.full((len(coarse),), k, device=device) for k in range(n_classes))
    power = [
        slice_shell_power(extract_slices(references, coarse, plane, classes=classes), plane)
        for classes in of_class
    ]
    rotations, classes = (
        fine.repeat(n_classes, 1, 1),
        torch.arange(n_classes, device=device).repeat_interleave(len(fine)),
    )
    log_prior = torch.zeros(len(classes), device=device)
    if settings.prior is not None:
        log_prior = settings.prior.of_direction(rotations, classes)
    levels = level(max(2, round(FIRST_SHELLS * resolved))), level(resolved)
    return BoundedSearch(
        references,
        settings,
        grid.fine_step_deg,
        levels,
        plane,
        rotations,
        classes,
        log_prior,
        torch.cat(power),
    )


def search_bounded(
    search: BoundedSearch,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    radius: int,
    *,
    known: Candidates | None = None,
) -> Candidates:
    """Poses of each image that matter, refined on shells up to `radius`, as those of
    `search.search_globally`; an image's best pose is missed with a probability of at most
    `bounds.FAILURE`.

    Shifts are searched around `centre_px`; `known` poses compete.
    """
    parts = []
    for rows in torch.arange(len(terms), device=centre_px.device).split(
        max(1, search.settings.passes.cells // len(search.classes))
    ):
        some, centre, before = (
            terms.select_images(rows),
            centre_px[rows],
            None if known is None else known.select_images(rows),
        )
        bounded = bound_cells(search, some, centre, plane, radius, known=before)
        optima = climbed(search, some, plane, bounded)
        found = merged_with_known(optima, bounded.best, search.step_deg / 2)
        refined = refine_candidates(
            search.references,
            some,
            plane,
            found,
            radius=radius,
            first_radius=radius,
            settings=search.settings,
            step_deg=search.step_deg,
        )
        parts.append(refined)
    return concatenated(parts, torch.arange(len(terms), device=centre_px.device))


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
    threshold = _pruning_threshold(search, terms, best)
    left = _pruned(
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


def _as_starts(search: BoundedSearch, left: Survivors) -> Candidates:
    """Survivors as candidates."""
    none, nan = torch.full_like(left.cells, -1), torch.full_like(left.shift_px, torch.nan)
    return Candidates(
        search.rotations[left.cells],
        left.shift_px,
        search.classes[left.cells],
        left.log_weight,
        left.log_weight,
        none,
        nan,
    )


# --- levels ---------------------------------------------------------------------------------------


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
            _pruned(search, level, threshold.select_images(rows), here, cross, power, shift_px)
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


def _pruned(
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
    starts = _as_starts(search, Survivors(top.indices, top.values, where, top.indices[:, 0]))
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


def _pruning_threshold(
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


# --- optima ---------------------------------------------------------------------------------------


def climbed(
    search: BoundedSearch, terms: ImageTerms, plane: HalfPlane, bounded: Bounded
) -> Candidates:
    """The optima above the cells that survive: climbed on more and more shells, pruned on each by
    what the shells beyond may add."""
    left, parts = bounded.levels[1], []
    order = torch.argsort(left.counts, stable=True)
    for rows in groups_of_similar_count(order, left.counts, search.settings.passes.poses):
        starts = _as_starts(search, left.select_images(rows))
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
