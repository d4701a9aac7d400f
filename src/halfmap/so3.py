"""Rotations and grids of orientations.

A rotation matrix A (3, 3) takes object to view coordinates (RELION): A = Z(psi) Y(tilt) Z(rot) as
changes of axes. Its third row is the viewing direction in object coordinates. The symmetry mates of
A are A S (`symmetries.py`). Vectors are x, y, z.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.symmetries import asymmetric_unit

# Crowther's rule for the resolution d that a step of angles allows, d = D step, is for the rim of a
# particle of diameter D. The mass of a ball lies sqrt(2/5) of its radius from an axis (root mean
# square): d can be sqrt(5/2) = 1.58 times finer before that mass moves as far.
OVERLAP = 1.6

# --- conversions ----------------------------------------------------------------------------------


@takes_arrays
def euler_to_matrix(rot_tilt_psi_deg: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """A of RELION's ZYZ Euler angles (rlnAngleRot, Tilt, Psi) in degrees. Heymann, Chagoyen &
    Belnap, J. Struct. Biol. 151, 196 (2005).

    >>> a = euler_to_matrix(torch.tensor([0.0, 90.0, 0.0]))
    >>> [round(float(x), 4) for x in a[2]]  # the viewing direction, in the object: along x
    [1.0, 0.0, -0.0]
    """
    rot, tilt, psi = torch.deg2rad(rot_tilt_psi_deg).unbind(-1)
    ca, sa, cb, sb, cg, sg = rot.cos(), rot.sin(), tilt.cos(), tilt.sin(), psi.cos(), psi.sin()
    rows = [
        torch.stack([cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb], -1),
        torch.stack([-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb], -1),
        torch.stack([sb * ca, sb * sa, cb], -1),
    ]
    return torch.stack(rows, -2)


@takes_arrays
def matrix_to_euler(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Euler angles (rot, tilt, psi) in degrees, tilt in 0..180, rot and psi in -180..180.

    At the poles only rot + psi or rot - psi is defined; rot then comes out arbitrary (0 at the
    exact pole) and psi is taken relative to it, from A (-sin rot, cos rot, 0) = (sin psi, cos psi,
    0), so the matrix of the angles is A to rounding everywhere.

    >>> angles = torch.tensor([30.0, 60.0, -10.0], dtype=torch.float64)
    >>> torch.allclose(matrix_to_euler(euler_to_matrix(angles)), angles)
    True
    """
    x, y, z = rotations[..., 2, :].unbind(-1)
    rot = torch.atan2(y, x)
    tilt = torch.atan2(torch.hypot(x, y), z)
    sine_psi, cosine_psi = (
        rotations[..., :2, 1] * rot.cos()[..., None] - rotations[..., :2, 0] * rot.sin()[..., None]
    ).unbind(-1)
    return torch.rad2deg(torch.stack([rot, tilt, torch.atan2(sine_psi, cosine_psi)], -1))


