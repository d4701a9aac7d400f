"""From the data set to the E-step: batches of images, normalised, masked, transformed, weighted by
CTF and noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from halfmap.engine.box_edges import have_seams, without_seams
from halfmap.engine.ramps import background_mask, remove_planes
from halfmap.engine.split_noise import SplitNoise, noise_images
from halfmap.fourier import HalfPlane, fourier_transform, half_plane
from halfmap.likelihood import ImageTerms, image_terms
from halfmap.particles import Particles
from halfmap.stored_grids import between_samples, premultiplied
from halfmap.transfer_function import Transfer

EDGE_PX = 5.0  # width of the raised-cosine edge of the particle mask, as RELION's default


@dataclass(frozen=True)
class ImageSettings:
    """How images are prepared: the radius of their soft circular mask
    in pixels, whether the CTF is applied, whether
    each image is brought to background standard deviation 1, where arrays live, and whether a plane
    is taken off each."""

    mask_radius_px: float
    use_ctf: bool
    normalise: bool
    device: torch.device
    remove_ramps: bool = False


@dataclass(frozen=True)
class Batch:
    """B images ready for the E-step (`scored`: masked, inside the radius that is scored) and the
    M-step (`whole`: not masked).

    `scored` holds the first samples of the half-plane of `whole`. `transforms`, `ctf`,
    `premultiplied`, the noise variance `sigma2`, the noise's strength `norm` in each image and the
    share of a full image's noise that it holds (`noise_share`, None where it is 1: less where it
    covers a part of the box, 0 beyond its Nyquist frequency) are kept for the noise estimate.
    """

    index: Int[Tensor, " B"]
    group: Int[Tensor, " B"]
    scored: ImageTerms
    whole: ImageTerms
    transforms: Complex[Tensor, "B K"]  # K = J, or 0 where no noise is estimated
    ctf: Float[Tensor, "B J"]
    premultiplied: Float[Tensor, " B"]
    sigma2: Float[Tensor, "G J"]
    norm: Float[Tensor, " B"]
    noise_share: Float[Tensor, "B J"] | None = None


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
    outside = images.flatten(1).index_select(1, torch.nonzero(_outside(images, radius_px))[:, 0])
    spread, whole = outside.std(dim=1), images.std(dim=(1, 2))
    return outside.mean(dim=1), torch.where(spread > 1e-3 * whole, spread, whole).clamp(min=1e-30)


def _outside(images: Float[Tensor, "B N N"], radius_px: float) -> Bool[Tensor, " P"]:
    return background_mask(images.shape[-1], radius_px, images.device).flatten()


def normalise(
    images: Float[Tensor, "B N N"], radius_px: float, *, spread: bool, ramps: bool = False
) -> Float[Tensor, "B N N"]:
    """Background mean 0, with `ramps` background slope 0 and, with `spread`, background standard
    deviation 1 (RELION's convention)."""
    if ramps:
        images = remove_planes(images, radius_px)
    if spread:
        mean, deviation = background(images, radius_px)
        return (images - mean[:, None, None]).div_(deviation[:, None, None])
    if ramps:
        return images
    outside = _outside(images, radius_px).to(images.dtype)  # the mean alone is a matrix product
    return images - (images.flatten(1) @ (outside / outside.sum()))[:, None, None]


@dataclass(frozen=True)
class ReadImages:
    """Images X (`plain`), and `multiplied` the same but `conj(t) X` of those that are `done`: their
    transfer functions t were undone where they are stored (`halfmap.stored_grids`), and `power` is
    their C^2. Of where none is, `done` and `power` are None."""

    plain: Float[Tensor, "B N N"]
    multiplied: Float[Tensor, "B N N"]
    done: Bool[Tensor, " B"] | None = None
    power: Float[Tensor, "B J"] | None = None


def read_images(
    particles: Particles, rows: np.ndarray, plane: HalfPlane, settings: ImageSettings
) -> ReadImages:
    """Images on the data set's grid, their backgrounds as the settings ask; those that are stored
    at other frequencies multiplied there, their C^2 at the plane's."""
    apart = particles.stored_apart(rows)
    if not (settings.use_ctf and apart.any()):
        images = aligned(torch.from_numpy(particles.images(rows))).to(settings.device)
        images = _normalised(images, particles, rows, settings)
        return ReadImages(images, images)
    images, multiplied = torch.empty(2, len(rows), particles.box, particles.box)
    power = torch.zeros(len(rows), len(plane))
    frequencies = [k.cpu() for k in plane.frequencies(particles.pixel_size_angstrom)]
    for places, stored, read in particles.stored_images(rows):
        images[places] = torch.from_numpy(stored.bring(read, particles.grid))
        if apart[places[0]]:
            wider = particles.pixel_size_angstrom / stored.pixel_size_angstrom
            radius_px, ramps = settings.mask_radius_px * wider, settings.remove_ramps
            flat = normalise(torch.from_numpy(read), radius_px, spread=False, ramps=ramps)
            found = premultiplied(flat, stored, particles.transfer.take(rows[places]))
            brought = stored.bring(found.images.numpy(), particles.grid)
            multiplied[places] = torch.from_numpy(brought)
            power[places] = between_samples(found.squared_ctf, stored, *frequencies)
    done, images, multiplied, power = (
        one.to(settings.device) for one in (torch.from_numpy(apart), images, multiplied, power)
    )
    images = normalise(images, settings.mask_radius_px, spread=False, ramps=settings.remove_ramps)
    scaled = torch.from_numpy(settings.normalise | _to_be_rescaled(particles, rows))
    deviation = background(images, settings.mask_radius_px)[1]
    deviation = torch.where(scaled.to(settings.device), deviation, 1.0)[:, None, None]
    multiplied = torch.where(done[:, None, None], multiplied, images) / deviation
    return ReadImages(images / deviation, multiplied, done, power)


def _normalised(
    images: Float[Tensor, "B N N"], particles: Particles, rows: np.ndarray, settings: ImageSettings
) -> Float[Tensor, "B N N"]:
    """Images normalised as the settings ask. The background of those with mended pixels is brought
    to standard deviation 1 in any case: whoever normalised them divided them by what the hot pixels
    were."""
    radius_px = settings.mask_radius_px
    images = normalise(images, radius_px, spread=settings.normalise, ramps=settings.remove_ramps)
    mended = _to_be_rescaled(particles, rows)
    if mended.any() and not settings.normalise:
        chosen = torch.from_numpy(np.flatnonzero(mended)).to(images.device)
        images[chosen] = normalise(images[chosen], radius_px, spread=True)
    return images


def _to_be_rescaled(particles: Particles, rows: np.ndarray) -> Bool[np.ndarray, " B"]:
    return particles.is_mended(rows) & ~np.asarray(particles.transfer.premultiplied[rows], bool)


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


def aligned(images: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """A copy in torch's own memory. The last bits of a matrix product may depend on where its
    arrays begin, and numpy's begin wherever the process has room; torch's at multiples of 64."""
    return images.clone()


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
    reference_variance: Float[Tensor, " S"] | None = None,
    split: SplitNoise | None = None,
) -> Batch:
    """Read images and prepare their terms; the mask is centred on each particle's present shift,
    rounded to a pixel.

    `whole` reaches to the plane's radius, `scored` to `scored_radius` (None: the plane's); the
    noise variance may have more shells. With X = s C S R + nu N (`intensity`; both 1 if None) the
    terms are `s C X / (nu^2 sigma^2)` and `s^2 C^2 / (nu^2 sigma^2)`. What is scored has
    `nu^2 sigma^2 + s^2 C^2 v` in place of `nu^2 sigma^2`, v the `reference_variance`. With `split`
    what is scored and the whole images have noises that are independent of each other.
    """
    rows = index.cpu().numpy()
    device = settings.device
    inner = (
        plane
        if scored_radius is None
        else half_plane(plane.box, min(scored_radius, plane.radius), device)
    )
    read = read_images(particles, rows, plane, settings)
    frequencies = plane.frequencies(particles.pixel_size_angstrom)
    optics = particles.transfer_at(rows, *frequencies, use_ctf=settings.use_ctf)
    transfer, stored_once = optics.ctf, optics.premultiplied.to(torch.float32)
    once = stored_once
    if read.done is not None and read.power is not None:
        once = torch.where(read.done, 1.0, once)
        shown = read.power.sqrt() if optics.seen is None else read.power.sqrt() * optics.seen
        transfer = torch.where(read.done[:, None], shown, transfer)
    group = torch.from_numpy(particles.optics_group[rows].astype(np.int64)).to(device)
    by_group = noise_variance[:, plane.shell]
    sigma2 = by_group.index_select(0, group)
    if norm is not None:
        sigma2.mul_(norm.to(device)[:, None] ** 2)
    share = _noise_share(particles.coverage(rows), optics)
    transforms = fourier_transform(read.plain, plane)
    to_score = to_sum = read.multiplied
    if split is not None:
        drawn = split.draw(index, plane)
        noise = noise_images(drawn, sigma2, share, transfer, once, plane)
        to_score, to_sum = to_score + split.g * noise, to_sum - noise / split.g
    masked = fourier_transform(
        mask_particles(to_score, settings.mask_radius_px, -shift_px.round()), inner
    )
    plain = to_sum is read.plain
    whole_images = transforms if plain else fourier_transform(to_sum, plane)
    summed = _without_seams(to_sum, whole_images, shift_px, plane, settings.mask_radius_px)
    transforms = optics.correct_phases(transforms)
    masked, summed = (optics.correct_phases(one, done=read.done) for one in (masked, summed))
    n = len(inner)
    beside = sigma2[:, :n]
    if split is not None:
        beside, sigma2 = split.first * beside, split.second * sigma2
    if reference_variance is not None:
        shown = transfer[:, :n] if scale is None else transfer[:, :n] * scale.to(device)[:, None]
        beside = beside + shown**2 * reference_variance.to(device)[inner.shell]
    scored = image_terms(masked, transfer[:, :n], beside, premultiplied=once, with_mean=False)
    whole = image_terms(summed, transfer, sigma2, premultiplied=once, with_mean=True)
    if scale is not None:
        for terms in (scored, whole):
            terms.data.mul_(scale.to(device)[:, None])
            terms.power.mul_(scale.to(device)[:, None] ** 2)
    norm = torch.ones_like(stored_once) if norm is None else norm.to(device)
    return Batch(
        index.to(device),
        group,
        scored,
        whole,
        transforms,
        optics.ctf,
        stored_once,
        by_group,
        norm,
        share,
    )


def _noise_share(coverage: np.ndarray | None, optics: Transfer) -> Float[Tensor, "B J"] | None:
    """Where noise is, and how much of it, None where that is all of it everywhere."""
    if coverage is None:
        return None if optics.seen is None else optics.seen.to(optics.ctf)
    share = torch.from_numpy(coverage).to(optics.ctf)[:, None]
    return share.expand_as(optics.ctf) if optics.seen is None else share * optics.seen


def _without_seams(
    images: Float[Tensor, "B N N"],
    transforms: Complex[Tensor, "B J"],
    shift_px: Float[Tensor, "B 2"],
    plane: HalfPlane,
    radius_px: float,
) -> Complex[Tensor, "B J"]:
    """The transforms, those of images that leave their box without what would come in again."""
    seams = have_seams(shift_px, plane.box, radius_px)
    if not bool(seams.any()):
        return transforms
    mended = transforms.clone()
    mended[seams] = fourier_transform(without_seams(images[seams], shift_px[seams]), plane)
    return mended


def batches(index: Int[Tensor, " N"], size: int) -> Iterator[Int[Tensor, " B"]]:
    """Consecutive pieces of an index."""
    for start in range(0, len(index), size):
        yield index[start : start + size]
