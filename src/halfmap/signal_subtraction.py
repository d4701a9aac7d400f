"""Signal of one part of a map taken off particle images.

The model of an image is `X = d (s C S_t P_phi A + N) + m`: background deviation d and mean m, scale
s. With a mask M of the part that is kept, `X - d s C S_t P_phi (A (1 - M))` shows that part alone,
in the same noise.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.arrays import takes_arrays
from halfmap.errors import InputError
from halfmap.fourier import (
    HalfPlane,
    fourier_transform,
    half_plane,
    inverse_fourier_transform,
    shift_phases,
)
from halfmap.particles import Particles
from halfmap.projection import FourierReferences, extract_slices, prepare_references
from halfmap.so3 import euler_to_matrix


@dataclass(frozen=True)
class Views:
    """What a map shows at the particles' poses, shifts and CTFs, in background deviations."""

    references: FourierReferences
    plane: HalfPlane
    use_ctf: bool

    def of(self, particles: Particles, rows: np.ndarray) -> Complex[Tensor, "B J"]:
        """Transforms `C S_t P_phi A` of the particles at `rows`."""
        pixel = particles.pixel_size_angstrom
        rotations = euler_to_matrix(torch.from_numpy(particles.rotations_deg[rows])).float()
        shift_px = torch.from_numpy(particles.shift_angstrom[rows] / pixel).float()
        samples = extract_slices(self.references, rotations, self.plane)
        samples = samples * shift_phases(-shift_px, self.plane)
        frequencies = self.plane.frequencies(pixel)
        return particles.transfer_at(rows, *frequencies, use_ctf=self.use_ctf).image(samples)


def views_of(volume: Float[Tensor, "N N N"], *, use_ctf: bool) -> Views:
    """Views of a map, at all frequencies below Nyquist."""
    plane = half_plane(volume.shape[-1], (volume.shape[-1] - 1) // 2)
    return Views(prepare_references(volume[None], plane.radius), plane, use_ctf)


@takes_arrays
def fit_scale(
    images: Float[Tensor, "B N N"], views: Complex[Tensor, "B J"], plane: HalfPlane
) -> tuple[Float[Tensor, "B shells"], Float[Tensor, "B shells"]]:
    """The two sums of `s = sum_i <X_i, R_i> / sum_i <R_i, R_i>`, the scale of views R in images X,
    for each image and shell; the mean of images is left out."""
    weight = plane.hermitian_weight.clone()
    weight[0] = 0
    transforms = fourier_transform(images, plane)
    products = (transforms * views.conj()).real, views.real.square() + views.imag.square()
    empty = views.real.new_zeros(len(views), plane.radius + 1)
    cross, power = (empty.index_add(1, plane.shell, one * weight) for one in products)
    return cross, power


def shells_of_scale(
    cross: Float[Tensor, "G shells"], power: Float[Tensor, "G shells"], scale: Float[Tensor, " G"]
) -> Float[Tensor, " shells"]:
    """What of the scale of a map holds in each shell, of the sums of `fit_scale` by group:
    `r(k) = sum_g s_g <X, R>_g(k) / sum_g s_g^2 <R, R>_g(k)`, from 0 to 1.

    A refined map is damped where it is less sure, and the scale of the whole makes up for that: it
    is too large where the map is not damped. Above 1 a shell's own fit is not believed: the noise
    of the images is in their map too.
    """
    own = (scale[:, None] * cross).sum(0)
    return (own / (scale[:, None].square() * power).sum(0).clamp_min(1e-30)).clamp(0, 1)


@takes_arrays
def subtract_views(
    images: Float[Tensor, "B N N"],
    views: Complex[Tensor, "B J"],
    plane: HalfPlane,
    strength: Float[Tensor, " B"],
) -> Float[Tensor, "B N N"]:
    """`X - strength R` in real space; whatever lies beyond the plane stays in the image."""
    return images - inverse_fourier_transform(views * strength[:, None], plane)


@takes_arrays
def recentred_shift(
    shift_px: Float[Tensor, "B 2"],
    rotations: Float[Tensor, "B 3 3"],
    centre_px: Float[Tensor, " 3"],
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
    """Whole pixels by which images move so that the point `centre_px` (x, y, z from the centre of
    the box) comes to their centre, and the origins that are left: `t - (A c)_xy` in all."""
    centre = centre_px.to(rotations)
    wanted = shift_px - (rotations * centre).sum(-1)[:, :2].to(shift_px)
    whole = wanted.round()
    return whole, wanted - whole


@takes_arrays
def windows(
    images: Float[Tensor, "B N N"], whole_px: Float[Tensor, "B 2"], box: int
) -> Float[Tensor, "B M M"]:
    """Each image moved by whole pixels (x, y) and cut to a box about the centre N // 2; where it
    has nothing, the mean of its border.

    Raises:
        InputError: nothing of an image is left in its window.
    """
    n = images.shape[-1]
    border = (images.sum((1, 2)) - images[:, 1:-1, 1:-1].sum((1, 2))) / (4 * n - 4)
    out = border[:, None, None].expand(-1, box, box).clone()
    first = n // 2 - box // 2 - whole_px.long()  # of the window, in the image
    for i, (x, y) in enumerate(first.tolist()):
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + box, n), min(y + box, n)
        if right <= left or bottom <= top:
            raise InputError(f"image {i + 1} of a batch: its new window lies outside of it")
        out[i, top - y : bottom - y, left - x : right - x] = images[i, top:bottom, left:right]
    return out
