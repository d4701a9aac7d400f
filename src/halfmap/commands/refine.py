"""The job `halfmap refine`: one map from particles and a starting map, in two independent halves
(gold standard)."""

from pathlib import Path

from halfmap.commands import _setup
from halfmap.commands._results import (
    RefinementResult,
    last_maps,
    refinement_result,
    run_iterations,
    show_volumes,
    write_map_files,
    write_particles,
    write_pictures,
)
from halfmap.commands._volumes import VolumeOptions, first_state, open_volumes
from halfmap.methods.registry import make_method
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress

ITERATIONS = 20


def refine(
    particles: str | Path,
    reference: str | Path,
    out: str | Path,
    *,
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
) -> RefinementResult:
    """Refine the poses of particles against a starting map, and measure the resolution between
    independent halves.

    Args:
        particles: STAR or .cs file. reference: map (MRC) of the images' box and pixel size. out:
            job folder.
        method: "ml" (maximum likelihood, lecture part 3; RELION) or "projection-matching" (lecture
            part 2; FREALIGN).
        search: of all orientations, "adaptive" (coarse to fine, the best cells) or
            "branch-and-bound" (all cells that a bound cannot exclude: slower, and an image's best
            pose is missed with a stated probability only).
        symmetry: point group in RELION's orientation.
        diameter_angstrom: of the particle mask; from the reference if None. mask: solvent mask
            (MRC) instead of a soft sphere.
        initial_lowpass_angstrom: resolution to which the reference is filtered first, 60 if None.
        iterations: at most; 20 if None. angular_step_deg: of the finer search grid, 7.5 if None.
        shift_range_px, shift_step_px: of the global search.
        local: refine around the poses of the STAR only, held near them by a Gaussian prior:
            `local_range_deg` (5 if None) is three standard deviations of the rotation, and the
            shift may move as far as that rotation moves the particle's rim.
        tau_fudge: T of the MAP update, 1 if None (ml). wiener_constant: constant k of `num / (k +
            sum C^2)`; 1/SSNR from the half maps if None (projection-matching).
        memory: bytes to stay below; half of the machine's if None.

    Raises:
        InputError: any bad input, in one line.
    """
    parameters = {
        name: value
        for name, value in locals().items()
        if name not in ("out", "resume", "overwrite")
    }
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
    limit = iterations or ITERATIONS
    where = _setup.use_device(device, threads)
    with (
        Job.create("refine", parameters, out, seed=seed, overwrite=overwrite, resume=resume) as job,
        Progress("refine", iterations=limit, quiet=quiet) as progress,
    ):
        opened = open_volumes(
            particles,
            [reference],
            options,
            job,
            progress,
            classes=1,
            matched_to="own",
            device=where,
        )
        problem, settings = opened.problem, opened.settings
        chosen = make_method(method, problem, settings)
        both_halves = opened.start.expand(2, *opened.start.shape[1:])[:, None]
        state = run_iterations(
            job,
            progress,
            problem,
            chosen,
            lambda: first_state(problem, both_halves, options.lowpass_angstrom),
            iterations=limit,
            show=lambda new: show_volumes(job, problem, settings, new),
        )
        final = last_maps(problem, settings, chosen, state, progress)
        pictures = job.path("pictures/map.png").parent
        pixel = problem.particles.pixel_size_angstrom
        write_map_files(
            final,
            0,
            pixel,
            map_path=job.path("map.mrc"),
            prefix=f"{job.folder}/",
            pictures=f"{pictures}/",
        )
        write_particles(job, problem, state)
        write_pictures(job, problem, settings, state)
        resolution = final.resolutions_angstrom[0]
        job.update(resolution_angstrom=resolution, iterations=state.iteration)
    return refinement_result(
        problem,
        final,
        folder=Path(out),
        map_path=Path(out, "map.mrc"),
        mask=mask,
        iterations=state.iteration,
        converged=chosen.finished(state),
    )
