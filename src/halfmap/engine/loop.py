"""One iteration, the same for every method: the E-step (score, search, assign), the two sums, the
M-step (update) and the statistics; and the loop around it."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.distributed import all_sum, broadcast_object, my_share_of_sets, only_first
from halfmap.engine.accumulation import accumulate, slice_terms
from halfmap.engine.clock import Clock
from halfmap.engine.image_model import NoiseSpectra, load_images
from halfmap.engine.method import Iteration, Method, Update, WeighedBatch
from halfmap.engine.particle_values import gather_over_processes, recentred_poses
from halfmap.engine.posterior_weights import assign_hard, best_poses
from halfmap.engine.preprocessing import batches
from halfmap.engine.problem import Problem
from halfmap.engine.significant_poses import significant_poses
from halfmap.engine.state import Candidates, IterationRecord, Poses, PosteriorWeights, State
from halfmap.fourier import HalfPlane, half_plane
from halfmap.projection import Sums, empty_sums, hermitian_mates, prepare_references
from halfmap.so3 import angular_distance_deg

Advance = Callable[[int], None]


def iterate(
    problem: Problem, method: Method, state: State, *, advance: Advance = lambda n: None
) -> tuple[State, dict[str, float]]:
    """The pure function from one iteration's state to the next; also the seconds spent by stage
    (not part of the state)."""
    clock, iteration = Clock(problem.device), _begin(problem, method, state)
    sums = [_empty_sums(problem, iteration.plane) for _ in range(problem.n_parts)]
    partial = [statistic.empty(iteration) for statistic in method.statistics]
    found: list[tuple[Tensor, Poses]] = []
    shares = my_share_of_sets([iteration.members(part) for part in iteration.parts])
    for part, share in zip(iteration.parts, shares, strict=True):
        if not len(share):  # others work on this part, and prepare its references
            continue
        with clock("references"):
            compared_with = state.references[problem.reference_set(part)].to(problem.device)
            references = prepare_references(compared_with, state.radius)
            search = method.prepare(references, state)
        for index in batches(share, problem.batch_size):
            with clock("images"):
                batch = method.load(iteration, index)
            with clock("search"):
                candidates = search(batch, state.poses.select_images(index).to(problem.device))
                weights = method.assign(candidates)
                found.append((index, best_poses(candidates, weights).to("cpu")))
            weighed = WeighedBatch(iteration, references, batch, candidates, weights)
            with clock("sums"):
                terms = method.terms(weighed)
                accumulate(sums[part], terms, weights, iteration.plane, problem.symmetry)
            for n, statistic in enumerate(method.statistics):
                with clock(statistic.name):
                    partial[n] = statistic.add(partial[n], weighed)
            advance(len(index))
    with clock("update"):
        poses = gather_over_processes(state.poses, found, iteration.half >= 0)
        whole = [_reduced(s) for s in sums]
        update = only_first(lambda: method.update(iteration, poses, whole))
        new = _next_state(iteration, update, poses)
        for statistic, summed in zip(method.statistics, partial, strict=True):
            new = statistic.finish(statistic.reduce(summed), iteration, update, new)
    return new, clock.seconds


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
        yield state, seconds


def _begin(problem: Problem, method: Method, state: State) -> Iteration:
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
    advance: Advance = lambda n: None,
) -> list[Sums]:
    """The two sums of each half with every particle at its given pose: reconstruction without a
    search."""
    state = State(
        iteration=0,
        references=torch.zeros(1, 1, 1, 1),
        poses=poses,
        radius=1,
        curves=torch.zeros(1, 1),
        statistics=(NoiseSpectra(noise_variance.cpu()),),
    )
    return sum_at_significant_poses(problem, assign_hard, state, advance=advance)


def sum_at_significant_poses(
    problem: Problem,
    assign: Callable[[Candidates], PosteriorWeights],
    state: State,
    *,
    advance: Advance = lambda n: None,
) -> list[Sums]:
    """The two sums of each half, to the last shell, with the poses and weights that the state
    holds."""
    candidates, plane = significant_poses(state), problem.plane
    sums = [_empty_sums(problem, plane) for _ in range(2)]
    shares = my_share_of_sets([torch.nonzero(problem.half == half)[:, 0] for half in range(2)])
    for half, share in enumerate(shares):
        for index in batches(share, problem.batch_size):
            weights = assign(candidates.select_images(index).to(problem.device))
            unmoved = torch.zeros(len(index), 2)  # the mask is for scores alone
            batch = load_images(problem, state, index, plane, radius=1, centre=unmoved)
            terms = slice_terms(batch.whole, weights, plane)
            accumulate(sums[half], terms, weights, plane, problem.symmetry)
            advance(len(index))
    return [_reduced(s) for s in sums]


def _empty_sums(problem: Problem, plane: HalfPlane) -> Sums:
    box, device = problem.particles.box, problem.device
    return empty_sums(problem.n_classes, box, plane.radius, problem.dimensions, device=device)


def _reduced(sums: Sums) -> Sums:
    all_sum(sums.num)
    all_sum(sums.den)
    return hermitian_mates(sums)
