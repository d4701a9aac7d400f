"""The Wiener update with 1/SSNR from half maps, when poses count as settled, and when the method
stops."""

from dataclasses import replace

import pytest
import torch

import halfmap
from halfmap.engine.image_model import NoiseSpectra
from halfmap.engine.preprocessing import ImageSettings
from halfmap.engine.problem import Problem
from halfmap.engine.state import IterationRecord, Poses, State, identity_poses
from halfmap.fourier import largest_radius, lowpass
from halfmap.masks import soft_sphere
from halfmap.methods.projection_matching import projection_matching
from halfmap.methods.reference_update import reseed_empty, trusted_ssnr, update_references
from halfmap.methods.search_schedule import is_settled
from halfmap.methods.settings import Settings
from halfmap.particles import load_particles
from halfmap.pose_search.refinement import SearchSettings
from halfmap.projection import Sums, prepare_references
from halfmap.reconstruction import ssnr_regulariser, wiener_update
from halfmap.simulation.phantom import phantom
from halfmap.symmetries import Specimen, point_group

BOX, PIXEL, N = 32, 6.0, 12
PARTICLE = Specimen(point_group("C1"), 13.0)


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> Problem:
    out = tmp_path_factory.mktemp("pm") / "sim"
    halfmap.simulate("phantom", out, n=N, snr=1.0, box=BOX, pixel_size_angstrom=PIXEL, quiet=True)
    images = ImageSettings(13.0, True, False, torch.device("cpu"))
    return Problem(
        load_particles(out / "particles.star"),
        images,
        torch.arange(N) % 2,
        "own",
        PARTICLE,
        3,
        1,
        64,
    )


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return phantom(BOX, PIXEL)


def _settings(**options) -> Settings:
    mask = soft_sphere(BOX, radius_px=13, edge_px=2)
    return Settings(SearchSettings(PARTICLE), 0.143, mask, mask, **options)


def _poses(classes: torch.Tensor | None = None) -> Poses:
    return identity_poses(torch.zeros(N, dtype=torch.long) if classes is None else classes)


NOISE = torch.full((1, 16), 4.0)


def _state(iteration: int = 0, history: tuple[IterationRecord, ...] = ()) -> State:
    return State(
        iteration=iteration,
        references=torch.zeros(2, 1, BOX, BOX, BOX),
        poses=_poses(),
        radius=8,
        curves=torch.zeros(1, 16),
        history=history,
        statistics=(NoiseSpectra(NOISE),),
    )


def _half_sums(volume: torch.Tensor, noise: float, seed: int) -> Sums:
    """Sums of a half whose every cell was seen with weight 1: the volume plus white noise."""
    radius = largest_radius(BOX)
    noisy = volume + noise * torch.randn(
        volume.shape, generator=torch.Generator().manual_seed(seed)
    )
    grid = prepare_references(noisy[None], radius).grid
    return Sums(grid, torch.ones_like(grid.real), BOX, radius, 3)


# --- SSNR -----------------------------------------------------------------------------------------


def test_ssnr_is_trusted_up_to_the_first_shell_without_correlation():
    fsc = torch.tensor([[1.0, 0.5, 0.2, -0.1, 0.3], [1.0, 0.8, 0.5, 0.5, 0.1]])
    one = trusted_ssnr(fsc, of_sum=False)
    torch.testing.assert_close(
        one[:, 1:], torch.tensor([[1.0, 0.25, 0.0, 0.0], [4.0, 1.0, 1.0, 1 / 9]])
    )
    assert (one[:, 0] > 1000).all()
    torch.testing.assert_close(trusted_ssnr(fsc, of_sum=True)[:, 1:], 2 * one[:, 1:])


# --- the update -----------------------------------------------------------------------------------


def test_curves_and_resolution_are_the_half_maps(problem, volume):
    halves = [_half_sums(volume, volume.std().item() * 1.5, seed) for seed in (1, 2)]
    update = update_references(problem, _settings(), NOISE, _poses(), halves)
    assert update.references.shape == (2, 1, BOX, BOX, BOX)
    assert update.curves.shape == (1, largest_radius(BOX) + 1)
    # FSC = S / (S + N) with the spectra inside the mask: the same mask acts on signal and noise
    mask, noise = soft_sphere(BOX, radius_px=13, edge_px=2), volume.std().item() * 1.5
    from halfmap.resolution import shell_power

    signal = shell_power((volume * mask)[None])[0]
    expected = signal / (signal + noise**2 * (mask**2).sum())
    torch.testing.assert_close(update.curves[0, 2:].double(), expected[2:16], rtol=0, atol=0.15)
    crossing = int((update.curves[0, 1:] < 0.143).nonzero()[0]) + 1
    shell = BOX * PIXEL / update.resolutions_angstrom[0]
    assert crossing - 1 <= shell <= crossing
    assert shell < update.radius <= largest_radius(BOX)


