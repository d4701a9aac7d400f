"""`halfmap restore`: undo the CTF of a stack of particle images by any of the lecture's methods
(see `halfmap.restoration`)."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmap.commands import _halves, _inputs
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    Annotated,
    Contrast,
    DataDir,
    Literal,
    Option,
    OutFolder,
    Overwrite,
    ParticlesFile,
    Passthrough,
    Quiet,
    Resume,
    Seed,
    Setting,
    Threads,
)
from halfmap.commands._restoring import (
    PER_STACK,
    Task,
    View,
    common_view,
    restore_each,
    restore_stack,
)
from halfmap.errors import InputError
from halfmap.fsc_files import write_fsc_star
from halfmap.options import command
from halfmap.particles import Particles, load_particles
from halfmap.plots.curves import save_fsc_plot
from halfmap.resolution import Curve, HalfMapCurves, resolution_at
from halfmap.workspace.job import Job
from halfmap.workspace.progress import drawing


@dataclass(frozen=True)
class RestoreResult:
    """What a restore job gives: its folder, the images used, those set aside, the FRC of two halves
    if there is one, and in words where the halves come from."""

    folder: Path
    images: int
    set_aside: int
    curve: Curve | None
    halves: str

    @property
    def summary(self) -> str:
        aside = f", {self.set_aside} set aside" if self.set_aside else ""
        told = f"{self.images} images{aside}"
        if self.curve is not None:
            found = [(resolution_at(self.curve, one), one) for one in (0.5, 0.143)]
            words = [f"{f'{a:.1f} A' if math.isfinite(a) else 'none'} at {at}" for a, at in found]
            told += f"; FRC of two halves ({self.halves}) {', '.join(words)}"
        return f"{told}: {self.folder}"


@command
def restore(
    particles: ParticlesFile,
    method: Annotated[
        Literal["divide", "flip", "wiener", "wiener-stack", "wiener-ssnr"],
        Option(
            "Each image: divide X / C, flip sgn(C) X, wiener C X / (C^2 + k). One image from all: "
            "wiener-stack sum C X / (k + sum C^2), wiener-ssnr the same with k = 1/SSNR in each "
            "shell, measured from the images themselves"
        ),
    ],
    out: OutFolder,
    *,
    constant: Annotated[
        float,
        Option(
            "The k of wiener and wiener-stack",
            above=0,
            metavar="K",
            hint="k > 0; --method divide is the filter without k",
            needs=(Setting("method", values=("wiener", "wiener-stack")),),
        ),
    ] = 0.1,
    class_number: Annotated[
        int | None,
        Option(
            "Use the particles of this class only", flag="--class", metavar="N", unset="all of them"
        ),
    ] = None,
    view_tolerance: Annotated[
        float,
        Option(
            "Directions that differ by more are not one view", unit="deg", at_least=0, at_most=180
        ),
    ] = 3.0,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    seed: Seed = 1,
    threads: Threads = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> RestoreResult:
    """Undo the CTF of particle images, one by one or from many images of one view.

    The per-image methods write `restored.mrcs` and `particles.star`, without the defocus columns,
    so that no program undoes the CTF twice. The stack methods take the images for views of one
    object in one direction, centre them and turn them back by their poses (without poses they are
    taken as aligned), and write `restored.mrcs`, and from two halves `half1.mrcs`, `half2.mrcs` and
    their FRC, `fsc.star` and `pictures/fsc.png`; `wiener-ssnr` also what it measured, `ssnr.star`.
    The per-image methods give the FRC of the averages of two halves, where there are poses and the
    views agree. The halves are independent only where the file has the half sets of a refinement:
    poses that came from one reference make an FRC optimistic.

    Example: halfmap restore --particles particles.star --method flip --out flipped

    Raises:
        InputError: unknown method, bad constant, no CTF, no usable image, images of different views
            (stack methods), folder in use.
    """
    arguments = locals()
    data = load_particles(particles, data_dir=data_dir, passthrough=passthrough, contrast=contrast)
    chosen = _chosen(data, class_number)
    view = common_view(data, chosen, view_tolerance, must_agree=method in PER_STACK)
    with open_job(restore, arguments) as run:
        job, progress = run.job, run.progress
        for note in data.notes:
            progress.note(note)
        half = torch.full((len(data),), -1)
        half[torch.from_numpy(chosen)] = _halves.halves_at_known_poses(
            data.take(chosen), seed, progress
        )
        data, half = _inputs.set_aside_bad_images(data, half, job, progress, both_halves=False)
        task = Task(data, method, constant, view, half.numpy())
        progress.start_stage(method, len(task.rows))
        work = restore_stack if method in PER_STACK else restore_each
        curve = work(task, job, progress)
        halves = _origin(data, task, view)
        if curve is not None:
            _write_curve(curve, job, method, halves)
        job.update(images=len(task.rows), set_aside=len(chosen) - len(task.rows), halves=halves)
    return RestoreResult(job.folder, len(task.rows), len(chosen) - len(task.rows), curve, halves)


def _chosen(data: Particles, class_number: int | None) -> np.ndarray:
    """Rows of the class asked for."""
    if not data.has_ctf:
        raise InputError(
            f"{data.path}: no defocus columns (_rlnDefocusU, ...), so there is no CTF to undo; "
            "give the STAR of the CTF estimation"
        )
    if class_number is None:
        return np.arange(len(data))
    chosen = np.flatnonzero(data.class_number == class_number)
    if not len(chosen):
        classes = np.unique(data.class_number)
        few = ", ".join(map(str, classes[:8])) + (", ..." if len(classes) > 8 else "")
        raise InputError(
            f"--class {class_number}: no particle of {data.path} is in it; it has classes {few}"
        )
    return chosen


def _origin(data: Particles, task: Task, view: View | None) -> str:
    """What the two halves are, and so what their FRC is worth."""
    if set(data.half_set[task.rows].tolist()) == {1, 2}:
        return "half sets of the file; independent if a refinement kept them apart"
    if view is None:
        return "drawn at random"
    return "drawn at random; their poses share a reference, so the FRC is optimistic"


def _write_curve(curve: Curve, job: Job, method: str, halves: str) -> None:
    write_fsc_star(job.path("fsc.star"), HalfMapCurves(unmasked=curve))
    with drawing("fsc.png"):
        save_fsc_plot(
            job.path("pictures/fsc.png"),
            {f"{method}, two halves": curve},
            title=f"Fourier ring correlation of two halves\n{halves}",
        )
    job.update(
        **{
            "resolution_angstrom": resolution_at(curve, 0.143),
            "resolution_angstrom_at_0.5": resolution_at(curve, 0.5),
        }
    )
