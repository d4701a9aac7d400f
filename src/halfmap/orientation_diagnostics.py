"""Whether a map is equally good in all directions: the FSC in cones, its smallest over its largest
area (cFAR), and how evenly the views sample Fourier space (SCF*).

Sources: Tan et al. 2017, Nat. Methods 14, 793 (directional FSC); Baldwin and Lyumkis 2020, Prog.
Biophys. Mol. Biol. 150, 160 (sampling compensation factor).
"""

from dataclasses import dataclass
from math import cos, isfinite, pi, radians, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.resolution import Curve, coefficient_weights, fourier_shell_correlation, resolution_at

AXES = 256  # of cones, on a Fibonacci spiral over a hemisphere: a double cone has both its ends
HALF_ANGLE_DEG = 20.0
THRESHOLD = 0.143
PREFERRED_BELOW = 0.5  # cFAR below which views are held to be preferred, as in cryoSPARC
# Choices, by simulated halves of one SSNR by direction and three shapes: a cone's shell is taken
# together with up to three neighbours on both sides until it has 60 independent coefficients, as
# chance in a few would end a curve early; below 20 it says nothing, and the whole shell speaks
ENOUGH_COEFFICIENTS, FEWEST_COEFFICIENTS = 60.0, 20.0
MOST_NEIGHBOURS = 3
_BEYOND = 1.5  # cones are followed to this many times the shell at which the whole FSC falls
_CHUNK = 1 << 17
# Slices at Fourier radius 50 (Baldwin and Lyumkis 2020): a direction is met within half a pixel;
# with few views the slices are thicker, so that chance does not leave directions out
SLICE_RADIUS = 50.0
VIEWS_PER_PROBE = 50.0
PROBES = 1000
_MOST_VIEWS = 20_000


@dataclass(frozen=True)
class ConicalFsc:
    """FSC in double cones: `axes` (A, 3) unit vectors x, y, z; `curves` (A, S); `areas` (A,) up to
    the first shell at or below 0.143, in shells; `whole` the FSC in all directions."""

    axes: Float[Tensor, "A 3"]
    curves: Float[Tensor, "A shells"]
    areas: Float[Tensor, " A"]
    whole: Curve

    @property
    def cfar(self) -> float:
        """The smallest area over the largest; 0 where no cone has one."""
        largest = float(self.areas.max())
        return float(self.areas.min()) / largest if largest > 0 else 0.0

    @property
    def resolutions_angstrom(self) -> Float[Tensor, " A"]:
        """Of each cone, at 0.143."""
        box, pixel = self.whole.box, self.whole.pixel_size_angstrom
        return torch.tensor(
            [resolution_at(Curve(box, pixel, one), THRESHOLD) for one in self.curves]
        )

    @property
    def anisotropy(self) -> float:
        """Relative standard deviation of the cones' resolution, as a frequency: 0 of a sphere."""
        frequency = 1 / self.resolutions_angstrom
        return float(frequency.std() / frequency.mean()) if bool(frequency.any()) else 0.0


@takes_arrays
def fibonacci_hemisphere(n: int) -> Float[Tensor, "n 3"]:
    """n directions spread evenly over the hemisphere z > 0."""
    i = torch.arange(n, dtype=torch.float64)
    z = 1 - (i + 0.5) / n
    turn = i * pi * (3 - sqrt(5))
    radius = torch.sqrt(1 - z**2)
    return torch.stack([radius * torch.cos(turn), radius * torch.sin(turn), z], 1)


