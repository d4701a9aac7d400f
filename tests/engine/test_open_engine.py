"""The engine is open: a statistic and a method from outside the package run through it, are killed
and go on, without a line changed inside."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import halfmap
from halfmap.engine.checkpoint import state_from_arrays
from halfmap.engine.norm_and_scale import NormAndScaleStatistic
from halfmap.workspace.job import load_checkpoint, read_events

PROGRAM = Path(__file__).with_name("outside_method.py")
N, BOX, PIXEL = 96, 32, 6.0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("open") / "sim"
    size = {"n": N, "snr": 0.3, "box": BOX, "pixel_size_angstrom": PIXEL}
    return halfmap.simulate("phantom", out, seed=3, quiet=True, **size).folder


def _run(data: Path, folder: Path) -> subprocess.Popen:
    arguments = [data / "particles.star", data / "truth_1.mrc", folder]
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_method_and_a_statistic_from_outside_are_killed_and_resumed(data, tmp_path, monkeypatch):
    whole = _run(data, tmp_path / "whole")
    assert whole.communicate(timeout=200)[0].split() == [
        word for n in (1, 2, 3, 4) for word in ("iteration", str(n))
    ]
    with _run(data, tmp_path / "killed") as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if line == "iteration 2\n":
                killed.kill()
                break
    assert killed.returncode != 0
    again = _run(data, tmp_path / "killed")
    assert again.communicate(timeout=200)[0].split() == ["iteration", "3", "iteration", "4"]

    arrays, meta = load_checkpoint(tmp_path / "whole")
    others, other_meta = load_checkpoint(tmp_path / "killed")
    assert repr(meta) == repr(other_meta)
    assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in arrays)
    monkeypatch.syspath_prepend(PROGRAM.parents[2] / "docs" / "examples")
    from momentum import SideViews, Velocity

    state = state_from_arrays(arrays, meta)
    views = state.find(SideViews)
    assert views is not None
    assert 0.3 < views.share < 0.7  # half of the sphere lies within 30 degrees of the equator
    assert isinstance(state.method, Velocity)
    assert float(state.method.step.abs().max()) > 0
    assert [event["iteration"] for event in read_events(tmp_path / "killed")] == [1, 2, 3, 4]


def test_the_loop_names_no_statistic():
    """Whatever a statistic is called, the loop must not know it."""
    loop = (Path(halfmap.__file__).parent / "engine" / "loop.py").read_text()
    iterate = loop[loop.index("def iterate(") : loop.index("def run(")]
    for function in iterate.split("\ndef "):
        assert len(function.splitlines()) <= 42
    for word in ("noise", "norm", "scale", "prior", "modes", NormAndScaleStatistic.__name__):
        assert word not in iterate
