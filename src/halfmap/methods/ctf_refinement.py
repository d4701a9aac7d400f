"""Refinement of the transfer function: defocus, astigmatism and aberrations that make images at
known poses most probable, given the map that they made.

    (defocus, ...) = argmax  log P(X | V, phi, C) = argmax  - sum_i |X_i - C_i S_t P_phi V|^2 / (2 sigma^2)

To the engine it is a method that searches no pose and changes no map. Its statistics sum what
`methods.phase_errors` needs: per particle the log likelihood over a range of defocus, per
micrograph and per optics group the terms of any error of the phase. Each image meets the map of its
own half. Zivanov et al., eLife 7, e42166 (2018); Zivanov, Nakane and Scheres, IUCrJ 7, 253 (2020).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.loop import iterate
from halfmap.engine.method import Iteration, Method, Search, Statistic, Update, WeighedBatch
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.preprocessing import Batch
from halfmap.engine.problem import Problem
from halfmap.engine.state import Candidates, Poses, State, as_candidates
from halfmap.fourier import half_plane, shift_phases
from halfmap.methods.phase_errors import even_evidence, even_terms
from halfmap.projection import FourierReferences, Sums, extract_slices
from halfmap.transfer_function import electron_wavelength_angstrom, evaluate

PHASE_STEP_RAD = 0.25  # between neighbouring defoci at the last shell, and across a bin of k^2
PRIOR_ITERATIONS = 50  # of expectation-maximisation; they take microseconds
NARROWEST_SPREAD_ANGSTROM = 1.0  # of defocus around a micrograph's


@dataclass(frozen=True)
class AtPoses:
    """B images beside the slices at their poses, on the scored half-plane: `cross` is
    `s conj(R) X / sigma^2`, X centred and without the present phase errors, and `power`
    `s^2 |R|^2 / sigma^2`, both counted twice for the half of the plane that is not held; `sine` and
    `cosine` are `e sin chi` and `e cos chi`, e the envelope of the CTF."""

    cross: Complex[Tensor, "B J"]
    power: Float[Tensor, "B J"]
    sine: Float[Tensor, "B J"]
    cosine: Float[Tensor, "B J"]


@dataclass(frozen=True)
class SignalScale:
    """How strong the map's signal is in the images of each noise group."""

    scale: Float[Tensor, " G"]


@dataclass(frozen=True)
class DefocusEvidence:
    """Log likelihood of each particle at its defocus plus each of T differences."""

    difference_angstrom: Float[Tensor, " T"]
    log_likelihood: Float[Tensor, "N T"]


@dataclass(frozen=True)
class EvenTerms:
    """Sums of `phase_errors.even_terms` over the particles of each group."""

    terms: Float[Tensor, "G 4 J"]


@dataclass(frozen=True)
class OddTerms:
    """Sums of `X conj(C R) / sigma^2` over the particles of each group."""

    sums: Complex[Tensor, "G J"]


def at_poses(weighed: WeighedBatch) -> AtPoses:
    """The batch beside the slices at its poses."""
    iteration, batch = weighed.iteration, weighed.batch
    plane, n = iteration.scored, len(iteration.scored)
    problem, index = iteration.problem, batch.index.cpu()
    poses = iteration.state.poses.select_images(index).to(problem.device)
    slices = extract_slices(weighed.references, poses.rotations, plane)
    known = iteration.state.find(SignalScale)
    if known is not None:
        slices = slices * known.scale.to(slices.device)[batch.group][:, None]
    centred = batch.transforms[:, :n] * shift_phases(poses.shift_px, plane)
    weight = plane.hermitian_weight.clone()
    weight[0] = 0  # the mean grey value says nothing of the phases
    weight = weight / (batch.sigma2[:, :n][batch.group] * batch.norm[:, None] ** 2)
    particles = problem.particles
    parameters = particles.transfer.take(index.numpy()).to(problem.device)
    turned = replace(parameters, phase_shift_deg=parameters.phase_shift_deg + 90)
    return AtPoses(
        cross=weight * slices.conj() * centred,
        power=weight * (slices.real**2 + slices.imag**2),
        sine=batch.ctf[:, :n],
        cosine=evaluate(turned, *plane.frequencies(particles.pixel_size_angstrom)).ctf,
    )


# --- the method --------------------------------------------------------------------------------


