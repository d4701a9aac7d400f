"""Whether particles look white or dark: the sign of the mean of CTF-corrected images.

halfmap takes particles for white on dark, as RELION does. Where they are dark, every job runs, and
ends in a wrong map. Orientations need not be known: whatever a particle shows, in the middle of its
image there is more of it than around it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.engine.batching import in_batches
from halfmap.engine.preprocessing import ImageSettings, load_batch
from halfmap.fourier import HalfPlane, half_plane, largest_radius, shell_mean
from halfmap.particles import Particles

IMAGES_LOOKED_AT = 500
# Of each optics group at least so many, while that makes no more than twice the images: contrast is
# inverted when particles are extracted, and sets that were extracted apart are groups apart
OF_EACH_GROUP = 100
BATCH = 100
FEWEST = 30  # images; a standard error of fewer is no measure
# Standard errors; by chance five are met in one job of three million. White particles at SNR 0.02
# show 12 to 45 in 500 images.
SURE = 5.0
OUTLIER = 4.0  # standard deviations to which an image's vote is cut: ice and beads do not decide
# A choice: of a map whose deepest point lies this much farther from its median than its highest
DARKER = 2.0


@dataclass(frozen=True)
class Contrast:
    """How much whiter than their surroundings particles are, in standard errors of the mean over
    images: negative where they look dark, near 0 where it cannot be told; and those of each optics
    group (from 0) with enough images to tell."""

    standard_errors: float
    of_groups: Mapping[int, float] = field(default_factory=dict)

    @property
    def dark_groups(self) -> tuple[int, ...]:
        """Optics groups that look dark, where others look white."""
        if max(self.of_groups.values(), default=0.0) <= SURE:
            return ()
        return tuple(group for group, errors in self.of_groups.items() if errors < -SURE)

    @property
    def looks_dark(self) -> bool:
        """Whether all do, as far as it can be told."""
        return self.standard_errors < -SURE and not self.dark_groups


def map_looks_dark(volume: Float[Tensor, "N N N"]) -> bool:
    """Whether a low-passed map's density lies below its surroundings rather than above."""
    middle = volume.median()
    return bool(middle - volume.min() > DARKER * (volume.max() - middle))


def measure_contrast(
    particles: Particles, used: Int[Tensor, " M"], settings: ImageSettings
) -> Contrast:
    """Ask some 500 of the images `used` for the sign of their lowest frequencies, as many in each
    optics group as far as there are so many.

    An image's vote is `sum Re(C X) / sigma^2` over the frequencies at which anything white within
    the radius r of the middle is positive, averaged over its orientations: a thin shell of this
    radius is `sin(x) / x`, x = 2 pi k r / N, up to `k = N / 2 r`. sigma^2 is the power of
    these images by shell. The votes' mean over its standard error is the answer; in noise alone it
    is normal with deviation 1, whatever the noise's colour is.
    """
    group = torch.from_numpy(particles.optics_group)[used]
    chosen = _of_each(used, group)
    if len(chosen) < FEWEST:
        return Contrast(0.0)
    box = particles.box
    positive = max(1.0, box / (2 * settings.mask_radius_px))
    plane = half_plane(box, min(largest_radius(box), math.ceil(positive)), settings.device)
    data, power = _corrected(particles, chosen, plane, settings)
    sigma2 = shell_mean(power, plane.shell, plane.radius + 1).clamp(min=1e-30)
    asked = (plane.kx**2 + plane.ky**2).sqrt() <= positive
    votes = data @ (asked / sigma2[plane.shell])
    low, middle, high = torch.quantile(votes, torch.tensor([0.16, 0.5, 0.84]).to(votes)).tolist()
    reach = OUTLIER * (high - low) / 2
    votes = votes.clamp(middle - reach, middle + reach)
    theirs = torch.from_numpy(particles.optics_group)[chosen].to(votes.device)
    of_groups = {
        int(one): _standard_errors(votes[theirs == one])
        for one, count in zip(*theirs.unique(return_counts=True), strict=True)
        if count >= FEWEST
    }
    return Contrast(_standard_errors(votes), of_groups)


def _standard_errors(votes: Float[Tensor, " M"]) -> float:
    """The mean in its standard errors."""
    error = float(votes.std()) / math.sqrt(len(votes))
    return float(votes.mean()) / error if error > 0 else 0.0


def _of_each(used: Int[Tensor, " M"], group: Int[Tensor, " M"]) -> Int[Tensor, " L"]:
    """Of each optics group equally many of `used`, evenly spread, in order."""
    found = group.unique()
    most = max(IMAGES_LOOKED_AT, min(OF_EACH_GROUP * len(found), 2 * IMAGES_LOOKED_AT))
    share = max(1, most // len(found))
    parts = [used[group == one] for one in found]
    return torch.cat([part[:: max(1, len(part) // share)][:share] for part in parts]).sort()[0]


def _corrected(
    particles: Particles, chosen: Int[Tensor, " M"], plane: HalfPlane, settings: ImageSettings
) -> tuple[Float[Tensor, "M J"], Float[Tensor, " J"]]:
    """`Re C X` of images masked in the middle, 0 at k = 0, and the mean of `|X|^2`."""
    groups = int(particles.optics_group.max()) + 1
    flat = torch.ones(groups, plane.radius + 1, device=settings.device)
    data: list[Tensor] = []
    power = torch.zeros(len(plane), device=settings.device)

    def load(index: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        middle = torch.zeros(len(index), 2, device=settings.device)
        batch = load_batch(particles, index, plane, flat, middle, settings)
        return batch.scored.data.real, (batch.transforms.abs() ** 2).sum(dim=0)

    def keep(loaded: tuple[Tensor, Tensor]) -> None:
        data.append(loaded[0])
        power.add_(loaded[1])

    in_batches(chosen, BATCH, load, [keep])
    return torch.cat(data), power / len(chosen)
