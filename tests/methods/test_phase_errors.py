"""The terms of phase errors hold all that images say of them, and their fits find known errors."""

import pytest
import torch

from halfmap.methods.ctf_statistics import DefocusEvidence
from halfmap.methods.defocus import micrograph_defocus, posterior_defocus
from halfmap.methods.phase_errors import (
    best_start,
    even_evidence,
    even_terms,
    fit_phase,
    odd_evidence,
)

IMAGES, SAMPLES = 5, 400


@pytest.fixture
def images():
    """Slices, phases of the CTF inside its sine, envelope, and noise variance."""
    draw = torch.Generator().manual_seed(1)
    slices = torch.randn(IMAGES, SAMPLES, dtype=torch.complex128, generator=draw)
    chi = 30 * torch.rand(IMAGES, SAMPLES, dtype=torch.float64, generator=draw)
    envelope = 0.5 + torch.rand(IMAGES, SAMPLES, dtype=torch.float64, generator=draw)
    noise = torch.randn(IMAGES, SAMPLES, dtype=torch.complex128, generator=draw)
    return slices, chi, envelope, noise


def _even(x, slices, chi, envelope):
    sine, cosine = envelope * torch.sin(chi), envelope * torch.cos(chi)
    return even_terms(slices.conj() * x, slices.abs() ** 2, sine, cosine)


def test_even_terms_give_the_log_likelihood_of_any_error(images):
    slices, chi, envelope, noise = images
    x = envelope * torch.sin(chi + 0.7) * slices + noise
    terms = _even(x, slices, chi, envelope).sum(0, keepdim=True)
    errors = torch.linspace(-3, 3, SAMPLES, dtype=torch.float64) * torch.tensor([[0.0], [0.4], [2]])

    def log_likelihood(error):
        return -0.5 * (x - envelope * torch.sin(chi + error) * slices).abs().square().sum()

    found = torch.cat([even_evidence(terms)(error[None])[0] for error in errors])
    expected = torch.stack([log_likelihood(error) for error in errors])
    assert torch.allclose(found - found[0], expected - expected[0], atol=1e-8)


def test_odd_terms_give_the_log_likelihood_of_any_error(images):
    slices, chi, envelope, noise = images
    model = envelope * torch.sin(chi) * slices
    x = model * torch.polar(torch.ones(()).double(), torch.tensor(0.3).double()) + noise
    sums = (x * model.conj()).sum(0, keepdim=True)
    errors = torch.linspace(-3, 3, SAMPLES, dtype=torch.float64) * torch.tensor([[0.0], [0.4], [2]])

    def log_likelihood(error):
        turned = model * torch.polar(torch.ones_like(error), error)
        return -0.5 * (x - turned).abs().square().sum()

    found = torch.cat([odd_evidence(sums)(error[None])[0] for error in errors])
    expected = torch.stack([log_likelihood(error) for error in errors])
    assert torch.allclose(found - found[0], expected - expected[0], atol=1e-8)


@pytest.mark.parametrize("kind", ["even", "odd"])
def test_derivatives_are_those_of_the_value(images, kind):
    slices, chi, envelope, noise = images
    x = envelope * torch.sin(chi + 0.4) * slices + noise
    if kind == "even":
        evidence = even_evidence(_even(x, slices, chi, envelope).sum(0, keepdim=True))
    else:
        evidence = odd_evidence((x * slices.conj()).sum(0, keepdim=True))
    phase = torch.rand(1, SAMPLES, dtype=torch.float64, requires_grad=True)
    value, slope, bend = evidence(phase)
    (once,) = torch.autograd.grad(value.sum(), phase, create_graph=True)
    (twice,) = torch.autograd.grad(slope.sum(), phase)
    assert torch.allclose(once, slope, atol=1e-10)
    assert torch.allclose(twice, bend, atol=1e-10)


@pytest.mark.parametrize("kind", ["even", "odd"])
def test_fit_finds_a_large_error_of_each_group(images, kind):
    """Errors of several radians at the edge, of another sign in each group."""
    slices, chi, envelope, _ = images
    k = torch.linspace(-1, 1, SAMPLES, dtype=torch.float64)
    shapes = torch.stack([k**2, k**4]) if kind == "even" else torch.stack([k, k**3])
    basis = shapes.expand(IMAGES, -1, -1)
    truth = torch.tensor([[2.0, -3.0], [-2, 1], [0, 4], [0.5, 0], [0, 0]], dtype=torch.float64)
    error = truth @ shapes
    if kind == "even":
        x = envelope * torch.sin(chi + error) * slices
        evidence = even_evidence(_even(x, slices, chi, envelope))
    else:
        evidence = odd_evidence(slices.abs() ** 2 * torch.polar(torch.ones_like(error), error))
    axis = torch.arange(-4.0, 5, dtype=torch.float64)
    start = best_start(evidence, basis, torch.cartesian_prod(axis, axis))
    assert torch.allclose(fit_phase(evidence, basis, start), truth, atol=1e-3)


def _evidence(true_angstrom, error_angstrom):
    d = torch.linspace(-2000, 2000, 201)
    return DefocusEvidence(d, -0.5 * ((d - true_angstrom[:, None]) / error_angstrom) ** 2)


def test_particles_that_tell_their_defocus_keep_it():
    draw = torch.Generator().manual_seed(2)
    micrograph = torch.arange(400) // 20
    true = (500 * torch.randn(20, generator=draw))[micrograph]
    true = true + 200 * torch.randn(400, generator=draw)
    found = posterior_defocus(_evidence(true, 20.0), micrograph, torch.zeros(400))
    assert (found - true).abs().max() < 20


def test_particles_that_cannot_tell_share_their_micrographs_defocus():
    """One plane, each image uncertain by 500 A: the posterior is closer by the root of 20."""
    draw = torch.Generator().manual_seed(3)
    micrograph = torch.arange(400) // 20
    true = (300 * torch.randn(20, generator=draw))[micrograph]
    measured = true + 500 * torch.randn(400, generator=draw)
    evidence = _evidence(measured.clamp(-1900, 1900), 500.0)
    found = posterior_defocus(evidence, micrograph, torch.zeros(400))
    assert (found - true).square().mean().sqrt() < 0.4 * 500
    shared = micrograph_defocus(evidence, micrograph)
    assert (shared - true).square().mean().sqrt() < 0.35 * 500


def test_the_prior_counts_from_the_files_defocus():
    """What is found does not shrink further when it is found again."""
    micrograph = torch.arange(200) // 20
    true = 300 * torch.randn(200, generator=torch.Generator().manual_seed(4))
    once = posterior_defocus(_evidence(true, 200.0), micrograph, torch.zeros(200))
    again = posterior_defocus(_evidence(true - once.float(), 200.0), micrograph, once)
    assert torch.allclose(again, once, atol=5)
