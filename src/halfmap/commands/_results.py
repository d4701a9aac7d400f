"""What every job leaves behind: particles with their poses, maps and class images, curves,
pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.commands._finishing import (
    MASK,
    FscMask,
    Place,
    curves_in,
    diagnose_into,
    finishing,
    own_mask,
    save_half_map_plot,
    sharpen_into,
)
from halfmap.commands._setup import gigabytes
from halfmap.commands._snapshots import (
    POSTERIORS,
    plot_direction_snapshots,
    save_direction_snapshot,
    save_map_snapshot,
    save_view_counts,
    told_curves,
)
from halfmap.commands._summaries import (
    OPTIMISTIC,
    angstrom,
    counted,
    ending,
    iteration_in_words,
    map_name,
    mask_in_words,
    reached,
    resolved,
    where,
)
from halfmap.distributed import broadcast_object, is_first, only_first, reduced_bytes, size
from halfmap.engine.checkpoint import state_from_arrays, state_to_arrays
from halfmap.engine.class_posterior import ClassProbability
from halfmap.engine.image_model import NormAndScale, noise_variance
from halfmap.engine.loop import run, sum_at_significant_poses
from halfmap.engine.method import Method
from halfmap.engine.problem import Problem
from halfmap.engine.significant_poses import SignificantPoses
from halfmap.engine.state import State
from halfmap.io.mrc import write_map
from halfmap.methods.reference_update import regularised, trusted_ssnr
from halfmap.methods.settings import Settings
from halfmap.plots.curves import save_convergence_plot
from halfmap.plots.orientations import save_orientation_plot
from halfmap.plots.tiles import save_map_picture
from halfmap.projection import Sums
from halfmap.reconstruction import unregularised
from halfmap.resolution import HalfMapCurves, resolution_at, write_fsc_star
from halfmap.so3 import matrix_to_euler
from halfmap.workspace.job import Job, read_events
from halfmap.workspace.progress import Progress, drawing

TOLD_AGAIN = 1.1  # times what was said before, that the next iteration needs to be worth a line


@dataclass(frozen=True)
class RefinementResult:
    """Where a job's map is and how well it is resolved (FSC 0.143, corrected for the mask, and
    unmasked); of how many particles it was made, in how many iterations (None: at given poses)."""

    folder: Path
    map_path: Path
    resolution_angstrom: float
    unmasked_angstrom: float
    mask: str
    particles: int
    iterations: int | None = None
    converged: bool = False
    notes: tuple[str, ...] = ()

    @property
    def resolutions_angstrom(self) -> tuple[float, ...]:
        return (self.resolution_angstrom,)

    @property
    def summary(self) -> str:
        """The last line of the job."""
        how = (
            "at the poses given"
            if self.iterations is None
            else ending(self.iterations, converged=self.converged)
        )
        return (
            f"{resolved(self.resolution_angstrom)} (FSC 0.143, mask-corrected, {self.mask}; "
            f"unmasked {angstrom(self.unmasked_angstrom)}), {counted(self.particles, 'particle')}, "
            f"{how}: {where(self.map_path)}"
        )


def refinement_result(
    problem: Problem,
    final: "FinalMaps",
    *,
    folder: Path,
    map_path: Path,
    iterations: int | None = None,
    converged: bool = False,
    notes: tuple[str, ...] = (),
) -> RefinementResult:
    """What a job of one map reached."""
    return RefinementResult(
        folder,
        map_path,
        resolution_angstrom=final.resolutions_angstrom[0],
        unmasked_angstrom=resolution_at(final.curves[0].unmasked, 0.143),
        mask=final.mask.words,
        particles=int((problem.half >= 0).sum()),
        iterations=iterations,
        converged=converged,
        notes=notes,
    )


def run_iterations(
    job: Job,
    progress: Progress,
    problem: Problem,
    method: Method,
    first: Callable[[], State] | State,
    *,
    iterations: int,
    show: Callable[[State], None] = lambda state: None,
) -> State:
    """The loop with its bookkeeping: start from `first()`, or go on from the checkpoint if there is
    one, or else from the state given, of a loop before; after each iteration save state, event and
    progress. `show` puts into pictures each state, the one started from included.
    """
    if isinstance(first, State):
        state = first
    elif (saved := only_first(job.load_checkpoint)) is None:
        state = method.start(first())
    else:
        state = state_from_arrays(*saved)
        progress.note(f"going on after iteration {state.iteration}")
    state = broadcast_object(state)

    def draw(state: State) -> None:
        if not is_first():
            return
        with drawing(f"the pictures after iteration {state.iteration}"):
            show(state)

    def start(state: State) -> int:
        """Announce the next iteration, if there is one; how many images it has."""
        images = int((method.select(state, problem.half) >= 0).sum())
        if state.iteration < iterations and not method.converged(state):
            progress.start_iteration(state.iteration + 1, images)
        return images

    draw(state)
    images, reduced, told = start(state), reduced_bytes(), _needed(problem, state)
    for new, seconds in run(
        problem, method, state, iterations=iterations, advance=progress.advance
    ):
        fewer_sets, state = len(new.references) < len(state.references), new
        record = state.history[-1]
        cost_ms = 1e3 * sum(seconds.values()) / images
        strength = _strength(problem, state)
        shared = {"reduced_bytes": reduced_bytes() - reduced} if size() > 1 else {}
        reduced = reduced_bytes()
        job.event(
            **record.event(),
            **strength,
            **shared,
            **told_curves(problem, state),
            seconds=seconds,
            ms_per_image=cost_ms,
        )
        if is_first():
            job.save_checkpoint(*state_to_arrays(state))
        draw(state)
        outliers = int(strength.get("norm_outliers", 0))
        progress.finish_iteration(
            iteration_in_words(record, problem, cost_ms, outliers=outliers),
            reached=reached(record, problem),
        )
        last = state.iteration >= iterations or method.converged(state)
        told = _tell_memory(problem, state, told, progress, fewer_folds=fewer_sets, last=last)
        images = start(state)
    return state


def _needed(problem: Problem, state: State) -> int:
    """Memory of the next iteration, and of final maps."""
    size = problem.with_reference_sets(len(state.references)).job_size
    return size.least_bytes(problem.batch_size, state.radius)


def _tell_memory(
    problem: Problem,
    state: State,
    told: int,
    progress: Progress,
    *,
    fewer_folds: bool,
    last: bool,
) -> int:
    """Say what the next iteration needs, where there is one and that is more than was said before,
    and what is given up for it; returns what has been said."""
    if fewer := state.history[-1].report.get("batch_size"):
        progress.note(f"memory ran out, and the work was repeated in batches of {int(fewer)}")
    if last:
        return told
    if fewer_folds:
        folds = len(state.references) // 2
        progress.note(f"the memory is enough for {folds} of {problem.n_folds} folds from here on")
    needed = _needed(problem, state)
    if needed > TOLD_AGAIN * told:
        at = angstrom(problem.resolution_of(state.radius))
        progress.note(f"scored to {at} an iteration needs about {gigabytes(needed)} of memory")
        return needed
    return told


def show_volumes(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    """The present references as pictures `map.png` (`class001.png` ...), replaced by the final
    maps' at the end; posterior weights of maximum likelihood are kept for their picture."""
    for k, volume in enumerate(state.references.mean(0).cpu()):
        name = map_name(k, problem.n_classes)
        when = f"after iteration {state.iteration}" if state.iteration else "at the start"
        title = f"{name} {when}, {made_of(job, int((problem.half >= 0).sum()))}"
        save_map_picture(
            job.path(f"pictures/{name}.png"),
            volume.numpy(),
            problem.particles.pixel_size_angstrom,
            title=title,
        )
    save_map_snapshot(job, problem, state)
    save_view_counts(job, problem, state)
    if state.find(SignificantPoses) is not None:
        save_direction_snapshot(job, problem, settings, state)


