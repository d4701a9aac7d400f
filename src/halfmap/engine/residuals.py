"""What the model leaves of images: residuals of the posterior's expectation, and the noise in
them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.batching import in_batches
from halfmap.engine.preprocessing import Batch, ImageSettings, load_batch
from halfmap.fourier import HalfPlane, shell_mean
from halfmap.likelihood import ImageTerms
from halfmap.particles import Particles

INITIAL_NOISE_IMAGES = 1000  # RELION's number of images for the first power spectrum


@dataclass(frozen=True)
class Residuals:
    """What the model leaves of a batch. `noise` holds per noise group and sample `sum_e Gamma_e |X
    - m s C S_t R_e|^2 / nu^2` and `sum m^2`: their quotient estimates sigma^2 (`shell_sums`). Per
    image, over the plane without k = 0: `cross` a = `sum Re(conj(d) R)` and `power` b = `sum p
    |R|^2` on the scored samples, and `misfit`, the mean of `|X - m s C S_t R|^2 / (nu^2 m^2
    sigma^2)`, 1 where all is as expected."""

    noise: Float[Tensor, "2 G J"]
    cross: Float[Tensor, " B"]
    power: Float[Tensor, " B"]
    misfit: Float[Tensor, " B"]


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
    n_groups = len(batch.sigma2)
    weight = plane.hermitian_weight.clone()
    weight[0] = 0  # the mean grey value says nothing of signal and noise
    squares = (
        torch.view_as_real(batch.transforms).flatten(1).square()
    )  # summed over images before real and imaginary part meet: faster
    nu2 = batch.norm**2
    gain2 = _squared_gain(batch)
    noise = _expected_noise(batch, gain2)
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
    misfit = (total / (weight.sum() if noise is None else noise @ weight)).clamp(min=1e-6)
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
    if noise is None:
        seen = (
            left.new_zeros(n_groups)
            .index_add_(0, batch.group, trust)[:, None]
            .expand(-1, len(plane))
        )
    else:
        seen = torch.zeros_like(left).index_add_(0, batch.group, noise * trust[:, None])
    return Residuals(torch.stack([left, seen]), cross_power[0], cross_power[1], misfit)


def _squared_gain(batch: Batch) -> Float[Tensor, "B J"] | None:
    """m^2, None where it is 1 everywhere."""
    if not bool(batch.premultiplied.any()):
        return None
    stored = batch.premultiplied[:, None]
    return stored * batch.ctf**2 + (1 - stored)


def _expected_noise(
    batch: Batch, gain2: Float[Tensor, "B J"] | None
) -> Float[Tensor, "B J"] | None:
    """The noise that an image holds, in units of nu^2 sigma^2: m^2 where it shows anything, None
    where it is 1 everywhere."""
    if batch.noise_share is None or gain2 is None:
        return batch.noise_share if gain2 is None else gain2
    return batch.noise_share * gain2


def shell_sums(noise: Float[Tensor, "2 G J"], plane: HalfPlane) -> Float[Tensor, "2 G S"]:
    """`Residuals.noise` of all images, averaged over each shell.

    References are compared with masked images, so that what they leave of whole ones may be less
    than nothing on a few samples. It is held against 0 when all images are there: in each batch by
    itself, noise would depend on how images are batched.
    """
    left, seen = noise
    n_shells = plane.radius + 1
    shells = [shell_mean(values, plane.shell, n_shells) for values in (left.clamp(min=0), seen)]
    return torch.stack(shells)


def noise_from_sums(sums: Float[Tensor, "2 G S"]) -> Float[Tensor, "G S"]:
    """sigma^2 per group and shell; a group or shell without data takes the mean of all groups, and
    k = 0 takes shell 1's value."""
    total = sums.sum(1, keepdim=True)
    mean = total[0] / total[1].clamp(min=1e-20)
    variance = torch.where(sums[1] > 1e-12, sums[0] / sums[1].clamp(min=1e-20), mean)
    variance[:, 0] = variance[:, 1]
    floor = 1e-6 * variance.mean(dim=1, keepdim=True)
    return torch.maximum(variance, floor.clamp(min=torch.finfo(variance.dtype).tiny))


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
    is its noise (RELION). Where memory runs out, batches are halved."""
    sums = torch.zeros(2, n_groups, len(plane), dtype=torch.float64).to(settings.device)
    ones = torch.ones(n_groups, plane.radius + 1, device=settings.device)

    def power_of(piece: Int[Tensor, " B"]) -> Float[Tensor, "2 G J"]:
        still = torch.zeros(len(piece), 2, device=settings.device)
        batch = load_batch(particles, piece, plane, ones, still, settings)
        return residuals(batch, None, plane, fit=False, robust=False).noise

    def add(power: Float[Tensor, "2 G J"]) -> None:
        sums.add_(power)

    in_batches(index[:INITIAL_NOISE_IMAGES], batch_size, power_of, [add])
    return noise_from_sums(shell_sums(sums, plane).float())
