"""The job `halfmap orientations`: is the map equally good in all directions, and were particles
seen from all sides?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmap.commands._finishing import Place, diagnose_into, mask_of_halves
from halfmap.commands._half_maps import read_half_maps
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    Annotated,
    HalvesMask,
    HalvesOrJob,
    Option,
    OutFolder,
    Overwrite,
    Passthrough,
    Quiet,
    check_symmetry,
)
from halfmap.commands._summaries import where
from halfmap.errors import InputError
from halfmap.options import command
from halfmap.particles import Particles, load_particles
from halfmap.plots.orientations import save_orientation_plot
from halfmap.so3 import euler_to_matrix
from halfmap.symmetries import symmetry_matrices
from halfmap.workspace.job import read_job
from halfmap.workspace.progress import drawing


@dataclass(frozen=True)
class OrientationResult:
    """cFAR of the half maps, SCF* of the particles' views (None without particles), resolution in
    the best and the worst direction, and what is to be said."""

    folder: Path
    cfar: float
    scf_star: float | None
    best_angstrom: float
    worst_angstrom: float
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        views = "" if self.scf_star is None else f", SCF* {self.scf_star:.2f}"
        return (
            f"cFAR {self.cfar:.2f}{views}, {self.best_angstrom:.3g} A in the best direction and "
            f"{self.worst_angstrom:.3g} A in the worst: {where(self.folder)}"
        )


@command
def orientations(
    source: HalvesOrJob,
    out: OutFolder,
    *,
    particles: Annotated[
        str | Path | None,
        Option(
            "Particles with the poses of the half maps", metavar="STAR", unset="the job's, if any"
        ),
    ] = None,
    passthrough: Passthrough = None,
    symmetry: Annotated[
        str | None,
        Option(
            "Point group in RELION's orientation",
            metavar="G",
            check=check_symmetry,
            unset="the job's, or C1",
        ),
    ] = None,
    mask: HalvesMask = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> OrientationResult:
    """Diagnose preferred views: FSC in cones and cFAR of two half maps, and how evenly the views of
    the particles sample Fourier space (SCF*).

    Example: halfmap orientations refined --out views

    Raises:
        InputError: bad half maps, mask or particles; nothing is written then.
    """
    arguments = locals()
    halves = read_half_maps(source)
    solvent = mask_of_halves(mask, halves)
    if particles is None and halves.job is not None:
        found = halves.job / "particles.star"
        particles = found if found.exists() else None
    if symmetry is None and halves.job is not None:
        symmetry = read_job(halves.job)["parameters"].get("symmetry")
    group = symmetry_matrices(symmetry or "C1")
    data = None if particles is None else _with_poses(particles, passthrough)
    with open_job(orientations, arguments) as run:
        place = Place(run.job.folder, run.job.path("pictures/orientations.png").parent)
        run.progress.start_stage("FSC in cones", 0)
        rotations = None
        if data is not None:
            rotations = euler_to_matrix(torch.from_numpy(data.rotations_deg))
            with drawing("orientations.png"):
                save_orientation_plot(
                    place.pictures / "orientations.png",
                    data.rotations_deg,
                    symmetry=np.asarray(group),
                )
        cones, sampling, notes = diagnose_into(
            place,
            (halves.half1, halves.half2),
            halves.pixel_size_angstrom,
            solvent,
            rotations=rotations,
            symmetry=group,
        )
        scf_star = None if sampling is None else sampling.scf_star
        run.job.update(cfar=cones.cfar, scf_star=scf_star)
    found_angstrom = cones.resolutions_angstrom
    return OrientationResult(
        Path(out),
        cones.cfar,
        scf_star,
        float(found_angstrom.min()),
        float(found_angstrom.max()),
        notes,
    )


def _with_poses(
    path: str | Path, passthrough: str | Path | Sequence[str | Path] | None
) -> Particles:
    data = load_particles(path, check_images=False, passthrough=passthrough)
    if not data.has_poses:
        raise InputError(
            f"{path}: no poses (rlnAngleRot, rlnAngleTilt, rlnAnglePsi); give the particles of a "
            "refinement"
        )
    return data