def made_of(job: Job, particles: int) -> str:
    """`2,400 particles, C4`: what a map of this job is made of, for its title."""
    symmetry = job.parameters.get("symmetry")
    return counted(particles, "particle") + (f", {symmetry}" if symmetry else "")


def _certainty(problem: Problem, state: State) -> dict[str, float]:
    """How sure the last iteration was of its poses, and how unlike each other images are."""
    if not state.history:
        return {}
    last = state.history[-1]
    return {
        "mean_largest_weight": last.mean_largest_weight,
        "mean_significant": last.mean_significant,
        "accuracy_deg": last.accuracy_deg,
        "accuracy_angstrom": last.accuracy_angstrom,
        **_strength(problem, state),
    }


def _strength(problem: Problem, state: State) -> dict[str, float]:
    """Of norms the number of outliers, of scales the range; nothing where they are not learnt."""
    strength = state.find(NormAndScale)
    if strength is None:
        return {}
    present = strength.scale[torch.unique(problem.scale_group[problem.used])]
    return {
        "norm_outliers": strength.outliers,
        "scale_min": float(present.min()),
        "scale_max": float(present.max()),
    }


@dataclass(frozen=True)
class FinalMaps:
    """Maps (K, N, N, N), their half maps (neither filtered nor masked), and the half maps'
    curves in a mask."""

    maps: Float[Tensor, "K N N N"]
    halves: Float[Tensor, "2 K N N N"]
    curves: list[HalfMapCurves]
    mask: FscMask

    @property
    def resolutions_angstrom(self) -> tuple[float, ...]:
        return tuple(resolution_at(curve.final, 0.143) for curve in self.curves)