def test_the_radius_follows_the_resolution(problem, volume):
    best = update_references(
        problem, _settings(), NOISE, _poses(), [_half_sums(volume, 0.0, 1)] * 2
    )
    assert best.radius == largest_radius(BOX)
    assert best.resolutions_angstrom[0] <= 2 * PIXEL + 1e-6
    nothing = update_references(
        problem,
        _settings(),
        NOISE,
        _poses(),
        [_half_sums(0 * volume, 1.0, seed) for seed in (1, 2)],
    )
    assert 2 <= nothing.radius <= 6
    assert nothing.resolutions_angstrom[0] > 40
    assert torch.isfinite(nothing.references).all()


def test_one_over_ssnr_is_the_filter_with_the_least_error(problem, volume):
    """Against the truth, the update's map errs less than the same sums with an SSNR six times too
    high or too low."""
    noise = volume.std().item() * 2
    halves = [_half_sums(volume, noise, seed) for seed in (1, 2)]
    update, mask = (
        update_references(problem, _settings(), NOISE, _poses(), halves),
        soft_sphere(BOX, radius_px=13, edge_px=2),
    )

    def error(found: torch.Tensor) -> float:
        return ((found - volume) * mask).norm().item()

    ours = error(update.references[0, 0])
    ssnr = trusted_ssnr(update.curves, of_sum=False)
    for factor in (1 / 6, 6.0):
        assert ours < error(
            wiener_update(halves[0], ssnr_regulariser(halves[0], factor * ssnr))[0] * mask
        )
    assert ours < 0.8 * error(wiener_update(halves[0], torch.zeros(1, 16))[0] * mask)


def test_references_lie_inside_the_mask_and_each_half_has_its_own(problem, volume):
    halves = [_half_sums(volume, volume.std().item(), seed) for seed in (1, 2)]
    update = update_references(problem, _settings(), NOISE, _poses(), halves)
    outside = soft_sphere(BOX, radius_px=13, edge_px=2) == 0
    assert (update.references[:, :, outside] == 0).all()
    assert not torch.equal(update.references[0], update.references[1])


def test_joined_halves_make_one_reference_from_all_images(problem, volume):
    joined = replace(problem, matched_to="shared")
    halves = [_half_sums(volume, 2 * volume.std().item(), seed) for seed in (1, 2)]
    kept = [h.num.clone() for h in halves]
    together = update_references(joined, _settings(), NOISE, _poses(), halves)
    apart = update_references(problem, _settings(), NOISE, _poses(), halves)
    assert together.references.shape == (1, 1, BOX, BOX, BOX)
    mask = soft_sphere(BOX, radius_px=13, edge_px=2)
    errors = [
        ((r[0] - volume) * mask).norm() for r in (together.references[0], apart.references[0])
    ]
    assert errors[0] < 0.95 * errors[1]
    assert all(torch.equal(h.num, k) for h, k in zip(halves, kept, strict=True))


def test_a_constant_takes_the_place_of_one_over_ssnr(problem, volume):
    """With sigma^2 = 4 and k = 2 on cells of weight 1: everything is divided by 1 + 2 / 4."""
    halves = [_half_sums(lowpass(volume, 16.0, PIXEL, dimensions=3), 0.0, seed) for seed in (1, 2)]
    plain = update_references(
        problem, _settings(wiener_constant=1e-9), NOISE, _poses(), halves
    ).references
    damped = update_references(
        problem, _settings(wiener_constant=2.0), NOISE, _poses(), halves
    ).references
    torch.testing.assert_close(damped, plain / 1.5, rtol=1e-3, atol=1e-5)


def test_an_empty_class_gets_a_half_of_the_largest(volume):
    a, b = _half_sums(volume, 1.0, 1), _half_sums(volume, 1.0, 2)

    def two(s: Sums) -> Sums:
        return Sums(
            torch.cat([s.num, 0 * s.num]), torch.cat([s.den, 0 * s.den]), s.box, s.radius, 3
        )

    ssnr = torch.rand(2, 16)
    (first, second), given = reseed_empty([two(a), two(b)], ssnr, torch.tensor([12, 0]))
    for total in (first + second, first + first):  # both halves meet the same two averages
        assert torch.equal(total.num[0], b.num[0])
        assert torch.equal(total.num[1], a.num[0])
    assert torch.equal(given[1], ssnr[0])
    (kept, other), same = reseed_empty([two(a), two(b)], ssnr, torch.tensor([7, 5]))
    assert torch.equal(kept.num[0], a.num[0])
    assert torch.equal(other.num[0], b.num[0])
    assert torch.equal(same, ssnr)


