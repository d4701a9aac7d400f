"""Aberrations of the microscope between RELION's Zernike coefficients and cryoSPARC's lengths.

RELION adds to the phase of an image, at the frequency k (1/A) of direction phi, coefficients times
Zernike polynomials of k: the odd ones `sin phi k, cos phi k, sin 3phi k^3, sin phi (3 k^3 - 2 k),
cos phi (3 k^3 - 2 k), cos 3phi k^3`, the even ones `1, sin 2phi k^2, 2 k^2 - 1, cos 2phi k^2, sin
4phi k^4, sin 2phi (4 k^4 - 3 k^2), 6 k^4 - 6 k^2 + 1, cos 2phi (4 k^4 - 3 k^2), cos 4phi k^4`; its
beam tilt is coma of the opposite sign. cryoSPARC has lengths in Angstrom, which the wavelength
makes phases of:

    shift_A    -2 pi k (shift . (cos phi, sin phi))
    tilt_A     -2 pi lambda^2 k^3 (tilt . (cos phi, sin phi)), tilt = Cs sin(angle)
    trefoil_A  -2 pi lambda^2 k^3 (trefoil . (cos 3phi, sin 3phi))
    tetra_A    pi/2 lambda^3 times the polynomials cos 4phi, sin 4phi, cos 2phi, sin 2phi of fourth
               order, as the spherical aberration has pi/2 lambda^3 Cs k^4
    anisomag   M - 1, with RELION's M = rlnMagMat00, 01, 10, 11

Tilt and magnification are those of other converters. cryoSPARC does not publish the rule of trefoil
and tetrafoil: what is here follows from that of the tilt, and brings every file back as it was.
"""

import numpy as np

from halfmap.ctf_parameters import electron_wavelength_angstrom
from halfmap.io.cs_files import fields
from halfmap.io.relion import ParticleTables

