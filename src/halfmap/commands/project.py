"""Noise-free images of a map at the poses of a data set."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from halfmap.commands import _inputs
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
from halfmap.fourier import half_plane, inverse_fourier_transform, shift_phases
from halfmap.io.mrc import StackWriter, read_density, same_pixel_size
from halfmap.options import command
from halfmap.particles import load_particles
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import evaluate, no_transfer
from halfmap.workspace.machine import use_threads

_BATCH = 256


@dataclass(frozen=True)
class Projected:
    """The stack written, and how many projections are in it."""

    path: Path
    count: int

    @property
    def summary(self) -> str:
        return f"{self.count} projections in {self.path}, poses in {self.path.with_suffix('.star')}"


@command
def project(
    map: Annotated[
        str | Path,
        Option(
            "Map to project (MRC), same box and pixel size as the particles",
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
    Premultiplied data are matched by C^2. All frequencies below Nyquist are kept. Batches are
    streamed, so any number of particles fits in memory.

    Example: halfmap project map.mrc --particles refined/particles.star --ctf --out projections.mrcs

    Raises:
        InputError: unreadable files, a map constant or not finite, no poses, no CTF with `ctf`, box
            or pixel size (by over 1 %) differ, or the output exists.
    """
    out = Path(out)
    if out.suffix.lower() not in (".mrcs", ".st"):
        raise InputError(f"--out {out}: expected the name of an image stack, ending in .mrcs")
    for file in (out, out.with_suffix(".star")):
        if file.exists() and not overwrite:
            raise InputError(f"{file}: the file exists; choose another name, or --overwrite it")
    use_threads(threads)
    volume, voxel_angstrom = read_density(map)
    poses = load_particles(
        particles, data_dir=data_dir, check_images=False, use_ctf=ctf, passthrough=passthrough
    )
    pixel_angstrom = poses.pixel_size_angstrom
    _inputs.require_orientations(poses, "project")
    if ctf and not poses.has_ctf:
        raise InputError(
            f"{particles}: --ctf needs the CTF columns (_rlnDefocusU ...), which are missing; "
            "leave --ctf out"
        )
    if volume.shape[0] != poses.box:
        raise InputError(
            f"{map}: the map's box is {volume.shape[0]}, the particles' is {poses.box}; pad or "
            "crop the map"
        )
    if not same_pixel_size(voxel_angstrom, pixel_angstrom):
        raise InputError(
            f"{map}: pixel size {voxel_angstrom:.4f} A, the particles have {pixel_angstrom:.4f} "
            "A; rescale the map"
        )
    plane = half_plane(poses.box, (poses.box - 1) // 2)
    references = prepare_references(torch.from_numpy(volume)[None], plane.radius)
    frequencies = plane.frequencies(pixel_angstrom)
    with StackWriter(out, pixel_angstrom) as stack:
        for first in range(0, len(poses), _BATCH):
            rows = np.arange(first, min(first + _BATCH, len(poses)))
            rotations = euler_to_matrix(torch.from_numpy(poses.rotations_deg[rows])).float()
            shift_px = torch.from_numpy(poses.shift_angstrom[rows] / pixel_angstrom).float()
            samples = extract_slices(references, rotations, plane) * shift_phases(-shift_px, plane)
            transfer = (
                evaluate(poses.transfer.take(rows), *frequencies) if ctf else no_transfer(samples)
            )
            samples = transfer.image(samples)
            stack.append(inverse_fourier_transform(samples, plane).numpy())
    _write_star(poses, out, ctf=ctf)
    return Projected(out, len(poses))


def _write_star(poses, stack: Path, *, ctf: bool) -> None:
    """The same poses with the new images; without a CTF in the images, none in the table."""
    index = np.arange(len(poses))
    names = np.array([f"{i + 1:06d}@{stack.name}" for i in index])
    new = poses.with_results(extra={"rlnImageName": names})
    new = replace(
        new,
        files=(stack.name,),
        stack_paths=(stack,),
        image_file=np.zeros_like(index),
        image_index=index,
    )
    if not ctf:
        new = new.with_transfer(None)
    new.write_star(stack.with_suffix(".star"))
