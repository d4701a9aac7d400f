"""The job `halfmap class3d`: K maps from particles of K kinds, by maximum likelihood (lecture part
3) or projection matching (part 2).

Each image weighs class and pose by their probability given the K references, or takes those whose
projection `R_ik = C_i P_phi V_k` has the highest correlation coefficient; each volume is then
updated from its images. An image meets the references that the other half of the data made, never
its own share in them, or those of other parts of its own half.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from halfmap.commands import _halves, _inputs
from halfmap.commands._doubts import doubted_classes
from halfmap.commands._final_maps import last_maps, write_map_files
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
    Sequence,
    Setting,
    ShiftRange,
    ShiftStep,
    SigmaRotation,
    SigmaShift,
    Symmetry,
    TauFudge,
    Threads,
    WienerConstant,
)
from halfmap.commands._references import references_of
from halfmap.commands._results import write_particles, write_pictures
from halfmap.commands._summaries import OPTIMISTIC, angstrom, counted, ending, mask_in_words, where
from halfmap.commands._volumes import OpenedVolumes, first_state, open_volumes, volume_options
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.methods.class_check import CHECK_FOLDS, CHECK_ITERATIONS, checked_classes
from halfmap.methods.reference_update import class_sizes
from halfmap.methods.registry import make_method
from halfmap.methods.settings import Settings
from halfmap.methods.splitting import split_start
from halfmap.options import command
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress

ITERATIONS = 25


@dataclass(frozen=True)
class Class3DResult:
    """Where the maps of the classes are, how many particles each holds and its resolution (FSC
    0.143, corrected for the mask; optimistic where the halves share references), and the best of
    these."""

    folder: Path
    resolution_angstrom: float
    resolutions_angstrom: tuple[float, ...]
    sizes: tuple[int, ...]
    mask: str
    iterations: int
    converged: bool
    optimistic: bool = True

    @property
    def summary(self) -> str:
        """The last line of the job."""
        n, remark = len(self.sizes), f", {OPTIMISTIC}" * self.optimistic
        told = ", ".join(
            f"class{k + 1:03d} {angstrom(self.resolutions_angstrom[k])} "
            f"({counted(self.sizes[k], 'particle')})"
            for k in range(n)
        )
        return (
            f"{told}; FSC 0.143, mask-corrected, {self.mask}{remark}; "
            f"{ending(self.iterations, converged=self.converged)}: "
            f"{where(self.folder / 'class001.mrc')}{' ...' * (n > 1)}"
        )


@command
def class3d(
    particles: ParticlesFile,
    reference: Annotated[
        str | Path | Sequence[str | Path],
        Option(
            "Starting map (MRC): one for all classes, or give it once per class; or a table that "
            "names them, such as RELION's model STAR",
            metavar="MAP",
        ),
    ],
    out: OutFolder,
    *,
    classes: Annotated[int, Option("Number of classes K", at_least=1, metavar="K")],
    method: Annotated[Method3D, Option("How poses and classes are found")] = "ml",
    search: SearchOption = "adaptive",
    symmetry: Symmetry = "C1",
    diameter_angstrom: DiameterOfReference = None,
    initial_lowpass_angstrom: InitialLowpass = None,
    mask: Mask = None,
    iterations: Annotated[
        int | None,
        Option(
            "Iterations at most; fewer where nothing improves any more",
            at_least=1,
            metavar="N",
            unset="25",
            free_on_resume=True,
        ),
    ] = None,
    angular_step_deg: AngularStep = None,
    shift_range_px: ShiftRange = 5.0,
    shift_step_px: ShiftStep = 1.0,
    alignment: Annotated[
        bool, Option("Find poses too, or keep those of the particle file and find classes only")
    ] = True,
    focus_mask: Annotated[
        str | Path | None,
        Option(
            "Mask (MRC, values 0 to 1) inside which alone classes differ",
            metavar="MAP",
            needs=(Setting("classes", other_than=(1,)),),
        ),
    ] = None,
    local: Local = False,
    local_range_deg: LocalRange = None,
    sigma_rotation_deg: SigmaRotation = None,
    sigma_shift_angstrom: SigmaShift = None,
    tau_fudge: TauFudge = None,
    folds: Annotated[
        int,
        Option(
            "Parts of each half. With 2 or more the halves never meet: images are compared with "
            "maps of the other parts of their own half, and what they say of their class is as "
            "sure as it is right (4 is good); with 1, with the other half's maps: less memory",
            at_least=1,
            metavar="N",
        ),
    ] = 1,
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
) -> Class3DResult:
    """Classify particles into K maps, poses and classes found together.

    Each class gets `class001.mrc` ... with half maps, FSC and pictures. With one reference for all,
    poses are first found against it alone, and the classes start where the particles differ most
    (`halfmap.methods.principal_components`). Options as in `refine`.

    At the end classes are checked on images whose noise is split (`halfmap.methods.class_check`):
    where they are not borne out, `halfmapClassProbability` and the maps follow what is, and the job
    says so. The halves of a class are matched to each other's references, so that the resolutions
    told are optimistic; `--folds 4` keeps the halves apart. Or `refine` a class's particles.

    With `--no-alignment` and a `--focus-mask`, particles whose poses are known are sorted by a
    small part: outside the focus mask all classes are the same.

    Example: halfmap class3d --particles p.star --reference a.mrc --reference b.mrc --classes 2
    --out states

    Raises:
        InputError: any bad input, in one line.
    """
    arguments = locals()
    maps = references_of([reference] if isinstance(reference, str | Path) else reference)
    options = volume_options(arguments)
    if len(maps) not in (1, classes):
        raise InputError(
            f"--reference: expected 1 map, or one for each of the {classes} classes, got "
            f"{len(maps)}"
        )
    limit = iterations or ITERATIONS
    with open_job(class3d, arguments, iterations=limit) as run:
        job, progress = run.job, run.progress
        opened = open_volumes(
            particles,
            maps,
            options,
            job,
            progress,
            classes=classes,
            matched_to="other" if folds == 1 else "own",
            device=run.device,
            folds=folds,
            poses_kept=not alignment,
        )
        problem = opened.problem
        settings = _focused(opened, particles, focus_mask, progress, alignment=alignment)
        chosen = make_method(method, problem, settings)
        start = opened.start.expand(problem.n_parts, *opened.start.shape)

        def first() -> State:
            if len(maps) == classes:
                return first_state(problem, start, options.lowpass_angstrom)
            progress.note(
                f"poses against the one reference first; then {classes} classes along the "
                "particles' principal differences"
            )
            one = replace(problem, n_classes=1)
            state = first_state(one, start, options.lowpass_angstrom)
            return split_start(
                problem,
                one,
                make_method(method, one, settings),
                settings,
                state,
                seed,
                announce=lambda stage, total: progress.start_stage(stage, total),
                advance=progress.advance,
            )

        state = run_iterations(
            job,
            progress,
            problem,
            chosen,
            first,
            iterations=limit,
            show=lambda new: show_volumes(job, problem, settings, new),
        )
        if method == "ml" and classes > 1:
            state = _checked(job, problem, settings, state, seed, progress)
        write_pictures(job, problem, settings, state)
        state = state.without_references()
        final = last_maps(problem, settings, chosen, state, progress, mask)
        sizes = class_sizes(problem, state.poses).tolist()
        pictures = f"{job.path('pictures/class001.png').parent}/"
        for k in range(classes):
            name = f"class{k + 1:03d}"
            write_map_files(
                final,
                k,
                problem.particles.pixel_size_angstrom,
                map_path=job.path(f"{name}.mrc"),
                prefix=f"{job.folder}/{name}_",
                pictures=pictures,
                words=made_of(job, sizes[k]),
                mask_path=job.path("mask.mrc"),
                optimistic=folds == 1,
            )
        write_particles(job, problem, state)
        best = min(final.resolutions_angstrom)
        job.update(
            resolution_angstrom=best,
            resolutions_angstrom=final.resolutions_angstrom,
            sizes=sizes,
            iterations=state.iteration,
        )
    return Class3DResult(
        Path(out),
        best,
        final.resolutions_angstrom,
        tuple(sizes),
        mask_in_words(problem, mask),
        state.iteration,
        converged=chosen.converged(state),
        optimistic=folds == 1,
    )


def _checked(
    job: Job, problem: Problem, settings: Settings, state: State, seed: int, progress: Progress
) -> State:
    """The state with the classes that images tell where their noise cannot confirm itself; the user
    is told where that is less than was said."""
    progress.start_stage("classes on split noise", (CHECK_ITERATIONS + 1) * len(problem.used))
    fold = _halves.divide_into_folds(problem.particles, CHECK_FOLDS, seed)
    checked = checked_classes(problem, settings, state, fold, seed, advance=progress.advance)
    told = doubted_classes(checked.said, checked.borne_out, problem.n_classes, checked.differ)
    for one in told:
        progress.note(one)
    most = max(job.results.get("estimated_memory_bytes", 0), checked.needed_bytes)
    job.update(doubts=told, estimated_memory_bytes=most)
    return checked.state


def _focused(
    opened: OpenedVolumes,
    particles: str | Path,
    focus_mask: str | Path | None,
    progress: Progress,
    *,
    alignment: bool,
) -> Settings:
    """The settings with the focus mask, and poses known without an alignment.

    Raises:
        InputError: poses are to be kept and the file has none, or the mask does not fit.
    """
    data = opened.problem.particles
    if not (alignment or data.has_poses):
        raise InputError(
            f"{particles}: --no-alignment keeps given poses, but the file has no rlnAngleRot, "
            "rlnAngleTilt, rlnAnglePsi"
        )
    if focus_mask is None:
        return replace(opened.settings, poses_known=not alignment)
    focus = _inputs.read_job_mask(focus_mask, data, progress).to(opened.problem.device)
    return replace(opened.settings, poses_known=not alignment, focus_mask=focus)
