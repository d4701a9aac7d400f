"""Images whose CTF is undone on the grid where they are stored, against the sums over their own
Fourier samples."""

import numpy as np
import pytest
import torch

from halfmap.ctf_parameters import CTFParameters
from halfmap.fourier import fourier_transform, half_plane, lowpass
from halfmap.image_grids import ImageGrid
from halfmap.simulation.forward_model import exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import euler_to_matrix
from halfmap.stored_grids import premultiplied
from halfmap.transfer_function import evaluate, rfft2_frequencies, true_frequencies
from optics_scenes import BOX, MAGNIFICATION, PIXEL, TETRAFOIL, TILT, TREFOIL

MATRIX = tuple(MAGNIFICATION[f"magnification_{at}"] for at in ("xx", "xy", "yx", "yy"))
# at 10 A a defocus of 9 um moves what there is by 180 A; boxes are 190 A
FAR = {"defocus_u_angstrom": 91e3, "defocus_v_angstrom": 88e3, "defocus_angle_deg": 25.0}
ODD = TILT | TREFOIL
CASES = {
    "distorted": (ImageGrid(44, 4.28, MATRIX), MAGNIFICATION | ODD | TETRAFOIL),
    "odd box": (ImageGrid(45, 4.4, MATRIX), MAGNIFICATION | ODD),
    "Cs alone": (ImageGrid(47, 4.13), {"spherical_aberration_mm": 0.01}),
    "finer and wider": (ImageGrid(61, 3.3), TREFOIL),
    "premultiplied": (ImageGrid(41, 4.5), TILT | {"premultiplied": True}),
    "the same frequencies": (ImageGrid(32, 6.0), ODD),
}


def sampled(grid: ImageGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies of the object, 1/A, at the samples of `torch.fft.rfft2` of a grid."""
    kx, ky = (k.double() for k in rfft2_frequencies(grid.box, grid.pixel_size_angstrom))
    return true_frequencies(grid.matrix, kx, ky)


def slices(volume: torch.Tensor, rotations: torch.Tensor, kx, ky) -> torch.Tensor:
    """The volume's central slices at frequencies in 1/A."""
    return exact_slices(volume, rotations, kx * BOX * PIXEL, ky * BOX * PIXEL)


@pytest.mark.parametrize("case", CASES)
def test_cross_terms_of_resampled_images_are_those_of_the_stored_samples(case) -> None:
    """`sum_k Re(Y(k) conj R(k))` on the job's grid is `sum_q Re(conj(t) X conj R(M q))` over the
    stored samples, for images of anything (noise here) and slices of a particle inside the box."""
    grid, optics = CASES[case]
    two = {
        name: [value] * 2 if isinstance(value, list) else value for name, value in optics.items()
    }
    parameters = CTFParameters(**FAR | two)
    rotations = euler_to_matrix(torch.tensor([[20.0, 50.0, -70.0], [0.0, 90.0, 10.0]]).double())
    # nothing of it beyond what the coarsest grid holds
    volume = lowpass(phantom(BOX, PIXEL, symmetry="C1"), 15.0, PIXEL, dimensions=3).double()
    images = torch.randn(2, grid.box, grid.box, generator=torch.Generator().manual_seed(3))
    at, n = sampled(grid), grid.box
    transfer = evaluate(parameters, *at)
    x = torch.fft.rfft2(torch.fft.ifftshift(images.double(), dim=(-2, -1))).flatten(1)
    known = transfer.correct_phases(x)
    known = known if optics.get("premultiplied") else known * transfer.ctf
    weight = torch.full((n, n // 2 + 1), 2.0).double()
    weight[:, 0] = 1
    if n % 2 == 0:
        weight[:, -1] = 1
    expected = (known * slices(volume, rotations, *at).conj()).real @ weight.flatten() / n**2
    job = ImageGrid(BOX, PIXEL)
    done = premultiplied(images, grid, parameters)
    back = torch.from_numpy(grid.bring(done.images.numpy(), job))
    plane = half_plane(BOX, BOX // 2 - 1)
    samples = slices(volume, rotations, *(k.double() for k in plane.frequencies(PIXEL)))
    y = fourier_transform(back, plane).to(samples)
    found = (y * samples.conj()).real @ plane.hermitian_weight.double() / BOX**2
    expected = expected * np.linalg.det(grid.matrix)  # a distorted image is compressed
    spread = float((y.abs() * samples.abs()).square().mean().sqrt()) * len(plane) ** 0.5 / BOX**2
    assert (found - expected).abs().max() < 0.01 * spread, (found, expected)
