"""How strong signal and noise are in each image: `X_i = s_g C_i S_t R + nu_i N` with N of the noise
variance sigma^2 of its group.

s_g is the scale of the image's group (micrograph: ice, dose), as RELION's group scale. nu_i takes
the place of RELION's norm correction, by which RELION divides the image, signal and all. But images
come with backgrounds of deviation 1, so that one with more than its share of power does not show
its particle brighter: it shows something else besides. That is noise, and the image weighs 1 / nu^2
in scores and sums. Where a whole group really is brighter, s_g and nu_i both tell, and the terms
come out as if its images had been divided.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.image_model import NoiseSpectra, NormAndScale, noise_variance
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.state import State

# of the median: an image nearly without noise (a blank, an average) must not outweigh 25 others
LEAST_NORM = 0.2
SCALE_LIMITS = (0.2, 5.0)
SCALE_SPREAD = 0.2  # standard deviation of scales expected beforehand
OUTLIER_DEVIATIONS = 5.0
ROBUST_DEVIATION = 1.4826  # a Gaussian's standard deviation over its median absolute deviation


class NormAndScaleStatistic:
    """Collects of every image the three numbers that its norm and its group's scale are made of:
    cross term a, power b and misfit q (`residuals.Residuals`). Comes after the noise spectra, which
    it multiplies by the median misfit of each noise group."""

    name = "norm and scale"

    def empty(self, iteration: Iteration) -> Float[Tensor, "3 N"]:
        return torch.zeros(3, len(iteration.half))

    def add(self, partial: Float[Tensor, "3 N"], weighed: WeighedBatch) -> Float[Tensor, "3 N"]:
        left = weighed.residuals
        fits = torch.stack([left.cross, left.power, left.misfit]).cpu()
        partial[:, weighed.batch.index.cpu()] = fits
        return partial

    def reduce(self, partial: Float[Tensor, "3 N"]) -> Float[Tensor, "3 N"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "3 N"], iteration: Iteration, update: Update, state: State
    ) -> State:
        problem, used = iteration.problem, iteration.half >= 0
        cross, power, misfit = partial
        before = iteration.state.find(NormAndScale)
        norm, scale = (None, None) if before is None else (before.norm, before.scale)
        norm, level = next_norm(norm, misfit, problem.noise_group, used)
        first = iteration.state.iteration == 0
        scale = next_scale(scale, cross, power, problem.scale_group, used, first=first)
        summed = iteration.plane.radius + 1
        variance = noise_variance(state).clone()
        variance[:, :summed] *= level[:, None]
        learnt = NormAndScale(norm, scale, norm_outliers(norm[used]))
        return state.keeping(NoiseSpectra(variance), learnt)


def next_norm(
    norm: Float[Tensor, " N"] | None,
    misfit: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    used: Bool[Tensor, " N"],
) -> tuple[Float[Tensor, " N"], Float[Tensor, " G"]]:
    """`nu_i^2 <- nu_i^2 q_i / median(q)`, q_i being the mean of `|X - s C S R|^2 / (nu^2 sigma^2)`,
    and the median of each noise group, by which its sigma^2 must be multiplied in return. Images
    that are not used keep theirs.

    An image's q depends on nobody else, and a median not on the size of outliers: an image full of
    junk gets a large nu, and no other image changes. There is no upper limit: q is measured,
    whatever nu was before, so that nothing can run away.
    """
    middle = torch.ones(int(group.max()) + 1)
    for g in torch.unique(group[used]).tolist():
        middle[g] = misfit[used & (group == g)].median()
    norm = torch.ones_like(misfit) if norm is None else norm
    new = norm * (misfit / middle[group]).sqrt()
    return torch.where(used, new.clamp(min=LEAST_NORM), norm), middle


def next_scale(
    scale: Float[Tensor, " Q"] | None,
    cross: Float[Tensor, " N"],
    power: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    used: Bool[Tensor, " N"],
    *,
    first: bool,
) -> Float[Tensor, " Q"]:
    """`s_g <- (A_g / m + l) / (B_g + l)`, then mean 1 over the images used, and from 0.2 to 5.

    A_g and B_g are the sums over the group's images of a = `sum Re(conj(d) R)` and b = `sum p
    |R|^2` at s = 1, whose log likelihood is `s a - s^2 b / 2`; m = A / B of all images. l = 1 /
    0.2^2 is the prior that scales are 1 +- 0.2: few or faint images stay near 1. In the `first`
    iteration, whose references may be on any grey scale, all are 1.
    """
    scale = cross.new_ones(int(group.max()) + 1) if scale is None else scale
    if first:
        return scale
    before, group = scale[group[used]], group[used]
    sums = scale.new_zeros(2, len(scale)).index_add_(
        1, group, torch.stack([cross[used] / before, power[used] / before**2])
    )
    if not bool(sums[0].sum() > 0):  # nothing of the references is in the images
        return scale
    common = (sums[0].sum() / sums[1].sum().clamp(min=1e-20)).clamp(min=1e-20)
    prior = 1 / SCALE_SPREAD**2
    new = ((sums[0] / common + prior) / (sums[1] + prior)).clamp(*SCALE_LIMITS)
    return (new / new[group].mean()).clamp(*SCALE_LIMITS)


def norm_outliers(norm: Float[Tensor, " M"]) -> int:
    """Number of images whose norm is beyond the median by 5 robust standard deviations."""
    away = norm - norm.median()
    spread = ROBUST_DEVIATION * float(away.abs().median())
    return int((away > OUTLIER_DEVIATIONS * max(spread, 1e-6)).sum())
