"""What one pass over images at known poses sums for CTF refinement (`methods.ctf_refinement`): per
particle the log likelihood over a range of defocus, per group of particles the terms of any error
of the phase (`methods.phase_errors`), and the normal equations of its magnification."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.distributed import all_sum
from halfmap.engine.method import Iteration, Update, WeighedBatch
from halfmap.engine.state import State
from halfmap.fourier import shift_phases
from halfmap.methods.phase_errors import even_evidence, even_terms
from halfmap.methods.stored_terms import (
    stored_cosine,
    stored_sine,
    stored_sine_cosine,
    with_quarter_turn,
)
from halfmap.projection import extract_slices, slices_at
from halfmap.transfer_function import electron_wavelength_angstrom

PHASE_STEP_RAD = 0.25  # between neighbouring defoci at the last shell, and across a bin of k^2
# finer than the grid of the padded transform, coarse enough for float32; from half a pixel beyond
# the last shell it stays inside that grid
SLOPE_PX = 0.4


@dataclass(frozen=True)
class AtPoses:
    """B images beside the slices at their poses, on the scored half-plane: `slices` are those of
    the map; `weight` is `1 / sigma^2`, counted twice for the half of the plane that is not held, 0
    at k = 0; `cross` is `weight conj(slices) X` with the images X, centred and without the present
    phase errors, and `power` `weight |slices|^2`; `sine` is the CTF C, `e sin chi` with the
    envelope e; `multiplied` is `C X` and `squared` C^2, of images that are stored apart made where
    they are stored (`methods.stored_terms`)."""

    slices: Complex[Tensor, "B J"]
    weight: Float[Tensor, "B J"]
    cross: Complex[Tensor, "B J"]
    power: Float[Tensor, "B J"]
    sine: Float[Tensor, "B J"]
    multiplied: Complex[Tensor, "B J"]
    squared: Float[Tensor, "B J"]


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


@dataclass(frozen=True)
class MagnificationTerms:
    """Normal equations of a step E = (xx, xy, yx, yy) of each group's magnification: slope and
    curvature of the log likelihood, and the curvature that Gauss and Newton would take for it; how
    many images they are from."""

    gradient: Float[Tensor, "G 4"]
    hessian: Float[Tensor, "G 4 4"]
    gauss_newton: Float[Tensor, "G 4 4"]
    images: Float[Tensor, " G"]


def at_poses(weighed: WeighedBatch) -> AtPoses:
    """The batch beside the slices at its poses."""
    iteration, batch = weighed.iteration, weighed.batch
    plane, n = iteration.scored, len(iteration.scored)
    problem, index = iteration.problem, batch.index.cpu()
    poses = iteration.state.poses.select_images(index).to(problem.device)
    slices = extract_slices(weighed.references, poses.rotations, plane)
    centred = batch.transforms[:, :n] * shift_phases(poses.shift_px, plane)
    weight = plane.hermitian_weight.clone()
    weight[0] = 0  # the mean grey value says nothing of the phases
    weight = weight / (batch.sigma2[:, :n][batch.group] * batch.norm[:, None] ** 2)
    sine = batch.ctf[:, :n]
    multiplied, squared = sine * centred, sine.square()
    if (stored := weighed.once(stored_sine)) is not None:
        multiplied[stored.rows], squared[stored.rows] = stored.samples, stored.power
    return AtPoses(
        slices=slices,
        weight=weight,
        cross=weight * slices.conj() * centred,
        power=weight * (slices.real**2 + slices.imag**2),
        sine=sine,
        multiplied=multiplied,
        squared=squared,
    )


def even_terms_at_poses(weighed: WeighedBatch) -> Float[Tensor, "B 4 J"]:
    """`phase_errors.even_terms` of the batch; `e cos chi` is the CTF with a quarter turn more of
    phase."""
    here, particles = weighed.once(at_poses), weighed.iteration.problem.particles
    frequencies = weighed.iteration.scored.frequencies(particles.pixel_size_angstrom)
    rows = weighed.batch.index.cpu().numpy()
    cosine = with_quarter_turn(particles).transfer_at(rows, *frequencies).ctf
    terms = even_terms(here.cross, here.power, here.sine, cosine)
    if (stored := weighed.once(stored_cosine)) is not None:
        at = stored.rows
        slices, power = (here.weight * here.slices.conj())[at], here.power[at]
        once = [(slices * one).real for one in (here.multiplied[at], stored.samples)]
        both = 2 * power * weighed.once(stored_sine_cosine)
        terms[at] = torch.stack([*once, power * (stored.power - here.squared[at]), both], 1)
    return terms


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
        iteration = weighed.iteration
        plane, index = iteration.scored, weighed.batch.index.cpu()
        bins = self._steps(iteration)
        share = ((plane.kx**2 + plane.ky**2) / plane.radius**2).float()  # of k^2 at the last shell
        place = (share * bins).long().clamp(max=bins - 1)
        terms = even_terms_at_poses(weighed)
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
        group = self.group[weighed.batch.index.cpu()].to(partial.device)
        terms = even_terms_at_poses(weighed)
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

    def add(self, partial: Complex[Tensor, "G J"], weighed: WeighedBatch) -> Complex[Tensor, "G J"]:
        here = weighed.once(at_poses)
        group = self.group[weighed.batch.index.cpu()].to(partial.device)
        return partial.index_add_(0, group, here.weight * here.slices.conj() * here.multiplied)

    def reduce(self, partial: Complex[Tensor, "G J"]) -> Complex[Tensor, "G J"]:
        all_sum(torch.view_as_real(partial))
        return partial

    def finish(
        self, partial: Complex[Tensor, "G J"], iteration: Iteration, update: Update, state: State
    ) -> State:
        return state.keeping(OddTerms(partial.cpu()))


@dataclass(frozen=True, eq=False)
class MagnificationStatistic:
    """Normal equations of the magnification of each group (N,): `R(k + E k)` is, to second order,
    `R + sum_ab E_ab k_b dR/dk_a + 1/2 sum E_ab E_cd k_b k_d d2R/(dk_a dk_c)`.

    The curvature is that of the log likelihood itself, `sum |C dR|^2 - Re conj(X - C R) C d2R`.
    Without its second term noise in the map would count as structure: at a low signal the sum of
    `|C dR|^2` is twice what it should be, and a step goes half of the way.
    """

    group: Int[Tensor, " N"]
    name = "magnification"

    def empty(self, iteration: Iteration) -> Float[Tensor, "G 37"]:
        n = int(self.group.max()) + 1
        return torch.zeros(n, 37, dtype=torch.float64, device=iteration.problem.device)

    def add(self, partial: Float[Tensor, "G 37"], weighed: WeighedBatch) -> Float[Tensor, "G 37"]:
        here, plane = weighed.once(at_poses), weighed.iteration.scored
        first, second = slice_derivatives(weighed)
        k = torch.stack([plane.kx, plane.ky]).float()
        left = here.weight * (here.multiplied - here.squared * here.slices).conj()
        slopes = (first[:, :, None] * k).flatten(1, 2)  # ab = xx, xy, yx, yy
        gradient = (left[:, None] * slopes).real.sum(2)
        weight = here.weight * here.squared
        squared = torch.einsum("bj,bmj,bnj->bmn", weight.to(slopes), slopes.conj(), slopes).real
        bent = torch.einsum("bj,bacj,dj,ej->badce", left, second, *[k.to(left)] * 2).real
        bent = bent.reshape(-1, 4, 4)
        one = torch.ones_like(gradient[:, :1])
        rows = [gradient, (squared - bent).flatten(1), squared.flatten(1), one]
        group = self.group[weighed.batch.index.cpu()].to(partial.device)
        return partial.index_add_(0, group, torch.cat(rows, 1).double())

    def reduce(self, partial: Float[Tensor, "G 37"]) -> Float[Tensor, "G 37"]:
        return all_sum(partial)

    def finish(
        self, partial: Float[Tensor, "G 37"], iteration: Iteration, update: Update, state: State
    ) -> State:
        gradient, hessian, gauss_newton, images = partial.cpu().split([4, 16, 16, 1], 1)
        square = (-1, 4, 4)
        found = (gradient, hessian.view(square), gauss_newton.view(square), images[:, 0])
        return state.keeping(MagnificationTerms(*found))


def slice_derivatives(
    weighed: WeighedBatch,
) -> tuple[Complex[Tensor, "B 2 J"], Complex[Tensor, "B 2 2 J"]]:
    """`dR/dk_a` and `d2R/(dk_a dk_c)` of the slices at the batch's poses, from points `SLOPE_PX`
    away."""
    iteration, plane = weighed.iteration, weighed.iteration.scored
    poses = iteration.state.poses.select_images(weighed.batch.index.cpu())
    rotations = poses.rotations.to(iteration.problem.device)
    kx, ky = plane.kx.float(), plane.ky.float()
    middle, h = weighed.once(at_poses).slices, SLOPE_PX
    first, bent = [], []
    for x, y in ((1.0, 0.0), (0.0, 1.0), (0.5**0.5, 0.5**0.5)):  # as far away in each direction
        there, back = (
            slices_at(weighed.references, rotations, kx + sign * h * x, ky + sign * h * y)
            for sign in (1, -1)
        )
        first.append((there - back) / (2 * h))
        bent.append((there - 2 * middle + back) / h**2)
    mixed = bent[2] - (bent[0] + bent[1]) / 2  # along the diagonal: half of xx + 2 xy + yy
    second = torch.stack([bent[0], mixed, mixed, bent[1]], 1).unflatten(1, (2, 2))
    return torch.stack(first[:2], 1), second
