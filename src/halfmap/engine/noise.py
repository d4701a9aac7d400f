"""The statistic that learns noise spectra: sigma^2 per noise group and shell."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.image_model import NoiseSpectra, noise_variance
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.residuals import noise_from_sums
from halfmap.engine.state import State


class NoiseStatistic:
    """`sigma^2 = sum Gamma |X - m s C S_t R|^2 / nu^2 / sum m^2`, what the model leaves of images.

    Shells beyond those that were summed keep their spectra.
    """

    name = "noise"

    def empty(self, iteration: Iteration) -> Float[Tensor, "2 G S"]:
        problem, shells = iteration.problem, iteration.plane.radius + 1
        return torch.zeros(2, problem.n_groups, shells, device=problem.device)

    def add(self, partial: Float[Tensor, "2 G S"], weighed: WeighedBatch) -> Float[Tensor, "2 G S"]:
        partial += weighed.residuals.noise
        return partial

    def reduce(self, partial: Float[Tensor, "2 G S"]) -> Float[Tensor, "2 G S"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "2 G S"], iteration: Iteration, update: Update, state: State
    ) -> State:
        learnt = noise_from_sums(partial).cpu()
        beyond = noise_variance(iteration.state)[:, learnt.shape[1] :]
        return state.keeping(NoiseSpectra(torch.cat([learnt, beyond], dim=1)))
