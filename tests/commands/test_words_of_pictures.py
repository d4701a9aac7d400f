"""What stands under and over pictures."""

import math

import numpy as np
import pytest

from halfmap.commands._summaries import class_in_words
from halfmap.plots.orientations import evenness_in_words
from halfmap.plots.posterior import directions_in_words


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((12, 33, 1500, 9.81), "12 · 33 images (2.2 %) · 9.8 A"),
        ((1, 1, 1500, 3.424), "1 · 1 image (0.1 %) · 3.42 A"),
        ((20, 0, 1500, math.inf), "20 · 0 images (0.0 %) · not resolved"),
        ((20, 2, 1500, 999.0), "20 · 2 images (0.1 %) · not resolved"),
        ((3, 1234, 2468), "3 · 1,234 images (50.0 %)"),
    ],
)
def test_a_class_is_told_in_the_same_words_everywhere(numbers, words) -> None:
    assert class_in_words(*numbers) == words


def test_no_image_has_fewer_directions_than_one() -> None:
    """Of an object with 60 mates a sharp image lights one cell of the grid, a sixtieth of a
    direction."""
    sharp, even = np.zeros(192), np.full(192, 1 / 192)
    sharp[5] = 1
    assert directions_in_words(sharp, 60) == "1.0 of 3 directions"
    assert directions_in_words(even, 4) == "48 of 48 directions"
    assert directions_in_words(even, 1) == "192 of 192 directions"


def test_views_are_called_even_by_a_number() -> None:
    rng = np.random.default_rng(1)
    views = rng.normal(size=(20000, 3))
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    words = evenness_in_words(views, np.full(48, 20000 / 48))
    assert words == "SCF* 1.00 (1 is even), fullest cell 1 times the mean"
    # the same view again and again: it meets only what lies at right angles to it
    one = np.tile([0.0, 0.0, 1.0], (1000, 1))
    counts = np.zeros(48)
    counts[0] = 1000
    words = evenness_in_words(one, counts)
    assert float(words.split()[1]) < 0.1
    assert "fullest cell 48 times the mean, 98 % of cells without a particle" in words
