"""Simulated particles as arrays, for scripts and tests; `halfmap.simulate` makes files of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, fourier_transform
from halfmap.likelihood import ImageTerms, image_terms
from halfmap.simulation.forward_model import Truth, clean_images, noise_amplitude, noise_images
from halfmap.transfer_function import evaluate


@dataclass(frozen=True)
class SimulatedImages:
    """Images `X = C S_t P_phi A_k + N` with their truth; `noise_sd` is the standard deviation of N
    in a pixel, on the volumes' grey scale."""

    images: Float[Tensor, "n N N"]
    truth: Truth
    pixel_size_angstrom: float
    noise_sd: float

    def terms(self, plane: HalfPlane, *, sigma2: float | None = None) -> ImageTerms:
        """`C X / sigma^2` and `C^2 / sigma^2` of every image on `plane`, its mean left out; sigma^2
        of a Fourier coefficient is `N^2 noise_sd^2` unless given."""
        box = self.images.shape[-1]
        variance = box**2 * self.noise_sd**2 if sigma2 is None else sigma2
        if not variance > 0:
            raise InputError(f"argument sigma2: expected noise of more than 0, got {variance}")
        samples = fourier_transform(self.images, plane)
        ctf = evaluate(self.truth.ctf, *plane.frequencies(self.pixel_size_angstrom)).ctf
        noise = torch.full_like(ctf, variance)
        once = torch.zeros(len(samples))
        return image_terms(samples, ctf, noise, premultiplied=once, with_mean=False)


def simulate_images(
    volumes: Sequence[Float[Tensor, "N N N"]],
    truth: Truth,
    *,
    pixel_size_angstrom: float,
    snr: float = math.inf,
) -> SimulatedImages:
    """Images of particles with white noise: `X = C S_t P_phi A_k + N`, P without interpolation.

    >>> from halfmap.simulation.forward_model import Recipe, draw_truth
    >>> from halfmap.simulation.phantom import phantom
    >>> truth = draw_truth(Recipe(4, seed=1))
    >>> data = simulate_images([phantom(32, 6.0)], truth, pixel_size_angstrom=6.0, snr=0.1)
    >>> data.images.shape
    torch.Size([4, 32, 32])

    Args:
        volumes: one for each state of `truth` (`draw_truth`), in volts or whatever it is.
        snr: variance of the noise-free images over that of the noise, over all pixels; without
            it there is no noise.

    Source: lecture, part 2, "We assume that image X_i comes from a projection".
    """
    indices = torch.arange(len(truth.state))
    clean = clean_images(volumes, truth, indices, pixel_size_angstrom)
    noise_sd = 0.0 if math.isinf(snr) else math.sqrt(float(clean.var(dim=(1, 2)).mean()) / snr)
    amplitude = noise_amplitude(clean.shape[-1], pixel_size_angstrom, 0.0)
    images = clean + noise_sd * noise_images(indices, truth.seed, amplitude)
    return SimulatedImages(images, truth, pixel_size_angstrom, noise_sd)
