"""Simulated particles whose truth is known: exact projections, shifts, CTFs, coloured noise,
mixtures and junk.

Image model (lecture): X = C S_t P_phi A_k + N. P is exact: the volume's discrete Fourier transform
is evaluated on every central slice by a non-uniform FFT, so that no interpolation scheme that a
reconstruction may use is favoured. The job that writes the files is
`halfmap.commands.simulate.simulate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.errors import InputError
from halfmap.fourier import HalfPlane, half_plane, inverse_fourier_transform, shift_phases
from halfmap.resampling import volume_transform
from halfmap.so3 import euler_to_matrix
from halfmap.transfer_function import CTFParameters, evaluate, true_frequencies

GOOD, EMPTY, ICE, OVERLAP = 0, 1, 2, 3  # what halfmapTruthJunk says of a particle
PREFERRED_SPREAD_DEG = 15.0
COLOUR_ANGSTROM = 40.0
BACKGROUND_RADIUS = 0.45  # of the box: pixels outside are background
_NOISE, _JUNK = 1, 2  # streams of random numbers, each particle's own


# --- volumes on other grids -----------------------------------------------------------------------


def exact_slices(
    volume: Float[Tensor, "N N N"],
    rotations: Float[Tensor, "M 3 3"],
    kx: Tensor,
    ky: Tensor,
    *,
    threads: int = 1,
) -> Complex[Tensor, "M J"]:
    """Central slices of a volume at any frequencies, without interpolation.

    F_m(k) = sum_r volume(r) exp(-2 pi i (A_m^T (kx, ky, 0)) . r / N),
    r = x, y, z from the centre voxel N // 2

    volume `[z, y, x]`, float32 (relative accuracy about 1e-5) or float64 (1e-12); rotations take
    object to view coordinates; kx, ky `(J,)` in cycles per box, integer or not. The grid's
    transform is periodic: |k| should stay within N / 2, beyond it are aliases. Source: Barnett,
    Magland & af Klinteberg, SIAM J. Sci. Comput. 41, C479 (2019) (FINUFFT), type 2.

    >>> point = torch.zeros(8, 8, 8)
    >>> point[4, 4, 4] = 3.0  # at the centre: its transform is 3 everywhere
    >>> kx, ky = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])
    >>> exact_slices(point, torch.eye(3)[None], kx, ky).real
    tensor([[3.0000, 3.0000, 3.0000]])
    """
    view = np.stack([kx.numpy(), ky.numpy(), np.zeros(len(kx))], axis=-1).astype(np.float64)
    # rows q^T A = (A^T q)^T. einsum, not a BLAS product: its result must not depend on the number
    # of threads
    frequencies = np.einsum(
        "jv,mvo->mjo", view, rotations.detach().cpu().numpy().astype(np.float64)
    )
    samples = volume_transform(volume, frequencies.reshape(-1, 3), threads)
    return samples.reshape(rotations.shape[0], kx.shape[0])


def symmetrise_volume(
    volume: Float[Tensor, "N N N"], matrices: Float[Tensor, "G 3 3"]
) -> Float[Tensor, "N N N"]:
    """Mean of the volume over a point group, (1/G) sum_S V(S r), without interpolation;
    band-limited to Nyquist."""
    box = volume.shape[0]
    k = np.arange(box) - box // 2
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    wanted = kx**2 + ky**2 + kz**2 < (box / 2) ** 2
    frequencies = np.stack([kx[wanted], ky[wanted], kz[wanted]], axis=-1).astype(np.float64)
    mean = torch.zeros(len(frequencies), dtype=torch.complex64)
    for matrix in matrices.numpy().astype(np.float64):
        mean += volume_transform(volume, np.einsum("jo,op->jp", frequencies, matrix), 1).to(
            torch.complex64
        ) / len(matrices)
    transform = torch.zeros((box, box, box), dtype=torch.complex64)
    transform[torch.from_numpy(wanted)] = mean
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(transform))).real.contiguous()


# --- what is drawn at random ----------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How particles are drawn; see `halfmap.simulation.forward_model` for each option."""

    n: int
    seed: int = 1
    weights: tuple[float, ...] = (1.0,)
    preferred_fraction: float = 0.0
    shift_rms_px: float = 2.0
    particles_per_micrograph: int = 40
    defocus_range_angstrom: tuple[float, float] = (8000.0, 22000.0)
    defocus_spread_angstrom: float = 100.0
    astigmatism_angstrom: float = 400.0
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1
    phase_shift_deg: float = 0.0
    bfactor_angstrom2: float = 0.0
    optics_groups: int = 1
    beam_tilt_mrad: float = 0.0
    junk_fraction: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.defocus_range_angstrom
        checks = (  # by the names of the command line's options
            ("--n", self.n >= 1, "at least 1 particle", self.n),
            (
                "--weights",
                min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf,
                "numbers of at least 0, not all 0",
                self.weights,
            ),
            ("--preferred", 0 <= self.preferred_fraction <= 1, "0 to 1", self.preferred_fraction),
            ("--shift", 0 <= self.shift_rms_px < math.inf, "0 or more pixels", self.shift_rms_px),
            (
                "--per-micrograph",
                self.particles_per_micrograph >= 1,
                "at least 1",
                self.particles_per_micrograph,
            ),
            (
                "--defocus",
                -math.inf < low <= high < math.inf,
                "the lower defocus first",
                (low, high),
            ),
            (
                "--defocus-spread",
                0 <= self.defocus_spread_angstrom < math.inf,
                "0 or more A",
                self.defocus_spread_angstrom,
            ),
            (
                "--astigmatism",
                0 <= self.astigmatism_angstrom < math.inf,
                "0 or more A",
                self.astigmatism_angstrom,
            ),
            ("--voltage", 0 < self.voltage_kv < math.inf, "a voltage above 0 kV", self.voltage_kv),
            (
                "--amplitude-contrast",
                0 <= self.amplitude_contrast <= 1,
                "0 to 1",
                self.amplitude_contrast,
            ),
            ("--optics-groups", self.optics_groups >= 1, "at least 1", self.optics_groups),
            ("--junk", 0 <= self.junk_fraction < 1, "0 to less than 1", self.junk_fraction),
            *(
                (name, math.isfinite(value), "a finite number", value)
                for name, value in (
                    ("--cs", self.spherical_aberration_mm),
                    ("--phase-shift", self.phase_shift_deg),
                    ("--bfactor", self.bfactor_angstrom2),
                    ("--beam-tilt", self.beam_tilt_mrad),
                )
            ),
        )
        for name, good, expected, value in checks:
            if not good:
                raise InputError(f"{name} {value}: expected {expected}")


