"""What `halfmap abinitio` ends with: classes in order and in one frame, and what it writes and says
of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmap.alignment import mirror, mirror_poses
from halfmap.commands._frames import align_classes_to_first
from halfmap.commands._iterations import made_of
from halfmap.commands._results import write_particles, write_pictures
from halfmap.commands._summaries import angstrom, class_sizes_in_words, counted, map_name, where
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.io.mrc import write_map
from halfmap.io.star import write_star
from halfmap.io.table import Table
from halfmap.methods.reference_update import class_sizes
from halfmap.methods.settings import Settings
from halfmap.plots.tiles import save_map_picture
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress, drawing

# times more, or less, log likelihood a particle than where the median particle is: a class may hold
# junk
JUNK_LIKELIHOOD_RATIO = 2.0


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


def order_and_align_classes(problem: Problem, state: State, *, flip_hand: bool) -> State:
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


def finish_initial_maps(
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
        "rlnReferenceImage": [str(job.path(f"{map_name(k, classes)}.mrc")) for k in range(classes)],
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
