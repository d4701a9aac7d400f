"""The job `halfmap abinitio`: maps from particles alone, from random starts (stochastic gradient ascent; lecture, last part)."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from halfmap.algorithms import inputs, setup
from halfmap.algorithms.results import map_name, run_iterations, show_volumes, write_particles, write_pictures
from halfmap.algorithms.settings import Settings
from halfmap.algorithms.stochastic_gradient import Ascent, random_maps, stochastic_gradient
from halfmap.algorithms.update import class_sizes
from halfmap.algorithms.volumes import ANGULAR_STEP_DEG, THRESHOLD, first_state
from halfmap.engine.loop import Problem
from halfmap.engine.state import State
from halfmap.fourier import largest_radius
from halfmap.io.mrc import write_map
from halfmap.jobs import Job
from halfmap.pictures import save_map_picture
from halfmap.progress import Progress

ITERATIONS = 60
FULL_ITERATIONS = 2
SHELLS_PER_DIAMETER = (6.0, 9.5)  # resolution of the first and the last mini-batch: a sixth of the diameter, and 1 / 9.5
SHIFT_RANGE_ANGSTROM = 25.0
_SHOWN_EVERY = 10


@dataclass(frozen=True)
class AbInitio:
    """Where the maps are, how many particles each class has, and the mean log likelihood of each run's particles (the best run's maps are
    the job's)."""

    folder: Path
    sizes: tuple[int, ...]
    log_likelihoods: tuple[float, ...]


