"""What the microscope did to each image, as numbers: every parameter of the contrast transfer
function stands once, here.

A further parameter (a dose) is one more field of `CTFParameters` with its unit, default, limits,
RELION column and cryoSPARC field; `io` then reads and writes it, data sets carry it, and
`halfmap.transfer_function.evaluate` is the one place that turns it into numbers per Fourier sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from halfmap.errors import InputError

if TYPE_CHECKING:
    import torch

# a plain number (serves all images), an array (n,) or a tensor (B,)
Column: TypeAlias = Any


@dataclass(frozen=True)
class Limits:
    """What a parameter may be, in words and as a test of an array."""

    expected: str
    allowed: Callable[[np.ndarray], np.ndarray]


FINITE = Limits("a finite number", np.isfinite)
# h / sqrt(2 m e) in Angstrom sqrt(V) and e / (2 m c^2) in 1/V, from the CODATA 2018 constants.
_DE_BROGLIE = 12.264259660
_RELATIVISTIC = 9.78475598e-7


def electron_wavelength_angstrom(voltage_kv: Column) -> Column:
    """Relativistic wavelength of an electron: lambda = h / sqrt(2 m e V (1 + e V / (2 m c^2))), V =
    1000 `voltage_kv`.

    A number, an array or a tensor; Angstrom. Constants are CODATA 2018's; RELION's own are rounded
    and give a wavelength 5e-6 longer, which is as much as 0.1 A in 20,000 A of defocus.
    """
    volt = voltage_kv * 1000
    return _DE_BROGLIE / (volt * (1 + volt * _RELATIVISTIC)) ** 0.5


ABOVE_ZERO = Limits("more than 0", lambda values: np.isfinite(values) & (values > 0))
# What no microscope has: beyond, the unit is another (volts for kV), or a cell is broken.
HIGHEST_VOLTAGE_KV, LARGEST_CS_MM, LARGEST_DEFOCUS_ANGSTROM = 3000, 100, 1e6
LARGEST_PHASE_DEG, LARGEST_BFACTOR_ANGSTROM2 = 1e5, 1e5


def within(largest: float) -> Limits:
    """From minus to plus `largest`."""
    return Limits(f"{-largest:,.0f} to {largest:,.0f}", lambda values: np.abs(values) <= largest)


A_VOLTAGE = Limits(
    f"more than 0 and at most {HIGHEST_VOLTAGE_KV}",
    lambda values: (values > 0) & (values <= HIGHEST_VOLTAGE_KV),
)
A_DEFOCUS, A_CS = within(LARGEST_DEFOCUS_ANGSTROM), within(LARGEST_CS_MM)
A_PHASE, A_BFACTOR = within(LARGEST_PHASE_DEG), within(LARGEST_BFACTOR_ANGSTROM2)
A_SHARE = Limits("a number from 0 to 1", lambda values: (values >= 0) & (values <= 1))


@dataclass(frozen=True)
class Quantity:
    """One parameter: its unit and default, what it may be, and where files keep it.

    `relion` is its column in RELION's tables, `per_group` if RELION keeps it in the optics table.
    `cs` is cryoSPARC's field, `cs_component` the place in a field that is a vector. A CTF is not
    complete without the `required` ones. Of `coefficients` each image has a list, such as those of
    Zernike polynomials: an array `(n, Z)`, a STAR cell `[0.1,0,2]`, and the default 0 is none.
    `geometry` tells that it says where things are in the image, with a CTF or without.
    """

    name: str
    default: float
    unit: str
    relion: str
    cs: str | None = None
    cs_component: int | None = None
    required: bool = False
    per_group: bool = False
    limits: Limits = FINITE
    coefficients: bool = False
    geometry: bool = False


@dataclass(frozen=True, eq=False)
class CTFParameters:
    """Parameters of n images, in the units of their names; `quantities()` tells more of each.

    A field is a number, which serves all images, an array `(n,)` (data sets: float64), or a tensor
    `(B,)` (batches: float32, by `to`). Underfocus is positive, the defocus angle is measured from
    the x axis to the axis of defocus U. `premultiplied` images hold `C X` in place of `X`.
    `odd_zernike` and `even_zernike` are arrays `(n, Z)` of coefficients in RELION's order
    (`transfer_function.zernike_terms`). The image's Fourier sample at q shows the object's slice,
    and the CTF, at M q, with `magnification_xx` ... `_yy` the elements of M.

    >>> optics = CTFParameters(defocus_u_angstrom=15000.0, defocus_v_angstrom=14500.0)
    >>> optics.voltage_kv, optics.spherical_aberration_mm, optics.amplitude_contrast
    (300.0, 2.7, 0.1)

    Raises:
        InputError: fields of different lengths, or of more than one dimension (two for lists of
            coefficients).
    """

    defocus_u_angstrom: Column = field(
        default=0.0,
        metadata={
            "unit": "A",
            "relion": "rlnDefocusU",
            "cs": "ctf/df1_A",
            "required": True,
            "limits": A_DEFOCUS,
        },
    )
    defocus_v_angstrom: Column = field(
        default=0.0,
        metadata={
            "unit": "A",
            "relion": "rlnDefocusV",
            "cs": "ctf/df2_A",
            "required": True,
            "limits": A_DEFOCUS,
        },
    )
    defocus_angle_deg: Column = field(
        default=0.0,
        metadata={
            "unit": "degrees",
            "relion": "rlnDefocusAngle",
            "cs": "ctf/df_angle_rad",
            "required": True,
        },
    )
    voltage_kv: Column = field(
        default=300.0,
        metadata={
            "unit": "kV",
            "relion": "rlnVoltage",
            "cs": "ctf/accel_kv",
            "required": True,
            "per_group": True,
            "limits": A_VOLTAGE,
        },
    )
    spherical_aberration_mm: Column = field(
        default=2.7,
        metadata={
            "unit": "mm",
            "relion": "rlnSphericalAberration",
            "cs": "ctf/cs_mm",
            "required": True,
            "per_group": True,
            "limits": A_CS,
        },
    )
    amplitude_contrast: Column = field(
        default=0.1,
        metadata={
            "unit": "share of 1",
            "relion": "rlnAmplitudeContrast",
            "cs": "ctf/amp_contrast",
            "required": True,
            "per_group": True,
            "limits": A_SHARE,
        },
    )
    phase_shift_deg: Column = field(
        default=0.0,
        metadata={
            "unit": "degrees",
            "relion": "rlnPhaseShift",
            "cs": "ctf/phase_shift_rad",
            "limits": A_PHASE,
        },
    )
    bfactor_angstrom2: Column = field(
        default=0.0,
        metadata={
            "unit": "A^2",
            "relion": "rlnCtfBfactor",
            "cs": "ctf/bfactor",
            "limits": A_BFACTOR,
        },
    )
    scale: Column = field(
        default=1.0, metadata={"unit": "factor", "relion": "rlnCtfScalefactor", "cs": "ctf/scale"}
    )
    beam_tilt_x_mrad: Column = field(
        default=0.0,
        metadata={
            "unit": "mrad",
            "relion": "rlnBeamTiltX",
            "cs": "ctf/tilt_A",
            "cs_component": 0,
            "per_group": True,
        },
    )
    beam_tilt_y_mrad: Column = field(
        default=0.0,
        metadata={
            "unit": "mrad",
            "relion": "rlnBeamTiltY",
            "cs": "ctf/tilt_A",
            "cs_component": 1,
            "per_group": True,
        },
    )
    premultiplied: Column = field(
        default=False,
        metadata={
            "unit": "yes or no",
            "relion": "rlnCtfDataAreCtfPremultiplied",
            "per_group": True,
        },
    )
    odd_zernike: Column = field(
        default=0.0,
        metadata={
            "unit": "rad",
            "relion": "rlnOddZernike",
            "per_group": True,
            "coefficients": True,
        },
    )
    even_zernike: Column = field(
        default=0.0,
        metadata={
            "unit": "rad",
            "relion": "rlnEvenZernike",
            "per_group": True,
            "coefficients": True,
        },
    )
    magnification_xx: Column = field(
        default=1.0,
        metadata={
            "unit": "factor",
            "relion": "rlnMagMat00",
            "per_group": True,
            "limits": ABOVE_ZERO,
            "geometry": True,
        },
    )
    magnification_xy: Column = field(
        default=0.0,
        metadata={
            "unit": "factor",
            "relion": "rlnMagMat01",
            "per_group": True,
            "geometry": True,
        },
    )
    magnification_yx: Column = field(
        default=0.0,
        metadata={
            "unit": "factor",
            "relion": "rlnMagMat10",
            "per_group": True,
            "geometry": True,
        },
    )
    magnification_yy: Column = field(
        default=1.0,
        metadata={
            "unit": "factor",
            "relion": "rlnMagMat11",
            "per_group": True,
            "limits": ABOVE_ZERO,
            "geometry": True,
        },
    )

    def __post_init__(self) -> None:
        for one in quantities():
            value = getattr(self, one.name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, one.name, np.asarray(value, np.float64))
        shapes = {name: tuple(np.shape(value)) for name, value in self._columns() if np.ndim(value)}
        allowed = {name: 2 if QUANTITY[name].coefficients else 1 for name in shapes}
        if len({shape[0] for shape in shapes.values()}) > 1 or any(
            len(shape) != allowed[name] for name, shape in shapes.items()
        ):
            raise InputError(
                "CTF parameters: expected one number for all images or one for each, shapes "
                f"{', '.join(f'{shape} of {name}' for name, shape in shapes.items())} arrived"
            )

    def _columns(self) -> list[tuple[str, Column]]:
        return [(one.name, getattr(self, one.name)) for one in quantities()]

    def __len__(self) -> int:
        """The number of images; 1 where every field is a plain number."""
        return next((len(value) for _, value in self._columns() if np.ndim(value)), 1)

    def take(self, rows: Any) -> CTFParameters:
        """The images at `rows`: integers, a mask, or a slice; numbers that serve all stay."""
        taken = {name: value[rows] for name, value in self._columns() if np.ndim(value)}
        return replace(self, **taken)

    def to(self, device: torch.device | str) -> CTFParameters:
        """Tensors on `device`, one number per image in each; numbers and arrays become float32.

        Raises:
            InputError: a value that cannot be, named by field and row.
        """
        import torch

        n, changed = len(self), {}
        for name, value in self._columns():
            if not isinstance(value, torch.Tensor):
                _check(QUANTITY[name], np.atleast_1d(value), lambda row: f"image {row + 1}")
                wanted = torch.bool if name == "premultiplied" else torch.float32
                value = torch.as_tensor(value).to(wanted)
            if QUANTITY[name].coefficients:
                value = value.expand(n, -1) if value.ndim else value.new_zeros(n, 0)
                changed[name] = value.to(device)
            else:
                changed[name] = value.to(device).expand(n)
        return replace(self, **changed)

    def arrays(self, n: int) -> CTFParameters:
        """Arrays `(n,)` in every field, float64 (bool for `premultiplied`); lists of coefficients
        are `(n, Z)`.

        Raises:
            InputError: the fields hold another number of images.
        """
        if any(np.ndim(value) for _, value in self._columns()) and len(self) != n:
            raise InputError(
                f"CTF parameters: expected one number for each of {n} images, {len(self)} arrived"
            )
        changed = {}
        for name, value in self._columns():
            value = value.detach().cpu().double().numpy() if hasattr(value, "detach") else value
            wanted = bool if name == "premultiplied" else np.float64
            if QUANTITY[name].coefficients:
                changed[name] = np.array(value, wanted) if np.ndim(value) else np.zeros((n, 0))
            else:
                changed[name] = np.broadcast_to(np.asarray(value, wanted), n).copy()
        return replace(self, **changed)

    @property
    def magnification(self) -> np.ndarray | None:
        """M of each image `(n, 2, 2)`, n as in `len`; None where it is 1 in all."""
        values = [
            np.broadcast_to(np.asarray(getattr(self, f"magnification_{at}"), np.float64), len(self))
            for at in ("xx", "xy", "yx", "yy")
        ]
        matrices = np.stack(values, axis=-1).reshape(-1, 2, 2)
        return None if (matrices == np.eye(2)).all() else matrices

    def check(self, where: Callable[[int, str], str]) -> None:
        """Refuse values that cannot be; `where` names the place of a row (from 0) and RELION
        column.

        Raises:
            InputError: naming the first such place.
        """
        for one in quantities():
            values = np.atleast_1d(np.asarray(getattr(self, one.name), np.float64))
            _check(one, values, lambda row, one=one: where(row, one.relion))  # type: ignore[misc]


def _check(one: Quantity, values: np.ndarray, where: Callable[[int], str]) -> None:
    wrong = np.argwhere(~one.limits.allowed(values))
    if len(wrong):
        row, value = int(wrong[0, 0]), values[tuple(wrong[0])]
        raise InputError(
            f"{where(row)}, CTF parameter {one.name}: expected {one.limits.expected} "
            f"({one.unit}), found {value:g}; correct the value or remove the particle"
        )


@cache
def quantities() -> tuple[Quantity, ...]:
    """Every parameter, in the order of the fields of `CTFParameters`."""
    return tuple(
        Quantity(name=one.name, default=getattr(CTFParameters, one.name), **one.metadata)
        for one in fields(CTFParameters)
    )


QUANTITY = {one.name: one for one in quantities()}
# a file has a CTF where it has these columns
DEFOCUS = tuple(one.relion for one in quantities() if one.required and not one.per_group)
PER_GROUP = tuple(one.relion for one in quantities() if one.per_group)
# cells that hold several numbers
LISTS = tuple(one.relion for one in quantities() if one.coefficients)
