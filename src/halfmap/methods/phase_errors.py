"""What images at known poses say of errors in the phases of their transfer function, and the fit of
an aberration to it.

An image `X = e sin(chi + D(k)) exp(i O(k)) R + N` has an error D, even in k, of the phase chi
inside the sine of its CTF (defocus, astigmatism, spherical aberration, tetrafoil), and one O, odd
in k, that turns its samples (beam tilt, trefoil). With `c = Re(conj(R) X) / sigma^2` and
`p = |R|^2 / sigma^2` the log likelihood of each is, up to a constant,

    L(D) = sum_k  a cos D + b sin D + (g cos 2D - h sin 2D) / 4,
           a = c e sin chi,  b = c e cos chi,  g = p e^2 cos 2 chi,  h = p e^2 sin 2 chi
    L(O) = sum_k  Re(s exp(-i O)),   s = X conj(C R) / sigma^2,

so that sums of (a, b, g, h) and of s over images that share an error hold all that they say of it,
for any size of the error. Aberrations are sums `D(k) = sum_m u_m E_m(k)`. RELION's estimate of
higher-order aberrations rests on the same sums: Zivanov, Nakane and Scheres, IUCrJ 7, 253 (2020).
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays

# of L(D) at phases (G, J): its value (G,), and its first and second derivatives by D (G, J)
Evidence: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

NEWTON_STEPS = 30
SETTLED_GAIN = 1e-4  # of log likelihood
CHANCE_OF_NOISE = 0.05  # that noise alone is taken for an error of the phase, the usual level
RAISED, EASED, FIRST_DAMPING = 10.0, 0.2, 1e-3  # Marquardt's rule, J. SIAM 11, 431 (1963)


@takes_arrays
def even_terms(
    cross: Complex[Tensor, "B J"],
    power: Float[Tensor, "B J"],
    sine: Float[Tensor, "B J"],
    cosine: Float[Tensor, "B J"],
) -> Float[Tensor, "B 4 J"]:
    """(a, b, g, h) of B images: `cross` is `conj(R) X / sigma^2`, `power` `|R|^2 / sigma^2`, `sine`
    and `cosine` are `e sin chi` and `e cos chi`."""
    real = cross.real
    even = power * (cosine**2 - sine**2)
    return torch.stack([real * sine, real * cosine, even, 2 * power * sine * cosine], 1)


def even_evidence(terms: Float[Tensor, "G 4 J"]) -> Evidence:
    """L(D) and its derivatives by D, of G sums of `even_terms`."""
    a, b, g, h = terms.unbind(1)

    def evidence(phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cosine, sine = torch.cos(phase), torch.sin(phase)
        twice_cosine, twice_sine = cosine**2 - sine**2, 2 * sine * cosine
        once = a * cosine + b * sine
        twice = g * twice_cosine - h * twice_sine
        slope = b * cosine - a * sine - 0.5 * (g * twice_sine + h * twice_cosine)
        return (once + 0.25 * twice).sum(-1), slope, -once - twice

    return evidence


def odd_evidence(sums: Complex[Tensor, "G J"]) -> Evidence:
    """L(O) and its derivatives by O, of G sums of `X conj(C R) / sigma^2`."""

    def evidence(phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned = sums * torch.polar(torch.ones_like(phase), -phase)
        return turned.real.sum(-1), turned.imag, -turned.real

    return evidence


def fit_phase(
    evidence: Evidence,
    basis: Float[Tensor, "G m J"],
    start: Float[Tensor, "G m"],
) -> Float[Tensor, "G m"]:
    """Coefficients u (G, m) that maximise `L(sum_m u_m E_m)`, by damped Newton steps from `start`.

    The curvature is that of the samples that are concave in their phase; a step that does not raise
    L is undone and the damping raised. A coefficient of which the images say nothing stays.
    """
    u = start.clone()
    damping = torch.full_like(u[:, 0], FIRST_DAMPING)
    value, slope, bend = evidence(_phase(u, basis))
    for _ in range(NEWTON_STEPS):
        gradient = torch.einsum("gmj,gj->gm", basis, slope)
        hessian = torch.einsum("gmj,gj,gnj->gmn", basis, (-bend).clamp(min=0), basis)
        size = hessian.diagonal(dim1=1, dim2=2).clamp(min=1e-30).sqrt()
        scaled = hessian / (size[:, :, None] * size[:, None])
        ridge = torch.diag_embed(damping[:, None].expand_as(u) + 1e-9)
        step = torch.linalg.solve(scaled + ridge, gradient / size) / size
        step = torch.nan_to_num(torch.where(size > 1e-12, step, 0.0))
        trial = evidence(_phase(u + step, basis))
        better = trial[0] > value
        gain = torch.where(better, trial[0] - value, 0.0)
        u = torch.where(better[:, None], u + step, u)
        value, slope, bend = (
            torch.where(better if new.ndim == 1 else better[:, None], new, old)
            for new, old in zip(trial, (value, slope, bend), strict=True)
        )
        damping = damping * torch.where(better, EASED, RAISED)
        if bool(((gain < SETTLED_GAIN) & (better | (damping > 1e6))).all()):
            break
    return u


def best_start(
    evidence: Evidence,
    basis: Float[Tensor, "G m J"],
    starts: Float[Tensor, "T m"],
) -> Float[Tensor, "G m"]:
    """Of T trial coefficients those of the largest L, for each of the G sums."""
    best = torch.full((len(basis),), -torch.inf, dtype=basis.dtype, device=basis.device)
    u = starts[:1].expand(len(basis), -1).clone()
    for trial in starts:
        value = evidence(_phase(trial.expand(len(basis), -1), basis))[0]
        better = value > best
        best, u = torch.where(better, value, best), torch.where(better[:, None], trial, u)
    return u


def gain(
    evidence: Evidence, basis: Float[Tensor, "G m J"], u: Float[Tensor, "G m"]
) -> Float[Tensor, " G"]:
    """By how much coefficients raise the log likelihood of each sum."""
    phase = _phase(u, basis)
    return evidence(phase)[0] - evidence(torch.zeros_like(phase))[0]


def is_more_than_noise(gained: Float[Tensor, " G"], coefficients: int) -> bool:
    """Whether fits of so many coefficients in all have gained more log likelihood than noise gives
    them: where there is nothing to fit, twice the gain is chi-square of as many degrees of freedom
    (Wilks)."""
    from scipy.stats import chi2

    return 2 * float(gained.sum()) > float(chi2.isf(CHANCE_OF_NOISE, coefficients))


def _phase(u: Float[Tensor, "G m"], basis: Float[Tensor, "G m J"]) -> Float[Tensor, "G J"]:
    return torch.einsum("gm,gmj->gj", u, basis)
