"""Every pose of a grid: the scores are those of the definition, and the sums those of the truth."""

import dataclasses
import math

import pytest
import torch

from halfmap.engine.accumulation import sums_of_images
from halfmap.engine.posterior_weights import assign_hard, assign_posterior
from halfmap.errors import InputError
from halfmap.fourier import half_plane, shift_phases
from halfmap.pose_search import exhaustive
from halfmap.pose_search.exhaustive import log_likelihood, search_exhaustively
from halfmap.projection import extract_slices, prepare_references
from halfmap.reconstruction import unregularised
from halfmap.resolution import fourier_shell_correlation
from halfmap.simulation.forward_model import Recipe, draw_truth
from halfmap.simulation.in_memory import simulate_images
from halfmap.simulation.phantom import phantom
from halfmap.so3 import orientation_grid, rotation_vector_to_matrix
from halfmap.symmetries import point_group

BOX, PIXEL = 24, 8.0


def test_weights_are_those_of_the_definition() -> None:
    volumes = torch.stack([phantom(BOX, PIXEL), phantom(BOX, PIXEL, state=1)])
    data = simulate_images(
        list(volumes), draw_truth(Recipe(5, weights=(1.0, 1.0))), pixel_size_angstrom=PIXEL, snr=0.5
    )
    plane = half_plane(BOX, 8)
    terms, references = data.terms(plane), prepare_references(volumes, 8)
    rotations = orientation_grid(1).rotations[::31]
    shifts = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    found = search_exhaustively(references, terms, plane, rotations=rotations, shifts_px=shifts)
    n = 37
    for image in range(5):
        rotation, shift = found.rotations[image, n], found.shift_px[image, n]
        slice_ = extract_slices(
            references, rotation[None], plane, classes=found.classes[image, n : n + 1]
        )
        moved = slice_[0] * shift_phases(-shift, plane)
        ctf2 = terms.power[image]  # C^2 / sigma^2, C X / sigma^2: X = data / C, at C != 0
        w = plane.hermitian_weight
        expected = (w * (terms.data[image].conj() * moved).real).sum() - (
            w * ctf2 * moved.abs() ** 2
        ).sum() / 2
        assert float(found.log_weight[image, n]) == pytest.approx(
            float(expected), rel=1e-3, abs=0.05
        )
    mean = found.log_weight.double().exp().mean(1).log()
    assert torch.allclose(log_likelihood(found), mean)
    one = dataclasses.replace(found, log_weight=torch.full_like(found.log_weight, 3.0))
    assert torch.allclose(log_likelihood(one), torch.tensor(3.0, dtype=torch.float64))


def test_hard_weights_and_sums_find_the_volume_again() -> None:
    volume = phantom(BOX, PIXEL)
    truth = draw_truth(Recipe(200, shift_rms_px=0.0, astigmatism_angstrom=0.0))
    data = simulate_images([volume], truth, pixel_size_angstrom=PIXEL, snr=5.0)
    plane = half_plane(BOX, 9)
    terms, c4 = data.terms(plane), point_group("C4")
    found = search_exhaustively(
        prepare_references(volume[None], 9),
        terms,
        plane,
        rotations=orientation_grid(2, c4.rotations).rotations,
        shifts_px=torch.zeros(1, 2),
    )
    made = {}
    for name, gamma in (("hard", assign_hard(found)), ("posterior", assign_posterior(found))):
        sums = sums_of_images(terms, gamma, plane, n_classes=1, dimensions=3, symmetry=c4)
        made[name] = unregularised(sums)[0]
        curve = fourier_shell_correlation(made[name], volume, pixel_size_angstrom=PIXEL)
        assert float(curve.correlation[1:5].min()) > 0.9  # a 15-degree grid
        turned = rotation_vector_to_matrix(torch.tensor([1.5, 0.0, 0.0]))
        wrong = dataclasses.replace(gamma, rotations=gamma.rotations.roll(7, 0) @ turned)
        bad = unregularised(sums_of_images(terms, wrong, plane, n_classes=1, dimensions=3))[0]
        worse = fourier_shell_correlation(bad, volume, pixel_size_angstrom=PIXEL)
        assert float(worse.correlation[3:5].max()) < 0.7


def test_snr_is_what_was_asked_and_too_many_poses_are_refused(monkeypatch) -> None:
    truth = draw_truth(Recipe(60))
    clean = simulate_images([phantom(BOX, PIXEL)], truth, pixel_size_angstrom=PIXEL, snr=math.inf)
    noisy = simulate_images([phantom(BOX, PIXEL)], truth, pixel_size_angstrom=PIXEL, snr=0.1)
    noise = noisy.images - clean.images
    ratio = clean.images.var(dim=(1, 2)).mean() / noise.var(dim=(1, 2)).mean()
    assert float(ratio) == pytest.approx(0.1, rel=0.02)
    plane = half_plane(BOX, 6)
    with pytest.raises(InputError, match="sigma2"):
        clean.terms(plane)
    monkeypatch.setattr(exhaustive, "MOST_CANDIDATES", 100)
    with pytest.raises(InputError, match="60 images with 576 poses each"):
        search_exhaustively(
            prepare_references(phantom(BOX, PIXEL)[None], 6),
            noisy.terms(plane),
            plane,
            rotations=orientation_grid(1).rotations,
            shifts_px=torch.zeros(1, 2),
        )
