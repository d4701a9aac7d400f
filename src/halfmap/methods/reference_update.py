"""From the two sums of both halves to the next references: the Wiener, or MAP, update, and what the
halves tell of the resolution.

    A_k = num / (1 / (T tau^2) + den),    1 / (T tau^2) = <den> / (T SSNR)

SSNR is that of the sums themselves, from the correlation of half maps (half class averages); with
it the lecture's Wiener filter and its MAP update are one formula, up to T.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmap.engine.image_model import noise_variance
from halfmap.engine.method import Iteration, Update
from halfmap.engine.problem import Problem
from halfmap.engine.state import Poses
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

# standard deviations of chance that a correlation must be above the threshold to count
CHANCE = 1.0


def map_update(
    settings: Settings, iteration: Iteration, poses: Poses, halves: list[Sums]
) -> Update:
    """`update_references` as the loop asks for it (`Method.update`)."""
    variance = noise_variance(iteration.state)
    return update_references(iteration.problem, settings, variance, poses, halves)


def update_references(
    problem: Problem,
    settings: Settings,
    variance: Float[Tensor, "G S"],
    poses: Poses,
    parts: list[Sums],
) -> Update:
    """`num / (k(s) + den)` for each set of references; the half maps' correlation gives SSNR,
    resolution and the next radius."""
    halves = halves_of(problem, parts)
    curves = half_curves(problem, settings, halves)
    fsc = torch.stack([c.correlation for c in curves]).to(halves[0].den)[:, : halves[0].radius + 1]
    ssnr = trusted_ssnr(fsc, of_sum=problem.matched_to == "shared")
    resolutions = [resolution_at(c, settings.resolution_threshold) for c in curves]
    box, pixel = problem.particles.box, problem.particles.pixel_size_angstrom
    n_empty = 0
    if problem.n_classes > 1:
        sizes = class_sizes(problem, poses)
        halves, ssnr = reseed_empty(halves, ssnr, sizes)
        n_empty = len(empty_classes(sizes))
    join = joined_shells(halves, settings, min(resolutions), pixel)
    variance = variance.to(ssnr.device)[:, : ssnr.shape[1]]
    references = torch.stack(
        [
            regularised(sums, settings, variance, ssnr * problem.share_compared)
            for sums in compared_sums(problem, halves, parts, join)
        ]
    )
    moved = None
    if problem.dimensions == 2:
        moved = centring_shift_px(references.mean(0))
        for k, (x, y) in enumerate(moved.int().tolist()):
            references[:, k] = references[:, k].roll((y, x), (-2, -1))
    references = references * settings.reference_mask
    if settings.focus_mask is not None and problem.n_classes > 1:
        references = focused(references, settings.focus_mask, class_sizes(problem, poses))
    mask = settings.fsc_mask
    chance = chance_correlation(
        len(curves[0].correlation),
        dimensions=problem.dimensions,
        share=1.0 if mask is None else float(mask.double().mean()),
        operators=len(problem.symmetry),
    )
    evident = [evident_shell(c, chance, settings.resolution_threshold) for c in curves]
    shell = max(2.0, *evident)
    radius = min(largest_radius(box), int(shell + max(2.0, 0.15 * shell)))
    full = problem.plane.radius + 1
    return Update(
        references=references,
        curves=torch.nn.functional.pad(fsc, (0, full - fsc.shape[1])).cpu(),
        radius=radius,
        resolutions_angstrom=tuple(resolutions),
        empty_classes=n_empty,
        recentring_px=moved,
    )


def focused(
    references: Float[Tensor, "H K *box"], focus: Float[Tensor, "*box"], sizes: Int[Tensor, " K"]
) -> Float[Tensor, "H K *box"]:
    """Classes that differ inside the focus mask alone: outside each is the mean of all, weighted by
    their sizes, so that what varies there does not part the images."""
    weight = (sizes.double() / sizes.sum().clamp(min=1)).to(references)
    mean = torch.tensordot(weight, references, dims=([0], [1]))[:, None]
    return mean + focus.to(references) * (references - mean)


def halves_of(problem: Problem, parts: list[Sums]) -> list[Sums]:
    """The sums of both halves, from those of their folds."""
    halves = []
    for own in (parts[: problem.n_folds], parts[problem.n_folds :]):
        whole = own[0]
        for part in own[1:]:
            whole = whole + part
        halves.append(whole)
    return halves


def compared_sums(
    problem: Problem, halves: list[Sums], parts: list[Sums], join: Bool[Tensor, "Z Y X"] | None
) -> Iterator[Sums]:
    """The sums of each set of references: both halves together; each half; or each half without one
    of its folds. On the shells to `join` they are the mean with the other half's."""
    if problem.matched_to == "shared":
        yield halves[0] + halves[1]
        return
    for p, part in enumerate(parts):
        half, n = p // problem.n_folds, problem.n_folds
        own = halves[half] if n == 1 else without(halves[half], part)
        if join is not None:
            other = halves[1 - half]
            num = torch.where(join, (own.num + other.num) / 2, own.num)
            own = replace(own, num=num, den=torch.where(join, (own.den + other.den) / 2, own.den))
        yield own


