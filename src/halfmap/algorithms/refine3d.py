"""The job `halfmap refine`: one map from particles and a starting map, in two independent halves (gold standard)."""

import math
from pathlib import Path

import torch

from halfmap.algorithms import inputs, setup
from halfmap.algorithms.projection_matching import Settings, projection_matching
from halfmap.algorithms.results import (
    Refined,
    final_maps,
    run_iterations,
    show_references,
    write_map_files,
    write_particles,
    write_pictures,
)
from halfmap.engine.images import initial_noise
from halfmap.engine.loop import Problem
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.fourier import largest_radius
from halfmap.jobs import Job
from halfmap.progress import Progress

METHODS = ("projection-matching",)
ITERATIONS = 20
INITIAL_LOWPASS_ANGSTROM = 60.0  # RELION's default


def refine(
    particles: str | Path,
    reference: str | Path,
    out: str | Path,
    *,
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
    """Refine the poses of particles against a starting map, and measure the resolution between independent halves.

    Args:
        particles: STAR or .cs file. reference: map (MRC) of the images' box and pixel size. out: job folder.
        method: "projection-matching" (lecture part 2; FREALIGN).
        symmetry: point group in RELION's orientation.
        diameter_angstrom: of the particle mask; from the reference if None. mask: solvent mask (MRC) instead of a soft sphere.
        initial_lowpass_angstrom: resolution to which the reference is filtered first, 60 if None.
        iterations: at most; 20 if None. angular_step_deg: of the finer search grid, 7.5 if None.
        shift_range_px, shift_step_px: of the global search.
        local: refine around the poses of the STAR only, held near them by a Gaussian prior: `local_range_deg` (5 if None) is three standard
            deviations of the rotation, and the shift may move as far as that rotation moves the particle's rim.
        wiener_constant: constant k of `num / (k + sum C^2)`; 1/SSNR from the half maps if None.
        memory: bytes to stay below; half of the machine's if None.

    Raises:
        InputError: any bad input, in one line.
    """
    parameters = {name: value for name, value in locals().items() if name not in ("out", "resume", "overwrite")}
    if method not in METHODS:
        raise InputError(f"--method {method}: expected one of {', '.join(METHODS)}")
    setup.check_positive(initial_lowpass=initial_lowpass_angstrom, angular_step=angular_step_deg, iterations=iterations,
                         shift_step=shift_step_px, local_range=local_range_deg, wiener_constant=wiener_constant)  # fmt: skip
    setup.check_search(angular_step_deg, shift_range_px, seed, symmetry=symmetry)
    limit = iterations or ITERATIONS
    where = setup.use_device(device, threads)
    with (
        Job.create("refine", parameters, out, seed=seed, overwrite=overwrite, resume=resume) as job,
        Progress("refine", iterations=limit, quiet=quiet) as progress,
    ):
        data = inputs.read_particles(particles, data_dir=data_dir, ctf=ctf)
        if local and not data.has_poses:
            raise InputError(f"{particles}: --local refines around given poses, but the file has no rlnAngleRot, rlnAngleTilt, rlnAnglePsi")
        lowpass = initial_lowpass_angstrom or INITIAL_LOWPASS_ANGSTROM
        start = inputs.read_references([reference], data, lowpass_angstrom=lowpass, device=where)
        radius_px = inputs.particle_radius_px(diameter_angstrom, data, start[0])
        solvent = inputs.solvent_mask(mask, data, radius_px, dimensions=3, device=where)
        setup.batch_size(data.box, dimensions=3, n_classes=1, independent_halves=True, memory=memory, device=where)
        half = inputs.set_aside_bad_images(data, inputs.divide_into_halves(data, seed), job, progress)
        problem = setup.make_problem(
            data, half, device=where, radius_px=radius_px, symmetry=symmetry, dimensions=3, n_classes=1, independent_halves=True,
            ctf=ctf, memory=memory, progress=progress,
        )  # fmt: skip
        search = setup.search_settings(
            problem, angular_step_deg or 7.5, shift_range_px, shift_step_px, local_range_deg=(local_range_deg or 5.0) if local else None
        )
        settings = Settings(search, 0.143, solvent, wiener_constant=wiener_constant, anchor=inputs.poses_of(data) if local else None)
        both_halves = start.expand(2, *start.shape[1:])[:, None] * solvent
        matching = projection_matching(problem, settings)
        state = run_iterations(
            job, progress, problem, matching, lambda: first_state(problem, both_halves, lowpass), iterations=limit,
            show=lambda new: show_references(job, problem, new),
        )  # fmt: skip
        final = final_maps(problem, settings, state.poses, state.noise_variance, progress)
        pictures = job.path("pictures/map.png").parent
        write_map_files(final, 0, data.pixel_size_angstrom, map_path=job.path("map.mrc"), prefix=f"{job.folder}/", pictures=f"{pictures}/")
        write_particles(job, problem, state.poses)
        write_pictures(job, problem, state.poses)
        resolution = final.resolutions_angstrom[0]
        job.update(resolution_angstrom=resolution, iterations=state.iteration)
    return Refined(Path(out), resolution, final.resolutions_angstrom)


def first_state(problem: Problem, references: torch.Tensor, lowpass_angstrom: float) -> State:
    """Iteration 0: starting references, scored inside the resolution they were filtered to; the file's poses; noise from the power."""
    data = problem.particles
    used = torch.nonzero(problem.half >= 0)[:, 0]
    noise = initial_noise(data, used, problem.plane, problem.n_groups, problem.images, batch_size=problem.batch_size)
    shells = math.ceil(data.box * data.pixel_size_angstrom / lowpass_angstrom) + 1
    radius = min(largest_radius(data.box), max(3, shells))
    curves = torch.zeros(problem.n_classes, problem.plane.radius + 1)
    return State(0, references, inputs.poses_of(data).in_one_class(), noise, radius, curves)
