"""Images of what is simulated, written batch by batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.io.stack_writer import StackWriter
from halfmap.simulation.dirt import Dirt, add_hot_pixels, add_neighbours, mixed_noise, ramps
from halfmap.simulation.forward_model import GOOD, Truth, clean_images, noise_amplitude, normalise
from halfmap.workspace.job import Job
from halfmap.workspace.progress import Progress

_BATCH_SAMPLES = 4_000_000  # Fourier samples at a time: about 0.5 GB
_PILOT = 400  # good particles on which the signal's variance is measured
_SHOWN = 24


@dataclass(frozen=True)
class Scene:
    """What is seen, and the truth of each image."""

    volumes: Sequence[Tensor]
    pixel_size_angstrom: float
    truth: Truth
    dirt: Dirt
    ice_noise_fraction: float


def write_images(
    job: Job,
    progress: Progress,
    scene: Scene,
    rows: Int[Tensor, " M"],
    name: str,
    *,
    snr: float,
    noise_colour: float,
) -> tuple[np.ndarray, float]:
    """Write the stack of some particles batch by batch; returns the first images and the signal's
    variance."""
    volumes, pixel, truth = scene.volumes, scene.pixel_size_angstrom, scene.truth
    box = volumes[0].shape[0]
    batch = max(1, min(1000, int(_BATCH_SAMPLES / (math.pi / 8 * box**2))))
    good = rows[truth.junk[rows] == GOOD]
    pilot = good[torch.linspace(0, len(good) - 1, min(_PILOT, len(good))).round().long()]
    variances = [
        clean_images(volumes, truth, part, pixel).var(dim=(1, 2), correction=0)
        for part in pilot.split(batch)
    ]
    variance = float(torch.cat(variances).mean())
    amplitude = noise_amplitude(box, pixel, noise_colour) * math.sqrt(variance / snr)
    shown: list[Tensor] = []
    with StackWriter(job.path(name), pixel) as stack:
        for indices in rows.split(batch):
            images = _images(scene, indices, amplitude, math.sqrt(variance / snr))
            stack.append(images.numpy())
            shown.extend(images[: max(0, _SHOWN - len(shown))].clone())
            progress.advance(len(indices))
    return torch.stack(shown).numpy(), variance


def _images(
    scene: Scene, indices: Int[Tensor, " B"], amplitude: Float[Tensor, "N H"], noise_sd: float
) -> Float[Tensor, "B N N"]:
    """Images as a program that extracts particles writes them; those without noise on the volume's
    grey scale."""
    truth, dirt, pixel = scene.truth, scene.dirt, scene.pixel_size_angstrom
    images = clean_images(scene.volumes, truth, indices, pixel)
    images = images * dirt.signal[indices][:, None, None]
    images = add_neighbours(images, scene.volumes, truth, dirt, indices, pixel)
    if noise_sd == 0:
        return images
    images = images + mixed_noise(indices, truth, amplitude, pixel, scene.ice_noise_fraction)
    images = images + noise_sd * ramps(dirt, indices, images.shape[-1])
    return normalise(add_hot_pixels(images, truth, dirt, indices, noise_sd))


def of_group(
    scene: Scene, group: int, volumes: list[Tensor], pixel_size_angstrom: float
) -> tuple[Scene, Int[Tensor, " M"]]:
    """The scene on the grid of an optics group, and its particles: their shifts in Angstrom are
    those of the set."""
    shift_px = scene.truth.shift_px * (scene.pixel_size_angstrom / pixel_size_angstrom)
    own = replace(
        scene,
        volumes=volumes,
        pixel_size_angstrom=pixel_size_angstrom,
        truth=replace(scene.truth, shift_px=shift_px),
    )
    return own, torch.nonzero(scene.truth.optics_group == group).flatten()
