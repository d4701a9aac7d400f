"""A job's iterations in this process, one at a time, so that CPU seconds of a single one can be
told: `engine.loop.iterate` on the state that the job would have. One thread, so that seconds of a
stage are CPU seconds on a quiet machine; the CPU seconds of the whole are the process's own and do
not mind other work."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from common import job_folder
from halfmap import refine
from halfmap.commands import _inputs, _setup
from halfmap.commands._volumes import VolumeOptions, first_state, open_volumes
from halfmap.engine.checkpoint import state_from_arrays
from halfmap.engine.image_model import noise_variance
from halfmap.engine.loop import _begin, iterate
from halfmap.engine.method import Method
from halfmap.engine.preprocessing import batches, load_batch
from halfmap.engine.problem import Problem
from halfmap.engine.state import Candidates, Poses, State
from halfmap.fourier import shift_phases
from halfmap.likelihood import squared_modulus
from halfmap.methods import search_schedule
from halfmap.methods.registry import make_method
from halfmap.methods.settings import Settings
from halfmap.particles import load_particles
from halfmap.pose_search.image_groups import concatenated
from halfmap.projection import extract_slices, prepare_references
from halfmap.workspace.job import Job, load_checkpoint
from halfmap.workspace.progress import Progress

Result = TypeVar("Result")

DEFAULTS = inspect.signature(refine).parameters
FOLDS: int = DEFAULTS["folds"].default


@dataclass(frozen=True)
class OpenedVolumes:
    """A maximum-likelihood job on volumes before its first iteration."""

    problem: Problem
    settings: Settings
    method: Method
    state: State
    true_poses: Poses

    def subset(self, images: int) -> Problem:
        """The problem on the first so many images; the others sit aside."""
        half = self.problem.half.clone()
        half[images:] = -1
        return replace(self.problem, half=half)


@dataclass(frozen=True)
class Measured:
    """One iteration: the state before and after, CPU seconds of the process, wall seconds by stage,
    whether it looked everywhere."""

    before: State
    after: State
    cpu_s: float
    stages: dict[str, float]
    everywhere: bool


def open_job(
    star: Path,
    maps: Sequence[Path],
    *,
    diameter_angstrom: float | None,
    lowpass_angstrom: float,
    symmetry: str = "C1",
    step_deg: float = 7.5,
    threads: int = 1,
) -> OpenedVolumes:
    """`halfmap refine --method ml` from one map, `halfmap class3d --method ml` from several, up to
    the first iteration; `truth.star` lies beside the STAR, whose rows are its first."""
    usual = {field.name: DEFAULTS[field.name].default for field in fields(VolumeOptions)}
    own = {
        "symmetry": symmetry,
        "diameter_angstrom": diameter_angstrom,
        "initial_lowpass_angstrom": lowpass_angstrom,
        "angular_step_deg": step_deg,
    }
    options = VolumeOptions(**(usual | own))
    device = _setup.use_device("cpu", threads)
    job = Job.create("refine", {}, job_folder("inside"), seed=1, overwrite=True)
    with job, Progress("benchmark", quiet=True) as progress:
        matched = "own" if len(maps) == 1 else "other"
        opened = open_volumes(
            star,
            maps,
            options,
            job,
            progress,
            classes=len(maps),
            matched_to=matched,
            device=device,
            folds=FOLDS if len(maps) == 1 else 1,
        )
    problem, settings = opened.problem, opened.settings
    references = opened.start[None].repeat(opened.problem.n_parts, 1, 1, 1, 1)
    method = make_method("ml", problem, settings)
    true_poses = _inputs.poses_of(load_particles(star.with_name("truth.star"))).select_images(
        torch.arange(len(problem.particles))
    )
    return OpenedVolumes(
        problem,
        settings,
        method,
        method.start(first_state(problem, references, lowpass_angstrom)),
        true_poses,
    )


def at_its_end(opened: OpenedVolumes, folder: Path) -> OpenedVolumes:
    """The same job with the state that its run in `folder` ended with.

    Raises:
        FileNotFoundError: the folder holds no state.
        ValueError: the images were compared with other sets of references there.
    """
    saved = load_checkpoint(folder)
    if saved is None:
        raise FileNotFoundError(f"{folder}: expected a job that has done an iteration")
    state, problem = state_from_arrays(*saved), opened.problem
    sets = {problem.reference_set(p) for p in _begin(problem, opened.method, state).parts}
    if len(sets) != len(state.references):
        raise ValueError(
            f"{folder}: expected {len(sets)} sets of references, as the job opened here has, found "
            f"{len(state.references)}"
        )
    return replace(opened, state=state)


def search(
    opened: OpenedVolumes, settings: Settings, state: State, *, images: int | None = None
) -> tuple[Tensor, Candidates]:
    """What an iteration from `state` finds, without the sums: the rows of all images, or of those
    among the first so many, ascending, and their candidate poses."""
    problem = opened.problem if images is None else opened.subset(images)
    method = make_method("ml", problem, settings)
    iteration = _begin(problem, method, state)
    rows, found = [], []
    for part in iteration.parts:
        compared_with = state.references[problem.reference_set(part)]
        look = method.prepare(prepare_references(compared_with, state.radius), state)
        for index in batches(iteration.members(part), problem.batch_size):
            rows.append(index)
            found.append(look(method.load(iteration, index), state.poses.select_images(index)))
    order = torch.argsort(torch.cat(rows))
    return torch.cat(rows)[order], concatenated(found, order)


def looks_everywhere(settings: Settings, state: State) -> bool:
    """Whether the next iteration searches all orientations (`search_schedule.prepare`)."""
    return not (
        search_schedule.is_settled(settings, state)
        and (state.iteration + 1) % search_schedule.GLOBAL_CHECK_EVERY
    )


def step(opened: OpenedVolumes, state: State, *, images: int | None = None) -> Measured:
    """One iteration from `state`, on all images or on the first so many."""
    problem = opened.problem if images is None else opened.subset(images)
    method = make_method("ml", problem, opened.settings)
    cpu_s, (after, stages) = cpu_seconds(lambda: iterate(problem, method, state))
    return Measured(state, after, cpu_s, stages, looks_everywhere(opened.settings, state))


def cpu_seconds(function: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds of this process, all threads, and the result."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def settled(state: State) -> State:
    """The state as if the last iteration had moved nothing: the next one refines poses where they
    are."""
    iteration = (
        2 * search_schedule.GLOBAL_CHECK_EVERY
    )  # not one of those that look everywhere now and then
    still = replace(state.history[-1], angular_change_deg=0.0, shift_change_angstrom=0.0)
    return replace(state, iteration=iteration, history=(*state.history, still))


def searching(settings: Settings, state: State) -> State:
    """The state as if the last iteration had moved most poses by a grid step: the next one looks
    everywhere, as far as it would have."""
    moved = replace(state.history[-1], angular_change_deg=settings.search.angular_step_deg)
    return replace(state, iteration=2, history=(*state.history, moved))


def widest(state: State) -> State:
    """The state as if the last iteration had moved everything without end: the next one looks
    everywhere, and as far as it was asked to."""
    lost = replace(state.history[-1], angular_change_deg=math.inf, shift_change_angstrom=math.inf)
    return replace(state, history=(*state.history, lost))


def on_true_maps(
    opened: OpenedVolumes, state: State, maps: Float[Tensor, "K N N N"], radius: int
) -> State:
    """The state with the true maps as references, on the images' grey scale, scored to `radius`."""
    references = (grey_scale(opened, state, maps[0]) * maps).repeat(
        opened.problem.n_parts, 1, 1, 1, 1
    )
    return replace(state, references=references, radius=radius)


def grey_scale(opened: OpenedVolumes, state: State, true_map: Float[Tensor, "N N N"]) -> float:
    """The scale s at which the images fit the map best at their true poses, `sum Re(conj(C X) R) /
    sum C^2 |R|^2` weighed by the noise."""
    problem, rows = opened.problem, torch.arange(min(200, len(opened.true_poses)))
    poses, plane = opened.true_poses.select_images(rows), problem.plane
    terms = load_batch(
        problem.particles, rows, plane, noise_variance(state), poses.shift_px, problem.images
    ).scored
    slices = extract_slices(
        prepare_references(true_map[None], plane.radius), poses.rotations, plane
    )
    data, weight = terms.data * shift_phases(poses.shift_px, plane), plane.hermitian_weight
    return float(
        (weight * (data.conj() * slices).real).sum()
        / (weight * terms.power * squared_modulus(slices)).sum()
    )


def shells_of(box: int, pixel_size_angstrom: float, resolution_angstrom: float) -> int:
    """Shells up to a resolution, not beyond the last that is used."""
    return min(box // 2 - 1, math.floor(box * pixel_size_angstrom / resolution_angstrom))
