"""Global search, coarse to fine in resolution as well as angle, then continuous refinement.

A grid of step delta is only as fine as resolution d ~ D delta (D the particle's diameter), so the coarse grid is scored on the few
shells inside that resolution, where all orientations and shifts of an image cost one small matrix product. The best cells are
subdivided and scored on more shells; the best of those start Gauss-Newton refinements on shells up to the current radius.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.engine.local import Restraint, Score, refine_poses
from halfmap.engine.state import Candidates, Poses
from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    correlation_score,
    cross_terms,
    cross_terms_own,
    slice_power,
    slice_power_own,
    squared_modulus,
)
from halfmap.projection import FourierReferences, project
from halfmap.so3 import children, grid_step_deg, in_plane_grid, orientation_grid, rotation_vector_to_matrix, rotations_of

SCORES_PER_PASS = 2_000_000  # a tile of scores that stays in cache between the product and the pass over it
FINE_TABLE_BYTES = 1 << 30  # slices of all fine cells are cut once up to this size, else for each image's own cells


@dataclass(frozen=True)
class SearchSettings:
    """What a global search covers and how finely; angles in degrees, shifts in pixels around the present shift.

    `angular_step_deg` is the step of the finer of the two grids; `kept_share` of the coarse cells are subdivided, at least `kept_least`;
    `n_refined` distinct candidates are then refined continuously, held near their image's anchor if a `restraint` is given.
    """

    symmetry: Float[Tensor, "G 3 3"]
    particle_radius_px: float
    angular_step_deg: float = 7.5
    shift_range_px: float = 5.0
    shift_step_px: float = 1.0
    kept_share: float = 1 / 96
    kept_least: int = 16
    n_refined: int = 8
    score: Score = correlation_score
    restraint: Restraint | None = None


@dataclass(frozen=True)
class Grid:
    """Coarse orientations and, for each, its finer children."""

    coarse: Float[Tensor, "M 3 3"]
    children: Float[Tensor, "M c 3 3"]
    coarse_step_deg: float
    fine_step_deg: float


def search_grid(settings: SearchSettings, dimensions: int) -> Grid:
    """HEALPix directions x in-plane angles in 3D (symmetry-reduced), in-plane angles alone in 2D; the coarse step is twice the fine step.

    In 3D the steps are HEALPix's: the coarsest order whose step (60 / 2^order) is not above `angular_step_deg`.
    """
    if dimensions == 2:
        n = max(3, math.ceil(360 / (2 * settings.angular_step_deg)))
        step = 360 / n
        coarse = in_plane_grid(step)
        halves = torch.stack([coarse - step / 4, coarse + step / 4], -1)
        return Grid(_about_view_axis(coarse), _about_view_axis(halves), step, step / 2)
    order = max(1, math.ceil(math.log2(60 / settings.angular_step_deg) - 1e-6))
    coarse_grid = orientation_grid(order - 1, settings.symmetry)
    fine = rotations_of(children(coarse_grid.cell_id, order - 1), order)
    return Grid(coarse_grid.rotations, fine, coarse_grid.step_deg, grid_step_deg(order))


def _about_view_axis(psi_deg: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3 3"]:
    vector = torch.zeros(*psi_deg.shape, 3)
    vector[..., 2] = -torch.deg2rad(psi_deg)
    return rotation_vector_to_matrix(vector)


def radius_of_step(step_deg: float, box: int, particle_radius_px: float) -> int:
    """Shells that a grid of this step can resolve: half a step moves the particle's rim by half the resolution, times 1.6 for overlap."""
    return math.ceil(1.6 * box / (2 * particle_radius_px) / math.radians(step_deg))


def shift_grid(range_px: float, step_px: float, *, device: torch.device) -> Float[Tensor, "T 2"]:
    """Square grid of shifts inside a circle."""
    n = math.floor(range_px / step_px + 1e-6)
    axis = torch.arange(-n, n + 1, device=device) * step_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shifts = torch.stack([x.reshape(-1), y.reshape(-1)], -1)
    return shifts[shifts.norm(dim=1) <= range_px + 1e-6].float()


@dataclass(frozen=True)
class GlobalSearch:
    """A search prepared for one set of references: both levels' planes and shifts, the coarse slices, and the fine ones if they fit."""

    references: FourierReferences
    settings: SearchSettings
    grid: Grid
    planes: tuple[HalfPlane, HalfPlane]
    shifts: tuple[Float[Tensor, "T0 2"], Float[Tensor, "T1 2"]]
    slices: Complex[Tensor, "KM J0"]
    slices_squared: Float[Tensor, "J0 KM"]
    fine_slices: Complex[Tensor, "KMc J1"] | None
    fine_squared: Float[Tensor, "KMc J1"] | None
    kept: int


