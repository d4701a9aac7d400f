"""Maximum likelihood (lecture part 3; RELION): expectation-maximisation, the same four choices in
2D and in 3D.

1. Find for each image the probability of every pose phi (and shift) and class k, given the
  references of the last iteration,

       Gamma_i(phi, k) = P(X_i | A_k, phi) P(phi, k) / sum P(X_i | A_k, phi) P(phi, k),
       P(X | A, phi) ~ exp(-|X - C P_phi A|^2 / 2 sigma^2).

2. Update

       A_k = sum_i sum_phi Gamma_i P^T C_i X_i / (sigma^2 / (T tau^2) + sum_i sum_phi Gamma_i P^T
       C_i^2).

sigma^2, the prior of class, direction and shift, and each image's and group's intensity are learnt
from the same posteriors. tau^2 is the power of the class (map) that its two halves have in common,
SSNR = FSC / (1 - FSC).

The first iteration scores by correlation, since a reference from elsewhere may be on any grey
scale; the maps it makes are on the images'.
"""

from dataclasses import replace
from functools import partial

from halfmap.engine.class_posterior import ClassProbabilityStatistic
from halfmap.engine.method import Method, Search, Statistic
from halfmap.engine.noise import NoiseStatistic
from halfmap.engine.norm_and_scale import NormAndScaleStatistic
from halfmap.engine.pose_prior import PosePrior, PosePriorStatistic, uniform_prior
from halfmap.engine.posterior_weights import assign_posterior
from halfmap.engine.problem import Problem
from halfmap.engine.reference_variance import ReferenceVarianceStatistic
from halfmap.engine.significant_poses import (
    MOST_POSES,
    SignificantPoses,
    SignificantPosesStatistic,
)
from halfmap.engine.state import State, as_candidates
from halfmap.likelihood import CORRELATION, LOG_LIKELIHOOD
from halfmap.methods.pose_error import PoseErrorStatistic
from halfmap.methods.reference_update import map_update
from halfmap.methods.search_schedule import converged, prepare
from halfmap.methods.settings import Settings
from halfmap.pose_search.sampling import fine_order
from halfmap.projection import FourierReferences


def maximum_likelihood(problem: Problem, settings: Settings) -> Method:
    """The method as the engine runs it: log likelihood, posterior, MAP update."""
    learnt: tuple[Statistic, ...] = (NormAndScaleStatistic(),)
    learnt = learnt if problem.learn_norm_and_scale else ()
    own_maps = problem.matched_to == "own" and problem.dimensions == 3
    between_halves = (PoseErrorStatistic(),) if own_maps else ()
    of_classes = (ClassProbabilityStatistic(),) if problem.n_classes > 1 else ()
    return Method(
        prepare=partial(_prepare, problem, settings),
        assign=assign_posterior,
        update=partial(map_update, settings),
        converged=partial(converged, settings),
        start=partial(_start, problem, settings),
        statistics=(
            NoiseStatistic(),
            *learnt,
            PosePriorStatistic(),
            SignificantPosesStatistic(),
            ReferenceVarianceStatistic(),
            *between_halves,
            *of_classes,
        ),
    )


def _start(problem: Problem, settings: Settings, state: State) -> State:
    """The first state with what is kept beside poses: significant poses, and a prior that knows
    nothing but how far shifts may reach."""
    search = settings.search
    prior = uniform_prior(
        problem.n_classes,
        problem.dimensions,
        order=fine_order(search) - 1,
        shift_sigma_px=max(search.shift_range_px, search.shift_step_px),
        device="cpu",
    )
    poses = SignificantPoses(as_candidates(state.poses).padded(MOST_POSES))
    return state.keeping(poses, prior)


def _prepare(
    problem: Problem, settings: Settings, references: FourierReferences, state: State
) -> Search:
    score = CORRELATION if state.iteration == 0 else LOG_LIKELIHOOD
    prior = state.find(PosePrior)
    known = None if prior is None else prior.to(problem.device)
    search = replace(settings.search, score=score, prior=known)
    return prepare(problem, replace(settings, search=search), references, state)
