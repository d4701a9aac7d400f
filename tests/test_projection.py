"""P and P^T against closed forms, exact transforms and each other, on every device."""

import math

import pytest
import torch

from halfmap.errors import InputError
from halfmap.fourier import (
    fourier_transform,
    half_plane,
    inverse_fourier_transform,
    largest_radius,
    shift_phases,
)
from halfmap.gridding import PADDING
from halfmap.projection import (
    backproject,
    empty_sums,
    extract_slices,
    hermitian_mates,
    insert_slices,
    prepare_references,
    slices_at,
)
from halfmap.simulation.forward_model import exact_slices
from halfmap.so3 import random_rotations, rotation_2d


def _rotations(n: int, dimensions: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dimensions == 3:
        return random_rotations(n, generator).float()
    rotations = torch.eye(3).repeat(n, 1, 1)
    rotations[:, :2, :2] = rotation_2d(torch.rand(n, generator=generator) * 360).float()
    return rotations


def _blob(box: int, dimensions: int, centre: tuple[float, ...], sigma: float) -> torch.Tensor:
    """Gaussian at `centre` (x, y[, z]) pixels from the box centre."""
    axis = torch.arange(box) - box // 2
    grids = torch.meshgrid(*([axis] * dimensions), indexing="ij")[::-1]  # x, y, z
    return torch.exp(
        -sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) / (2 * sigma**2)
    )


@pytest.mark.parametrize("box", [32, 33])
def test_projection_of_an_off_centre_gaussian_is_its_closed_form(box, device):
    sigma, centre = 2.0, torch.tensor([4.0, -3.0, 5.0])
    plane = half_plane(box, largest_radius(box))
    rotations = _rotations(50, 3)
    blob = _blob(box, 3, tuple(centre.tolist()), sigma)[None].to(device)
    slices = extract_slices(
        prepare_references(blob, plane.radius),
        rotations.to(device),
        half_plane(box, plane.radius, device),
    ).cpu()
    view = rotations @ centre  # where the blob lands in each view
    k2 = (plane.kx**2 + plane.ky**2).float() / box**2
    gaussian = (2 * math.pi * sigma**2) ** 1.5 * torch.exp(-2 * math.pi**2 * sigma**2 * k2)
    expected = gaussian * shift_phases(view[:, :2], plane)
    # linear interpolation with sinc^2 correction errs by at most theta^2 / 12 an axis for mass at
    # offset n, theta = 2 pi n / (padding N)
    bound = ((centre**2).sum() + 3 * sigma**2) * (2 * math.pi / (PADDING * box)) ** 2 / 12
    assert ((slices - expected).norm(dim=1) / expected.norm(dim=1)).max() < bound
    correlation = (slices.conj() * expected).real.sum(1) / (
        slices.norm(dim=1) * expected.norm(dim=1)
    )
    assert correlation.min() > 0.9995


def test_rotated_class_image_is_its_closed_form():
    box, sigma, centre = 32, 2.0, torch.tensor([6.0, -4.0])
    plane = half_plane(box, 15)
    rotations = _rotations(30, 2)
    slices = extract_slices(
        prepare_references(_blob(box, 2, tuple(centre.tolist()), sigma)[None], 15), rotations, plane
    )
    view = (rotations[:, :2, :2] @ centre).float()
    k2 = (plane.kx**2 + plane.ky**2).float() / box**2
    expected = (
        2
        * math.pi
        * sigma**2
        * torch.exp(-2 * math.pi**2 * sigma**2 * k2)
        * shift_phases(view, plane)
    )
    bound = ((centre**2).sum() + 2 * sigma**2) * (2 * math.pi / (PADDING * box)) ** 2 / 12
    assert ((slices - expected).norm(dim=1) / expected.norm(dim=1)).max() < bound


@pytest.mark.parametrize("box", [24, 25])
def test_slices_agree_with_the_exact_non_uniform_transform(box):
    volume = torch.randn(box, box, box, generator=torch.Generator().manual_seed(1))
    axis = torch.arange(box) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = volume * torch.exp(
        -(x**2 + y**2 + z**2) / (2 * (box / 8) ** 2)
    )  # a particle fills part of its box
    plane = half_plane(box, largest_radius(box))
    rotations = _rotations(20, 3)
    slices = extract_slices(prepare_references(volume[None], plane.radius), rotations, plane)
    exact = exact_slices(volume, rotations, plane.kx, plane.ky)
    correlation = (slices.conj() * exact).real.sum() / (slices.norm() * exact.norm())
    assert correlation > 0.999


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("box", [16, 17])
def test_adjoint(box, dimensions, device):
    generator = torch.Generator().manual_seed(5)
    plane = half_plane(box, largest_radius(box), device)
    rotations = _rotations(7, dimensions).to(device)
    density = torch.randn(*([box] * dimensions), generator=generator).to(device)
    u = torch.complex(
        torch.randn(7, len(plane), generator=generator),
        torch.randn(7, len(plane), generator=generator),
    )
    u[:, 0] = u[:, 0].real + 0j  # k = 0 of a real image
    u = u.to(device)
    forward = extract_slices(prepare_references(density[None], plane.radius), rotations, plane)
    left = (plane.hermitian_weight * (u.conj() * forward).real).cpu().double().sum()
    right = (density * backproject(u, rotations, plane, dimensions=dimensions)).cpu().double().sum()
    assert left.item() == pytest.approx(right.item(), rel=2e-4)


def test_weights_inserted_are_weights_found(device):
    box = 16
    plane = half_plane(box, 7, device)
    sums = empty_sums(1, box, 7, 3, device=device)
    insert_slices(
        sums,
        torch.zeros(5, len(plane), dtype=torch.complex64, device=device),
        torch.ones(5, len(plane), device=device),
        _rotations(5, 3).to(device),
        plane,
    )
    den = hermitian_mates(sums).den[0]
    whole_plane = 2 * len(plane) - 1  # every frequency and its mate, k = 0 once
    assert (2 * den[..., 1:].sum() + den[..., 0].sum()).item() == pytest.approx(
        5 * whole_plane, rel=1e-5
    )


@pytest.mark.parametrize("box", [16, 17])
def test_half_plane_transform_round_trip(box):
    images = torch.randn(3, box, box, generator=torch.Generator().manual_seed(0))
    plane = half_plane(box, largest_radius(box))
    samples = fourier_transform(images, plane)
    filtered = inverse_fourier_transform(samples, plane)  # loses only the corners beyond the radius
    torch.testing.assert_close(fourier_transform(filtered, plane), samples, rtol=1e-4, atol=1e-3)
    moved = inverse_fourier_transform(
        samples * shift_phases(torch.tensor([3.0, -2.0]), plane), plane
    )
    torch.testing.assert_close(moved, filtered.roll((-2, 3), dims=(-2, -1)), rtol=1e-4, atol=1e-4)


def test_frequencies_out_of_the_grids_are_refused_on_the_diagonal_too():
    references = prepare_references(torch.randn(1, 16, 16, 16), 5)
    rotation = torch.eye(3)[None]
    slices_at(references, rotation, torch.tensor([5.9, 4.2]), torch.tensor([0.0, 4.2]))
    with pytest.raises(InputError, match=r"kx, ky: expected frequencies of at most 5"):
        slices_at(references, rotation, torch.tensor([4.3]), torch.tensor([4.3]))
