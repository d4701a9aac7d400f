"""Steps of CTF refinement: from what a pass over the images has summed to new parameters of their
transfer functions.

Aberrations are terms of the phase, in the units of their columns: astigmatism
`pi lambda (a_1 (kx^2 - ky^2) + a_2 2 kx ky)`, spherical aberration `-pi/2 Cs lambda^3 k^4`, beam
tilt `-2 pi Cs lambda^2 k^2 (k . t)`. What images cannot tell from a change of pose is fitted with
it and given back to the poses: a shift is a phase `2 pi k . s` beside that of a beam tilt.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.ctf_parameters import CTFParameters
from halfmap.methods.ctf_statistics import EvenTerms, MagnificationTerms, OddTerms
from halfmap.methods.phase_errors import (
    Evidence,
    best_start,
    even_evidence,
    fit_phase,
    gain,
    is_more_than_noise,
    odd_evidence,
)
from halfmap.transfer_function import electron_wavelength_angstrom, zernike_terms

START_STEP_RAD = 1.0  # of the phase at the last shell, between trial coefficients
MOST_STARTS = 21  # along a coefficient
ANGSTROM_PER_MM = 1e7
MRAD = 1e-3
TILT_RANGE_MRAD = 2.0  # within which a beam tilt is looked for; microscopes are aligned to less
LEAST_CURVATURE = 0.1  # of a magnification's, as share of Gauss and Newton's
# of the odd Zernike polynomials trefoil are (-3, 3) and (3, 3), of the even ones tetrafoil (-4, 4)
# and (4, 4): `transfer_function.zernike_terms`
ODD_COEFFICIENTS, TREFOIL = 6, (2, 5)
EVEN_COEFFICIENTS, TETRAFOIL = 9, (4, 8)

Frequencies = tuple[Float[Tensor, " J"], Float[Tensor, " J"]]


def mean_defocus(transfer: CTFParameters) -> np.ndarray:
    """`(U + V) / 2` of each particle, Angstrom."""
    return (transfer.defocus_u_angstrom + transfer.defocus_v_angstrom) / 2


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
    *,
    surely: bool = False,
) -> CTFParameters:
    """Astigmatism of each group of particles (a micrograph's), and its mean defocus with it; with
    `surely` the same object where images do not tell them from noise."""
    kx, ky = frequencies
    per_angstrom = torch.pi * _wavelength(transfer, group)
    basis = _basis(per_angstrom, (kx**2 - ky**2, 2 * kx * ky, kx**2 + ky**2))
    ranges = [range_angstrom, range_angstrom, 0.0]
    u = _fitted(even_evidence(terms.terms.double()), basis, ranges, group, surely=surely)
    if not u.any():
        return transfer
    mean = mean_defocus(transfer) + u[:, 2]
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


def refine_odd_aberrations(
    transfer: CTFParameters,
    terms: OddTerms,
    group: Int[Tensor, " N"],
    frequencies: Frequencies,
    *,
    beam_tilt: bool,
    trefoil: bool,
    surely: bool = False,
) -> tuple[CTFParameters, np.ndarray]:
    """Beam tilt and trefoil of each optics group, those that are asked for; also how far (A) each
    particle (N, 2) then lies from where its pose says. `surely`: as in `refine_astigmatism`."""
    kx, ky = frequencies
    wavelength = _wavelength(transfer, group)
    cs = _of_group(transfer.spherical_aberration_mm, group) * ANGSTROM_PER_MM
    squared = kx**2 + ky**2
    parts = [_basis(torch.full_like(wavelength, -2 * torch.pi), (kx, ky))]
    ranges = [0.0, 0.0]
    if beam_tilt:
        coma = -2 * torch.pi * MRAD * cs * wavelength**2
        parts.append(_basis(coma, (squared * kx, squared * ky)))
        ranges += [TILT_RANGE_MRAD, TILT_RANGE_MRAD]
    if trefoil:
        third = zernike_terms(kx, ky, ODD_COEFFICIENTS, parity=1)[list(TREFOIL)]
        parts.append(_basis(torch.ones_like(wavelength), tuple(third)))
        ranges += [0.0, 0.0]
    evidence, basis = odd_evidence(terms.sums.to(torch.complex128)), torch.cat(parts, 1)
    u = _fitted(evidence, basis, ranges, group, surely=surely)
    new = transfer
    if not u.any():
        return new, u[:, :2]
    if beam_tilt:
        new = replace(
            new,
            beam_tilt_x_mrad=new.beam_tilt_x_mrad + u[:, 2],
            beam_tilt_y_mrad=new.beam_tilt_y_mrad + u[:, 3],
        )
    if trefoil:
        new = replace(
            new, odd_zernike=_added(new.odd_zernike, ODD_COEFFICIENTS, TREFOIL, u[:, -2:])
        )
    return new, u[:, :2]


def refine_even_aberrations(
    transfer: CTFParameters,
    terms: EvenTerms,
    group: Int[Tensor, " N"],
    frequencies: Frequencies,
    *,
    spherical: bool,
    tetrafoil: bool,
    surely: bool = False,
) -> CTFParameters:
    """Spherical aberration and tetrafoil of each optics group, those that are asked for, and what
    its particles' defoci share of them. `surely`: as in `refine_astigmatism`."""
    kx, ky = frequencies
    wavelength = _wavelength(transfer, group)
    squared = kx**2 + ky**2
    parts = [_basis(torch.pi * wavelength, (squared,))]
    if spherical:
        per_mm = -0.5 * torch.pi * ANGSTROM_PER_MM * wavelength**3
        parts.append(_basis(per_mm, (squared**2,)))
    if tetrafoil:
        fourth = zernike_terms(kx, ky, EVEN_COEFFICIENTS, parity=0)[list(TETRAFOIL)]
        parts.append(_basis(-torch.ones_like(wavelength), tuple(fourth)))
    basis = torch.cat(parts, 1)
    evidence, ranges = even_evidence(terms.terms.double()), [0.0] * basis.shape[1]
    u = _fitted(evidence, basis, ranges, group, surely=surely)
    if not u.any():
        return transfer
    new = with_defocus_change(transfer, u[:, 0])
    if spherical:
        cs = new.spherical_aberration_mm + u[:, 1]
        new = replace(new, spherical_aberration_mm=cs)
    if tetrafoil:
        even = _added(new.even_zernike, EVEN_COEFFICIENTS, TETRAFOIL, u[:, -2:])
        new = replace(new, even_zernike=even)
    return new


def refine_magnification(
    transfer: CTFParameters, terms: MagnificationTerms, group: Int[Tensor, " N"]
) -> CTFParameters:
    """Magnification matrix of each optics group: what was taken for k shows `(1 + E) k`, E the step
    that the normal equations give, so that M becomes `(1 + E) M`.

    What all groups share of a change of size or of a turn, the map and the poses follow: images do
    not tell it, and it is left out.
    """
    step = _magnification_step(terms).view(-1, 2, 2)
    share = (terms.images / terms.images.sum())[:, None, None]
    mean = (share * step).sum(0)
    size, turn = mean.diagonal().mean(), (mean[0, 1] - mean[1, 0]) / 2
    one = torch.eye(2, dtype=torch.float64)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    step = one + step - size * one - turn * quarter
    names = ("magnification_xx", "magnification_xy", "magnification_yx", "magnification_yy")
    before = torch.stack([torch.from_numpy(np.asarray(getattr(transfer, n))) for n in names], 1)
    after = (step[group] @ before.view(-1, 2, 2)).flatten(1).numpy()
    return replace(transfer, **{name: after[:, n] for n, name in enumerate(names)})


def _magnification_step(terms: MagnificationTerms) -> Float[Tensor, "G 4"]:
    """`H^-1 g`. H is the curvature measured, relative to that of Gauss and Newton; where it is
    below `LEAST_CURVATURE` of that (noise alone, a start far off), as much as that."""
    size = terms.gauss_newton.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
    damped = terms.gauss_newton + 1e-9 * torch.diag_embed(size)
    root = torch.linalg.cholesky(damped)
    inside = torch.linalg.solve_triangular(root, terms.hessian, upper=False)
    inside = torch.linalg.solve_triangular(root, inside.mT, upper=False)
    value, vector = torch.linalg.eigh((inside + inside.mT) / 2)
    g = torch.linalg.solve_triangular(root, terms.gradient[:, :, None], upper=False)
    along = vector.mT @ g / value.clamp(min=LEAST_CURVATURE)[:, :, None]
    return torch.linalg.solve_triangular(root.mT, vector @ along, upper=True)[:, :, 0]


def _fitted(
    evidence: Evidence,
    basis: Float[Tensor, "G m J"],
    ranges: list[float],
    group: Int[Tensor, " N"],
    *,
    surely: bool,
) -> np.ndarray:
    """The best coefficients of each particle's group, (N, m); with `surely` 0 where those of all
    groups together are no better than noise makes them."""
    u = fit_phase(evidence, basis, best_start(evidence, basis, _starts(basis, ranges)))
    if surely and not is_more_than_noise(gain(evidence, basis, u), u.numel()):
        u = torch.zeros_like(u)
    return u.numpy()[group.numpy()]


def _added(
    coefficients: np.ndarray, least: int, places: tuple[int, int], change: np.ndarray
) -> np.ndarray:
    """Coefficients (N, Z), at least so many, with a change (N, 2) in two of them."""
    width = max(least, coefficients.shape[1])
    new = np.pad(coefficients, ((0, 0), (0, width - coefficients.shape[1])))
    new[:, list(places)] += change
    return new


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


def _starts(basis: Float[Tensor, "G m J"], ranges: list[float]) -> Float[Tensor, "T m"]:
    """Trial coefficients from -range to range, so dense that the phase changes by no more than
    `START_STEP_RAD` between neighbours, or as dense as `MOST_STARTS` allow."""
    steepest = basis.abs().amax((0, 2))
    axes = []
    for reach, steep in zip(ranges, steepest.tolist(), strict=True):
        steps = min(MOST_STARTS // 2, math.ceil(reach * steep / START_STEP_RAD))
        axes.append(np.linspace(-reach, reach, 2 * steps + 1) if steps else np.zeros(1))
    return torch.from_numpy(np.array(list(itertools.product(*axes))))
