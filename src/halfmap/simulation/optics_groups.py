"""Optics groups that differ: a grid and aberrations of its own for each, of the same particles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from halfmap.errors import InputError
from halfmap.simulation.forward_model import Truth

# direction of the longer axis, neither along the pixels nor along a diagonal
MAGNIFICATION_AXIS_DEG = 30.0
_TREFOIL = 2  # the third of rlnOddZernike's terms


@dataclass(frozen=True)
class OpticsGroups:
    """By group: pixel size and box of its images (None: those of the set), by how much the scale
    along one axis exceeds that along the other, beam tilt, and the coefficient of trefoil."""

    pixel_sizes_angstrom: tuple[float, ...] | None
    boxes: tuple[int, ...] | None
    anisotropy: tuple[float, ...] | None
    beam_tilts_mrad: tuple[float, ...] | None
    trefoils: tuple[float, ...] | None

    @property
    def have_grids(self) -> bool:
        return self.pixel_sizes_angstrom is not None or self.boxes is not None

    def grid(self, group: int, box: int, pixel_size_angstrom: float) -> tuple[int, float]:
        """Box and pixel size of a group; where only the pixel size is its own, the box of the same
        width, an even one."""
        pixel, own = pixel_size_angstrom, box
        if self.pixel_sizes_angstrom is not None:
            pixel = self.pixel_sizes_angstrom[group]
            own = 2 * round(box * pixel_size_angstrom / pixel / 2)
        return (own if self.boxes is None else self.boxes[group]), pixel


def optics_groups_of(n: int, **values: Sequence[float] | None) -> OpticsGroups:
    """The groups of n, from what each option says.

    Raises:
        InputError: another number of values than groups.
    """
    for name, given in values.items():
        if given is not None and len(given) != n:
            flag = f"--group-{name.removesuffix('s').replace('_', '-')}"
            raise InputError(
                f"{flag} {','.join(f'{one:g}' for one in given)}: expected {n} values, one for "
                f"each of --optics-groups {n}, got {len(given)}"
            )
    rows = {name: None if one is None else tuple(one) for name, one in values.items()}
    boxes = rows.get("boxes")
    return OpticsGroups(
        pixel_sizes_angstrom=rows.get("pixel_sizes"),
        boxes=None if boxes is None else tuple(int(one) for one in boxes),
        anisotropy=rows.get("magnifications"),
        beam_tilts_mrad=rows.get("beam_tilts"),
        trefoils=rows.get("trefoils"),
    )


def magnification_matrix(anisotropy: float) -> np.ndarray:
    """M = R diag(1 + a / 2, 1 - a / 2) R^T, its longer axis at `MAGNIFICATION_AXIS_DEG`."""
    angle = math.radians(MAGNIFICATION_AXIS_DEG)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag([1 + anisotropy / 2, 1 - anisotropy / 2]) @ turn.T


def with_aberrations(truth: Truth, groups: OpticsGroups) -> Truth:
    """The truth whose CTFs have the aberrations of their groups; tilts keep their directions, which
    differ by group."""
    changed: dict[str, torch.Tensor] = {}
    group, n = truth.optics_group, len(truth.optics_group)
    count = int(group.max()) + 1
    if groups.anisotropy is not None:
        matrices = np.stack([magnification_matrix(one) for one in groups.anisotropy])
        of_each = torch.from_numpy(matrices).float()[group]
        for (i, j), at in zip(
            ((0, 0), (0, 1), (1, 0), (1, 1)), ("xx", "xy", "yx", "yy"), strict=True
        ):
            changed[f"magnification_{at}"] = of_each[:, i, j]
    if groups.beam_tilts_mrad is not None:
        tilt = torch.tensor(groups.beam_tilts_mrad)[group]
        azimuth = 2 * math.pi * group / count
        changed["beam_tilt_x_mrad"] = (tilt * torch.cos(azimuth)).float()
        changed["beam_tilt_y_mrad"] = (tilt * torch.sin(azimuth)).float()
    if groups.trefoils is not None:
        odd = torch.zeros(n, 6)
        odd[:, _TREFOIL] = torch.tensor(groups.trefoils)[group]
        changed["odd_zernike"] = odd
    return replace(truth, ctf=replace(truth.ctf, **changed)) if changed else truth
