"""What is known of class, direction and shift before an image is looked at: p(k) p(direction | k)
p(t), learnt from the last iteration."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from halfmap.so3 import direction_pixels

SHIFT_SIGMA_LEAST_PX = 0.5
_PSEUDO_COUNT = (
    1.0  # images that every direction has been seen by beforehand: no direction is ever impossible
)


@dataclass(frozen=True)
class Prior:
    """Logarithms of the class probabilities and of each class's density over viewing directions
    (HEALPix pixels of `order`, nested; 1 is uniform), and the standard deviation of a shift along
    one axis. In 2D `directions` has the shape (K, 1)."""

    classes: Float[Tensor, " K"]
    directions: Float[Tensor, "K D"]
    order: int
    shift_sigma_px: float

    def of_shift(self, shift_px: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
        """`ln p(t) = -|t|^2 / (2 s^2) - ln(2 pi s^2)`, per square pixel."""
        variance = self.shift_sigma_px**2
        return -(shift_px**2).sum(-1) / (2 * variance) - math.log(2 * math.pi * variance)

    def of_direction(
        self, rotations: Float[Tensor, "*b 3 3"], classes: Int[Tensor, "*b"]
    ) -> Float[Tensor, "*b"]:
        """`ln p(k) + ln p(direction | k)`, relative to a uniform density."""
        pixel = 0 if self.directions.shape[1] == 1 else direction_pixels(rotations, self.order)
        return self.classes[classes] + self.directions[classes, pixel]


def uniform_prior(
    n_classes: int, dimensions: int, *, order: int, shift_sigma_px: float, device: torch.device
) -> Prior:
    """Nothing known but the scatter of the shifts."""
    n_directions = 12 * 4**order if dimensions == 3 else 1
    classes = torch.full((n_classes,), -math.log(n_classes), device=device)
    return Prior(
        classes, torch.zeros(n_classes, n_directions, device=device), order, shift_sigma_px
    )


def next_prior(prior: Prior, sums: Float[Tensor, " P"]) -> Prior:
    """The prior that the last iteration's posteriors amount to (RELION's pdf_class, pdf_direction
    and sigma_offset).

    `p(k) = (N_k + N / 50 K) / (1.02 N)`, `p(d | k) = (N_kd + 1) / (N_k + D)`, `s^2 = <|t|^2> / 2`.
    """
    counts = sums[:-2].view_as(prior.directions) + 0.0
    total, n_directions = counts.sum(1), counts.shape[1]
    fewest = total.sum() / len(total) / 50
    classes = ((total + fewest) / (total + fewest).sum()).log()
    directions = (
        (counts + _PSEUDO_COUNT) / (total[:, None] + _PSEUDO_COUNT * n_directions) * n_directions
    ).log()
    sigma = math.sqrt(float(sums[-1]) / max(float(sums[-2]), 1e-20) / 2)
    return Prior(classes, directions, prior.order, max(SHIFT_SIGMA_LEAST_PX, sigma))
