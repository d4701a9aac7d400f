"""From good cells of a grid to the optima near them, and to the share that each optimum has of its
image's posterior.

Where the posterior is sharper than the grid, the grid is the wrong tool: it misses the peaks. Each
candidate is moved to its local optimum by a few Gauss-Newton steps, and the integral over the pose
around it is that of the Gaussian which the same Hessian H gives (Laplace):

    ln int_mode P(X | phi) P(phi) d phi = L(phi_m) + ln P(phi_m) + (d / 2) ln 2 pi - (1 / 2) ln |H|

Where that leaves an image unsure, its modes are integrated (`mode_integrals`).
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmap.engine.pose_prior import PosePrior
from halfmap.engine.state import Candidates, Poses
from halfmap.fourier import HalfPlane
from halfmap.likelihood import CORRELATION, ImageTerms, Score
from halfmap.pose_search.gauss_newton import (
    Restraint,
    gauss_newton_system,
    refine_poses,
)
from halfmap.pose_search.mode_integrals import PoseMeasure, integrate_modes, turns_between
from halfmap.projection import FourierReferences
from halfmap.symmetries import Specimen, SymmetryOperators

# candidates whose log weight lies this far below their image's best are dropped: e^-12 = 6e-6
NEGLIGIBLE_LOG_WEIGHT = 12.0
_SAME_MODE = (
    4.0  # squared distance, in standard deviations of the posterior, below which two optima are one
)

# What the adaptive grid may cost. What these caps lose beside exhaustive search, and what they
# save, is counted by `python benchmarks/run.py branch_and_bound`.
SEARCH_SIGNIFICANCE = 0.999  # RELION's adaptive fraction
LARGEST_CELL_SHARE = 1 / 4  # of all coarse cells
LARGEST_CHILD_SHARE = 1 / 16  # of all cells of the finer grid
FEWEST_OF_SMALL_GRIDS = 16  # of a grid that the share would leave less of (high symmetry, 2D)
REFINED_CANDIDATES = 24
MOST_REFINED = 96  # of an image whose posterior the first ones do not hold

FOLLOWED_CANDIDATES = 8  # of an image, to the last shells, and those that its posterior needs
# of an image's posterior, by the candidates that are refined and followed: what is missing of the
# sum makes every probability too large, more than by its share here, for more shells tell more of
# the others apart
FOLLOWED_SHARE = 1 - 1e-4

# Of a refinement: two steps choose among candidates on few shells, four finish on the last.
STEPS_ON_FEW_SHELLS, STEPS_ON_ALL_SHELLS = 2, 4

# poses that stand for the posterior of one image on a grid: of even weight, each is 0.4 % of it
MOST_ENTRIES = 256


@dataclass(frozen=True)
class PassSizes:
    """How much a search holds at once; what it finds does not depend on them. `scores` are those
    between a matrix product and the pass over it (a tile that stays in cache), `samples` those of
    the slices of images' own cells, `cells` those of images together in branch and bound (4 million
    take about 100 MB), `poses` those climbed together; slices of all cells are cut once where they
    and their squares take no more than `table_bytes`."""

    scores: int = 2_000_000
    samples: int = 1_000_000
    cells: int = 4_000_000
    poses: int = 20_000
    table_bytes: int = 1 << 30


@dataclass(frozen=True)
class SearchSettings:
    """What a search covers and how finely; angles in degrees, shifts in pixels around the present
    shift.

    `angular_step_deg` is the step of the finer of the two grids. Coarse cells that hold the share
    `significance` of an image's posterior are subdivided, no more than `largest_cell_share` of all
    (or `fewest_cells`). `n_refined` distinct candidates, and up to `most_refined` where they do not
    hold `followed_share`, are then refined continuously, held near their image's anchor if a
    `restraint` is given. With a `prior`, candidates get the weights of a posterior; without, they
    are compared by their scores alone. With `posterior_on_grid`, cells of the finer grid under the
    best coarse ones are the posterior where that grid resolves all shells;
    nothing is refined there. `beta` tells by what annealed scores have been multiplied: their peaks
    are wider by its inverse root. `most_entries` poses stand for a posterior on a grid at most;
    `passes` bounds the memory.
    """

    specimen: Specimen
    angular_step_deg: float = 7.5
    shift_range_px: float = 5.0
    shift_step_px: float = 1.0
    significance: float = SEARCH_SIGNIFICANCE
    largest_cell_share: float = LARGEST_CELL_SHARE
    largest_child_share: float = LARGEST_CHILD_SHARE
    fewest_cells: int = FEWEST_OF_SMALL_GRIDS
    n_refined: int = REFINED_CANDIDATES
    most_refined: int = MOST_REFINED
    followed_share: float = FOLLOWED_SHARE
    score: Score = CORRELATION
    restraint: Restraint | None = None
    prior: PosePrior | None = None
    posterior_on_grid: bool = False
    beta: float = 1.0
    most_entries: int = MOST_ENTRIES
    passes: PassSizes = PassSizes()


def distinct_poses(
    candidates: Candidates,
    n: int,
    separation_deg: float,
    *,
    most: int | None = None,
    share: float = FOLLOWED_SHARE,
) -> Candidates:
    """The n best candidates of each image of which no two of one class lie within `separation_deg`
    (greedily, best first); up to `most` of an image whose posterior those and what is near them do
    not hold to that share.

    Places that an image cannot fill are empty.
    """
    n = min(n, candidates.log_weight.shape[1])
    most = max(n, min(most or n, candidates.log_weight.shape[1]))
    log_weight, cosine = candidates.log_weight.clone(), math.cos(math.radians(separation_deg))
    chosen, weights = _picked(candidates, log_weight, n, cosine)
    if most > n:
        total = torch.logsumexp(candidates.log_weight, 1)
        left = torch.logsumexp(log_weight, 1) - total
        unsure = torch.nonzero(left.exp() > 1 - share)[:, 0]
        more = chosen.new_zeros(len(chosen), most - n)
        lighter = torch.full_like(more, -torch.inf, dtype=weights.dtype)
        if len(unsure):
            rest = candidates.select_images(unsure)
            picked = _picked(rest, log_weight[unsure], most - n, cosine)
            more[unsure], lighter[unsure] = picked
        chosen, weights = torch.cat([chosen, more], 1), torch.cat([weights, lighter], 1)
    return replace(candidates.select_poses(chosen), log_weight=weights)


def _picked(
    candidates: Candidates, log_weight: Float[Tensor, "B m"], n: int, cosine: float
) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Which n candidates `distinct_poses` takes, and their weights; in `log_weight` they and what
    is near them are emptied."""
    chosen, weights = [], []
    row = torch.arange(len(log_weight), device=log_weight.device)
    for _ in range(n):
        value, best = log_weight.max(1)
        chosen.append(best)
        weights.append(value)
        picked = candidates.rotations[row, best]
        trace = torch.einsum("bij,bnij->bn", picked, candidates.rotations)
        near = ((trace - 1) / 2 >= cosine) & (
            candidates.classes == candidates.classes[row, best][:, None]
        )
        near[row, best] = True
        log_weight.masked_fill_(near, -torch.inf)
    return torch.stack(chosen, 1), torch.stack(weights, 1)


