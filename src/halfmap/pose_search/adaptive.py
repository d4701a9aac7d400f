"""Global search, coarse to fine in resolution as well as angle, then continuous refinement.

A grid of step delta is only as fine as resolution d ~ D delta (D the particle's diameter), so the
coarse grid is scored on the few shells inside that resolution, where all orientations and shifts of
an image cost one small matrix product. Of each image the cells that hold 99.9 % of its posterior
are subdivided and scored on more shells: the sharper the posterior, the fewer. The best of their
children start refinements on shells up to the current radius (`refinement`). Where the coarse grid
resolves all that the references show, there is nothing to refine: all of its scores are the
posterior.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane, half_plane
from halfmap.likelihood import ImageTerms, squared_modulus
from halfmap.pose_search.coarse_to_fine import best_cells, best_children
from halfmap.pose_search.grid_posterior import grid_posterior
from halfmap.pose_search.refinement import (
    SearchSettings,
    merged_with_known,
    refine_candidates,
    without_improbable,
)
from halfmap.pose_search.sampling import (
    level_radius,
    radius_of_step,
    search_grid,
    searched_step_px,
    shift_grid,
)
from halfmap.pose_search.search_plan import GlobalSearch, Level
from halfmap.projection import FourierReferences, extract_slices


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
