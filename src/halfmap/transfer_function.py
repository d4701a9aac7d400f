"""The contrast transfer function C of the image model X = C S_t P_phi A + N, and the phase error of
a tilted beam.

Conventions are RELION's: underfocus is positive, the defocus angle is measured from the x axis to
the axis of defocus U, and the CTF of white particles starts at +Q0 at k = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.errors import InputError

# h / sqrt(2 m e) in Angstrom sqrt(V) and e / (2 m c^2) in 1/V, from the CODATA 2018 constants.
_DE_BROGLIE = 12.264259660
_RELATIVISTIC = 9.78475598e-7
_ANGSTROM_PER_MM = 1e7


@runtime_checkable
class HasCTF(Protocol):
    """What `CTFParameters.from_particles` reads of a data set: one number per particle in each
    column, in the unit of its name."""

    @property
    def defocus_u_angstrom(self) -> np.ndarray: ...
    @property
    def defocus_v_angstrom(self) -> np.ndarray: ...
    @property
    def defocus_angle_deg(self) -> np.ndarray: ...
    @property
    def voltage_kv(self) -> np.ndarray: ...
    @property
    def spherical_aberration_mm(self) -> np.ndarray: ...
    @property
    def amplitude_contrast(self) -> np.ndarray: ...
    @property
    def phase_shift_deg(self) -> np.ndarray: ...
    @property
    def ctf_bfactor_angstrom2(self) -> np.ndarray: ...
    @property
    def ctf_scale(self) -> np.ndarray: ...
    @property
    def beam_tilt_x_mrad(self) -> np.ndarray: ...
    @property
    def beam_tilt_y_mrad(self) -> np.ndarray: ...


@dataclass(frozen=True)
class CTFParameters:
    """CTF parameters of B images, in the units of their names."""

    defocus_u_angstrom: Float[Tensor, " B"]
    defocus_v_angstrom: Float[Tensor, " B"]
    defocus_angle_deg: Float[Tensor, " B"]
    voltage_kv: Float[Tensor, " B"]
    spherical_aberration_mm: Float[Tensor, " B"]
    amplitude_contrast: Float[Tensor, " B"]
    phase_shift_deg: Float[Tensor, " B"]
    bfactor_angstrom2: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]
    beam_tilt_x_mrad: Float[Tensor, " B"]
    beam_tilt_y_mrad: Float[Tensor, " B"]

    @classmethod
    def from_particles(
        cls, particles: HasCTF, indices: np.ndarray, device: torch.device | str = "cpu"
    ) -> CTFParameters:
        """Parameters of the particles at `indices` (B,), float32 on `device`.

        Raises InputError naming column and row where a value cannot be: not finite, a voltage that
        is not positive, an amplitude contrast outside 0..1.
        """
        indices = np.asarray(indices)
        columns = {}
        for field in fields(cls):
            name = {"bfactor_angstrom2": "ctf_bfactor_angstrom2", "scale": "ctf_scale"}.get(
                field.name, field.name
            )
            column = np.asarray(getattr(particles, name), dtype=np.float64)[indices]
            _check(name, column, indices)
            columns[field.name] = torch.as_tensor(column, dtype=torch.float32).to(device)
        return cls(**columns)

    def to(self, device: torch.device | str) -> CTFParameters:
        return CTFParameters(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def take(self, indices: Tensor | slice) -> CTFParameters:
        """The images at `indices`: a tensor of integers, a mask, or a slice."""
        return CTFParameters(**{f.name: getattr(self, f.name)[indices] for f in fields(self)})


def _check(name: str, column: np.ndarray, rows: np.ndarray) -> None:
    good, expected = np.isfinite(column), "a finite number"
    if name == "voltage_kv":
        good, expected = good & (column > 0), "a voltage above 0 kV"
    elif name == "amplitude_contrast":
        good, expected = good & (column >= 0) & (column <= 1), "a number from 0 to 1"
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise InputError(
            f"particle row {int(rows[first]) + 1}, CTF column {name}: expected {expected}, found "
            f"{column[first]}; "
            "correct the value or remove the particle"
        )


def electron_wavelength_angstrom(voltage_kv: Tensor) -> Tensor:
    """Relativistic wavelength of an electron: lambda = h / sqrt(2 m e V (1 + e V / (2 m c^2))), V =
    1000 `voltage_kv`.

    Any shape; Angstrom. Constants are CODATA 2018's; RELION's own are rounded and give a wavelength
    5e-6 longer, which is as much as 0.1 A in 20,000 A of defocus.
    """
    volt = voltage_kv * 1000
    return _DE_BROGLIE / torch.sqrt(volt * (1 + volt * _RELATIVISTIC))


def ctf(
    parameters: CTFParameters,
    kx_per_angstrom: Float[Tensor, " J"],
    ky_per_angstrom: Float[Tensor, " J"],
) -> Float[Tensor, "B J"]:
    """CTF of B images at J frequencies (1/A), in the dtype of the frequencies.

    CTF = scale exp(-B k^2 / 4) sin(pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + phase + asin Q0),
    dz(theta) = (dU + dV)/2 + (dU - dV)/2 cos(2 (theta - angle)).

    The phase reaches hundreds of radians. Its coefficients are computed in float64, so that in
    float32 frequencies the error of the CTF stays below 1e-3 up to a phase of about 3,000 radians
    (10 um of defocus at 2 A). Rohou & Grigorieff, J. Struct. Biol. 192, 216 (2015); lecture part 1.
    """
    p = _wide(parameters)
    wavelength = electron_wavelength_angstrom(p.voltage_kv)
    mean = torch.pi * wavelength * (p.defocus_u_angstrom + p.defocus_v_angstrom) / 2
    half = torch.pi * wavelength * (p.defocus_u_angstrom - p.defocus_v_angstrom) / 2
    twice = 2 * torch.deg2rad(p.defocus_angle_deg)
    # pi lambda dz k^2 as a quadratic form: cos(2 (theta - angle)) k^2 = cos(2 angle) (kx^2 - ky^2)
    # + sin(2 angle) 2 kx ky.
    fourth = -0.5 * torch.pi * p.spherical_aberration_mm * _ANGSTROM_PER_MM * wavelength**3
    offset = torch.deg2rad(p.phase_shift_deg) + torch.asin(p.amplitude_contrast)
    xx, yy = kx_per_angstrom**2, ky_per_angstrom**2
    terms = (
        (mean + half * torch.cos(twice), xx),
        (mean - half * torch.cos(twice), yy),
        (2 * half * torch.sin(twice), kx_per_angstrom * ky_per_angstrom),
        (fourth, (xx + yy) ** 2),
    )
    phase = _column(offset, xx).expand(-1, len(xx)).clone()
    for coefficient, sample in terms:
        phase.addcmul_(_column(coefficient, xx), sample)
    value = phase.sin_()
    if bool((parameters.bfactor_angstrom2 != 0).any()):
        value.mul_(torch.exp(_column(p.bfactor_angstrom2, xx) * (xx + yy) * -0.25))
    return value.mul_(_column(p.scale, xx))


def beam_tilt_phase(
    parameters: CTFParameters,
    kx_per_angstrom: Float[Tensor, " J"],
    ky_per_angstrom: Float[Tensor, " J"],
) -> Complex[Tensor, "B J"]:
    """The phase factor that axial coma of a beam tilted by t = (tx, ty) has left on B images; unit
    modulus, and odd in k in its phase.

    phase(k) = exp(-2 pi i Cs lambda^2 k^2 (k . t)),
    t in radians, Cs and lambda in Angstrom, k in 1/A.

    Images carry it: **corrected X = X * conj(phase)**, and a simulated image is C * phase * R. This
    is the sign of RELION's rlnBeamTiltX/Y (mrad). Zhou, Ultramicroscopy 73, 75 (1998); Zivanov,
    Nakane & Scheres, IUCrJ 7, 253 (2020).
    """
    p = _wide(parameters)
    factor = (
        -2e-3
        * torch.pi
        * p.spherical_aberration_mm
        * _ANGSTROM_PER_MM
        * electron_wavelength_angstrom(p.voltage_kv) ** 2
    )
    squared = kx_per_angstrom**2 + ky_per_angstrom**2
    angle = _column(factor * p.beam_tilt_x_mrad, squared) * (squared * kx_per_angstrom)
    angle.addcmul_(_column(factor * p.beam_tilt_y_mrad, squared), squared * ky_per_angstrom)
    return torch.polar(torch.ones_like(angle), angle)


def _wide(parameters: CTFParameters) -> CTFParameters:
    """The B parameters in float64 where the device has it (Apple's MPS does not)."""
    if parameters.voltage_kv.device.type == "mps":
        return parameters
    return CTFParameters(
        **{f.name: getattr(parameters, f.name).double() for f in fields(parameters)}
    )


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1) in the dtype of the samples."""
    return values.to(like.dtype)[:, None]