def prepare_search(references: FourierReferences, settings: SearchSettings, radius: int) -> GlobalSearch:
    """Choose both levels' resolution and shift steps, and cut the coarse slices."""
    device = references.grid.device
    grid = search_grid(settings, references.dimensions)
    box = references.box
    planes, shifts = [], []
    for step in (grid.coarse_step_deg, grid.fine_step_deg):
        level = max(2, min(radius, references.radius, radius_of_step(step, box, settings.particle_radius_px)))
        planes.append(half_plane(box, level, device))
        # a quarter period of the outermost shell; the user's step where that is coarser
        shift_step = max(settings.shift_step_px, min(box / (4 * level), max(settings.shift_range_px, 1e-3)))
        shifts.append(shift_grid(settings.shift_range_px, shift_step, device=device))
    n_classes, n_cells = len(references), len(grid.coarse)
    classes = torch.arange(n_classes, device=device).repeat_interleave(n_cells)
    coarse = project(references, grid.coarse.to(device).repeat(n_classes, 1, 1), planes[0], classes=classes)
    kept = min(n_cells * n_classes, max(settings.kept_least, math.ceil(settings.kept_share * n_cells * n_classes)))
    n_children = grid.children.shape[1]
    fine, fine_squared = None, None
    if 12 * n_classes * n_cells * n_children * len(planes[1]) <= FINE_TABLE_BYTES:
        rotations = grid.children.flatten(0, 1).to(device).repeat(n_classes, 1, 1)
        fine = project(references, rotations, planes[1], classes=classes.repeat_interleave(n_children))
        fine_squared = squared_modulus(fine)
    return GlobalSearch(
        references, settings, grid, (planes[0], planes[1]), (shifts[0], shifts[1]), coarse, squared_modulus(coarse).T.contiguous(), fine,
        fine_squared, kept,
    )  # fmt: skip


def search_globally(
    search: GlobalSearch,
    terms: ImageTerms,
    centre_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    radius: int,
    *,
    known: Candidates | None = None,
) -> Candidates:
    """Best pose of each image, refined on shells up to `radius`; shifts are searched around `centre_px`, `known` poses compete."""
    cells = best_cells(search, terms, centre_px, plane)
    found = best_children(search, terms, centre_px, plane, cells)
    if known is not None:
        found = found.append(known)
    return refine_candidates(
        search.references, terms, plane, found, radius=radius, first_radius=search.planes[1].radius, settings=search.settings,
        step_deg=search.grid.fine_step_deg,
    )  # fmt: skip


def _inside(terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane, level: HalfPlane) -> ImageTerms:
    """Terms on a level's shells (a prefix of the plane), each image centred by its present shift."""
    n = len(level)
    return ImageTerms(terms.data[:, :n] * shift_phases(centre_px, level), terms.power[:, :n])