def measure(
    problem: Problem,
    state: State,
    statistics: tuple[Statistic[Any], ...],
    advance: Callable[[int], None] = lambda n: None,
) -> State:
    """The state after one pass over all images, with what the statistics keep in it."""
    method = Method(
        prepare=_search_nothing,
        assign=assign_hard,
        update=_same_maps,
        converged=lambda state: True,
        plane=lambda problem, radius: half_plane(problem.particles.box, radius, problem.device),
        statistics=statistics,
    )
    return iterate(problem, method, state, advance=advance)[0]


def _search_nothing(references: FourierReferences, state: State) -> Search:
    def present(batch: Batch, poses: Poses) -> Candidates:
        return as_candidates(poses)

    return present


def _same_maps(iteration: Iteration, poses: Poses, parts: list[Sums]) -> Update:
    state = iteration.state
    return Update(references=state.references, curves=state.curves, radius=state.radius)


# --- what a pass sums --------------------------------------------------------------------------


class SignalScaleStatistic:
    """`s = sum Re(C conj(R) X / sigma^2) / sum C^2 |R|^2 / sigma^2` by noise group, times the scale
    so far."""

    name = "scale"

    def empty(self, iteration: Iteration) -> Float[Tensor, "2 G"]:
        return torch.zeros(2, iteration.problem.n_groups, device=iteration.problem.device)

    def add(self, partial: Float[Tensor, "2 G"], weighed: WeighedBatch) -> Float[Tensor, "2 G"]:
        here = weighed.once(at_poses)
        cross = (here.cross.real * here.sine).sum(1)
        power = (here.power * here.sine**2).sum(1)
        return partial.index_add_(1, weighed.batch.group, torch.stack([cross, power]))

    def reduce(self, partial: Float[Tensor, "2 G"]) -> Float[Tensor, "2 G"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "2 G"], iteration: Iteration, update: Update, state: State
    ) -> State:
        ratio = (partial[0] / partial[1].clamp(min=1e-20)).clamp(min=1e-6).cpu()
        known = iteration.state.find(SignalScale)
        return state.keeping(SignalScale(ratio if known is None else known.scale * ratio))


@dataclass(frozen=True)
class DefocusStatistic:
    """Log likelihood of every particle over a range of defocus around its present one.

    A difference d changes the phase by `pi lambda d k^2`, alike for all samples of one |k|; these
    are brought together in bins of k^2 that are so narrow that no difference turns the phase by
    more than `PHASE_STEP_RAD` across one.
    """

    range_angstrom: float
    name = "defocus"

    def empty(self, iteration: Iteration) -> Float[Tensor, "N T"]:
        return torch.zeros(len(iteration.half), len(self.differences(iteration)))

    def differences(self, iteration: Iteration) -> Float[Tensor, " T"]:
        """Differences of defocus (A), -range to range."""
        steps = self._steps(iteration)
        return torch.linspace(-self.range_angstrom, self.range_angstrom, 2 * steps + 1)

    def _steps(self, iteration: Iteration) -> int:
        turn = float(self._turn(iteration).max()) * self.range_angstrom
        return max(8, math.ceil(turn / PHASE_STEP_RAD))

    def _turn(self, iteration: Iteration) -> Float[Tensor, " N"]:
        """Change of the phase at the last shell (rad/A) of every particle."""
        problem = iteration.problem
        voltage = torch.from_numpy(problem.particles.transfer.voltage_kv)
        last = 1 / problem.resolution_of(iteration.scored.radius)
        return torch.pi * electron_wavelength_angstrom(voltage) * last**2

    def add(self, partial: Float[Tensor, "N T"], weighed: WeighedBatch) -> Float[Tensor, "N T"]:
        here, iteration = weighed.once(at_poses), weighed.iteration
        plane, index = iteration.scored, weighed.batch.index.cpu()
        bins = self._steps(iteration)
        share = ((plane.kx**2 + plane.ky**2) / plane.radius**2).float()  # of k^2 at the last shell
        place = (share * bins).long().clamp(max=bins - 1)
        terms = even_terms(here.cross, here.power, here.sine, here.cosine)
        binned = terms.new_zeros(*terms.shape[:2], bins).index_add_(2, place, terms)
        middle = (torch.arange(bins, device=terms.device) + 0.5) / bins
        turn = self._turn(iteration)[index].to(terms)
        for t, difference in enumerate(self.differences(iteration).tolist()):
            phase = difference * turn[:, None] * middle
            partial[index, t] = even_evidence(binned)(phase)[0].cpu()
        return partial

    def reduce(self, partial: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "N T"], iteration: Iteration, update: Update, state: State
    ) -> State:
        return state.keeping(DefocusEvidence(self.differences(iteration), partial))


