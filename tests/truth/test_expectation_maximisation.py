"""Expectation-maximisation as the lecture promises it: the penalised log likelihood climbs, and the
two sums are its gradient.

Model: `X = C S_t P_phi A_k + N`, `sigma^2 = E|N|^2` of a Fourier coefficient; a grid of
orientations and shifts with equal priors. A map is made of Fourier coefficients W on the grid
padded twice, inside the radius, `A = crop(F^-1 W) / sinc^2`, as `wiener_update` makes it from `W =
num / (kappa + den)`; the prior is on them:

    L = sum_i ln mean_(k, phi, t) exp(a - b / 2)  -  1/2 sum_(k, cells) kappa |W_k|^2,       kappa = 1 / (2^d T tau^2),

`2^d` because one independent coefficient is spread over 4 (2D) or 8 (3D) cells. Dempster, Laird &
Rubin, J. R. Stat. Soc. B 39, 1 (1977); Scheres, J. Struct. Biol. 180, 519 (2012).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from halfmap.engine import posterior_weights as assignment
from halfmap.engine.accumulation import accumulate, slice_terms
from halfmap.engine.pose_prior import uniform_prior
from halfmap.engine.state import PosteriorWeights
from halfmap.fourier import (
    HalfPlane,
    half_plane,
    inverse_fourier_transform,
    largest_radius,
    lowpass,
    shell_index,
    shift_phases,
)
from halfmap.gridding import PADDING, grid_to_density, gridding_correction
from halfmap.kernels import reference as torch_kernels
from halfmap.likelihood import (
    LOG_LIKELIHOOD,
    ImageTerms,
    cross_terms,
    image_terms,
    log_likelihood_score,
    slice_power,
    squared_modulus,
)
from halfmap.pose_search import adaptive as search
from halfmap.pose_search.refinement import SearchSettings
from halfmap.pose_search.sampling import shift_step
from halfmap.projection import (
    Sums,
    backproject,
    empty_sums,
    extract_slices,
    hermitian_mates,
    prepare_references,
)
from halfmap.reconstruction import grid_shells, wiener_update
from halfmap.simulation.forward_model import exact_slices
from halfmap.simulation.phantom import phantom
from halfmap.so3 import orientation_grid, random_rotations, rotation_2d
from halfmap.symmetries import Specimen, rotations_alone, symmetry_matrices
from halfmap.transfer_function import CTFParameters, ctf

BOX, PIXEL = 16, 12.0
IDENTITY = torch.eye(3)[None]


# --- images, and the model that scores them -------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Everything that stays fixed: images, sigma^2 (in `terms`), kappa, and the grid of
    orientations and shifts."""

    terms: ImageTerms
    plane: HalfPlane
    dimensions: int
    rotations: torch.Tensor  # of every class in turn, (K M, 3, 3)
    classes: torch.Tensor
    shifts: torch.Tensor
    kappa: torch.Tensor

    @property
    def n_classes(self) -> int:
        return len(self.kappa)


def in_plane(psi_deg: torch.Tensor) -> torch.Tensor:
    rotations = torch.eye(3).repeat(len(psi_deg), 1, 1)
    rotations[:, :2, :2] = rotation_2d(psi_deg)
    return rotations


