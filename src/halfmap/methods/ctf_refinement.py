"""Refinement of the transfer function: defocus, astigmatism and aberrations that make images at
known poses most probable, given the map that they made.

    (defocus, ...) = argmax log P(X | V, phi, C)
                   = argmax - sum_i |X_i - C_i S_t P_phi V|^2 / (2 sigma^2)

To the engine it is a method that searches no pose. Its statistics sum what `methods.phase_errors`
needs: per particle the log likelihood over a range of defocus, per micrograph and per optics group
the terms of any error of the phase. A map that an image is part of agrees with the CTF that it
was put in with, by the image's own noise; so each half is divided into folds, and an image meets
the map of its half without its fold. Noise of a map where there is only solvent is most of what it
gets wrong at high frequencies, so maps are cut out with a mask that is made of them. Zivanov et
al., eLife 7, e42166 (2018); Zivanov, Nakane and Scheres, IUCrJ 7, 253 (2020).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.ctf_parameters import CTFParameters
from halfmap.engine.loop import iterate
from halfmap.engine.method import Iteration, Method, Statistic, Update
from halfmap.engine.noise import NoiseStatistic
from halfmap.engine.posterior_weights import assign_hard
from halfmap.engine.problem import Problem
from halfmap.engine.state import Poses, State
from halfmap.fourier import half_plane
from halfmap.mask_making import mask_from_half_maps
from halfmap.masks import resampled
from halfmap.methods.aberration_fit import (
    mean_defocus,
    refine_astigmatism,
    refine_even_aberrations,
    refine_magnification,
    refine_odd_aberrations,
    with_defocus_change,
)
from halfmap.methods.ctf_statistics import (
    DefocusEvidence,
    DefocusStatistic,
    EvenTerms,
    EvenTermsStatistic,
    MagnificationStatistic,
    MagnificationTerms,
    OddTerms,
    OddTermsStatistic,
)
from halfmap.methods.defocus import micrograph_defocus, posterior_defocus
from halfmap.methods.reference_update import half_maps, map_update
from halfmap.methods.search_schedule import at_present_poses
from halfmap.methods.settings import Settings
from halfmap.projection import Sums

# Newton's steps of a stage against one map. At the last shell a magnification of 2 % turns phases
# by a radian and more, where one step is off by half; three leave less than noise does.
STEPS_A_MAP = {"magnification": 3}
# Each round begins with new maps, made with the transfer functions there are. What a stage mends
# sharpens them little (defocus, tilts) but here, where the next stage would meet blurred ones.
NEW_MAPS_AFTER = ("magnification",)

Advance = Callable[[int], None]
Kept = TypeVar("Kept")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is refined: the defocus of each "particle" or "micrograph" (or "none"), astigmatism by
    micrograph, the rest by optics group; defocus and astigmatism are looked for within `range`."""

    defocus: str = "particle"
    astigmatism: bool = False
    beam_tilt: bool = False
    trefoil: bool = False
    spherical: bool = False
    tetrafoil: bool = False
    magnification: bool = False
    range_angstrom: float = 2000.0
    rounds: int = 2

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order in which errors hide others: the magnification first, then what turns
        phases, then the phase inside the sine."""
        asked = {
            "magnification": self.magnification,
            "odd": self.beam_tilt or self.trefoil,
            "defocus": self.defocus != "none",
            "astigmatism": self.astigmatism,
            "even": self.spherical or self.tetrafoil,
        }
        return tuple(name for name, wanted in asked.items() if wanted)


@dataclass(frozen=True)
class OwnMask:
    """The mask (N, N, N), made of the half maps, that the present maps are cut out with."""

    values: Float[Tensor, "N N N"]


@dataclass(frozen=True)
class Step:
    """After a stage: the problem with the new transfer functions, the state with the new shifts;
    whether images have told them from noise, or all was left as it was."""

    round: int
    stage: str
    problem: Problem
    state: State
    told: bool = True


def refine_ctf(
    problem: Problem,
    settings: Settings,
    state: State,
    wanted: Wanted,
    advance: Advance = lambda n: None,
    *,
    with_own_mask: bool = True,
) -> Iterator[Step]:
    """Refine the transfer functions of the particles, stage by stage; maps are made anew in each
    round, every image is compared with one that it is no part of (`Problem.fold`).

    The state holds poses, and noise spectra to begin with; its references do not count.
    `with_own_mask`: the settings' masks are only what one made of the half maps (`OwnMask`, kept in
    the state) lies in.
    """
    given = problem.particles.transfer
    update = partial(update_in_own_mask if with_own_mask else map_update, settings)
    told: set[str] = set()  # stages that have found more than noise
    for n in range(wanted.rounds):
        for stage in wanted.stages:
            if _meets_new_maps(stage, wanted):
                state = one_pass(problem, state, update, (NoiseStatistic(),), advance)
            statistic = (_statistic(stage, wanted, problem),)
            for _ in range(STEPS_A_MAP.get(stage, 1)):
                found = one_pass(problem, state, None, statistic, advance)
                before, surely = problem.particles.transfer, stage not in told
                problem, state = _after_step(
                    stage, problem, found, wanted, given, state, surely=surely
                )
                if problem.particles.transfer is not before:
                    told.add(stage)
            yield Step(n + 1, stage, problem, state, stage in told)


def _meets_new_maps(stage: str, wanted: Wanted) -> bool:
    place = wanted.stages.index(stage)
    return place == 0 or wanted.stages[place - 1] in NEW_MAPS_AFTER


def passes(wanted: Wanted) -> int:
    """How often all images are gone through."""
    each = [STEPS_A_MAP.get(one, 1) + _meets_new_maps(one, wanted) for one in wanted.stages]
    return wanted.rounds * sum(each)


def _after_step(
    stage: str,
    problem: Problem,
    found: State,
    wanted: Wanted,
    given: CTFParameters,
    state: State,
    *,
    surely: bool,
) -> tuple[Problem, State]:
    """The problem with the new transfer functions, the state with the shifts that go with them; the
    same ones where `surely` asks for more than noise and there is no more."""
    transfer, moved = _refined(stage, problem, found, wanted, given, state.radius, surely=surely)
    if transfer is problem.particles.transfer:
        return problem, state
    problem = replace(problem, particles=problem.particles.with_transfer(transfer))
    if moved is not None:
        shift = torch.from_numpy(moved / problem.particles.pixel_size_angstrom)
        poses = replace(state.poses, shift_px=state.poses.shift_px - shift.float())
        state = replace(state, poses=poses)
    return problem, state


def _statistic(stage: str, wanted: Wanted, problem: Problem) -> Statistic[Any]:
    micrograph, optics = problem.scale_group, problem.noise_group
    if stage == "defocus":
        return DefocusStatistic(wanted.range_angstrom)
    if stage == "astigmatism":
        return EvenTermsStatistic(micrograph)
    if stage == "even":
        return EvenTermsStatistic(optics)
    return OddTermsStatistic(optics) if stage == "odd" else MagnificationStatistic(optics)


def _refined(
    stage: str,
    problem: Problem,
    found: State,
    wanted: Wanted,
    given: CTFParameters,
    radius: int,
    *,
    surely: bool,
) -> tuple[CTFParameters, np.ndarray | None]:
    """New transfer functions, and how far particles then lie from where their poses say."""
    particles, micrograph, optics = problem.particles, problem.scale_group, problem.noise_group
    transfer = particles.transfer
    frequencies = half_plane(particles.box, radius).frequencies(particles.pixel_size_angstrom)
    if stage == "defocus":
        evidence = _kept(found, DefocusEvidence)
        if wanted.defocus == "micrograph":
            change = micrograph_defocus(evidence, micrograph, surely=surely)
        else:
            moved = torch.from_numpy(mean_defocus(transfer) - mean_defocus(given))
            change = posterior_defocus(evidence, micrograph, moved, surely=surely) - moved
        if not bool(change.any()):
            return transfer, None
        return with_defocus_change(transfer, change.numpy()), None
    if stage == "magnification":
        return refine_magnification(transfer, _kept(found, MagnificationTerms), optics), None
    if stage == "odd":
        return refine_odd_aberrations(
            transfer,
            _kept(found, OddTerms),
            optics,
            frequencies,
            beam_tilt=wanted.beam_tilt,
            trefoil=wanted.trefoil,
            surely=surely,
        )
    terms = _kept(found, EvenTerms)
    if stage == "astigmatism":
        where = micrograph, frequencies, wanted.range_angstrom
        return refine_astigmatism(transfer, terms, *where, surely=surely), None
    which = {"spherical": wanted.spherical, "tetrafoil": wanted.tetrafoil, "surely": surely}
    return refine_even_aberrations(transfer, terms, optics, frequencies, **which), None


def _kept(found: State, kind: type[Kept]) -> Kept:
    """What a statistic of this pass has kept."""
    kept = found.find(kind)
    assert kept is not None
    return kept


def one_pass(
    problem: Problem,
    state: State,
    update: Callable[[Iteration, Poses, list[Sums]], Update] | None,
    statistics: tuple[Statistic[Any], ...],
    advance: Advance = lambda n: None,
) -> State:
    """The state after one pass over all images at their poses, with what the statistics have
    summed; with new maps if there is an update, else against the maps there are."""
    method = Method(
        prepare=at_present_poses,
        assign=assign_hard,
        update=update or _same_maps,
        converged=lambda state: True,
        statistics=statistics,
    )
    if update is None:
        method = replace(method, terms=None)
    return iterate(problem, method, state, advance=advance)[0]


def update_in_own_mask(
    settings: Settings, iteration: Iteration, poses: Poses, parts: list[Sums]
) -> Update:
    """`map_update` in a mask made of the half maps, inside that of the settings; in the settings'
    own where nothing stands out of the noise."""
    own = own_mask(iteration.problem, parts, settings.reference_mask)
    mask = own.to(iteration.problem.device)
    settings = replace(settings, reference_mask=mask, fsc_mask=mask)
    return replace(map_update(settings, iteration, poses, parts), kept=OwnMask(own))


def own_mask(
    problem: Problem, parts: list[Sums], sphere: Float[Tensor, "N N N"]
) -> Float[Tensor, "n n n"]:
    """The mask made of the half maps of these sums, on their grid."""
    box = problem.reference_box(parts[0].radius)
    half1, half2 = (half[0].cpu() for half in half_maps(problem, parts, box))
    within = resampled(sphere, box).cpu()
    pixel = problem.particles.pixel_size_angstrom * problem.particles.box / box
    made = mask_from_half_maps(half1, half2, pixel_size_angstrom=pixel, within=within)
    return within if made is None else made.values


def _same_maps(iteration: Iteration, poses: Poses, parts: list[Sums]) -> Update:
    """What a pass that only measures leaves as it was."""
    state = iteration.state
    return Update(references=state.references, curves=state.curves, radius=state.radius)
