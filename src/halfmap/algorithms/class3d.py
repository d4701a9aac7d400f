"""The job `halfmap class3d`: K maps from particles of K kinds, by projection matching with K references (lecture part 2).

Each image takes the class and pose whose projection `R_ik = C_i P_phi V_k` has the highest correlation coefficient; each volume is then
updated from its own images.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from halfmap.algorithms import inputs, setup
from halfmap.algorithms.projection_matching import Settings, class_sizes, projection_matching
from halfmap.algorithms.refine3d import INITIAL_LOWPASS_ANGSTROM, METHODS, first_state
from halfmap.algorithms.results import (
    Refined,
    final_maps,
    run_iterations,
    show_references,
    write_map_files,
    write_particles,
    write_pictures,
)
from halfmap.algorithms.start3d import split_start
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.jobs import Job
from halfmap.progress import Progress

ITERATIONS = 25
RESOLUTION_AT = 0.5  # the halves of a class share their reference


def class3d(
    particles: str | Path,
    reference: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    classes: int,
    method: str = "projection-matching",
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
    ctf: bool = True,
    data_dir: str | Path | None = None,
    seed: int = 1,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> Refined:
    """Classify particles into K maps, poses and classes found together; `class001.mrc` ... with half maps, FSC and pictures.

    Args:
        reference: one map for all classes, or K maps. With one, poses are first found against it alone, and the classes start where the
            particles differ most (`start3d`). classes: K. Others as in `refine`.

    Raises:
        InputError: any bad input, in one line.
    """
    parameters = {name: value for name, value in locals().items() if name not in ("out", "resume", "overwrite")}
    maps = [reference] if isinstance(reference, str | Path) else list(reference)
    if method not in METHODS:
        raise InputError(f"--method {method}: expected one of {', '.join(METHODS)}")
    if len(maps) not in (1, classes):
        raise InputError(f"--reference: expected 1 map, or one for each of the {classes} classes, got {len(maps)}")
    setup.check_positive(classes=classes, initial_lowpass=initial_lowpass_angstrom, angular_step=angular_step_deg, iterations=iterations,
                         shift_step=shift_step_px, local_range=local_range_deg, wiener_constant=wiener_constant)  # fmt: skip
    limit = iterations or ITERATIONS
    setup.check_search(angular_step_deg, shift_range_px, seed, symmetry=symmetry)
    where = setup.use_device(device, threads)
    with (
        Job.create("class3d", parameters, out, seed=seed, overwrite=overwrite, resume=resume) as job,
        Progress("class3d", iterations=limit, quiet=quiet) as progress,
    ):
        data = inputs.read_particles(particles, data_dir=data_dir, ctf=ctf)
        if local and not data.has_poses:
            raise InputError(f"{particles}: --local refines around given poses, but the file has no rlnAngleRot, rlnAngleTilt, rlnAnglePsi")
        lowpass = initial_lowpass_angstrom or INITIAL_LOWPASS_ANGSTROM
        start = inputs.read_references(maps, data, lowpass_angstrom=lowpass, device=where)
        radius_px = inputs.particle_radius_px(diameter_angstrom, data, start[0])
        setup.check_classes(classes, len(data))
        solvent = inputs.solvent_mask(mask, data, radius_px, dimensions=3, device=where)
        setup.batch_size(data.box, dimensions=3, n_classes=classes, independent_halves=False, memory=memory, device=where)
        half = inputs.set_aside_bad_images(data, inputs.divide_into_halves(data, seed), job, progress)
        setup.check_classes(classes, int((half >= 0).sum()))
        problem = setup.make_problem(
            data, half, device=where, radius_px=radius_px, symmetry=symmetry, dimensions=3, n_classes=classes, independent_halves=False,
            ctf=ctf, memory=memory, progress=progress,
        )  # fmt: skip
        search = setup.search_settings(
            problem, angular_step_deg or 7.5, shift_range_px, shift_step_px, local_range_deg=(local_range_deg or 5.0) if local else None
        )
        settings = Settings(
            search, RESOLUTION_AT, solvent, wiener_constant=wiener_constant, anchor=inputs.poses_of(data) if local else None
        )
        matching = projection_matching(problem, settings)

        def first() -> State:
            if len(maps) == classes:
                return first_state(problem, start[None] * solvent, lowpass)
            progress.note(f"poses against the one reference first; then {classes} classes along the particles' principal differences")
            one = replace(problem, n_classes=1)
            state = first_state(one, start[None] * solvent, lowpass)
            return split_start(problem, one, projection_matching(one, settings), settings, state, seed, progress)

        state = run_iterations(
            job, progress, problem, matching, first, iterations=limit,
            show=lambda new: show_references(job, problem, new),
        )  # fmt: skip
        final = final_maps(problem, settings, state.poses, state.noise_variance, progress)
        sizes = class_sizes(problem, state.poses).tolist()
        pictures = f"{job.path('pictures/class001.png').parent}/"
        for k in range(classes):
            name = f"class{k + 1:03d}"
            write_map_files(
                final, k, data.pixel_size_angstrom, map_path=job.path(f"{name}.mrc"), prefix=f"{job.folder}/{name}_", pictures=pictures
            )
            progress.note(f"{name}: {sizes[k]} particles, {final.resolutions_angstrom[k]:.2f} A")
        write_particles(job, problem, state.poses)
        write_pictures(job, problem, state.poses)
        best = min(final.resolutions_angstrom)
        job.update(resolution_angstrom=best, resolutions_angstrom=final.resolutions_angstrom, sizes=sizes, iterations=state.iteration)
    return Refined(Path(out), best, final.resolutions_angstrom)