def exact_views(density: torch.Tensor, rotations: torch.Tensor, plane: HalfPlane) -> torch.Tensor:
    """Slices of a volume, or turned copies of an image, which are central slices about z of a
    volume whose one plane it is."""
    if density.ndim == 2:
        box = len(density)
        density = torch.nn.functional.pad(density[None], (0, 0, 0, 0, box // 2, box - box // 2 - 1))
    return exact_slices(density, rotations, plane.kx, plane.ky)


def molecules(n_classes: int, dimensions: int) -> torch.Tensor:
    """The phantom, its other state and its mirror image; in 2D three views of it."""
    if dimensions == 3:
        volumes = [phantom(BOX, PIXEL), phantom(BOX, PIXEL, state=1), phantom(BOX, PIXEL).flip(0)]
        return torch.stack(volumes[:n_classes])
    plane = half_plane(BOX, largest_radius(BOX))
    views = random_rotations(3, torch.Generator().manual_seed(5))
    return inverse_fourier_transform(
        exact_slices(phantom(BOX, PIXEL), views, plane.kx, plane.ky), plane
    )[:n_classes]


def simulated(
    dimensions: int, n_classes: int, n: int, *, snr: float, seed: int = 0
) -> tuple[Model, torch.Tensor]:
    """A model with n images at random poses off its grid, under CTFs, and references to start from:
    blurred, all alike but for some noise.

    kappa is that of the molecules' own spectra, T = 1. snr: variance of the signal over that of the
    noise, over all pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    plane, truth = half_plane(BOX, largest_radius(BOX)), molecules(n_classes, dimensions)
    psi = 360 * torch.rand(n, generator=generator)
    rotations = random_rotations(n, generator) if dimensions == 3 else in_plane(psi)
    slices = torch.zeros(n, len(plane), dtype=torch.complex64)
    for k, object_ in enumerate(truth):
        mine = torch.arange(n) % n_classes == k
        slices[mine] = exact_views(object_, rotations[mine], plane)
    one, zero = torch.ones(n), torch.zeros(n)
    defocus = 8000 + 14000 * torch.rand(n, generator=generator)
    transfer = ctf(
        CTFParameters(
            defocus + 300,
            defocus - 300,
            zero,
            300 * one,
            2.7 * one,
            0.1 * one,
            zero,
            zero,
            one,
            zero,
            zero,
        ),
        *plane.frequencies(4.0),
    )
    signal = transfer * slices * shift_phases(torch.randn(n, 2, generator=generator), plane)
    sigma2 = (plane.hermitian_weight[1:] * signal[:, 1:].abs() ** 2).sum(1).mean() / BOX**2 / snr
    noise = torch.complex(
        torch.randn(n, len(plane), generator=generator),
        torch.randn(n, len(plane), generator=generator),
    )
    noise[:, 0] = noise[:, 0].real * 2**0.5 + 0j  # k = 0 of a real image
    images = signal + noise * (sigma2 / 2).sqrt()
    terms = image_terms(
        images,
        transfer,
        sigma2.expand(n, len(plane)).contiguous(),
        premultiplied=zero,
        with_mean=True,
    )
    grid = orientation_grid(1).rotations if dimensions == 3 else in_plane(torch.arange(36) * 10.0)
    side = torch.arange(-1.0, 2.0)
    model = Model(
        terms,
        plane,
        dimensions,
        grid.repeat(n_classes, 1, 1),
        torch.arange(n_classes).repeat_interleave(len(grid)),
        torch.cartesian_prod(side, side),
        1 / (2**dimensions * power_spectra(truth, plane.radius)),
    )
    start = lowpass(
        truth.mean(0) + 0.5 * truth.std() * torch.randn(truth.shape, generator=generator),
        8.0,
        1.0,
        dimensions=dimensions,
    )
    return model, start


def power_spectra(objects: torch.Tensor, radius: int) -> torch.Tensor:
    """tau^2: mean |A_k|^2 by shell, no less than a millionth of the largest."""
    dimensions = objects.ndim - 1
    power = torch.fft.rfftn(objects, dim=tuple(range(1, dimensions + 1))).abs() ** 2
    shell = shell_index(objects.shape[-1], dimensions).flatten()
    mean = torch.stack(
        [torch.bincount(shell, weights=p.flatten()) / torch.bincount(shell) for p in power]
    )[:, : radius + 1]
    return mean.clamp(min=1e-6 * float(mean.max())).float()


# --- E-step ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectation:
    """The log likelihood of the images, and what the M-step needs: the two sums, the slices m of
    the references, and the weight of each, `w_m = sum_(i, t) Gamma C^2 / sigma^2`."""

    log_likelihood: float
    sums: Sums
    slices: torch.Tensor
    w: torch.Tensor


def expectation(model: Model, references: torch.Tensor) -> Expectation:
    """The full posterior over classes, orientations and shifts, in float64 (weights below 1e-12 are
    left out of the sums)."""
    terms, plane = model.terms, model.plane
    slices = extract_slices(
        prepare_references(references, plane.radius), model.rotations, plane, classes=model.classes
    )
    score = scores(model, slices)
    log_likelihood = (score.flatten(1).logsumexp(1) - math.log(score[0].numel())).sum()
    posterior = torch.softmax(score.flatten(1), 1).view_as(score)
    sums = empty_sums(model.n_classes, plane.box, plane.radius, model.dimensions)
    for part in torch.arange(len(terms)).split(10):
        here = posterior[part]
        image, shift, reference = torch.nonzero(here > 1e-12, as_tuple=True)
        weight = here[image, shift, reference].float()
        gamma = PosteriorWeights(
            image, reference, model.shifts[shift], weight, model.rotations, model.classes
        )
        accumulate(
            sums,
            slice_terms(terms.select_images(part), gamma, plane),
            gamma,
            plane,
        )
    w = torch.einsum("btm,bj->mj", posterior.float(), terms.power)
    return Expectation(float(log_likelihood), hermitian_mates(sums), slices, w)


def scores(model: Model, slices: torch.Tensor) -> torch.Tensor:
    """a - b / 2 of every image, shift and slice, in float64."""
    exact = ImageTerms(model.terms.data.to(torch.complex128), model.terms.power.double())
    phases, slices = shift_phases(model.shifts.double(), model.plane), slices.to(torch.complex128)
    a = cross_terms(exact, phases, slices, model.plane)
    return log_likelihood_score(
        a, slice_power(exact, squared_modulus(slices).T, model.plane)[:, None]
    )


# --- M-step ---------------------------------------------------------------------------------------


def cells(model: Model, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
    """kappa of each cell, 0 beyond the radius; and how many cells of the whole grid it stands for,
    0 beyond the radius."""
    shells = grid_shells(sums).long()
    kappa = torch.cat([model.kappa, torch.zeros(model.n_classes, 1)], 1)[:, shells]
    count = torch.full(shells.shape, 2.0)
    count[..., 0] = 1
    count[shells > sums.radius] = 0
    if model.dimensions == 2:
        count[1] = 0
    return kappa, count


def log_prior(model: Model, coefficients: torch.Tensor, sums: Sums) -> float:
    kappa, count = cells(model, sums)
    return -0.5 * float((count * kappa * squared_modulus(coefficients).double()).sum())


def maps(model: Model, coefficients: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [grid_to_density(w, model.plane.box, model.dimensions) for w in coefficients]
    )


def coefficients_of(model: Model, references: torch.Tensor, sums: Sums) -> torch.Tensor:
    """Coefficients that a map is made of: its padded transform, inside the radius."""
    correction = gridding_correction(model.plane.box, model.dimensions)
    return prepare_references(references * correction, model.plane.radius).grid * (
        cells(model, sums)[1] > 0
    )


def ascent(model: Model, found: Expectation, start: torch.Tensor) -> torch.Tensor:
    """The exact M-step: conjugate gradients in W on the expected penalised log likelihood, a
    quadratic, from the W of the E-step.

        gradient = num - P^T w P A(W) - kappa W,     num and P^T brought onto W by the adjoint of W -> A

    with the quotient's denominator as preconditioner. Every step climbs, whether or not the last
    one has arrived (generalised E-M).
    """
    kappa, count = cells(model, found.sums)
    weight = 1 / (kappa + found.sums.den).clamp(min=1e-30)

    def onto_coefficients(gradient: torch.Tensor) -> torch.Tensor:
        return (
            (count > 0)
            * prepare_references(gradient, model.plane.radius).grid
            / (PADDING * model.plane.box) ** model.dimensions
        )

    def seen(w: torch.Tensor) -> torch.Tensor:
        slices = extract_slices(
            prepare_references(maps(model, w), model.plane.radius),
            model.rotations,
            model.plane,
            classes=model.classes,
        )
        return onto_coefficients(back(model, found.w * slices)) + kappa * w

    return conjugate_gradients(
        seen,
        onto_coefficients(in_real_space(model, found.sums.num)),
        start,
        lambda r: weight * r,
        count,
    )


def in_real_space(model: Model, grids: torch.Tensor) -> torch.Tensor:
    """Sums on the padded grid -> gradients with respect to the pixels of the maps."""
    return maps(model, grids) * (PADDING * model.plane.box) ** model.dimensions


def back(model: Model, values: torch.Tensor) -> torch.Tensor:
    """P^T of values on every slice, one map per class."""
    of_class = [model.classes == k for k in range(model.n_classes)]
    return torch.stack(
        [
            backproject(values[m], model.rotations[m], model.plane, dimensions=model.dimensions)
            for m in of_class
        ]
    )


def conjugate_gradients(
    matrix: Callable,
    right: torch.Tensor,
    x: torch.Tensor,
    precondition: Callable,
    count: torch.Tensor,
    *,
    steps: int = 5,
) -> torch.Tensor:
    def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (count * (a.conj() * b).real).double().sum()

    residual = right - matrix(x)
    direction = z = precondition(residual)
    for _ in range(steps):
        image = matrix(direction)
        x = x + float(inner(residual, z) / inner(direction, image)) * direction
        before = inner(residual, z)
        residual = right - matrix(x)  # afresh: float32 would drift
        z = precondition(residual)
        direction = z + float(inner(residual, z) / before) * direction
    return x


def climb(
    model: Model, references: torch.Tensor, iterations: int, update: Callable
) -> torch.Tensor:
    """L before each of the iterations and after the last."""
    shape = empty_sums(model.n_classes, model.plane.box, model.plane.radius, model.dimensions)
    w, values = coefficients_of(model, references, shape), []
    for iteration in range(iterations + 1):
        found = expectation(model, maps(model, w))
        values.append(found.log_likelihood + log_prior(model, w, shape))
        if iteration < iterations:
            w = update(model, found, w)
    return torch.tensor(values, dtype=torch.float64)


def shipped(model: Model, found: Expectation, before: torch.Tensor) -> torch.Tensor:
    """`W = num / (kappa + den)`; that these are the coefficients of `wiener_update`'s maps is
    checked at each call."""
    kappa, count = cells(model, found.sums)
    w = torch.where(count > 0, found.sums.num / (kappa + found.sums.den).clamp(min=1e-30), 0)
    updated = wiener_update(found.sums, model.kappa)
    torch.testing.assert_close(
        maps(model, w), updated, rtol=1e-4, atol=1e-5 * float(updated.abs().max())
    )
    return w


# dimensions, classes, images, SNR: diffuse posteriors at first, sharp ones at the end
RUNS = [
    (2, 1, 60, 0.1),
    (2, 3, 90, 0.1),
    (2, 3, 90, 0.5),
    (3, 1, 30, 0.2),
    (3, 1, 40, 0.5),
    (3, 3, 48, 0.5),
]


@pytest.mark.parametrize(("dimensions", "n_classes", "n", "snr"), RUNS)
def test_the_penalised_log_likelihood_never_decreases(dimensions, n_classes, n, snr):
    """The E-step's scores, the two sums and P, P^T are one model: with the exact M-step every
    iteration climbs, to rounding."""
    model, start = simulated(dimensions, n_classes, n, snr=snr)
    values = climb(model, start, 12, ascent)
    gain = float(values[-1] - values[0])
    assert gain > 0.3 * n
    assert values.diff().min() > -1e-6 * gain


@pytest.mark.parametrize(("dimensions", "n_classes", "n", "snr"), RUNS)
def test_the_shipped_quotient_climbs_but_for_its_approximation(dimensions, n_classes, n, snr):
    """`num / (kappa + den)` takes P^T w P for diagonal on the padded grid, which interpolation,
    cropping and uneven views make only nearly true: where E-M has nearly settled, a step may lose a
    little, here at most 2 % of the climb.

    Measured, worst of three seeds: nothing lost in 2D; in 3D 0.8 % at SNR 0.2 and 0.09 % at 0.5,
    with 30 or 40 images on a grid of 30 degrees (1.1 % with 60 images, a box of 32 and 15 degrees).
    On so few images the exact M-step climbs a third higher at SNR 0.5, and twice as high at 0.2.
    """
    model, start = simulated(dimensions, n_classes, n, snr=snr)
    values = climb(model, start, 12, shipped)
    gain = float(values.max() - values[0])
    assert gain > 0.3 * n
    assert values.diff().min() > -0.02 * gain
    assert values[-1] > values.max() - 0.02 * gain


@pytest.mark.parametrize(("dimensions", "n_classes"), [(2, 3), (3, 1), (3, 3)])
def test_the_engine_with_every_cell_kept_makes_the_same_e_step(dimensions, n_classes):
    """The search with nothing pruned and flat priors gives the log likelihood and the two sums of
    the E-step above, so that what is proven of the one holds for the other."""
    model, start = simulated(dimensions, n_classes, 20, snr=0.1)
    sigma = 1e4
    flat = uniform_prior(
        n_classes, dimensions, order=0, shift_sigma_px=sigma, device=torch.device("cpu")
    )
    step = 5.0 if dimensions == 2 else 15.0
    settings = SearchSettings(
        Specimen(rotations_alone(IDENTITY), 2.0),
        angular_step_deg=step,
        shift_range_px=1.5,
        score=LOG_LIKELIHOOD,
        prior=flat,
        most_entries=10**6,
    )
    plan = search.prepare_search(
        prepare_references(start, model.plane.radius), settings, model.plane.radius
    )
    assert plan.coarse_grid_resolves
    model = replace(with_rotations(model, plan.grid.coarse), shifts=plan.shifts[0])
    expected = expectation(model, start)

    candidates = search.search_globally(
        plan, model.terms, torch.zeros(20, 2), model.plane, model.plane.radius
    )
    # the prior is a density over square pixels: its sum over the grid is not quite 1 there
    outside = math.log(len(model.shifts) * shift_step(model.shifts) ** 2 / (2 * math.pi * sigma**2))
    total = float(candidates.log_weight.double().logsumexp(1).sum()) - 20 * outside
    assert total == pytest.approx(expected.log_likelihood, rel=1e-4)
    gamma = assignment.assign_posterior(candidates, significance=2.0)  # everything
    sums = empty_sums(n_classes, model.plane.box, model.plane.radius, dimensions)
    accumulate(
        sums,
        slice_terms(model.terms, gamma, model.plane),
        gamma,
        model.plane,
    )
    sums = hermitian_mates(sums)
    assert (sums.num - expected.sums.num).norm() < 1e-3 * expected.sums.num.norm()
    assert (sums.den - expected.sums.den).norm() < 1e-3 * expected.sums.den.norm()


# --- the two sums are the gradient ----------------------------------------------------------------


def gradient_by_autograd(model: Model, references: torch.Tensor) -> torch.Tensor:
    """d/dA of `sum_i ln sum_(k, phi, t) exp(a - b / 2)`, through the plain torch slices."""
    references = references.clone().requires_grad_()
    kx, ky = model.plane.kx.float(), model.plane.ky.float()
    grid = prepare_references(references, model.plane.radius).grid
    slices = torch_kernels.slices(grid, model.rotations, model.classes, kx, ky, PADDING)
    scores(model, slices).flatten(1).logsumexp(1).sum().backward()
    return references.grad


def assert_same_gradient(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm() < 1e-4 * expected.norm()


def with_rotations(model: Model, rotations: torch.Tensor) -> Model:
    classes = torch.arange(model.n_classes).repeat_interleave(len(rotations))
    return replace(model, rotations=rotations.repeat(model.n_classes, 1, 1), classes=classes)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_num_is_the_gradient_at_an_empty_map(dimensions):
    """At A = 0 every pose is equally likely and num alone is the gradient, on any grid of
    orientations."""
    model, start = simulated(dimensions, 2, 12, snr=0.2)
    empty = torch.zeros_like(start)
    assert_same_gradient(
        in_real_space(model, expectation(model, empty).sums.num), gradient_by_autograd(model, empty)
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_num_minus_den_a_is_the_gradient_of_the_marginal_likelihood_on_grid_points(dimensions):
    """Quarter turns (2D) and the 24 turns of the octahedron (3D) carry the grid onto itself:
    nothing is interpolated, and `num - den A`, Gamma being the full posterior over class,
    orientation and shift, is autograd's gradient of the log-sum-exp."""
    model, start = simulated(dimensions, 2, 12, snr=0.2)
    turns = (
        symmetry_matrices("O").float().round()
        if dimensions == 3
        else in_plane(torch.arange(4) * 90.0).round()
    )
    model = with_rotations(model, turns)
    sums = expectation(model, start).sums
    residual = sums.num - sums.den * prepare_references(start, model.plane.radius).grid
    assert_same_gradient(in_real_space(model, residual), gradient_by_autograd(model, start))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_num_minus_the_normal_operator_is_the_gradient_on_any_grid(dimensions):
    """Between grid points `den A` stands for `P^T w P A`; with that operator itself the gradient is
    exact on generic rotations."""
    model, start = simulated(dimensions, 2, 12, snr=0.2)
    found = expectation(model, start)
    exact = in_real_space(model, found.sums.num) - back(model, found.w * found.slices)
    assert_same_gradient(exact, gradient_by_autograd(model, start))
