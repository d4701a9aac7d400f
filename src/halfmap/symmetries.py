"""Symmetry operators, point groups in RELION's orientation, and the part of the sphere that one
copy of the molecule needs.

A point group is a tensor S (G, 3, 3) of proper rotations in object coordinates, the identity
first: the poses A and A S give the same view.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError

_GOLDEN = (1 + 5**0.5) / 2
# Generators (axis, order). RELION's axes: C and D n-fold along z, D 2-fold along x; T 3-fold along
# z; O 4-fold along z, y and x; I2 2-fold along z, y, x with 5-folds in the xz plane, I1 is I2
# turned by 90 degrees about z; I3 and I4 5-fold along z, a 2-fold in the xz plane at negative and
# positive x (for positive z).
_POLYHEDRAL: dict[str, list[tuple[tuple[float, float, float], int]]] = {
    "T": [((0, 0, 1), 3), ((0, 2**0.5, 1), 2)],
    "O": [((0, 0, 1), 4), ((1, 1, 1), 3)],
    "I1": [((0, 0, 1), 2), ((0, 1, _GOLDEN), 5)],
    "I2": [((0, 0, 1), 2), ((1, 0, _GOLDEN), 5)],
    "I3": [((0, 0, 1), 5), ((-1, 0, _GOLDEN), 2)],
    "I4": [((0, 0, 1), 5), ((1, 0, _GOLDEN), 2)],
}
_ACCEPTED = "C1 to C99, D1 to D99, T, O, I (the same as I2), I1, I2, I3 or I4"


@dataclass(frozen=True)
class SymmetryOperators:
    """G operators `x -> S x + t` that leave a density as it is, `V(S x + t) = V(x)`; S rotates
    about the centre, t in pixels, x, y, z; the identity first, and with each operator its inverse.

    What is seen at the pose A is then seen at A S as well, moved by -(A t)_xy: `symmetrisation`
    adds them all. A point group has t = 0; a helix has its rise there.
    """

    rotations: Float[Tensor, "G 3 3"]
    translations_px: Float[Tensor, "G 3"]

    def __len__(self) -> int:
        return len(self.rotations)

    @property
    def has_translations(self) -> bool:
        return bool(self.translations_px.any())

    def to(self, device: torch.device | str) -> "SymmetryOperators":
        return SymmetryOperators(self.rotations.to(device), self.translations_px.to(device))

    def identity(self) -> "SymmetryOperators":
        """The identity alone: no symmetry."""
        return SymmetryOperators(self.rotations[:1], self.translations_px[:1])


def rotations_alone(rotations: Float[Tensor, "G 3 3"]) -> SymmetryOperators:
    """Operators of a point group, from its rotations."""
    return SymmetryOperators(rotations, rotations.new_zeros(len(rotations), 3))


def point_group(name: str) -> SymmetryOperators:
    """Operators of a point group by its name, float32; see `symmetry_matrices`.

    >>> len(point_group("C4").rotations)
    4
    """
    return rotations_alone(symmetry_matrices(name).float())


@dataclass(frozen=True)
class Specimen:
    """What is known of the molecule beforehand: its symmetry, and the radius of a sphere that holds
    it, in pixels. A job's `Problem` owns it."""

    symmetry: SymmetryOperators
    radius_px: float


def symmetry_matrices(name: str) -> Float[Tensor, "G 3 3"]:
    """The G rotations of a point group, float64, the identity first; names in any case (c4 is C4).

    Axes are RELION's: see `_POLYHEDRAL`. Groups with mirrors are refused: a molecule has one hand.
    Raises InputError for any other name.

    >>> symmetry_matrices("D7").shape
    torch.Size([14, 3, 3])
    """
    group = name.strip().upper()
    if match := re.fullmatch(r"([CD])0*([1-9]\d?)", group):
        kind, n = match[1], int(match[2])
        cyclic = torch.stack([_rotation((0, 0, 1), 2 * torch.pi * i / n) for i in range(n)])
        return (
            cyclic if kind == "C" else torch.cat([cyclic, cyclic @ _rotation((1, 0, 0), torch.pi)])
        )
    group = "I2" if group == "I" else group
    if group not in _POLYHEDRAL:
        mirrored = re.fullmatch(r"C[SI]|[CD]\d+[HV]|S\d+|T[DH]|OH|I\d?H", group)
        reason = (
            "a group with mirrors, which a molecule of one hand cannot have"
            if mirrored
            else "not a point group"
        )
        raise InputError(
            f"argument symmetry: expected {_ACCEPTED}, found {name!r}, {reason}; choose one of "
            "these, C1 if unsure"
        )
    return _closure([_rotation(axis, 2 * torch.pi / order) for axis, order in _POLYHEDRAL[group]])


@takes_arrays
def expand(
    rotations: Float[Tensor, "M 3 3"], matrices: Float[Tensor, "G 3 3"]
) -> Float[Tensor, "M G 3 3"]:
    """All symmetry mates A S of each rotation A, in the dtype and on the device of the
    rotations."""
    mates = matrices.to(rotations)
    # Three products summed, not a matmul, which may run in reduced precision.
    return torch.stack(
        [rotations[:, None, :, k, None] * mates[:, None, k, :] for k in range(3)]
    ).sum(0)


@takes_arrays
def asymmetric_unit(
    directions: Float[Tensor, "M 3"], matrices: Float[Tensor, "G 3 3"]
) -> Bool[Tensor, " M"]:
    """Which directions lie in the asymmetric unit: one of each orbit S^T d, 1/G of the sphere.

    The unit is the Dirichlet region {d : d.c >= d.(S c) for all S} of a fixed direction c that lies
    far from its own mates, so the region is compact and no regular grid has points on its edge. A
    direction on a rotation axis through the region is kept.
    """
    d, group = directions.double(), matrices.double().to(directions.device)
    centre = _far_from_its_mates(matrices.double().cpu()).to(directions.device)
    own = d @ centre
    keep = torch.ones_like(own, dtype=torch.bool)
    for mate in group @ centre:
        keep &= own >= d @ mate - 1e-9
    return keep


def _far_from_its_mates(matrices: Float[Tensor, "G 3 3"]) -> Float[Tensor, "3"]:
    """Of 400 directions on a golden-angle spiral, the one whose nearest symmetry mate is
    farthest."""
    i = torch.arange(400, dtype=torch.float64)
    z = 1 - (2 * i + 1) / 400
    longitude = i * torch.pi * (3 - 5**0.5)
    radius = torch.sqrt(1 - z**2)
    candidates = torch.stack(
        [radius * torch.cos(longitude), radius * torch.sin(longitude), z], dim=1
    )
    nearest = torch.einsum("ni,gij,nj->ng", candidates, matrices[1:], candidates)
    return candidates[torch.argmin(nearest.amax(1))] if len(matrices) > 1 else candidates[0]


def _rotation(axis: Sequence[float | int], angle_rad: float) -> Float[Tensor, "3 3"]:
    """exp of the cross-product matrix of the unit vector along `axis` times the angle."""
    x, y, z = (
        torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0) * angle_rad
    )
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(
        torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    )


def _closure(generators: list[Tensor]) -> Float[Tensor, "G 3 3"]:
    """All products of the generators, the identity first, in the order they are met."""
    group = [torch.eye(3, dtype=torch.float64)]
    for element in group:  # grows while it is walked
        for generator in generators:
            product = element @ generator
            if not any(torch.allclose(product, known, atol=1e-6) for known in group):
                group.append(product)
    return torch.stack(group)
