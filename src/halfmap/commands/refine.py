"""The job `halfmap refine`: one map from particles and a starting map, in two independent halves
(gold standard)."""

from dataclasses import replace
from pathlib import Path

from halfmap.commands._doubts import doubts
from halfmap.commands._final_maps import in_own_mask, last_maps, write_map_files
from halfmap.commands._iterations import made_of, run_iterations, show_volumes
from halfmap.commands._job import open_job
from halfmap.commands._options import (
    AngularStep,
    Annotated,
    Contrast,
    Ctf,
    DataDir,
    Device,
    DiameterOfReference,
    Folds,
    GridBox,
    GridPixelSize,
    InitialLowpass,
    Local,
    LocalRange,
    Mask,
    Memory,
    Method3D,
    Option,
    OutFolder,
    Overwrite,
    ParticlesFile,
    Passthrough,
    Quiet,
    Resume,
    SearchOption,
    Seed,
    Setting,
    ShiftRange,
    ShiftStep,
    SigmaRotation,
    SigmaShift,
    Symmetry,
    TauFudge,
    Threads,
    WienerConstant,
    check_symmetry,
)
from halfmap.commands._references import one_reference
from halfmap.commands._results import (
    RefinementResult,
    finish_refinement,
    refinement_result,
    write_particles,
    write_pictures,
)
from halfmap.commands._volumes import first_state, open_volumes, volume_options
from halfmap.errors import InputError
from halfmap.methods.local_references import with_local_regularisation
from halfmap.methods.registry import ML, make_method
from halfmap.options import command
from halfmap.symmetries import point_group

ITERATIONS = 20


@command
def refine(
    particles: ParticlesFile,
    reference: Annotated[
        str | Path,
        Option(
            "Starting map (MRC), a job folder with one, or RELION's model STAR that names it; of "
            "another box or pixel size, it is resampled",
            metavar="MAP",
        ),
    ],
    out: OutFolder,
    *,
    method: Annotated[Method3D, Option("How poses are found and used")] = "ml",
    search: SearchOption = "adaptive",
    symmetry: Symmetry = "C1",
    diameter_angstrom: DiameterOfReference = None,
    initial_lowpass_angstrom: InitialLowpass = None,
    mask: Mask = None,
    iterations: Annotated[
        int | None,
        Option(
            "Iterations at most; fewer where resolution and poses stop improving",
            at_least=1,
            metavar="N",
            unset="20",
            free_on_resume=True,
        ),
    ] = None,
    angular_step_deg: AngularStep = None,
    shift_range_px: ShiftRange = 5.0,
    shift_step_px: ShiftStep = 1.0,
    local: Local = False,
    local_range_deg: LocalRange = None,
    sigma_rotation_deg: SigmaRotation = None,
    sigma_shift_angstrom: SigmaShift = None,
    centre_angstrom: Annotated[
        tuple[float, float, float] | None,
        Option(
            "Point of the starting map, from its centre, about which the new map is to lie; poses "
            "and the mask follow",
            unit="A",
            flag="--centre",
            metavar="X Y Z",
            unset="its centre",
            needs=(Setting("local"),),
        ),
    ] = None,
    relax_symmetry: Annotated[
        str | None,
        Option(
            "Point group that nearly holds: the posterior of each particle is over its mates too; "
            "with --local",
            metavar="G",
            check=check_symmetry,
            unset="none",
            needs=(Setting("local"),),
        ),
    ] = None,
    tau_fudge: TauFudge = None,
    folds: Folds = 4,
    local_regularisation: Annotated[
        bool,
        Option(
            "Filter the references by what the half maps have in common at each place; for "
            "membrane proteins and molecules with floppy parts"
        ),
    ] = False,
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
) -> RefinementResult:
    """Refine poses against a starting map, in two independent halves, and measure the resolution
    between them.

    Methods: maximum likelihood (`ml`; lecture part 3; RELION) and projection matching (lecture part
    2; FREALIGN). Symmetry is in RELION's orientation.

    Example: halfmap refine --particles p.star --reference start.mrc --symmetry C4 --out refined

    Raises:
        InputError: any bad input, in one line.
    """
    arguments = locals()
    options = volume_options(arguments)
    if local_regularisation and wiener_constant is not None:
        raise InputError(
            f"--wiener-constant {wiener_constant:g}: is one number for the whole map; "
            "--local-regularisation finds it place by place; give one of them"
        )
    start, limit = one_reference(reference), iterations or ITERATIONS
    with open_job(refine, arguments, iterations=limit) as run:
        job, progress = run.job, run.progress
        opened = open_volumes(
            particles,
            [start],
            options,
            job,
            progress,
            classes=1,
            matched_to="own",
            device=run.device,
            folds=folds,
            centre_angstrom=centre_angstrom,
            relaxed_symmetry=relax_symmetry,
        )
        problem, settings = opened.problem, opened.settings
        if relax_symmetry is not None:
            settings = replace(settings, relaxed_symmetry=point_group(relax_symmetry))
        chosen = make_method(method, problem, settings)
        if local_regularisation:
            chosen = with_local_regularisation(chosen, settings)
        both_halves = opened.start.expand(problem.n_parts, *opened.start.shape[1:])[:, None]
        state = run_iterations(
            job,
            progress,
            problem,
            chosen,
            lambda: first_state(problem, both_halves, options.lowpass_angstrom),
            iterations=limit,
            show=lambda new: show_volumes(job, problem, settings, new),
        )
        write_pictures(job, problem, settings, state)
        state = state.without_references()
        final = last_maps(problem, settings, chosen, state, progress, mask)
        pixel = problem.particles.pixel_size_angstrom
        if mask is None:
            progress.start_stage("mask", 0)
            final = in_own_mask(final, pixel)
        pictures = job.path("pictures/map.png").parent
        write_map_files(
            final,
            0,
            pixel,
            map_path=job.path("map.mrc"),
            prefix=f"{job.folder}/",
            pictures=f"{pictures}/",
            words=made_of(job, int((problem.half >= 0).sum())),
        )
        write_particles(job, problem, state)
        notes = finish_refinement(job, progress, problem, state, final)
        resolution = final.resolutions_angstrom[0]
        doubted = doubts(
            state,
            resolution,
            options.lowpass_angstrom,
            by_likelihood=method == ML and problem.n_folds > 1,
        )
        notes += doubted
        job.update(doubts=doubted)
        job.update(resolution_angstrom=resolution, iterations=state.iteration)
    return refinement_result(
        problem,
        final,
        folder=Path(out),
        map_path=Path(out, "map.mrc"),
        iterations=state.iteration,
        converged=chosen.converged(state),
        notes=notes,
    )