ODD, EVEN = "rlnOddZernike", "rlnEvenZernike"
MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
USED = (ODD, EVEN, *MAGNIFICATION)
CS_FIELDS = ("ctf/shift_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
# places in RELION's lists
_SHIFT, _TREFOIL, _COMA = [1, 0], [5, 2], [4, 3]
_TETRA = [8, 4, 7, 5]
_N_ODD, _N_EVEN = 6, 9
_UNITY = np.array([1.0, 0.0, 0.0, 1.0])
_ANGSTROM_PER_MM = 1e7
# a share of Cs: what is more is coma that no tilt of a beam makes, of a corrected microscope
_LARGEST_TILT = 0.1


def aberrations_from_cs(data: np.ndarray) -> dict[str, np.ndarray]:
    """RELION's columns, one value a particle, of the fields that are not zero."""
    n, out = len(data), {}
    wavelength = _wavelength(data["ctf/accel_kv"]) if "ctf/accel_kv" in fields(data) else None
    odd, even = np.zeros((n, _N_ODD)), np.zeros((n, _N_EVEN))
    if _is_there(data, "ctf/shift_A"):
        odd[:, _SHIFT] = -2 * np.pi * data["ctf/shift_A"].astype(np.float64)
    if wavelength is not None and _is_there(data, "ctf/tilt_A") and not tilt_is_an_angle(data):
        odd[:, _COMA] = _third(wavelength) * data["ctf/tilt_A"].astype(np.float64) / 3
        odd[:, _SHIFT] += 2 * odd[:, _COMA]  # of 3 k^3 - 2 k the second
    if wavelength is not None and _is_there(data, "ctf/trefoil_A"):
        odd[:, _TREFOIL] = _third(wavelength) * data["ctf/trefoil_A"].astype(np.float64)
    if wavelength is not None and _is_there(data, "ctf/tetra_A"):
        even[:, _TETRA] = _fourth(wavelength) * data["ctf/tetra_A"].astype(np.float64)
    for name, values in ((ODD, odd), (EVEN, even)):
        if values.any():
            cells, row_of = np.unique(values, axis=0, return_inverse=True)
            out[name] = np.array([_cell(row) for row in cells.tolist()], object)[row_of.ravel()]
    if _is_there(data, "ctf/anisomag"):
        matrix = data["ctf/anisomag"].reshape(n, 4).astype(np.float64) + _UNITY
        out |= dict(zip(MAGNIFICATION, np.round(matrix, 9).T, strict=True))
    return out


def tilt_is_an_angle(data: np.ndarray) -> bool:
    """Whether `ctf/tilt_A`, which is Cs sin(tilt), can be told as a tilt of the beam: not where the
    spherical aberration is about 0."""
    if "ctf/cs_mm" not in fields(data):
        return False
    spherical = data["ctf/cs_mm"].astype(np.float64)[:, None] * _ANGSTROM_PER_MM
    return bool((np.abs(data["ctf/tilt_A"]) <= _LARGEST_TILT * np.abs(spherical)).all())


def aberrations_to_cs(
    tables: ParticleTables, voltage_kv: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """cryoSPARC's fields, with zeros where the file has nothing, and what RELION's lists hold for
    which cryoSPARC has no field, as rows by name.

    Coma that is in the list, and not in the columns of the beam tilt, is `ctf/tilt_A` (to be added
    to it) and the shift that goes with it.
    """
    n, wavelength = len(tables.particles), _wavelength(voltage_kv)
    odd, even = _lists(tables, ODD, _N_ODD), _lists(tables, EVEN, _N_EVEN)
    out = {
        "ctf/shift_A": -odd[:, _SHIFT] / (2 * np.pi),
        "ctf/trefoil_A": odd[:, _TREFOIL] / _third(wavelength),
        "ctf/tetra_A": even[:, _TETRA] / _fourth(wavelength),
        "ctf/tilt_A": np.zeros((n, 2)),
    }
    if not any(tables.has(name) for name in TILT):
        coma = odd[:, _COMA]
        out["ctf/tilt_A"] = 3 * coma / _third(wavelength)
        out["ctf/shift_A"] += 2 * coma / (2 * np.pi)
    matrix = [
        tables.floats(name, unity)
        for name, unity in zip(MAGNIFICATION, _UNITY.tolist(), strict=True)
    ]
    out["ctf/anisomag"] = np.stack(matrix, axis=1) - _UNITY
    return out, _without_place(odd, even)


def _without_place(odd: np.ndarray, even: np.ndarray) -> dict[str, int]:
    rest = {
        f"{ODD} beyond the third order": odd[:, _N_ODD:],
        f"{EVEN} but for tetrafoil": np.delete(even, _TETRA, axis=1),
    }
    return {name: int(one.any(axis=1).sum()) for name, one in rest.items() if one.any()}


def _lists(tables: ParticleTables, name: str, least: int) -> np.ndarray:
    """Coefficients of each particle `(n, Z)`, Z the longest list's length, or more if it is short.
    A cell that is no list counts as one of zeros: the CTF's own reader refuses it."""
    in_optics = tables.optics is not None and name in tables.optics
    table = tables.optics if in_optics else tables.particles
    if table is None or name not in table:
        return np.zeros((len(tables.particles), least))
    cells, row_of = np.unique(table.strings(name), return_inverse=True)
    lists = [[_number(w) for w in cell.strip("[] ").split(",") if w.strip()] for cell in cells]
    values = np.zeros((len(lists), max(least, *(len(one) for one in lists))))
    for i, one in enumerate(lists):
        values[i, : len(one)] = one
    rows = values[row_of.ravel()]
    return rows[tables.optics_group] if in_optics else rows


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return 0.0


def _cell(values: list[float]) -> str:
    return f"[{','.join(f'{value:.9g}' for value in values)}]"


def _is_there(data: np.ndarray, name: str) -> bool:
    return name in fields(data) and bool((data[name] != 0).any())


def _wavelength(voltage_kv: np.ndarray) -> np.ndarray:
    """`(n, 1)`; of a voltage that cannot be, which is refused where it is read, not a number."""
    possible = np.where(voltage_kv > 0, voltage_kv.astype(np.float64), np.nan)
    return electron_wavelength_angstrom(possible)[:, None]


def _third(wavelength: np.ndarray) -> np.ndarray:
    return -2 * np.pi * wavelength**2


def _fourth(wavelength: np.ndarray) -> np.ndarray:
    return np.pi / 2 * wavelength**3
