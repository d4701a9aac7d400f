"""Scores against the squared difference and the correlation coefficient written out in real
space."""

import pytest
import torch

from halfmap.fourier import fourier_transform, half_plane, inverse_fourier_transform, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    correlation_score,
    cross_terms,
    cross_terms_own,
    image_terms,
    log_likelihood_score,
    slice_power,
    slice_power_own,
    squared_modulus,
)
from halfmap.transfer_function import CTFParameters, ctf

PIXEL = 3.0
B, M = 3, 4


def _astigmatic(n: int, generator: torch.Generator) -> CTFParameters:
    defocus, one, zero = (
        8000 + 9000 * torch.rand(n, generator=generator),
        torch.ones(n),
        torch.zeros(n),
    )
    angle = 180 * torch.rand(n, generator=generator)
    return CTFParameters(
        defocus + 600,
        defocus - 600,
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


@pytest.fixture(params=[12, 13])
def problem(request):
    """Random images, references, shifts, coloured noise and astigmatic CTFs; images and references
    hold nothing beyond the plane."""
    box, generator = request.param, torch.Generator().manual_seed(7)
    plane = half_plane(box, 5)
    data, slices = fourier_transform(
        torch.randn(B + M, box, box, generator=generator), plane
    ).split([B, M])
    data[:, 0], slices[:, 0] = 0, 0  # the E-step leaves the mean out
    shifts = torch.tensor([[0.0, 0.0], [1.3, -0.6], [-2.0, 0.8], [0.5, 3.0], [-1.0, -1.0]])
    transfer = ctf(_astigmatic(B, generator), *plane.frequencies(PIXEL))
    sigma2 = (0.5 + torch.rand(B, plane.radius + 1, generator=generator))[:, plane.shell] * box**2
    return plane, data, slices, shifts, transfer, sigma2


def _whitened_pairs(problem):
    """X / sigma and C S_t R / sigma as real-space images: `(B, 1, 1, N, N)` and `(B, T, M, N, N)`,
    R moved onto the image."""
    plane, data, slices, shifts, transfer, sigma2 = problem
    root = sigma2.sqrt()
    x = inverse_fourier_transform(data / root, plane)[:, None, None]
    moved = slices * shift_phases(shifts, plane).conj()[:, None]  # (T, M, J)
    model = transfer[:, None, None] * moved / root[:, None, None]
    y = inverse_fourier_transform(model.flatten(0, 2), plane).unflatten(0, model.shape[:3])
    return x, y


def _a_and_b(problem, premultiplied: bool = False):
    plane, data, slices, shifts, transfer, sigma2 = problem
    stored = transfer * data if premultiplied else data
    terms = image_terms(
        stored,
        transfer,
        sigma2,
        premultiplied=torch.full((B,), float(premultiplied)),
        with_mean=False,
    )
    a = cross_terms(terms, shift_phases(shifts, plane), slices, plane)
    b = slice_power(terms, (slices.abs() ** 2).T.contiguous(), plane)
    return a, b[:, None].expand_as(a)


def test_log_likelihood_is_the_squared_difference_in_real_space(problem):
    x, y = _whitened_pairs(problem)
    box = x.shape[-1]
    brute = (
        -((x - y) ** 2).sum((-2, -1)) * box**2 / 2
    )  # sigma^2 is that of a Fourier coefficient: N^2 times that of a pixel
    ours = log_likelihood_score(*_a_and_b(problem))
    constant = -(x**2).sum((-2, -1)) * box**2 / 2
    torch.testing.assert_close(
        ours + constant, brute, rtol=1e-4, atol=1e-4 * brute.abs().max().item()
    )


def test_correlation_score_is_the_correlation_coefficient_times_the_images_length(problem):
    x, y = _whitened_pairs(problem)
    box = x.shape[-1]
    length_x, length_y = (x**2).sum((-2, -1)).sqrt(), (y**2).sum((-2, -1)).sqrt()
    coefficient = (x * y).sum((-2, -1)) / (length_x * length_y)
    assert coefficient.abs().max() > 0.1
    ours = correlation_score(*_a_and_b(problem))
    torch.testing.assert_close(ours, coefficient * length_x * box, rtol=1e-4, atol=1e-4)


def test_correlation_score_does_not_know_the_references_scale(problem):
    plane, data, slices, *rest = problem
    one = correlation_score(*_a_and_b(problem))
    other = correlation_score(*_a_and_b((plane, data, 250.0 * slices, *rest)))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_premultiplied_images_give_the_same_scores(problem):
    for ours, theirs in zip(_a_and_b(problem), _a_and_b(problem, premultiplied=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_own_slices_give_what_shared_ones_give(problem):
    plane, data, slices, shifts, transfer, sigma2 = problem
    terms = image_terms(data, transfer, sigma2, premultiplied=torch.zeros(B), with_mean=False)
    phases = shift_phases(shifts, plane)
    own = slices.expand(B, *slices.shape).contiguous()
    torch.testing.assert_close(
        cross_terms_own(terms, phases, own, plane),
        cross_terms(terms, phases, slices, plane),
        rtol=1e-4,
        atol=1e-4,
    )
    shared = slice_power(terms, (slices.abs() ** 2).T.contiguous(), plane)
    torch.testing.assert_close(
        slice_power_own(terms, squared_modulus(own), plane), shared, rtol=1e-4, atol=1e-4
    )


def test_own_slices_are_each_images_own(problem):
    plane, data, slices, shifts, transfer, sigma2 = problem
    terms = image_terms(data, transfer, sigma2, premultiplied=torch.zeros(B), with_mean=False)
    phases = shift_phases(shifts, plane)
    own = torch.stack([slices.roll(i, 0) for i in range(B)])
    a, b = (
        cross_terms_own(terms, phases, own, plane),
        slice_power_own(terms, squared_modulus(own), plane),
    )
    for i in range(B):
        alone = terms.select_images(torch.tensor([i]))
        torch.testing.assert_close(
            a[i], cross_terms(alone, phases, own[i], plane)[0], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            b[i],
            slice_power(alone, (own[i].abs() ** 2).T.contiguous(), plane)[0],
            rtol=1e-4,
            atol=1e-4,
        )


def test_the_mean_is_kept_only_where_asked_and_inputs_are_left_alone():
    plane, generator = half_plane(12, 5), torch.Generator().manual_seed(0)
    x = fourier_transform(1 + torch.randn(2, 12, 12, generator=generator), plane)
    c, sigma2 = torch.rand(2, len(plane), generator=generator), torch.ones(2, len(plane))
    before = x.clone(), c.clone()
    without, whole = (
        image_terms(x, c, sigma2, premultiplied=torch.tensor([0.0, 1.0]), with_mean=mean)
        for mean in (False, True)
    )
    assert (without.data[:, 0] == 0).all()
    assert (without.power[:, 0] == 0).all()
    torch.testing.assert_close(whole.data[:, 0], torch.stack([x[0, 0] * c[0, 0], x[1, 0]]))
    torch.testing.assert_close(whole.power, c**2)
    assert torch.equal(without.data[:, 1:], whole.data[:, 1:])
    assert torch.equal(x, before[0])
    assert torch.equal(c, before[1])


def test_a_reference_of_nothing_scores_nothing():
    plane = half_plane(12, 5)
    terms = ImageTerms(torch.ones(1, len(plane), dtype=torch.complex64), torch.ones(1, len(plane)))
    nothing = torch.zeros(1, len(plane), dtype=torch.complex64)
    a = cross_terms(terms, torch.ones(1, len(plane), dtype=torch.complex64), nothing, plane)
    b = slice_power(terms, (nothing.abs() ** 2).T.contiguous(), plane)
    assert correlation_score(a[:, 0], b).item() == 0
    assert log_likelihood_score(a[:, 0], b).item() == 0
