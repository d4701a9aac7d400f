"""The M-step alone, poses known: without noise the map comes back, with noise the MAP update is the
best estimate there is."""

import math

import pytest
import torch

from halfmap.engine.accumulation import accumulate, slice_terms
from halfmap.engine.state import PosteriorWeights
from halfmap.fourier import HalfPlane, half_plane, largest_radius, shell_index, shift_phases
from halfmap.likelihood import ImageTerms
from halfmap.masks import soft_sphere
from halfmap.projection import Sums, empty_sums, extract_slices, hermitian_mates, prepare_references
from halfmap.reconstruction import shell_weight, unregularised, wiener_update
from halfmap.simulation.forward_model import exact_slices
from halfmap.so3 import random_rotations, rotation_2d


def some_rotations(n: int, dimensions: int, generator: torch.Generator) -> torch.Tensor:
    if dimensions == 3:
        return random_rotations(n, generator)
    rotations = torch.eye(3).repeat(n, 1, 1)
    rotations[:, :2, :2] = rotation_2d(360 * torch.rand(n, generator=generator))
    return rotations


def sums_at(
    rotations: torch.Tensor,
    shifts: torch.Tensor,
    terms: ImageTerms,
    plane: HalfPlane,
    dimensions: int,
) -> Sums:
    """One image per rotation, every pose certain."""
    n = len(rotations)
    gamma = PosteriorWeights(
        torch.arange(n),
        torch.arange(n),
        shifts,
        torch.ones(n),
        rotations,
        torch.zeros(n, dtype=torch.long),
    )
    sums = empty_sums(1, plane.box, plane.radius, dimensions)
    accumulate(sums, slice_terms(terms, gamma, plane), gamma, plane)
    return hermitian_mates(sums)


def gaussians(box: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A density of seven Gaussians in the middle of its box, with their centres (x, y, z) and
    widths in pixels."""
    generator = torch.Generator().manual_seed(3)
    centres = (torch.rand(7, 3, generator=generator) - 0.5) * 0.4 * box
    centres[:, dimensions:] = 0
    widths = 1.2 + 0.8 * torch.rand(7, generator=generator)
    axis = torch.arange(box) - box // 2
    grids = torch.stack(
        torch.meshgrid(*([axis] * dimensions), indexing="ij")[::-1], -1
    )  # x, y[, z]
    distance2 = (
        (grids - centres[:, :dimensions].view(7, *[1] * dimensions, dimensions)).square().sum(-1)
    )
    return (
        torch.exp(-distance2 / (2 * widths.view(7, *[1] * dimensions) ** 2)).sum(0),
        centres,
        widths,
    )


def views_of_gaussians(
    centres: torch.Tensor,
    widths: torch.Tensor,
    rotations: torch.Tensor,
    plane: HalfPlane,
    dimensions: int,
) -> torch.Tensor:
    """Their projections' transforms in closed form: `sum_g (2 pi w^2)^(d/2) exp(-2 pi^2 w^2 k^2)
    exp(-2 pi i k.(A c)_g)`."""
    k2 = (plane.kx**2 + plane.ky**2).float() / plane.box**2
    height = (2 * math.pi * widths[:, None] ** 2) ** (dimensions / 2)
    spectrum = height * torch.exp(-2 * math.pi**2 * widths[:, None] ** 2 * k2)
    return (
        shift_phases(torch.einsum("mab,gb->mga", rotations, centres)[..., :2], plane) * spectrum
    ).sum(1)


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("update", ["wiener", "unregularised"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_map_comes_back_from_noise_free_views(dimensions, update, box):
    """The identity case: exact views, shifted, poses known, kappa next to nothing. But for a
    constant, the map is recovered inside the particle's sphere more nearly than P's own views of
    the true map are exact.

    The constant is the price of the quotient: the cells next to k = 0 are filled from shell 1
    alone, where the transform of any object is smaller; measured, -2.4 % (2D) and -0.3 % (3D) of
    the highest density.
    """
    generator, plane = torch.Generator().manual_seed(1), half_plane(box, largest_radius(box))
    truth, centres, widths = gaussians(box, dimensions)
    n = 400 if dimensions == 2 else 1500
    rotations, shifts = (
        some_rotations(n, dimensions, generator),
        torch.randn(n, 2, generator=generator),
    )
    views = views_of_gaussians(centres, widths, rotations, plane, dimensions)
    terms = ImageTerms(views * shift_phases(-shifts, plane), torch.ones(n, len(plane)))
    sums = sums_at(rotations, shifts, terms, plane, dimensions)
    found = (
        unregularised(sums)
        if update == "unregularised"
        else wiener_update(sums, 1e-4 * shell_weight(sums))
    )
    sphere = soft_sphere(box, radius_px=0.35 * box, edge_px=3, dimensions=dimensions)
    difference = found[0] - truth
    level = float((sphere * difference).sum() / sphere.sum())
    error = float((sphere * (difference - level)).norm() / (sphere * truth).norm())
    projected = extract_slices(prepare_references(truth[None], plane.radius), rotations, plane)
    assert error < float((projected - views).norm() / views.norm())
    assert abs(level) < (0.04 if dimensions == 2 else 0.006) * float(truth.max())


@pytest.mark.parametrize(("dimensions", "n"), [(2, 40), (3, 150)])
def test_the_map_update_errs_least_at_the_true_tau(dimensions, n):
    """With A drawn from the prior, `num / (1 / (2^d T tau^2) + den)` is the posterior mean, and
    errs least, at T = 1: the factor 2^d for the oversampled grid included (without it the minimum
    would lie at T = 4 or 8)."""
    box, generator = 16, torch.Generator().manual_seed(0)
    plane, sphere = (
        half_plane(box, 7),
        soft_sphere(box, radius_px=5, edge_px=3, dimensions=dimensions),
    )
    tau2 = float((sphere**2).sum())  # E|A_k|^2 of white noise inside the sphere
    sigma2 = (
        tau2 * n / (1 if dimensions == 2 else 10)
    )  # sigma^2 / tau^2 about the number of observations of a coefficient
    inside = (shell_index(box, dimensions) > 0) & (shell_index(box, dimensions) < 7)
    fudge = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    errors = torch.zeros(len(fudge))
    for _ in range(4):
        truth, rotations = (
            sphere * torch.randn([box] * dimensions, generator=generator),
            some_rotations(n, dimensions, generator),
        )
        # in 2D the image is a volume of one plane: its central slices about z are its turned copies
        volume = (
            truth
            if dimensions == 3
            else torch.nn.functional.pad(truth[None], (0, 0, 0, 0, box // 2, box // 2 - 1))
        )
        noise = torch.complex(
            torch.randn(n, len(plane), generator=generator),
            torch.randn(n, len(plane), generator=generator),
        )
        noise[:, 0] = noise[:, 0].real * 2**0.5 + 0j  # k = 0 of a real image
        images = exact_slices(volume, rotations, plane.kx, plane.ky) + noise * (sigma2 / 2) ** 0.5
        terms = ImageTerms(images / sigma2, torch.full((n, len(plane)), 1 / sigma2))
        sums = sums_at(rotations, torch.zeros(n, 2), terms, plane, dimensions)
        for t, factor in enumerate(fudge):
            found = wiener_update(sums, torch.full((1, 8), 1 / (2**dimensions * factor * tau2)))[0]
            errors[t] += torch.fft.rfftn(found - truth)[inside].abs().square().sum()
    assert fudge[int(errors.argmin())] == 1.0
    assert errors[0] > 1.2 * errors[3]
    assert errors[-1] > 1.2 * errors[3]
