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
from halfmap.gridding import PADDING
from halfmap.masks import resampled
from halfmap.methods.class_centring import bounded_centring_px, centring_shift_px, moved_images
from halfmap.methods.class_differences import difference_ssnr, shrunk_differences
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
    box = problem.reference_box(parts[0].radius)
    halves = half_maps(problem, parts, box)
    curves = half_curves(problem, settings, halves, parts[0].radius)
    fsc = torch.stack([c.correlation for c in curves]).to(parts[0].den)[:, : parts[0].radius + 1]
    ssnr = trusted_ssnr(fsc, of_sum=problem.matched_to == "shared")
    resolutions = [resolution_at(c, settings.resolution_threshold) for c in curves]
    pixel = problem.particles.pixel_size_angstrom
    mask = settings.fsc_mask
    chance = chance_correlation(
        len(curves[0].correlation),
        dimensions=problem.dimensions,
        share=1.0 if mask is None else float(mask.double().mean()),
        operators=len(problem.symmetry),
    )
    evident = [evident_shell(c, chance, settings.resolution_threshold) for c in curves]
    shell = max(2.0, *evident)
    radius = min(problem.plane.radius, int(shell + max(2.0, 0.15 * shell)))
    n_empty, differences = 0, None
    if problem.n_classes > 1:
        sizes = class_sizes(problem, poses)
        differences = class_differences(problem, settings, halves, sizes)
        del halves  # sums, half maps and references together are the most that a job holds
        parts, ssnr = reseed_empty(parts, ssnr, sizes, folds=problem.n_folds)
        n_empty = len(empty_classes(sizes))
    join = joined_radius(parts[0], settings, min(resolutions), pixel)
    variance = variance.to(ssnr.device)[:, : ssnr.shape[1]]
    folds = problem.folds_at(radius)
    after = problem.with_reference_sets(2 * folds)
    shape = (after.n_reference_sets, len(ssnr), *([box] * problem.dimensions))
    references = parts[0].den.new_empty(shape)
    for n, sums in enumerate(compared_sums(problem, parts, join, folds)):
        references[n] = regularised(sums, settings, variance, ssnr * after.share_compared, box=box)
    moved = None
    if problem.dimensions == 2:
        taking_part = poses.select_images(problem.used)
        wanted = centring_shift_px(references.mean(0))
        moved = bounded_centring_px(wanted, taking_part, problem.particles.box)
        references = moved_images(references, moved.int(), problem.specimen.radius_px)
    if differences is not None:
        for own in references:
            own[:] = shrunk_differences(own, sizes, settings.tau_fudge * differences)
    references *= resampled(settings.reference_mask, box)
    if settings.focus_mask is not None and problem.n_classes > 1:
        focus = resampled(settings.focus_mask, box)
        references = focused(references, focus, class_sizes(problem, poses))
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


def total(parts: list[Sums]) -> Sums:
    """The sums of all parts; of a single one itself."""
    if len(parts) == 1:
        return parts[0]
    num, den = parts[0].num + parts[1].num, parts[0].den + parts[1].den
    for part in parts[2:]:
        num += part.num
        den += part.den
    return replace(parts[0], num=num, den=den)


def compared_sums(
    problem: Problem, parts: list[Sums], join: float | None, folds: int
) -> Iterator[Sums]:
    """The sums of each set of references: both halves together, or without one part; each half; or
    each half without one of its `folds`, of which there may be fewer than parts. Up to the radius
    `join` they are the mean with the other half's. One at a time is held beside the parts; where a
    set is a part, it is that part itself, whose middle is the mean only until the next is asked
    for."""
    if problem.matched_to == "shared":
        for p in range(problem.n_reference_sets):
            yield total([part for q, part in enumerate(parts) if q != p or len(parts) == 2])
        return
    n = problem.n_folds
    centres = None
    if join is not None:
        middle, near = _middle(parts[0], join)
        centres = [_sum_at(middle, half) for half in (parts[:n], parts[n:])]
    for p in range(2 * folds):
        half = p // folds
        others = [half * n + q for q in range(n) if q % folds != p % folds or folds == 1]
        own = total([parts[q] for q in others])
        if centres is None:
            yield own
            continue
        before = [grid[middle].clone() for grid in (own.num, own.den)]
        for grid, other in zip((own.num, own.den), centres[1 - half], strict=True):
            grid[middle] = torch.where(near, (grid[middle] + other) / 2, grid[middle])
        yield own
        for grid, was in zip((own.num, own.den), before, strict=True):
            grid[middle] = was


