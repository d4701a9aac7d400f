"""The transfer function of the image model X = C phase S_t P_phi A + N: the CTF C, and the phase
error of a tilted beam.

`evaluate` makes one `Transfer` of the parameters of a batch; simulation, E-step and M-step,
projection and restoration all use it, and no other place computes a CTF. A higher aberration is one
more term of `ctf` (even in k) or of `beam_tilt_phase` (odd in k), with its parameter in
`halfmap.ctf_parameters`; an anisotropic magnification would change the frequencies in `evaluate`.

Conventions are RELION's: underfocus is positive, the defocus angle is measured from the x axis to
the axis of defocus U, and the CTF of white particles starts at +Q0 at k = 0.
"""

from __future__ import annotations

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
    "beam_tilt_phase",
    "ctf",
    "electron_wavelength_angstrom",
    "evaluate",
    "no_transfer",
    "phase_flip",
    "rfft2_frequencies",
    "turned_ctf",
]

_ANGSTROM_PER_MM = 1e7


# J spatial frequencies (1/A): a tensor, an array, or a number
Frequencies: TypeAlias = Float[Tensor, " J"] | np.ndarray | float


@dataclass(frozen=True)
class Transfer:
    """What the microscope does to B images at J frequencies: X = a phase R of the ideal image R,
    with a = C, or C^2 where the stored images are `premultiplied`; `phase` is None where it is 1.

    The verbs take samples (B, I) at the first I <= J of the frequencies.
    """

    ctf: Float[Tensor, "B J"]
    phase: Complex[Tensor, "B J"] | None
    premultiplied: Bool[Tensor, " B"]

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

    def correct_phases(self, samples: Complex[Tensor, "B I"]) -> Complex[Tensor, "B I"]:
        """`X conj(phase)`: what is left is `a R` and noise."""
        if self.phase is None:
            return samples
        return samples * self.phase[:, : samples.shape[-1]].conj()


def evaluate(
    parameters: CTFParameters, kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies
) -> Transfer:
    """The transfer function of B images at J frequencies (1/A), in the dtype and on the device of
    the frequencies.

    Raises:
        InputError: frequencies of two lengths; a parameter that cannot be (`CTFParameters.to`).
    """
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
    p = parameters.to(kx.device)
    tilted = bool((p.beam_tilt_x_mrad != 0).any() or (p.beam_tilt_y_mrad != 0).any())
    return Transfer(
        ctf=ctf(p, kx, ky),
        phase=beam_tilt_phase(p, kx, ky) if tilted else None,
        premultiplied=p.premultiplied,
    )


def no_transfer(samples: Complex[Tensor, "B J"]) -> Transfer:
    """C = 1 and no phase error, for the images of these samples: where the CTF is not used."""
    unity = torch.ones_like(samples.real)
    return Transfer(unity, None, torch.zeros(len(unity), dtype=torch.bool, device=unity.device))


def phase_flip(
    samples: Complex[Tensor, "*b J"], ctf: Float[Tensor, "*b J"]
) -> Complex[Tensor, "*b J"]:
    """Phase flipping ``A~ = sgn(C) X`` (lecture, method 1): right phases, amplitudes and noise as
    they are; C = 0 counts as positive."""
    return torch.where(ctf < 0, -samples, samples)


def rfft2_frequencies(
    box: int, pixel_size_angstrom: float
) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
    """kx and ky (1/A) of the N (N // 2 + 1) samples of `torch.fft.rfft2`, row by row."""
    ky, kx = torch.meshgrid(torch.fft.fftfreq(box), torch.fft.rfftfreq(box), indexing="ij")
    return kx.flatten() / pixel_size_angstrom, ky.flatten() / pixel_size_angstrom


def turned_ctf(parameters: CTFParameters, psi_deg: Float[Tensor, " B"]) -> CTFParameters:
    """Parameters of images that were turned in plane by psi (`restoration.aligned_transform`):
    astigmatism and beam tilt turn with the image."""
    p = parameters.to(psi_deg.device)
    angle = torch.deg2rad(psi_deg).to(p.beam_tilt_x_mrad)
    tilt_x, tilt_y = p.beam_tilt_x_mrad, p.beam_tilt_y_mrad
    return replace(
        p,
        defocus_angle_deg=p.defocus_angle_deg + psi_deg.to(angle),
        beam_tilt_x_mrad=torch.cos(angle) * tilt_x - torch.sin(angle) * tilt_y,
        beam_tilt_y_mrad=torch.sin(angle) * tilt_x + torch.cos(angle) * tilt_y,
    )


def ctf(
    parameters: CTFParameters, kx_per_angstrom: Frequencies, ky_per_angstrom: Frequencies
) -> Float[Tensor, "B J"]:
    """CTF of B images at J frequencies (1/A), in the dtype of the frequencies.

    CTF = scale exp(-B k^2 / 4) sin(pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + phase + asin Q0),
    dz(theta) = (dU + dV)/2 + (dU - dV)/2 cos(2 (theta - angle)).

    The phase reaches hundreds of radians. Its coefficients are computed in float64, so that in
    float32 frequencies the error of the CTF stays below 1e-3 up to a phase of about 3,000 radians
    (10 um of defocus at 2 A). Rohou & Grigorieff, J. Struct. Biol. 192, 216 (2015); lecture part 1.
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
    kx, ky = _frequencies(kx_per_angstrom, ky_per_angstrom)
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
    return torch.polar(torch.ones_like(angle), angle)


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
