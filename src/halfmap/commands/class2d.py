"""The job `halfmap class2d`: K class averages from particle images, by maximum likelihood (lecture
part 3) or template matching (part 2).

Given estimates A_1 ... A_K, each image weighs class, rotation and shift by their probability
Gamma_i, or takes the one of the highest correlation coefficient (Gamma_i is 1 there); each class
then becomes

    A_k = sum_i Gamma_i P^T C_i X_i / (1/SSNR + sum_i Gamma_i P^T C_i^2).

The same engine and the same four choices as in 3D; only the grid of rotations is one of in-plane
angles.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.commands import _inputs, _setup
from halfmap.commands._contrast import tell_contrast
from halfmap.commands._iterations import run_iterations
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    Annotated,
    Contrast,
    Ctf,
    DataDir,
    Device,
    Diameter,
    GridBox,
    GridPixelSize,
    Memory,
    Method2D,
    Option,
    OutFolder,
    Overwrite,
    ParticlesFile,
    Passthrough,
    Quiet,
    Resume,
    Seed,
    ShiftRange,
    ShiftStep,
    Start,
    TauFudge,
    Threads,
    WienerConstant,
)
from halfmap.commands._results import write_particles, write_pictures
from halfmap.commands._snapshots import plot_class_history, save_class_snapshot
from halfmap.commands._summaries import (
    UNRESOLVED,
    angstrom,
    class_in_words,
    counted,
    ending,
    largest_classes,
    where,
)
from halfmap.engine.image_model import NoiseSpectra
from halfmap.engine.problem import Problem
from halfmap.engine.residuals import initial_noise
from halfmap.engine.state import State, identity_poses
from halfmap.io.stack_writer import write_stack
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.methods.reference_update import class_sizes
from halfmap.methods.registry import ML, make_method
from halfmap.methods.settings import Settings
from halfmap.methods.starting_classes import starting_classes
from halfmap.options import command
from halfmap.plots.tiles import save_class_gallery
from halfmap.pose_search.refinement import SearchSettings
from halfmap.resolution import Curve, resolution_at
from halfmap.workspace.job import Job
from halfmap.workspace.progress import drawing

ANGULAR_STEP_DEG = 6.0
# classes start at a sixth of the particle's diameter: enough to tell views apart, too coarse to fit
# noise
SHELLS_PER_DIAMETER = 6
RESOLUTION_AT = 0.5  # both halves of a class were aligned to one reference


@dataclass(frozen=True)
class Class2DResult:
    """Where the classes are, how many images each holds and their resolution (FRC 0.5), largest
    class first."""

    folder: Path
    sizes: tuple[int, ...]
    resolutions_angstrom: tuple[float, ...]
    iterations: int = 0
    converged: bool = False

    @property
    def summary(self) -> str:
        """The last line of the job."""
        reached = [
            resolution
            for size, resolution in zip(self.sizes, self.resolutions_angstrom, strict=True)
            if size and math.isfinite(resolution)
        ]
        resolved = (
            f"FRC 0.5 from {angstrom(min(reached))} to {angstrom(max(reached))}"
            if reached
            else "FRC 0.5 is reached by none"
        )
        return (
            f"{len(self.sizes)} classes of {counted(sum(self.sizes), 'image')}, "
            f"{largest_classes(self.sizes)}, {resolved}, "
            f"{ending(self.iterations, converged=self.converged)}: "
            f"{where(self.folder / 'classes.mrcs')}"
        )


@command
def class2d(
    particles: ParticlesFile,
    out: OutFolder,
    *,
    classes: Annotated[int, Option("Number of classes K", at_least=1, metavar="K")],
    method: Annotated[
        Method2D,
        Option("How images are matched to classes: maximum likelihood, or best correlation"),
    ] = "ml",
    start: Annotated[
        Start, Option("First class images: chosen far apart, or averages of random subsets")
    ] = "kmeans++",
    iterations: Annotated[
        int, Option("Iterations at most", at_least=1, metavar="N", free_on_resume=True)
    ] = 25,
    diameter_angstrom: Diameter = None,
    angular_step_deg: Annotated[
        float | None,
        Option(
            "Step of the finer grid of in-plane angles",
            unit="deg",
            at_least=3,
            at_most=30,
            unset="6 degrees",
            hint="poses are refined continuously from there",
        ),
    ] = None,
    shift_range_px: ShiftRange = 5.0,
    shift_step_px: ShiftStep = 1.0,
    tau_fudge: TauFudge = None,
    wiener_constant: WienerConstant = None,
    ctf: Ctf = True,
    pixel_size_angstrom: GridPixelSize = None,
    box: GridBox = None,
    data_dir: DataDir = None,
    passthrough: Passthrough = None,
    contrast: Contrast = None,
    seed: Seed = 1,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
) -> Class2DResult:
    """Classify images into K class averages, sorted by size, with a gallery to look at.

    Averages are in `classes.mrcs`, their table in `classes.star`. Particles may be a bare stack
    too.

    Example: halfmap class2d --particles p.star --classes 50 --out classes

    Raises:
        InputError: any bad input, in one line.
    """
    arguments = locals()
    with open_job(class2d, arguments, iterations=iterations) as opened:
        job, progress, where = opened.job, opened.progress, opened.device
        data = _inputs.read_particles(
            particles,
            data_dir=data_dir,
            ctf=ctf,
            pixel_size_angstrom=pixel_size_angstrom,
            box=box,
            passthrough=passthrough,
            contrast=contrast,
        )
        _inputs.refuse_expanded(data)
        radius_px = _inputs.particle_radius_px(diameter_angstrom, data, None)
        problem = _setup.open_problem(
            data,
            job,
            progress,
            radius_px=radius_px,
            symmetry="C1",
            dimensions=2,
            n_classes=classes,
            matched_to="shared",
            ctf=ctf,
            learn_norm_and_scale=method == ML,
            memory=memory,
            seed=seed,
            device=where,
            angular_step_deg=angular_step_deg or ANGULAR_STEP_DEG,
        )
        tell_contrast(problem, progress)
        search = SearchSettings(
            problem.specimen,
            angular_step_deg=angular_step_deg or ANGULAR_STEP_DEG,
            shift_range_px=shift_range_px,
            shift_step_px=shift_step_px,
            n_refined=4,
            most_refined=4,
        )
        circle = _inputs.solvent_mask(
            None, data, radius_px, dimensions=2, device=where, progress=progress
        )
        settings = Settings(
            search,
            RESOLUTION_AT,
            reference_mask=circle,
            fsc_mask=circle,
            wiener_constant=wiener_constant,
            tau_fudge=tau_fudge or 1.0,
        )

        def show(state: State) -> None:
            save_class_snapshot(job, state)
            if state.iteration == 0:
                save_class_gallery(
                    job.path("pictures/classes_start.png"),
                    state.references.mean(0).cpu(),
                    [""] * classes,
                    pixel_size_angstrom=data.pixel_size_angstrom,
                )
            else:
                _gallery(job, problem, state)

        chosen = make_method(method, problem, settings)
        state = run_iterations(
            job,
            progress,
            problem,
            chosen,
            lambda: _first_state(problem, settings, start, seed),
            iterations=iterations,
            show=show,
        )
        sizes, resolutions = _write_classes(job, problem, settings, state)
        job.update(classes=classes, iterations=state.iteration, sizes=sizes)
    return Class2DResult(
        Path(out), sizes, resolutions, state.iteration, converged=chosen.converged(state)
    )


def _first_state(problem: Problem, settings: Settings, start: str, seed: int) -> State:
    data = problem.particles
    used = torch.nonzero(problem.half >= 0)[:, 0]
    noise = initial_noise(
        data, used, problem.plane, problem.n_groups, problem.images, batch_size=problem.batch_size
    )
    shells = SHELLS_PER_DIAMETER * data.box / (2 * problem.specimen.radius_px)
    radius = min(problem.plane.radius, max(3, round(shells)))
    references = starting_classes(problem, settings, noise, radius, how=start, seed=seed)
    return State(
        iteration=0,
        references=references[None].cpu(),
        poses=identity_poses(torch.zeros(len(data), dtype=torch.long)),
        radius=radius,
        curves=torch.zeros(problem.n_classes, problem.plane.radius + 1),
        statistics=(NoiseSpectra(noise.cpu()),),
    )


def _by_size(
    problem: Problem, state: State
) -> tuple[Int[Tensor, " K"], tuple[int, ...], tuple[float, ...]]:
    """Classes in order of size, and in that order their sizes and resolutions."""
    sizes = class_sizes(problem, state.poses)
    order = torch.argsort(sizes, descending=True, stable=True)
    box, pixel = problem.particles.box, problem.particles.pixel_size_angstrom
    resolutions = [resolution_at(Curve(box, pixel, curve), RESOLUTION_AT) for curve in state.curves]
    return order, tuple(int(sizes[k]) for k in order), tuple(resolutions[k] for k in order)


def _gallery(job: Job, problem: Problem, state: State) -> None:
    order, sizes, resolutions = _by_size(problem, state)
    told = [
        class_in_words(k + 1, n, sum(sizes), r if n else math.inf)
        for k, (n, r) in enumerate(zip(sizes, resolutions, strict=True))
    ]
    save_class_gallery(
        job.path("pictures/classes.png"),
        state.references.mean(0)[order.to(state.references.device)].cpu(),
        ["\n".join(words.rsplit(" · ", 1)) for words in told],
        pixel_size_angstrom=problem.particles.pixel_size_angstrom,
    )


def _write_classes(
    job: Job, problem: Problem, settings: Settings, state: State
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """`classes.mrcs`, `classes.star` and `particles.star` with class 1 the largest, and the
    pictures."""
    order, sizes, resolutions = _by_size(problem, state)
    images: Float[Tensor, "K N N"] = state.references.mean(0).cpu()[order]
    images[torch.tensor(sizes) == 0] = 0  # reseeded after the last search: no particle is in it
    stack = job.path("classes.mrcs")  # named as RELION takes it, from the working directory
    write_stack(stack, images.numpy(), problem.particles.pixel_size_angstrom)
    table: dict[str, Any] = {
        "rlnReferenceImage": [f"{k + 1:06d}@{stack}" for k in range(len(order))],
        "rlnClassDistribution": np.array(sizes) / sum(sizes),
        "rlnEstimatedResolution": np.array([min(r, UNRESOLVED) for r in resolutions]),
        "halfmapClassSize": np.array(sizes),
    }
    write_star(job.path("classes.star"), {"model_classes": Table.from_columns(table)})
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    ranked = replace(state, poses=replace(state.poses, classes=rank[state.poses.classes]))
    write_particles(job, problem, ranked)
    write_pictures(job, problem, settings, ranked)
    with drawing("class_history.png"):
        plot_class_history(job, state, class_sizes(problem, state.poses))
    with drawing("classes.png"):
        _gallery(job, problem, state)
    return sizes, resolutions
