"""Noise-free images of a map at the poses of a data set."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands import _inputs
from halfmap.commands._beside import leave_record
from halfmap.commands._maps import refuse_own_images
from halfmap.commands._options import (
    Annotated,
    DataDir,
    Option,
    OverwriteFile,
    ParticlesFile,
    Passthrough,
    Threads,
)
from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, half_plane, inverse_fourier_transform, shift_phases
from halfmap.image_grids import ImageGrid
from halfmap.io.mrc import read_density, same_pixel_size
from halfmap.io.stack_writer import StackWriter
from halfmap.options import command
from halfmap.particles import Particles, load_particles
from halfmap.projection import extract_slices, prepare_references
from halfmap.simulation.forward_model import exact_slices
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import evaluate, no_transfer, true_frequencies
from halfmap.workspace.machine import use_threads

_BATCH = 256


@dataclass(frozen=True)
class Projected:
    """The stack written, and how many projections are in it."""

    path: Path
    count: int
    stacks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        star = self.path.with_suffix(".star")
        return f"{self.count} projections in {', '.join(map(str, self.stacks))}, poses in {star}"


@command
def project(
    map: Annotated[
        str | Path,
        Option(
            "Map to project (MRC); of another box or pixel size, it is resampled",
            positional=True,
            metavar="MAP",
        ),
    ],
    particles: ParticlesFile,
    out: Annotated[
        str | Path,
        Option(
            "Stack to write (.mrcs); a STAR is written beside it", metavar="STACK", recorded=False
        ),
    ],
    *,
    ctf: Annotated[bool, Option("Multiply the projections by each particle's CTF")] = False,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    threads: Threads = None,
    overwrite: OverwriteFile = False,
) -> Projected:
    """Project a map at each particle's pose and shift, noise-free, to look at beside the particles.

    The stack is `C S_t P_phi A` of the map A; without `ctf`, C = 1. Projections lie on the particle
    as it is in its image: moved by minus `shift`, the translation that would centre it.
    Premultiplied data are matched by C^2. All frequencies below Nyquist are kept. Each projection
    has the pixel size, box and magnification of its image; where boxes or pixel sizes differ, a
    stack is written for each, `projections_1.mrcs` and so on. Batches are streamed, so any number
    of particles fits in memory.

    Example: halfmap project map.mrc --particles refined/particles.star --ctf --out projections.mrcs

    Raises:
        InputError: unreadable files, a map constant or not finite, no poses, no CTF with `ctf`, a
            map of another box that does not tell its pixel size, or the output exists.
    """
    arguments, out = locals(), Path(out)
    if out.suffix.lower() not in (".mrcs", ".st"):
        raise InputError(f"--out {out}: expected the name of an image stack, ending in .mrcs")
    use_threads(threads)
    volume, voxel_angstrom = read_density(map)
    poses = load_particles(
        particles, data_dir=data_dir, check_images=False, use_ctf=ctf, passthrough=passthrough
    )
    _inputs.require_orientations(poses, "project")
    if ctf and not poses.has_ctf:
        raise InputError(
            f"{particles}: --ctf needs the CTF columns (_rlnDefocusU ...), which are missing; "
            "leave --ctf out"
        )
    if not all(one.box for one in poses.grids):
        raise InputError(
            f"{particles}: no image size: no column _rlnImageSize, and no stack to look at"
        )
    sizes = sorted({(one.box, one.pixel_size_angstrom) for one in poses.grids})
    single = len(sizes) == 1
    stacks = [
        out if single else out.with_name(f"{out.stem}_{i + 1}{out.suffix}")
        for i in range(len(sizes))
    ]
    for file in (*stacks, out.with_suffix(".star")):
        if file.exists() and not overwrite:
            raise InputError(f"{file}: the file exists; choose another name, or --overwrite it")
    refuse_own_images(poses, stacks)
    pixel, doubts = _known_pixel(map, volume, voxel_angstrom, poses)
    projected_map = _Map(torch.from_numpy(volume), pixel)
    place = np.zeros((2, len(poses)), np.int64)  # the stack of each projection, and where in it
    for number, size in enumerate(sizes):
        with StackWriter(stacks[number], size[1]) as stack:
            for stored, grid in enumerate(poses.grids):
                if (grid.box, grid.pixel_size_angstrom) != size:
                    continue
                slices = _slicer(projected_map, grid)
                mine = np.flatnonzero(poses.stored == stored)
                for first in range(0, len(mine), _BATCH):
                    rows = mine[first : first + _BATCH]
                    place[0, rows], place[1, rows] = number, len(stack) + np.arange(len(rows))
                    stack.append(_images(poses, rows, grid, slices, ctf=ctf))
    _write_star(poses, out, stacks, place, ctf=ctf)
    notes = [note for note in poses.notes if "brought to" not in note and "taken out" not in note]
    notes += doubts
    notes += [
        f"{map}: {ImageGrid(len(volume), projected_map.pixel_size_angstrom)}, resampled to {grid}"
        for grid in poses.grids
        if not _alike(projected_map, grid)
    ]
    done = Projected(out, len(poses), tuple(stacks), tuple(notes))
    kept = {"images": done.count, "summary": done.summary}
    leave_record(project, arguments, out.with_suffix(".star"), stacks, **kept)
    return done


@dataclass(frozen=True)
class _Map:
    volume: Float[Tensor, "N N N"]
    pixel_size_angstrom: float


def _known_pixel(
    path: str | Path, volume: np.ndarray, voxel_angstrom: float, poses: Particles
) -> tuple[float, tuple[str, ...]]:
    """The map's pixel size, and what is to be said of it; the particles' where it is that within
    1 %, no header tells it, or one of a map of their box is not to be believed."""
    pixel, same_box = poses.pixel_size_angstrom, volume.shape[0] == poses.box
    if same_pixel_size(voxel_angstrom, pixel):
        if voxel_angstrom <= 0 and not same_box:
            raise InputError(
                f"{path}: the map's box is {volume.shape[0]}, the particles' is {poses.box}, and "
                "its header has no pixel size by which to resample it; write it there"
            )
        return pixel, ()
    if same_box and _inputs.header_is_untold(voxel_angstrom):
        return pixel, (_inputs.not_believed(path, voxel_angstrom, pixel),)
    return voxel_angstrom, ()


def _alike(one: _Map, grid: ImageGrid) -> bool:
    """Whether a map's slices are on the image's grid as they are."""
    return ImageGrid(len(one.volume), one.pixel_size_angstrom) == grid


# the map's slices (B, J) at rotations (B, 3, 3), on the plane of one grid
_Slices = Callable[[Tensor], Tensor]


def _slicer(projected: _Map, grid: ImageGrid) -> _Slices:
    """Slices by the engine's interpolation where the grid is the map's, else exact ones at the
    frequencies `M q` of the image's samples, 0 beyond the map's Nyquist frequency."""
    plane = _plane(grid)
    if _alike(projected, grid):
        references = prepare_references(projected.volume[None], plane.radius)
        return lambda rotations: extract_slices(references, rotations, plane)
    box, pixel = len(projected.volume), projected.pixel_size_angstrom
    kx, ky = (k * box * pixel for k in _frequencies(grid))
    inside = kx**2 + ky**2 < (box / 2) ** 2
    scale = inside * (pixel / grid.pixel_size_angstrom) ** 2

    def slices(rotations: Tensor) -> Tensor:
        return (exact_slices(projected.volume, rotations, kx, ky) * scale).to(torch.complex64)

    return slices


def _plane(grid: ImageGrid) -> HalfPlane:
    return half_plane(grid.box, (grid.box - 1) // 2)


def _frequencies(grid: ImageGrid) -> tuple[Tensor, Tensor]:
    """Where object and CTF are in an image's samples, 1/A."""
    at = _plane(grid).frequencies(grid.pixel_size_angstrom)
    return at if grid.magnification is None else true_frequencies(grid.matrix, *at)


