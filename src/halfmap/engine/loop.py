"""One iteration, the same for every method: the E-step (score, search, assign), the two sums, the
M-step (update) and the statistics; and the loop around it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.distributed import all_sum, broadcast_object, my_share_of_sets, only_first
from halfmap.engine.accumulation import accumulate, slice_terms
from halfmap.engine.batching import give_back_memory, in_batches
from halfmap.engine.clock import Clock
from halfmap.engine.image_model import NoiseSpectra, load_images
from halfmap.engine.method import Iteration, Method, Search, Statistic, Update, WeighedBatch
from halfmap.engine.particle_values import gather_over_processes, recentred_poses
from halfmap.engine.posterior_weights import assign_hard, best_poses, weights_of_class
from halfmap.engine.problem import Problem
from halfmap.engine.significant_poses import significant_poses
from halfmap.engine.state import Candidates, IterationRecord, Poses, PosteriorWeights, State
from halfmap.fourier import HalfPlane, half_plane
from halfmap.likelihood import ImageTerms
from halfmap.projection import (
    FourierReferences,
    Sums,
    empty_sums,
    hermitian_mates,
    prepare_references,
)
from halfmap.so3 import angular_distance_deg
from halfmap.symmetries import SymmetryOperators
from halfmap.symmetrisation import symmetrised

Advance = Callable[[int], None]


def iterate(
    problem: Problem, method: Method, state: State, *, advance: Advance = lambda n: None
) -> tuple[State, dict[str, float]]:
    """The pure function from one iteration's state to the next; also the seconds spent by stage
    (not part of the state)."""
    clock, iteration = Clock(problem.device), _begin(problem, method, state)
    problem = iteration.problem
    sums, sampled, found, size = _sum_over_images(clock, method, iteration, advance)
    give_back_memory()
    with clock("update"):
        sampled = [s.reduce(one) for s, one in zip(method.statistics, sampled, strict=True)]
        names = (statistic.name for statistic in method.statistics)
        iteration = replace(iteration, summed=dict(zip(names, sampled, strict=True)))
        poses = gather_over_processes(state.poses, found, iteration.half >= 0)
        for n in range(len(sums)):  # none of them is held beside the list
            _reduced(sums[n])
        update = only_first(
            lambda: method.update(iteration, poses, _symmetrised(sums, problem.symmetry))
        )
        new = _next_state(iteration, update, poses)
        for statistic, summed in zip(method.statistics, sampled, strict=True):
            new = statistic.finish(summed, iteration, update, new)
    return _remembering(new, problem, size), clock.seconds


def _sum_over_images(
    clock: Clock, method: Method, iteration: Iteration, advance: Advance
) -> tuple[list[Sums], list[Any], list[tuple[Tensor, Poses]], int]:
    """The E-step of all batches: the two sums of each part, what the statistics have added up, the
    poses found, and how large batches were in the end. References and searches end with it: they
    may take as much as the update does."""
    problem, state = iteration.problem, iteration.state
    n_sums = 0 if method.terms is None else problem.n_parts
    sums = [_empty_sums(problem, iteration.plane) for _ in range(n_sums)]
    sampled = [statistic.empty(iteration) for statistic in method.statistics]
    found: list[tuple[Tensor, Poses]] = []
    shares = my_share_of_sets([iteration.members(part) for part in iteration.parts])
    size = problem.batch_size
    for part, share in zip(iteration.parts, shares, strict=True):
        if not len(share):  # others work on this part, and prepare its references
            continue
        with clock("references"):
            compared_with = state.references[problem.reference_set(part)].to(problem.device)
            box = problem.particles.box
            references = prepare_references(compared_with, state.radius, box=box)
            search = method.prepare(references, state)
        weigh = partial(_weigh, clock, method, iteration, references, search)
        steps = [partial(_keep_poses, found)]
        if method.terms is not None:
            steps.append(partial(_add_sums, clock, method.terms, sums[part]))
        steps += [partial(_sample, clock, sampled, n, s) for n, s in enumerate(method.statistics)]
        size = in_batches(share, size, weigh, steps, advance=advance)
        del references, search, weigh, steps  # one set of references at a time
    return sums, sampled, found, size


def run(
    problem: Problem,
    method: Method,
    state: State,
    *,
    iterations: int,
    advance: Advance = lambda n: None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Iterate until the method has converged or `iterations` have been done in all, yielding each
    new state."""
    # one decision for all processes: on unlike processors, the last bit of a mean may differ
    while state.iteration < iterations and not broadcast_object(method.converged(state)):
        state, seconds = iterate(problem, method, state, advance=advance)
        give_back_memory()
        yield state, seconds