@dataclass(frozen=True, eq=False)
class EvenTermsStatistic:
    """Sums of `even_terms` over the particles of each group (N,)."""

    group: Int[Tensor, " N"]
    name = "even phases"

    def empty(self, iteration: Iteration) -> Float[Tensor, "G 4 J"]:
        n = int(self.group.max()) + 1
        return torch.zeros(n, 4, len(iteration.scored), device=iteration.problem.device)

    def add(self, partial: Float[Tensor, "G 4 J"], weighed: WeighedBatch) -> Float[Tensor, "G 4 J"]:
        here = weighed.once(at_poses)
        group = self.group[weighed.batch.index.cpu()].to(partial.device)
        terms = even_terms(here.cross, here.power, here.sine, here.cosine)
        return partial.index_add_(0, group, terms)

    def reduce(self, partial: Float[Tensor, "G 4 J"]) -> Float[Tensor, "G 4 J"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "G 4 J"], iteration: Iteration, update: Update, state: State
    ) -> State:
        return state.keeping(EvenTerms(partial.cpu()))


@dataclass(frozen=True, eq=False)
class OddTermsStatistic:
    """Sums of `X conj(C R) / sigma^2` over the particles of each group (N,)."""

    group: Int[Tensor, " N"]
    name = "odd phases"

    def empty(self, iteration: Iteration) -> Complex[Tensor, "G J"]:
        n, device = int(self.group.max()) + 1, iteration.problem.device
        return torch.zeros(n, len(iteration.scored), dtype=torch.complex64, device=device)

    def add(
        self, partial: Complex[Tensor, "G J"], weighed: WeighedBatch
    ) -> Complex[Tensor, "G J"]:
        here = weighed.once(at_poses)
        group = self.group[weighed.batch.index.cpu()].to(partial.device)
        return partial.index_add_(0, group, here.cross * here.sine)

    def reduce(self, partial: Complex[Tensor, "G J"]) -> Complex[Tensor, "G J"]:
        all_sum(torch.view_as_real(partial))
        return partial

    def finish(
        self, partial: Complex[Tensor, "G J"], iteration: Iteration, update: Update, state: State
    ) -> State:
        return state.keeping(OddTerms(partial.cpu()))


# --- defocus of particles ----------------------------------------------------------------------


def posterior_defocus(
    evidence: DefocusEvidence, micrograph: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Posterior mean of each particle's difference of defocus (A), with a Gaussian prior around its
    micrograph's mean,

        d_i ~ N(m_g, tau^2):   m_g = mean_i <d_i>,   tau^2 = mean_i <(d_i - m_g)^2>,

    both learnt from all particles by expectation-maximisation: where images say little, or lie in
    one plane, particles of a micrograph share their defocus.
    """
    d = evidence.difference_angstrom.double()
    log_likelihood = evidence.log_likelihood.double()
    n_groups = int(micrograph.max()) + 1
    sizes = torch.bincount(micrograph, minlength=n_groups).clamp(min=1)
    centre = torch.zeros(n_groups, dtype=torch.float64)
    spread2 = (d[-1] - d[0]) ** 2 / 4
    mean = torch.zeros(len(micrograph), dtype=torch.float64)
    for _ in range(PRIOR_ITERATIONS):
        away2 = (d - centre[micrograph][:, None]) ** 2
        weight = torch.softmax(log_likelihood - away2 / (2 * spread2), 1)
        mean = weight @ d
        centre = torch.zeros_like(centre).index_add_(0, micrograph, mean) / sizes
        away2 = (d - centre[micrograph][:, None]) ** 2
        spread2 = (weight * away2).sum(1).mean().clamp(min=NARROWEST_SPREAD_ANGSTROM**2)
    return mean


def micrograph_defocus(
    evidence: DefocusEvidence, micrograph: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """The difference of defocus (A) that all particles of a micrograph together find most probable,
    for each particle; between the trial differences by a parabola."""
    d, n_groups = evidence.difference_angstrom.double(), int(micrograph.max()) + 1
    summed = torch.zeros(n_groups, len(d), dtype=torch.float64)
    summed.index_add_(0, micrograph, evidence.log_likelihood.double())
    best = summed.argmax(1).clamp(1, len(d) - 2)
    below, at, above = (summed.gather(1, (best + n)[:, None])[:, 0] for n in (-1, 0, 1))
    bend = (below - 2 * at + above).clamp(max=-1e-12)
    place = (0.5 * (below - above) / bend).clamp(-0.5, 0.5)
    return (d[best] + place * (d[1] - d[0]))[micrograph]