def _middle(sums: Sums, radius: float) -> tuple[tuple[slice, ...], Bool[Tensor, "z y x"]]:
    """The cube of cells around k = 0 that holds the shells up to a radius, and which of its cells
    lie on them."""
    centre = (sums.den.shape[2] - 1) // 2
    reach = min(centre, PADDING * (int(radius) + 1))
    rows = slice(centre - reach, centre + reach + 1)
    z = rows if sums.dimensions == 3 else slice(None)
    near = grid_shells(sums, rows)[z, :, : reach + 1] <= radius
    return (slice(None), z, rows, slice(0, reach + 1)), near


def _sum_at(middle: tuple[slice, ...], parts: list[Sums]) -> tuple[Tensor, Tensor]:
    num, den = ([getattr(part, name)[middle] for part in parts] for name in ("num", "den"))
    return torch.stack(num).sum(0), torch.stack(den).sum(0)


def joined_radius(
    sums: Sums, settings: Settings, resolution_angstrom: float, pixel_size_angstrom: float
) -> float | None:
    """Up to which shell the halves are to be joined: to `join_halves_angstrom`, so that both keep
    one orientation and hand (RELION); matched to each other, they would else change places in every
    iteration.

    Only once they agree beyond that resolution by themselves: joined halves agree on what is
    joined, whatever the images hold.
    """
    limit = settings.join_halves_angstrom
    if limit is None or resolution_angstrom >= limit:
        return None
    return sums.box * pixel_size_angstrom / limit


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


def half_maps(
    problem: Problem, parts: list[Sums], box: int
) -> tuple[Float[Tensor, "K *box"], Float[Tensor, "K *box"]]:
    """The half maps, or half class averages, of every class; neither filtered nor masked."""
    n = problem.n_folds
    return unregularised(total(parts[:n]), box=box), unregularised(total(parts[n:]), box=box)


def half_curves(
    problem: Problem,
    settings: Settings,
    halves: tuple[Float[Tensor, "K *box"], Float[Tensor, "K *box"]],
    radius: int,
) -> list[Curve]:
    """Correlation between the half maps (or half class averages) of each class inside the solvent
    mask. Where the sums stop early, at `radius`, it is 0 beyond: there is nothing there but what
    the mask lets leak from within."""
    box, pixel = halves[0].shape[-1], problem.particles.pixel_size_angstrom
    mask = None if settings.fsc_mask is None else resampled(settings.fsc_mask, box)
    curves = [
        fourier_shell_correlation(a, b, pixel_size_angstrom=pixel, mask=mask)
        for a, b in zip(*halves, strict=True)
    ]
    return [_up_to(curve, radius, problem) for curve in curves]


def class_differences(
    problem: Problem,
    settings: Settings,
    halves: tuple[Float[Tensor, "K *box"], Float[Tensor, "K *box"]],
    sizes: Int[Tensor, " K"],
) -> Float[Tensor, "K S"] | None:
    """SSNR of what each class has of its own (`methods.class_differences`), where classes are
    volumes in one frame and no constant is asked for; of a class that ran empty without end: what
    it is made anew of must be able to part from the one that it was taken from."""
    if problem.dimensions != 3 or settings.wiener_constant is not None:
        return None
    mask = settings.fsc_mask if settings.focus_mask is None else settings.focus_mask
    inside = None if mask is None else resampled(mask, halves[0].shape[-1])
    ssnr = difference_ssnr(halves, sizes, inside)
    ssnr[empty_classes(sizes)] = torch.inf
    return ssnr


