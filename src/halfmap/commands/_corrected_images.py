"""Images of a data set corrected for their CTF, each on the grid where it is stored if the data
set's has other frequencies (`halfmap.stored_grids`); and their sums over one view."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from halfmap.fourier import HalfPlane
from halfmap.particles import Particles
from halfmap.restoration import (
    StackSums,
    aligned_transform,
    divide,
    stack_sums,
    wiener_filter,
)
from halfmap.stored_grids import between_samples, premultiplied, transfer_as_stored
from halfmap.transfer_function import (
    Transfer,
    moved_angstrom,
    phase_flip,
    rfft2_frequencies,
    turned_ctf,
)

# a particle fills half of its box as a rule: by a quarter of the box its edge moves to the box's
FREE_SHARE_OF_BOX = 0.25


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


def sums_of_view(
    data: Particles,
    rows: np.ndarray,
    plane: HalfPlane,
    psi_deg: Float[Tensor, " B"],
    shift_px: Float[Tensor, "B 2"],
) -> StackSums:
    """The sums over images `rows` of one view, centred and turned back by psi.

    Images that need resampling, because they are turned or stored at other frequencies, are
    resampled first where defocus leaves them inside their box, which is exact, and multiplied by
    the CTF first beyond (`halfmap.stored_grids`).
    """
    transfer = _turned_back(data, rows, plane, psi_deg)
    pose = {"psi_deg": psi_deg, "shift_px": shift_px}
    samples = aligned_transform(torch.from_numpy(data.images(rows)), plane, **pose)
    samples = transfer.correct_phases(samples)
    outside = _leave_their_box(data, rows, plane)
    outside &= ((psi_deg != 0) | torch.from_numpy(data.stored_apart(rows)))[:, None]
    if not outside.any():
        return stack_sums(samples, transfer.ctf, transfer.premultiplied)
    found, squared = _multiplied(data, rows, plane, psi_deg)
    multiplied = aligned_transform(found, plane, **pose)
    samples = torch.where(transfer.premultiplied[:, None], samples, transfer.ctf * samples)
    samples = torch.where(outside, multiplied, samples)
    shown = torch.where(outside, squared.sqrt(), transfer.ctf)
    if transfer.seen is not None:
        samples, shown = samples * transfer.seen, shown * transfer.seen
    return stack_sums(samples, shown, torch.ones(len(rows), dtype=torch.bool))


def _turned_back(
    data: Particles, rows: np.ndarray, plane: HalfPlane, psi_deg: Float[Tensor, " B"]
) -> Transfer:
    turned = data.take(rows)
    turned = replace(turned, transfer=turned_ctf(turned.transfer, psi_deg))
    return turned.transfer_at(np.arange(len(rows)), *plane.frequencies(data.pixel_size_angstrom))


def _leave_their_box(data: Particles, rows: np.ndarray, plane: HalfPlane) -> Bool[Tensor, "B J"]:
    """Whether what is at a sample's frequency has left the box by its defocus, at one of its sides,
    and come in again at the other."""
    wide = np.array([grid.extent_angstrom for grid in data.grids])[data.stored[rows]]
    k = torch.hypot(*plane.frequencies(data.pixel_size_angstrom))
    moved = moved_angstrom(data.transfer.take(rows), k)
    return moved > torch.from_numpy(FREE_SHARE_OF_BOX * wide).to(moved)[:, None]


def _multiplied(
    data: Particles, rows: np.ndarray, plane: HalfPlane, psi_deg: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B N N"], Float[Tensor, "B J"]]:
    """Images times their conjugate transfer functions where they are stored, and C^2 at the
    frequencies of the plane turned by psi."""
    images = torch.empty(len(rows), data.box, data.box)
    squared = torch.empty(len(rows), len(plane))
    kx, ky = plane.frequencies(data.pixel_size_angstrom)
    for places, stored, read in data.stored_images(rows):
        parameters = data.transfer.take(rows[places])
        found = premultiplied(torch.from_numpy(read), stored, parameters)
        images[places] = torch.from_numpy(stored.bring(found.images.numpy(), data.grid))
        for place, one in zip(places, found.squared_ctf, strict=True):
            cos, sin = (f(torch.deg2rad(psi_deg[place])) for f in (torch.cos, torch.sin))
            at = cos * kx + sin * ky, cos * ky - sin * kx
            squared[place] = between_samples(one[None], stored, *at)[0]
    return images, squared
