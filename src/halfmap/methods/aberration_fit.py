"""Steps of CTF refinement: from what a pass over the images has summed to new parameters of their
transfer functions.

Aberrations are terms of the phase, in the units of their columns: astigmatism
`pi lambda (a_1 (kx^2 - ky^2) + a_2 2 kx ky)`, spherical aberration `-pi/2 Cs lambda^3 k^4`, beam
tilt `-2 pi Cs lambda^2 k^2 (k . t)`. What images cannot tell from a change of pose is fitted with it
and given back to the poses: a shift is a phase `2 pi k . s` beside that of a beam tilt.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.ctf_parameters import CTFParameters
from halfmap.methods.ctf_refinement import EvenTerms, OddTerms
from halfmap.methods.phase_errors import best_start, even_evidence, fit_phase, odd_evidence
from halfmap.transfer_function import electron_wavelength_angstrom

START_STEP_RAD = 1.0  # of the phase at the last shell, between trial coefficients
MOST_STARTS = 21  # along a coefficient
ANGSTROM_PER_MM = 1e7
MRAD = 1e-3

Frequencies = tuple[Float[Tensor, " J"], Float[Tensor, " J"]]


def with_defocus_change(transfer: CTFParameters, change_angstrom: np.ndarray) -> CTFParameters:
    """Both defoci of every particle moved by the same distance."""
    return replace(
        transfer,
        defocus_u_angstrom=transfer.defocus_u_angstrom + change_angstrom,
        defocus_v_angstrom=transfer.defocus_v_angstrom + change_angstrom,
    )


def refine_astigmatism(
    transfer: CTFParameters,
    terms: EvenTerms,
    group: Int[Tensor, " N"],
    frequencies: Frequencies,
    range_angstrom: float,
) -> CTFParameters:
    """Astigmatism of each group of particles (a micrograph's), and its mean defocus with it."""
    kx, ky = frequencies
    per_angstrom = torch.pi * _wavelength(transfer, group)
    basis = _basis(per_angstrom, (kx**2 - ky**2, 2 * kx * ky, kx**2 + ky**2))
    starts = _starts(basis, (range_angstrom, range_angstrom, 0.0))
    evidence = even_evidence(terms.terms.double())
    u = fit_phase(evidence, basis, best_start(evidence, basis, starts)).numpy()[group.numpy()]
    mean = (transfer.defocus_u_angstrom + transfer.defocus_v_angstrom) / 2 + u[:, 2]
    half = (transfer.defocus_u_angstrom - transfer.defocus_v_angstrom) / 2
    twice = np.radians(2 * transfer.defocus_angle_deg)
    along, across = half * np.cos(twice) + u[:, 0], half * np.sin(twice) + u[:, 1]
    half = np.hypot(along, across)
    return replace(
        transfer,
        defocus_u_angstrom=mean + half,
        defocus_v_angstrom=mean - half,
        defocus_angle_deg=np.degrees(np.arctan2(across, along)) / 2 % 180,
    )


def refine_beam_tilt(
    transfer: CTFParameters,
    terms: OddTerms,
    group: Int[Tensor, " N"],
    frequencies: Frequencies,
    range_mrad: float,
) -> tuple[CTFParameters, np.ndarray]:
    """Beam tilt of each optics group; also the shift (A) of each particle (N, 2) that goes with
    it."""
    kx, ky = frequencies
    wavelength = _wavelength(transfer, group)
    cs = _of_group(transfer.spherical_aberration_mm, group) * ANGSTROM_PER_MM
    squared = kx**2 + ky**2
    coma = _basis(-2 * torch.pi * MRAD * cs * wavelength**2, (squared * kx, squared * ky))
    moved = _basis(torch.full_like(wavelength, -2 * torch.pi), (kx, ky))
    basis = torch.cat([coma, moved], 1)
    evidence = odd_evidence(terms.sums.to(torch.complex128))
    starts = _starts(basis, (range_mrad, range_mrad, 0.0, 0.0))
    u = fit_phase(evidence, basis, best_start(evidence, basis, starts)).numpy()[group.numpy()]
    tilted = replace(
        transfer,
        beam_tilt_x_mrad=transfer.beam_tilt_x_mrad + u[:, 0],
        beam_tilt_y_mrad=transfer.beam_tilt_y_mrad + u[:, 1],
    )
    return tilted, u[:, 2:]


def _of_group(values: np.ndarray, group: Int[Tensor, " N"]) -> Float[Tensor, " G"]:
    """The value of the first particle of each group."""
    first = torch.from_numpy(np.unique(group.numpy(), return_index=True)[1])
    return torch.from_numpy(np.asarray(values, np.float64))[first]


def _wavelength(transfer: CTFParameters, group: Int[Tensor, " N"]) -> Float[Tensor, " G"]:
    return electron_wavelength_angstrom(_of_group(transfer.voltage_kv, group))


def _basis(
    factor: Float[Tensor, " G"], shapes: tuple[Float[Tensor, " J"], ...]
) -> Float[Tensor, "G m J"]:
    return factor[:, None, None] * torch.stack(shapes).double()


def _starts(basis: Float[Tensor, "G m J"], ranges: tuple[float, ...]) -> Float[Tensor, "T m"]:
    """Trial coefficients from -range to range, so dense that the phase changes by no more than
    `START_STEP_RAD` between neighbours, or as dense as `MOST_STARTS` allow."""
    steepest = basis.abs().amax((0, 2))
    axes = []
    for reach, steep in zip(ranges, steepest.tolist(), strict=True):
        steps = min(MOST_STARTS // 2, math.ceil(reach * steep / START_STEP_RAD))
        axes.append(np.linspace(-reach, reach, 2 * steps + 1) if steps else np.zeros(1))
    return torch.from_numpy(np.array(list(itertools.product(*axes))))