def holding(candidates: Candidates, share: float, *, fewest: int) -> Candidates:
    """Of each image the likeliest candidates, best first: as many as hold the share of its
    posterior, and `fewest` at least."""
    ordered = candidates.best(candidates.score.shape[1])
    weight = torch.softmax(ordered.log_weight, 1)
    before = torch.cumsum(weight, 1) - weight
    place = torch.arange(weight.shape[1], device=weight.device)
    kept = (before < share) | (place < fewest)
    kept &= torch.isfinite(ordered.log_weight)
    needed = max(1, int(kept.sum(1).max()))
    held = ordered.log_weight.masked_fill(~kept, -torch.inf)
    return replace(ordered, log_weight=held).best(needed)


def without_improbable(candidates: Candidates) -> Candidates:
    """The same, places emptied whose weight is negligible beside their image's best."""
    best = candidates.log_weight.amax(1, keepdim=True)
    return replace(
        candidates,
        log_weight=candidates.log_weight.masked_fill(
            candidates.log_weight < best - NEGLIGIBLE_LOG_WEIGHT, -torch.inf
        ),
    )


def merged_with_known(found: Candidates, known: Candidates, separation_deg: float) -> Candidates:
    """What was found and what was known before; of found poses those within `separation_deg` of a
    known one of their class are left out."""
    trace = torch.einsum("bnij,bmij->bnm", found.rotations, known.rotations)
    near = ((trace - 1) / 2 >= math.cos(math.radians(separation_deg))) & (
        found.classes[:, :, None] == known.classes[:, None]
    )
    near &= torch.isfinite(known.log_weight)[:, None]
    return replace(found, log_weight=found.log_weight.masked_fill(near.any(2), -torch.inf)).append(
        known
    )


