"""Where a map departs from the symmetry that it nearly has: a ligand on one subunit, a part that
breaks the group. Correlations of whole maps do not tell it, as most of the mass follows the group;
the difference of the map from its mean over the mates, place by place beside the noise, does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from halfmap.alignment import Alignment, symmetrised
from halfmap.arrays import takes_arrays
from halfmap.fourier import filter_shells, lowpass
from halfmap.masks import soft_sphere
from halfmap.resolution import shell_power
from halfmap.symmetries import symmetry_matrices
from halfmap.symmetry_search import FoundSymmetry, GroupScore, subgroups

# Of some thousand independent places, noise alone is beyond 5 standard deviations at one in a
# thousand maps; the sixth is for its being known from a few of them
SURE_DEVIATIONS = 6.0
# Interpolation and axes that are a degree off leave up to a hundredth of the highest density in
# maps without noise (benchmark symmetry_found); a part of 2 % of the mass leaves a tenth and more
LEAST_OF_HIGHEST = 0.05
# Axes that are a whole degree off leave 0.07 where there is hardly any noise; a part of 6 % of the
# mass leaves 0.13 to 0.67 (benchmark symmetry_found)
BREAKS_OF_HIGHEST = 0.1
SCALES = (1.0, 2.0)  # of the resolution compared: small parts, and larger ones that are thin
# What a single map tells of its noise are its corners; inside, where poses are off and particles
# differ, there is more
CORNERS_UNDERSTATE = 2.0
EMPTY = 1e-9  # of a map's power: rounding, not noise
_NOISE_OVER = 4.0  # resolutions that the noise is averaged over


@dataclass(frozen=True)
class Departure:
    """The place (x, y, z; pixels from the map's corner) where the map departs most from its mean
    over the group, by how many standard deviations of the noise, and by how much of the highest
    density."""

    place_px: tuple[float, float, float]
    deviations: float
    of_highest: float

    @property
    def sure(self) -> bool:
        """Beyond what noise, interpolation and the error of the axes leave."""
        return self.deviations > SURE_DEVIATIONS and self.of_highest > LEAST_OF_HIGHEST

    @property
    def breaks(self) -> bool:
        """So much that the map does not have the group, whatever the rest of its mass does."""
        return self.sure and self.of_highest > BREAKS_OF_HIGHEST


def held_symmetry(
    found: FoundSymmetry, departs: Callable[[GroupScore], Departure | None]
) -> tuple[FoundSymmetry, Departure | None]:
    """The largest group, within the one found by correlation, that no part of the map breaks; and
    where the map departs from the one found.

    A part of 6 % of the mass takes little from the correlation of the whole with its mates; beside
    the noise of its place it stands out.

    Args:
        found: `symmetry_search.find_symmetry`. departs: where the map departs from a group that was
            laid on it; None where nothing tells its noise.
    """
    nearly = found.best
    departure = None if nearly is None else departs(nearly)
    if nearly is None or departure is None or not departure.breaks:
        return found, departure
    inside = [one for one in found.scores if one.group in subgroups(nearly.group) - {nearly.group}]
    inside.sort(key=lambda one: len(symmetry_matrices(one.group)), reverse=True)
    held = (one.group for one in inside if not (part := departs(one)) or not part.breaks)
    return replace(found, group=next(held, "C1"), nearly=nearly), departure


@takes_arrays
def departure_from(
    volume: Float[Tensor, "N N N"],
    noise: Float[Tensor, "N N N"],
    placed: Alignment,
    group: str,
    *,
    radius: int,
    diameter_px: float,
) -> Departure:
    """Where a map departs most from its mean over a group, relative to noise.

    `z(x) = |V - <V>_G|(x) / sigma(x)`, maps low-passed to shell `radius`, and to half of it;
    `sigma` is the standard deviation of the same difference of a noise map, around x.

    Args:
        volume: the map. noise: a map of its noise alone, such as half the difference of its half
            maps. placed: how the map is laid onto the group's axes. group: its name. radius:
            Fourier shells compared. diameter_px: of the particle.
    """
    found = [
        _at_scale(volume, noise, placed, group, radius / scale, diameter_px) for scale in SCALES
    ]
    return max(found, key=lambda one: (one.sure, one.deviations))


@takes_arrays
def noise_like_corners(volume: Float[Tensor, "N N N"]) -> Float[Tensor, "N N N"] | None:
    """Noise with the spectrum that a map has in the corners of its box, beyond the sphere that
    touches the faces; None where these are empty, as in a map that was masked."""
    box = volume.shape[-1]
    outside = 1 - soft_sphere(box, radius_px=0.48 * box, edge_px=0.02 * box)
    corners = (volume - (volume * outside).sum() / outside.sum()) * outside
    power = shell_power(corners[None])[0] / outside.square().mean()
    if float(power.sum()) <= EMPTY * float(shell_power(volume[None])[0].sum()):
        return None
    white = torch.randn(volume.shape, generator=torch.Generator().manual_seed(1))
    gain = (power / shell_power(white[None])[0].clamp_min(1e-30)).sqrt()
    return filter_shells(white, gain.float(), dimensions=3)


def _at_scale(
    volume: Tensor, noise: Tensor, placed: Alignment, group: str, shells: float, diameter_px: float
) -> Departure:
    box = volume.shape[-1]
    matrices = symmetry_matrices(group).float()
    laid, alone = (
        placed.apply_to_map(lowpass(one, box / shells, 1.0, dimensions=3))
        for one in (volume, noise)
    )
    sphere = soft_sphere(box, radius_px=diameter_px / 2, edge_px=2)
    inside = sphere > 0.5
    difference, chance = (one - symmetrised(one, matrices) for one in (laid, alone))
    wide = _NOISE_OVER * box / shells
    power, weight = (
        lowpass(one, wide, 1.0, dimensions=3) for one in (chance.square() * sphere, sphere)
    )
    # at least a tenth of the mean, as the filter of the average rings
    least = 0.1 * float(chance[inside].square().mean())
    sigma = (power / weight.clamp_min(0.1)).clamp_min(max(least, 1e-30)).sqrt()
    deviations = torch.where(inside, difference.abs() / sigma, 0.0)
    at = torch.unravel_index(deviations.argmax(), deviations.shape)
    return Departure(
        place_px=_in_the_map(placed, at, box),
        deviations=float(deviations[at]),
        of_highest=float(difference[at].abs() / laid[inside].max().clamp_min(1e-30)),
    )


def _in_the_map(placed: Alignment, at: Sequence[Tensor], box: int) -> tuple[float, float, float]:
    """Where a voxel (z, y, x) of the laid map, `V'(x) = V(Q x + t)`, lies in the map itself."""
    laid = torch.tensor([float(at[2]), float(at[1]), float(at[0])]) - box // 2
    own = placed.rotation.cpu().float() @ laid + placed.shift_px.cpu().float() + box // 2
    x, y, z = own.tolist()
    return x, y, z