def last_maps(
    problem: Problem,
    settings: Settings,
    method: Method,
    state: State,
    progress: Progress,
    mask: str | Path | None,
) -> FinalMaps:
    """The final maps of the last state: both halves summed to the last shell, at the poses and
    weights it holds, class by class. `mask` is the file that the settings' masks are of, if there
    is one."""
    progress.start_stage("final maps", problem.n_classes * int((problem.half >= 0).sum()))
    of_classes = []
    for k in range(problem.n_classes):  # one at a time: their sums are the largest of a job
        sums = sum_at_significant_poses(
            problem, method.assign, state, advance=progress.advance, only_class=k
        )
        of_classes.append(final_maps(problem, settings, sums, noise_variance(state), mask))
    return FinalMaps(
        maps=torch.cat([one.maps for one in of_classes]),
        halves=torch.cat([one.halves for one in of_classes], 1),
        curves=[one.curves[0] for one in of_classes],
        mask=of_classes[0].mask,
    )


def final_maps(
    problem: Problem,
    settings: Settings,
    sums: list[Sums],
    variance: Float[Tensor, "G S"],
    mask: str | Path | None,
) -> FinalMaps:
    """Reconstruct every class: `num / (k + den)` over both halves, k from the half maps' FSC inside
    the mask, or the constant asked for. The sums of the first half become those of both."""
    halves = torch.stack([unregularised(s).cpu() for s in sums])
    total, other = sums
    total.num.add_(other.num)
    total.den.add_(other.den)
    sums.clear()
    del other  # nobody needs it any more: there may be no room for both and for what follows
    inside = FscMask(
        settings.fsc_mask.cpu(), MASK if mask is None else str(mask), mask_in_words(problem, mask)
    )
    pixel = problem.particles.pixel_size_angstrom
    curves = [curves_in(a, b, pixel, inside) for a, b in zip(*halves, strict=True)]
    fsc = torch.stack([c.final.correlation for c in curves]).to(total.den)[:, : total.radius + 1]
    maps = regularised(
        total, settings, variance.to(total.den.device), trusted_ssnr(fsc, of_sum=True)
    )
    return FinalMaps(maps.cpu(), halves, curves, inside)


def in_own_mask(final: FinalMaps, pixel_size_angstrom: float) -> FinalMaps:
    """The same maps of one class, their FSC in a mask made of the half maps, inside the sphere that
    they were refined in; the maps' regularisation stays what the sphere gave."""
    half1, half2 = final.halves[:, 0]
    mask = own_mask(half1, half2, pixel_size_angstrom, final.mask.values, final.mask.words)
    return replace(final, curves=[curves_in(half1, half2, pixel_size_angstrom, mask)], mask=mask)


def in_moved_mask(final: FinalMaps) -> FinalMaps:
    """The same maps, whose mask is no longer that of the user's file: the job writes it."""
    mask = replace(final.mask, name=MASK, words=f"mask {MASK}")
    return replace(final, curves=[replace(c, mask_name=MASK) for c in final.curves], mask=mask)


def write_map_files(
    final: FinalMaps,
    k: int,
    pixel_size_angstrom: float,
    *,
    map_path: Path,
    prefix: str,
    pictures: str,
    words: str,
    mask_path: Path | None = None,
    with_halves: bool = True,
    optimistic: bool = False,
) -> None:
    """Map k and its picture; with halves `{prefix}half1.mrc`, `{prefix}half2.mrc`,
    `{prefix}fsc.star`, the mask of the FSC unless it is the user's own file (`{prefix}mask.mrc`,
    or `mask_path`) and the curve's picture too. `words`: what it is made of (`made_of`).
    `optimistic`: the halves share references, and title and table say so."""
    if not is_first():
        return
    curves, resolution = final.curves[k], final.resolutions_angstrom[k]
    remark = f", {OPTIMISTIC}" if optimistic else ""
    write_map(map_path, final.maps[k].numpy(), pixel_size_angstrom)
    picture = f"{pictures}{map_path.stem}.png"
    with drawing(picture):
        title = f"{map_path.stem}, {resolved(resolution)} at FSC 0.143{remark}, {words}"
        save_map_picture(picture, final.maps[k].numpy(), pixel_size_angstrom, title=title)
    if not with_halves:
        return
    for h in range(2):
        write_map(Path(f"{prefix}half{h + 1}.mrc"), final.halves[h, k].numpy(), pixel_size_angstrom)
    if final.mask.name == MASK:
        place = mask_path or Path(f"{prefix}{MASK}")
        curves = replace(curves, mask_name=place.name)
        if k == 0:
            write_map(place, final.mask.values.numpy(), pixel_size_angstrom)
    write_fsc_star(f"{prefix}fsc.star", curves, optimistic=optimistic)
    plot = Path(f"{pictures}{Path(prefix + 'fsc').name}.png")
    save_half_map_plot(plot, curves, title=f"{map_path.stem}{remark}, {words}")


