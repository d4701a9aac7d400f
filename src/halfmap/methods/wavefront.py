"""The error of the wavefront of each optics group: as the images show it, place by place in the
Fourier plane, beside what of it has been fitted.

Sums over the images of a group (`methods.phase_errors`) tell of each sample how far its phase is
off; brought together with its neighbours' they are a measurement of the wavefront that knows
nothing of beam tilts and trefoils. Where it and the fit differ by more than noise, an aberration
has been left out, or poses hide one. RELION's pages of higher-order aberrations show the same:
Zivanov, Nakane and Scheres, IUCrJ 7, 253 (2020).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.ctf_parameters import CTFParameters
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.fourier import HalfPlane, half_plane
from halfmap.methods.ctf_refinement import one_pass
from halfmap.methods.ctf_statistics import (
    EvenTerms,
    EvenTermsStatistic,
    OddTerms,
    OddTermsStatistic,
)
from halfmap.methods.phase_errors import even_evidence, odd_evidence
from halfmap.transfer_function import wavefront_rad

SMOOTHED = 1 / 24  # of the radius: deviation of the Gaussian within which samples are brought
# together; the aberrations that are fitted, of fourth order, are straight on it
UNKNOWN_RAD = 1.0  # standard error from which on a phase is not known


@dataclass(frozen=True)
class Wavefront:
    """Phase errors (rad) that one optics group was given with, on a plane (y, x) of frequencies
    from `-edge_per_angstrom` to `+edge_per_angstrom`: `measured`, not a number where it is not
    known to `UNKNOWN_RAD`, and `fitted`. `kind`: "odd" ones turn samples, "even" ones lie inside
    the sine of the CTF."""

    group: int
    kind: str
    measured: Float[np.ndarray, "S S"]
    fitted: Float[np.ndarray, "S S"]
    edge_per_angstrom: float


def measure_wavefront(
    problem: Problem,
    state: State,
    given: CTFParameters,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Wavefront]:
    """Odd and even errors of each optics group: what the images show of those left by the problem's
    transfer functions, after one more pass over them, plus how far these are from the `given`
    ones."""
    group = problem.noise_group
    statistics = (OddTermsStatistic(group), EvenTermsStatistic(group))
    found = one_pass(problem, state, None, statistics, advance)
    odd, even = found.find(OddTerms), found.find(EvenTerms)
    assert odd is not None
    assert even is not None
    particles = problem.particles
    plane = half_plane(particles.box, state.radius)
    kx, ky = plane.frequencies(particles.pixel_size_angstrom)
    evidence = {
        "odd": odd_evidence(odd.sums.to(torch.complex128)),
        "even": even_evidence(even.terms.double()),
    }
    first = np.unique(group.numpy(), return_index=True)[1]
    new, old = (
        wavefront_rad(one.take(first), kx.double(), ky.double())
        for one in (particles.transfer, given)
    )
    told = []
    for n, kind in enumerate(evidence):
        change = (new[n] - old[n]).double()
        _, slope, bend = evidence[kind](torch.zeros_like(change))
        for g in range(len(first)):
            fitted = on_plane(change[g], plane, odd=kind == "odd")
            left = phase_left(slope[g], bend[g], plane, odd=kind == "odd")
            edge = plane.radius / (particles.box * particles.pixel_size_angstrom)
            told.append(Wavefront(g + 1, kind, fitted + left, fitted, edge))
    return told


def phase_left(
    slope: Float[Tensor, " J"], bend: Float[Tensor, " J"], plane: HalfPlane, *, odd: bool
) -> Float[np.ndarray, "S S"]:
    """The phase errors (rad) that slope and curvature of the log likelihood by phase tell, `sum
    slope / -sum bend` over neighbours; not a number where they are not known to `UNKNOWN_RAD`."""
    from scipy.ndimage import gaussian_filter

    deviation = max(1.0, SMOOTHED * plane.radius)
    # both halves of the plane are filled: each sample would count twice
    gradient = on_plane(slope / 2, plane, odd=odd)
    curvature = on_plane(-bend / 2, plane, odd=False)
    inside = np.isfinite(gradient)
    gradient, curvature = (np.where(inside, one, 0) for one in (gradient, curvature))
    steep = gaussian_filter(gradient, deviation, mode="constant")
    firm = gaussian_filter(curvature, deviation, mode="constant")
    # of weights w the variance of sum w slope is sum w^2 curvature; a Gaussian's square is one
    squared = gaussian_filter(curvature, deviation / math.sqrt(2), mode="constant")
    error = np.sqrt(np.clip(squared, 0, None) / (4 * np.pi * deviation**2))
    known = inside & (firm > 0) & (error < UNKNOWN_RAD * firm)
    return np.where(known, steep / np.where(known, firm, 1), np.nan)


def on_plane(
    values: Float[Tensor, " J"], plane: HalfPlane, *, odd: bool
) -> Float[np.ndarray, "S S"]:
    """Values at the samples of a half-plane on the whole plane (y, x), of 2 radius + 1 samples a
    side; not a number outside its disc."""
    side = 2 * plane.radius + 1
    whole = np.full((side, side), np.nan)
    kx, ky = (one.cpu().numpy().round().astype(int) for one in (plane.kx, plane.ky))
    held = values.cpu().double().numpy()
    whole[plane.radius - ky, plane.radius - kx] = -held if odd else held
    whole[plane.radius + ky, plane.radius + kx] = held
    if odd:
        whole[plane.radius, plane.radius] = 0
    return whole