def refine_candidates(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    candidates: Candidates,
    *,
    radius: int,
    first_radius: int,
    settings: SearchSettings,
    step_deg: float,
    anchor: Poses | None = None,
    mates: SymmetryOperators | None = None,
) -> Candidates:
    """Refine all candidates on few shells, those that hold the posterior there on twice as many,
    and so on: most work is spent on poses that can win, an image whose posterior is sharp costs one
    pose, and an unsure one as many as its posterior has. What is dropped on the way is missing from
    the sum that all probabilities are shares of."""
    shells = min(radius, first_radius)
    while shells < radius:
        candidates, _ = refine_each(
            references,
            terms,
            plane,
            candidates,
            radius=shells,
            steps=STEPS_ON_FEW_SHELLS,
            step_deg=step_deg,
            settings=settings,
            anchor=anchor,
            mates=mates,
        )
        shells = min(radius, 2 * shells)
        candidates = holding(
            without_improbable(candidates), settings.followed_share, fewest=FOLLOWED_CANDIDATES
        )
    candidates, equations = refine_each(
        references,
        terms,
        plane,
        candidates,
        radius=radius,
        steps=STEPS_ON_ALL_SHELLS,
        step_deg=step_deg,
        settings=settings,
        anchor=anchor,
        mates=mates,
    )
    if settings.prior is not None:
        hessian = _hessian(equations, settings, step_deg, references.dimensions)
        prior = settings.prior.of_direction(
            candidates.rotations, candidates.classes
        ) + settings.prior.of_shift(candidates.shift_px)
        weight = candidates.log_weight + prior + _log_volume(hessian, settings)
        candidates = replace(candidates, log_weight=weight, accuracy=_accuracy(hessian))
        candidates = _without_twins(candidates, hessian, settings)
        measure = PoseMeasure(
            settings.score,
            settings.prior,
            _log_density(hessian, settings),
            settings.specimen.symmetry.rotations,
        )
        held = integrate_modes(
            references,
            terms,
            plane,
            candidates,
            hessian,
            measure,
            radius=radius,
            at_once=settings.passes.poses,
        )
        candidates = replace(candidates, log_weight=held)
    return without_improbable(candidates)


def score_classes(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    candidates: Candidates,
    *,
    radius: int,
    settings: SearchSettings,
) -> Candidates:
    """Candidates weighed where they are, by their score and, with a prior, by how frequent their
    class is; no pose moves, so that none takes a share of the posterior for what lies around it."""
    scored, _ = refine_each(
        references,
        terms,
        plane,
        candidates,
        radius=radius,
        steps=0,
        step_deg=settings.angular_step_deg,
        settings=settings,
    )
    if settings.prior is None:
        return scored
    weight = scored.log_weight + settings.prior.classes[scored.classes]
    return replace(scored, log_weight=weight)


def refine_each(
    references: FourierReferences,
    terms: ImageTerms,
    plane: HalfPlane,
    candidates: Candidates,
    *,
    radius: int,
    steps: int,
    step_deg: float,
    settings: SearchSettings,
    anchor: Poses | None = None,
    mates: SymmetryOperators | None = None,
) -> tuple[Candidates, Float[Tensor, "B n 27"]]:
    """Every candidate moved to its local optimum on shells 1..radius, by steps of at most half a
    grid cell, weighed by its score alone; and its `pose_equations`. The settings' restraint, if
    any, holds it near its image's anchor, or the nearest of the anchor's mates."""
    used = torch.isfinite(candidates.log_weight)
    image, place = torch.nonzero(used, as_tuple=True)
    held = None if anchor is None else (anchor.rotations[image], anchor.shift_px[image])
    if held is not None and mates is not None:
        held = _nearest_mate(*held, candidates.rotations[image, place], mates)
    rotations, shift_px, equations = refine_poses(
        references,
        terms,
        plane,
        radius=radius,
        image=image,
        rotations=candidates.rotations[image, place],
        shift_px=candidates.shift_px[image, place],
        classes=candidates.classes[image, place],
        steps=steps,
        largest_step_deg=step_deg / 2,
        largest_step_px=plane.box / (4 * radius),
        score=settings.score,
        restraint=settings.restraint,
        anchor=held,
        improbable=NEGLIGIBLE_LOG_WEIGHT,
    )
    value = settings.score(equations[:, 0], equations[:, 1])
    all_equations = equations.new_zeros(*used.shape, equations.shape[1])
    all_equations[used] = equations
    moved = Candidates(
        _put(candidates.rotations, used, rotations),
        _put(candidates.shift_px, used, shift_px),
        candidates.classes,
        _put(candidates.score, used, value),
        _put(candidates.log_weight, used, settings.score.log_evidence(value)),
        torch.full_like(candidates.cell, -1),
        candidates.accuracy,
    )
    return moved, all_equations


