"""Volumes of what is simulated: maps, atomic models or the phantom, on one grid."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from halfmap.errors import InputError
from halfmap.io.mrc import read_density
from halfmap.resampling import resample_volume
from halfmap.simulation.atomic_models import Atoms, density_from_atoms, read_atoms
from halfmap.simulation.forward_model import symmetrise_volume
from halfmap.simulation.phantom import phantom_atoms
from halfmap.symmetries import symmetry_matrices

PHANTOM = "phantom"
DEFAULT_PIXEL_ANGSTROM = 2.0
_MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".pdb.gz", ".ent.gz", ".cif.gz", ".mmcif.gz")


def load_volumes(
    sources: Sequence[str | Path],
    *,
    box: int | None = None,
    pixel_size_angstrom: float | None = None,
    symmetry: str | None = None,
) -> tuple[list[Tensor], float]:
    """Volumes `(N, N, N)` of all sources on the grid of the first (or the one asked for), and their
    pixel size, A."""
    matrices = symmetry_matrices(symmetry or "C1")
    volumes: list[Tensor] = []
    for source in sources:
        atoms = _atoms(source, symmetry)
        if atoms is None:
            volume, own_pixel = _map(Path(source), pixel_size_angstrom)
            pixel_size_angstrom = pixel_size_angstrom or own_pixel
            box = box or _same_extent(len(volume), own_pixel, pixel_size_angstrom)
            volume = resample_volume(
                volume, own_pixel, box=box, new_pixel_size_angstrom=pixel_size_angstrom
            )
        else:
            pixel_size_angstrom = pixel_size_angstrom or DEFAULT_PIXEL_ANGSTROM
            box = box or 8 * math.ceil(2.5 * atoms.radius_angstrom() / pixel_size_angstrom / 8)
            volume = density_from_atoms(atoms, box=box, pixel_size_angstrom=pixel_size_angstrom)
        volumes.append(
            symmetrise_volume(volume, matrices)
            if len(matrices) > 1 and not _is_phantom(source)
            else volume
        )
    assert pixel_size_angstrom is not None  # there is at least one source
    return volumes, pixel_size_angstrom


def _same_extent(box: int, pixel: float, new_pixel: float) -> int:
    return box if new_pixel == pixel else 2 * round(box * pixel / new_pixel / 2)


def _is_phantom(source: str | Path) -> bool:
    return str(source).partition(":")[0] == PHANTOM


def _atoms(source: str | Path, symmetry: str | None) -> Atoms | None:
    """Atoms about the origin of a model or of the phantom; None where the source is a map."""
    if _is_phantom(source):
        state = str(source).partition(":")[2] or "0"
        if state not in ("0", "1"):
            raise InputError(
                f"source: the phantom's states are phantom:0 and phantom:1, got {source}"
            )
        group = (symmetry or "C4").upper()
        if group not in ("C4", "C1"):
            raise InputError(f"--symmetry: the phantom exists as C4 and C1, got {symmetry}")
        return phantom_atoms(symmetry=group, state=int(state))
    return read_atoms(source).centred() if str(source).lower().endswith(_MODEL_SUFFIXES) else None


def _map(path: Path, pixel_size_angstrom: float | None) -> tuple[Tensor, float]:
    volume, pixel = read_density(path)
    if pixel <= 0 and pixel_size_angstrom is None:
        raise InputError(f"{path}: the header has no voxel size; say it with --pixel-size")
    return torch.from_numpy(volume), pixel if pixel > 0 else float(pixel_size_angstrom or 0)