def _images(
    poses: Particles, rows: np.ndarray, grid: ImageGrid, slices: _Slices, *, ctf: bool
) -> np.ndarray:
    """Projections as the images are stored."""
    plane = _plane(grid)
    stored_shift = poses.take(rows).stored_shift_angstrom(poses.shift_angstrom[rows])
    shift_px = torch.from_numpy(stored_shift / grid.pixel_size_angstrom).float()
    rotations = euler_to_matrix(torch.from_numpy(poses.rotations_deg[rows])).float()
    samples = slices(rotations) * shift_phases(-shift_px, plane)
    transfer = no_transfer(samples)
    if ctf:
        transfer = evaluate(poses.transfer.take(rows), *_frequencies(grid))
    return inverse_fourier_transform(transfer.image(samples), plane).numpy()


def _write_star(
    poses: Particles, out: Path, stacks: list[Path], place: np.ndarray, *, ctf: bool
) -> None:
    """The same poses with the new images; without a CTF in the images, none in the table."""
    file, index = place
    pairs = zip(file.tolist(), index.tolist(), strict=True)
    names = np.array([f"{i + 1:06d}@{stacks[which].name}" for which, i in pairs])
    new = poses.with_results(extra={"rlnImageName": names})
    new = replace(
        new,
        files=tuple(stack.name for stack in stacks),
        stack_paths=tuple(stacks),
        image_file=file,
        image_index=index,
    )
    if not ctf:
        new = new.with_transfer(None)
    new.write_star(out.with_suffix(".star"))
