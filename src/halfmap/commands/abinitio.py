"""The job `halfmap abinitio`: maps from particles alone, from random starts (stochastic gradient
ascent; lecture, last part)."""

import math
from dataclasses import replace

import torch

from halfmap.commands import _inputs, _setup
from halfmap.commands._contrast import tell_contrast
from halfmap.commands._frames import align_to_symmetry_axes
from halfmap.commands._initial_maps import (
    AbInitioResult,
    finish_initial_maps,
    order_and_align_classes,
)
from halfmap.commands._iterations import run_iterations, show_volumes
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
    Mask,
    Memory,
    Option,
    OutFolder,
    Overwrite,
    ParticlesFile,
    Passthrough,
    Quiet,
    Resume,
    Seed,
    Setting,
    Symmetry,
    Threads,
)
from halfmap.commands._several_runs import best_of
from halfmap.commands._summaries import map_name
from halfmap.commands._volumes import ANGULAR_STEP_DEG, THRESHOLD, first_state
from halfmap.distributed import broadcast_object
from halfmap.engine.image_model import noise_variance
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.fourier import largest_radius
from halfmap.methods.settings import Settings
from halfmap.methods.stochastic_gradient import GradientSchedule, random_maps, stochastic_gradient
from halfmap.options import command
from halfmap.pose_search.sampling import radius_of_step
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress

# with 60, one of ten maps of TRPV1 without its symmetry is wrong; with 100 none is
# (`python benchmarks/run.py abinitio_trpv1_c1`)
ITERATIONS = 100
# of all coarse cells: poses are drawn from the posterior here, and the next mini-batch looks again;
# with 1/4 a job costs four times as much
LARGEST_CELL_SHARE = 1 / 96
FULL_ITERATIONS = 8
SHARE_WITHOUT_SYMMETRY = 0.6  # of the mini-batches, that know of no symmetry
SHELLS_PER_DIAMETER = (
    6.0,
    9.5,
)  # resolution of the first and the last mini-batch: a sixth of the diameter, and 1 / 9.5
SHIFT_RANGE_ANGSTROM = 25.0
LEAST_SYMMETRY_CORRELATION = (
    0.5  # correlation of a map with its symmetry mates below which the symmetry is doubted
)
_SHOWN_EVERY = 10


@command
def abinitio(
    particles: ParticlesFile,
    out: OutFolder,
    *,
    classes: Annotated[
        int, Option("Number of maps, the largest class first", at_least=1, metavar="K")
    ] = 1,
    symmetry: Symmetry = "C1",
    early_symmetry: Annotated[
        bool,
        Option(
            "Apply it from the first iteration on, not when the map's axes have been found: "
            "faster, and more often wrong",
            needs=(Setting("symmetry", other_than=("C1",)),),
        ),
    ] = False,
    runs: Annotated[
        int,
        Option("Runs from different random starts; the likeliest is kept", at_least=1, metavar="R"),
    ] = 1,
    flip_hand: Annotated[
        bool, Option("Write the mirror image: both hands fit the images equally")
    ] = False,
    iterations: Annotated[
        int | None,
        Option(
            "Iterations on mini-batches; some with all particles follow, until the likelihood "
            "settles",
            at_least=1,
            metavar="N",
            unset="100",
        ),
    ] = None,
    initial_lowpass_angstrom: Annotated[
        float | None,
        Option(
            "Resolution of the first mini-batch", unit="A", above=0, unset="1/6 of the diameter"
        ),
    ] = None,
    final_lowpass_angstrom: Annotated[
        float | None,
        Option(
            "Resolution of the last mini-batch", unit="A", above=0, unset="1/9.5 of the diameter"
        ),
    ] = None,
    diameter_angstrom: Diameter = None,
    mask: Mask = None,
    allow_negative: Annotated[
        bool,
        Option("Density may be lower than the solvent's; else what is negative is set to 0"),
    ] = False,
    shift_range_px: Annotated[
        float | None, Option("Largest shift searched", unit="px", at_least=0, unset="25 A")
    ] = None,
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
) -> AbInitioResult:
    """Make maps from random starts, at a resolution to start refine or class3d from.

    The maps are `map.mrc`, or `class001.mrc` ... Symmetry is in RELION's orientation: the first 0.6
    of the mini-batches know of none; then the map's axes are found and laid where the group has
    them. Each of several runs has a folder `run001` ... of its own; that of the highest likelihood
    is the job's result, the others are laid onto it (`run001.mrc` ...) and compared by FSC.
    Projections do not tell the hands apart: each run finds either by chance. Particles may be a
    bare stack too.

    Example: halfmap abinitio --particles p.star --diameter 170 --symmetry C4 --out initial

    Raises:
        InputError: any bad input, in one line.
    """
    arguments = locals()
    limit = (iterations or ITERATIONS) + FULL_ITERATIONS
    with open_job(abinitio, arguments, iterations=limit) as opened:
        job, progress, where = opened.job, opened.progress, opened.device
        if runs > 1:
            return best_of(abinitio, runs, opened.parameters, job, progress)
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
        solvent = _inputs.solvent_mask(
            mask, data, radius_px, dimensions=3, device=where, progress=progress
        )
        problem = _setup.open_problem(
            data,
            job,
            progress,
            radius_px=radius_px,
            symmetry=symmetry,
            dimensions=3,
            n_classes=classes,
            matched_to="shared",
            ctf=ctf,
            learn_norm_and_scale=False,
            memory=memory,
            seed=seed,
            device=where,
        )
        tell_contrast(problem, progress)
        reach = (
            SHIFT_RANGE_ANGSTROM / data.pixel_size_angstrom
            if shift_range_px is None
            else shift_range_px
        )
        settings = Settings(
            replace(
                _setup.search_settings(problem, ANGULAR_STEP_DEG, reach, 1.0, local_range_deg=None),
                largest_cell_share=LARGEST_CELL_SHARE,
            ),
            THRESHOLD,
            reference_mask=solvent,
            fsc_mask=solvent,
        )
        radii = _radii(problem, initial_lowpass_angstrom, final_lowpass_angstrom)
        resolved = radius_of_step(ANGULAR_STEP_DEG, data.box, radius_px)
        if radii[1] > resolved:
            reach_angstrom = data.box * data.pixel_size_angstrom / resolved
            progress.note(
                f"the grid of {ANGULAR_STEP_DEG:g} degrees resolves {reach_angstrom:.3g} A; "
                "beyond, a few poses of each image are refined"
            )
        ascent = GradientSchedule(
            limit - FULL_ITERATIONS, FULL_ITERATIONS, seed, radii, non_negative=not allow_negative
        )
        state = _run_gradient_ascent(
            job,
            progress,
            problem,
            settings,
            ascent,
            from_start=early_symmetry or len(problem.symmetry) == 1,
        )
        return finish_initial_maps(
            job,
            progress,
            problem,
            settings,
            order_and_align_classes(problem, state, flip_hand=flip_hand),
        )


