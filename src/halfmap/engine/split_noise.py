"""Each image's noise split into two that are independent of each other, with the same particle in
both.

Classes confirm themselves by noise: an image's noise turns the map of its class, the map the labels
of other images, and these hand it back with the next map, for `sum_j s_j X_j` with labels s_j from
X_j is the images' covariance, noise included, times the last map. With `w` drawn once for each
image, with the power of its own noise N,

    X_1 = X + g w,    X_2 = X - w / g,
    var N_1 = (1 + g^2) sigma^2,    var N_2 = (1 + 1 / g^2) sigma^2,    cov(N_1, N_2) = 0.

Labels told by X_1 and maps made of X_2 have nothing in common but the particles. Rasines and Young,
Biometrika 110, 597 (2023); Neufeld et al., J. Mach. Learn. Res. 25 (2024).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from halfmap.fourier import HalfPlane, inverse_fourier_transform


@dataclass(frozen=True)
class SplitNoise:
    """The seed of what is drawn, and the g of `X_1 = X + g w` and `X_2 = X - w / g`. At 1 both
    halves have twice the noise, and the product of their variances, which decides whether classes
    are found, is least."""

    seed: int
    g: float = 1.0

    @property
    def first(self) -> float:
        """The noise variance of X_1 over that of X."""
        return 1 + self.g**2

    @property
    def second(self) -> float:
        """The noise variance of X_2 over that of X."""
        return 1 + self.g**-2

    def draw(self, index: Int[Tensor, " B"], plane: HalfPlane) -> Complex[Tensor, "B J"]:
        """w of variance 1 on a half-plane: the same for a particle whatever the batch, and on the
        shells that two planes share.

        >>> from halfmap.fourier import half_plane
        >>> both, few = torch.arange(2), half_plane(16, 3)
        >>> split = SplitNoise(seed=1)
        >>> alone = split.draw(both[1:], half_plane(16, 6))[0, : len(few)]
        >>> torch.equal(split.draw(both, few)[1], alone)
        True
        """
        drawn = np.empty((len(index), len(plane), 2), np.float32)
        for row, particle in zip(drawn, index.tolist(), strict=True):
            np.random.default_rng([self.seed, 7, particle]).standard_normal(
                dtype=np.float32, out=row
            )
        drawn *= np.sqrt(0.5)
        drawn[:, 0] *= np.sqrt(2), 0  # k = 0 is its own mate
        return torch.view_as_complex(torch.from_numpy(drawn)).to(plane.kx.device)


def noise_images(
    draws: Complex[Tensor, "B J"],
    sigma2: Float[Tensor, "B J"],
    share: Float[Tensor, "B J"] | None,
    ctf: Float[Tensor, "B J"],
    premultiplied: Float[Tensor, " B"],
    plane: HalfPlane,
) -> Float[Tensor, "B N N"]:
    """Images of noise as it is in stored images: of the variance sigma^2, `share` of it where they
    hold less, times C where they are premultiplied."""
    amplitude = sigma2.sqrt() if share is None else (sigma2 * share).sqrt()
    amplitude = torch.where(premultiplied[:, None] > 0, amplitude * ctf, amplitude)
    return inverse_fourier_transform(draws * amplitude, plane)
