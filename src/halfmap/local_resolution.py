"""Local resolution: the FSC of two half maps in windows that walk over the map, and the map
filtered and sharpened by what each place supports.

A window of radius R is a box of side 2 R cut out of both halves and multiplied by
`w(r) = cos^2(pi r / (2 R))`. The local resolution is where its FSC first falls below
`max(0.143, z / sqrt(n))`, n the independent coefficients of a shell of the window (of three shells
together where these are few): below the second, noise alone gets as high. The FSC of a window costs
a small transform, not one of the whole map (Cardone et al. 2013, J. Struct. Biol. 184, 226, cut
windows too).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import shell_index
from halfmap.resolution import coefficient_weights

THRESHOLD = 0.143
Z_SIGNIFICANT = (
    2.33  # one-sided 1 % of a Gaussian: noise alone is higher in one window of a hundred
)
# A choice, by simulations of blurred regions: windows of twelve times the resolution tell it to
# 10 %, and are still local
WINDOW_IN_RESOLUTIONS = 12.0
SMALLEST_WINDOW_PX = 16
STEP_IN_RADII = 0.33  # of the grid of windows, which overlap
CERTAIN = 0.5  # shells in which noise alone gets as high as this cannot be judged: the first ones
_WINDOWS_AT_ONCE = 64
_LEAST_INSIDE = 0.1  # of the mask, where a window is centred


@dataclass(frozen=True)
class LocalCurves:
    """FSC (P, S) of windows of `side` pixels at voxels `places` (P, 3), z, y, x, on a grid of
    `step` pixels; `power` (P, S) is the signal's, the halves' cross power a coefficient."""

    places: Int[Tensor, "P 3"]
    fsc: Float[Tensor, "P shells"]
    power: Float[Tensor, "P shells"]
    significant: Float[Tensor, " shells"]
    side: int
    step: int
    box: int
    pixel_size_angstrom: float

    @property
    def resolutions_angstrom(self) -> Float[Tensor, " P"]:
        """Where each FSC first falls below its threshold, interpolated; at most the window, where
        nothing is significant, and at least Nyquist."""
        limit = self.significant.clamp_min(THRESHOLD)
        below = self.fsc < limit
        below[:, limit > CERTAIN] = False  # too few coefficients to tell
        below[:, 0] = False
        n_shells = self.fsc.shape[1]
        never = ~below.any(1)
        first = torch.where(never, n_shells - 1, below.long().argmax(1))
        row = torch.arange(len(first))
        before = (first - 1).clamp_min(0)
        high, low = self.fsc[row, before] - limit[before], self.fsc[row, first] - limit[first]
        share = torch.where(never, 1.0, (high / (high - low).clamp_min(1e-12)).clamp(0, 1))
        shell = (before + share).clamp_min(1.0)
        return self.side * self.pixel_size_angstrom / shell


@takes_arrays
def local_fsc(
    half1: Float[Tensor, "N N N"],
    half2: Float[Tensor, "N N N"],
    *,
    pixel_size_angstrom: float | int,
    mask: Float[Tensor, "N N N"],
    window_angstrom: float | int,
    step_px: int | None = None,
    advance: Callable[[int], None] = lambda windows: None,
) -> LocalCurves:
    """The FSC of all windows whose centre lies inside a mask.

    `window_angstrom` is the diameter of a window, where its weight has fallen to 0.

    Raises:
        InputError: the window does not fit into the box, or no centre lies inside the mask.
    """
    box = half1.shape[-1]
    side = max(SMALLEST_WINDOW_PX, 2 * round(window_angstrom / pixel_size_angstrom / 2))
    if side > box:
        raise InputError(
            f"--window {window_angstrom:g}: expected at most the box, "
            f"{box * pixel_size_angstrom:.1f} A"
        )
    step = step_px or max(1, round(STEP_IN_RADII * side / 2))
    places = _grid_inside(mask, step)
    if not len(places):
        raise InputError("mask: no window has its centre inside it; give a larger mask")
    window = _window(side)
    shells = shell_index(side, 3).clamp_max(side // 2 + 1).flatten()
    weights = coefficient_weights(side).float().expand(side, side, -1).flatten()
    padded = [_padded(half, side // 2) for half in (half1, half2)]
    sums = []
    for part in places.split(_WINDOWS_AT_ONCE):
        a, b = (torch.fft.rfftn(_cut(one, part, side) * window, dim=(1, 2, 3)) for one in padded)
        products = ((a * b.conj()).real, a.real**2 + a.imag**2, b.real**2 + b.imag**2)
        rows = torch.stack([product.flatten(1) for product in products]) * weights
        total = torch.zeros(3, len(part), side // 2 + 2)
        total.index_add_(2, shells, rows)
        sums.append(total[:, :, : side // 2 + 1])
        advance(len(part))
    counts = torch.zeros(side // 2 + 2, dtype=torch.float64)
    counts.index_add_(0, shells, weights.double())
    counts = counts[: side // 2 + 1]
    # a window leaves as many independent coefficients as its squared weight has volume
    share = float(window.square().sum() ** 2 / (window**4).sum()) / side**3
    significant = Z_SIGNIFICANT / (counts * share).clamp_min(0.1).sqrt()
    total = torch.cat(sums, 1).double()
    power = total[0] / counts / float(window.square().sum())
    # where one shell has too few coefficients its neighbours are added
    few = significant > THRESHOLD
    pooled, of = _with_neighbours(total), _with_neighbours(counts[None])[0]
    total = torch.where(few, pooled, total)
    significant = torch.where(few, Z_SIGNIFICANT / (of * share).clamp_min(0.1).sqrt(), significant)
    cross, power_a, power_b = total
    fsc = cross / (power_a * power_b).sqrt().clamp_min(1e-30)
    fsc[:, 0] = 1
    return LocalCurves(
        places, fsc.clamp(-1, 1), power, significant, side, step, box, float(pixel_size_angstrom)
    )


def _with_neighbours(sums: Float[Tensor, "*rows shells"]) -> Float[Tensor, "*rows shells"]:
    """Sums over three shells each, the first left out."""
    known = sums.clone()
    known[..., 0] = 0
    wide = known.clone()
    wide[..., 1:] += known[..., :-1]
    wide[..., :-1] += known[..., 1:]
    return wide


def _grid_inside(mask: Float[Tensor, "N N N"], step: int) -> Int[Tensor, "P 3"]:
    """Every step-th voxel along each axis, from the first, where the mask is above a tenth."""
    return torch.nonzero(mask[::step, ::step, ::step] > _LEAST_INSIDE) * step


def _window(side: int) -> Float[Tensor, "n n n"]:
    line = (torch.arange(side, dtype=torch.float32) - side // 2).square()
    radius = (line[:, None, None] + line[None, :, None] + line).sqrt() / (side / 2)
    return torch.cos(pi / 2 * radius.clamp_max(1)).square()


def _padded(volume: Float[Tensor, "N N N"], margin: int) -> Float[Tensor, "M M M"]:
    return torch.nn.functional.pad(volume.float(), (margin,) * 6)


def _cut(
    padded: Float[Tensor, "M M M"], places: Int[Tensor, "p 3"], side: int
) -> Float[Tensor, "p n n n"]:
    """Boxes around voxels of the map before it was padded."""
    return torch.stack(
        [padded[z : z + side, y : y + side, x : x + side] for z, y, x in places.tolist()]
    )


# --- from windows to maps -------------------------------------------------------------------------


@takes_arrays
def spread(
    curves: LocalCurves, values: Float[Tensor, "P *rest"], outside: float | int
) -> Float[Tensor, "N N N"]:
    """Values of windows as a map, interpolated between their places; `outside` where none is
    near."""
    return _upsampled(curves, _filled(curves, values, float(outside)))


def _filled(
    curves: LocalCurves, values: Float[Tensor, " P"], outside: float
) -> Float[Tensor, "n n n"]:
    """The grid of windows, those without a value taking the mean of their neighbours that have one,
    as far as the mask's edge reaches; the rest `outside`."""
    n = -(-curves.box // curves.step)
    grid, known = torch.zeros(n, n, n), torch.zeros(n, n, n)
    place = tuple((curves.places // curves.step).T)
    grid[place], known[place] = values.float(), 1.0
    for _ in range(2):
        around = torch.nn.functional.avg_pool3d(
            torch.stack([grid * known, known])[:, None], 3, stride=1, padding=1
        )[:, 0]
        new = (known == 0) & (around[1] > 0)
        grid[new] = (around[0] / around[1].clamp_min(1e-12))[new]
        known[new] = 1.0
    return torch.where(known > 0, grid, outside)


def _upsampled(curves: LocalCurves, grid: Float[Tensor, "n n n"]) -> Float[Tensor, "N N N"]:
    """The grid, whose points lie at voxels 0, step, 2 step ..., on every voxel."""
    n, step = len(grid), curves.step
    side = (n - 1) * step + 1
    fine = torch.nn.functional.interpolate(
        grid[None, None], size=(side,) * 3, mode="trilinear", align_corners=True
    )
    more = max(0, curves.box - side)
    fine = torch.nn.functional.pad(fine, (0, more) * 3, mode="replicate")
    return fine[0, 0, : curves.box, : curves.box, : curves.box]


@takes_arrays
def locally_filtered(
    density: Float[Tensor, "N N N"],
    curves: LocalCurves,
    *,
    b_factor: float | int = 0.0,
    local_b: bool = False,
    advance: Callable[[int], None] = lambda shells: None,
) -> Float[Tensor, "N N N"]:
    """The map with each shell of the windows weighted, place by place, by
    `w = sqrt(2 FSC / (1 + FSC))` up to the local resolution, 0 beyond.

    `M(x) = sum_s g_s(x) m_s(x)`: m_s is the map in a band of frequencies around shell s of the
    windows (the bands add up to one), g_s the weight spread over the map. With `b_factor` (A^2,
    negative sharpens) times `exp(-B s^2 / 4)`; with `local_b` B is that of each window (see
    `local_b_factors`), `b_factor` where it cannot be told.
    """
    side, box, pixel = curves.side, curves.box, curves.pixel_size_angstrom
    n_shells = curves.fsc.shape[1]
    shell = torch.arange(n_shells, dtype=torch.float64)
    frequency = shell / (side * pixel)
    resolution = curves.resolutions_angstrom
    edge = (shell - side * pixel / resolution[:, None]).clamp(0, 1)
    positive = curves.fsc.clamp_min(0)
    weight = (2 * positive / (1 + positive)).sqrt() * (1 - edge)
    b = torch.full((len(resolution),), float(b_factor), dtype=torch.float64)
    if local_b:
        b = local_b_factors(curves, float(b_factor))
    gain = weight * torch.exp(-b[:, None] / 4 * frequency.square())
    line = torch.fft.fftfreq(box, 1 / box)
    half = torch.arange(box // 2 + 1).float()
    radius = (line[:, None, None] ** 2 + line[None, :, None] ** 2 + half**2).sqrt() * (side / box)
    transform = torch.fft.rfftn(density.float())
    result = torch.zeros_like(density, dtype=torch.float32)
    for s in range(n_shells):
        if bool((gain[:, s] > 0).any()):
            hat = (1 - (radius - s).abs()).clamp_min(0)
            band = torch.fft.irfftn(transform * hat, s=density.shape)
            result += band * spread(curves, gain[:, s], 0.0)
        advance(1)
    return result


@takes_arrays
def local_b_factors(curves: LocalCurves, fallback: float | int) -> Float[Tensor, " P"]:
    """B of each window in A^2: four times the slope of the logarithm of the signal's amplitude
    against s^2, between 10 A and the local resolution, weighted by the FSC.

    Held between twice the map's B and 0; where fewer than four shells lie in the range, the map's
    B is taken.
    """
    resolution = curves.resolutions_angstrom
    frequency = torch.arange(curves.fsc.shape[1]).double() / (
        curves.side * curves.pixel_size_angstrom
    )
    inside = (frequency >= 1 / 10.0) & (frequency <= 1 / resolution[:, None]) & (curves.power > 0)
    weight = curves.fsc.clamp_min(0) * inside
    x = frequency.square().expand_as(weight)
    y = curves.power.clamp_min(1e-30).log() / 2
    total = weight.sum(1).clamp_min(1e-12)
    mean_x, mean_y = (weight * x).sum(1) / total, (weight * y).sum(1) / total
    across = (weight * (x - mean_x[:, None]) * (y - mean_y[:, None])).sum(1)
    along = (weight * (x - mean_x[:, None]).square()).sum(1).clamp_min(1e-12)
    slope = across / along
    known = inside.sum(1) >= 4
    lowest = min(2 * float(fallback), 0.0)
    return torch.where(known, (4 * slope).clamp(lowest, 0.0), float(fallback))
