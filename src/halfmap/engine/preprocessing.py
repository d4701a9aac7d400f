"""From the data set to the E-step: batches of images, normalised, masked, transformed, weighted by
CTF and noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from halfmap.fourier import HalfPlane, fourier_transform, half_plane, shell_mean
from halfmap.likelihood import ImageTerms, image_terms
from halfmap.particles import Particles
from halfmap.transfer_function import evaluate, no_transfer

EDGE_PX = 5.0  # width of the raised-cosine edge of the particle mask, as RELION's default


@dataclass(frozen=True)
class ImageSettings:
    """How images are prepared: the particle's radius in pixels, whether the CTF is applied, whether
    each image is brought to background standard deviation 1, and where arrays live."""

    particle_radius_px: float
    use_ctf: bool
    normalise: bool
    device: torch.device


@dataclass(frozen=True)
class Batch:
    """B images ready for the E-step (`scored`: masked, inside the radius that is scored) and the
    M-step (`whole`: not masked).

    `scored` holds the first samples of the half-plane of `whole`. `transforms`, `ctf`,
    `premultiplied`, the noise variance `sigma2` and the noise's strength `norm` in each image are
    kept for the noise estimate.
    """

    index: Int[Tensor, " B"]
    group: Int[Tensor, " B"]
    scored: ImageTerms
    whole: ImageTerms
    transforms: Complex[Tensor, "B J"]
    ctf: Float[Tensor, "B J"]
    premultiplied: Float[Tensor, " B"]
    sigma2: Float[Tensor, "G J"]
    norm: Float[Tensor, " B"]


@dataclass(frozen=True)
class Residuals:
    """What the model leaves of a batch. `noise` holds per noise group and shell `sum_e Gamma_e |X -
    m s C S_t R_e|^2 / nu^2` and `sum m^2`: their quotient estimates sigma^2. Per image, over the
    plane without k = 0: `cross` a = `sum Re(conj(d) R)` and `power` b = `sum p |R|^2` on the scored
    samples, and `misfit`, the mean of `|X - m s C S_t R|^2 / (nu^2 m^2 sigma^2)`, 1 where all is as
    expected."""

    noise: Float[Tensor, "2 G S"]
    cross: Float[Tensor, " B"]
    power: Float[Tensor, " B"]
    misfit: Float[Tensor, " B"]


def _distance(box: int, centre_px: Float[Tensor, "B 2"]) -> Float[Tensor, "B N N"]:
    axis = torch.arange(box, device=centre_px.device, dtype=torch.float32) - box // 2
    x2 = (axis - centre_px[:, :1]) ** 2
    y2 = (axis - centre_px[:, 1:]) ** 2
    return (y2[:, :, None] + x2[:, None, :]).sqrt()


def background(
    images: Float[Tensor, "B N N"], radius_px: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Mean and standard deviation of each image outside the particle's radius.

    Where the background is empty (masked class averages), the standard deviation is the whole
    image's.
    """
    outside = images.flatten(1).index_select(
        1, torch.nonzero(_outside(images, radius_px).flatten())[:, 0]
    )
    spread, whole = outside.std(dim=1), images.std(dim=(1, 2))
    return outside.mean(dim=1), torch.where(spread > 1e-3 * whole, spread, whole).clamp(min=1e-30)


def _outside(images: Float[Tensor, "B N N"], radius_px: float) -> Bool[Tensor, "N N"]:
    box = images.shape[-1]
    return _distance(box, images.new_zeros(1, 2))[0] > min(radius_px, 0.48 * box)


def normalise(
    images: Float[Tensor, "B N N"], radius_px: float, *, spread: bool
) -> Float[Tensor, "B N N"]:
    """Background mean 0 and, with `spread`, background standard deviation 1 (RELION's
    convention)."""
    if spread:
        mean, deviation = background(images, radius_px)
        return (images - mean[:, None, None]).div_(deviation[:, None, None])
    outside = (
        _outside(images, radius_px).flatten().to(images.dtype)
    )  # the mean alone is a matrix product
    return images - (images.flatten(1) @ (outside / outside.sum()))[:, None, None]


