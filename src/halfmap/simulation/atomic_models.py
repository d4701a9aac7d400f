"""Electrostatic potential of an atomic model on a voxel grid, exact up to Nyquist.

V(r) = c sum_a occ_a integral f_a(s) exp(-B_a s^2 / 4) exp(2 pi i s.(r - r_a)) ds,
c = h^2 / (2 pi m e) = 47.878 V A^2

with the electron scattering factors f (in A) of the International Tables vol. C, table 4.3.2.2, as
five Gaussians (from gemmi). The sum is evaluated in Fourier space by a non-uniform FFT of the
positions, so that no atom is ever sampled coarsely: the map is the band-limited potential at any
voxel size.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import finufft
import gemmi
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.errors import InputError

VOLT_SQUARE_ANGSTROM = 47.87801  # h^2 / (2 pi m_e e)
EDGE_SHELLS = 3  # width of the cosine edge that ends at the resolution limit


@dataclass(frozen=True)
class Atoms:
    """Atoms in an orthogonal frame: positions `(M, 3)` in A (x, y, z), element symbols `(M,)`, B in
    A^2 `(M,)`, occupancies `(M,)`."""

    positions: np.ndarray
    elements: np.ndarray
    bfactors: np.ndarray
    occupancies: np.ndarray

    def radius_angstrom(self) -> float:
        """Distance of the farthest atom from the origin, A."""
        return float(np.sqrt((self.positions**2).sum(axis=1).max()))

    def centre_of_mass(self) -> np.ndarray:
        """Mean position weighted by atomic mass and occupancy, A, `(3,)`."""
        mass = np.array([gemmi.Element(str(e)).weight for e in self.elements]) * self.occupancies
        return mass @ self.positions / mass.sum()

    def centred(self) -> "Atoms":
        """The same atoms with their centre of mass at the origin."""
        return replace(self, positions=self.positions - self.centre_of_mass())


def read_atoms(path: str | Path) -> Atoms:
    """All atoms of the first model of a PDB or mmCIF file (or gzipped), alternate conformations by
    their occupancies.

    Raises InputError when the file cannot be read, holds no atom, or holds an element without
    electron scattering factors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a PDB or mmCIF model")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{path}: not a PDB or mmCIF model that gemmi can read ({' '.join(str(error).split())})"
        ) from None
    atoms = [site.atom for site in structure[0].all()] if len(structure) else []
    if not atoms:
        raise InputError(
            f"{path}: the model holds no atoms; expected PDB ATOM records or an mmCIF _atom_site "
            "table"
        )
    for atom in atoms:
        if atom.element.c4322 is None or atom.element == gemmi.Element(
            "X"
        ):  # gemmi gives an unknown element oxygen's
            raise InputError(
                f"{path}: atom serial {atom.serial} has element {atom.element.name!r}, which has "
                "no electron scattering factors"
            )
    return Atoms(
        positions=np.array([atom.pos.tolist() for atom in atoms]),
        elements=np.array([atom.element.name for atom in atoms]),
        bfactors=np.array([atom.b_iso for atom in atoms], dtype=float),
        occupancies=np.array([atom.occ for atom in atoms], dtype=float),
    )


