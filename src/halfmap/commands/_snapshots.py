"""What a job keeps while it runs, to show in the end how it went: Gamma over the sphere for a few
particles, class images.

Kept in `shown/` of the job's folder, a small file for each of some iterations, and written again
when a stopped job goes on: a resumed job shows what an undisturbed one shows.
"""

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from halfmap.engine.image_model import load_images
from halfmap.engine.problem import Problem
from halfmap.engine.state import State
from halfmap.fourier import HalfPlane, half_plane, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    correlation_score,
    cross_terms,
    slice_power,
    squared_modulus,
)
from halfmap.methods.settings import Settings
from halfmap.plots.posterior import save_direction_posterior
from halfmap.plots.tiles import save_class_history
from halfmap.pose_search.direction_posterior import direction_posterior
from halfmap.pose_search.sampling import radius_of_step, searched_step_px, shift_grid
from halfmap.projection import FourierReferences, extract_slices, prepare_references
from halfmap.reports.directions import save_views
from halfmap.so3 import grid_step_deg, orientation_grid
from halfmap.workspace.job import Job

POSTERIORS = "posterior_weights.png"
DIRECTIONS_SHOWN_AFTER = (
    0,
    2,
    4,
    8,
    16,
)  # iterations: the first, and one of them for the middle; the last is at hand in the end
CLASSES_SHOWN_AFTER = (0, 1, 2, 4, 6)
PARTICLES = 4
# images and mates: a job on fewer would spend more than a hundredth of its time on 768 directions,
# and shows 192
FINE_FROM = 25_000
_SCALE_ORDER = 1  # of the grid on which the grey scale is found, 30 degrees
_TILE = 128  # pixels of a class image that is kept
# of a map that is kept to be turned on a page: 64^3 in half precision are 0.5 MB
_SIDE, _MAPS_KEPT = 64, 8
MAPS_SHOWN_AFTER = (0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24)
_CURVES_TOLD = 8  # of more classes the curves of an iteration would fill the events


def chosen_particles(problem: Problem) -> Int[Tensor, " n"]:
    """Evenly spaced rows of the first half of the data, which meets one set of references."""
    rows = torch.nonzero(problem.half == 0)[:, 0]
    places = (torch.arange(PARTICLES) * 2 + 1) * len(rows) // (2 * PARTICLES)
    return rows[places.unique()]


def direction_gamma(problem: Problem, settings: Settings, state: State) -> Float[Tensor, "n D"]:
    """Gamma over viewing directions of the chosen particles, given the references that they meet
    next: `direction_posterior` on the shells that a grid of its step resolves, with flat priors,
    over the shifts of the search around each particle's present one.

    The starting references may be on any grey scale: they are brought onto the images' by the scale
    that fits the chosen particles best, `sum a / sum b` at the pose of highest correlation on a
    coarse grid. Poses that fit noise make it a little too large.
    """
    index, order = chosen_particles(problem), _order(problem)
    box, device = problem.particles.box, problem.images.device
    radius = shown_radius(problem, state)
    plane = half_plane(box, radius, device)
    centre = state.poses.shift_px[index].to(device)
    terms = load_images(problem, state, index, plane).scored
    compared_with = state.references[problem.reference_set(0)].to(device)
    references = prepare_references(compared_with, radius, box=box)
    reach = settings.search.shift_range_px
    step = searched_step_px(settings.search, box, radius)
    if state.iteration == 0:
        phases = shift_phases(shift_grid(reach, step, device=device), plane)
        factor = grey_scale(
            references,
            ImageTerms(terms.data * shift_phases(centre, plane), terms.power),
            phases,
            plane,
            problem.symmetry.rotations,
        )
        terms = ImageTerms(terms.data * factor, terms.power * factor**2)
    return direction_posterior(
        references,
        terms,
        plane,
        radius=radius,
        symmetry=problem.symmetry.rotations,
        order=order,
        shift_range_px=reach,
        shift_step_px=step,
        centre_px=centre,
    ).cpu()


def grey_scale(
    references: FourierReferences,
    terms: ImageTerms,
    phases: Complex[Tensor, "T J"],
    plane: HalfPlane,
    symmetry: Float[Tensor, "G 3 3"],
) -> float:
    """The factor by which references fit a few images best, `sum_i a_i / sum_i b_i` at each image's
    pose of highest correlation."""
    rotations = orientation_grid(_SCALE_ORDER, symmetry).rotations.to(plane.kx.device)
    n_classes = len(references)
    classes = torch.arange(n_classes, device=plane.kx.device).repeat_interleave(len(rotations))
    slices = extract_slices(references, rotations.repeat(n_classes, 1, 1), plane, classes=classes)
    a = cross_terms(terms, phases, slices, plane).amax(1)
    b = slice_power(terms, squared_modulus(slices).T, plane)
    best = correlation_score(a, b).argmax(1, keepdim=True)
    return max(0.0, float(a.gather(1, best).sum() / b.gather(1, best).sum().clamp(min=1e-20)))


def shown_radius(problem: Problem, state: State) -> int:
    """Shells on which Gamma is shown: those of the next iteration, as far as a step of the grid of
    directions resolves them."""
    finest = radius_of_step(
        grid_step_deg(_order(problem)), problem.particles.box, problem.specimen.radius_px
    )
    return min(state.radius, finest)


