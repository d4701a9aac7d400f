"""What `volume` and `symmetry` take and give: a map, and particles whose poses follow it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import Alignment
from halfmap.commands._inputs import HELD_DENSITY, LARGEST_RADIUS, RADIUS_MARGIN
from halfmap.errors import InputError
from halfmap.fourier import lowpass
from halfmap.io.cs_files import Passthrough
from halfmap.io.mrc import read_density
from halfmap.particles import Particles, load_particles
from halfmap.so3 import euler_to_matrix, matrix_to_euler

# Noise is taken off before the particle's extent is measured: shells up to a sixth of the box
_EXTENT_SHARE = 6


def refuse_existing(files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write over files.

    Raises:
        InputError: a file exists, or its folder does not.
    """
    for file in files:
        if file.exists() and not overwrite:
            raise InputError(f"{file}: the file exists; choose another name, or --overwrite it")
        if not file.absolute().parent.is_dir():
            raise InputError(f"{file}: the folder {file.parent} does not exist; create it first")


def refuse_own_images(particles: Particles, files: Sequence[Path]) -> None:
    """Refuse to write over the images that are read, though all else may be replaced.

    Raises:
        InputError: a file is a stack of the particles.
    """
    stacks = {path.resolve() for path in particles.stack_paths if path is not None}
    for file in files:
        if file.resolve() in stacks:
            raise InputError(
                f"{file}: holds images of {particles.path}, which would be lost; choose another "
                "name with --out"
            )


def map_of(source: str | Path) -> Path:
    """The map file given, or the map of a job folder.

    Raises:
        InputError: a folder without `map.mrc`.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / "map.mrc").exists():
            raise InputError(f"{path}: no map.mrc in this folder; give a map, such as {path}/*.mrc")
        return path / "map.mrc"
    return path


def read_map_with_size(path: Path) -> tuple[Float[Tensor, "N N N"], float]:
    """A map and its pixel size.

    Raises:
        InputError: as `read_density`; the header has no pixel size.
    """
    volume, pixel = read_density(path)
    if pixel <= 0:
        raise InputError(f"{path}: the header has no pixel size; write one into it")
    return torch.from_numpy(volume), pixel


def diameter_px(
    diameter_angstrom: float | None, volume: Float[Tensor, "N N N"], pixel_size_angstrom: float
) -> float:
    """Diameter of a sphere around the centre of mass that holds the particle: the one given, or
    measured where the map, low-passed, exceeds a tenth of its maximum.

    Raises:
        InputError: a diameter wider than the box.
    """
    box = volume.shape[-1]
    if diameter_angstrom is not None:
        if diameter_angstrom > box * pixel_size_angstrom:
            raise InputError(
                f"--diameter {diameter_angstrom:g}: expected at most the box, "
                f"{box * pixel_size_angstrom:.4g} A"
            )
        return diameter_angstrom / pixel_size_angstrom
    smooth = lowpass(volume, _EXTENT_SHARE * pixel_size_angstrom, pixel_size_angstrom, dimensions=3)
    smooth = smooth - smooth.median()
    held = torch.nonzero(smooth > HELD_DENSITY * smooth.max()).float()
    radius = float((held - held.mean(0)).norm(dim=1).max())
    return 2 * min(RADIUS_MARGIN * radius, LARGEST_RADIUS * box)


def read_posed_particles(
    path: str | Path, data_dir: str | Path | None, passthrough: Passthrough | None
) -> Particles:
    """Particles whose poses are to follow a map.

    Raises:
        InputError: unreadable, or without poses.
    """
    particles = load_particles(
        path, data_dir=data_dir, check_images=False, use_ctf=False, passthrough=passthrough
    )
    if not particles.has_poses:
        raise InputError(
            f"{path}: columns _rlnAngleRot, _rlnAngleTilt, _rlnAnglePsi are missing; give the "
            "result of a refinement"
        )
    return particles


def write_poses_that_follow(
    particles: Particles, alignments: Sequence[tuple[Alignment, float]], path: Path
) -> None:
    """A STAR of the particles with poses that show the map laid by one alignment after the other,
    each with the pixel size (Angstrom) that its shift is in."""
    rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg))
    shift_angstrom = torch.from_numpy(particles.shift_angstrom)
    for one, pixel in alignments:
        rotations, shift_px = one.apply_to_poses(rotations, shift_angstrom / pixel)
        shift_angstrom = shift_px * pixel
    particles.with_results(
        rotations_deg=matrix_to_euler(rotations).numpy(),
        shift_angstrom=shift_angstrom.numpy(),
    ).write_star(path)