def scattering_factor(element: str, s_squared: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """f(s) = sum_j a_j exp(-b_j s^2 / 4), A, of a neutral atom at spatial frequency s (1/A).
    Source: Int. Tables C, 4.3.2.2."""
    table = gemmi.Element(element).c4322
    return sum(
        (a * torch.exp(-b / 4 * s_squared) for a, b in zip(table.a, table.b, strict=True)),
        torch.zeros_like(s_squared),
    )


def density_from_atoms(
    atoms: Atoms,
    *,
    box: int,
    pixel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    threads: int = 1,
) -> Float[Tensor, "N N N"]:
    """Potential in volts on a `(box, box, box)` grid `[z, y, x]` with the coordinates' origin at
    voxel box // 2.

    Frequencies at and above the limit (`resolution_angstrom`, or Nyquist) are zero, after a cosine
    edge of three shells. The factor exp(-B s^2 / 4) is interpolated in B at a few Chebyshev nodes
    (error below 1e-5), one non-uniform FFT each.

    Raises InputError when an atom is farther than half the box from the origin: some projection
    would not hold it.
    """
    extent = box * pixel_size_angstrom
    radius = atoms.radius_angstrom()
    if radius > extent / 2:
        need = 2 * math.ceil(radius / pixel_size_angstrom)
        raise InputError(
            f"box: {box} pixels of {pixel_size_angstrom:g} A hold {extent / 2:.1f} A around the "
            f"centre, but an atom lies {radius:.1f} A "
            f"from it; use a box of at least {need}"
        )
    limit = min(resolution_shell(box, pixel_size_angstrom, resolution_angstrom), box / 2)
    k = torch.arange(box, dtype=torch.float32) - box // 2
    k_squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2
    s_squared = k_squared / extent**2
    points = (2 * math.pi / extent * atoms.positions).astype(np.float32)
    nodes, node_weights = _chebyshev(atoms.bfactors, (limit / extent) ** 2 / 4)

    transform = torch.zeros((box, box, box), dtype=torch.complex64)
    for element in sorted(set(atoms.elements.tolist())):
        chosen = atoms.elements == element
        z, y, x = (np.ascontiguousarray(points[chosen, axis]) for axis in (2, 1, 0))
        factor = scattering_factor(element, s_squared)
        for node, weights in zip(nodes, node_weights, strict=True):
            strength = (weights * atoms.occupancies)[chosen].astype(np.complex64)
            modes = finufft.nufft3d1(
                z,
                y,
                x,
                strength,
                (box, box, box),
                eps=3e-5,
                isign=-1,
                upsampfac=1.25,
                nthreads=threads,
            )
            transform += torch.from_numpy(modes) * (factor * torch.exp(-node / 4 * s_squared))
    edge = ((limit - torch.sqrt(k_squared)) / min(EDGE_SHELLS, limit)).clamp(0, 1)
    transform *= 0.5 - 0.5 * torch.cos(math.pi * edge)
    volume = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(transform))).real
    return volume * (VOLT_SQUARE_ANGSTROM / pixel_size_angstrom**3)


def density_from_model(
    path: str | Path,
    *,
    box: int,
    pixel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    bfactor: float | None = None,
    centre: bool = True,
) -> Float[Tensor, "N N N"]:
    """Potential (V) of a PDB or mmCIF model, its centre of mass on voxel box // 2.

    bfactor: A^2, one value for every atom; None takes each atom's own. `centre=False` keeps the
    coordinates' origin there instead. Raises InputError for an unreadable model or one that the box
    does not hold. See `density_from_atoms`.
    """
    atoms = read_atoms(path)
    atoms = atoms.centred() if centre else atoms
    if bfactor is not None:
        atoms = replace(atoms, bfactors=np.full_like(atoms.bfactors, bfactor))
    return density_from_atoms(
        atoms,
        box=box,
        pixel_size_angstrom=pixel_size_angstrom,
        resolution_angstrom=resolution_angstrom,
    )


def resolution_shell(
    box: int, pixel_size_angstrom: float, resolution_angstrom: float | None
) -> float:
    """Radius in Fourier pixels of a resolution; None is Nyquist."""
    return (
        box / 2 if resolution_angstrom is None else box * pixel_size_angstrom / resolution_angstrom
    )


def _chebyshev(bfactors: np.ndarray, quarter_s_squared: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `(Q,)` and Lagrange weights `(Q, M)` with exp(-B x) ~ sum_q weights_q(B) exp(-node_q x)
    for every x <= quarter_s_squared.

    On an interval of half-width h the error of Q Chebyshev nodes is at most 2 (h x / 2)^Q / Q!.
    """
    low, high = float(bfactors.min()), float(bfactors.max())
    half = (high - low) / 2 * quarter_s_squared
    count = 1
    while 2 * (half / 2) ** count / math.factorial(count) > 1e-5:
        count += 1
    unit = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    t = (bfactors - (low + high) / 2) / max((high - low) / 2, 1e-12)
    weights = np.ones((count, len(bfactors)))
    for q in range(count):
        for other in range(count):
            if other != q:
                weights[q] *= (t - unit[other]) / (unit[q] - unit[other])
    return (low + high) / 2 + unit * (high - low) / 2, weights