@dataclass(frozen=True)
class Truth:
    """What each of n particles is: Euler angles, RELION origins, state (0-based), junk kind,
    micrograph, optics group (0-based), CTF."""

    angles_deg: Float[Tensor, "n 3"]
    shift_px: Float[Tensor, "n 2"]
    state: Int[Tensor, " n"]
    junk: Int[Tensor, " n"]
    micrograph: Int[Tensor, " n"]
    optics_group: Int[Tensor, " n"]
    ctf: CTFParameters
    seed: int


def draw_truth(recipe: Recipe) -> Truth:
    """Draw poses, shifts, states, junk and CTFs.

    Orientations are uniform on SO(3); a share `preferred_fraction` looks along +z of the object
    instead, with a Gaussian spread of 15 degrees. Origins are Gaussian with a root-mean-square
    length of `shift_rms_px`. A micrograph has one mean defocus (uniform in its range), an
    astigmatism U - V (absolute value of a Gaussian) and its axis; a particle's own height adds a
    Gaussian. Exactly round(n junk_fraction) particles are junk, in equal parts empty, ice and
    overlaps. Beam tilt points another way in each optics group.

    >>> truth = draw_truth(Recipe(100, seed=1))
    >>> truth.angles_deg.shape, truth.shift_px.shape
    (torch.Size([100, 3]), torch.Size([100, 2]))
    """
    n, rng = recipe.n, np.random.default_rng(recipe.seed)
    state = rng.choice(len(recipe.weights), n, p=np.array(recipe.weights) / sum(recipe.weights))
    angles = np.stack(
        [
            rng.uniform(-180, 180, n),
            np.rad2deg(np.arccos(rng.uniform(-1, 1, n))),
            rng.uniform(-180, 180, n),
        ],
        axis=-1,
    )
    preferred = rng.random(n) < recipe.preferred_fraction
    angles[preferred, 1] = np.minimum(
        PREFERRED_SPREAD_DEG * np.hypot(*rng.normal(size=(2, n)))[preferred], 180.0
    )
    shift = rng.normal(size=(n, 2)) * (recipe.shift_rms_px / math.sqrt(2))
    junk = np.zeros(n, np.int64)
    bad = rng.permutation(n)[: round(n * recipe.junk_fraction)]
    junk[bad] = 1 + np.arange(len(bad)) % 3

    micrograph = np.arange(n) // recipe.particles_per_micrograph
    group = micrograph % recipe.optics_groups
    count = int(micrograph[-1]) + 1
    mean_defocus = (
        rng.uniform(*recipe.defocus_range_angstrom, count)[micrograph]
        + rng.normal(size=n) * recipe.defocus_spread_angstrom
    )
    astigmatism = np.abs(rng.normal(size=count) * recipe.astigmatism_angstrom)[micrograph]
    axis_deg = rng.uniform(0, 180, count)[micrograph]
    tilt_azimuth = 2 * math.pi * group / recipe.optics_groups

    def column(values: np.ndarray | float) -> Tensor:
        return torch.from_numpy(np.broadcast_to(np.asarray(values, np.float32), n).copy())

    return Truth(
        angles_deg=torch.from_numpy(angles),
        shift_px=torch.from_numpy(shift),
        state=torch.from_numpy(state),
        junk=torch.from_numpy(junk),
        micrograph=torch.from_numpy(micrograph),
        optics_group=torch.from_numpy(group),
        ctf=CTFParameters(
            defocus_u_angstrom=column(mean_defocus + astigmatism / 2),
            defocus_v_angstrom=column(mean_defocus - astigmatism / 2),
            defocus_angle_deg=column(axis_deg),
            voltage_kv=column(recipe.voltage_kv),
            spherical_aberration_mm=column(recipe.spherical_aberration_mm),
            amplitude_contrast=column(recipe.amplitude_contrast),
            phase_shift_deg=column(recipe.phase_shift_deg),
            bfactor_angstrom2=column(recipe.bfactor_angstrom2),
            beam_tilt_x_mrad=column(recipe.beam_tilt_mrad * np.cos(tilt_azimuth)),
            beam_tilt_y_mrad=column(recipe.beam_tilt_mrad * np.sin(tilt_azimuth)),
        ),
        seed=recipe.seed,
    )