def _weigh(
    clock: Clock,
    method: Method,
    iteration: Iteration,
    references: FourierReferences,
    search: Search,
    index: Int[Tensor, " B"],
) -> WeighedBatch:
    """The E-step of a batch."""
    state, device = iteration.state, iteration.problem.device
    with clock("images"):
        batch = method.load(iteration, index)
    with clock("search"):
        candidates = search(batch, state.poses.select_images(index).to(device))
        weights = method.assign(candidates)
    return WeighedBatch(iteration, references, batch, candidates, weights)


def _keep_poses(found: list[tuple[Tensor, Poses]], weighed: WeighedBatch) -> None:
    poses = best_poses(weighed.candidates, weighed.weights).to("cpu")
    found.append((weighed.batch.index.cpu(), poses))


def _add_sums(
    clock: Clock, terms: Callable[[WeighedBatch], ImageTerms], sums: Sums, weighed: WeighedBatch
) -> None:
    with clock("sums"):
        accumulate(sums, terms(weighed), weighed.weights, weighed.iteration.plane)


def _sample(
    clock: Clock, sampled: list[Any], n: int, statistic: Statistic[Any], weighed: WeighedBatch
) -> None:
    with clock(statistic.name):
        sampled[n] = statistic.add(sampled[n], weighed)


def _remembering(state: State, problem: Problem, size: int) -> State:
    """The state whose last record tells that batches had to be made smaller."""
    if size >= problem.batch_size:
        return state
    last = state.history[-1]
    last = replace(last, report={**last.report, "batch_size": size})
    return replace(state, history=(*state.history[:-1], last))


def _begin(problem: Problem, method: Method, state: State) -> Iteration:
    problem = problem.with_reference_sets(len(state.references))
    plane = method.plane(problem, state.radius)
    return Iteration(
        problem=problem,
        state=state,
        plane=plane,
        scored=half_plane(plane.box, state.radius, problem.device),
        half=method.select(state, problem.half),
    )


def _next_state(iteration: Iteration, update: Update, poses: Poses) -> State:
    """The state after the M-step, with what statistics keep as it was before."""
    state, record = iteration.state, _record(iteration, update, poses)
    if update.recentring_px is not None:
        poses = recentred_poses(poses, update.recentring_px)
    return State(
        iteration=state.iteration + 1,
        references=update.references.cpu(),
        poses=poses,
        radius=update.radius,
        curves=update.curves.cpu(),
        history=(*state.history, record),
        statistics=state.statistics,
        method=update.kept,
    )


def _record(iteration: Iteration, update: Update, poses: Poses) -> IterationRecord:
    """How far the particles that took part moved, and how sure they are of their poses."""
    problem, state = iteration.problem, iteration.state
    used = torch.nonzero(iteration.half >= 0)[:, 0]
    old, new = state.poses.select_images(used), poses.select_images(used)
    mates, pixel = problem.symmetry.rotations.cpu(), problem.particles.pixel_size_angstrom
    angle = angular_distance_deg(old.rotations, new.rotations, symmetry=mates)
    sizes = torch.bincount(new.classes, minlength=problem.n_classes)
    return IterationRecord(
        iteration=state.iteration + 1,
        radius=state.radius,
        scored_to_angstrom=problem.resolution_of(state.radius),
        resolutions_angstrom=update.resolutions_angstrom,
        class_sizes=tuple(sizes.tolist()),
        empty_classes=update.empty_classes,
        angular_change_deg=float(angle.median()),
        shift_change_angstrom=float((old.shift_px - new.shift_px).norm(dim=1).median()) * pixel,
        class_changes=float((old.classes != new.classes).float().mean()),
        mean_score=float(new.score.mean()),
        mean_largest_weight=float(new.largest_weight.mean()),
        mean_significant=float(new.significant.float().mean()),
        mean_log_likelihood=float(new.log_likelihood.mean()),
        accuracy_deg=float(new.accuracy[:, 0].nanmedian()),
        accuracy_angstrom=float(new.accuracy[:, 1].nanmedian()) * pixel,
        report=update.report,
    )


