"""From the data set to the E-step: batches of images, normalised, masked, transformed, weighted by CTF and noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.ctf import CTFParameters, beam_tilt_phase, ctf
from halfmap.fourier import HalfPlane, fourier_transform, shell_mean
from halfmap.likelihood import ImageTerms, image_terms
from halfmap.particles import Particles

EDGE_PX = 5.0  # width of the raised-cosine edge of the particle mask, as RELION's default


@dataclass(frozen=True)
class ImageSettings:
    """How images are prepared: the particle's radius in pixels, whether the CTF is applied, whether each image is brought to background
    standard deviation 1, and where arrays live."""

    particle_radius_px: float
    use_ctf: bool
    normalise: bool
    device: torch.device


@dataclass(frozen=True)
class Batch:
    """B images ready for the E-step (`scored`: masked) and the M-step (`whole`: not masked), on one half-plane.

    `transforms`, `ctf` and `premultiplied` are kept for the noise estimate.
    """

    index: Int[Tensor, " B"]
    group: Int[Tensor, " B"]
    scored: ImageTerms
    whole: ImageTerms
    transforms: Complex[Tensor, "B J"]
    ctf: Float[Tensor, "B J"]
    premultiplied: Float[Tensor, " B"]


def _distance(box: int, centre_px: Float[Tensor, "B 2"]) -> Float[Tensor, "B N N"]:
    axis = torch.arange(box, device=centre_px.device, dtype=torch.float32) - box // 2
    x2 = (axis - centre_px[:, :1]) ** 2
    y2 = (axis - centre_px[:, 1:]) ** 2
    return (y2[:, :, None] + x2[:, None, :]).sqrt()


def background(images: Float[Tensor, "B N N"], radius_px: float) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Mean and standard deviation of each image outside the particle's radius.

    Where the background is empty (masked class averages), the standard deviation is the whole image's.
    """
    box = images.shape[-1]
    outside = images[:, _distance(box, images.new_zeros(1, 2))[0] > min(radius_px, 0.48 * box)]
    spread, whole = outside.std(dim=1), images.std(dim=(1, 2))
    return outside.mean(dim=1), torch.where(spread > 1e-3 * whole, spread, whole).clamp(min=1e-30)


def normalise(images: Float[Tensor, "B N N"], radius_px: float, *, spread: bool) -> Float[Tensor, "B N N"]:
    """Background mean 0 and, with `spread`, background standard deviation 1 (RELION's convention)."""
    mean, deviation = background(images, radius_px)
    centred = images - mean[:, None, None]
    return centred / deviation[:, None, None] if spread else centred


def mask_particles(images: Float[Tensor, "B N N"], radius_px: float, centre_px: Float[Tensor, "B 2"]) -> Float[Tensor, "B N N"]:
    """Zero outside a soft circle around each particle's centre."""
    ramp = ((_distance(images.shape[-1], centre_px) - radius_px) / EDGE_PX).clamp(0, 1)
    return images * (0.5 + 0.5 * torch.cos(torch.pi * ramp))


def load_batch(
    particles: Particles,
    index: Int[Tensor, " B"],
    plane: HalfPlane,
    noise_variance: Float[Tensor, "G S"],
    shift_px: Float[Tensor, "B 2"],
    settings: ImageSettings,
) -> Batch:
    """Read images and prepare their terms; the mask is centred on each particle's present shift, rounded to a pixel."""
    rows = index.cpu().numpy()
    device = settings.device
    images = torch.from_numpy(particles.images(rows)).to(device)
    images = normalise(images, settings.particle_radius_px, spread=settings.normalise)
    frequencies = plane.frequencies(particles.pixel_size_angstrom)
    transforms = fourier_transform(images, plane)
    masked = fourier_transform(mask_particles(images, settings.particle_radius_px, -shift_px.round()), plane)
    premultiplied = torch.from_numpy(particles.ctf_premultiplied[rows].astype(np.float32)).to(device)
    if settings.use_ctf:
        parameters = CTFParameters.from_particles(particles, rows, device)
        transfer = ctf(parameters, *frequencies)
        if bool((parameters.beam_tilt_x_mrad != 0).any() or (parameters.beam_tilt_y_mrad != 0).any()):
            phase = beam_tilt_phase(parameters, *frequencies).conj()
            transforms, masked = transforms * phase, masked * phase
    else:
        transfer, premultiplied = torch.ones_like(transforms.real), torch.zeros_like(premultiplied)
    group = torch.from_numpy(particles.optics_group[rows].astype(np.int64)).to(device)
    sigma2 = noise_variance[group][:, plane.shell]
    scored = image_terms(masked, transfer, sigma2, premultiplied=premultiplied, with_mean=False)
    whole = image_terms(transforms, transfer, sigma2, premultiplied=premultiplied, with_mean=True)
    return Batch(index.to(device), group, scored, whole, transforms, transfer, premultiplied)


def noise_sums(batch: Batch, model: Complex[Tensor, "B J"] | None, plane: HalfPlane, n_groups: int) -> Float[Tensor, "2 G S"]:
    """Per noise group and shell, `sum |X - m C R|^2` and `sum m^2`, with m = C for premultiplied images and 1 otherwise.

    Their quotient estimates sigma^2. `model` is the shifted slice R of each image's pose; None means R = 0.
    """
    once = batch.premultiplied[:, None]
    gain = once * batch.ctf + (1 - once)
    residual = batch.transforms
    if model is not None:
        expected = gain * batch.ctf * model
        weight = plane.hermitian_weight
        fit = (weight * (expected.conj() * residual).real).sum(1) / (weight * expected.abs() ** 2).sum(1).clamp(min=1e-20)
        residual = residual - fit.clamp(min=0)[:, None] * expected
    n_shells = plane.radius + 1
    out = residual.real.new_zeros(2, n_groups, n_shells)
    out[0].index_add_(0, batch.group, shell_mean(residual.real**2 + residual.imag**2, plane.shell, n_shells))
    out[1].index_add_(0, batch.group, shell_mean(gain**2, plane.shell, n_shells))
    return out


def noise_from_sums(sums: Float[Tensor, "2 G S"]) -> Float[Tensor, "G S"]:
    """sigma^2 per group and shell; a group or shell without data takes the mean of all groups, and k = 0 takes shell 1's value."""
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
    particles: Particles, index: Int[Tensor, " N"], plane: HalfPlane, n_groups: int, settings: ImageSettings, *, batch_size: int
) -> Float[Tensor, "G S"]:
    """sigma^2 from the power of the first 1000 images of `index`: at cryo-EM's SNR an image's power is its noise (RELION)."""
    sums = torch.zeros(2, n_groups, plane.radius + 1, device=settings.device)
    ones = torch.ones(n_groups, plane.radius + 1, device=settings.device)
    for piece in batches(index[:1000], batch_size):
        batch = load_batch(particles, piece, plane, ones, torch.zeros(len(piece), 2, device=settings.device), settings)
        sums += noise_sums(batch, None, plane, n_groups)
    return noise_from_sums(sums)
