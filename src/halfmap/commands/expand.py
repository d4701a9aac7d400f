"""Particles expanded by symmetry."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmap.commands._beside import leave_record
from halfmap.commands._halves import divide_into_halves
from halfmap.commands._inputs import SYMMETRY_COPY
from halfmap.commands._maps import refuse_existing
from halfmap.commands._options import (
    Annotated,
    DataDir,
    Option,
    OverwriteFile,
    ParticlesFile,
    Passthrough,
    Seed,
    Symmetry,
    check_star_name,
)
from halfmap.commands._summaries import counted, where
from halfmap.errors import InputError
from halfmap.options import command
from halfmap.particles import load_particles
from halfmap.so3 import euler_to_matrix, matrix_to_euler
from halfmap.symmetries import expand as mates_of
from halfmap.symmetries import symmetry_matrices


@dataclass(frozen=True)
class Expanded:
    """The STAR written, and how many copies of how many particles are in it."""

    path: Path
    particles: int
    copies: int

    @property
    def summary(self) -> str:
        return (
            f"{self.copies} copies of {counted(self.particles, 'particle')}, each in one half: "
            f"{where(self.path)}"
        )


@command
def expand(
    particles: ParticlesFile,
    symmetry: Symmetry,
    out: Annotated[
        str | Path,
        Option("STAR file to write", metavar="STAR", recorded=False, check=check_star_name),
    ],
    *,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    seed: Seed = 1,
    overwrite: OverwriteFile = False,
) -> Expanded:
    """Write each particle once for every symmetry mate of its pose, to look at one subunit at a
    time: with `--local`, `class3d --no-alignment`, or `subtract`.

    All copies of a particle are in one half set: the file's, or drawn here. Searches over all
    orientations refuse the set, because they would find the same pose for every copy.

    Example: halfmap expand --particles refined/particles.star --symmetry C4 --out expanded.star

    Raises:
        InputError: unreadable file, no poses, no symmetry, a set that is expanded already, or `out`
            exists.
    """
    arguments, path = locals(), Path(out)
    refuse_existing([path], overwrite=overwrite)
    data = load_particles(
        particles, data_dir=data_dir, check_images=False, use_ctf=False, passthrough=passthrough
    )
    if not data.has_poses:
        raise InputError(
            f"{particles}: columns _rlnAngleRot, _rlnAngleTilt, _rlnAnglePsi are missing; give the "
            "result of a refinement"
        )
    if SYMMETRY_COPY in data.table:
        raise InputError(f"{particles}: is expanded already (column _{SYMMETRY_COPY})")
    matrices = symmetry_matrices(symmetry)
    if len(matrices) == 1:
        raise InputError(f"--symmetry {symmetry}: expected a group with more than one operator")
    half = divide_into_halves(data, seed).numpy() + 1
    rotations = mates_of(euler_to_matrix(torch.from_numpy(data.rotations_deg)), matrices)
    order = np.repeat(np.arange(len(data)), len(matrices))
    data.take(order).with_results(
        rotations_deg=matrix_to_euler(rotations.flatten(0, 1)).numpy(),
        half_set=half[order],
        extra={SYMMETRY_COPY: np.tile(np.arange(1, len(matrices) + 1), len(data))},
    ).write_star(path)
    done = Expanded(path, len(data), len(matrices))
    leave_record(expand, arguments, path, particles=len(order), summary=done.summary)
    return done
