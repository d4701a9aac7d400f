"""The bound of branch and bound: its two terms have the mean and variance derived, and unseen power
is what it says."""

from statistics import NormalDist

import pytest
import torch

from halfmap.fourier import half_plane, shift_phases
from halfmap.likelihood import (
    ImageTerms,
    cross_terms_own,
    log_likelihood_score,
    slice_power_own,
    squared_modulus,
)
from halfmap.pose_search.bounds import (
    FIT,
    deviations,
    shell_visibility,
    slice_shell_power,
    unseen_in_cells,
    unseen_power,
    upper_bound,
)
from halfmap.pose_search.search_plan import terms_on_level
from halfmap.projection import extract_slices, prepare_references
from halfmap.so3 import compose, random_rotations, rotation_vector_to_matrix


def test_what_a_level_has_not_shown_is_gaussian_with_mean_half_its_variance(channel):
    """One image, 4000 draws of noise: the true pose's score on all shells, less that of a pose 9
    degrees and half a pixel off on few."""
    plane, few = half_plane(32, 15), half_plane(32, 8)
    generator = torch.Generator().manual_seed(3)
    references = prepare_references(channel, 15)
    rotation = random_rotations(1, generator)
    away = compose(
        rotation_vector_to_matrix(torch.deg2rad(torch.tensor([[5.0, -6.0, 4.0]]))), rotation
    )
    shift = torch.tensor([[0.3, -0.4]])
    true, centre = (
        extract_slices(references, rotation, plane),
        extract_slices(references, away, plane) * shift_phases(shift, plane),
    )
    power, n = 0.2 + torch.rand(1, len(plane), generator=generator), 4000
    power *= 90 / float(
        (power * plane.hermitian_weight * squared_modulus(true)).sum()
    )  # the score comes to 45
    noise = torch.complex(*torch.randn(2, n, len(plane), generator=generator)) * (power / 2).sqrt()
    terms = ImageTerms(power * true + noise, power.expand(n, -1))

    def score(slices: torch.Tensor, plane) -> torch.Tensor:
        inside = terms_on_level(terms, torch.zeros(n, 2), plane, plane)
        own, still = (
            slices[:, : len(plane)].expand(n, -1)[:, None],
            torch.ones(1, len(plane), dtype=torch.complex64),
        )
        return log_likelihood_score(
            cross_terms_own(inside, still, own, plane)[:, 0, 0],
            slice_power_own(inside, squared_modulus(own), plane)[:, 0],
        )

    difference = score(true, plane) - score(centre, few)
    weight = power * plane.hermitian_weight
    missed = torch.cat([(true - centre)[:, : len(few)], true[:, len(few) :]], 1)
    unseen = float((weight * squared_modulus(missed)).sum())
    assert unseen > 10
    assert float(difference.mean()) == pytest.approx(unseen / 2, abs=4 * (unseen / n) ** 0.5)
    assert float(difference.var()) == pytest.approx(unseen, rel=0.1)


def test_the_bound_holds_with_the_probability_stated():
    """Scores whose difference is as derived, and a best pose that gains half a chi^2 of 5 more."""
    generator = torch.Generator().manual_seed(1)
    n = 1_000_000
    for unseen, failure in ((q, p) for q in (0.0, 1.0, 10.0, 100.0) for p in (1e-3, 3e-4)):
        z = deviations(1, failure)
        gained = (
            unseen / 2
            + unseen**0.5 * torch.randn(n, generator=generator)
            + torch.randn(5, n, generator=generator).square().sum(0) / 2
        )
        bound = upper_bound(torch.zeros(1, 1), torch.full((1, 1), unseen), deviations=z)
        failed = float((gained > bound).float().mean())
        assert failed < failure + 3 * (failure / n) ** 0.5, (unseen, failure)
    assert deviations(4) > deviations(1) > 3.0
    assert deviations(1, 0.5) == pytest.approx(0.0, abs=1e-9)
    for tests in (1, 4, 100):  # all of them together fail once in a thousand images
        assert tests * NormalDist().cdf(-deviations(tests)) == pytest.approx(1e-3)


def test_inside_cells_a_level_loses_more_the_larger_they_are(channel):
    plane, references = half_plane(32, 15), prepare_references(channel, 15)

    def lost(order: int, shift_step_px: float) -> torch.Tensor:
        return unseen_in_cells(
            references, plane, radius=8, order=order, shift_step_px=shift_step_px
        ).lost

    small, large, moved = lost(4, 0.0), lost(3, 0.0), lost(4, 1.0)
    for values in (small, large, moved):
        assert (values[9:] == 0).all()
        assert values[0] == 0
    assert (
        large[1:9] > 2.5 * small[1:9]
    ).all()  # as the square of the step, until nothing is in common
    assert (large[1:9] < 4.5 * small[1:9]).all()
    assert (moved[2:9] > small[2:9]).all()
    assert lost(0, 4.0)[1:9].max() < 2.5


@pytest.mark.parametrize("signal", [0.01, 1.0, 100.0])
def test_unseen_power_fails_as_often_as_stated_over_poses_in_cells(channel, signal):
    """Differences of scores drawn for the level's own sample of poses; the shape of a cell counts
    for more, the more signal there is."""
    plane, references = half_plane(32, 15), prepare_references(channel, 15)
    unseen = unseen_in_cells(references, plane, radius=15, order=3, shift_step_px=0.5)
    visible = torch.full((1, 16), signal * 100 / float(unseen.power.sum()))
    failure, z = 0.01, deviations(1, 0.01)
    allowed = (unseen_power(unseen, visible, tests=1, failure=failure) * unseen.power).sum()
    loss = unseen.sampled_lost @ visible[0]
    mean_power = float(visible[0] @ unseen.power)
    actual = (
        loss / (unseen.sampled_power @ visible[0]) * mean_power + FIT
    )  # at the same power of every slice
    generator = torch.Generator().manual_seed(0)
    gained = actual / 2 + actual.sqrt() * torch.randn(1000, len(actual), generator=generator)
    bound = float(upper_bound(torch.zeros(1, 1), allowed.view(1, 1), deviations=z))
    assert float((gained > bound).float().mean()) == pytest.approx(failure, rel=0.15)
    factor = float(allowed) / float((visible[0] * unseen.lost * unseen.power).sum())
    assert (1.0 <= factor < 1.2) if signal < 0.1 else (1.2 < factor < 4)


def test_power_by_shell_is_the_slice_power(channel, scene_of):
    scene = scene_of(channel, 20, snr=0.5, use_ctf=False)
    slices = extract_slices(prepare_references(channel, 15), scene.rotations, scene.plane)
    exact = slice_power_own(scene.terms, squared_modulus(slices)[:, None], scene.plane)[:, 0]
    by_shell = (
        slice_shell_power(slices, scene.plane) * shell_visibility(scene.terms, scene.plane)
    ).sum(1)
    torch.testing.assert_close(by_shell, exact, rtol=1e-4, atol=0)
    scene = scene_of(channel, 20, snr=0.5)  # astigmatic CTFs, averaged over each shell
    exact = slice_power_own(scene.terms, squared_modulus(slices)[:, None], scene.plane)[:, 0]
    by_shell = (
        slice_shell_power(slices, scene.plane) * shell_visibility(scene.terms, scene.plane)
    ).sum(1)
    torch.testing.assert_close(by_shell, exact, rtol=0.15, atol=0)
