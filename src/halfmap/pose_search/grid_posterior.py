"""The posterior over a grid of orientations and shifts that resolves all that the references show:
its likeliest entries, or, where it is diffuse, entries drawn from it."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.state import Candidates
from halfmap.fourier import HalfPlane, shift_phases
from halfmap.likelihood import ImageTerms, cross_terms, slice_power
from halfmap.pose_search.image_groups import concatenated
from halfmap.pose_search.refinement import MOST_ENTRIES
from halfmap.pose_search.sampling import shift_step
from halfmap.pose_search.search_plan import GlobalSearch, terms_on_level


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
            grid_candidates(
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


def grid_candidates(
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