# --- images ---------------------------------------------------------------------------------------


def clean_images(
    volumes: Sequence[Float[Tensor, "N N N"]],
    truth: Truth,
    indices: Int[Tensor, " B"],
    pixel_size_angstrom: float,
) -> Float[Tensor, "B N N"]:
    """Noise-free images of particles: C S_t P_phi A_k, junk included, up to the last whole shell
    below Nyquist.

    An image is moved by minus its origin. Empty junk is zero; ice is a few Gaussian blobs as heavy
    as the particle; an overlap has a second particle in another orientation 0.2 to 0.4 boxes away.
    Junk passes through the same CTF.
    """
    box = volumes[0].shape[0]
    plane = half_plane(box, (box - 1) // 2)
    samples = torch.zeros((len(indices), len(plane)), dtype=torch.complex64)
    matrices = truth.ctf.take(indices).magnification
    distinct, which = np.eye(2)[None], np.zeros(len(indices), np.int64)
    if matrices is not None:
        matrices = np.broadcast_to(matrices, (len(indices), 2, 2))
        distinct, which = np.unique(matrices, axis=0, return_inverse=True)
    for number, matrix in enumerate(distinct):
        rows = torch.from_numpy(np.flatnonzero(which.ravel() == number))
        samples[rows] = _clean_samples(
            volumes, truth, indices[rows], plane, pixel_size_angstrom, matrix
        )
    return inverse_fourier_transform(samples, plane)


def _clean_samples(
    volumes: Sequence[Tensor],
    truth: Truth,
    indices: Tensor,
    plane: HalfPlane,
    pixel_size_angstrom: float,
    magnification: np.ndarray,
) -> Tensor:
    """Transforms of images of one magnification matrix M, (B, J): they show object and CTF at M q,
    and the particle moved in the image as it is stored."""
    at = plane.kx, plane.ky
    if (magnification != np.eye(2)).any():
        at = true_frequencies(magnification, plane.kx.double(), plane.ky.double())
    junk = truth.junk[indices]
    samples = _slices_by_state(volumes, truth.angles_deg[indices], truth.state[indices], *at)
    samples = samples * shift_phases(-truth.shift_px[indices].float(), plane)
    for row in torch.nonzero(junk).flatten().tolist():
        index = int(indices[row])
        rng = np.random.default_rng([truth.seed, _JUNK, index])
        volume = volumes[int(truth.state[index])]
        if junk[row] == OVERLAP:
            samples[row] += _neighbour(volume, rng, plane)
        else:
            samples[row] = (
                _ice(volume, rng, plane) if junk[row] == ICE else torch.zeros_like(samples[row])
            )
    scale = 1.0 / (plane.box * pixel_size_angstrom)
    transfer = evaluate(truth.ctf.take(indices), *((k * scale).float() for k in at))
    return transfer.image(samples)


def _slices_by_state(
    volumes: Sequence[Tensor], angles_deg: Tensor, state: Tensor, kx: Tensor, ky: Tensor
) -> Tensor:
    samples = torch.zeros((len(state), len(kx)), dtype=torch.complex64)
    rotations = euler_to_matrix(angles_deg)
    for k, volume in enumerate(volumes):
        chosen = torch.nonzero(state == k).flatten()
        if len(chosen):
            samples[chosen] = exact_slices(volume, rotations[chosen], kx, ky).to(torch.complex64)
    return samples


def _neighbour(volume: Tensor, rng: np.random.Generator, plane: HalfPlane) -> Tensor:
    angles = torch.tensor(
        [
            [
                rng.uniform(-180, 180),
                math.degrees(math.acos(rng.uniform(-1, 1))),
                rng.uniform(-180, 180),
            ]
        ],
        dtype=torch.float64,
    )
    distance, direction = rng.uniform(0.2, 0.4) * plane.box, rng.uniform(0, 2 * math.pi)
    away = torch.tensor(
        [[distance * math.cos(direction), distance * math.sin(direction)]], dtype=torch.float32
    )
    sample = exact_slices(volume, euler_to_matrix(angles), plane.kx, plane.ky).to(torch.complex64)
    return (sample * shift_phases(away, plane))[0]


def _ice(volume: Tensor, rng: np.random.Generator, plane: HalfPlane) -> Tensor:
    """Transform of 2 to 5 Gaussian blobs; a Gaussian of width w px and mass m has m exp(-2 pi^2 w^2
    k^2 / N^2)."""
    count = int(rng.integers(2, 6))
    width = torch.from_numpy(rng.uniform(0.03, 0.1, (count, 1)).astype(np.float32)) * plane.box
    place = torch.from_numpy(rng.uniform(-0.35, 0.35, (count, 2)).astype(np.float32)) * plane.box
    mass = (
        torch.from_numpy(rng.uniform(0.3, 1.0, (count, 1)).astype(np.float32)) * volume.abs().sum()
    )
    k_squared = (plane.kx**2 + plane.ky**2).float()
    return (
        mass
        * torch.exp(-2 * math.pi**2 * width**2 * k_squared / plane.box**2)
        * shift_phases(place, plane)
    ).sum(dim=0)


def noise_amplitude(box: int, pixel_size_angstrom: float, colour: float) -> Float[Tensor, "N H"]:
    """Amplitude g of noise of unit variance, on the rfft2 layout: g(s) ~ 1 + colour / (1 + (40 A
    s)^2), mean of g^2 over k is 1."""
    ky = torch.fft.fftfreq(box, pixel_size_angstrom, dtype=torch.float64)[:, None]
    kx = torch.fft.fftfreq(box, pixel_size_angstrom, dtype=torch.float64)[None, :]
    gain = 1 + colour / (1 + COLOUR_ANGSTROM**2 * (kx**2 + ky**2))
    return (gain / torch.sqrt((gain**2).mean())).float()[:, : box // 2 + 1]


def noise_images(
    indices: Int[Tensor, " B"], seed: int, amplitude: Float[Tensor, "N H"]
) -> Float[Tensor, "B N N"]:
    """Gaussian noise of unit variance with a given amplitude spectrum; a particle's noise depends
    on the seed and its index alone."""
    box = amplitude.shape[0]
    white = np.stack(
        [
            np.random.default_rng([seed, _NOISE, i]).standard_normal((box, box), dtype=np.float32)
            for i in indices.tolist()
        ]
    )
    return torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(white)) * amplitude, s=(box, box))


def normalise(images: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """Background (outside 0.45 boxes from the centre) of each image to mean 0 and standard
    deviation 1."""
    axis = torch.arange(images.shape[-1]) - images.shape[-1] // 2
    background = images[
        :, axis[:, None] ** 2 + axis[None, :] ** 2 > (BACKGROUND_RADIUS * images.shape[-1]) ** 2
    ]
    return (images - background.mean(dim=1)[:, None, None]) / background.std(dim=1)[:, None, None]
