"""One iteration, the same for every method: score and search (E-step), assign, sum and update
(M-step); and the loop around it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmap.distributed import all_sum, my_share
from halfmap.engine.accumulation import accumulate, expected_images, prior_sums, slice_terms
from halfmap.engine.norm_and_scale import (
    intensity_record,
    next_norm,
    next_scale,
    norm_and_scale_of,
    scale_groups,
)
from halfmap.engine.pose_prior import next_prior
from halfmap.engine.posterior_weights import assign_hard, best_poses
from halfmap.engine.preprocessing import (
    Batch,
    ImageSettings,
    batches,
    load_batch,
    noise_from_sums,
    residuals,
)
from halfmap.engine.state import Candidates, Poses, PosteriorWeights, State, as_candidates
from halfmap.fourier import HalfPlane, half_plane, largest_radius
from halfmap.particles import Particles
from halfmap.projection import (
    FourierReferences,
    Sums,
    empty_sums,
    extract_slices,
    hermitian_mates,
    prepare_references,
)
from halfmap.so3 import angular_distance_deg


@dataclass(frozen=True)
class Problem:
    """What stays the same over the iterations: the data, how images are prepared, the halves, the
    symmetry and the box.

    `half` is 0 or 1 per particle, -1 for one set aside. `matched_to` tells which half's references
    an image meets: its "own" (gold standard: the halves never meet), the "other" half's
    (classification: no image meets itself), or references that both "share". `intensity` tells
    whether the strength of signal and noise in each image is learnt (`engine.intensity`) or taken
    to be 1.
    """

    particles: Particles
    images: ImageSettings
    half: Int[Tensor, " N"]
    matched_to: Literal["own", "other", "shared"]
    symmetry: Float[Tensor, "G 3 3"]
    dimensions: int
    n_classes: int
    batch_size: int
    intensity: bool = False

    @property
    def plane(self) -> HalfPlane:
        return half_plane(
            self.particles.box, largest_radius(self.particles.box), self.images.device
        )

    def plane_for(self, radius: int) -> HalfPlane:
        """The plane of an iteration that scores up to `radius`: a quarter and three shells more for
        sums and noise, so that the resolution can grow, and no less than half of what there is;
        RELION's current image size is the same thought."""
        enough = max(math.ceil(1.25 * radius) + 3, self.particles.box // 4)
        return half_plane(
            self.particles.box, min(enough, largest_radius(self.particles.box)), self.images.device
        )

    @property
    def n_groups(self) -> int:
        """Noise groups."""
        return int(self.noise_group.max()) + 1

    @cached_property
    def noise_group(self) -> Int[Tensor, " N"]:
        """The group of each particle that shares a noise spectrum: its optics group."""
        return torch.from_numpy(self.particles.optics_group.astype(np.int64))

    @cached_property
    def scale_group(self) -> Int[Tensor, " N"]:
        """The group of each particle that shares a scale."""
        return scale_groups(self.particles.micrograph, self.particles.optics_group)


Search = Callable[[Batch, Poses], Candidates]


@dataclass(frozen=True)
class Method:
    """A method is four choices. `prepare` makes, for one set of references and the present state,
    the search of a batch around its poses; `assign` turns candidates into Gamma; `update` turns the
    state before, the new poses and the sums of both halves into the next references, curves, radius
    and record; `finished` tells when to stop. `start` adds to a first state what the method keeps
    beside poses. `members` picks the particles of an iteration: the halves (`Problem.half`) with -1
    for those that sit it out; `plane` tells how far its sums and noise reach beyond the radius that
    it scores."""

    prepare: Callable[[FourierReferences, State], Search]
    assign: Callable[[Candidates], PosteriorWeights]
    update: Callable[[State, Poses, list[Sums]], "Update"]
    finished: Callable[[State], bool]
    start: Callable[[State], State] = lambda state: state
    members: Callable[[State, Tensor], Tensor] = lambda state, half: half
    plane: Callable[[Problem, int], HalfPlane] = Problem.plane_for


@dataclass(frozen=True)
class Update:
    """What the M-step gives back: references (H, K, ...), a correlation curve per class, the next
    radius, and numbers for the record.

    `moved_px` tells how far each class image was moved (2D; x, y in its own frame), so that the
    poses can follow.
    """

    references: Float[Tensor, "H K *box"]
    curves: Float[Tensor, "K S"]
    radius: int
    record: dict[str, Any]
    moved_px: Float[Tensor, "K 2"] | None = None


Advance = Callable[[int], None]
Posed = TypeVar("Posed", Poses, Candidates)


def iterate(
    problem: Problem, method: Method, state: State, *, advance: Advance = lambda n: None
) -> tuple[State, dict[str, float]]:
    """The pure function from one iteration's state to the next; also the seconds spent by stage
    (not part of the state)."""
    plane, device = method.plane(problem, state.radius), problem.images.device
    half_of = method.members(state, problem.half)
    scored = half_plane(plane.box, state.radius, device)
    clock = _Clock()
    sums = [_empty(problem, plane) for _ in range(2)]
    noise = torch.zeros(2, problem.n_groups, plane.radius + 1, device=device)
    fit = (
        not problem.intensity or state.iteration == 0
    )  # the first references may be on any grey scale
    fits = torch.zeros(3, len(problem.half))
    found: list[tuple[Tensor, Poses]] = []
    modes: list[tuple[Tensor, Candidates]] = []
    told = torch.zeros(
        0 if state.prior is None else state.prior.directions.numel() + 2, device=device
    )
    for half in torch.unique(half_of[half_of >= 0]).tolist():
        with clock("references"):
            met = {"own": half, "other": 1 - half, "shared": 0}[problem.matched_to]
            references = prepare_references(state.references[met], state.radius)
            search = method.prepare(references, state)
        members = my_share(torch.nonzero(half_of == half)[:, 0])
        for index in batches(members, problem.batch_size):
            with clock("images"):
                before = state.poses.take(index).to(device)
                norm, scale = norm_and_scale_of(state.norm, state.scale, problem.scale_group, index)
                batch = load_batch(
                    problem.particles,
                    index,
                    plane,
                    state.noise_variance,
                    before.shift_px,
                    problem.images,
                    scored_radius=state.radius,
                    norm=norm,
                    scale=scale,
                )
            with clock("search"):
                candidates = search(batch, before)
                gamma = method.assign(candidates)
                found.append((index, best_poses(candidates, gamma).to("cpu")))
                if state.modes is not None:
                    modes.append(
                        (
                            index,
                            candidates.best(state.modes.score.shape[1])
                            .padded(state.modes.score.shape[1])
                            .to("cpu"),
                        )
                    )
            with clock("sums"):
                terms = slice_terms(batch.whole, gamma, plane)
                accumulate(sums[half], terms, gamma, plane, problem.symmetry)
                if state.prior is not None:
                    told += prior_sums(state.prior, gamma, problem.symmetry)
            with clock("noise"):
                slices = extract_slices(references, gamma.rotations, scored, classes=gamma.classes)
                expected = expected_images(slices, gamma, len(index), scored)
                left = residuals(batch, expected, plane, fit=fit, robust=problem.intensity)
                noise += left.noise
                fits[:, index] = torch.stack([left.cross, left.power, left.misfit]).cpu()
            advance(len(index))
    poses = gather_over_processes(state.poses, found, half_of >= 0)
    with clock("update"):
        update = method.update(state, poses, [_reduced(s) for s in sums])
    record = {
        "iteration": state.iteration + 1,
        "radius": state.radius,
        **update.record,
        **movement(replace(problem, half=half_of), state, poses),
    }
    noise_variance, norm, scale = noise_from_sums(all_sum(noise)), state.norm, state.scale
    if problem.intensity:
        used, (cross, power, misfit) = half_of >= 0, all_sum(fits)
        norm, level = next_norm(norm, misfit, problem.noise_group, used)
        noise_variance = noise_variance * level.to(device)[:, None]
        scale = next_scale(
            scale, cross, power, problem.scale_group, used, first=state.iteration == 0
        )
        record |= intensity_record(norm, scale, problem.scale_group, used)
    kept = None if state.modes is None else gather_over_processes(state.modes, modes, half_of >= 0)
    if update.moved_px is not None:
        poses, kept = (
            recentred_poses(poses, update.moved_px),
            None if kept is None else recentred_poses(kept, update.moved_px),
        )
    new = State(
        state.iteration + 1,
        update.references,
        poses,
        torch.cat([noise_variance, state.noise_variance[:, plane.radius + 1 :]], dim=1),
        update.radius,
        update.curves,
        (*state.history, record),
        kept,
        None if state.prior is None else next_prior(state.prior, all_sum(told)),
        norm,
        scale,
    )
    return new, clock.seconds


def gather_over_processes(
    before: Posed, found: list[tuple[Tensor, Posed]], used: Bool[Tensor, " N"]
) -> Posed:
    """The new poses of all processes together; particles set aside keep theirs."""
    fields = []
    for n, old in enumerate(before.fields()):
        new = torch.zeros_like(old)
        for index, poses in found:
            new[index] = poses.fields()[n]
        all_sum(new)
        fields.append(torch.where(used.view(-1, *[1] * (old.ndim - 1)), new, old))
    return type(before)(*fields)


def recentred_poses(poses: Posed, moved_px: Float[Tensor, "K 2"]) -> Posed:
    """Poses after each class image was moved by m: the shift that centres a particle grows by A
    m."""
    step = (poses.rotations[..., :2, :2] * moved_px[poses.classes][..., None, :]).sum(-1)
    return replace(poses, shift_px=poses.shift_px + step)


def movement(problem: Problem, state: State, poses: Poses) -> dict[str, float]:
    """How far the particles in use moved in this iteration: medians of angle and shift, share that
    changed class; their mean score; and how sure they are: means of the largest weight, the number
    of significant poses and the log likelihood, median accuracies."""
    used = torch.nonzero(problem.half >= 0)[:, 0]
    old, new = state.poses.take(used), poses.take(used)
    angle = angular_distance_deg(old.rotations, new.rotations, symmetry=problem.symmetry)
    pixel = problem.particles.pixel_size_angstrom
    return {
        "angular_change_deg": float(angle.median()),
        "shift_change_angstrom": float((old.shift_px - new.shift_px).norm(dim=1).median()) * pixel,
        "class_changes": float((old.classes != new.classes).float().mean()),
        "mean_score": float(new.score.mean()),
        "mean_largest_weight": float(new.largest_weight.mean()),
        "mean_significant": float(new.significant.float().mean()),
        "mean_log_likelihood": float(new.log_likelihood.mean()),
        "accuracy_deg": float(new.accuracy[:, 0].nanmedian()),
        "accuracy_angstrom": float(new.accuracy[:, 1].nanmedian()) * pixel,
    }


def run(
    problem: Problem,
    method: Method,
    state: State,
    *,
    iterations: int,
    advance: Advance = lambda n: None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Iterate until the method is finished or `iterations` have been done in all, yielding each new
    state."""
    while state.iteration < iterations and not method.finished(state):
        state, seconds = iterate(problem, method, state, advance=advance)
        yield state, seconds


def sum_at_poses(
    problem: Problem,
    poses: Poses,
    noise_variance: Float[Tensor, "G S"],
    *,
    norm: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " Q"] | None = None,
    advance: Advance = lambda n: None,
) -> list[Sums]:
    """The two sums of each half with every particle at its given pose: reconstruction without a
    search."""
    return _sum_at(problem, as_candidates(poses), assign_hard, noise_variance, norm, scale, advance)


def sum_at_modes(
    problem: Problem, method: Method, state: State, *, advance: Advance = lambda n: None
) -> list[Sums]:
    """The two sums of each half, to the last shell, with the poses and weights that the state
    holds."""
    modes = as_candidates(state.poses) if state.modes is None else state.modes
    return _sum_at(
        problem, modes, method.assign, state.noise_variance, state.norm, state.scale, advance
    )


def _sum_at(
    problem: Problem,
    modes: Candidates,
    assign: Callable[[Candidates], PosteriorWeights],
    noise_variance: Tensor,
    norm: Tensor | None,
    scale: Tensor | None,
    advance: Advance,
) -> list[Sums]:
    sums = [_empty(problem, problem.plane) for _ in range(2)]
    for half in range(2):
        for index in batches(
            my_share(torch.nonzero(problem.half == half)[:, 0]), problem.batch_size
        ):
            gamma = assign(modes.select_images(index).to(problem.images.device))
            nowhere = torch.zeros(
                len(index), 2, device=problem.images.device
            )  # the mask is for scores alone
            nu, s = norm_and_scale_of(norm, scale, problem.scale_group, index)
            batch = load_batch(
                problem.particles,
                index,
                problem.plane,
                noise_variance,
                nowhere,
                problem.images,
                scored_radius=1,
                norm=nu,
                scale=s,
            )
            accumulate(
                sums[half],
                slice_terms(batch.whole, gamma, problem.plane),
                gamma,
                problem.plane,
                problem.symmetry,
            )
            advance(len(index))
    return [_reduced(s) for s in sums]


def _empty(problem: Problem, plane: HalfPlane) -> Sums:
    return empty_sums(
        problem.n_classes,
        problem.particles.box,
        plane.radius,
        problem.dimensions,
        device=problem.images.device,
    )


def _reduced(sums: Sums) -> Sums:
    all_sum(sums.num)
    all_sum(sums.den)
    return hermitian_mates(sums)


class _Clock:
    """Seconds by stage; on an accelerator the stage that waits is charged."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str) -> "_Stage":
        return _Stage(self, stage)


class _Stage:
    def __init__(self, clock: _Clock, stage: str) -> None:
        self.clock, self.stage = clock, stage

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.seconds[self.stage] = (
            self.clock.seconds.get(self.stage, 0.0) + time.perf_counter() - self.start
        )
