"""What real images have beside one well-centred particle, its CTF and white noise: neighbours,
ramps, hot pixels, a CTF that was estimated wrongly, uneven signal, ice.

The image model is `X = g C S_t P A + sum of neighbours + noise + ramp + hot pixels`, where a share
of the noise has passed the CTF too. Everything is drawn apart from poses and noise: a clean set and
a dirty one of the same seed show the same particles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.errors import InputError
from halfmap.fourier import half_plane, inverse_fourier_transform, shift_phases
from halfmap.simulation.forward_model import Truth, exact_slices, noise_images
from halfmap.so3 import random_rotations
from halfmap.transfer_function import CTFParameters, evaluate, rfft2_frequencies

HELD_POWER = 0.98  # of a map's sum of squares: the sphere that holds it is the particle
NEIGHBOUR_REACH = 0.25  # boxes between touching neighbours and the farthest
SECOND_NEIGHBOUR = 0.3  # of the images with a neighbour: those with two
ONE_TWO_THREE = (0.8, 0.15, 0.05)  # shares of images with so many hot pixels among those with any
HOTTEST, COOLEST = 300.0, 30.0  # hot pixels, standard deviations of the noise
_DRAWN, _NEIGHBOURS, _ICE_NOISE, _HOT = 3, 4, 5, 6  # streams of random numbers beside the truth's


@dataclass(frozen=True)
class DirtRecipe:
    """How much of each kind; all 0 is clean. Shares of images: `neighbour_fraction`,
    `hot_pixel_fraction`. `ramp`: standard deviation of the plane over that of the noise, rms.
    `signal_spread`: of the logarithm of a particle's signal. `ice_noise_fraction`: share of the
    noise's variance that passes the CTF."""

    neighbour_fraction: float = 0.0
    ramp: float = 0.0
    hot_pixel_fraction: float = 0.0
    defocus_error_angstrom: float = 0.0
    astigmatism_error_angstrom: float = 0.0
    signal_spread: float = 0.0
    bfactor_spread_angstrom2: float = 0.0
    ice_noise_fraction: float = 0.0

    @property
    def is_clean(self) -> bool:
        return self == DirtRecipe()

    @property
    def needs_noise(self) -> bool:
        """Whether something is measured by the standard deviation of the noise."""
        return max(self.ramp, self.hot_pixel_fraction, self.ice_noise_fraction) > 0


