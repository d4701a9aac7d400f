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

from halfmap.engine.loop import Method, Problem, Search
from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.posterior_weights import assign_posterior
from halfmap.engine.state import State, as_candidates
from halfmap.likelihood import correlation_score, log_likelihood_score
from halfmap.methods.reference_update import update_references
from halfmap.methods.search_schedule import finished, prepare
from halfmap.methods.settings import Settings
from halfmap.pose_search.refinement import MODES
from halfmap.pose_search.sampling import fine_order
from halfmap.projection import FourierReferences


def maximum_likelihood(problem: Problem, settings: Settings) -> Method:
    """The method as the engine runs it: log likelihood, posterior, MAP update."""
    return Method(
        prepare=partial(_prepare, problem, settings),
        assign=assign_posterior,
        update=partial(update_references, problem, settings),
        finished=partial(finished, settings),
        start=partial(_start, problem, settings),
    )


def _start(problem: Problem, settings: Settings, state: State) -> State:
    """The first state with what is kept beside poses: modes, and a prior that knows nothing but how
    far shifts may reach."""
    search = settings.search
    reach = max(search.shift_range_px, search.shift_step_px)
    order = fine_order(search) - 1
    prior = uniform_prior(
        problem.n_classes,
        problem.dimensions,
        order=order,
        shift_sigma_px=reach,
        device=problem.images.device,
    )
    return replace(state, modes=as_candidates(state.poses).padded(MODES), prior=prior)


def _prepare(
    problem: Problem, settings: Settings, references: FourierReferences, state: State
) -> Search:
    score = correlation_score if state.iteration == 0 else log_likelihood_score
    search = replace(settings.search, score=score, prior=state.prior)
    return prepare(problem, replace(settings, search=search), references, state)
