"""The job `halfmap class3d`: K maps from particles of K kinds, by maximum likelihood (lecture part
3) or projection matching (part 2).

Each image weighs class and pose by their probability given the K references, or takes those whose
projection `R_ik = C_i P_phi V_k` has the highest correlation coefficient; each volume is then
updated from its images. An image meets the references that the other half of the data made, never
its own share in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from halfmap.commands import _setup
from halfmap.commands._results import (
    last_maps,
    run_iterations,
    show_volumes,
    write_map_files,
    write_particles,
    write_pictures,
)
from halfmap.commands._summaries import (
    OPTIMISTIC,
    angstrom,
    counted,
    ending,
    mask_in_words,
    where,
)
from halfmap.commands._volumes import VolumeOptions, first_state, open_volumes
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.methods.principal_components import split_start
from halfmap.methods.reference_update import class_sizes
from halfmap.methods.registry import make_method
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress

ITERATIONS = 25


@dataclass(frozen=True)
class Class3DResult:
    """Where the maps of the classes are, how many particles each holds and its resolution (FSC
    0.143, corrected for the mask; optimistic, because the halves share references), and the best of
    these."""

    folder: Path
    resolution_angstrom: float
    resolutions_angstrom: tuple[float, ...]
    sizes: tuple[int, ...]
    mask: str
    iterations: int
    converged: bool

    @property
    def summary(self) -> str:
        """The last line of the job."""
        n = len(self.sizes)
        told = ", ".join(
            f"class{k + 1:03d} {angstrom(self.resolutions_angstrom[k])} "
            f"({counted(self.sizes[k], 'particle')})"
            for k in range(n)
        )
        return (
            f"{told}; FSC 0.143, mask-corrected, {self.mask}, {OPTIMISTIC}; "
            f"{ending(self.iterations, converged=self.converged)}: "
            f"{where(self.folder / 'class001.mrc')}{' ...' * (n > 1)}"
        )


def class3d(
    particles: str | Path,
    reference: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    classes: int,
    method: str = "ml",
    search: str = "adaptive",
    symmetry: str = "C1",
    diameter_angstrom: float | None = None,
    initial_lowpass_angstrom: float | None = None,
    mask: str | Path | None = None,
    iterations: int | None = None,
    angular_step_deg: float | None = None,
    shift_range_px: float = 5.0,
    shift_step_px: float = 1.0,
    local: bool = False,
    local_range_deg: float | None = None,
    wiener_constant: float | None = None,
    tau_fudge: float | None = None,
    ctf: bool = True,
    data_dir: str | Path | None = None,
    seed: int = 1,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> Class3DResult:
    """Classify particles into K maps, poses and classes found together; `class001.mrc` ... with
    half maps, FSC and pictures.

    Args:
        reference: one map for all classes, or K maps. With one, poses are first found against it
            alone, and the classes start where the particles differ most (`start3d`). classes: K.
            Others as in `refine`.

    The halves of a class are matched to each other's references, so that the resolutions told are
    optimistic; `refine` a class's particles for an honest one.

    Raises:
        InputError: any bad input, in one line.
    """
    parameters = {
        name: value
        for name, value in locals().items()
        if name not in ("out", "resume", "overwrite")
    }
    maps = [reference] if isinstance(reference, str | Path) else list(reference)
    options = VolumeOptions(
        method=method,
        search=search,
        symmetry=symmetry,
        diameter_angstrom=diameter_angstrom,
        initial_lowpass_angstrom=initial_lowpass_angstrom,
        mask=mask,
        iterations=iterations,
        angular_step_deg=angular_step_deg,
        shift_range_px=shift_range_px,
        shift_step_px=shift_step_px,
        local=local,
        local_range_deg=local_range_deg,
        wiener_constant=wiener_constant,
        tau_fudge=tau_fudge,
        ctf=ctf,
        data_dir=data_dir,
        seed=seed,
        memory=memory,
    )
    options.check()
    if len(maps) not in (1, classes):
        raise InputError(
            f"--reference: expected 1 map, or one for each of the {classes} classes, got "
            f"{len(maps)}"
        )
    _setup.check_positive(classes=classes)
    limit = iterations or ITERATIONS
    where = _setup.use_device(device, threads)
    with (
        Job.create(
            "class3d", parameters, out, seed=seed, overwrite=overwrite, resume=resume
        ) as job,
        Progress("class3d", iterations=limit, quiet=quiet) as progress,
    ):
        opened = open_volumes(
            particles,
            maps,
            options,
            job,
            progress,
            classes=classes,
            matched_to="other",
            device=where,
        )
        problem, settings = opened.problem, opened.settings
        chosen = make_method(method, problem, settings)

        def first() -> State:
            if len(maps) == classes:
                return first_state(
                    problem, opened.start[None].repeat(2, 1, 1, 1, 1), options.lowpass_angstrom
                )
            progress.note(
                f"poses against the one reference first; then {classes} classes along the "
                "particles' principal differences"
            )
            one = replace(problem, n_classes=1)
            state = first_state(
                one, opened.start[None].repeat(2, 1, 1, 1, 1), options.lowpass_angstrom
            )
            return split_start(
                problem, one, make_method(method, one, settings), settings, state, seed, progress
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
        final = last_maps(problem, settings, chosen, state, progress)
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
                optimistic=True,
            )
        write_particles(job, problem, state)
        write_pictures(job, problem, settings, state)
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
        converged=chosen.finished(state),
    )
