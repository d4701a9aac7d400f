"""Regularisation by place: maps filtered by what the half maps support where they are.

A map is cut into bands of frequencies, `h = sum_b h_b`. In a band the factor g that brings each
half map nearest to the other one, which it has never seen, in a window w around the place x,

    min_g  sum_y w(x - y) [ (g h1_b(y) - h2_b(y))^2 + (g h2_b(y) - h1_b(y))^2 ]
    g = c_b(x) = 2 <h1_b h2_b> / <h1_b^2 + h2_b^2>,

is their local correlation, and SSNR = c / (1 - c) that of a half map there. Where a map has been
regularised by the SSNR of whole shells already, what is left to do is the quotient of two Wiener
filters, that of the place over that of the shell.

c scatters by chance: in a window of n independent coefficients by v = (1 - c^2)^2 / n. What the
places of a map scatter more than that is T, the variance of their true correlations, and each place
is taken to lie at

    m + T / (T + v) (c - m),

m the correlation of the band over all places (Efron & Morris, J. Am. Stat. Assoc. 70, 311 (1975)).
Where nothing differs from place to place but by chance (noise; a rigid molecule that fills its
mask) T is 0, and the maps stay as they are. Both halves are multiplied by one gain, and what they
have in common by chance at a place must not be picked out in both: below twice the deviation of
chance the gain is 0.

Ideas: Ramlaul, Palmer, Nakane & Aylett, J. Struct. Biol. 211, 107545 (2020) (local signal to noise
of half maps between iterations); Punjani, Zhang & Fleet, Nat. Methods 17, 1214 (2020)
(cross-validation by place).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays

# A choice: windows hold some 170 independent coefficients of a band, of whose correlation
# 0.08 are chance, and are no wider than they must be for that
WINDOW_IN_WAVELENGTHS = 1.0  # standard deviation of the Gaussian
FIRST_SHELL = 6  # windows of coarser bands are as wide as a molecule: nothing is local there
BAND_RATIO = 1.35  # of the middle of a band to that of the one before, about
# products of two bands reach twice as far as the band, and fold back where the window has fallen
# to nothing
GRID_SHELLS = 3
SURE = 2.0  # standard deviations of chance that places must scatter beyond it to count
FIRM = 2.0  # standard deviations of chance up to which a correlation at a place is taken for 0


@dataclass(frozen=True)
class BandGain:
    """By what a band is multiplied, on a grid of n voxels a side over the whole box, place by
    place. The band rises from shell `low` to `middle`, and falls to `high`."""

    low: float
    middle: float
    high: float
    gain: Float[Tensor, "n n n"]


@takes_arrays
def local_gains(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    *,
    mask: Float[Tensor, "N N N"],
    radius: int,
    share: float = 1.0,
    operators: int = 1,
) -> list[BandGain]:
    """What maps regularised by shells are still to be multiplied by, band by band and place by
    place; bands left out stay as they are.

    Args:
        half1, half2: half maps, filtered by nobody. mask: the places that count.
        radius: last shell that they have.
        share: SSNR of the map to be filtered over that of a half map.
        operators: of their symmetry; mates tell nothing new.

    Returns:
        Gains `W(c(x)) / W(m)`, `W(c) = share c / (1 - c + share c)`; bands in which all places are
        alike are left out.
    """
    transforms = [torch.fft.rfftn(half) for half in (half1, half2)]
    mask_transform = torch.fft.rfftn(mask)
    gains = []
    for low, middle, high in bands(radius):
        n = _grid(len(half1), high)
        places = _on_grid(mask_transform, len(half1), n).clamp(0, 1)
        hat = _hat(n, low, middle, high, half1.device)
        a, b = (_on_grid(t, len(half1), n, hat) for t in transforms)
        gain = _gain(a, b, places, middle, _coefficients(hat) / n**3, share, operators)
        if gain is not None:
            gains.append(BandGain(low, middle, high, gain))
    return gains


def _gain(
    a: Float[Tensor, "n n n"],
    b: Float[Tensor, "n n n"],
    places: Float[Tensor, "n n n"],
    shell: float,
    coefficients: float,
    share: float,
    operators: int,
) -> Float[Tensor, "n n n"] | None:
    """The gain of one band of both halves, which has so many `coefficients` a voxel; None where
    places differ by chance alone."""
    sigma_px = WINDOW_IN_WAVELENGTHS * len(a) / shell
    unique = float(places.sum()) / operators
    window = min(unique, (4 * math.pi * sigma_px**2) ** 1.5)  # (sum w)^2 / sum w^2, voxels
    independent, windows = max(2.0, coefficients * window), unique / window
    power = (a.square() + b.square()) / 2
    cross = a * b
    whole = float((cross * places).sum() / (power * places).sum().clamp_min(1e-30))
    if whole < SURE / math.sqrt(independent * windows):
        return None
    cross, power = (_windowed(one, sigma_px) for one in (cross, power))
    local = (cross / power.clamp_min(float(power.max()) * 1e-6)).clamp(-1, 1)
    chance = (1 - local.square()).square() / independent
    weight = places / places.sum().clamp_min(1e-30)
    expected = float((chance * weight).sum())
    scatter = float(((local - whole).square() * weight).sum())
    spread = scatter - expected * (1 + SURE * math.sqrt(2 / windows))
    if spread <= 0:
        return None
    likely = whole + spread / (spread + chance) * (local - whole)
    below = FIRM**2 * chance / local.clamp_min(1e-6).square()
    likely = likely * (1 - below.square()).clamp(0, 1)
    return _wiener(likely.clamp(0, 1), share) / _wiener(torch.tensor(whole), share).to(likely)


def _wiener(correlation: Float[Tensor, "*n"], share: float) -> Float[Tensor, "*n"]:
    return share * correlation / (1 - correlation + share * correlation).clamp_min(1e-6)


@takes_arrays
def regularised_locally(
    density: Float[Tensor, "N N N"], gains: list[BandGain]
) -> Float[Tensor, "N N N"]:
    """The map with every band multiplied by its gain."""
    if not gains:
        return density
    box = len(density)
    transform = torch.fft.rfftn(density)
    result = transform.clone()
    for band in gains:
        n = len(band.gain)
        hat = _hat(n, band.low, band.middle, band.high, density.device)
        shown = _on_grid(transform, box, n, hat)
        change = torch.fft.rfftn(shown * (band.gain - 1))
        _add_cropped(result, change, box, n)
    return torch.fft.irfftn(result, s=density.shape)


# --- bands and their grids ------------------------------------------------------------------------


def bands(radius: int) -> list[tuple[float, float, float]]:
    """Shells at which each band begins, has its middle and ends; together they add up to one from
    the first middle to the end of the last shell, where the last has its middle and end."""
    if radius <= FIRST_SHELL:
        return []
    end = radius + 0.5
    count = max(1, round(math.log(end / FIRST_SHELL) / math.log(BAND_RATIO)))
    shells = [FIRST_SHELL * (end / FIRST_SHELL) ** (j / count) for j in range(count)] + [end]
    return list(zip(shells[:-1], shells[1:], [*shells[2:], end], strict=True))


def _grid(box: int, high: float) -> int:
    """Voxels a side that hold a band and its products: even, of small factors, or the box."""
    enough = math.ceil(GRID_SHELLS * high)
    return next((n for n in range(enough + enough % 2, box, 2) if _transforms_fast(n)), box)


def _transforms_fast(n: int) -> bool:
    for factor in (2, 3, 5):
        while n % factor == 0:
            n //= factor
    return n == 1


def _hat(
    n: int, low: float, middle: float, high: float, device: torch.device
) -> Float[Tensor, "n n h"]:
    """1 at the middle of the band, falling linearly to 0 at its ends."""
    line = torch.fft.fftfreq(n, 1 / n, device=device)
    half = torch.arange(n // 2 + 1, device=device, dtype=line.dtype)
    radius = (line[:, None, None] ** 2 + line[None, :, None] ** 2 + half**2).sqrt()
    falling = (high - radius) / max(high - middle, 1e-6)
    return torch.where(radius <= middle, (radius - low) / (middle - low), falling).clamp(0, 1)


def _coefficients(hat: Float[Tensor, "n n h"]) -> float:
    """Independent coefficients of a band, `(sum hat^2)^2 / sum hat^4` over the whole transform."""
    twice = torch.full_like(hat[0, 0], 2.0)
    twice[0] = 1.0
    power = hat.square()
    return float((power * twice).sum() ** 2 / (power.square() * twice).sum().clamp_min(1e-30))


def _corners(box: int, n: int) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The frequencies that transforms of two boxes have in common, as blocks of both arrays."""
    m = min(box, n)
    reach = (m - 1) // 2
    near = (slice(0, reach + 1), slice(0, reach + 1))
    far = (slice(box - reach, box), slice(n - reach, n))
    along_x = slice(0, reach + 1)
    return [
        ((z[0], y[0], along_x), (z[1], y[1], along_x)) for z in (near, far) for y in (near, far)
    ]


