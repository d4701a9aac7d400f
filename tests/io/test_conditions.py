"""Conditions on columns: what they keep, that nothing of them is run, and what is refused."""

import numpy as np
import pytest

from halfmap.errors import InputError
from halfmap.io.conditions import rows_that_meet
from halfmap.io.relion import ParticleTables
from halfmap.io.table import Table

A = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
NAMES = ["mic one", "b.mrc", "b.mrc", "c.mrc", "c.mrc", "d.mrc"]


@pytest.fixture
def tables() -> ParticleTables:
    particles = Table.from_columns(
        {"a": A, "b": [6, 5, 4, 3, 2, 1], "rlnMicrographName": NAMES}, path="p.star"
    )
    optics = Table.from_columns({"rlnVoltage": [300.0, 200.0], "rlnOpticsGroup": [1, 2]})
    return ParticleTables("p.star", particles, optics, np.array([0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("a > 2", [2, 3, 4, 5]),
        ("a>=2 and b>=4", [1, 2]),
        ("_a < 2 or b = 1", [0, 5]),
        ("a < 2 or a > 2 and b > 2", [0, 2, 3]),  # and binds closer
        ("(a < 2 or a > 2) and b > 2", [0, 2, 3]),
        ("(a < 2 or a > 4) and b < 3", [4, 5]),
        ("not a > 2", [0, 1]),
        ("not (a > 2 or b == 6) ", [1]),
        ("a != 3e0", [0, 1, 3, 4, 5]),
        ("rlnVoltage = 200", [3, 4, 5]),
        ("rlnMicrographName = 'mic one' OR rlnMicrographName = d.mrc", [0, 5]),
        ('rlnMicrographName != "b.mrc" AND a < 5', [0, 3]),
        ("a > -1", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_is_kept(tables, condition, kept):
    assert np.flatnonzero(rows_that_meet(condition, tables)).tolist() == kept


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("", "the name of a column, found the end"),
        ("a >", "a value after a >"),
        ("a 3", "one of <"),
        ("a > 2 b < 3", "and, or, or the end, found 'b'"),
        ("(a > 2", r"expected \), found the end"),
        ("rlnMicrographname = d.mrc", "near it: rlnMicrographName"),
        ("rlnMicrographName > b", "compared by = and != only"),
        ("rlnMicrographName > 3", "row 1.*expected a number, found 'mic one'"),
        ("__import__('os').system('touch /tmp/no') > 1", "one of <"),
        ("a > 'x", "quote is not closed"),
        ("a ! 2", "! stands alone"),
    ],
)
def test_what_is_refused(tables, condition, told):
    with pytest.raises(InputError, match=told):
        rows_that_meet(condition, tables)
