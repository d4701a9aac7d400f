"""The job `halfmap abinitio`: maps from particles alone, from random starts (stochastic gradient
ascent; lecture, last part)."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmap.alignment import mirror, mirror_poses
from halfmap.commands import _inputs, _setup
from halfmap.commands._contrast import tell_contrast
from halfmap.commands._frames import agreement, align_classes_to_first, align_to_symmetry_axes
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
from halfmap.commands._results import (
    made_of,
    run_iterations,
    show_volumes,
    write_particles,
    write_pictures,
)
from halfmap.commands._summaries import angstrom, class_sizes_in_words, counted, map_name, where
from halfmap.commands._volumes import ANGULAR_STEP_DEG, THRESHOLD, first_state
from halfmap.distributed import broadcast_object, only_first
from halfmap.engine.image_model import noise_variance
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.errors import InputError
from halfmap.fourier import largest_radius
from halfmap.io.mrc import read_map, write_map
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.methods.reference_update import class_sizes
from halfmap.methods.settings import Settings
from halfmap.methods.stochastic_gradient import GradientSchedule, random_maps, stochastic_gradient
from halfmap.options import command
from halfmap.plots.curves import save_fsc_plot
from halfmap.plots.tiles import save_map_picture
from halfmap.pose_search.sampling import radius_of_step
from halfmap.resolution import Curve
from halfmap.workspace.job import Job, read_job
from halfmap.workspace.progress import Progress, drawing

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
# times more, or less, log likelihood a particle than where the median particle is: a class may hold
# junk
JUNK_LIKELIHOOD_RATIO = 2.0
_SHOWN_EVERY = 10


@dataclass(frozen=True)
class AbInitioResult:
    """Where the maps are; of each class, the largest first, how many particles it has, their mean
    log likelihood (of noise about 0) and whether it may hold junk, being unlike the others by it;
    the resolution up to which images were scored; the mean log likelihood of each run's particles
    (the best run's maps are the job's), and where the FSC of the best run's map with each run's
    falls below 0.5 and 0.143, the lowest of the classes (none for a single run)."""

    folder: Path
    sizes: tuple[int, ...]
    class_log_likelihoods: tuple[float, ...]
    junk: tuple[bool, ...]
    scored_to_angstrom: float
    log_likelihoods: tuple[float, ...]
    agreement_angstrom: tuple[tuple[float, float], ...] = ()

    @property
    def summary(self) -> str:
        """The last line of the job."""
        classes, runs = len(self.sizes), len(self.log_likelihoods)
        sizes = f"{class_sizes_in_words(self.sizes)} of " if classes > 1 else ""
        best = f"the likeliest of {runs} runs, " if runs > 1 else ""
        path = self.folder / f"{map_name(0, classes)}.mrc"
        return (
            f"{best}scored to {angstrom(self.scored_to_angstrom)}, log likelihood "
            f"{max(self.log_likelihoods):.1f} a particle, "
            f"{sizes}{counted(sum(self.sizes), 'particle')}: {where(path)}{' ...' * (classes > 1)}"
        )


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
            return _best_of(runs, opened.parameters, job, progress)
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
        return _finish(
            job,
            progress,
            problem,
            settings,
            _order_and_align_classes(problem, state, flip_hand=flip_hand),
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


def _order_and_align_classes(problem: Problem, state: State, *, flip_hand: bool) -> State:
    """Classes by size; without symmetry, whose axes they would leave, laid onto the first, the
    largest; the other hand if asked for."""
    order = torch.argsort(class_sizes(problem, state.poses), descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    references = state.references[:, order.to(state.references.device)]
    state = replace(
        state, references=references, poses=replace(state.poses, classes=rank[state.poses.classes])
    )
    if len(problem.symmetry) == 1:
        state = align_classes_to_first(state, diameter_px=2 * problem.specimen.radius_px)
    if flip_hand:
        poses = replace(state.poses, rotations=mirror_poses(state.poses.rotations))
        state = replace(state, references=mirror(state.references), poses=poses)
    return state


def _finish(
    job: Job, progress: Progress, problem: Problem, settings: Settings, state: State
) -> AbInitioResult:
    """Maps, particles, the table of classes and pictures; what each class holds is told."""
    pixel, classes = problem.particles.pixel_size_angstrom, problem.n_classes
    used = torch.nonzero(problem.half >= 0)[:, 0]
    found = state.poses.select_images(used)
    sizes = class_sizes(problem, state.poses).tolist()
    likelihoods = [
        float(found.log_likelihood[found.classes == k].mean()) if sizes[k] else 0.0
        for k in range(classes)
    ]
    weights = [
        float(found.largest_weight[found.classes == k].mean()) if sizes[k] else 0.0
        for k in range(classes)
    ]
    doubts = doubtful_classes(sizes, likelihoods)
    junk = [bool(doubt) for doubt in doubts]
    for k, volume in enumerate(state.references[0].cpu().numpy()):
        name = map_name(k, classes)
        each = f"log likelihood {likelihoods[k]:.1f} each{doubts[k]}"
        told = f"{name}: {made_of(job, sizes[k])}, {each}"
        write_map(job.path(f"{name}.mrc"), volume, pixel)
        with drawing(f"{name}.png"):
            save_map_picture(job.path(f"pictures/{name}.png"), volume, pixel, title=told)
        progress.note(told)
    table: dict[str, Any] = {
        "rlnReferenceImage": [f"{map_name(k, classes)}.mrc" for k in range(classes)],
        "rlnClassDistribution": np.array(sizes) / len(used),
        "halfmapClassSize": np.array(sizes),
        "halfmapLogLikelihood": np.array(likelihoods),
        "halfmapLargestWeight": np.array(weights),
        "halfmapJunk": np.array(junk).astype(int),
    }
    write_star(job.path("classes.star"), {"model_classes": Table.from_columns(table)})
    write_particles(job, problem, state)
    write_pictures(job, problem, settings, state)
    mean, scored_to = state.history[-1].mean_log_likelihood, state.history[-1].scored_to_angstrom
    progress.note("both hands are equally right; --flip-hand writes the other")
    job.update(
        sizes=sizes,
        class_log_likelihoods=likelihoods,
        junk=junk,
        mean_log_likelihood=mean,
        iterations=state.iteration,
    )
    return AbInitioResult(
        job.folder, tuple(sizes), tuple(likelihoods), tuple(junk), scored_to, (mean,)
    )


def doubtful_classes(sizes: Sequence[int], log_likelihoods: Sequence[float]) -> list[str]:
    """What is to be said of each class whose particles' mean log likelihood is
    `JUNK_LIKELIHOOD_RATIO` times less, or more, than that of the class in which the median particle
    is: empty images fit no map, blobs of ice fit theirs too well. Empty where there is nothing to
    say."""
    usual = float(np.sort(np.repeat(log_likelihoods, sizes))[sum(sizes) // 2])

    def doubt(size: int, gain: float) -> str:
        if (
            size == 0
            or usual <= 0
            or usual / JUNK_LIKELIHOOD_RATIO <= gain <= usual * JUNK_LIKELIHOOD_RATIO
        ):
            return ""
        return ", may be junk: " + (
            "little but noise" if gain < usual else "much stronger than the others"
        )

    return [doubt(size, gain) for size, gain in zip(sizes, log_likelihoods, strict=True)]


def _best_of(runs: int, parameters: dict[str, Any], job: Job, progress: Progress) -> AbInitioResult:
    """Each run in a folder of its own inside the job's, with a seed of its own; the maps and
    particles of the likeliest are the job's. All maps are laid onto those, and their FSC is told.
    """
    folders = [job.folder / f"run{r + 1:03d}" for r in range(runs)]
    done: list[AbInitioResult] = []
    for r, folder in enumerate(folders):
        progress.note(f"run {r + 1} of {runs}")
        again = only_first(partial(_was_begun, folder))
        single = {**parameters, "runs": 1, "seed": parameters["seed"] + r}
        done.append(abinitio(out=folder, overwrite=not again, resume=again, **single))
        job.save_checkpoint(
            {}, {"iteration": 0, "runs": r + 1}
        )  # from now on there is something to go on from
    return only_first(lambda: _keep_best(folders, done, parameters, job, progress))


def _was_begun(folder: Path) -> bool:
    """Whether a run is there to go on with; what a run left that was killed before is removed."""
    if (folder / "job.json").exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _keep_best(
    folders: list[Path],
    done: list[AbInitioResult],
    parameters: dict[str, Any],
    job: Job,
    progress: Progress,
) -> AbInitioResult:
    """The maps and particles of the likeliest run as the job's, and all maps laid onto them."""
    runs = len(done)
    likelihoods = tuple(run.log_likelihoods[0] for run in done)
    best = max(range(runs), key=lambda r: likelihoods[r])
    for path in [
        *sorted(folders[best].glob("*.mrc")),
        folders[best] / "particles.star",
        folders[best] / "classes.star",
    ]:
        shutil.copyfile(path, job.path(path.name))
    for path in sorted((folders[best] / "pictures").glob("*.png")):
        shutil.copyfile(path, job.path(f"pictures/{path.name}"))
    progress.note(
        f"best of {runs} runs: {best + 1}, by mean log likelihood "
        f"({', '.join(f'{value:.1f}' for value in likelihoods)})"
    )
    agreed = _compare(done, best, parameters["diameter_angstrom"], job, progress)
    results = read_job(folders[best])["results"]
    job.update(**results, best_run=best + 1, log_likelihoods=likelihoods, agreement_angstrom=agreed)
    return replace(
        done[best], folder=job.folder, log_likelihoods=likelihoods, agreement_angstrom=agreed
    )