def _on_grid(
    transform: Complex[Tensor, "N N H"],
    box: int,
    n: int,
    hat: Float[Tensor, "n n h"] | None = None,
) -> Float[Tensor, "n n n"]:
    """A map, or a band of it, sampled on n voxels a side, its first voxel where it was."""
    small = transform
    if n != box:
        small = transform.new_zeros(n, n, n // 2 + 1)
        for large, ours in _corners(box, n):
            small[ours] = transform[large]
        small *= (n / box) ** 3
    return torch.fft.irfftn(small if hat is None else small * hat, s=(n, n, n))


def _add_cropped(
    result: Complex[Tensor, "N N H"], change: Complex[Tensor, "n n h"], box: int, n: int
) -> None:
    """Adds the transform of a map on n voxels a side."""
    if n == box:
        result += change
        return
    for large, ours in _corners(box, n):
        result[large] += change[ours] * (box / n) ** 3


def _windowed(values: Float[Tensor, "n n n"], sigma_px: float) -> Float[Tensor, "n n n"]:
    """Mean in a Gaussian window around each voxel."""
    n = len(values)
    line = torch.fft.fftfreq(n, device=values.device)
    half = torch.arange(n // 2 + 1, device=values.device) / n
    along = torch.exp(-2 * math.pi**2 * sigma_px**2 * line.square())
    last = torch.exp(-2 * math.pi**2 * sigma_px**2 * half.square())
    transform = torch.fft.rfftn(values)
    transform *= along[:, None, None] * along[None, :, None] * last
    return torch.fft.irfftn(transform, s=values.shape)
