"""Stochastic gradient ascent of the likelihood (lecture, last part; cryoSPARC's ab initio): maps
from random starts, no reference.

The engine's iteration on a mini-batch of particles: log likelihood, posterior, and a step along the
gradient `num - (den + 1/tau^2) A`, with `den + 1/tau^2`, its curvature, dividing it (a Newton step
for each Fourier sample):

    A <- A + mu (num - (den + 1/tau^2) A) / (den + 1/tau^2) = (1 - mu) A + mu num / (den + 1/tau^2)

so that A is a running mean of the maps that the mini-batches would make, the older the fainter.
Then A is made what a map must be: not negative, and nothing outside the particle. At last come a
few steps of length 1 with all particles: expectation-maximisation.

Noise is annealed twice. sigma^2 is what the last mini-batch's model left of its images, at first
nearly all of their power. Where images are so good that even a random map would tell one pose from
another, and the first map would become the last, scores are multiplied by beta < 1 (as if there
were 1 / beta times the noise), which rises to 1: deterministic annealing. Poses are not refined as
long as the grid resolves what is scored: an optimum of each image is surer of itself than its
posterior, of which a map half right is made.

Punjani et al., Nat. Methods 14, 290 (2017); Rose, Proc. IEEE 86, 2210 (1998).
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.loop import sum_at_poses
from halfmap.engine.method import Iteration, Method, Search, Update
from halfmap.engine.noise import NoiseStatistic
from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.posterior_weights import assign_sample
from halfmap.engine.preprocessing import Batch
from halfmap.engine.problem import Problem
from halfmap.engine.state import Candidates, Poses, State, known_poses
from halfmap.fourier import half_plane
from halfmap.likelihood import LOG_LIKELIHOOD
from halfmap.methods.settings import Settings
from halfmap.pose_search.adaptive import prepare_search, search_globally
from halfmap.pose_search.sampling import fine_order
from halfmap.projection import FourierReferences, Sums
from halfmap.reconstruction import shell_weight, wiener_update
from halfmap.so3 import random_rotations

PROBE = 0.1
_SEED_OF_BATCHES, _SEED_OF_START = 2, 3


@dataclass(frozen=True)
class GradientSchedule:
    """How many `iterations` on mini-batches and at most how many `full` ones with all particles,
    which end as soon as one of them raises the mean log likelihood by less than the share
    `settled`. From the first to the last mini-batch, Fourier shells, images per class and the step
    length mu change geometrically. beta, the share of the log likelihood that counts, starts where
    it gains a random map `first_gain` an image, and is 1 after the share `annealed` of the
    mini-batches. `poses` are drawn from each image's posterior; `ssnr` sets `1/tau^2 = <den> /
    ssnr`."""

    iterations: int
    full: int
    seed: int
    radius: tuple[int, int]
    batch: tuple[float, float] = (120, 360)
    step: tuple[float, float] = (0.4, 0.1)
    first_gain: float = 4.0
    annealed: float = 0.6
    settled: float = 0.02
    poses: int = 24
    ssnr: float = 10.0
    non_negative: bool = True

    def between(self, ends: tuple[float, float], iteration: int) -> float:
        """The value at an iteration, counted from 0."""
        done = min(1.0, iteration / max(1, self.iterations - 1))
        return ends[0] * (ends[1] / ends[0]) ** done

    def beta(self, state: State) -> float:
        """`beta_0^(1 - i / (annealed iterations))`. The first mini-batch, at `PROBE`, tells beta_0:
        for small beta the mean gain of a map that is wrong, `log <exp(beta s)>`, grows with its
        square."""
        if not state.history:
            return PROBE
        gain = max(state.history[0].mean_log_likelihood, 1e-9)
        first = min(1.0, PROBE * math.sqrt(self.first_gain / gain))
        return first ** max(0.0, 1 - state.iteration / (self.annealed * self.iterations))


def stochastic_gradient(problem: Problem, settings: Settings, schedule: GradientSchedule) -> Method:
    """The method as the engine runs it: log likelihood, poses drawn from the posterior, a step
    along the gradient; mini-batches."""
    return Method(
        prepare=partial(_prepare, problem, settings, schedule),
        assign=partial(assign_sample, schedule.poses),
        update=partial(_step, settings, schedule),
        converged=partial(_converged, schedule),
        select=partial(_mini_batch, problem.n_classes, schedule),
        plane=lambda problem, radius: half_plane(problem.particles.box, radius, problem.device),
        statistics=(NoiseStatistic(),),
    )


def random_maps(
    problem: Problem,
    settings: Settings,
    schedule: GradientSchedule,
    noise_variance: Float[Tensor, "G S"],
) -> Float[Tensor, "1 K N N N"]:
    """Starting maps: each the mean of some images at random orientations, on the shells that come
    first."""
    generator = torch.Generator().manual_seed(
        int(np.random.default_rng([schedule.seed, _SEED_OF_START]).integers(1 << 31))
    )
    n = len(problem.half)
    half = _drawn(
        problem.half, problem.n_classes * round(schedule.batch[1]), [schedule.seed, _SEED_OF_START]
    )
    classes = torch.randint(problem.n_classes, (n,), generator=generator)
    poses = known_poses(random_rotations(n, generator), torch.zeros(n, 2), classes)
    # two shells more than are kept, whose samples reach the cells of the last
    reach = min(schedule.radius[0] + 2, problem.plane.radius)
    plane = half_plane(problem.particles.box, reach, problem.device)
    first, second = sum_at_poses(replace(problem, half=half), poses, noise_variance, plane=plane)
    return _as_a_map(_quotient(first + second, schedule, schedule.radius[0]), settings, schedule)[
        None
    ]


def _mini_batch(
    n_classes: int, schedule: GradientSchedule, state: State, half: Int[Tensor, " N"]
) -> Int[Tensor, " N"]:
    """The particles of an iteration: drawn at random, from the seed and the iteration's number; all
    in the full ones."""
    if state.iteration >= schedule.iterations:
        return half
    n = n_classes * round(schedule.between(schedule.batch, state.iteration))
    return _drawn(half, n, [schedule.seed, _SEED_OF_BATCHES, state.iteration])


def _drawn(half: Int[Tensor, " N"], n: int, seed: list[int]) -> Int[Tensor, " N"]:
    """Halves in which n particles of those in use are in the first, none in the second."""
    usable = torch.nonzero(half >= 0)[:, 0]
    chosen = np.random.default_rng(seed).permutation(len(usable))[:n]
    members = torch.full_like(half, -1)
    members[usable[torch.from_numpy(chosen)]] = 0
    return members


def _converged(schedule: GradientSchedule, state: State) -> bool:
    """After `full` iterations with all particles at most; after two, as soon as one more gains
    little likelihood."""
    done = state.iteration - schedule.iterations
    if done < 2:
        return False
    before, now = (record.mean_log_likelihood for record in state.history[-2:])
    return done >= schedule.full or now - before < schedule.settled * abs(now)


def _prepare(
    problem: Problem,
    settings: Settings,
    schedule: GradientSchedule,
    references: FourierReferences,
    state: State,
) -> Search:
    """A global search of every image, in which every class and direction is as probable as every
    other."""
    plane = problem.plane
    beta = schedule.beta(state)
    search = replace(
        settings.search,
        specimen=problem.specimen,
        score=LOG_LIKELIHOOD,
        posterior_on_grid=True,
        beta=beta,
    )
    sigma = max(search.shift_range_px / 2, search.shift_step_px)
    prior = uniform_prior(
        problem.n_classes,
        3,
        order=fine_order(search) - 1,
        shift_sigma_px=sigma,
        device=plane.kx.device,
    )
    plan = prepare_search(references, replace(search, prior=prior), state.radius)

    def everywhere(batch: Batch, poses: Poses) -> Candidates:
        scored = batch.scored.weakened(beta)
        return search_globally(plan, scored, torch.zeros_like(poses.shift_px), plane, state.radius)

    return everywhere


def _step(
    settings: Settings,
    schedule: GradientSchedule,
    iteration: Iteration,
    poses: Poses,
    halves: list[Sums],
) -> Update:
    """`A <- (1 - mu) A + mu num / (den + 1/tau^2)`, mu = 1 in a full iteration."""
    state = iteration.state
    full = state.iteration >= schedule.iterations
    mu = 1.0 if full else schedule.between(schedule.step, state.iteration)
    best = _quotient(halves[0] + halves[1], schedule, state.radius)
    present = state.references.to(best.device)
    return Update(
        references=_as_a_map((1 - mu) * present + mu * best, settings, schedule),
        curves=state.curves,
        radius=round(schedule.between(schedule.radius, state.iteration + 1)),
        report={"step": mu},
    )


def _quotient(sums: Sums, schedule: GradientSchedule, radius: int) -> Float[Tensor, "K N N N"]:
    """`num / (den + 1/tau^2)` on shells up to `radius`."""
    prior = shell_weight(sums) / schedule.ssnr + torch.finfo(torch.float32).tiny
    prior[:, radius + 1 :] = torch.inf
    return wiener_update(sums, prior)


def _as_a_map(
    density: Float[Tensor, "*b N N N"], settings: Settings, schedule: GradientSchedule
) -> Float[Tensor, "*b N N N"]:
    """Not negative, and nothing outside the mask."""
    return (density.clamp(min=0) if schedule.non_negative else density) * settings.reference_mask