@dataclass(frozen=True)
class Dirt:
    """What each of n images has: number of neighbours, factor of the particle's signal, slope of
    the ramp (x, y; its standard deviation over the noise's along each axis), hot pixels, and the
    CTF that the STAR states."""

    neighbours: Int[Tensor, " n"]
    signal: Float[Tensor, " n"]
    ramp: Float[Tensor, "n 2"]
    hot_pixels: Int[Tensor, " n"]
    stated: CTFParameters

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the truth file."""
        return {
            "halfmapTruthNeighbours": self.neighbours.numpy(),
            "halfmapTruthSignal": self.signal.numpy(),
            "halfmapTruthRampX": self.ramp[:, 0].numpy(),
            "halfmapTruthRampY": self.ramp[:, 1].numpy(),
            "halfmapTruthHotPixels": self.hot_pixels.numpy(),
        }


def draw_dirt(recipe: DirtRecipe, truth: Truth) -> tuple[Truth, Dirt]:
    """The truth with B-factors that differ by particle, and the dirt of each image.

    Signal is log-normal with mean 1; B-factors are raised by the absolute value of a Gaussian;
    slopes, and errors of defocus (by particle) and astigmatism (by micrograph, as a vector
    `(U - V) (cos 2 axis, sin 2 axis)`), are Gaussian of the rms asked for.
    """
    n, rng = len(truth.state), np.random.default_rng([truth.seed, _DRAWN])
    has_neighbour = rng.random(n) < recipe.neighbour_fraction
    neighbours = has_neighbour * (1 + (rng.random(n) < SECOND_NEIGHBOUR))
    spread = recipe.signal_spread
    signal = np.exp(spread * rng.normal(size=n) - spread**2 / 2)
    ramp = rng.normal(size=(n, 2)) * recipe.ramp / math.sqrt(2)
    hot = (rng.random(n) < recipe.hot_pixel_fraction) * rng.choice(
        (1, 2, 3), n, p=(0.8, 0.15, 0.05)
    )
    more_b = np.abs(rng.normal(size=n)) * recipe.bfactor_spread_angstrom2
    defocus_error = rng.normal(size=n) * recipe.defocus_error_angstrom
    by_micrograph = rng.normal(size=(int(truth.micrograph.max()) + 1, 2))
    error = by_micrograph[truth.micrograph.numpy()] * recipe.astigmatism_error_angstrom
    true = replace(
        truth.ctf, bfactor_angstrom2=truth.ctf.bfactor_angstrom2 + torch.from_numpy(more_b).float()
    )
    dirt = Dirt(
        neighbours=torch.from_numpy(neighbours.astype(np.int64)),
        signal=torch.from_numpy(signal).float(),
        ramp=torch.from_numpy(ramp).float(),
        hot_pixels=torch.from_numpy(hot.astype(np.int64)),
        stated=_estimated(truth.ctf, defocus_error, error / math.sqrt(2)),
    )
    return replace(truth, ctf=true), dirt


def _estimated(true: CTFParameters, defocus: np.ndarray, astigmatism: np.ndarray) -> CTFParameters:
    """Defocus and astigmatism with errors `(n,)` and `(n, 2)`, A; without errors to the last
    digit as they are."""
    if not (defocus.any() or astigmatism.any()):
        return true
    mean = (true.defocus_u_angstrom + true.defocus_v_angstrom) / 2 + torch.from_numpy(defocus)
    length = (true.defocus_u_angstrom - true.defocus_v_angstrom).double()
    twice = 2 * torch.deg2rad(true.defocus_angle_deg.double())
    if astigmatism.any():
        x = length * torch.cos(twice) + torch.from_numpy(astigmatism[:, 0])
        y = length * torch.sin(twice) + torch.from_numpy(astigmatism[:, 1])
        length, twice = torch.hypot(x, y), torch.atan2(y, x) % (2 * math.pi)
    return replace(
        true,
        defocus_u_angstrom=(mean + length / 2).float(),
        defocus_v_angstrom=(mean - length / 2).float(),
        defocus_angle_deg=torch.rad2deg(twice / 2).float(),
    )


def particle_radius_px(volume: Float[Tensor, "N N N"]) -> float:
    """Radius of the sphere about the centre that holds 98 % of the map's sum of squares."""
    axis = torch.arange(len(volume)) - len(volume) // 2
    squared = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    shell = squared.double().sqrt().round().long().flatten()
    power = torch.bincount(shell, weights=volume.double().square().flatten())
    held = torch.cumsum(power, 0) / power.sum().clamp(min=1e-300)
    return max(1.0, float(torch.searchsorted(held, HELD_POWER)))


