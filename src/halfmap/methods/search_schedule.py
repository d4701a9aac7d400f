"""Where each iteration looks for poses, how far, and when to stop: the same for every method."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.method import Search
from halfmap.engine.preprocessing import Batch
from halfmap.engine.problem import Problem
from halfmap.engine.significant_poses import significant_poses
from halfmap.engine.state import Candidates, Poses, State, as_candidates, in_every_class
from halfmap.likelihood import ImageTerms
from halfmap.methods.relaxed_symmetry import mates_of, tells_mates_apart
from halfmap.methods.settings import Settings
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.branch_and_bound import prepare_bounded, search_bounded
from halfmap.pose_search.centring import particles_outside
from halfmap.pose_search.refinement import refine_candidates, score_classes
from halfmap.projection import FourierReferences
from halfmap.so3 import angular_distance_deg

SETTLED_CLASSES = 0.01  # share of images that may still change class
# Of a shift whose two coordinates are Gaussian, the length exceeds c medians with a probability of
# 2^-c^2: beyond 6 lies nothing. The rest of the choices below are none of a derivation; what they
# make of whole refinements shows in the iterations of `python benchmarks/run.py trpv1 ribo`.
SHIFT_REACH_MEDIANS = 6
FEWEST_SHIFT_STEPS = 3  # of the grid, to each side of the present shift
# a best shift beyond this share of the range lies at its edge: the grid's outermost step
EDGE_OF_RANGE = 0.9
WIDE_SEARCHES = 2  # iterations that search the whole range of shifts
SETTLED_STEP = 1 / 4  # of the grid's step: half the way from a cell's centre to its edge
# a shell counts as gained beyond this factor: at shell 20 a tenth of a shell, which interpolation
# between shells makes of noise
GAINED = 1.005
LOST = 0.97  # of a shell at radius 33: more than one
FEWEST_ITERATIONS = 4  # two pairs, of which the second is compared with all before
STILL_FALLING = 0.7  # of the last change: poses that move no less than that have stopped settling
FIRST_RADIUS_OF_MATES = 8  # shells
AT_REST_STEP = 0.02  # of the grid's step: 0.15 degrees of 7.5
# share of the posterior around an image's best orientation from which it is refined there alone:
# what else there is, lost from the sum, may not raise a probability by more than a hundredth
SURE = 0.99
GLOBAL_CHECK_EVERY = (
    4  # once poses have settled, every so many iterations all orientations are looked at again
)


def prepare(
    problem: Problem, settings: Settings, references: FourierReferences, state: State
) -> Search:
    """Global search until poses settle; then each image is refined around the poses it has, and one
    that is unsure of them searched as before, with a global check of all now and then."""
    plane, radius = problem.plane, state.radius
    relaxed = settings.relaxed_symmetry
    # mates are many, and few shells tell most of them apart
    first_radius = radius if relaxed is None else max(FIRST_RADIUS_OF_MATES, radius // 2)
    settings = replace(settings, search=replace(settings.search, specimen=problem.specimen))

    known_before = significant_poses(state)
    # against a symmetric start all mates are alike: then the first maps are made at the poses given
    among_mates = relaxed is not None and (
        state.iteration > 0 or tells_mates_apart(references, relaxed)
    )

    def before(batch: Batch) -> Candidates:
        return known_before.select_images(batch.index.cpu()).to(problem.device)

    def local(batch: Batch, poses: Poses) -> Candidates:
        start = before(batch)
        if relaxed is not None and among_mates:
            start = start.append(mates_of(as_candidates(poses), relaxed))
        if problem.dimensions == 3 and problem.n_classes > 1:
            # volumes share a frame: the same pose may fit another class better
            start = start.append(in_every_class(start, problem.n_classes))
        anchor = (
            None
            if settings.anchor is None
            else settings.anchor.select_images(batch.index.cpu()).to(problem.device)
        )
        step_deg = settings.search.angular_step_deg
        return refine_candidates(
            references,
            batch.scored,
            plane,
            start,
            radius=radius,
            first_radius=first_radius,
            settings=settings.search,
            step_deg=step_deg,
            anchor=anchor,
            mates=relaxed,
        )

    if settings.poses_known:

        def where_they_are(batch: Batch, poses: Poses) -> Candidates:
            start = in_every_class(as_candidates(poses), problem.n_classes)
            return score_classes(
                references, batch.scored, plane, start, radius=radius, settings=settings.search
            )

        return where_they_are
    if settings.anchor is not None:
        return local
    reach_px = shift_reach_px(problem, settings, state)

    search = replace(settings.search, shift_range_px=reach_px)
    # made when the first image asks for them: where all are sure, none does
    plan = cache(lambda: prepare_search(references, search, radius))
    bounded = cache(lambda: prepare_bounded(references, search, radius))

    def around(terms: ImageTerms, centre_px: Tensor, known: Candidates | None) -> Candidates:
        if settings.branch_and_bound and not plan().coarse_grid_resolves:
            return search_bounded(bounded(), terms, centre_px, plane, radius, known=known)
        return search_globally(plan(), terms, centre_px, plane, radius, known=known)

    def where_unsure(batch: Batch, poses: Poses) -> Candidates:
        found, step_deg = local(batch, poses), settings.search.angular_step_deg
        rows = unsure_images(before(batch), poses, step_deg, problem.symmetry.rotations)
        return searched_again(around, batch.scored, found, rows, poses.shift_px[rows])

    if is_settled(settings, state) and (state.iteration + 1) % GLOBAL_CHECK_EVERY:
        with_posterior = settings.search.prior is not None and problem.dimensions == 3
        return where_unsure if with_posterior else local
    plan()  # before the first batch: it counts as preparation

    def everywhere(batch: Batch, poses: Poses) -> Candidates:
        known = None if state.iteration == 0 else before(batch)  # no pose to keep in the first
        found = around(batch.scored, poses.shift_px, known)
        if plan().coarse_grid_resolves or plan().fine_grid_resolves:  # too diffuse to have an edge
            return found
        rows, centre_px = particles_outside(
            plan(), batch.scored, poses.shift_px, plane, reach_px=reach_px
        )
        found = searched_again(around, batch.scored, found, rows, centre_px)
        second_px = poses.shift_px.index_copy(0, rows, centre_px)
        rows, centre_px = at_edge(found, torch.stack([poses.shift_px, second_px], 1), reach_px)
        return searched_again(around, batch.scored, found, rows, centre_px)

    return everywhere


def at_present_poses(references: FourierReferences, state: State) -> Search:
    """No search (`Method.prepare`): each image at the pose that it has."""

    def present(batch: Batch, poses: Poses) -> Candidates:
        return as_candidates(poses)

    return present


def unsure_images(
    known: Candidates, poses: Poses, step_deg: float, symmetry: Float[Tensor, "G 3 3"]
) -> Int[Tensor, " b"]:
    """The images whose posterior, when it was last looked at, held less than `SURE` around its best
    orientation: all modes within a grid step of it, of any class and shift, over the sum of all."""
    best = known.best(1).rotations
    near = angular_distance_deg(known.rotations, best, symmetry=symmetry) < step_deg
    held = torch.logsumexp(known.log_weight.masked_fill(~near, -torch.inf), 1)
    return torch.nonzero(held - poses.log_likelihood < math.log(SURE))[:, 0]


def at_edge(
    found: Candidates, centres_px: Float[Tensor, "B c 2"], reach_px: float
) -> tuple[Int[Tensor, " b"], Float[Tensor, "b 2"]]:
    """The images whose best shift lies at the edge of what was searched, the ranges around all of
    their `centres_px`, and that shift."""
    best = found.best(1).shift_px[:, 0]
    away_px = (best[:, None] - centres_px).norm(dim=2).amin(1)
    rows = torch.nonzero(away_px > EDGE_OF_RANGE * reach_px)[:, 0]
    return rows, best[rows]


def searched_again(
    around: Callable[[ImageTerms, Tensor, Candidates | None], Candidates],
    terms: ImageTerms,
    found: Candidates,
    rows: Int[Tensor, " b"],
    centre_px: Float[Tensor, "b 2"],
) -> Candidates:
    """What was found of all images, and of some of them around other shifts."""
    if not len(rows):
        return found
    again = around(terms.select_images(rows), centre_px, found.select_images(rows))
    width = max(again.score.shape[1], found.score.shape[1])
    pairs = zip(found.padded(width).fields(), again.padded(width).fields(), strict=True)
    return Candidates(*(old.index_copy(0, rows, new) for old, new in pairs))


def shift_reach_px(problem: Problem, settings: Settings, state: State) -> float:
    """How far around the present shift a search looks: the range asked for in the first two
    iterations; then no farther than six times the median of the last change, and three steps at
    least."""
    asked = settings.search.shift_range_px
    if state.iteration < WIDE_SEARCHES:
        return asked
    moved_px = state.history[-1].shift_change_angstrom / problem.particles.pixel_size_angstrom
    least_px = FEWEST_SHIFT_STEPS * settings.search.shift_step_px
    return min(asked, max(least_px, SHIFT_REACH_MEDIANS * moved_px))


def is_settled(settings: Settings, state: State) -> bool:
    """Whether the last iteration moved poses by less than a quarter of the search grid's step
    (median), so that a search is not needed."""
    return (
        state.iteration > 1
        and state.history[-1].angular_change_deg < SETTLED_STEP * settings.search.angular_step_deg
    )


def converged(settings: Settings, state: State) -> bool:
    """No shell gained in the last two iterations and none is being lost, classes are kept, and
    poses have stopped moving, or move no less than before."""
    if len(state.history) < FEWEST_ITERATIONS:
        return False
    shells = [1 / min(record.resolutions_angstrom) for record in state.history]
    if max(shells[-2:]) > GAINED * max(shells[:-2]):
        return False
    if shells[-1] < LOST * shells[-2]:
        # what a reference lent to both halves fades: where there is no signal beside it, to nothing
        return False
    if state.references.shape[1] > 1 and state.iteration % GLOBAL_CHECK_EVERY:
        # around known poses few classes compete: only a search of all tells whether they are
        # settled
        return False
    if state.history[-1].class_changes > SETTLED_CLASSES:
        return False
    moved = [record.angular_change_deg for record in state.history[-2:]]
    at_rest_deg = AT_REST_STEP * settings.search.angular_step_deg
    if settings.relaxed_symmetry is not None:
        # particles that go from mate to mate have not found theirs yet
        return moved[1] < at_rest_deg
    return moved[1] > STILL_FALLING * moved[0] or moved[1] < at_rest_deg
