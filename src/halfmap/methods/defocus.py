"""Defocus of particles, from what a pass over the images says of it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.methods.ctf_statistics import DefocusEvidence
from halfmap.methods.phase_errors import is_more_than_noise

PRIOR_ITERATIONS = 50  # of expectation-maximisation; they take microseconds
NARROWEST_SPREAD_ANGSTROM = 1.0  # of defocus around a micrograph's


def posterior_defocus(
    evidence: DefocusEvidence,
    micrograph: Int[Tensor, " N"],
    moved_angstrom: Float[Tensor, " N"],
    *,
    surely: bool = False,
) -> Float[Tensor, " N"]:
    """Posterior mean of each particle's change of defocus d_i (A) since the file's, `moved` so far,
    with a Gaussian prior around its micrograph's mean,

        d_i ~ N(m_g, tau^2):   m_g = mean_i <d_i>,   tau^2 = mean_i <(d_i - m_g)^2>,

    both learnt from all particles by expectation-maximisation: where images say little, or lie in
    one plane, particles of a micrograph share their change. With `surely` they stay where they are
    where all this explains the images no better than it would explain noise.
    """
    d = evidence.difference_angstrom.double() + moved_angstrom.double()[:, None]
    log_likelihood = evidence.log_likelihood.double()
    n_groups = int(micrograph.max()) + 1
    sizes = torch.bincount(micrograph, minlength=n_groups).clamp(min=1)
    centre = torch.zeros(n_groups, dtype=torch.float64)
    spread2 = ((d[0, -1] - d[0, 0]) / 2) ** 2
    mean = torch.zeros(len(micrograph), dtype=torch.float64)
    for _ in range(PRIOR_ITERATIONS):
        away2 = (d - centre[micrograph][:, None]) ** 2
        weight = torch.softmax(log_likelihood - away2 / (2 * spread2), 1)
        mean = (weight * d).sum(1)
        centre = torch.zeros_like(centre).index_add_(0, micrograph, mean) / sizes
        away2 = (d - centre[micrograph][:, None]) ** 2
        spread2 = (weight * away2).sum(1).mean().clamp(min=NARROWEST_SPREAD_ANGSTROM**2)
    if surely:
        prior = torch.log_softmax(-((d - centre[micrograph][:, None]) ** 2) / (2 * spread2), 1)
        gained = torch.logsumexp(log_likelihood + prior, 1) - _as_given(log_likelihood)
        if not is_more_than_noise(gained, n_groups + 1):  # the centres and the spread
            return moved_angstrom.double()
    return mean


def micrograph_defocus(
    evidence: DefocusEvidence, micrograph: Int[Tensor, " N"], *, surely: bool = False
) -> Float[Tensor, " N"]:
    """The difference of defocus (A) that all particles of a micrograph together find most probable,
    for each particle; between the trial differences by a parabola. With `surely` 0 where those of
    all micrographs are no better than noise makes them."""
    d, n_groups = evidence.difference_angstrom.double(), int(micrograph.max()) + 1
    summed = torch.zeros(n_groups, len(d), dtype=torch.float64)
    summed.index_add_(0, micrograph, evidence.log_likelihood.double())
    if surely and not is_more_than_noise(summed.amax(1) - _as_given(summed), n_groups):
        return torch.zeros(len(micrograph), dtype=torch.float64)
    best = summed.argmax(1).clamp(1, len(d) - 2)
    below, at, above = (summed.gather(1, (best + n)[:, None])[:, 0] for n in (-1, 0, 1))
    bend = (below - 2 * at + above).clamp(max=-1e-12)
    place = (0.5 * (below - above) / bend).clamp(-0.5, 0.5)
    return (d[best] + place * (d[1] - d[0]))[micrograph]


def _as_given(log_likelihood: Float[Tensor, "G T"]) -> Float[Tensor, " G"]:
    """Without a difference of defocus: the middle of those tried."""
    return log_likelihood[:, log_likelihood.shape[1] // 2]