def without(whole: Sums, part: Sums) -> Sums:
    """The sums of all images but those of a part."""
    return replace(whole, num=whole.num - part.num, den=(whole.den - part.den).clamp(min=0))


def joined_shells(
    halves: list[Sums], settings: Settings, resolution_angstrom: float, pixel_size_angstrom: float
) -> Bool[Tensor, "Z Y X"] | None:
    """Where the halves are to be joined: on the shells below `join_halves_angstrom`, so that both
    keep one orientation and hand (RELION); matched to each other, they would else change places in
    every iteration.

    Only once they agree beyond that resolution by themselves: joined halves agree on what is
    joined, whatever the images hold.
    """
    limit = settings.join_halves_angstrom
    if limit is None or resolution_angstrom >= limit:
        return None
    return grid_shells(halves[0]) <= halves[0].box * pixel_size_angstrom / limit


def evident_shell(curve: Curve, chance: Float[Tensor, " S"], threshold: float) -> float:
    """Up to which shell the halves of a class agree beyond chance: the last before the curve,
    averaged over three shells, is less than `CHANCE` standard deviations above the threshold.

    The deviation of a correlation c is that of chance times 1 - c^2 (Fisher).
    """
    mean = torch.nn.functional.avg_pool1d(
        curve.correlation[None, None], 3, stride=1, padding=1, count_include_pad=False
    )[0, 0].clamp(-1, 1)
    surely = mean - CHANCE * chance.to(mean) * (1 - mean**2)
    below = torch.nonzero(surely[1:] < threshold)[:, 0] + 1
    return float(below[0]) - 1 if len(below) else len(mean) - 1.0


def chance_correlation(
    n_shells: int, *, dimensions: int, share: float, operators: int
) -> Float[Tensor, " S"]:
    """Standard deviation of the correlation of noise with noise, averaged over three shells: `1 /
    sqrt(3 n)` with n the independent coefficients of a shell, 2 pi s in 2D and 4 pi s^2 in 3D,
    times the share of the box inside the mask, over the number of symmetry operators. (van Heel &
    Schatz, J. Struct. Biol. 151, 250 (2005).)"""
    s = torch.arange(n_shells, dtype=torch.float64).clamp(min=1)
    coefficients = 2 * math.pi * s if dimensions == 2 else 4 * math.pi * s**2
    return (3 * coefficients * share / operators).rsqrt().clamp(max=1)


def half_curves(problem: Problem, settings: Settings, halves: list[Sums]) -> list[Curve]:
    """Correlation between the half maps (or half class averages) of each class inside the solvent
    mask. Where the sums stop early it is 0 beyond: there is nothing there but what the mask lets
    leak from within."""
    first, second = (unregularised(s) for s in halves)
    pixel, radius = problem.particles.pixel_size_angstrom, halves[0].radius
    curves = [
        fourier_shell_correlation(a, b, pixel_size_angstrom=pixel, mask=settings.fsc_mask)
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
