"""A job's iterations run, with their checkpoints, events and pictures."""

from collections.abc import Callable

import torch

from halfmap.commands._setup import gigabytes
from halfmap.commands._snapshots import (
    save_direction_snapshot,
    save_map_snapshot,
    save_view_counts,
    told_curves,
)
from halfmap.commands._summaries import angstrom, counted, iteration_in_words, map_name, reached
from halfmap.distributed import broadcast_object, is_first, only_first, reduced_bytes, size
from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
from halfmap.engine.image_model import NormAndScale
from halfmap.engine.loop import run
from halfmap.engine.method import Method
from halfmap.engine.problem import Problem
from halfmap.engine.significant_poses import SignificantPoses
from halfmap.engine.state import State
from halfmap.methods.settings import Settings
from halfmap.plots.tiles import save_map_picture
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress, drawing

TOLD_AGAIN = 1.1  # times what was said before, that the next iteration needs to be worth a line


def run_iterations(
    job: Job,
    progress: Progress,
    problem: Problem,
    method: Method,
    first: Callable[[], State] | State,
    *,
    iterations: int,
    show: Callable[[State], None] = lambda state: None,
) -> State:
    """The loop with its bookkeeping: start from `first()`, or go on from the checkpoint if there is
    one, or else from the state given, of a loop before; after each iteration save state, event and
    progress. `show` puts into pictures each state, the one started from included.
    """
    if isinstance(first, State):
        state = first
    elif (saved := only_first(job.load_checkpoint)) is None:
        state = method.start(first())
    else:
        state = state_from_arrays(*saved)
        progress.note(f"going on after iteration {state.iteration}")
    state = broadcast_object(state)

    def draw(state: State) -> None:
        if not is_first():
            return
        with drawing(f"the pictures after iteration {state.iteration}"):
            show(state)

    def start(state: State) -> int:
        """Announce the next iteration, if there is one; how many images it has."""
        images = int((method.select(state, problem.half) >= 0).sum())
        if state.iteration < iterations and not method.converged(state):
            progress.start_iteration(state.iteration + 1, images)
        return images

    draw(state)
    images, reduced, told = start(state), reduced_bytes(), _needed(problem, state)
    most = told
    for new, seconds in run(
        problem, method, state, iterations=iterations, advance=progress.advance
    ):
        fewer_sets, state = len(new.references) < len(state.references), new
        record = state.history[-1]
        cost_ms = 1e3 * sum(seconds.values()) / images
        strength = _strength(problem, state)
        shared = {"reduced_bytes": reduced_bytes() - reduced} if size() > 1 else {}
        reduced = reduced_bytes()
        job.event(
            **record.event(),
            **strength,
            **shared,
            **told_curves(problem, state),
            seconds=seconds,
            ms_per_image=cost_ms,
        )
        if is_first():
            job.save_checkpoint(*state_to_arrays(state))
        draw(state)
        outliers = int(strength.get("norm_outliers", 0))
        progress.finish_iteration(
            iteration_in_words(record, problem, cost_ms, outliers=outliers),
            reached=reached(record, problem),
        )
        last = state.iteration >= iterations or method.converged(state)
        told = _tell_memory(problem, state, told, progress, fewer_folds=fewer_sets, last=last)
        images, most = start(state), most if last else max(most, _needed(problem, state))
    job.update(estimated_memory_bytes=most)
    return state


def _needed(problem: Problem, state: State) -> int:
    """Memory of the next iteration, and of final maps."""
    size = problem.with_reference_sets(len(state.references)).job_size
    return size.least_bytes(problem.batch_size, state.radius)


def _tell_memory(
    problem: Problem,
    state: State,
    told: int,
    progress: Progress,
    *,
    fewer_folds: bool,
    last: bool,
) -> int:
    """Say what the next iteration needs, where there is one and that is more than was said before,
    and what is given up for it; returns what has been said."""
    if fewer := state.history[-1].report.get("batch_size"):
        progress.note(f"memory ran out, and the work was repeated in batches of {int(fewer)}")
    if last:
        return told
    if fewer_folds:
        folds = len(state.references) // 2
        progress.note(f"the memory is enough for {folds} of {problem.n_folds} folds from here on")
    needed = _needed(problem, state)
    if needed > TOLD_AGAIN * told:
        at = angstrom(problem.resolution_of(state.radius))
        progress.note(f"scored to {at} an iteration needs about {gigabytes(needed)} of memory")
        return needed
    return told


def show_volumes(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    """The present references as pictures `map.png` (`class001.png` ...), replaced by the final
    maps' at the end; posterior weights of maximum likelihood are kept for their picture."""
    for k, volume in enumerate(state.references.mean(0).cpu()):
        name = map_name(k, problem.n_classes)
        when = f"after iteration {state.iteration}" if state.iteration else "at the start"
        title = f"{name} {when}, {made_of(job, int((problem.half >= 0).sum()))}"
        save_map_picture(
            job.path(f"pictures/{name}.png"),
            volume.numpy(),
            problem.particles.pixel_size_angstrom,
            title=title,
        )
    save_map_snapshot(job, problem, state)
    save_view_counts(job, problem, state)
    if state.find(SignificantPoses) is not None:
        save_direction_snapshot(job, problem, settings, state)


def made_of(job: Job, particles: int) -> str:
    """`2,400 particles, C4`: what a map of this job is made of, for its title."""
    symmetry = job.parameters.get("symmetry")
    return counted(particles, "particle") + (f", {symmetry}" if symmetry else "")


def certainty(problem: Problem, state: State) -> dict[str, float]:
    """How sure the last iteration was of its poses, and how unlike each other images are."""
    if not state.history:
        return {}
    last = state.history[-1]
    return {
        "mean_largest_weight": last.mean_largest_weight,
        "mean_significant": last.mean_significant,
        "accuracy_deg": last.accuracy_deg,
        "accuracy_angstrom": last.accuracy_angstrom,
        **_strength(problem, state),
    }


def _strength(problem: Problem, state: State) -> dict[str, float]:
    """Of norms the number of outliers, of scales the range; nothing where they are not learnt."""
    strength = state.find(NormAndScale)
    if strength is None:
        return {}
    present = strength.scale[torch.unique(problem.scale_group[problem.used])]
    return {
        "norm_outliers": strength.outliers,
        "scale_min": float(present.min()),
        "scale_max": float(present.max()),
    }
