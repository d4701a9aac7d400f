"""What every job leaves behind: particles with their poses, maps and class images, curves,
pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmap.commands._final_maps import FinalMaps
from halfmap.commands._finishing import Place, diagnose_into, finishing, sharpen_into
from halfmap.commands._iterations import certainty, made_of
from halfmap.commands._snapshots import POSTERIORS, plot_direction_snapshots
from halfmap.commands._summaries import angstrom, counted, ending, resolved, where
from halfmap.distributed import is_first
from halfmap.engine.class_posterior import ClassProbability
from halfmap.engine.image_model import NormAndScale
from halfmap.engine.problem import Problem
from halfmap.engine.significant_poses import SignificantPoses
from halfmap.engine.state import State
from halfmap.methods.settings import Settings
from halfmap.plots.curves import save_convergence_plot
from halfmap.plots.orientations import save_orientation_plot
from halfmap.resolution import resolution_at
from halfmap.so3 import matrix_to_euler
from halfmap.workspace.job import Job, read_events
from halfmap.workspace.progress import Progress, drawing


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
        job.update(**certainty(problem, state))
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
