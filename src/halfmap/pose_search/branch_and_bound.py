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

Of cells nothing is cut off but what the bound excludes; of the optima above them `climbing.OPTIMA`
distinct ones are followed. An image that knows little about its pose costs more than one that knows
much.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane, half_plane
from halfmap.likelihood import ImageTerms
from halfmap.pose_search.bounded_search import BoundedSearch, Level
from halfmap.pose_search.bounds import slice_shell_power, unseen_in_cells
from halfmap.pose_search.climbing import climbed
from halfmap.pose_search.image_groups import concatenated
from halfmap.pose_search.pruning import bound_cells
from halfmap.pose_search.refinement import SearchSettings, merged_with_known, refine_candidates
from halfmap.pose_search.sampling import SHIFTS_PER_PERIOD, fine_order, level_radius, search_grid
from halfmap.projection import FourierReferences, extract_slices

# of those that the grid resolves: what is unseen beyond them is about what cells lose inside
FIRST_SHELLS = 0.65


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
