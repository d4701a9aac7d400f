"""A refinement about another centre: poses, map and mask laid about it before anything starts."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import Alignment
from halfmap.errors import InputError
from halfmap.particles import Particles
from halfmap.so3 import euler_to_matrix
from halfmap.symmetries import point_group

_OFF_AXIS_PX = 0.05  # how far symmetry may move a centre that lies on its axes, but for rounding


def laid_about(
    centre_angstrom: tuple[float, float, float], particles: Particles, groups: list[str]
) -> tuple[Particles, Alignment]:
    """Particles whose origins are about the point `centre_angstrom` (x, y, z from the centre of
    their map), and what lays maps about it.

    `t' = t - (A c)_xy`, `V'(x) = V(x + c)`.

    Raises:
        InputError: the point lies outside the box, or the operators of a group move it.
    """
    pixel = particles.pixel_size_angstrom
    centre = torch.tensor(centre_angstrom, dtype=torch.float64) / pixel
    named = "--centre " + " ".join(f"{c:g}" for c in centre_angstrom)
    if not bool((centre.abs() < particles.box / 2).all()):
        half = particles.box * pixel / 2
        raise InputError(f"{named}: expected a point of the map, less than {half:.4g} A each way")
    for group in groups:
        moved = point_group(group).rotations.double() @ centre - centre
        if float(moved.norm(dim=1).max()) > _OFF_AXIS_PX:
            raise InputError(
                f"{named}: is not on the axes of {group}, which go through the centre of the map; "
                "expected a point that the symmetry leaves where it is, or C1"
            )
    laid = Alignment(torch.eye(3, dtype=torch.float64), centre, False, 1.0)
    rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg))
    shift_px = torch.from_numpy(particles.shift_angstrom / pixel)
    _, shift_px = laid.apply_to_poses(rotations.double(), shift_px.double())
    return particles.with_results(shift_angstrom=shift_px.numpy() * pixel), laid


def mask_about(laid: Alignment, mask: Float[Tensor, "N N N"]) -> Float[Tensor, "N N N"]:
    """The mask moved with its map, values 0 to 1.

    Raises:
        InputError: nothing of it is left in the box.
    """
    moved = laid.apply_to_map(mask).clamp(0, 1)
    if not bool((moved > 0.5).any()):
        raise InputError("--mask: is outside of the box once the map lies about the new --centre")
    return moved