def add_neighbours(
    images: Float[Tensor, "B N N"],
    volumes: Sequence[Float[Tensor, "N N N"]],
    truth: Truth,
    dirt: Dirt,
    indices: Int[Tensor, " B"],
    pixel_size_angstrom: float,
) -> Float[Tensor, "B N N"]:
    """Images with whole particles beside the one in the middle, in orientations of their own, cut
    by the image's edge where they cross it.

    A neighbour's centre is uniform over the ring from touching distance (twice the particle's
    radius) to a quarter of a box more. It is computed in a box of twice the width, so that neither
    the particle nor its CTF's fringes come back in at the other side.
    """
    images = images.clone()
    radii = [particle_radius_px(volume) for volume in volumes]
    box = images.shape[-1]
    plane = half_plane(2 * box, box - 1)
    first = box - box // 2  # the large image's centre, pixel N, is pixel N // 2 of the small one
    for row in torch.nonzero(dirt.neighbours[indices]).flatten().tolist():
        index = int(indices[row])
        rng = np.random.default_rng([truth.seed, _NEIGHBOURS, index])
        count, state = int(dirt.neighbours[index]), int(truth.state[index])
        nearest = 2 * radii[state]
        distance = np.sqrt(
            rng.uniform(nearest**2, (nearest + NEIGHBOUR_REACH * box) ** 2, size=count)
        )
        direction = rng.uniform(0, 2 * math.pi, size=count)
        place = np.stack([distance * np.cos(direction), distance * np.sin(direction)], axis=-1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        rotations = random_rotations(count, generator)
        samples = exact_slices(volumes[state], rotations, plane.kx / 2, plane.ky / 2)
        moved = samples.to(torch.complex64) * shift_phases(torch.from_numpy(place).float(), plane)
        transfer = evaluate(
            truth.ctf.take(indices[row : row + 1]), *plane.frequencies(pixel_size_angstrom)
        )
        large = inverse_fourier_transform(transfer.image(moved.sum(0, keepdim=True)), plane)[0]
        images[row] += large[first : first + box, first : first + box]
    return images


def mixed_noise(
    indices: Int[Tensor, " B"],
    truth: Truth,
    amplitude: Float[Tensor, "N H"],
    pixel_size_angstrom: float,
    ice_noise_fraction: float,
) -> Float[Tensor, "B N N"]:
    """Noise of the amplitude spectrum given, of whose variance a share has passed each image's CTF
    as ice does: `sqrt(1 - f) n1 + sqrt(f) C n2 / rms(C)`."""
    noise = noise_images(indices, truth.seed, amplitude)
    if ice_noise_fraction == 0:
        return noise
    box = amplitude.shape[0]
    transfer = evaluate(truth.ctf.take(indices), *rfft2_frequencies(box, pixel_size_angstrom))
    seen = transfer.amplitude.unflatten(1, (box, box // 2 + 1)) * amplitude
    # of the rfft2's columns all but the first (and in even boxes the last) stand for two
    twice = torch.full((box // 2 + 1,), 2.0)
    twice[0] = 1.0
    if box % 2 == 0:
        twice[-1] = 1.0
    variance = (seen**2 * twice).sum(dim=(1, 2)) / (amplitude**2 * twice).sum()
    white = np.stack(
        [
            np.random.default_rng([truth.seed, _ICE_NOISE, i]).standard_normal(
                (box, box), dtype=np.float32
            )
            for i in indices.tolist()
        ]
    )
    ice = torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(white)) * seen, s=(box, box))
    ice = ice / variance.clamp(min=1e-12).sqrt()[:, None, None]
    share = ice_noise_fraction
    return math.sqrt(1 - share) * noise + math.sqrt(share) * ice


def ramps(dirt: Dirt, indices: Int[Tensor, " B"], box: int) -> Float[Tensor, "B N N"]:
    """Planes of mean 0 whose standard deviation along each axis is the slope's."""
    axis = torch.arange(box, dtype=torch.float32) - (box - 1) / 2
    axis = axis / axis.std(correction=0)
    slope = dirt.ramp[indices]
    return slope[:, :1, None] * axis[None, None, :] + slope[:, 1:, None] * axis[None, :, None]


def add_hot_pixels(
    images: Float[Tensor, "B N N"],
    truth: Truth,
    dirt: Dirt,
    indices: Int[Tensor, " B"],
    noise_sd: float,
) -> Float[Tensor, "B N N"]:
    """Images with single pixels of 30 to 300 standard deviations of the noise, one in five of them
    dark."""
    images = images.clone()
    box = images.shape[-1]
    for row in torch.nonzero(dirt.hot_pixels[indices]).flatten().tolist():
        index = int(indices[row])
        rng = np.random.default_rng([truth.seed, _HOT, index])
        count = int(dirt.hot_pixels[index])
        y, x = (torch.from_numpy(rng.integers(0, box, count)) for _ in range(2))
        height = np.exp(rng.uniform(math.log(COOLEST), math.log(HOTTEST), count))
        sign = np.where(rng.random(count) < 0.2, -1, 1)
        images[row, y, x] = torch.from_numpy(noise_sd * height * sign).float()
    return images


def check_dirt(recipe: DirtRecipe, snr: float) -> None:
    """Refuse what has no meaning in images without noise.

    Raises:
        InputError: naming the options.
    """
    if recipe.needs_noise and not math.isfinite(snr):
        raise InputError(
            "--ramp, --hot-pixels, --ice-noise: are measured by the noise, but --snr is inf; give "
            "a finite SNR, or 0 for these three"
        )
