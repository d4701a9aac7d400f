"""The transfer function of the image model X = C phase S_t P_phi A + N: the CTF C, and the phase
error of odd aberrations (a tilted beam, trefoil).

`evaluate` makes one `Transfer` of the parameters of a batch; simulation, E-step and M-step,
projection and restoration all use it, and no other place computes a CTF. Even aberrations
(tetrafoil) are a term of `ctf`, odd ones of `aberration_phase`.

Frequencies are those of the object. Where the magnification is anisotropic, the image's sample at q
shows the object and its CTF at k = M q: `true_frequencies` takes q to k, and images are brought to
k where they are read (`halfmap.resampling`).

Conventions are RELION's: underfocus is positive, the defocus angle is measured from the x axis to
the axis of defocus U, and the CTF of white particles starts at +Q0 at k = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from halfmap.ctf_parameters import CTFParameters, electron_wavelength_angstrom
from halfmap.errors import InputError

__all__ = [
    "CTFParameters",
    "Transfer",
    "aberration_phase",
    "beam_tilt_phase",
    "ctf",
    "electron_wavelength_angstrom",
    "evaluate",
    "moved_angstrom",
    "no_transfer",
    "phase_flip",
    "rfft2_frequencies",
    "seen_samples",
    "true_frequencies",
    "turned_ctf",
    "zernike_orders",
    "zernike_terms",
]

_ANGSTROM_PER_MM = 1e7


# J spatial frequencies (1/A): a tensor, an array, or a number
Frequencies: TypeAlias = Float[Tensor, " J"] | np.ndarray | float


@dataclass(frozen=True)
class Transfer:
    """What the microscope does to B images at J frequencies: X = a phase R of the ideal image R,
    with a = C, or C^2 where the stored images are `premultiplied`; `phase` is None where it is 1.

    `seen` tells the frequencies that an image can hold, None where that is all of them: beyond its
    own Nyquist frequency C is 0. The verbs take samples (B, I) at the first I <= J of the
    frequencies.
    """

    ctf: Float[Tensor, "B J"]
    phase: Complex[Tensor, "B J"] | None
    premultiplied: Bool[Tensor, " B"]
    seen: Bool[Tensor, "B J"] | None = None

    @property
    def amplitude(self) -> Float[Tensor, "B J"]:
        """a: C, or C^2 where premultiplied."""
        if not bool(self.premultiplied.any()):
            return self.ctf
        return torch.where(self.premultiplied[:, None], self.ctf**2, self.ctf)

    def image(self, samples: Complex[Tensor, "B I"]) -> Complex[Tensor, "B I"]:
        """The stored image `a phase R` of ideal samples R."""
        n = samples.shape[-1]
        samples = samples * self.amplitude[:, :n]
        return samples if self.phase is None else samples * self.phase[:, :n]

    def correct_phases(
        self, samples: Complex[Tensor, "B I"], *, done: Bool[Tensor, " B"] | None = None
    ) -> Complex[Tensor, "B I"]:
        """`X conj(phase)`: what is left is `a R` and noise; 0 where nothing is seen. Images whose
        phases are `done` keep those that they have."""
        n = samples.shape[-1]
        if self.phase is not None:
            turn = self.phase[:, :n].conj()
            samples = samples * (turn if done is None else torch.where(done[:, None], 1.0, turn))
        return samples if self.seen is None else samples * self.seen[:, :n]


def evaluate(
    parameters: CTFParameters,
    kx_per_angstrom: Frequencies,
    ky_per_angstrom: Frequencies,
    *,
    reach_per_angstrom: Float[Tensor, " B"] | None = None,
) -> Transfer:
    """The transfer function of B images at J frequencies of the object (1/A), in the dtype and on
    the device of the frequencies; 0 beyond what they reach, where that is told (`seen_samples`).

    >>> optics = CTFParameters(defocus_u_angstrom=15000.0, defocus_v_angstrom=15000.0)
    >>> evaluate(optics, torch.tensor([0.0]), torch.tensor([0.0])).ctf  # Q0 at k = 0
    tensor([[0.1000]])

    Raises:
        InputError: frequencies of two lengths; a parameter that cannot be (`CTFParameters.to`).
    """
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    p = parameters.to(kx.device)
    tilted = bool((p.beam_tilt_x_mrad != 0).any() or (p.beam_tilt_y_mrad != 0).any())
    value, seen = ctf(p, kx, ky), None
    if reach_per_angstrom is not None:
        seen = seen_samples(p, kx, ky, reach_per_angstrom)
        value = value * seen
    return Transfer(
        ctf=value,
        phase=aberration_phase(p, kx, ky) if tilted or bool(p.odd_zernike.any()) else None,
        premultiplied=p.premultiplied,
        seen=seen,
    )


def no_transfer(
    samples: Complex[Tensor, "B J"], seen: Bool[Tensor, "B J"] | None = None
) -> Transfer:
    """C = 1 and no phase error, for the images of these samples: where the CTF is not used; 0 where
    nothing is `seen`."""
    unity = torch.ones_like(samples.real)
    premultiplied = torch.zeros(len(unity), dtype=torch.bool, device=unity.device)
    return Transfer(unity if seen is None else unity * seen, None, premultiplied, seen)


def true_frequencies(
    magnification: np.ndarray, qx: Float[Tensor, " J"], qy: Float[Tensor, " J"]
) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
    """k = M q: where the object lies in an image's sample at q, M (2, 2) its magnification matrix
    (RELION's rlnMagMat00 ... 11, rows first)."""
    (xx, xy), (yx, yy) = magnification.tolist()
    return xx * qx + xy * qy, yx * qx + yy * qy


def seen_samples(
    parameters: CTFParameters,
    kx_per_angstrom: Frequencies,
    ky_per_angstrom: Frequencies,
    reach_per_angstrom: Float[Tensor, " B"],
) -> Bool[Tensor, "B J"]:
    """Whether images hold the object's frequency k at all: `|M^-1 k|` is below what they reach,
    their Nyquist frequency or a shell less (1/A)."""
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    p = _wide(parameters, kx.device)
    limit = reach_per_angstrom.to(p.magnification_xx) * (
        p.magnification_xx * p.magnification_yy - p.magnification_xy * p.magnification_yx
    )
    x = _column(p.magnification_yy, kx) * kx - _column(p.magnification_xy, kx) * ky
    y = _column(p.magnification_xx, kx) * ky - _column(p.magnification_yx, kx) * kx
    return x**2 + y**2 < _column(limit**2, kx)


def phase_flip(
    samples: Complex[Tensor, "*b J"], ctf: Float[Tensor, "*b J"]
) -> Complex[Tensor, "*b J"]:
    """Phase flipping ``A~ = sgn(C) X`` (lecture, method 1): right phases, amplitudes and noise as
    they are; C = 0 counts as positive.

    >>> phase_flip(torch.tensor([1 + 2j, 1 + 2j]), torch.tensor([0.3, -0.3]))
    tensor([ 1.+2.j, -1.-2.j])
    """
    return torch.where(ctf < 0, -samples, samples)


def rfft2_frequencies(
    box: int, pixel_size_angstrom: float
) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
    """kx and ky (1/A) of the N (N // 2 + 1) samples of `torch.fft.rfft2`, row by row."""
    ky, kx = torch.meshgrid(torch.fft.fftfreq(box), torch.fft.rfftfreq(box), indexing="ij")
    return kx.flatten() / pixel_size_angstrom, ky.flatten() / pixel_size_angstrom


def moved_angstrom(
    parameters: CTFParameters, k_per_angstrom: Float[Tensor, " J"]
) -> Float[Tensor, "B J"]:
    """How far defocus and Cs move what is at frequency |k| in the image, either way:
    `|lambda dz k - Cs lambda^3 k^3|`, the slope of the phase over 2 pi; astigmatism apart.

    >>> optics = CTFParameters(defocus_u_angstrom=1e4, defocus_v_angstrom=1e4)
    >>> moved_angstrom(optics, torch.tensor([0.1])).round()  # 1 um at 10 A
    tensor([[19.]])
    """
    p = _wide(parameters, k_per_angstrom.device)
    wavelength = electron_wavelength_angstrom(p.voltage_kv)
    linear = wavelength * (p.defocus_u_angstrom + p.defocus_v_angstrom) / 2
    cubic = p.spherical_aberration_mm * _ANGSTROM_PER_MM * wavelength**3
    k = k_per_angstrom.double()
    return (linear[:, None] * k - cubic[:, None] * k**3).abs().to(k_per_angstrom)


def turned_ctf(parameters: CTFParameters, psi_deg: Float[Tensor, " B"]) -> CTFParameters:
    """Parameters of images that were turned in plane by psi (`restoration.aligned_transform`):
    astigmatism, beam tilt and higher aberrations turn with the image."""
    p = parameters.to(psi_deg.device)
    angle = torch.deg2rad(psi_deg).to(p.beam_tilt_x_mrad)
    tilt_x, tilt_y = p.beam_tilt_x_mrad, p.beam_tilt_y_mrad
    return replace(
        p,
        defocus_angle_deg=p.defocus_angle_deg + psi_deg.to(angle),
        beam_tilt_x_mrad=torch.cos(angle) * tilt_x - torch.sin(angle) * tilt_y,
        beam_tilt_y_mrad=torch.sin(angle) * tilt_x + torch.cos(angle) * tilt_y,
        odd_zernike=_turned(p.odd_zernike, angle, parity=1),
        even_zernike=_turned(p.even_zernike, angle, parity=0),
        **_turned_magnification(p, angle),
    )


def _turned_magnification(p: CTFParameters, angle: Float[Tensor, " B"]) -> dict[str, Tensor]:
    """R M R^T, whose Nyquist limit is that of the turned image."""
    names = [f"magnification_{at}" for at in ("xx", "xy", "yx", "yy")]
    matrix = torch.stack([getattr(p, name) for name in names], dim=1).view(-1, 2, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    turned = turn @ matrix @ turn.mT
    return dict(zip(names, turned.flatten(1).unbind(1), strict=True))


def _turned(
    coefficients: Float[Tensor, "B Z"], angle: Float[Tensor, " B"], *, parity: int
) -> Float[Tensor, "B Y"]:
    """Coefficients, of whole orders, of `c cos m (theta - angle) + s sin m (theta - angle)`."""
    orders = zernike_orders(coefficients.shape[1], parity)
    missing = len(orders) - coefficients.shape[1]  # of the last order
    coefficients = torch.nn.functional.pad(coefficients, (0, missing))
    turned = coefficients.clone()
    for i, (m, n) in enumerate(orders):
        if m > 0:
            cos, sin = torch.cos(m * angle), torch.sin(m * angle)
            j = orders.index((-m, n))
            turned[:, i] = cos * coefficients[:, i] - sin * coefficients[:, j]
            turned[:, j] = sin * coefficients[:, i] + cos * coefficients[:, j]
    return turned


def zernike_orders(count: int, parity: int) -> list[tuple[int, int]]:
    """(m, n) of `count` polynomials (a number that fills whole orders n, or is cut where it is) in
    RELION's order: by n = parity, parity + 2, ..., then by m = -n, -n + 2, ..., n."""
    orders: list[tuple[int, int]] = []
    n = parity
    while len(orders) < count:
        orders += [(m, n) for m in range(-n, n + 1, 2)]
        n += 2
    return orders


def ctf(
    parameters: CTFParameters, kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies
) -> Float[Tensor, "B J"]:
    """CTF of B images at J frequencies (1/A), in the dtype of the frequencies.

    CTF = scale exp(-B k^2 / 4) sin(pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + phase + asin Q0 - W),
    dz(theta) = (dU + dV)/2 + (dU - dV)/2 cos(2 (theta - angle)),
    W the sum of even Zernike polynomials (`zernike_terms`), whose sign is RELION's.

    The phase reaches hundreds of radians. Its coefficients are computed in float64, so that in
    float32 frequencies the error of the CTF stays below 1e-3 up to a phase of about 3,000 radians
    (10 um of defocus at 2 A). Rohou & Grigorieff, J. Struct. Biol. 192, 216 (2015); lecture part 1.

    >>> optics = CTFParameters(defocus_u_angstrom=15000.0, defocus_v_angstrom=15000.0)
    >>> k = torch.tensor([0.0, 0.05])  # 1/A, along x
    >>> [round(float(c), 3) for c in ctf(optics, k, torch.zeros(2))[0]]  # +Q0 at k = 0
    [0.1, 0.662]
    """
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    p = _wide(parameters, kx.device)
    wavelength = electron_wavelength_angstrom(p.voltage_kv)
    mean = torch.pi * wavelength * (p.defocus_u_angstrom + p.defocus_v_angstrom) / 2
    half = torch.pi * wavelength * (p.defocus_u_angstrom - p.defocus_v_angstrom) / 2
    twice = 2 * torch.deg2rad(p.defocus_angle_deg)
    # pi lambda dz k^2 as a quadratic form: cos(2 (theta - angle)) k^2 = cos(2 angle) (kx^2 - ky^2)
    # + sin(2 angle) 2 kx ky.
    fourth = -0.5 * torch.pi * p.spherical_aberration_mm * _ANGSTROM_PER_MM * wavelength**3
    offset = torch.deg2rad(p.phase_shift_deg) + torch.asin(p.amplitude_contrast)
    xx, yy = kx**2, ky**2
    terms = (
        (mean + half * torch.cos(twice), xx),
        (mean - half * torch.cos(twice), yy),
        (2 * half * torch.sin(twice), kx * ky),
        (fourth, (xx + yy) ** 2),
    )
    phase = _column(offset, xx).expand(-1, len(xx)).clone()
    for coefficient, sample in terms:
        phase.addcmul_(_column(coefficient, xx), sample)
    if bool(p.even_zernike.any()):
        phase.sub_(_aberration(p.even_zernike, kx, ky, parity=0))
    value = phase.sin_()
    if bool((p.bfactor_angstrom2 != 0).any()):
        value.mul_(torch.exp(_column(p.bfactor_angstrom2, xx) * (xx + yy) * -0.25))
    return value.mul_(_column(p.scale, xx))


def beam_tilt_phase(
    parameters: CTFParameters, kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies
) -> Complex[Tensor, "B J"]:
    """The phase factor that axial coma of a beam tilted by t = (tx, ty) has left on B images; unit
    modulus, and odd in k in its phase.

    phase(k) = exp(-2 pi i Cs lambda^2 k^2 (k . t)),
    t in radians, Cs and lambda in Angstrom, k in 1/A.

    Images carry it: **corrected X = X * conj(phase)**, and a simulated image is C * phase * R. This
    is the sign of RELION's rlnBeamTiltX/Y (mrad). Zhou, Ultramicroscopy 73, 75 (1998); Zivanov,
    Nakane & Scheres, IUCrJ 7, 253 (2020).
    """
    angle = _coma(parameters, *_frequencies(kx_per_angstrom, ky_per_angstrom))
    return torch.polar(torch.ones_like(angle), angle)


def aberration_phase(
    parameters: CTFParameters, kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies
) -> Complex[Tensor, "B J"]:
    """The phase factor of all odd aberrations: `beam_tilt_phase(k) exp(i sum_j c_j Z_j(k))`, Z the
    odd Zernike polynomials (`zernike_terms`) and c RELION's rlnOddZernike.

    Images carry it, as they do that of a beam tilt. Zivanov, Nakane & Scheres, IUCrJ 7, 253 (2020).
    """
    phase = beam_tilt_phase(parameters, kx_per_angstrom, ky_per_angstrom)
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    p = _wide(parameters, kx.device)
    if not bool(p.odd_zernike.any()):
        return phase
    angle = _aberration(p.odd_zernike, kx, ky, parity=1)
    return phase * torch.polar(torch.ones_like(angle), angle)


def _coma(parameters: CTFParameters, kx: Tensor, ky: Tensor) -> Tensor:
    """The angle of `beam_tilt_phase`, (B, J) in radians."""
    p = _wide(parameters, kx.device)
    factor = (
        -2e-3
        * torch.pi
        * p.spherical_aberration_mm
        * _ANGSTROM_PER_MM
        * electron_wavelength_angstrom(p.voltage_kv) ** 2
    )
    squared = kx**2 + ky**2
    angle = _column(factor * p.beam_tilt_x_mrad, squared) * (squared * kx)
    angle.addcmul_(_column(factor * p.beam_tilt_y_mrad, squared), squared * ky)
    return angle


def wavefront_rad(
    parameters: CTFParameters, kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies
) -> tuple[Float[Tensor, "B J"], Float[Tensor, "B J"]]:
    """What aberrations do to the phases of B images at J frequencies (1/A), in radians and not
    wrapped: the odd ones, by which samples are turned (`aberration_phase` is exp(i O)), and the
    even ones inside the sine of the CTF, `-pi/2 Cs lambda^3 k^4 - W`, without defocus.

    >>> tilted = CTFParameters(beam_tilt_x_mrad=1.0)
    >>> k = torch.tensor([0.25])  # 1/A, along x
    >>> odd, even = wavefront_rad(tilted, k, torch.zeros(1))
    >>> bool(torch.polar(torch.ones(1), odd[0]).isclose(aberration_phase(tilted, k, 0 * k)[0]))
    True
    """
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    p = _wide(parameters, kx.device)
    wavelength = electron_wavelength_angstrom(p.voltage_kv)
    fourth = -0.5 * torch.pi * p.spherical_aberration_mm * _ANGSTROM_PER_MM * wavelength**3
    odd = _coma(parameters, kx, ky) + _aberration(p.odd_zernike, kx, ky, parity=1)
    even = _column(fourth, kx) * (kx**2 + ky**2) ** 2
    return odd, even - _aberration(p.even_zernike, kx, ky, parity=0)


def zernike_terms(
    kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies, count: int, *, parity: int
) -> Float[Tensor, "Z J"]:
    """The first `count` Zernike polynomials that are even (`parity` 0) or odd (1) in k, in RELION's
    order (`zernike_orders`) and its unit of radius, 1/A:

        Z(m, n) = R(|m|, n)(k) cos(m theta), m >= 0;    R(|m|, n)(k) sin(|m| theta), m < 0
        R(m, n)(k) = sum_s (-1)^s (n - s)! / (s! ((n + m)/2 - s)! ((n - m)/2 - s)!) k^(n - 2s)

    so that the odd ones are (-1, 1), (1, 1), (-3, 3), (-1, 3), (1, 3), (3, 3), ..., trefoil the
    third and sixth; the even ones (0, 0), (-2, 2), (0, 2), (2, 2), (-4, 4), ..., (4, 4), tetrafoil
    the fifth and ninth. Born & Wolf, Principles of Optics, 9.2.
    """
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    squared, turning = kx**2 + ky**2, torch.complex(kx, ky)
    rows = []
    for m, n in zernike_orders(count, parity)[:count]:
        a = abs(m)
        radial = torch.zeros_like(kx)  # R / k^a
        for s in range((n - a) // 2 + 1):
            factor = (-1) ** s * math.factorial(n - s) / math.factorial(s)
            factor /= math.factorial((n + a) // 2 - s) * math.factorial((n - a) // 2 - s)
            radial = radial + factor * squared ** ((n - a) // 2 - s)
        angular = turning**a  # k^a (cos a theta + i sin a theta)
        rows.append(radial * (angular.real if m >= 0 else angular.imag))
    return torch.stack(rows) if rows else kx.new_zeros(0, len(kx))


def _aberration(coefficients: Tensor, kx: Tensor, ky: Tensor, *, parity: int) -> Tensor:
    """Sum of Zernike polynomials, (B, J) in radians."""
    terms = zernike_terms(kx, ky, coefficients.shape[1], parity=parity)
    return coefficients.to(terms) @ terms


def _frequencies(kx: Frequencies, ky: Frequencies) -> tuple[Tensor, Tensor]:
    x, y = (
        torch.atleast_1d(k if isinstance(k, Tensor) else torch.as_tensor(np.asarray(k, float)))
        for k in (kx, ky)
    )
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(
            f"frequencies: expected kx and ky of one length, shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)} arrived"
        )
    return x, y


def _wide(parameters: CTFParameters, device: torch.device) -> CTFParameters:
    """The B parameters in float64 where the device has it (Apple's MPS does not)."""
    p = parameters.to(device)
    if device.type == "mps":
        return p
    numbers = [field.name for field in fields(p) if field.name != "premultiplied"]
    return replace(p, **{name: getattr(p, name).double() for name in numbers})


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1) in the dtype of the samples."""
    return values.to(like.dtype)[:, None]
