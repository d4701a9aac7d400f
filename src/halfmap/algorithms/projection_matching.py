"""Projection matching (lecture part 2; FREALIGN) and template matching: the same four choices in 3D and in 2D.

1. Vary pose and class of each image to find the projection `R_i = C_i P_phi A_k` that maximises `CC = X_i.R_i / (|X_i| |R_i|)`.
2. Knowing the best pose and class of each image, update

       A_k = sum_{i: k_i = k} P^T C_i X_i / (k(s) + sum_{i: k_i = k} P^T C_i^2),    k(s) = 1 / SSNR, or a constant.

   The spectral signal-to-noise ratio comes from the correlation of half maps (class averages): SSNR = FSC / (1 - FSC).
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.assignment import assign_hard
from halfmap.engine.images import Batch
from halfmap.engine.loop import Method, Problem, Search, Update
from halfmap.engine.search import SearchSettings, prepare_search, refine_candidates, search_globally
from halfmap.engine.state import Candidates, Poses, State, as_candidates, in_every_class
from halfmap.fourier import largest_radius
from halfmap.projection import FourierReferences, Sums
from halfmap.reconstruct import constant_regulariser, ssnr_regulariser, unregularised, wiener_update
from halfmap.resolution import Curve, fourier_shell_correlation, resolution_at, ssnr_from_fsc

GLOBAL_CHECK_EVERY = 4  # once poses have settled, every so many iterations all orientations are looked at again


@dataclass(frozen=True)
class Settings:
    """The choices left to the user. With an `anchor`, poses are refined locally, held near it by the search's restraint; never globally.

    `threshold` is the correlation that sets the resolution: 0.143 between independent halves; 0.5 where both halves were aligned to one
    reference, whose noise they then share.
    """

    search: SearchSettings
    threshold: float
    solvent_mask: Float[Tensor, "*box"]
    wiener_constant: float | None = None
    anchor: Poses | None = None


def projection_matching(problem: Problem, settings: Settings) -> Method:
    """The method as the engine runs it: hard assignment at the best correlation coefficient, Wiener update."""
    return Method(
        prepare=partial(_prepare, problem, settings),
        assign=assign_hard,
        update=partial(wiener, problem, settings),
        finished=partial(_finished, settings),
    )


def _prepare(problem: Problem, settings: Settings, references: FourierReferences, state: State) -> Search:
    """Global search until poses settle; then each image is refined around the pose it has, with a global check now and then."""
    plane, radius = problem.plane, state.radius

    def local(batch: Batch, poses: Poses) -> Candidates:
        start = as_candidates(poses)
        if problem.dimensions == 3:  # volumes share a frame: the same pose may fit another class better
            start = in_every_class(start, problem.n_classes)
        anchor = None if settings.anchor is None else settings.anchor.take(batch.index.cpu()).to(plane.kx.device)
        step_deg = settings.search.angular_step_deg
        return refine_candidates(
            references,
            batch.scored,
            plane,
            start,
            radius=radius,
            first_radius=radius,
            settings=settings.search,
            step_deg=step_deg,
            anchor=anchor,
        )

    if settings.anchor is not None or (is_settled(settings, state) and (state.iteration + 1) % GLOBAL_CHECK_EVERY):
        return local
    plan = prepare_search(references, replace(settings.search, shift_range_px=shift_reach_px(problem, settings, state)), radius)

    def everywhere(batch: Batch, poses: Poses) -> Candidates:
        known = as_candidates(poses) if state.iteration > 0 else None  # no pose to keep in the first
        return search_globally(plan, batch.scored, poses.shift_px, plane, radius, known=known)

    return everywhere


def shift_reach_px(problem: Problem, settings: Settings, state: State) -> float:
    """How far around the present shift a search looks: the range asked for in the first two iterations; then no farther than six times the
    median of the last change, and three steps at least."""
    asked = settings.search.shift_range_px
    if state.iteration < 2:
        return asked
    moved_px = state.history[-1]["shift_change_angstrom"] / problem.particles.pixel_size_angstrom
    return min(asked, max(3 * settings.search.shift_step_px, 6 * moved_px))


def is_settled(settings: Settings, state: State) -> bool:
    """Whether the last iteration moved poses by less than a quarter of the search grid's step (median), so that a search is not needed."""
    return state.iteration > 1 and state.history[-1]["angular_change_deg"] < settings.search.angular_step_deg / 4