def mask_particles(
    images: Float[Tensor, "B N N"], radius_px: float, centre_px: Float[Tensor, "B 2"]
) -> Float[Tensor, "B N N"]:
    """Zero outside a soft circle around each particle's centre, in whole pixels: 1 inside the
    radius, falling as a raised cosine over `EDGE_PX`."""
    box = images.shape[-1]
    reach = box // 2  # a centre farther out is taken to be at the image's edge
    ramp = ((_distance(box + 2 * reach, centre_px.new_zeros(1, 2))[0] - radius_px) / EDGE_PX).clamp(
        0, 1
    )
    circle = 0.5 + 0.5 * torch.cos(torch.pi * ramp)
    windows = circle.unfold(0, box, 1).unfold(
        1, box, 1
    )  # every place that the circle can have in the image
    corner = reach - centre_px.long().clamp(-reach, reach)
    return images * windows[corner[:, 1], corner[:, 0]]


def load_batch(
    particles: Particles,
    index: Int[Tensor, " B"],
    plane: HalfPlane,
    noise_variance: Float[Tensor, "G S"],
    shift_px: Float[Tensor, "B 2"],
    settings: ImageSettings,
    *,
    scored_radius: int | None = None,
    norm: Float[Tensor, " B"] | None = None,
    scale: Float[Tensor, " B"] | None = None,
) -> Batch:
    """Read images and prepare their terms; the mask is centred on each particle's present shift,
    rounded to a pixel.

    `whole` reaches to the plane's radius, `scored` to `scored_radius` (None: the plane's); the
    noise variance may have more shells. With X = s C S R + nu N (`intensity`; both 1 if None) the
    terms are `s C X / (nu^2 sigma^2)` and `s^2 C^2 / (nu^2 sigma^2)`.
    """
    rows = index.cpu().numpy()
    device = settings.device
    inner = (
        plane
        if scored_radius is None
        else half_plane(plane.box, min(scored_radius, plane.radius), device)
    )
    images = torch.from_numpy(particles.images(rows)).to(device)
    images = normalise(images, settings.particle_radius_px, spread=settings.normalise)
    transforms = fourier_transform(images, plane)
    masked = fourier_transform(
        mask_particles(images, settings.particle_radius_px, -shift_px.round()), inner
    )
    if settings.use_ctf:
        parameters = particles.transfer.take(rows).to(device)
        optics = evaluate(parameters, *plane.frequencies(particles.pixel_size_angstrom))
    else:
        optics = no_transfer(transforms)
    transforms, masked = optics.correct_phases(transforms), optics.correct_phases(masked)
    transfer, premultiplied = optics.ctf, optics.premultiplied.to(torch.float32)
    group = torch.from_numpy(particles.optics_group[rows].astype(np.int64)).to(device)
    by_group = noise_variance[:, plane.shell]
    sigma2 = by_group.index_select(0, group)
    if norm is not None:
        sigma2.mul_(norm.to(device)[:, None] ** 2)
    n = len(inner)
    scored = image_terms(
        masked, transfer[:, :n], sigma2[:, :n], premultiplied=premultiplied, with_mean=False
    )
    whole = image_terms(transforms, transfer, sigma2, premultiplied=premultiplied, with_mean=True)
    if scale is not None:
        for terms in (scored, whole):
            terms.data.mul_(scale.to(device)[:, None])
            terms.power.mul_(scale.to(device)[:, None] ** 2)
    norm = torch.ones_like(premultiplied) if norm is None else norm.to(device)
    return Batch(
        index.to(device), group, scored, whole, transforms, transfer, premultiplied, by_group, norm
    )


