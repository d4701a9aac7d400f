"""The statistic that learns noise spectra: sigma^2 per noise group and shell."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.image_model import NoiseSpectra, noise_variance
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.residuals import noise_from_sums, shell_sums
from halfmap.engine.state import State


class NoiseStatistic:
    """`sigma^2 = sum Gamma |X - m s C S_t R|^2 / nu^2 / sum m^2`, what the model leaves of images.

    Shells beyond those that were summed keep their spectra.
    """

    name = "noise"

    def empty(self, iteration: Iteration) -> Float[Tensor, "2 G J"]:
        problem = iteration.problem
        # in double precision: one process and several must learn the same
        empty = torch.zeros(2, problem.n_groups, len(iteration.plane), dtype=torch.float64)
        return empty.to(problem.device)

    def add(self, partial: Float[Tensor, "2 G J"], weighed: WeighedBatch) -> Float[Tensor, "2 G J"]:
        partial += weighed.residuals.noise
        return partial

    def reduce(self, partial: Float[Tensor, "2 G J"]) -> Float[Tensor, "2 G J"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "2 G J"], iteration: Iteration, update: Update, state: State
    ) -> State:
        learnt = noise_from_sums(shell_sums(partial, iteration.plane).float()).cpu()
        beyond = noise_variance(iteration.state)[:, learnt.shape[1] :]
        return state.keeping(NoiseSpectra(torch.cat([learnt, beyond], dim=1)))