def _compare(
    done: list[AbInitioResult],
    best: int,
    diameter_angstrom: float | None,
    job: Job,
    progress: Progress,
) -> tuple[tuple[float, float], ...]:
    """Lay the maps of every run onto the best run's, write them, and tell where their FSC falls
    below 0.5 and 0.143, up to where images were scored: what maps show beyond, no image has
    confirmed."""
    classes = len(done[best].sizes)
    names = [map_name(k, classes) for k in range(classes)]
    agreed, curves = [], {}
    read = [[read_map(run.folder / f"{name}.mrc") for name in names] for run in done]
    pixel = read[best][0][1]
    box = read[best][0][0].shape[0]
    diameter_px = 0.9 * box if diameter_angstrom is None else diameter_angstrom / pixel
    for r in range(len(done)):
        told = [(done[best].scored_to_angstrom, done[best].scored_to_angstrom)]
        for k, name in enumerate(names if r != best else []):
            if not done[best].sizes[k]:
                continue
            found = agreement(
                torch.from_numpy(read[best][k][0]),
                [torch.from_numpy(volume) for volume, _ in read[r]],
                pixel_size_angstrom=pixel,
                radius=round(box * pixel / done[best].scored_to_angstrom),
                diameter_px=diameter_px,
            )
            told.append(found.resolutions_angstrom)
            label = (
                f"run {r + 1}" if classes == 1 else f"run {r + 1}, {names[found.other]} on {name}"
            )
            curves[label] = _up_to(found.curve, done[best].scored_to_angstrom)
            at_half, at_0143 = (
                f"{max(value, done[best].scored_to_angstrom):.1f} A" for value in told[-1]
            )
            hand = "its mirror image laid" if found.mirrored else "laid"
            progress.note(
                f"{label}: {hand} onto run {best + 1}: FSC 0.5 at {at_half}, 0.143 at {at_0143}"
            )
            write_map(
                job.path(f"run{r + 1:03d}.mrc" if classes == 1 else f"run{r + 1:03d}_{name}.mrc"),
                found.laid.numpy(),
                pixel,
            )
        agreed.append((max(a for a, _ in told), max(b for _, b in told)))
    with drawing("runs_fsc.png"):
        scored = angstrom(done[best].scored_to_angstrom)
        save_fsc_plot(
            job.path("pictures/runs_fsc.png"),
            curves,
            title=f"maps laid onto run {best + 1}, up to {scored}, as far as images were scored",
            reference=0.5,
        )
    return tuple(agreed)


def _up_to(curve: Curve, finest_angstrom: float) -> Curve:
    """The shells of a curve that images have been compared on: of the rest maps only repeat what
    they started from."""
    shells = round(curve.box * curve.pixel_size_angstrom / finest_angstrom) + 1
    return replace(curve, correlation=curve.correlation[: max(2, shells)])


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