def wiener(problem: Problem, settings: Settings, state: State, poses: Poses, halves: list[Sums]) -> Update:
    """`num / (k(s) + den)` for each set of references; the half maps' correlation gives SSNR, resolution and the next radius."""
    curves = half_curves(problem, settings, halves)
    fsc = torch.stack([c.correlation for c in curves]).to(halves[0].den)[:, : halves[0].radius + 1]
    ssnr = trusted_ssnr(fsc, of_sum=not problem.independent_halves)
    sets = halves
    if not problem.independent_halves:
        total, ssnr = reseed_empty(halves, ssnr, class_sizes(problem, poses))
        sets = [total]
    references = torch.stack([regularised(s, settings, state.noise_variance[:, : ssnr.shape[1]], ssnr) for s in sets])
    moved = None
    if problem.dimensions == 2:
        moved = off_centre_px(references[0])
        references = torch.stack([image.roll((int(y), int(x)), (-2, -1)) for image, (x, y) in zip(references[0], moved, strict=True)])[None]
    references = references * settings.solvent_mask
    resolutions = [resolution_at(c, settings.threshold) for c in curves]
    best = min(resolutions)
    box, pixel = problem.particles.box, problem.particles.pixel_size_angstrom
    shell = max(2.0, box * pixel / best)
    radius = min(largest_radius(box), int(shell + max(2.0, 0.15 * shell)))
    record = {"resolution_angstrom": best, "resolutions_angstrom": resolutions}
    full = problem.plane.radius + 1
    return Update(references, torch.nn.functional.pad(fsc, (0, full - fsc.shape[1])).cpu(), radius, record, moved)


def half_curves(problem: Problem, settings: Settings, halves: list[Sums]) -> list[Curve]:
    """Correlation between the half maps (or half class averages) of each class inside the solvent mask. Where the sums stop early it is 0
    beyond: there is nothing there but what the mask lets leak from within."""
    first, second = (unregularised(s) for s in halves)
    pixel, radius = problem.particles.pixel_size_angstrom, halves[0].radius
    curves = [
        fourier_shell_correlation(a, b, pixel_size_angstrom=pixel, mask=settings.solvent_mask) for a, b in zip(first, second, strict=True)
    ]
    if radius < problem.plane.radius:
        for curve in curves:
            curve.correlation[radius + 1 :] = 0
    return curves


def off_centre_px(images: Float[Tensor, "K N N"]) -> Float[Tensor, "K 2"]:
    """By how many whole pixels (x, y) to move each class image so that the centre of mass of what is brighter than a fifth of its maximum
    is less than a pixel from the middle.

    A class inherits the position of the image it started from; off centre, the mask would cut it.
    """
    axis = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype) - images.shape[-1] // 2
    bright = (images - 0.2 * images.amax((-2, -1), keepdim=True)).clamp(min=0)
    mass = bright.sum((-2, -1)).clamp(min=1e-20)
    centre = torch.stack([(bright.sum(-2) * axis).sum(-1), (bright.sum(-1) * axis).sum(-1)], -1) / mass[:, None]
    return -centre.trunc().cpu()


def class_sizes(problem: Problem, poses: Poses) -> Int[Tensor, " K"]:
    """Number of particles in each class."""
    return torch.bincount(poses.classes[problem.half >= 0], minlength=problem.n_classes)


def reseed_empty(halves: list[Sums], ssnr: Float[Tensor, "K S"], sizes: Int[Tensor, " K"]) -> tuple[Sums, Float[Tensor, "K S"]]:
    """Sums over both halves of each class; a class that ran empty gets one half of the largest class, which keeps the other half.

    Empty means fewer than two particles, or than a fiftieth of an equal share. Two halves of one class show the same view with different
    noise: near enough to start from, different enough to part.
    """
    total = halves[0] + halves[1]
    empty = torch.nonzero(sizes < max(2, int(sizes.sum()) / len(sizes) / 50))[:, 0]
    full = [k for k in torch.argsort(sizes, descending=True, stable=True).tolist() if k not in empty.tolist()]
    ssnr = ssnr.clone()
    for e, k in zip(empty.tolist(), full, strict=False):  # one half of a class is given away once
        for field in ("num", "den"):
            grid = getattr(total, field)
            grid[k], grid[e] = getattr(halves[0], field)[k], getattr(halves[1], field)[k]
        ssnr[e] = ssnr[k]
    return total, ssnr


def trusted_ssnr(fsc: Float[Tensor, "K S"], *, of_sum: bool) -> Float[Tensor, "K S"]:
    """SSNR from the FSC, zero from the first shell on whose correlation is not positive: what comes later agrees by chance."""
    positive = torch.cumprod((fsc > 0).to(fsc.dtype), dim=1)
    return ssnr_from_fsc(fsc.clamp(min=0), of_sum=of_sum) * positive


def regularised(
    sums: Sums, settings: Settings, noise_variance: Float[Tensor, "G S"], ssnr: Float[Tensor, "K S"]
) -> Float[Tensor, "K *box"]:
    """`num / (k + den)` with k(s) = <den> / SSNR, or the constant that the user asked for."""
    if settings.wiener_constant is None:
        return wiener_update(sums, ssnr_regulariser(sums, ssnr))
    inverse_noise = (1 / noise_variance).mean(0)[: sums.radius + 1]
    return wiener_update(sums, constant_regulariser(sums, settings.wiener_constant, inverse_noise))


def _finished(settings: Settings, state: State) -> bool:
    """No shell gained in the last two iterations, and poses have stopped moving, or move no less than before."""
    if len(state.history) < 4:
        return False
    shells = [1 / record["resolution_angstrom"] for record in state.history]
    if max(shells[-2:]) > 1.005 * max(shells[:-2]):
        return False
    moved = [record["angular_change_deg"] for record in state.history[-2:]]
    return moved[1] > 0.7 * moved[0] or moved[1] < 0.02 * settings.search.angular_step_deg
