"""Images of a data set corrected for their CTF, each on the grid where it is stored if the data
set's has other frequencies (`halfmap.stored_grids`)."""

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from halfmap.fourier import HalfPlane
from halfmap.particles import Particles
from halfmap.restoration import divide, wiener_filter
from halfmap.stored_grids import between_samples, premultiplied, transfer_as_stored
from halfmap.transfer_function import Transfer, phase_flip, rfft2_frequencies


def restore_images(
    data: Particles, rows: np.ndarray, method: str, constant: float = 0.1
) -> Float[Tensor, "B N N"]:
    """Images `rows` of a data set restored one by one, over their whole transform; those that are
    stored at other frequencies where they are stored (`halfmap.stored_grids`), to be resampled when
    the particle is together again."""
    grid = data.grid
    if all(one.shares_frequencies(grid) for one in data.grids):
        frequencies = rfft2_frequencies(grid.box, grid.pixel_size_angstrom)
        images = torch.from_numpy(data.images(rows))
        return _restored(images, data.transfer_at(rows, *frequencies), method, constant)
    out = torch.empty(len(rows), grid.box, grid.box)
    for places, stored, read in data.stored_images(rows):
        transfer = transfer_as_stored(stored, data.transfer.take(rows[places]))
        restored = _restored(torch.from_numpy(read), transfer, method, constant)
        out[places] = torch.from_numpy(stored.bring(restored.numpy(), grid))
    return out


def _restored(
    images: Float[Tensor, "B n n"], transfer: Transfer, method: str, constant: float
) -> Float[Tensor, "B n n"]:
    """The CTF of premultiplied images is C^2: division is by C^2, phases are right already, and
    Wiener's `C X` is what is stored."""
    transforms = torch.fft.rfft2(images)
    x: Complex[Tensor, "B J"] = transfer.correct_phases(transforms.flatten(1))
    if method == "wiener":
        c, done = transfer.ctf, transfer.premultiplied[:, None]
        restored = torch.where(
            done, x / (c.square() + constant), wiener_filter(x, c, constant=constant)
        )
    else:
        restored = {"divide": divide, "flip": phase_flip}[method](x, transfer.amplitude)
    return torch.fft.irfft2(restored.unflatten(1, transforms.shape[1:]), s=images.shape[1:])


def multiplied_images(
    data: Particles, rows: np.ndarray, plane: HalfPlane, psi_deg: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B N N"], list[Float[Tensor, " J"] | None]]:
    """Images, those that are stored at other frequencies times their conjugate transfer functions
    (`halfmap.stored_grids`); and of these C^2 at the frequencies of the plane turned by psi, of
    others None."""
    images = torch.empty(len(rows), data.box, data.box)
    squared: list[Tensor | None] = [None] * len(rows)
    kx, ky = plane.frequencies(data.pixel_size_angstrom)
    for places, stored, read in data.stored_images(rows):
        if not stored.shares_frequencies(data.grid):
            parameters = data.transfer.take(rows[places])
            found = premultiplied(torch.from_numpy(read), stored, parameters)
            read = found.images.numpy()
            for place, one in zip(places, found.squared_ctf, strict=True):
                cos, sin = (f(torch.deg2rad(psi_deg[place])) for f in (torch.cos, torch.sin))
                at = cos * kx + sin * ky, cos * ky - sin * kx
                squared[place] = between_samples(one[None], stored, *at)[0]
        images[places] = torch.from_numpy(stored.bring(read, data.grid))
    return images, squared
