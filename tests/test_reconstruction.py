"""The two sums and their updates: known maps come back, Wiener factors are what they say, num - den
A is the likelihood's gradient."""

import math

import pytest
import torch

from halfmap.fourier import half_plane, lowpass, shift_phases
from halfmap.gridding import PADDING, grid_to_density
from halfmap.kernels import reference as torch_kernels
from halfmap.projection import Sums, empty_sums, hermitian_mates, insert_slices, prepare_references
from halfmap.reconstruction import (
    constant_regulariser,
    shell_weight,
    ssnr_regulariser,
    unregularised,
    wiener_update,
)
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.forward_model import exact_slices
from halfmap.so3 import random_rotations, rotation_2d
from halfmap.transfer_function import CTFParameters, ctf


def _rotations(n: int, dimensions: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dimensions == 3:
        return random_rotations(n, generator).float()
    return _in_plane(torch.rand(n, generator=generator) * 360)


def _in_plane(psi_deg: torch.Tensor) -> torch.Tensor:
    rotations = torch.eye(3).repeat(len(psi_deg), 1, 1)
    rotations[:, :2, :2] = rotation_2d(psi_deg).float()
    return rotations


def _quarter_turns(dimensions: int) -> torch.Tensor:
    """Rotations that carry the grid onto itself, where interpolation is exact: 4 about z, and in 3D
    4 about x after each."""
    turns = _in_plane(torch.arange(4) * 90.0).round()
    if dimensions == 2:
        return turns
    about_x = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return torch.cat([turns @ torch.linalg.matrix_power(about_x, i) for i in range(4)])


def _object(box: int, dimensions: int, seed: int = 1) -> torch.Tensor:
    """Random density with all frequencies, in the middle third of its box."""
    density = torch.randn([box] * dimensions, generator=torch.Generator().manual_seed(seed))
    axis = torch.arange(box) - box // 2
    r2 = sum(
        (g**2 for g in torch.meshgrid(*([axis] * dimensions), indexing="ij")),
        torch.zeros([box] * dimensions),
    )
    return density * torch.exp(-r2 / (2 * (box / 8) ** 2))


def _transfer(n: int, plane, seed: int = 0) -> torch.Tensor:
    """CTFs of many defoci, astigmatic, at 3 A."""
    generator = torch.Generator().manual_seed(seed)
    defocus, one, zero = (
        8000 + 14000 * torch.rand(n, generator=generator),
        torch.ones(n),
        torch.zeros(n),
    )
    angle = 180 * torch.rand(n, generator=generator)
    parameters = CTFParameters(
        defocus + 300,
        defocus - 300,
        angle,
        300 * one,
        2.7 * one,
        0.1 * one,
        zero,
        zero,
        one,
        zero,
        zero,
    )
    return ctf(parameters, *plane.frequencies(3.0))


def _sums(
    slices: torch.Tensor, transfer: torch.Tensor, rotations: torch.Tensor, plane, dimensions: int
) -> Sums:
    """Noise-free images `C R` with sigma^2 = 1, inserted at their poses."""
    sums = empty_sums(1, plane.box, plane.radius, dimensions)
    insert_slices(sums, transfer * (transfer * slices), transfer**2, rotations, plane)
    return hermitian_mates(sums)


def _agreement(a: torch.Tensor, b: torch.Tensor, radius: int) -> tuple[float, float]:
    """Worst shell up to 90 % of the radius, and correlation in real space of what lies inside
    it."""
    fsc = fourier_shell_correlation(a, b, pixel_size_angstrom=1.0).correlation[
        : int(0.9 * radius) + 1
    ]
    a, b = (lowpass(d, len(d) / (0.9 * radius - 2), 1.0, dimensions=d.ndim) for d in (a, b))
    return fsc.min().item(), torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize("box", [24, 25])
def test_a_map_comes_back_from_its_slices_through_many_ctfs(box):
    volume, plane = _object(box, 3), half_plane(box, 11)
    rotations = _rotations(600, 3)
    slices = exact_slices(volume, rotations, plane.kx, plane.ky)
    sums = _sums(slices, _transfer(600, plane), rotations, plane, 3)
    found = wiener_update(sums, 1e-4 * shell_weight(sums))[0]
    worst, correlation = _agreement(found, volume, 11)
    assert worst > 0.99
    assert correlation > 0.99
    torch.testing.assert_close(found.mean(), volume.mean(), rtol=0.05, atol=1e-3)
    slope = (found * volume).sum() / (found**2).sum()  # the grey scale as well
    assert slope.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("box", [32, 33])
def test_a_class_image_comes_back_from_turned_copies(box):
    image, plane = _object(box, 2), half_plane(box, 15)
    rotations = _rotations(200, 2)
    # exact transform of the turned image at each sample: the object's frequency is A^T k
    k = torch.stack([plane.kx, plane.ky], -1).double()
    q = torch.einsum("ja,mai->mji", k, rotations[:, :2, :2].double())
    n = (torch.arange(box) - box // 2).double()
    ex, ey = (torch.exp(-2j * math.pi / box * q[..., i, None] * n) for i in (0, 1))
    slices = torch.einsum("mjy,yx,mjx->mj", ey, image.to(torch.complex128), ex).to(torch.complex64)
    sums = _sums(slices, _transfer(200, plane), rotations, plane, 2)
    worst, correlation = _agreement(wiener_update(sums, 1e-4 * shell_weight(sums))[0], image, 15)
    assert worst > 0.99
    assert correlation > 0.99


def test_classes_are_kept_apart():
    plane, rotations = half_plane(16, 7), _rotations(300, 3)
    volumes = [_object(16, 3, seed) for seed in (1, 2)]
    sums = empty_sums(2, 16, 7, 3)
    classes = torch.arange(300) % 2
    for k in range(2):
        mine = classes == k
        slices = exact_slices(volumes[k], rotations[mine], plane.kx, plane.ky)
        insert_slices(
            sums,
            slices,
            torch.ones_like(slices.real),
            rotations[mine],
            plane,
            classes=classes[mine],
        )
    found = unregularised(hermitian_mates(sums))
    for k in range(2):
        assert _agreement(found[k], volumes[k], 7)[0] > 0.98
        assert _agreement(found[k], volumes[1 - k], 7)[1] < 0.5


@pytest.mark.parametrize(("dimensions", "n"), [(2, 400), (3, 3000)])
def test_shell_weight_counts_slices_per_cell(dimensions, n):
    """n slices of weight 1: 2 pi s n samples on 2 pi s 4 cells of a ring in 2D, or on 4 pi s^2 8
    cells of a shell in 3D."""
    plane = half_plane(32, 15)
    sums = empty_sums(1, 32, 15, dimensions)
    insert_slices(
        sums,
        torch.zeros(n, len(plane), dtype=torch.complex64),
        torch.ones(n, len(plane)),
        _rotations(n, dimensions),
        plane,
    )
    found = shell_weight(hermitian_mates(sums))[0]
    s = torch.arange(4, 15)
    expected = torch.full((11,), n / 4) if dimensions == 2 else n / (16 * s)
    # the volume of a shell of width 1 and the samples of a ring scatter about these means
    torch.testing.assert_close(found[4:15], expected, rtol=0.12, atol=0)


def _uniform_sums(dimensions: int, den: float, box: int = 16, radius: int = 6) -> Sums:
    sums = empty_sums(1, box, radius, dimensions)
    grid = prepare_references(_object(box, dimensions)[None], radius).grid
    weight = torch.full_like(sums.den, den)
    if dimensions == 2:
        weight[:, 1] = 0
    return Sums(den * grid, weight, box, radius, dimensions)


def _cells(sums: Sums) -> torch.Tensor:
    """|k| in Fourier pixels of each cell, written out."""
    _, nz, ny, nx = sums.den.shape
    z = (torch.arange(nz) - (nz - 1) // 2) * (1 if sums.dimensions == 3 else 0)
    z, y, x = torch.meshgrid(z, torch.arange(ny) - (ny - 1) // 2, torch.arange(nx), indexing="ij")
    return (z**2 + y**2 + x**2).float().sqrt() / PADDING


@pytest.mark.parametrize("dimensions", [2, 3])
def test_wiener_factor_is_ssnr_over_one_plus_ssnr(dimensions):
    sums = _uniform_sums(dimensions, den=2.5)
    ssnr = torch.tensor([[100.0, 50.0, 10.0, 3.0, 1.0, 0.2, 0.0]])
    found = wiener_update(sums, ssnr_regulariser(sums, ssnr))[0]
    shell = _cells(sums).round().long()
    factor = torch.cat([ssnr[0] / (1 + ssnr[0]), torch.zeros(50)])[shell]
    expected = grid_to_density(factor * sums.num[0] / 2.5, sums.box, dimensions)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_without_regularisation_the_quotient_is_the_object_inside_the_radius(dimensions):
    sums = _uniform_sums(dimensions, den=0.3)
    found = wiener_update(sums, torch.zeros(1, 7))[0]
    grid = torch.where(_cells(sums).round() <= 6, sums.num[0] / 0.3, 0)
    torch.testing.assert_close(
        found, grid_to_density(grid, sums.box, dimensions), rtol=1e-4, atol=1e-4
    )


def test_a_cell_seen_less_often_is_trusted_less():
    sums = _uniform_sums(3, den=1.0)
    seen = (
        torch.where(
            torch.arange(sums.den.shape[1])[:, None, None] > sums.den.shape[1] // 2, 4.0, 0.25
        )
        .expand_as(sums.den)
        .contiguous()
    )
    sums = Sums(seen * sums.num, seen, sums.box, sums.radius, 3)
    k = ssnr_regulariser(sums, torch.ones(1, 7))
    torch.testing.assert_close(k, shell_weight(sums))
    gain = seen / (seen + k[0, 3])
    assert gain.max() > 0.6
    assert gain.min() < 0.2


def test_constant_regulariser_is_k_in_units_of_ctf_squared():
    """num / (k / sigma^2 + sum C^2 / sigma^2) must not depend on sigma^2 where it is the same for
    all images: the lecture's formula."""
    plane, rotations = half_plane(16, 7), _rotations(80, 3)
    transfer, slices = (
        _transfer(80, plane),
        exact_slices(_object(16, 3), _rotations(80, 3), plane.kx, plane.ky),
    )
    maps = []
    for sigma2 in (torch.ones(8), 0.01 + torch.rand(8, generator=torch.Generator().manual_seed(0))):
        sums = empty_sums(1, 16, 7, 3)
        per_sample = sigma2[plane.shell]
        insert_slices(
            sums, transfer**2 * slices / per_sample, transfer**2 / per_sample, rotations, plane
        )
        sums = hermitian_mates(sums)
        k = constant_regulariser(sums, 0.7, 1 / sigma2)
        assert k.shape == (1, 8)
        torch.testing.assert_close(k[0], 0.7 / sigma2)
        maps.append(wiener_update(sums, k)[0])
    # interpolation carries a sample into the neighbouring shell, of another sigma^2: equal but for
    # that
    assert _agreement(*maps, 7)[0] > 0.97


def test_no_data_gives_a_map_of_zeros():
    sums = empty_sums(2, 16, 7, 3)
    for found in (
        unregularised(sums),
        wiener_update(sums, torch.zeros(2, 8)),
        wiener_update(sums, ssnr_regulariser(sums, torch.ones(2, 8))),
    ):
        assert (found == 0).all()


def test_updates_leave_the_sums_alone():
    sums = _uniform_sums(3, 1.0)
    num, den = sums.num.clone(), sums.den.clone()
    wiener_update(sums, ssnr_regulariser(sums, torch.ones(1, 7)))
    unregularised(sums)
    assert torch.equal(sums.num, num)
    assert torch.equal(sums.den, den)


# --- num - den A is the gradient of the log likelihood --------------------------------------------


def _images(dimensions: int, rotations: torch.Tensor, plane, density: torch.Tensor):
    """Data X = C S_t R + noise, Gamma, CTFs, sigma^2 and shifts, for one image per rotation."""
    generator = torch.Generator().manual_seed(9)
    n = len(rotations)
    transfer, sigma2 = _transfer(n, plane), 0.5 + torch.rand(n, len(plane), generator=generator)
    shift = torch.randn(n, 2, generator=generator)
    grid = prepare_references(density[None], plane.radius).grid
    slices = _slices(grid, rotations, plane)
    noise = torch.complex(
        torch.randn(n, len(plane), generator=generator),
        torch.randn(n, len(plane), generator=generator),
    )
    noise[:, 0] = noise[:, 0].real + 0j  # k = 0 of a real image
    data = transfer * slices * shift_phases(-shift, plane) + noise
    return data, torch.rand(n, generator=generator), transfer, sigma2, shift


def _slices(grid: torch.Tensor, rotations: torch.Tensor, plane) -> torch.Tensor:
    classes = torch.zeros(len(rotations), dtype=torch.long)
    return torch_kernels.slices(
        grid, rotations, classes, plane.kx.float(), plane.ky.float(), PADDING
    )


def _gradient_of_log_likelihood(density, rotations, plane, data, gamma, transfer, sigma2, shift):
    """By autograd: d/dA of sum_i Gamma_i sum_k -|X - C S_t P A|^2 / (2 sigma^2), sum over the whole
    plane."""
    density = density.clone().requires_grad_()
    slices = _slices(prepare_references(density[None], plane.radius).grid, rotations, plane)
    residual = data - transfer * slices * shift_phases(-shift, plane)
    likelihood = -(
        gamma[:, None] * plane.hermitian_weight * residual.abs() ** 2 / (2 * sigma2)
    ).sum()
    likelihood.backward()
    return density.grad


def _in_real_space(grid: torch.Tensor, box: int, dimensions: int) -> torch.Tensor:
    return grid_to_density(grid, box, dimensions) * (PADDING * box) ** dimensions


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("box", [10, 11])
def test_num_minus_den_a_is_the_gradient_of_the_log_likelihood(box, dimensions):
    """Exactly so where slices fall on the grid, since P^T C^2 P is then the diagonal den."""
    plane, rotations = half_plane(box, 4), _quarter_turns(dimensions)
    density = _object(box, dimensions, seed=5)
    data, gamma, transfer, sigma2, shift = _images(
        dimensions, rotations, plane, _object(box, dimensions)
    )
    sums = empty_sums(1, box, 4, dimensions)
    values = gamma[:, None] * transfer * data * shift_phases(shift, plane) / sigma2
    insert_slices(sums, values, gamma[:, None] * transfer**2 / sigma2, rotations, plane)
    sums = hermitian_mates(sums)
    grid = sums.num[0] - sums.den[0] * prepare_references(density[None], 4).grid[0]
    expected = _gradient_of_log_likelihood(
        density, rotations, plane, data, gamma, transfer, sigma2, shift
    )
    torch.testing.assert_close(
        _in_real_space(grid, box, dimensions),
        expected,
        rtol=1e-3,
        atol=1e-4 * expected.abs().max().item(),
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_residual_backprojected_is_the_gradient_at_any_rotation(dimensions):
    """Between grid points den A stands for P^T C^2 P A; that, and num, are P^T of what the
    likelihood says."""
    box, plane, rotations = 11, half_plane(11, 4), _rotations(12, dimensions)
    density = _object(box, dimensions, seed=5)
    data, gamma, transfer, sigma2, shift = _images(
        dimensions, rotations, plane, _object(box, dimensions)
    )
    slices = _slices(prepare_references(density[None], 4).grid, rotations, plane)
    values = (
        gamma[:, None] * transfer / sigma2 * (data * shift_phases(shift, plane) - transfer * slices)
    )
    sums = empty_sums(1, box, 4, dimensions)
    insert_slices(sums, values, torch.zeros_like(values.real), rotations, plane)
    found = _in_real_space(hermitian_mates(sums).num[0], box, dimensions)
    expected = _gradient_of_log_likelihood(
        density, rotations, plane, data, gamma, transfer, sigma2, shift
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_unregularised_update_maximises_the_likelihood(dimensions):
    """At A = num / den the gradient vanishes on every cell that was seen."""
    plane, rotations = half_plane(11, 4), _quarter_turns(dimensions)
    data, gamma, transfer, sigma2, shift = _images(
        dimensions, rotations, plane, _object(11, dimensions)
    )
    sums = empty_sums(1, 11, 4, dimensions)
    values = gamma[:, None] * transfer * data * shift_phases(shift, plane) / sigma2
    insert_slices(sums, values, gamma[:, None] * transfer**2 / sigma2, rotations, plane)
    sums = hermitian_mates(sums)
    seen = sums.den[0] > 0
    maximum = torch.where(seen, sums.num[0] / sums.den[0].clamp(min=1e-12), 0)
    at = _slices(maximum[None], rotations, plane)
    back = empty_sums(1, 11, 4, dimensions)
    insert_slices(
        back, gamma[:, None] * transfer**2 * at / sigma2, torch.zeros_like(sigma2), rotations, plane
    )
    difference = sums.num[0] - hermitian_mates(back).num[0]
    assert difference.abs().max() < 1e-4 * sums.num.abs().max()
