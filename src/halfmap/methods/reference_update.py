"""From the two sums of both halves to the next references: the Wiener, or MAP, update, and what the
halves tell of the resolution.

    A_k = num / (1 / (T tau^2) + den),    1 / (T tau^2) = <den> / (T SSNR)

SSNR is that of the sums themselves, from the correlation of half maps (half class averages); with
it the lecture's Wiener filter and its MAP update are one formula, up to T.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.loop import Problem, Update
from halfmap.engine.state import Poses, State
from halfmap.fourier import largest_radius
from halfmap.methods.settings import Settings
from halfmap.projection import Sums
from halfmap.reconstruction import (
    constant_regulariser,
    grid_shells,
    ssnr_regulariser,
    unregularised,
    wiener_update,
)
from halfmap.resolution import Curve, fourier_shell_correlation, resolution_at, ssnr_from_fsc


def update_references(
    problem: Problem, settings: Settings, state: State, poses: Poses, halves: list[Sums]
) -> Update:
    """`num / (k(s) + den)` for each set of references; the half maps' correlation gives SSNR,
    resolution and the next radius."""
    curves = half_curves(problem, settings, halves)
    fsc = torch.stack([c.correlation for c in curves]).to(halves[0].den)[:, : halves[0].radius + 1]
    ssnr = trusted_ssnr(fsc, of_sum=problem.matched_to == "shared")
    resolutions = [resolution_at(c, settings.threshold) for c in curves]
    best = min(resolutions)
    box, pixel = problem.particles.box, problem.particles.pixel_size_angstrom
    record: dict[str, Any] = {"resolution_angstrom": best, "resolutions_angstrom": resolutions}
    if problem.n_classes > 1:
        sizes = class_sizes(problem, poses)
        halves, ssnr = reseed_empty(halves, ssnr, sizes)
        record["class_sizes"] = sizes.tolist()
        record["empty_classes"] = len(empty_classes(sizes))
    if problem.matched_to != "shared":
        halves = join_halves(halves, settings, best, pixel)
    sets = [halves[0] + halves[1]] if problem.matched_to == "shared" else halves
    references = torch.stack(
        [regularised(s, settings, state.noise_variance[:, : ssnr.shape[1]], ssnr) for s in sets]
    )
    moved = None
    if problem.dimensions == 2:
        moved = centring_shift_px(references.mean(0))
        for k, (x, y) in enumerate(moved.int().tolist()):
            references[:, k] = references[:, k].roll((y, x), (-2, -1))
    references = references * settings.solvent_mask
    shell = max(2.0, box * pixel / best)
    radius = min(largest_radius(box), int(shell + max(2.0, 0.15 * shell)))
    full = problem.plane.radius + 1
    return Update(
        references,
        torch.nn.functional.pad(fsc, (0, full - fsc.shape[1])).cpu(),
        radius,
        record,
        moved,
    )


def join_halves(
    halves: list[Sums], settings: Settings, resolution_angstrom: float, pixel_size_angstrom: float
) -> list[Sums]:
    """The halves with their mean on the shells below `join_halves_angstrom`, so that both keep one
    orientation and hand (RELION); matched to each other, they would else change places in every
    iteration.

    Only once they agree beyond that resolution by themselves: joined halves agree on what is
    joined, whatever the images hold.
    """
    limit = settings.join_halves_angstrom
    if limit is None or resolution_angstrom >= limit:
        return halves
    inside = grid_shells(halves[0]) <= halves[0].box * pixel_size_angstrom / limit
    mean = halves[0] + halves[1]
    return [
        replace(
            h,
            num=torch.where(inside, mean.num / 2, h.num),
            den=torch.where(inside, mean.den / 2, h.den),
        )
        for h in halves
    ]


def half_curves(problem: Problem, settings: Settings, halves: list[Sums]) -> list[Curve]:
    """Correlation between the half maps (or half class averages) of each class inside the solvent
    mask. Where the sums stop early it is 0 beyond: there is nothing there but what the mask lets
    leak from within."""
    first, second = (unregularised(s) for s in halves)
    pixel, radius = problem.particles.pixel_size_angstrom, halves[0].radius
    curves = [
        fourier_shell_correlation(a, b, pixel_size_angstrom=pixel, mask=settings.solvent_mask)
        for a, b in zip(first, second, strict=True)
    ]
    if radius < problem.plane.radius:
        for curve in curves:
            curve.correlation[radius + 1 :] = 0
    return curves


def centring_shift_px(images: Float[Tensor, "K N N"]) -> Float[Tensor, "K 2"]:
    """By how many whole pixels (x, y) to move each class image so that the centre of mass of what
    is brighter than a fifth of its maximum is less than a pixel from the middle.

    A class inherits the position of the image it started from; off centre, the mask would cut it.
    """
    axis = (
        torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
        - images.shape[-1] // 2
    )
    bright = (images - 0.2 * images.amax((-2, -1), keepdim=True)).clamp(min=0)
    mass = bright.sum((-2, -1)).clamp(min=1e-20)
    centre = (
        torch.stack([(bright.sum(-2) * axis).sum(-1), (bright.sum(-1) * axis).sum(-1)], -1)
        / mass[:, None]
    )
    return -centre.trunc().cpu()


def class_sizes(problem: Problem, poses: Poses) -> Int[Tensor, " K"]:
    """Number of particles in each class."""
    return torch.bincount(poses.classes[problem.half >= 0], minlength=problem.n_classes)


def empty_classes(sizes: Int[Tensor, " K"]) -> list[int]:
    """Classes with fewer than two particles, or than a fiftieth of an equal share."""
    return torch.nonzero(sizes < max(2, int(sizes.sum()) / len(sizes) / 50))[:, 0].tolist()


def reseed_empty(
    halves: list[Sums], ssnr: Float[Tensor, "K S"], sizes: Int[Tensor, " K"]
) -> tuple[list[Sums], Float[Tensor, "K S"]]:
    """The sums of both halves, in which a class that ran empty gets one half of the largest class,
    which keeps the other half.

    Two halves of one class show the same view with different noise: near enough to start from,
    different enough to part.
    """
    empty = empty_classes(sizes)
    full = [
        k for k in torch.argsort(sizes, descending=True, stable=True).tolist() if k not in empty
    ]
    if not empty:
        return halves, ssnr
    new, ssnr = [replace(h, num=h.num.clone(), den=h.den.clone()) for h in halves], ssnr.clone()
    for e, k in zip(empty, full, strict=False):  # one half of a class is given away once
        for half in new:
            half.num[e], half.den[e] = halves[0].num[k] / 2, halves[0].den[k] / 2
            half.num[k], half.den[k] = halves[1].num[k] / 2, halves[1].den[k] / 2
        ssnr[e] = ssnr[k]
    return new, ssnr


def trusted_ssnr(fsc: Float[Tensor, "K S"], *, of_sum: bool) -> Float[Tensor, "K S"]:
    """SSNR from the FSC, zero from the first shell on whose correlation is not positive: what comes
    later agrees by chance."""
    positive = torch.cumprod((fsc > 0).to(fsc.dtype), dim=1)
    return ssnr_from_fsc(fsc.clamp(min=0), of_sum=of_sum) * positive


def regularised(
    sums: Sums, settings: Settings, noise_variance: Float[Tensor, "G S"], ssnr: Float[Tensor, "K S"]
) -> Float[Tensor, "K *box"]:
    """`num / (k + den)` with k(s) = <den> / (T SSNR), or the constant that the user asked for."""
    if settings.wiener_constant is None:
        return wiener_update(sums, ssnr_regulariser(sums, settings.tau_fudge * ssnr))
    inverse_noise = (1 / noise_variance).mean(0)[: sums.radius + 1]
    return wiener_update(sums, constant_regulariser(sums, settings.wiener_constant, inverse_noise))
