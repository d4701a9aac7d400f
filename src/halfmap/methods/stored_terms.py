"""What CTF refinement takes of images that are stored at other frequencies than the job's: their
products with the CTF are made where they are stored, and resampled then (`halfmap.stored_grids`).

Resampled before, an image whose defocus moves what it shows out of its box and in again at the
other side has lost the phases of the CTF: of two groups at 2 to 3.5 um in boxes of 96 A, the one
that was resampled had a beam tilt of 3 mrad in place of 0.5, and defoci 157 A off in the mean.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from halfmap.engine.method import WeighedBatch
from halfmap.engine.preprocessing import read_images
from halfmap.fourier import fourier_transform, shift_phases
from halfmap.particles import Particles
from halfmap.stored_grids import between_samples, transfer_as_stored


@dataclass(frozen=True)
class StoredProducts:
    """Of the A `rows` of a batch that are stored apart, on the scored half-plane: `samples`, the
    centred images times their conjugate transfer functions, and `power`, the squared CTF."""

    rows: Bool[Tensor, " B"]
    samples: Complex[Tensor, "A J"]
    power: Float[Tensor, "A J"]


def with_quarter_turn(particles: Particles) -> Particles:
    """The same with `e cos chi` for a CTF, in place of `e sin chi`."""
    turned = replace(particles.transfer, phase_shift_deg=particles.transfer.phase_shift_deg + 90)
    return replace(particles, transfer=turned)


def stored_sine(weighed: WeighedBatch) -> StoredProducts | None:
    """The products with `e sin chi`; None where no image is stored apart."""
    return _products(weighed, weighed.iteration.problem.particles)


def stored_cosine(weighed: WeighedBatch) -> StoredProducts | None:
    """The products with `e cos chi`; None where no image is stored apart."""
    return _products(weighed, with_quarter_turn(weighed.iteration.problem.particles))


def _products(weighed: WeighedBatch, particles: Particles) -> StoredProducts | None:
    iteration, index = weighed.iteration, weighed.batch.index.cpu()
    apart = torch.from_numpy(particles.stored_apart(index.numpy()))
    if not bool(apart.any()):
        return None
    problem, plane, some = iteration.problem, iteration.scored, index[apart]
    read = read_images(particles, some.numpy(), plane, problem.images)
    optics = particles.transfer_at(some.numpy(), *plane.frequencies(particles.pixel_size_angstrom))
    samples = optics.correct_phases(fourier_transform(read.multiplied, plane), done=read.done)
    shift_px = iteration.state.poses.select_images(some).shift_px.to(problem.device)
    assert read.power is not None  # of images apart
    power = read.power if optics.seen is None else read.power * optics.seen
    return StoredProducts(apart.to(problem.device), samples * shift_phases(shift_px, plane), power)


def stored_sine_cosine(weighed: WeighedBatch) -> Float[Tensor, "A J"]:
    """`e^2 sin chi cos chi` of the images that are stored apart, as `StoredProducts.power` is."""
    particles, plane = weighed.iteration.problem.particles, weighed.iteration.scored
    turned, index = with_quarter_turn(particles), weighed.batch.index.cpu().numpy()
    rows = index[particles.stored_apart(index)]
    frequencies = [k.cpu() for k in plane.frequencies(particles.pixel_size_angstrom)]
    found = torch.zeros(len(rows), len(plane))
    for number in set(particles.stored[rows].tolist()):
        places = torch.from_numpy(particles.stored[rows] == number)
        grid, some = particles.grids[number], rows[places.numpy()]
        sine, cosine = (
            transfer_as_stored(grid, one.transfer.take(some)).ctf for one in (particles, turned)
        )
        both = (sine * cosine).expand(len(some), -1).unflatten(1, (grid.box, -1))
        found[places] = between_samples(both, grid, *frequencies)
    optics = particles.transfer_at(rows, *frequencies)
    found = found if optics.seen is None else found * optics.seen
    return found.to(weighed.iteration.problem.device)
