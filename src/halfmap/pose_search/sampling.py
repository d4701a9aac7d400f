"""Grids of orientations and shifts: what a global search scores before anything is refined."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.pose_search.refinement import SearchSettings
from halfmap.so3 import (
    cell_fraction,
    children,
    grid_step_deg,
    in_plane_grid,
    orientation_grid,
    radius_of_step,
    rotation_vector_to_matrix,
    rotations_of,
)

# of the outermost shell: half a step off, an eighth of a period, its score is cos(pi / 4)
SHIFTS_PER_PERIOD = 4


@dataclass(frozen=True)
class Grid:
    """Coarse orientations with their numbers in the grid of their order, for each its finer
    children, and the share of all orientations (of symmetry mates together) that a child stands
    for."""

    cell_id: Int[Tensor, " M"]
    coarse: Float[Tensor, "M 3 3"]
    children: Float[Tensor, "M c 3 3"]
    coarse_step_deg: float
    fine_step_deg: float
    child_fraction: float


def search_grid(settings: SearchSettings, dimensions: int) -> Grid:
    """HEALPix directions x in-plane angles in 3D (symmetry-reduced), in-plane angles alone in 2D;
    the coarse step is twice the fine step.

    In 3D the steps are HEALPix's: the coarsest order whose step (60 / 2^order) is not above
    `angular_step_deg`.
    """
    if dimensions == 2:
        n = max(3, math.ceil(360 / (2 * settings.angular_step_deg)))
        step = 360 / n
        coarse = in_plane_grid(step)
        halves = torch.stack([coarse - step / 4, coarse + step / 4], -1)
        return Grid(
            torch.arange(n),
            _about_view_axis(coarse),
            _about_view_axis(halves),
            step,
            step / 2,
            1 / (2 * n),
        )
    order = fine_order(settings)
    coarse_grid = orientation_grid(order - 1, settings.specimen.symmetry.rotations)
    fine = rotations_of(children(coarse_grid.cell_id, order - 1), order)
    fraction = len(settings.specimen.symmetry) * cell_fraction(order)
    return Grid(
        coarse_grid.cell_id,
        coarse_grid.rotations,
        fine,
        coarse_grid.step_deg,
        grid_step_deg(order),
        fraction,
    )


def fine_order(settings: SearchSettings) -> int:
    """HEALPix order of the finer grid."""
    return max(1, math.ceil(math.log2(60 / settings.angular_step_deg) - 1e-6))


def _about_view_axis(psi_deg: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3 3"]:
    vector = torch.zeros(*psi_deg.shape, 3)
    vector[..., 2] = -torch.deg2rad(psi_deg)
    return rotation_vector_to_matrix(vector)


def level_radius(step_deg: float, settings: SearchSettings, box: int, radius: int) -> int:
    """Shells that a level of this step is scored on: what it can resolve, no more than are
    known."""
    return max(2, min(radius, radius_of_step(step_deg, box, settings.specimen.radius_px)))


def coarse_radius(settings: SearchSettings, box: int, radius: int, dimensions: int) -> int:
    """The last shell that the coarse grid is scored on, for references known up to `radius`."""
    return level_radius(search_grid(settings, dimensions).coarse_step_deg, settings, box, radius)


def shift_grid(range_px: float, step_px: float, *, device: torch.device) -> Float[Tensor, "T 2"]:
    """Square grid of shifts inside a circle.

    >>> len(shift_grid(2.0, 1.0, device=torch.device("cpu")))  # 0, 4 at 1 pixel, 4 at 1.4, 4 at 2
    13
    """
    n = math.floor(range_px / step_px + 1e-6)
    axis = torch.arange(-n, n + 1, device=device) * step_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shifts = torch.stack([x.reshape(-1), y.reshape(-1)], -1)
    return shifts[shifts.norm(dim=1) <= range_px + 1e-6].float()


def searched_step_px(settings: SearchSettings, box: int, radius: int) -> float:
    """Distance of the shifts that a search on shells up to `radius` scores: a quarter period of the
    outermost, or the settings' step where that is coarser."""
    quarter = box / (SHIFTS_PER_PERIOD * radius)
    return max(settings.shift_step_px, min(quarter, max(settings.shift_range_px, 1e-3)))


def shift_step(shifts: Float[Tensor, "T 2"]) -> float:
    """Distance of neighbours in a `shift_grid`; 1 for a single shift."""
    away = shifts.norm(dim=1)
    return float(away[away > 0].min()) if bool((away > 0).any()) else 1.0