def _order(problem: Problem) -> int:
    return 3 if int((problem.half >= 0).sum()) * len(problem.symmetry) >= FINE_FROM else 2


def save_direction_snapshot(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    """Gamma of the chosen particles, after some iterations."""
    if state.iteration in DIRECTIONS_SHOWN_AFTER:
        gamma = direction_gamma(problem, settings, state)
        np.savez(
            job.path(f"shown/directions_{state.iteration:03d}.npz"),
            gamma=gamma.numpy(),
            shells=shown_radius(problem, state),
        )


def plot_direction_snapshots(job: Job, problem: Problem, settings: Settings, state: State) -> None:
    """`pictures/posterior_weights.png`: Gamma given the starting references, those of a middle
    iteration, and the last."""
    kept = [
        n
        for n in DIRECTIONS_SHOWN_AFTER
        if n < state.iteration and job.path(f"shown/directions_{n:03d}.npz").exists()
    ]
    middle = min((n for n in kept if n), key=lambda n: abs(n - state.iteration / 2), default=None)
    stages: dict[str, ArrayLike] = {}
    side_angstrom = problem.particles.box * problem.particles.pixel_size_angstrom
    for n in (*([0] if 0 in kept else []), *([] if middle is None else [middle])):
        with np.load(job.path(f"shown/directions_{n:03d}.npz")) as file:
            stages[_stage(n, side_angstrom / int(file["shells"]))] = file["gamma"]
    gamma = direction_gamma(problem, settings, state)
    stages[_stage(state.iteration, side_angstrom / shown_radius(problem, state))] = gamma.numpy()
    index = chosen_particles(problem)
    save_direction_posterior(
        job.path(f"pictures/{POSTERIORS}"),
        stages,
        [f"particle {row + 1}" for row in index.tolist()],
        mates=len(problem.symmetry),
        directions=state.poses.rotations[index, 2].numpy(),
        title="Posterior weights over viewing directions; rings: those found in the end",
    )


def _stage(iteration: int, resolution_angstrom: float) -> str:
    return (
        "at the start" if iteration == 0 else f"after iteration {iteration}"
    ) + f", to {resolution_angstrom:.0f} Å"


def told_curves(problem: Problem, state: State) -> dict[str, list[list[float]]]:
    """The correlation of the half maps by class and shell, to be told with an iteration in 3D."""
    if problem.dimensions != 3 or len(state.curves) > _CURVES_TOLD:
        return {}
    return {"correlation": [[round(c, 4) for c in curve] for curve in state.curves.tolist()]}


def save_view_counts(job: Job, problem: Problem, state: State) -> None:
    """From where the particles are seen now, so that a page shows it while the job runs."""
    if state.iteration == 0:
        return
    used = torch.nonzero(problem.half >= 0)[:, 0]
    seen_from = state.poses.rotations[used, 2].cpu().double().numpy()
    mates = problem.symmetry.rotations.cpu().double().numpy()
    save_views(job.folder, seen_from, mates, state.iteration)


def save_map_snapshot(job: Job, problem: Problem, state: State) -> None:
    """The references as they are, in a coarse grid, after some iterations:
    `shown/maps_004.npz` with `maps` (K, n, n, n) and the pixel size of that grid."""
    if state.iteration not in MAPS_SHOWN_AFTER:
        return
    maps = state.references[:, :_MAPS_KEPT].mean(0)
    box = maps.shape[-1]
    side = min(_SIDE, box)
    coarse = torch.nn.functional.interpolate(maps[None], size=(side,) * 3, mode="area")[0]
    largest = coarse.abs().amax().clamp(min=1e-30)  # half precision ends at 65504
    np.savez(
        job.path(f"shown/maps_{state.iteration:03d}.npz"),
        maps=(coarse / largest).cpu().numpy().astype(np.float16),
        pixel_size_angstrom=problem.particles.pixel_size_angstrom * box / side,
    )


def save_class_snapshot(job: Job, state: State) -> None:
    """Class images as they are, no larger than a picture's tile, after some iterations."""
    if state.iteration in CLASSES_SHOWN_AFTER:
        np.savez(
            job.path(f"shown/classes_{state.iteration:03d}.npz"),
            images=_small(state.references.mean(0)),
        )


def plot_class_history(job: Job, state: State, sizes: Int[Tensor, " K"]) -> None:
    """`pictures/class_history.png`: the largest classes at the start, after 1, 2, 4 and 6
    iterations and after the last."""
    history: dict[int, ArrayLike] = {}
    for n in CLASSES_SHOWN_AFTER:
        path = job.path(f"shown/classes_{n:03d}.npz")
        if n < state.iteration and path.exists():
            with np.load(path) as file:
                history[n] = file["images"]
    history[state.iteration] = _small(state.references.mean(0))
    save_class_history(job.path("pictures/class_history.png"), history, sizes=sizes.numpy())


def _small(images: Float[Tensor, "K N N"]) -> np.ndarray:
    if images.shape[-1] > _TILE:
        images = torch.nn.functional.interpolate(images[:, None], size=(_TILE, _TILE), mode="area")[
            :, 0
        ]
    return images.cpu().numpy()