@pytest.mark.parametrize("folds", [1, 2, 3, 4])
def test_a_class_made_anew_in_folds_keeps_the_halves_apart(folds):
    """Powers of ten tell of which fold a sum is: nothing is lost, both classes get something, and
    none of the other half's where there are folds."""
    values = [10.0**p for p in range(2 * folds)]
    parts = []
    for value in values:
        den = torch.zeros(2, 2, 3, 2)
        den[0] = value
        parts.append(Sums(den.to(torch.complex64), den, 4, 1, 2))
    found, _ = reseed_empty(parts, torch.rand(2, 2), torch.tensor([12, 0]), folds=folds)
    for half in (slice(0, folds), slice(folds, None)):
        new, old = (sum(float(part.den[k, 0, 0, 0]) for part in found[half]) for k in (1, 0))
        if folds > 1:
            assert new + old == pytest.approx(sum(values[half]))
            assert new == pytest.approx(sum(values[half][::2]), rel=0.5)
        assert new > 0
        assert old > 0
    total = sum(part.den.sum() for part in found)
    assert float(total) == pytest.approx(12 * sum(values))
    assert all(torch.equal(part.num.real, part.den) for part in found)


# --- when to search, when to stop -----------------------------------------------------------------


def _history(resolutions: list[float], moved: list[float]) -> tuple[IterationRecord, ...]:
    return tuple(
        IterationRecord(
            iteration=n + 1,
            radius=8,
            scored_to_angstrom=24.0,
            resolutions_angstrom=(r,),
            angular_change_deg=m,
            shift_change_angstrom=m,
        )
        for n, (r, m) in enumerate(zip(resolutions, moved, strict=True))
    )


def test_poses_are_settled_once_they_move_less_than_a_quarter_step():
    assert not is_settled(
        _settings(), _state(1, _history([20.0], [0.1]))
    )  # the first movement is from nowhere
    assert is_settled(_settings(), _state(2, _history([20.0, 18.0], [40.0, 1.0])))
    assert not is_settled(_settings(), _state(2, _history([20.0, 18.0], [40.0, 3.0])))


@pytest.mark.parametrize(
    ("resolutions", "moved", "stops"),
    [
        ([20, 15, 12], [40, 1, 0.01], False),  # too soon
        ([20, 15, 14, 12], [40, 5, 1, 0.01], False),  # still gaining
        ([20, 12, 12, 12], [40, 1, 0.5, 0.49], True),  # no gain, poses move no less than before
        ([20, 12, 12, 12], [40, 5, 3, 0.1], True),  # no gain, poses at rest
        (
            [20, 12, 12, 12],
            [40, 5, 3, 1.0],
            False,
        ),  # no gain yet, but poses are still coming to rest
        ([float("inf")] * 4, [90, 80, 80, 80], True),  # nothing there to be found
        ([20, 12, 13, 14], [40, 1, 1, 1], False),  # shells are still being lost
        ([20, 12, 14, 14.1], [40, 1, 1, 1], True),  # they were, and no more are
    ],
)
def test_the_method_stops_when_neither_resolution_nor_poses_improve(
    problem, resolutions, moved, stops
):
    method = projection_matching(problem, _settings())
    assert (
        method.converged(_state(len(moved), _history([float(r) for r in resolutions], moved)))
        is stops
    )


def test_the_method_does_not_stop_while_classes_change(problem):
    history = _history([20.0, 12.0, 12.0, 12.0], [40.0, 5.0, 3.0, 0.1])
    method = projection_matching(problem, _settings())
    assert not method.converged(
        _state(4, (*history[:-1], replace(history[-1], class_changes=0.05)))
    )


def test_local_refinement_never_searches(problem, volume, monkeypatch):
    from halfmap.methods import search_schedule as module

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(module, "prepare_search", refuse)
    references = prepare_references(volume[None], 8)
    for iteration in range(6):
        projection_matching(problem, _settings(anchor=_poses())).prepare(
            references, _state(iteration, _history([20.0] * iteration, [90.0] * iteration))
        )
    with pytest.raises(AssertionError, match="searched"):
        projection_matching(problem, _settings()).prepare(references, _state(0))


def test_everything_is_looked_at_again_now_and_then(problem, volume, monkeypatch):
    from halfmap.methods import search_schedule as module

    searched = []
    monkeypatch.setattr(module, "prepare_search", lambda *_, **__: searched.append(1))
    references = prepare_references(volume[None], 8)
    per_iteration = []
    for iteration in range(2, 14):
        searched.clear()
        history = _history([20.0] * iteration, [0.1] * iteration)
        projection_matching(problem, _settings()).prepare(references, _state(iteration, history))
        per_iteration.append(len(searched))
    assert sum(per_iteration) == 12 / module.GLOBAL_CHECK_EVERY