def _run_gradient_ascent(
    job: Job,
    progress: Progress,
    problem: Problem,
    settings: Settings,
    ascent: GradientSchedule,
    *,
    from_start: bool,
) -> State:
    """The last state. Unless symmetry is there `from_start`, the first mini-batches know of none;
    the maps are then laid on its axes."""

    def leg(
        problem: Problem, settings: Settings, iterations: int, start: State | None = None
    ) -> State:
        return run_iterations(
            job,
            progress,
            problem,
            stochastic_gradient(problem, settings, ascent),
            start or (lambda: _first(problem, settings, ascent)),
            iterations=iterations,
            show=lambda new: _show(job, problem, settings, new),
        )

    limit = ascent.iterations + ascent.full
    if from_start:
        return leg(problem, settings, limit)
    free = max(1, round(SHARE_WITHOUT_SYMMETRY * ascent.iterations))
    without = replace(problem.specimen, symmetry=problem.symmetry.identity())
    state = leg(replace(problem, specimen=without), settings, free)
    if state.iteration == free:
        state, alike = broadcast_object(
            align_to_symmetry_axes(
                state, problem.symmetry.rotations.cpu(), diameter_px=2 * problem.specimen.radius_px
            )
        )
        for k, correlation in enumerate(alike):
            doubt = (
                ""
                if correlation > LEAST_SYMMETRY_CORRELATION
                else ": it does not look like a map of this symmetry"
            )
            progress.note(
                f"{map_name(k, problem.n_classes)}: axes found, correlation with its symmetry "
                f"mates {correlation:.2f}{doubt}"
            )
        job.update(correlation_with_mates=alike)
    return leg(problem, settings, limit, state)


def _radii(
    problem: Problem, initial_angstrom: float | None, final_angstrom: float | None
) -> tuple[int, int]:
    """Fourier shells of the first and the last mini-batch."""
    width = problem.particles.box * problem.particles.pixel_size_angstrom
    diameter = 2 * problem.specimen.radius_px * problem.particles.pixel_size_angstrom
    initial, final = (
        given or diameter / n
        for given, n in zip((initial_angstrom, final_angstrom), SHELLS_PER_DIAMETER, strict=True)
    )
    if final_angstrom is not None and initial < final:
        whose = (
            "--initial-lowpass"
            if initial_angstrom
            else "the first, a sixth of the diameter (--initial-lowpass)"
        )
        raise InputError(
            f"--final-lowpass {final:g}: expected no coarser than {whose}: {initial:.3g} A"
        )
    first, last = (
        min(largest_radius(problem.particles.box), max(3, round(width / a)))
        for a in (initial, min(initial, final))
    )
    return first, last


def _first(problem: Problem, settings: Settings, ascent: GradientSchedule) -> State:
    box = problem.particles.box
    empty = torch.zeros(1, problem.n_classes, box, box, box, device=problem.images.device)
    state = replace(first_state(problem, empty, math.inf), radius=ascent.radius[0])
    maps = random_maps(problem, settings, ascent, noise_variance(state).to(problem.device))
    return replace(state, references=maps.cpu())


def _show(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    if state.iteration % _SHOWN_EVERY == 0:
        show_volumes(job, problem, settings, state)