def abinitio(
    particles: str | Path,
    out: str | Path,
    *,
    classes: int = 1,
    symmetry: str = "C1",
    runs: int = 1,
    flip_hand: bool = False,
    iterations: int | None = None,
    diameter_angstrom: float | None = None,
    shift_range_px: float | None = None,
    ctf: bool = True,
    data_dir: str | Path | None = None,
    seed: int = 1,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> AbInitio:
    """Make `map.mrc` (`class001.mrc` ...) from particles without any reference, at a resolution to start `refine` or `class3d` from.

    Args:
        particles: STAR or .cs file. out: job folder. classes: K maps.
        symmetry: point group in RELION's orientation, applied from the start.
        runs: from different random starts, each in a folder `run001` ... of its own; that of the highest likelihood is the job's result.
        flip_hand: write the mirror images. Projections do not tell the hands apart: each run finds either by chance.
        iterations: on mini-batches, 60 if None; two with all particles follow.
        diameter_angstrom: of the particle, 0.9 of the box if None; sets the mask, and the resolutions of first and last iterations.
        shift_range_px: largest shift searched; 25 A if None. Others as in `refine`.

    Raises:
        InputError: any bad input, in one line.
    """
    parameters = {name: value for name, value in locals().items() if name not in ("out", "resume", "overwrite")}
    setup.check_positive(classes=classes, runs=runs, iterations=iterations, diameter=diameter_angstrom)
    setup.check_search(None, shift_range_px or 0.0, seed, symmetry=symmetry)
    where = setup.use_device(device, threads)
    limit = (iterations or ITERATIONS) + FULL_ITERATIONS
    with (
        Job.create("abinitio", parameters, out, seed=seed, overwrite=overwrite, resume=resume) as job,
        Progress("abinitio", iterations=limit, quiet=quiet) as progress,
    ):
        if runs > 1:
            return _best_of(runs, parameters, job, progress)
        problem, settings = _open(
            particles, job, progress, classes=classes, symmetry=symmetry, diameter_angstrom=diameter_angstrom,
            shift_range_px=shift_range_px, ctf=ctf, data_dir=data_dir, memory=memory, seed=seed, device=where,
        )  # fmt: skip
        ascent = Ascent(limit - FULL_ITERATIONS, FULL_ITERATIONS, seed, _radii(problem))
        state = run_iterations(
            job, progress, problem, stochastic_gradient(problem, settings, ascent), lambda: _first(problem, settings, ascent),
            iterations=limit, show=lambda new: _show(job, problem, settings, new),
        )  # fmt: skip
        if flip_hand:
            state = mirrored(state)
        pixel, sizes = problem.particles.pixel_size_angstrom, tuple(class_sizes(problem, state.poses).tolist())
        for k, volume in enumerate(state.references[0].cpu().numpy()):
            name = map_name(k, classes)
            write_map(job.path(f"{name}.mrc"), volume, pixel)
            save_map_picture(job.path(f"pictures/{name}.png"), volume, pixel, title=f"{name}, {sizes[k]} particles")
            if classes > 1:
                progress.note(f"{name}: {sizes[k]} particles")
        write_particles(job, problem, state)
        write_pictures(job, problem, settings, state)
        likelihood = state.history[-1]["mean_log_likelihood"]
        progress.note("both hands are equally right; --flip-hand writes the other")
        job.update(sizes=sizes, mean_log_likelihood=likelihood, iterations=state.iteration)
    return AbInitio(Path(out), sizes, (likelihood,))


def _best_of(runs: int, parameters: dict[str, Any], job: Job, progress: Progress) -> AbInitio:
    """Each run in a folder of its own inside the job's, with a seed of its own; the maps and particles of the likeliest are the job's."""
    folders = [job.path(f"run{r + 1:03d}/job.json").parent for r in range(runs)]
    done = []
    for r, folder in enumerate(folders):
        progress.note(f"run {r + 1} of {runs}")
        again = (folder / "job.json").exists()
        single = {**parameters, "runs": 1, "seed": parameters["seed"] + r}
        done.append(abinitio(out=folder, overwrite=not again, resume=again, **single))
    likelihoods = tuple(run.log_likelihoods[0] for run in done)
    best = max(range(runs), key=lambda r: likelihoods[r])
    for path in [*sorted(folders[best].glob("*.mrc")), folders[best] / "particles.star"]:
        shutil.copyfile(path, job.path(path.name))
    progress.note(f"best of {runs} runs: {best + 1}")
    job.update(best_run=best + 1, log_likelihoods=likelihoods, sizes=done[best].sizes)
    return AbInitio(job.folder, done[best].sizes, likelihoods)


def _open(
    particles: str | Path, job: Job, progress: Progress, *, classes: int, symmetry: str, diameter_angstrom: float | None,
    shift_range_px: float | None, ctf: bool, data_dir: str | Path | None, memory: int | None, seed: int, device: torch.device,
) -> tuple[Problem, Settings]:  # fmt: skip
    data = inputs.read_particles(particles, data_dir=data_dir, ctf=ctf)
    radius_px = inputs.particle_radius_px(diameter_angstrom, data, None)
    problem = setup.open_problem(
        data, job, progress, radius_px=radius_px, symmetry=symmetry, dimensions=3, n_classes=classes, matched_to="shared", ctf=ctf,
        intensity=False, memory=memory, seed=seed, device=device,
    )  # fmt: skip
    reach = SHIFT_RANGE_ANGSTROM / data.pixel_size_angstrom if shift_range_px is None else shift_range_px
    search = setup.search_settings(problem, ANGULAR_STEP_DEG, reach, 1.0, local_range_deg=None)
    return problem, Settings(search, THRESHOLD, inputs.solvent_mask(None, data, radius_px, dimensions=3, device=device))


def _radii(problem: Problem) -> tuple[int, int]:
    """Fourier shells of the first and the last mini-batch."""
    shells = [x * problem.particles.box / (2 * problem.images.particle_radius_px) for x in SHELLS_PER_DIAMETER]
    first, last = (min(largest_radius(problem.particles.box), max(3, round(s))) for s in shells)
    return first, last


def _first(problem: Problem, settings: Settings, ascent: Ascent) -> State:
    box = problem.particles.box
    empty = torch.zeros(1, problem.n_classes, box, box, box, device=problem.images.device)
    state = replace(first_state(problem, empty, math.inf), radius=ascent.radius[0])
    return replace(state, references=random_maps(problem, settings, ascent, state.noise_variance))


def _show(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    if state.iteration % _SHOWN_EVERY == 0:
        show_volumes(job, problem, settings, state)


def mirrored(state: State) -> State:
    """The state's maps inverted, V(-x), and the orientations that show the same projections of them: A turned by 180 degrees in the plane.

    Inversion commutes with every rotation: the symmetry keeps its axes.
    """
    references = state.references.flip((-3, -2, -1))
    if references.shape[-1] % 2 == 0:  # the centre, N // 2, stays where it is
        references = references.roll((1, 1, 1), (-3, -2, -1))
    half_turn = torch.tensor([-1.0, -1.0, 1.0])[:, None]
    return replace(state, references=references, poses=replace(state.poses, rotations=half_turn * state.poses.rotations))