def write_particles(job: Job, problem: Problem, state: State) -> None:
    """`particles.star`: every input column kept; poses, shifts, class, half set and score new; of
    maximum likelihood what the posteriors tell as well, and their means among the job's results.
    Images set aside are not in it."""
    if not is_first():
        return
    used = torch.nonzero(problem.half >= 0)[:, 0]
    kept, found = problem.particles.take(used.numpy()), state.poses.select_images(used)
    extra = {"halfmapScore": found.score.double().numpy()}
    if state.find(SignificantPoses) is not None:
        extra |= {
            "rlnMaxValueProbDistribution": found.largest_weight.double().numpy(),
            "rlnLogLikeliContribution": found.log_likelihood.double().numpy(),
            "rlnNrOfSignificantSamples": found.significant.numpy(),
            "halfmapAccuracyRotation": found.accuracy[:, 0].double().numpy(),
            "halfmapAccuracyShiftAngst": found.accuracy[:, 1].double().numpy()
            * kept.pixel_size_angstrom,
        }
        job.update(**_certainty(problem, state))
    of_class = state.find(ClassProbability)
    if of_class is not None:
        extra |= {"halfmapClassProbability": of_class.probability[used].double().numpy()}
    strength = state.find(NormAndScale)
    if strength is not None:
        extra |= {
            "rlnNormCorrection": strength.norm[used].double().numpy(),
            "rlnGroupScaleCorrection": strength.scale[problem.scale_group[used]].double().numpy(),
        }
    angles = matrix_to_euler(found.rotations.double()).numpy()
    if problem.dimensions == 2:
        angles[:, 2] += angles[:, 0]  # at tilt 0 only their sum is defined
    in_3d = problem.dimensions == 3
    kept.with_results(
        rotations_deg=angles if in_3d else None,
        psi_deg=None if in_3d else angles[:, 2],
        shift_angstrom=found.shift_px.double().numpy() * kept.pixel_size_angstrom,
        class_number=found.classes.numpy() + 1,
        half_set=problem.half[used].numpy() + 1,
        extra=extra,
    ).write_star(job.path("particles.star"))


def finish_refinement(
    job: Job, progress: Progress, problem: Problem, state: State, final: FinalMaps
) -> tuple[str, ...]:
    """`map_sharpened.mrc` with `postprocess.star`, and the diagnosis of orientations; what is to be
    said. What fails is a note."""
    if not is_first():
        return ()
    progress.start_stage("sharpening", 0)
    place = Place(job.folder, job.path("pictures/fsc.png").parent)
    halves = final.halves[0, 0], final.halves[1, 0]
    notes: tuple[str, ...] = ()
    with finishing("sharpened map", progress):
        sharpened = sharpen_into(
            place,
            halves,
            final.curves[0],
            half_paths=("half1.mrc", "half2.mrc"),
            words=made_of(job, int((problem.half >= 0).sum())),
        )
        job.update(b_factor_angstrom2=sharpened.b_factor)
        notes += sharpened.notes
    progress.start_stage("orientations", 0)
    used = torch.nonzero(problem.half >= 0)[:, 0]
    with finishing("diagnosis of orientations", progress):
        cones, sampling, warnings = diagnose_into(
            place,
            halves,
            problem.particles.pixel_size_angstrom,
            final.mask,
            rotations=state.poses.select_images(used).rotations,
            symmetry=problem.symmetry.rotations.cpu(),
        )
        job.update(cfar=cones.cfar, scf_star=sampling.scf_star if sampling else None)
        notes += warnings
    return notes


def write_pictures(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    """Orientation distribution of the particles used, how resolution and poses converged, and in 3D
    the posterior weights of a few over the sphere."""
    if not is_first():
        return
    used = torch.nonzero(problem.half >= 0)[:, 0]
    angles = matrix_to_euler(state.poses.select_images(used).rotations.double()).numpy()
    if problem.dimensions == 3:
        with drawing("orientations.png"):
            save_orientation_plot(
                job.path("pictures/orientations.png"),
                angles,
                symmetry=np.asarray(problem.symmetry.rotations.cpu()),
            )
        if state.find(SignificantPoses) is not None:
            with drawing(POSTERIORS):
                plot_direction_snapshots(job, problem, settings, state)
    events = read_events(job.folder)
    if len(events) > 1:
        with drawing("convergence.png"):
            save_convergence_plot(
                job.path("pictures/convergence.png"),
                events,
                optimistic=problem.matched_to == "other",
            )