def _nearest_mate(
    rotations: Float[Tensor, "M 3 3"],
    shift_px: Float[Tensor, "M 2"],
    wanted: Float[Tensor, "M 3 3"],
    operators: SymmetryOperators,
) -> tuple[Float[Tensor, "M 3 3"], Float[Tensor, "M 2"]]:
    """Of each pose the mate A S nearest to a wanted rotation (of the largest trace of their
    quotient), and its shift."""
    others = operators.to(rotations.device)
    overlap = torch.einsum("mij,gjk,mik->mg", rotations, others.rotations, wanted)
    chosen = overlap.argmax(1)
    moved = torch.einsum("mij,mj->mi", rotations, others.translations_px[chosen])[:, :2]
    return rotations @ others.rotations[chosen], shift_px - moved


def _put(old: Tensor, where: Bool[Tensor, "B n"], values: Tensor) -> Tensor:
    new = old.clone()
    new[where] = values
    return new


def _hessian(
    equations: Float[Tensor, "B n 27"], settings: SearchSettings, step_deg: float, dimensions: int
) -> Float[Tensor, "B n d d"]:
    """Precision of each pose, in radians and pixels; never less than a pose known to a grid step
    and the shifts' prior has."""
    assert settings.prior is not None
    _, hessian = gauss_newton_system(equations.flatten(0, 1), free_scale=settings.score.free_scale)
    floor = equations.new_tensor(
        [math.radians(2 * step_deg) ** -2] * 3 + [settings.prior.shift_sigma_px**-2] * 2
    )
    first = 0 if dimensions == 3 else 2
    return (hessian + torch.diag(floor))[:, first:, first:].unflatten(0, equations.shape[:2])


def _accuracy(hessian: Float[Tensor, "B n d d"]) -> Float[Tensor, "B n 2"]:
    """Standard deviations of rotation (degrees; the root of the summed variances) and shift
    (pixels; along one axis)."""
    variance = torch.linalg.inv(hessian).diagonal(dim1=-2, dim2=-1)
    angle, shift = variance[..., :-2].sum(-1), variance[..., -2:].mean(-1)
    return torch.stack([torch.rad2deg(angle.sqrt()), shift.sqrt()], -1)


def _log_volume(
    hessian: Float[Tensor, "B n d d"], settings: SearchSettings
) -> Float[Tensor, "B n"]:
    """`(d / 2) ln 2 pi - ln |H| / 2` over the volume of all rotations, 8 pi^2 in 3D and 2 pi in 2D;
    symmetry mates count together."""
    d = hessian.shape[-1]
    return (
        d / 2 * math.log(2 * math.pi)
        - 0.5 * torch.linalg.slogdet(hessian)[1]
        + _log_density(hessian, settings)
    )


def _log_density(hessian: Float[Tensor, "B n d d"], settings: SearchSettings) -> float:
    """Of a uniform orientation, symmetry mates counted together: `ln(G / 8 pi^2)`; in 2D of an
    angle, `-ln 2 pi`."""
    whole = 8 * math.pi**2 if hessian.shape[-1] == 5 else 2 * math.pi
    return math.log(len(settings.specimen.symmetry) / whole)


def _without_twins(
    candidates: Candidates, hessian: Float[Tensor, "B n d d"], settings: SearchSettings
) -> Candidates:
    """Of candidates that ended in one optimum, modulo symmetry, all but the best emptied."""
    used = torch.isfinite(candidates.log_weight)
    rows = torch.nonzero(used.sum(1) > 1)[:, 0]
    if not len(rows):
        return candidates
    log_weight = candidates.log_weight.clone()
    turn = turns_between(candidates.rotations[rows], settings.specimen.symmetry.rotations)
    move = candidates.shift_px[rows, :, None] - candidates.shift_px[rows, None]
    away = torch.cat([turn, move], -1)[..., 5 - hessian.shape[-1] :]
    distance = (away * (hessian[rows, :, None] @ away[..., None])[..., 0]).sum(-1)
    same = (distance < _SAME_MODE) & (
        candidates.classes[rows, :, None] == candidates.classes[rows, None]
    )
    weight = log_weight[rows]
    place = torch.arange(weight.shape[1], device=weight.device)
    wins = (weight[:, :, None] > weight[:, None]) | (
        (weight[:, :, None] == weight[:, None]) & (place[:, None] < place)
    )
    log_weight[rows] = weight.masked_fill((same & wins).any(1), -torch.inf)
    return replace(candidates, log_weight=log_weight)