def residuals(
    batch: Batch, expected: ImageTerms | None, plane: HalfPlane, *, fit: bool, robust: bool
) -> Residuals:
    """What the model `X = s C S_t R + nu N` leaves of each image (stored times m = C if
    premultiplied, else m = 1), weighted by Gamma.

    `expected` holds `sum_e Gamma_e S_t R_e` and `sum_e Gamma_e |R_e|^2` of each image on the first
    I samples of the plane, those that were scored; beyond them R is taken to be 0, and everywhere
    with None. The square is taken apart, d and p being the image's terms:

        |X - m s C S_t R|^2 / nu^2 = |X|^2 / nu^2 + sigma^2 m^2 (p |R|^2 - 2 Re(conj(d) S_t R))

    With `fit` each image's slices are scaled to fit best, by `a / b`: references may be on any grey
    scale. With `robust` each image counts in the noise sums as if its misfit were 1, and one of
    more than its share of power by 1 / (nu^2 misfit) only: images full of something else neither
    raise the noise of others nor colour it.
    """
    n_groups, n_shells = len(batch.sigma2), plane.radius + 1
    weight = plane.hermitian_weight.clone()
    weight[0] = 0  # the mean grey value says nothing of signal and noise
    squares = (
        torch.view_as_real(batch.transforms).flatten(1).square()
    )  # summed over images before real and imaginary part meet: faster
    nu2 = batch.norm**2
    gain2 = _squared_gain(batch)
    total = (squares @ (weight / batch.sigma2).repeat_interleave(2, dim=1).T).gather(
        1, batch.group[:, None]
    )[:, 0] / nu2
    cross_power = squares.new_zeros(2, len(nu2))
    if expected is not None:
        n = expected.data.shape[1]
        data = batch.whole.data[:, :n]
        cross = (data.real * expected.data.real).addcmul_(data.imag, expected.data.imag)
        power = batch.whole.power[:, :n] * expected.power
        cross_power = torch.stack([cross @ weight[:n], power @ weight[:n]])
        if fit:
            factor = (cross_power[0] / cross_power[1].clamp(min=1e-20)).clamp(min=0)[:, None]
            cross, power = factor * cross, factor**2 * power
        change = power.sub_(cross, alpha=2)
        if gain2 is not None:
            change = change * gain2[:, :n]
        total += change @ weight[:n]
    misfit = (total / (weight.sum() if gain2 is None else gain2 @ weight)).clamp(min=1e-6)
    trust = 1 / (nu2 * misfit).clamp(min=1) if robust else torch.ones_like(misfit)
    share = trust / misfit if robust else trust
    left = squares.new_zeros(n_groups, squares.shape[1]).index_add_(
        0, batch.group, squares.mul_((share / nu2)[:, None])
    )
    left = left.view(n_groups, -1, 2).sum(-1)
    if expected is not None:
        left[:, :n] += batch.sigma2[:, :n] * left.new_zeros(n_groups, n).index_add_(
            0, batch.group, change.mul_(share[:, None])
        )
    if gain2 is None:
        seen = (
            left.new_zeros(n_groups)
            .index_add_(0, batch.group, trust)[:, None]
            .expand(-1, len(plane))
        )
    else:
        seen = torch.zeros_like(left).index_add_(0, batch.group, gain2 * trust[:, None])
    sums = torch.stack(
        [
            shell_mean(left.clamp(min=0), plane.shell, n_shells),
            shell_mean(seen, plane.shell, n_shells),
        ]
    )
    return Residuals(sums, cross_power[0], cross_power[1], misfit)


def _squared_gain(batch: Batch) -> Float[Tensor, "B J"] | None:
    """m^2, None where it is 1 everywhere."""
    if not bool(batch.premultiplied.any()):
        return None
    stored = batch.premultiplied[:, None]
    return stored * batch.ctf**2 + (1 - stored)


def noise_from_sums(sums: Float[Tensor, "2 G S"]) -> Float[Tensor, "G S"]:
    """sigma^2 per group and shell; a group or shell without data takes the mean of all groups, and
    k = 0 takes shell 1's value."""
    total = sums.sum(1, keepdim=True)
    mean = total[0] / total[1].clamp(min=1e-20)
    variance = torch.where(sums[1] > 1e-12, sums[0] / sums[1].clamp(min=1e-20), mean)
    variance[:, 0] = variance[:, 1]
    floor = 1e-6 * variance.mean(dim=1, keepdim=True)
    return torch.maximum(variance, floor.clamp(min=torch.finfo(variance.dtype).tiny))


def batches(index: Int[Tensor, " N"], size: int) -> Iterator[Int[Tensor, " B"]]:
    """Consecutive pieces of an index."""
    for start in range(0, len(index), size):
        yield index[start : start + size]


def initial_noise(
    particles: Particles,
    index: Int[Tensor, " N"],
    plane: HalfPlane,
    n_groups: int,
    settings: ImageSettings,
    *,
    batch_size: int,
) -> Float[Tensor, "G S"]:
    """sigma^2 from the power of the first 1000 images of `index`: at cryo-EM's SNR an image's power
    is its noise (RELION)."""
    sums = torch.zeros(2, n_groups, plane.radius + 1, device=settings.device)
    ones = torch.ones(n_groups, plane.radius + 1, device=settings.device)
    for piece in batches(index[:1000], batch_size):
        batch = load_batch(
            particles,
            piece,
            plane,
            ones,
            torch.zeros(len(piece), 2, device=settings.device),
            settings,
        )
        sums += residuals(batch, None, plane, fit=False, robust=False).noise
    return noise_from_sums(sums)
