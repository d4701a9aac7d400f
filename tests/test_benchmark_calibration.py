"""The benchmarks' judge of probabilities, on draws whose calibration is known."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from calibration import error_by_sampling, expected_calibration_error, reliability

RNG = np.random.default_rng(11)


def test_true_probabilities_have_an_error_of_sampling_alone() -> None:
    """Ten bins of n / 10 each: the mean of |binomial error| is sqrt(2 / pi) sqrt(10 p (1 - p) / n),
    and p (1 - p) is 1/6 on average."""
    n = 20_000
    probability = RNG.random(n)
    error = expected_calibration_error(probability, RNG.random(n) < probability)
    expected = error_by_sampling(probability)
    assert error < 3 * expected
    assert expected == pytest.approx(np.sqrt(2 / np.pi * 10 / 6 / n), rel=0.1)


def test_sampling_matters_less_the_more_items_there_are() -> None:
    few, many = RNG.random(200), RNG.random(20_000)
    assert error_by_sampling(few) > 5 * error_by_sampling(many)


def test_too_sure_by_a_known_amount() -> None:
    right = np.arange(1000) < 700
    assert expected_calibration_error(np.full(1000, 0.99), right) == pytest.approx(0.29)


def test_too_sure_and_too_unsure_do_not_cancel() -> None:
    """Half at 0.25 of which 0.45 are right, half at 0.85 of which 0.65 are: 0.2 either way."""
    probability = np.repeat([0.25, 0.85], 100)
    right = np.concatenate([np.arange(100) < 45, np.arange(100) < 65])
    assert probability.mean() == pytest.approx(right.mean())
    assert expected_calibration_error(probability, right) == pytest.approx(0.2)


def test_bins_are_of_equal_width_and_the_last_holds_certainty() -> None:
    probability = np.array([0.0, 0.05, 0.55, 0.59, 0.95, 1.0])
    right = np.array([False, False, True, False, True, True])
    first, middle, last = reliability(probability, right)
    assert [b.count for b in (first, middle, last)] == [2, 2, 2]
    assert (first.mean_probability, first.share_right) == pytest.approx((0.025, 0.0))
    assert (middle.mean_probability, middle.share_right) == pytest.approx((0.57, 0.5))
    assert (last.mean_probability, last.share_right) == pytest.approx((0.975, 1.0))


@pytest.mark.parametrize(
    ("probability", "right", "what"),
    [
        ([0.5, 1.2], [True, True], "between 0 and 1"),
        ([0.5, np.nan], [True, True], "between 0 and 1"),
        ([0.5], [True, True], r"\(1,\) and \(2,\)"),
    ],
)
def test_what_is_no_probability_is_refused(probability, right, what) -> None:
    with pytest.raises(ValueError, match=what):
        reliability(np.array(probability), np.array(right))