def _up_to(curve: Curve, radius: int, problem: Problem) -> Curve:
    """The curve on all shells that the images have, 0 beyond the radius."""
    box = problem.particles.box
    known = curve.correlation
    if radius < problem.plane.radius:
        known = torch.nn.functional.pad(known[: radius + 1], (0, box // 2 - radius))
    return replace(curve, box=box, correlation=known)


def class_sizes(problem: Problem, poses: Poses) -> Int[Tensor, " K"]:
    """Number of particles in each class."""
    return torch.bincount(poses.classes[problem.half >= 0], minlength=problem.n_classes)


def empty_classes(sizes: Int[Tensor, " K"]) -> list[int]:
    """Classes with fewer than two particles, or than a fiftieth of an equal share."""
    return torch.nonzero(sizes < max(2, int(sizes.sum()) / len(sizes) / 50))[:, 0].tolist()


def reseed_empty(
    parts: list[Sums], ssnr: Float[Tensor, "K S"], sizes: Int[Tensor, " K"], *, folds: int = 1
) -> tuple[list[Sums], Float[Tensor, "K S"]]:
    """The sums of both halves, in which a class that ran empty gets one half of the largest class,
    which keeps the other half; with `folds`, every other fold of either half, so that the halves
    stay apart. They are changed in place: there may be no room for copies.

    Two halves of one class show the same view with different noise: near enough to start from,
    different enough to part.
    """
    empty = empty_classes(sizes)
    full = [
        k for k in torch.argsort(sizes, descending=True, stable=True).tolist() if k not in empty
    ]
    ssnr = ssnr.clone()
    for e, k in zip(empty, full, strict=False):  # one half of a class is given away once
        for of_given, of_kept in _in_twos(parts, folds):
            for name in ("num", "den"):
                one, other = getattr(of_given, name), getattr(of_kept, name)
                given, kept = one[k] / 2, other[k] / 2
                for grid in (one, other):
                    grid[e], grid[k] = given, kept
        ssnr[e] = ssnr[k]
    return parts, ssnr


def _in_twos(parts: list[Sums], folds: int) -> list[tuple[Sums, Sums]]:
    """The two halves; or the folds of each half two by two, the last alone where they are odd."""
    if folds == 1:
        return [(parts[0], parts[1])]
    halves = parts[:folds], parts[folds:]
    return [(half[q], half[min(q + 1, folds - 1)]) for half in halves for q in range(0, folds, 2)]


def trusted_ssnr(fsc: Float[Tensor, "K S"], *, of_sum: bool) -> Float[Tensor, "K S"]:
    """SSNR from the FSC, zero from the first shell on whose correlation is not positive: what comes
    later agrees by chance."""
    positive = torch.cumprod((fsc > 0).to(fsc.dtype), dim=1)
    return ssnr_from_fsc(fsc.clamp(min=0), of_sum=of_sum) * positive


def regularised(
    sums: Sums,
    settings: Settings,
    noise_variance: Float[Tensor, "G S"],
    ssnr: Float[Tensor, "K S"],
    *,
    box: int | None = None,
) -> Float[Tensor, "K *box"]:
    """`num / (k + den)` with k(s) = <den> / (T SSNR), or the constant that the user asked for."""
    if settings.wiener_constant is None:
        constant = ssnr_regulariser(sums, settings.tau_fudge * ssnr)
    else:
        inverse_noise = (1 / noise_variance).mean(0)[: sums.radius + 1]
        constant = constant_regulariser(sums, settings.wiener_constant, inverse_noise)
    return wiener_update(sums, constant, box=box)
