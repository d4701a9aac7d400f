"""Whether probabilities mean what they say, by numpy alone: of what is said to be right with
probability p, the share p should be right."""

from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The items whose probability lies between two edges: how many, their mean probability, and the
    share of them that is right."""

    count: int
    mean_probability: float
    share_right: float


def reliability(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability diagram: items (n,) in bins of equal width over [0, 1], of which the last
    holds p = 1; empty bins are left out.

    Raises:
        ValueError: the two are not of the same items, or a probability is none.
    """
    probability, right = np.asarray(probability, float), np.asarray(right, bool)
    if probability.shape != right.shape or probability.ndim != 1:
        raise ValueError(
            f"expected a probability and a truth value of each item, found arrays of shape "
            f"{probability.shape} and {right.shape}"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("expected probabilities between 0 and 1, found others")
    number = np.minimum((probability * bins).astype(int), bins - 1)
    members = [number == b for b in range(bins)]
    return [
        Bin(int(m.sum()), float(probability[m].mean()), float(right[m].mean()))
        for m in members
        if m.any()
    ]


def expected_calibration_error(
    probability: np.ndarray, right: np.ndarray, bins: int = BINS
) -> float:
    """`ECE = sum_b n_b / n |mean p_b - share right_b|` over the bins of the reliability diagram.
    Naeini, Cooper and Hauskrecht, AAAI 29, 2901 (2015)."""
    found = reliability(probability, right, bins)
    apart = [b.count * abs(b.mean_probability - b.share_right) for b in found]
    return sum(apart) / len(probability)


def error_by_sampling(
    probability: np.ndarray, *, bins: int = BINS, draws: int = 200, seed: int = 1
) -> float:
    """The mean ECE that the same probabilities have where each is exactly true: what finite bins
    show of the chance alone."""
    rng, probability = np.random.default_rng(seed), np.asarray(probability, float)
    errors = [
        expected_calibration_error(probability, rng.random(len(probability)) < probability, bins)
        for _ in range(draws)
    ]
    return float(np.mean(errors))