def coarse_scores(
    search: GlobalSearch, terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane
) -> Iterator[Float[Tensor, "b KM"]]:
    """Scores of consecutive images at their best shift in every coarse (class, orientation) cell: a matrix product and a pass over it."""
    level = search.planes[0]
    phases = shift_phases(search.shifts[0], level)
    inside = _inside(terms, centre_px, plane, level)
    size = max(1, SCORES_PER_PASS // (len(phases) * len(search.slices)))
    for start in range(0, len(terms), size):
        part = inside.take(torch.arange(start, min(start + size, len(terms)), device=centre_px.device))
        cross = cross_terms(part, phases, search.slices, level).amax(1)  # b does not depend on the shift
        yield search.settings.score(cross, slice_power(part, search.slices_squared, level))


def best_cells(search: GlobalSearch, terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane) -> Int[Tensor, "B kept"]:
    """The coarse cells of each image with the highest scores."""
    return torch.cat([torch.topk(score, search.kept, dim=1).indices for score in coarse_scores(search, terms, centre_px, plane)])


def best_children(
    search: GlobalSearch, terms: ImageTerms, centre_px: Float[Tensor, "B 2"], plane: HalfPlane, cells: Int[Tensor, "B kept"]
) -> Candidates:
    """Subdivide the kept cells, score the children on the finer level's shells and shifts, and keep the best distinct ones."""
    level, shifts, settings = search.planes[1], search.shifts[1], search.settings
    phases = shift_phases(shifts, level)
    inside = _inside(terms, centre_px, plane, level)
    n_cells, n_children = search.grid.children.shape[:2]
    finer = search.grid.children.to(centre_px.device)
    size = max(1, 16_000_000 // (search.kept * n_children * len(level)))
    found = []
    for start in range(0, len(terms), size):
        rows = torch.arange(start, min(start + size, len(terms)), device=centre_px.device)
        own = cells[rows]
        rotations = finer[own % n_cells].flatten(1, 2)
        classes = (own // n_cells).repeat_interleave(n_children, dim=1)
        if search.fine_slices is None or search.fine_squared is None:
            slices = project(search.references, rotations.flatten(0, 1), level, classes=classes.flatten())
            squared = squared_modulus(slices)
        else:  # rows of parents: their children lie side by side
            slices = search.fine_slices.view(-1, n_children * len(level)).index_select(0, own.flatten())
            squared = search.fine_squared.view(-1, n_children * len(level)).index_select(0, own.flatten())
        slices, squared = slices.view(len(rows), -1, len(level)), squared.view(len(rows), -1, len(level))
        part = inside.take(rows)
        cross, best_shift = cross_terms_own(part, phases, slices, level).max(1)
        score = settings.score(cross, slice_power_own(part, squared, level))
        candidates = Candidates(rotations, centre_px[rows, None] + shifts[best_shift], classes, score)
        found.append(distinct(candidates, settings.n_refined, search.grid.fine_step_deg * 1.5))
    first = found[0]
    for more in found[1:]:
        first = Candidates(*(torch.cat([a, b]) for a, b in zip(first.fields(), more.fields(), strict=True)))
    return first


def distinct(candidates: Candidates, n: int, separation_deg: float) -> Candidates:
    """The n best candidates of each image of which no two of one class lie within `separation_deg` (greedily, best first).

    An image with fewer distinct ones gets repetitions of lower score, which do no harm.
    """
    score = candidates.score.clone()
    chosen = []
    cosine = math.cos(math.radians(separation_deg))
    row = torch.arange(len(score), device=score.device)
    for _ in range(min(n, score.shape[1])):
        best = score.argmax(1)
        chosen.append(best)
        picked = candidates.rotations[row, best]
        trace = torch.einsum("bij,bnij->bn", picked, candidates.rotations)
        near = ((trace - 1) / 2 >= cosine) & (candidates.classes == candidates.classes[row, best][:, None])
        score = torch.where(near, score - 1e6 * score.abs().clamp(min=1), score)
    return candidates.take(torch.stack(chosen, 1))


def refine_candidates(
    references: FourierReferences, terms: ImageTerms, plane: HalfPlane, candidates: Candidates, *, radius: int, first_radius: int,
    settings: SearchSettings, step_deg: float, anchor: Poses | None = None,
) -> Candidates:  # fmt: skip
    """Refine all candidates on few shells, a third of them on twice as many, and so on: most work is spent on poses that can win."""
    survivors, shells = candidates.score.shape[1], min(radius, first_radius)
    while shells < radius:
        candidates = refine_each(
            references, terms, plane, candidates, radius=shells, steps=2, step_deg=step_deg, settings=settings, anchor=anchor
        )
        survivors, shells = max(1, survivors // 3), min(radius, 2 * shells)
        candidates = candidates.best(survivors)
    return refine_each(
        references, terms, plane, candidates, radius=radius, steps=4, step_deg=step_deg, settings=settings, anchor=anchor
    ).best(1)


def refine_each(
    references: FourierReferences, terms: ImageTerms, plane: HalfPlane, candidates: Candidates, *, radius: int, steps: int, step_deg: float,
    settings: SearchSettings, anchor: Poses | None = None,
) -> Candidates:  # fmt: skip
    """Every candidate moved to its local optimum on shells 1..radius, by steps of at most half a grid cell; the settings' restraint, if
    any, holds it near its image's anchor."""
    n_images, n = candidates.score.shape
    held = None if anchor is None else (anchor.rotations.repeat_interleave(n, 0), anchor.shift_px.repeat_interleave(n, 0))
    image = torch.arange(n_images, device=candidates.score.device).repeat_interleave(n)
    rotations, shift_px, value = refine_poses(
        references, terms, plane, radius=radius, image=image, rotations=candidates.rotations.flatten(0, 1),
        shift_px=candidates.shift_px.flatten(0, 1), classes=candidates.classes.flatten(), steps=steps, largest_step_deg=step_deg / 2,
        largest_step_px=plane.box / (4 * radius), score=settings.score, restraint=settings.restraint, anchor=held,
    )  # fmt: skip
    return Candidates(rotations.view(n_images, n, 3, 3), shift_px.view(n_images, n, 2), candidates.classes, value.view(n_images, n))
