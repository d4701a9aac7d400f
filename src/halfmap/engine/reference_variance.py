"""What references do not know: the variance of their slices, which an image shows as noise.

With the half maps' SSNR S of a shell, a map `R = S / (S + 1) (A + N)` is the mean of A's posterior,
and the posterior's variance is

    v = <|R|^2> / S.

Beside the slice C R an image shows noise of the variance `sigma^2 + C^2 v`: the predictive
distribution of a linear Gaussian model (Rasmussen & Williams, Gaussian Processes for Machine
Learning (2006), equation 2.9).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.engine.image_model import ReferenceVariance
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.resolution import shell_power, ssnr_from_fsc

LEAST_SSNR = 1e-3  # of a shell whose references are more than noise


class ReferenceVarianceStatistic:
    """Nothing is summed over images: references and their correlation tell the variance."""

    name = "reference variance"

    def empty(self, iteration: Iteration) -> None:
        return None

    def add(self, partial: None, weighed: WeighedBatch) -> None:
        return None

    def reduce(self, partial: None) -> None:
        return None

    def finish(self, partial: None, iteration: Iteration, update: Update, state: State) -> State:
        problem = iteration.problem.with_reference_sets(len(update.references))
        kept = ReferenceVariance(reference_variance(problem, update).cpu())
        return state.keeping(kept)


def reference_variance(problem: Problem, update: Update) -> Float[Tensor, " S"]:
    """v by shell, the mean over classes; 0 on shells of which the references show nothing. The
    power is that of the first set of references."""
    of_sum = problem.matched_to == "shared"
    ssnr = ssnr_from_fsc(update.curves.clamp(min=0), of_sum=of_sum) * problem.share_compared
    known = unknown_power(problem, update.references[0], ssnr).mean(0).float()
    missing = update.curves.shape[1] - len(known)  # of references kept in a smaller box
    return torch.nn.functional.pad(known, (0, max(0, missing)))


def unknown_power(
    problem: Problem, references: Float[Tensor, "K *box"], ssnr: Float[Tensor, "K S"]
) -> Float[Tensor, "K s"]:
    """`<|R|^2> / S` of each reference, on the shells that it is sampled for."""
    power = shell_power(references)[:, : ssnr.shape[1]]
    power = power * (problem.particles.box / references.shape[-1]) ** (2 * problem.dimensions)
    ssnr = ssnr.to(power)[:, : power.shape[1]]
    variance = power / ssnr.clamp(min=LEAST_SSNR)
    return torch.where(ssnr > LEAST_SSNR, variance, torch.zeros_like(variance))