@takes_arrays
def conical_fsc(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    *,
    pixel_size_angstrom: float | int,
    mask: Float[Tensor, "N N N"] | None = None,
    axes: int = AXES,
    half_angle_deg: float | int = HALF_ANGLE_DEG,
) -> ConicalFsc:
    """The FSC of two half maps in double cones around evenly spread axes.

    `FSC_a(s) = Re sum A conj(B) / sqrt(sum |A|^2 sum |B|^2)` over the coefficients k of shell s
    with `|k . a| >= |k| cos(half angle)`, and of neighbouring shells where s has few.
    """
    whole = fourier_shell_correlation(
        half1, half2, pixel_size_angstrom=pixel_size_angstrom, mask=mask
    )
    if mask is not None:
        half1, half2 = half1 * mask, half2 * mask
    last = _followed_to(whole)
    directions = fibonacci_hemisphere(axes)
    sums, counts = _cone_sums(half1, half2, directions, last, cos(radians(half_angle_deg)))
    sums, counts = _with_neighbours(sums, counts * _independent_share(mask))
    norm = (sums[1] * sums[2]).sqrt()
    found = torch.where(norm > 0, sums[0] / norm.clamp_min(1e-300), 0.0).clamp(-1, 1)
    shared = whole.correlation[: last + 1].double()
    curves = torch.where(counts < FEWEST_COEFFICIENTS, shared, found)
    curves[:, 0] = 1
    return ConicalFsc(directions, curves, _areas(curves), whole)


def _independent_share(mask: Float[Tensor, "N N N"] | None) -> float:
    """Of the coefficients of a masked map: as many as its squared weight has volume."""
    if mask is None:
        return 1.0
    return float(mask.square().sum() ** 2 / (mask**4).sum().clamp_min(1e-30)) / mask.numel()


def _with_neighbours(
    sums: Float[Tensor, "3 A shells"], counts: Float[Tensor, "A shells"]
) -> tuple[Float[Tensor, "3 A shells"], Float[Tensor, "A shells"]]:
    """The sums of each shell and its neighbours, as many as give `ENOUGH_COEFFICIENTS`, and how
    many these are."""
    last = counts.shape[-1] - 1
    before = [torch.nn.functional.pad(one.cumsum(-1), (1, 0)) for one in (sums, counts)]
    of, total = counts.clone(), sums.clone()
    shell = torch.arange(last + 1)
    for reach in range(1, MOST_NEIGHBOURS + 1):
        few = of < ENOUGH_COEFFICIENTS
        low, high = (shell - reach).clamp_min(1), (shell + reach).clamp_max(last) + 1
        total, of = (
            torch.where(few, wide[..., high] - wide[..., low], kept)
            for wide, kept in zip(before, (total, of), strict=True)
        )
    return total, of


def _followed_to(whole: Curve) -> int:
    n_shells = len(whole.correlation)
    below = (whole.correlation[1:] <= THRESHOLD).nonzero()
    first = int(below[0]) + 1 if len(below) else n_shells
    return min(n_shells - 1, int(_BEYOND * first) + 3)


def _areas(curves: Float[Tensor, "A shells"]) -> Float[Tensor, " A"]:
    """Sum of the FSC over the shells from 1 to the last before the first at or below 0.143."""
    above = (curves[:, 1:] > THRESHOLD).long().cumprod(1)
    return (curves[:, 1:] * above).sum(1)


