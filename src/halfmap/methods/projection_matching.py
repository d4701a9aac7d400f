"""Projection matching (lecture part 2; FREALIGN) and template matching: the same four choices in 3D
and in 2D.

1. Vary pose and class of each image to find the projection `R_i = C_i P_phi A_k` that maximises `CC
  = X_i.R_i / (|X_i| |R_i|)`.
2. Knowing the best pose and class of each image, update

       A_k = sum_{i: k_i = k} P^T C_i X_i / (k(s) + sum_{i: k_i = k} P^T C_i^2),
       k(s) = 1 / SSNR, or a constant.

   The spectral signal-to-noise ratio comes from the correlation of half maps (class averages): SSNR
   = FSC / (1 - FSC).
"""

from functools import partial

from halfmap.engine.method import Method, Statistic
from halfmap.engine.noise import NoiseStatistic
from halfmap.engine.norm_and_scale import NormAndScaleStatistic
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.problem import Problem
from halfmap.methods.reference_update import map_update
from halfmap.methods.search_schedule import converged, prepare
from halfmap.methods.settings import Settings


def projection_matching(problem: Problem, settings: Settings) -> Method:
    """The method as the engine runs it: correlation coefficient, hard assignment at the best,
    Wiener update."""
    learnt: tuple[Statistic, ...] = (NormAndScaleStatistic(),)
    learnt = learnt if problem.learn_norm_and_scale else ()
    return Method(
        prepare=partial(prepare, problem, settings),
        assign=assign_hard,
        update=partial(map_update, settings),
        converged=partial(converged, settings),
        statistics=(NoiseStatistic(), *learnt),
    )