@takes_arrays
def rotation_2d(psi_deg: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 2 2"]:
    """The in-plane A (2, 2): the upper left block of `euler_to_matrix` at rot = tilt = 0."""
    c, s = torch.cos(torch.deg2rad(psi_deg)), torch.sin(torch.deg2rad(psi_deg))
    return torch.stack([torch.stack([c, s], -1), torch.stack([-s, c], -1)], -2)


@takes_arrays
def rotation_vector_to_matrix(vector_rad: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """exp of the cross-product matrix of v (axis times angle in radians), by Rodrigues;
    differentiable at v = 0."""
    cross = _cross_product_matrix(vector_rad)
    turns = torch.sqrt((vector_rad**2).sum(-1).clamp_min(1e-30))[..., None, None] / torch.pi
    eye = torch.eye(3, dtype=vector_rad.dtype, device=vector_rad.device)
    return (
        eye + torch.sinc(turns) * cross + 0.5 * torch.sinc(turns / 2) ** 2 * compose(cross, cross)
    )


@takes_arrays
def matrix_to_rotation_vector(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Axis times angle in radians, angle in 0..pi, through the unit quaternion q: accurate at 0 and
    at 180 degrees.

    The rows of the matrix 4 q q^T are all multiples of q; the one with the largest diagonal loses
    no digits.
    """
    (a, b, c), (d, e, f), (g, h, i) = ([*row.unbind(-1)] for row in rotations.unbind(-2))
    outer = [1 + a + e + i, h - f, c - g, d - b]
    outer += [h - f, 1 + a - e - i, b + d, c + g]
    outer += [c - g, b + d, 1 - a + e - i, f + h]
    outer += [d - b, c + g, f + h, 1 - a - e + i]
    table = torch.stack(outer, -1).unflatten(-1, (4, 4))
    best = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = torch.take_along_dim(table, best[..., None, None], dim=-2).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    q = torch.where(q[..., :1] < 0, -q, q)
    sine = q[..., 1:].norm(dim=-1, keepdim=True)
    angle_over_sine = torch.where(
        sine > 1e-12, 2 * torch.atan2(sine, q[..., :1]) / sine.clamp_min(1e-12), 2.0
    )
    return q[..., 1:] * angle_over_sine


@takes_arrays
def compose(
    a: Float[Tensor, "*#batch n n"], b: Float[Tensor, "*#batch n n"]
) -> Float[Tensor, "*#batch n n"]:
    """The matrix product A B of small matrices in full precision: `@` may run in bfloat16 or TF32
    where the search asks for it."""
    product = a[..., :, 0, None] * b[..., None, 0, :]
    for k in range(1, a.shape[-1]):
        product = product + a[..., :, k, None] * b[..., None, k, :]
    return product


def _cross_product_matrix(v: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


# --- distances and random rotations ---------------------------------------------------------------


@takes_arrays
def angular_distance_deg(
    a: Float[Tensor, "*#batch 3 3"],
    b: Float[Tensor, "*#batch 3 3"],
    *,
    symmetry: Float[Tensor, "G 3 3"] | None = None,
) -> Float[Tensor, "*#batch"]:
    """Angle of the rotation that takes A to B, degrees: |A - B|_F = 2 sqrt(2) sin(angle / 2); with
    `symmetry`, the least over A S.

    >>> a, b = euler_to_matrix(torch.tensor([[0.0, 0.0, 0.0], [0.0, 30.0, 0.0]])).double()
    >>> round(float(angular_distance_deg(a, b)), 4)
    30.0
    """
    mates = [a] if symmetry is None else [compose(a, s) for s in symmetry.to(a)]
    squared = torch.stack([((mate - b) ** 2).sum((-2, -1)) for mate in mates]).amin(0)
    return torch.rad2deg(2 * torch.asin(torch.sqrt(squared / 8).clamp_max(1)))


def random_rotations(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 3"]:
    """n rotations uniform on SO(3), float32: unit quaternions uniform on the sphere. Shoemake,
    Graphics Gems III, 124 (1992).

    >>> rotations = random_rotations(3, torch.Generator().manual_seed(1))
    >>> torch.allclose(rotations @ rotations.mT, torch.eye(3), atol=1e-6)
    True
    """
    q = torch.randn(n, 4, generator=generator, device=generator.device, dtype=torch.float32)
    w, v = (q / q.norm(dim=1, keepdim=True)).split([1, 3], dim=1)
    sine = v.norm(dim=1, keepdim=True)
    return rotation_vector_to_matrix(v / sine * 2 * torch.atan2(sine, w))


# --- grids of orientations ------------------------------------------------------------------------


@dataclass(frozen=True)
class OrientationGrid:
    """M cells of equal volume on SO(3), each given by the rotation at its centre."""

    order: int
    step_deg: float
    cell_id: Int[Tensor, " M"]
    rotations: Float[Tensor, "M 3 3"]


@takes_arrays
def orientation_grid(
    order: int,
    symmetry_matrices: Float[Tensor, "G 3 3"] | None = None,
    *,
    perturbation: Float[Tensor, "3 3"] | None = None,
) -> OrientationGrid:
    """HEALPix directions x in-plane angles: 12 4^o directions, 6 2^o angles, step 60 / 2^o degrees
    (order 2: 4608 cells of 15 degrees).

    Cell `direction * 6 2^o + psi` in HEALPix's nested order, so that cells subdivide (`children`).
    With a symmetry group, about one direction of each set of mates remains. `perturbation` P turns
    the whole grid: A P. Yershova et al., Int. J. Robotics Research 29, 801 (2010); RELION uses the
    same counts.

    >>> len(orientation_grid(2).rotations)  # 192 directions x 24 in-plane angles, 15 degrees apart
    4608
    """
    directions = (
        torch.arange(12 * 4**order)
        if symmetry_matrices is None
        else _distinct_directions(order, symmetry_matrices)
    )
    cell_id = (directions[:, None] * _psi_count(order) + torch.arange(_psi_count(order))).flatten()
    return OrientationGrid(
        order,
        grid_step_deg(order),
        cell_id,
        rotations_of(cell_id, order, perturbation=perturbation),
    )


@takes_arrays
def rotations_of(
    cell_id: Int[Tensor, "*M"], order: int, *, perturbation: Float[Tensor, "3 3"] | None = None
) -> Float[Tensor, "*M 3 3"]:
    """Centres of cells, float32, on the device of `cell_id`: A = Z(psi) F(direction), see
    `_frames`."""
    n_psi, cells = _psi_count(order), cell_id.cpu()
    pixels = cells // n_psi
    in_plane = torch.zeros(*cells.shape, 3, dtype=torch.float64)
    in_plane[..., 2] = (cells % n_psi + 0.5) * grid_step_deg(order) - 180
    rotations = compose(
        euler_to_matrix(in_plane), _frames(_direction_vectors(pixels, order), pixels // 4**order)
    )
    if perturbation is not None:
        rotations = compose(rotations, perturbation.cpu().double())
    return rotations.float().to(cell_id.device)


@takes_arrays
def children(cell_id: Int[Tensor, " M"], order: int) -> Int[Tensor, "M 8"]:
    """The 8 cells of `order` + 1 (4 directions x 2 angles) that make up each cell of `order`."""
    n_psi = _psi_count(order)
    direction, psi = cell_id // n_psi, cell_id % n_psi
    child = torch.arange(8, device=cell_id.device)
    return (4 * direction[:, None] + child // 2) * (2 * n_psi) + 2 * psi[:, None] + child % 2


@takes_arrays
def parent(cell_id: Int[Tensor, "*M"], order: int) -> Int[Tensor, "*M"]:
    """The cell of `order` - 1 that holds each cell of `order`."""
    n_psi = _psi_count(order)
    return (cell_id // n_psi // 4) * (n_psi // 2) + cell_id % n_psi // 2


@takes_arrays
def cell_of(rotations: Float[Tensor, "*M 3 3"], order: int) -> Int[Tensor, "*M"]:
    """The cell of the unperturbed grid that holds each rotation; for a grid turned by P, ask for A
    P^T."""
    a = rotations.detach().cpu().double()
    n_psi = _psi_count(order)
    pixels = _pixels(a[..., 2, :], order)
    in_plane = compose(a, _frames(a[..., 2, :], pixels // 4**order).mT)
    psi = torch.rad2deg(torch.atan2(in_plane[..., 0, 1], in_plane[..., 0, 0])) + 180
    return (pixels * n_psi + (psi / grid_step_deg(order)).long() % n_psi).to(rotations.device)


@takes_arrays
def direction_pixels(rotations: Float[Tensor, "*M 3 3"], order: int) -> Int[Tensor, "*M"]:
    """The HEALPix pixel (nested) that holds each rotation's viewing direction, its third row: `cell
    // (6 2^o)` of `cell_of`.

    >>> direction_pixels(torch.eye(3)[None], 0)  # along z: one of the four around the pole
    tensor([0])
    """
    return _pixels(rotations.detach()[..., 2, :].cpu().double(), order).to(rotations.device)


def grid_step_deg(order: int) -> float:
    """Angle between neighbouring in-plane angles, and about that between neighbouring directions:
    60 / 2^o."""
    return 60 / 2**order


def radius_of_step(step_deg: float, box: int, particle_radius_px: float) -> int:
    """Shells that a grid of this step can resolve: `OVERLAP N / (D step)`, D the particle's
    diameter in pixels and the step in radians (Crowther, DeRosier and Klug, Proc. R. Soc. A 317,
    319 (1970), where the overlap is 1)."""
    return math.ceil(OVERLAP * box / (2 * particle_radius_px) / math.radians(step_deg))


def cell_fraction(order: int) -> float:
    """Share of SO(3) in one cell; all cells are equal."""
    return 1 / (12 * 4**order * _psi_count(order))


def grid_perturbation(step_deg: float, generator: torch.Generator) -> Float[Tensor, "3 3"]:
    """A random rotation by at most half a step, to turn a grid between iterations so that no
    orientation is favoured."""
    v = torch.randn(3, generator=generator, device=generator.device)
    radius = (
        torch.rand(1, generator=generator, device=generator.device) ** (1 / 3)
        * math.radians(step_deg)
        / 2
    )
    return rotation_vector_to_matrix(v / v.norm() * radius)


def in_plane_grid(step_deg: float) -> Float[Tensor, " n"]:
    """In-plane angles 0, s, 2 s ... < 360 in degrees, with s the largest step up to `step_deg` that
    divides the circle."""
    if not (math.isfinite(step_deg) and 0 < step_deg <= 360):
        raise InputError(
            f"argument angular step: expected degrees above 0 and up to 360, found {step_deg}; 5 "
            "to 10 suits most 2D work"
        )
    n = math.ceil(360 / step_deg - 1e-9)
    return torch.arange(n, dtype=torch.float32) * (360 / n)


def _psi_count(order: int) -> int:
    return 6 * 2**order


def _distinct_directions(order: int, matrices: Float[Tensor, "G 3 3"]) -> Int[Tensor, " M"]:
    """HEALPix pixels such that each pixel, or one that holds a mate of its centre, is among them.

    These are the pixels with their centres in the asymmetric unit, and a few along its edge: the
    mates of a grid point are not grid points, and a unit as narrow as that of C99 holds few or no
    centres at all.
    """
    d = _direction_vectors(torch.arange(12 * 4**order), order)
    mates = torch.einsum("gji,mj->mgi", matrices.cpu().double(), d)
    mate_pixels = _pixels(mates, order)
    keep = asymmetric_unit(d, matrices.cpu())
    for pixel in torch.nonzero(~keep[mate_pixels].any(1)).flatten().tolist():
        if not keep[mate_pixels[pixel]].any():
            keep[pixel] = True
    return torch.nonzero(keep).flatten()


def _pixels(directions: Float[Tensor, "*M 3"], order: int) -> Int[Tensor, "*M"]:
    """HEALPix pixel in nested order that holds each direction (float64, on the CPU)."""
    from astropy_healpix import xyz_to_healpix  # imports astropy, 0.3 s

    return torch.as_tensor(
        xyz_to_healpix(*np.moveaxis(directions.numpy(), -1, 0), 2**order, order="nested")
    )


def _frames(
    directions: Float[Tensor, "*M 3"], base_pixels: Int[Tensor, "*M"]
) -> Float[Tensor, "*M 3 3"]:
    """F(d) with third row d: the frame of the nearest of HEALPix's 12 base pixels, carried to d
    along the great circle.

    The zero of psi must vary smoothly inside a cell, or the children of a cell at a pole, whose rot
    differ by up to 45 degrees, would not lie together. No choice is smooth on the whole sphere; one
    for each base pixel is smooth within every cell of every order.
    """
    centres = _direction_vectors(torch.arange(12), 0)
    euler = torch.rad2deg(
        torch.stack(
            [torch.atan2(centres[:, 1], centres[:, 0]), torch.acos(centres[:, 2]), torch.zeros(12)],
            -1,
        )
    )
    c = centres[base_pixels]
    cross = _cross_product_matrix(torch.linalg.cross(directions, c))
    cosine = (directions * c).sum(-1)[..., None, None]
    carry = torch.eye(3, dtype=torch.float64) + cross + compose(cross, cross) / (1 + cosine)
    return compose(euler_to_matrix(euler)[base_pixels], carry)


def _direction_vectors(pixels: Int[Tensor, "*M"], order: int) -> Float[Tensor, "*M 3"]:
    """Unit vectors, float64, of HEALPix pixels in nested order (on the CPU). Gorski et al.,
    Astrophys. J. 622, 759 (2005)."""
    from astropy_healpix import healpix_to_xyz  # imports astropy, 0.3 s

    xyz = healpix_to_xyz(pixels.numpy(), 2**order, order="nested")
    return torch.as_tensor(np.stack(xyz, axis=-1))
