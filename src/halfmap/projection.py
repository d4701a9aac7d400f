"""P and its adjoint: central slices of volumes, rotated copies of class images, and their insertion
(Fourier slice theorem).

A reference is transformed once, padded twice, divided beforehand by the interpolation kernel's
transform (sinc^2), and read by trilinear interpolation. 2D references are the same thing with a
flat z axis; see `kernels`.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap import kernels
from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import HalfPlane
from halfmap.gridding import PADDING, grid_to_density, padded_transform

_OUT_OF_PLANE = 1e-4  # that a view may lean out of a class image's plane by rounding


@dataclass(frozen=True)
class FourierReferences:
    """K references on padded Fourier grids, inside a radius; made by `prepare_references`."""

    grid: Complex[Tensor, "K Z Y X"]
    box: int
    radius: int
    dimensions: int

    def __len__(self) -> int:
        return len(self.grid)


# by which frequencies may lie beyond the radius: two padded cells, less what rounding moves
GRID_MARGIN_PX = 0.95


def grid_shape(radius: int, dimensions: int) -> tuple[int, int, int]:
    """(Z, Y, X) of the grid that holds every frequency up to radius, with the interpolation's upper
    neighbours."""
    reach = PADDING * radius + 2
    return (2 * reach + 1 if dimensions == 3 else 2, 2 * reach + 1, reach + 1)


@takes_arrays
def prepare_references(
    references: Float[Tensor, "K N N"] | Float[Tensor, "K N N N"],
    radius: int,
    *,
    box: int | None = None,
) -> FourierReferences:
    """Transforms of K class images (K, N, N) or volumes (K, N, N, N), ready to be sliced up to
    `radius` Fourier pixels. With `box`, that of the images, the same densities sampled more
    coarsely: beyond half of their own box they have nothing.

    >>> from halfmap.simulation.phantom import phantom
    >>> references = prepare_references(phantom(32, 6.0)[None], 10)
    >>> len(references)  # classes
    1

    Raises:
        InputError: another shape: a single volume comes as `volume[None]`.
    """
    dimensions, own_box = references.ndim - 1, references.shape[-1]
    box = box or own_box
    shape = grid_shape(radius, dimensions)
    grid = torch.zeros(len(references), *shape, dtype=torch.complex64, device=references.device)
    reach = min(shape[2] - 1, PADDING * own_box // 2)
    inner = slice((shape[1] - 1) // 2 - reach, (shape[1] - 1) // 2 + reach + 1)
    for k, reference in enumerate(references):
        own = grid[k, inner] if dimensions == 3 else grid[k, 0]
        padded_transform(reference, reach, out=own[..., inner, : reach + 1])
    if own_box < box:
        grid *= (box / own_box) ** dimensions
    return FourierReferences(grid, box, radius, dimensions)


@takes_arrays
def extract_slices(
    references: FourierReferences,
    rotations: Float[Tensor, "M 3 3"],
    plane: HalfPlane,
    *,
    classes: Int[Tensor, " M"] | None = None,
) -> Complex[Tensor, "M J"]:
    """`P_phi A_k`: slices on the half-plane; `F(A^T (kx, ky, 0))` by trilinear interpolation of the
    padded transform.

    >>> from halfmap.fourier import half_plane, inverse_fourier_transform
    >>> from halfmap.simulation.phantom import phantom
    >>> from halfmap.so3 import euler_to_matrix
    >>> plane = half_plane(32, 15)
    >>> views = euler_to_matrix(torch.tensor([[0.0, 0.0, 0.0], [0.0, 90.0, 0.0]]))
    >>> slices = extract_slices(prepare_references(phantom(32, 6.0)[None], 15), views, plane)
    >>> inverse_fourier_transform(slices, plane).shape  # projections along z and along x
    torch.Size([2, 32, 32])

    Lecture: "Reconstruction using the Fourier Slice Theorem". Rotations take object to view
    coordinates (RELION).

    Raises:
        InputError: shapes that do not fit, a plane beyond the references' radius or of another box,
            rotations out of the plane for class images, a class that is not there.
    """
    _check_fit(references, rotations, plane)
    rotations = rotations.to(references.grid.real)
    classes = _classes(classes, rotations)
    kx, ky = plane.kx.float(), plane.ky.float()
    return kernels.slices(references.grid, rotations, classes, kx, ky, padding=PADDING)


def slices_at(
    references: FourierReferences,
    rotations: Float[Tensor, "M 3 3"],
    kx: Float[Tensor, " J"],
    ky: Float[Tensor, " J"],
) -> Complex[Tensor, "M J"]:
    """Slices of the first reference at any frequencies (pixels of the transform), not those of a
    half-plane: `F(A^T (kx, ky, 0))`.

    Raises:
        InputError: frequencies farther beyond the references' radius than their grids reach.
    """
    farthest = float(torch.hypot(kx, ky).amax())
    if farthest > references.radius + GRID_MARGIN_PX:
        raise InputError(
            f"arguments kx, ky: expected frequencies of at most {references.radius} and "
            f"{GRID_MARGIN_PX} pixels, as the references were made for, got {farthest:g}"
        )
    rotations = rotations.to(references.grid.real)
    classes = torch.zeros(len(rotations), dtype=torch.long, device=rotations.device)
    return kernels.slices(references.grid, rotations, classes, kx, ky, padding=PADDING)


def _check_fit(
    grids: "FourierReferences | Sums", rotations: Float[Tensor, "M 3 3"], plane: HalfPlane
) -> None:
    """Refuse slices that would reach out of the grids."""
    if plane.box != grids.box or plane.radius > grids.radius:
        raise InputError(
            f"argument plane: expected a box of {grids.box} and a radius of at most "
            f"{grids.radius}, as the grids were made for, got a box of {plane.box} and a radius of "
            f"{plane.radius}"
        )
    if grids.dimensions == 2 and bool((rotations[:, :2, 2].abs() > _OUT_OF_PLANE).any()):
        raise InputError(
            "argument rotations: expected turns about z alone, for class images of shape "
            f"(K, {grids.box}, {grids.box}), got others; a volume comes as volume[None], of shape "
            f"(1, {grids.box}, {grids.box}, {grids.box})"
        )


def _classes(
    classes: Int[Tensor, " M"] | None, rotations: Float[Tensor, "M 3 3"]
) -> Int[Tensor, " M"]:
    return (
        torch.zeros(len(rotations), dtype=torch.long, device=rotations.device)
        if classes is None
        else classes.to(rotations.device)
    )


@dataclass(frozen=True)
class Sums:
    """The two sums of every method: `num = sum Gamma P^T S^-1 C X / sigma^2`, `den = sum Gamma P^T
    C^2 / sigma^2`, per class. `interpolated` is the share of what is in them that was interpolated
    once more after insertion (`symmetrisation`)."""

    num: Complex[Tensor, "K Z Y X"]
    den: Float[Tensor, "K Z Y X"]
    box: int
    radius: int
    dimensions: int
    interpolated: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return replace(self, num=self.num + other.num, den=self.den + other.den)


def empty_sums(
    n_classes: int, box: int, radius: int, dimensions: int, *, device: torch.device | str = "cpu"
) -> Sums:
    """Sums of nothing.

    >>> sums = empty_sums(2, 32, 10, 3)  # two maps of box 32, up to shell 10
    >>> float(sums.den.sum())
    0.0
    """
    shape = (n_classes, *grid_shape(radius, dimensions))
    num = torch.zeros(shape, dtype=torch.complex64, device=device)
    return Sums(num, torch.zeros(shape, device=device), box, radius, dimensions)


@takes_arrays
def insert_slices(
    sums: Sums,
    values: Complex[Tensor, "M J"],
    weights: Float[Tensor, "M J"],
    rotations: Float[Tensor, "M 3 3"],
    plane: HalfPlane,
    *,
    classes: Int[Tensor, " M"] | None = None,
) -> None:
    """`P^T`: add slices and their weights into the sums, in place; the adjoint of `extract_slices`
    up to `hermitian_mates`.

    The one function here that writes into its argument: the sums of a run are too large to copy for
    every batch.

    >>> from halfmap.fourier import half_plane
    >>> from halfmap.so3 import random_rotations
    >>> plane, sums = half_plane(32, 10), empty_sums(1, 32, 10, 3)
    >>> slices, weights = torch.rand(5, len(plane)).cfloat(), torch.ones(5, len(plane))
    >>> insert_slices(sums, slices, weights, random_rotations(5, torch.Generator()), plane)
    >>> bool(sums.den.sum() > 0)
    True

    Raises:
        InputError: as `extract_slices`.
    """
    _check_fit(sums, rotations, plane)
    rotations = rotations.to(sums.den)
    classes = _classes(classes, rotations)
    kx, ky = plane.kx.float(), plane.ky.float()
    half = plane.hermitian_weight / 2  # k = 0 is its own mate and enters once
    values, weights = (values * half).to(sums.num), (weights * half).to(sums.den)
    grids = (sums.num, sums.den)
    kernels.insert(*grids, values, weights, rotations, classes, kx, ky, padding=PADDING)


def hermitian_mates(sums: Sums) -> Sums:
    """Add the mates (-k, conjugate) that fall on the stored half, those of the plane x = 0, in
    place. Apply once, after all insertions.

    >>> sums = empty_sums(1, 8, 2, 2)
    >>> sums.den[0, 0, 3, 0] = 1.0  # kx = 0, ky = 1
    >>> float(hermitian_mates(sums).den.sum())  # and ky = -1
    2.0
    """
    mirror = (1, 2) if sums.dimensions == 3 else (2,)
    sums.num[..., 0] += sums.num[..., 0].flip(mirror).conj()
    sums.den[..., 0] += sums.den[..., 0].flip(mirror)
    return sums


@takes_arrays
def backproject(
    values: Complex[Tensor, "M J"],
    rotations: Float[Tensor, "M 3 3"],
    plane: HalfPlane,
    *,
    dimensions: int,
) -> Float[Tensor, "..."]:
    """`P^T u` in real space, the exact adjoint of `extract_slices(prepare_references(v))` under the
    whole-plane inner product.

    `<P v, u> = sum_j w_j Re(conj(u_j) (P v)_j)` with w the half-plane weights equals `sum_n v_n
    (P^T u)_n`.
    """
    sums = empty_sums(1, plane.box, plane.radius, dimensions, device=values.device)
    insert_slices(sums, values, torch.zeros_like(values.real), rotations, plane)
    mated = hermitian_mates(sums)
    density = grid_to_density(mated.num[0], plane.box, dimensions)
    return density * math.prod([PADDING * plane.box] * dimensions)