def _cone_sums(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    axes: Float[Tensor, "A 3"],
    last: int,
    cosine: float,
) -> tuple[Float[Tensor, "3 A shells"], Float[Tensor, "A shells"]]:
    """Re A conj(B), |A|^2 and |B|^2 summed over each shell of each cone, and how many coefficients
    these are, a pair of conjugates being one."""
    box = half1.shape[-1]
    line = torch.fft.fftfreq(box, 1 / box).float()
    kz, ky, kx = torch.meshgrid(line, line, torch.arange(box // 2 + 1).float(), indexing="ij")
    radius = (kx.square() + ky.square() + kz.square()).sqrt()
    shell = radius.round().long()
    chosen = torch.nonzero(((shell >= 1) & (shell <= last)).flatten())[:, 0]
    chosen = chosen[torch.argsort(shell.flatten()[chosen], stable=True)]
    a, b = (torch.fft.rfftn(half).flatten()[chosen] for half in (half1, half2))
    weight = coefficient_weights(box).expand(box, box, -1).flatten()[chosen]
    halves = torch.full_like(weight, 0.5)
    products = torch.stack([(a * b.conj()).real, a.abs().square(), b.abs().square(), halves])
    values = products.double() * weight
    unit = torch.stack([kx, ky, kz], -1).reshape(-1, 3)[chosen]
    unit = unit / radius.flatten()[chosen, None]
    sizes = torch.bincount(shell.flatten()[chosen], minlength=last + 1).tolist()
    sums = torch.zeros(4, len(axes), last + 1, dtype=torch.float64)
    # sums over a cone are a product with its members; scaled, so that float32 holds them
    scale = values.abs().amax(1, keepdim=True).clamp_min(1e-300)
    start = 0
    for s, size in enumerate(sizes):
        for first in range(start, start + size, _CHUNK):
            part = slice(first, min(first + _CHUNK, start + size))
            inside = (unit[part] @ axes.float().T).abs() >= cosine
            sums[:, :, s] += ((values[:, part] / scale).float() @ inside.float()).double() * scale
        start += size
    return sums[:3], sums[3]


# --- the views ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How often Fourier directions (P, 3) are met by the slices of the views, over the mean (P,);
    SCF*, 1 for even views; the share of directions never met."""

    probes: Float[Tensor, "P 3"]
    met: Float[Tensor, " P"]
    scf_star: float
    missing: float


@takes_arrays
def viewing_directions(
    rotations: Float[Tensor, "n 3 3"], symmetry: Float[Tensor, "G 3 3"]
) -> Float[Tensor, "m 3"]:
    """From where the object was seen, `A^T z`, and all symmetry mates of it, `S^T A^T z`."""
    return torch.einsum("nk,gkj->ngj", rotations[:, 2].double(), symmetry.double()).reshape(-1, 3)


@takes_arrays
def fourier_sampling(views: Float[Tensor, "m 3"], *, seed: int = 1) -> Sampling:
    """How evenly slices perpendicular to the views meet the directions of Fourier space.

    `S(d)` is the share of views n with `|n . d| <= w`, over its mean; `w = 1 / (2 * 50)`, wider
    where views are few. `SCF* = m / <1 / S>`, with m the share of directions that are met at all
    and the mean over these, S over its mean there: 1 for even views, 8 / pi^2 = 0.81 for views
    evenly from the side, below that for few or one.

    Raises:
        InputError: no view.
    """
    if not len(views):
        raise InputError("views: expected one or more")
    if len(views) > _MOST_VIEWS:
        kept = np.random.default_rng(seed).choice(len(views), _MOST_VIEWS, replace=False)
        views = views[torch.from_numpy(np.sort(kept))]
    views = views.double()
    width = min(0.25, max(0.5 / SLICE_RADIUS, VIEWS_PER_PROBE / len(views)))
    probes = fibonacci_hemisphere(PROBES)
    met = torch.cat(
        [((part @ views.T).abs() <= width).double().mean(1) for part in probes.split(50)]
    )
    met = met / met.mean().clamp_min(1e-300)
    some = met > 0
    share = float(some.double().mean())
    sampled = met[some] / met[some].mean()
    scf = share / float((1 / sampled).mean()) if share > 0 else 0.0
    return Sampling(probes, met, scf, 1 - share)


def warning_in_words(cones: ConicalFsc) -> str | None:
    """What is to be said where directions are unequally resolved."""
    if cones.cfar >= PREFERRED_BELOW:
        return None
    found = cones.resolutions_angstrom
    worst = f"{float(found.max()):.3g} A" if isfinite(float(found.max())) else "none"
    return (
        f"cFAR is {cones.cfar:.2f}, below {PREFERRED_BELOW}: the map is resolved unequally, from "
        f"{float(found.min()):.3g} A in the best direction to {worst} in the worst; views are "
        "preferred, or particles of some views are bad: the resolution overstates the map, and "
        "features are smeared along the worst direction"
    )
