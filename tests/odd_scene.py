"""A folder with a small simulated set, to try odd files in, and what the command line says of
them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from halfmap.cli.main import run
from halfmap.io.star import read_star, write_star
from halfmap.io.table import Table

N, BOX, PIXEL = 24, 24, 8.0
Blocks = dict[str, Table]


def told(capsys, *words: str) -> tuple[int, str]:
    """Exit code, and what was said of errors; a traceback fails the test by itself."""
    with pytest.raises(SystemExit) as left:
        run([*words])
    return int(left.value.code), capsys.readouterr().err


def refused(capsys, *words: str) -> str:
    code, error = told(capsys, *words)
    assert code == 2, error
    assert error.count("\n") == 1, error
    assert "unexpected" not in error
    return error


def written(
    scene: Path, *, optics: Mapping[str, object] = (), without: tuple[str, ...] = (), **columns
) -> Path:
    """`v.star`: that of the truth with some columns replaced, or left out."""
    blocks = dict(read_star(scene / "truth.star").blocks)
    blocks["particles"] = blocks["particles"].without(*without).with_columns(columns)
    blocks["optics"] = blocks["optics"].without(*without).with_columns(dict(optics))
    write_star(scene / "v.star", blocks)
    return scene / "v.star"