# --- sums without a search ---------------------------------------------------------------------


def sum_at_poses(
    problem: Problem,
    poses: Poses,
    noise_variance: Float[Tensor, "G S"],
    *,
    plane: HalfPlane | None = None,
    only_half: int | None = None,
    advance: Advance = lambda n: None,
) -> list[Sums]:
    """The two sums of each half, or of one alone, with every particle at its given pose:
    reconstruction without a search."""
    state = State(
        iteration=0,
        references=torch.zeros(1, 1, 1, 1),
        poses=poses,
        radius=1,
        curves=torch.zeros(1, 1),
        statistics=(NoiseSpectra(noise_variance.cpu()),),
    )
    return sum_at_significant_poses(
        problem, assign_hard, state, plane=plane, only_half=only_half, advance=advance
    )


def sum_at_significant_poses(
    problem: Problem,
    assign: Callable[[Candidates], PosteriorWeights],
    state: State,
    *,
    plane: HalfPlane | None = None,
    only_class: int | None = None,
    only_half: int | None = None,
    advance: Advance = lambda n: None,
) -> list[Sums]:
    """The two sums of each half or of one, to the last shell or that of `plane`, with the poses and
    weights that the state holds; of all classes or of one."""
    candidates, plane = significant_poses(state), plane or problem.plane
    n_classes = problem.n_classes if only_class is None else 1

    def terms_of(index: Int[Tensor, " B"]) -> tuple[ImageTerms, PosteriorWeights]:
        weights = assign(candidates.select_images(index).to(problem.device))
        if only_class is not None:
            weights = weights_of_class(weights, only_class)
        batch = load_images(problem, state, index, plane, radius=1)
        return slice_terms(batch.whole, weights, plane), weights

    taking_part = problem.half
    if only_class is not None:
        seen = (candidates.classes == only_class) & torch.isfinite(candidates.log_weight)
        taking_part = torch.where(seen.any(1), problem.half, -1)
        advance(int(((problem.half >= 0) & (taking_part < 0)).sum()))
    give_back_memory()
    halves = range(2) if only_half is None else [only_half]
    sums = [_empty_sums(problem, plane, n_classes) for _ in halves]
    shares = my_share_of_sets([torch.nonzero(taking_part == half)[:, 0] for half in halves])
    for n, share in enumerate(shares):
        steps = [partial(_add_terms, sums[n], plane)]
        in_batches(share, problem.batch_size, terms_of, steps, advance=advance)
        del steps
        _reduced(sums[n])
    return _symmetrised(sums, problem.symmetry)


def _add_terms(sums: Sums, plane: HalfPlane, found: tuple[ImageTerms, PosteriorWeights]) -> None:
    accumulate(sums, *found, plane)


def _empty_sums(problem: Problem, plane: HalfPlane, n_classes: int | None = None) -> Sums:
    box, device = problem.particles.box, problem.device
    n_classes = n_classes or problem.n_classes
    return empty_sums(n_classes, box, plane.radius, problem.dimensions, device=device)


def _reduced(sums: Sums) -> Sums:
    all_sum(sums.num)
    all_sum(sums.den)
    return hermitian_mates(sums)


def _symmetrised(parts: list[Sums], symmetry: SymmetryOperators) -> list[Sums]:
    """The parts with their symmetry mates, each in the place of what it was: one grid more is held
    at a time, for nobody but `symmetrised` has the part that it works on."""
    for _ in range(len(parts)):
        parts.append(symmetrised(parts.pop(0), symmetry))
    return parts
