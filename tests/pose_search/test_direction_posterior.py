"""Gamma over viewing directions: against the sum written out, calibrated, at the truth, sharper
with more signal, symmetric."""

import math

import pytest
import torch

from halfmap.errors import InputError
from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import ImageTerms, image_terms
from halfmap.pose_search.direction_posterior import direction_posterior, effective_number
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import orientation_grid, rotations_of
from halfmap.symmetries import symmetry_matrices

C1, C4 = symmetry_matrices("C1"), symmetry_matrices("C4")
BOX = 32


def _noise(shape, generator) -> torch.Tensor:
    """Complex, E|N|^2 = 1."""
    return (
        torch.complex(
            torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        )
        / 2**0.5
    )


def _viewing_directions(order: int) -> torch.Tensor:
    n_psi = 6 * 2**order
    return rotations_of(torch.arange(12 * 4**order) * n_psi, order)[:, 2]


def _lopsided(seed: int) -> torch.Tensor:
    """A volume without symmetry, smooth noise in a ball."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    kernel = torch.exp(-(x**2 + y**2 + z**2) / 4.0)
    transform = torch.fft.rfftn(torch.randn(BOX, BOX, BOX, generator=generator)) * torch.fft.rfftn(
        torch.fft.ifftshift(kernel)
    )
    return torch.fft.irfftn(transform, s=(BOX,) * 3) * torch.exp(
        -(((x**2 + y**2 + z**2) / 10.0**2) ** 2)
    )


def test_it_is_the_sum_written_out():
    """exp(-|X - C S_t P_phi A_k|^2 / (2 sigma^2)) over the whole plane without its mean, summed
    over k, psi and t."""
    generator = torch.Generator().manual_seed(0)
    plane, radius, order = half_plane(BOX, 8), 5, 1
    level = half_plane(BOX, radius)
    references = prepare_references(torch.stack([_lopsided(1), _lopsided(2)]), 8)
    centre = torch.tensor([[1.5, -0.5], [0.0, 2.0]])
    scale = extract_slices(references, torch.eye(3)[None], level).abs().square().mean()
    transforms = _noise((2, len(plane)), generator) * scale.sqrt()
    transfer = torch.rand(2, len(plane), generator=generator) * 2 - 1
    sigma2 = (0.5 + torch.rand(2, len(plane), generator=generator)) * scale * 2
    terms = image_terms(transforms, transfer, sigma2, premultiplied=torch.zeros(2), with_mean=False)
    found = direction_posterior(
        references,
        terms,
        plane,
        radius=radius,
        symmetry=C1,
        order=order,
        shift_range_px=1.0,
        shift_step_px=1.0,
        centre_px=centre,
    )
    rotations = orientation_grid(order).rotations
    shifts = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    n = len(level)
    expected = []
    for image in range(2):
        logs = []
        for k in range(2):
            slices = extract_slices(
                references, rotations, level, classes=torch.full((len(rotations),), k)
            ).to(torch.complex128)
            for shift in shifts:
                moved = slices * shift_phases((centre[image] + shift).double(), level).conj()
                residual = (transforms[image, :n] - transfer[image, :n] * moved).abs().square() / (
                    2 * sigma2[image, :n].double()
                )
                logs.append(
                    -(level.hermitian_weight * residual)[:, 1:].sum(1).view(12 * 4**order, -1)
                )
        expected.append(torch.softmax(torch.cat(logs, 1).logsumexp(1), 0))
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-3, atol=1e-7)
    assert 2 < effective_number(found).amin() < 40  # neither certain nor indifferent


def test_the_posterior_is_calibrated():
    """Images made by the model, from orientations of the grid: a direction held to be p probable is
    right in a share p of the cases."""
    generator = torch.Generator().manual_seed(3)
    radius, order, n = 6, 2, 600
    plane = half_plane(BOX, radius)
    references = prepare_references(_lopsided(4)[None], radius)
    grid = orientation_grid(order)
    truth = torch.randint(len(grid.rotations), (n,), generator=generator)
    slices = extract_slices(references, grid.rotations[truth], plane)
    sigma2 = ((plane.hermitian_weight * slices.abs() ** 2).sum(1).mean() / 30).expand(n, len(plane))
    transforms = slices + _noise(slices.shape, generator) * sigma2.sqrt()
    terms = image_terms(
        transforms, torch.ones(n, len(plane)), sigma2, premultiplied=torch.zeros(n), with_mean=False
    )
    gamma = direction_posterior(
        references, terms, plane, radius=radius, symmetry=C1, order=order, shift_range_px=0.0
    )
    claimed, guess = gamma.max(1)
    right = (guess == truth // 24).float()
    assert 0.2 < right.mean() < 0.8
    error = claimed * (1 - claimed)  # the variance of each case, if the claim is true
    assert (right - claimed).sum().abs() < 4 * error.sum().sqrt()
    sure = claimed > claimed.median()
    for part in (sure, ~sure):
        assert (right - claimed)[part].sum().abs() < 4 * error[part].sum().sqrt()


def test_the_peak_lies_at_the_true_direction(channel, scene_of):
    scene = scene_of(channel, 20, snr=0.5)
    gamma = direction_posterior(
        prepare_references(channel, 12),
        scene.terms,
        scene.plane,
        radius=12,
        symmetry=C4,
        shift_range_px=4.0,
    )
    assert gamma.shape == (20, 768)
    torch.testing.assert_close(gamma.sum(1), torch.ones(20), rtol=0, atol=1e-5)
    mates = torch.einsum("bi,gij->bgj", scene.rotations[:, 2], C4.float())
    peak = _viewing_directions(3)[gamma.argmax(1)]
    assert (peak[:, None] * mates).sum(-1).amax(1).amin() > math.cos(math.radians(7.5))


def test_it_sharpens_with_resolution_and_with_signal_and_is_flat_in_noise(channel, scene_of):
    references = prepare_references(channel, 12)

    def spread(snr: float, radius: int) -> float:
        scene = scene_of(channel, 16, snr=snr)
        gamma = direction_posterior(
            references, scene.terms, scene.plane, radius=radius, symmetry=C4, shift_range_px=3.0
        )
        return float(effective_number(gamma).median()) / 4

    by_radius = [spread(0.1, radius) for radius in (3, 5, 8)]
    assert by_radius[0] > 2 * by_radius[1] > 4 * by_radius[2]
    by_snr = [spread(snr, 6) for snr in (1e-7, 0.02, 0.1, 0.5)]
    assert by_snr[0] > 191.9
    assert by_snr[0] > 1.1 * by_snr[1] > 2 * by_snr[2] > 4 * by_snr[3]


@pytest.mark.parametrize("name", ["C4", "D2", "C3"])
def test_mates_have_the_same_value(channel, scene_of, name):
    """On an asymmetric unit and its mates, as on the whole sphere where the mates of HEALPix's
    pixels are pixels (C4, D2)."""
    group = symmetry_matrices(name)
    volume = channel if name == "C4" else _lopsided(5)[None] * channel.std() / _lopsided(5).std()
    scene = scene_of(volume, 6, snr=0.1)
    references = prepare_references(volume, 7)
    gamma = direction_posterior(
        references, scene.terms, scene.plane, radius=7, symmetry=group, shift_range_px=2.0
    )
    torch.testing.assert_close(gamma.sum(1), torch.ones(6), rtol=0, atol=1e-5)
    unit = torch.unique(orientation_grid(3, group).cell_id // 48)
    assert len(unit) < 768 / len(group) * 1.2
    assert len(torch.unique(gamma[0])) <= len(unit)
    if name == "C3":
        return
    directions = _viewing_directions(3)
    for mate in group[1:].float():
        turned = (directions @ mate)[:, None]
        same = (turned * directions).sum(-1).argmax(1)
        torch.testing.assert_close(gamma[:, same], gamma)
    if name == "C4":
        whole = direction_posterior(
            references, scene.terms, scene.plane, radius=7, symmetry=C1, shift_range_px=2.0
        )
        assert (whole - gamma).abs().sum(
            1
        ).max() < 0.05  # in-plane angles start elsewhere on the other side


def test_tiles_and_centres_change_nothing(channel, scene_of):
    scene = scene_of(channel, 5, snr=0.1)
    references = prepare_references(channel, 6)
    whole = direction_posterior(
        references, scene.terms, scene.plane, radius=6, symmetry=C4, order=2, shift_range_px=2.0
    )
    parts = direction_posterior(
        references,
        scene.terms,
        scene.plane,
        radius=6,
        symmetry=C4,
        order=2,
        shift_range_px=2.0,
        samples_per_tile=1,
    )
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)
    moved = ImageTerms(
        scene.terms.data * shift_phases(torch.tensor([-7.0, 4.0]), scene.plane), scene.terms.power
    )
    centred = direction_posterior(
        references,
        moved,
        scene.plane,
        radius=6,
        symmetry=C4,
        order=2,
        shift_range_px=2.0,
        centre_px=torch.tensor([[7.0, -4.0]]).repeat(5, 1),
    )
    torch.testing.assert_close(centred, whole, rtol=1e-3, atol=1e-6)


def test_certainty_and_indifference():
    even = torch.full((2, 768), 1 / 768)
    torch.testing.assert_close(effective_number(even), torch.full((2,), 768.0))
    assert effective_number(torch.nn.functional.one_hot(torch.tensor(5), 768).float()) == 1


def test_what_cannot_be_asked(channel, view, scene_of):
    scene = scene_of(channel, 2, snr=0.5)
    with pytest.raises(InputError, match="class images"):
        direction_posterior(
            prepare_references(view, 8), scene.terms, scene.plane, radius=8, symmetry=C1
        )
    with pytest.raises(InputError, match="1 to 8"):
        direction_posterior(
            prepare_references(channel, 8), scene.terms, scene.plane, radius=9, symmetry=C1
        )
