"""The gallery of the documentation: every script runs at a small size and shows what it says (each
ends with what its picture shows as an assertion), is short, and uses public functions alone."""

import ast
import importlib
import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("*/plot_*.py"))
TOPICS = 28
LONGEST = 80  # lines: text, code, comment and empty ones
SLOW: set[str] = (
    set()
)  # by the number of the topic: more than some five seconds at their small size


def _number(path: Path) -> str:
    return path.stem.split("_")[1]


def _marked(path: Path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (_number(path) in SLOW))


@pytest.mark.parametrize("path", [_marked(path) for path in SCRIPTS])
def test_it_runs_and_shows_what_it_says(path: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HALFMAP_GALLERY", "small")
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(tmp_path)
    try:
        runpy.run_path(str(path))
        figures = [plt.figure(n) for n in plt.get_fignums()]
        assert figures
        for axes in (axes for figure in figures for axes in figure.axes):
            for image in axes.images:
                assert np.isfinite(image.get_array()).all()
        assert all(figure.axes for figure in figures)
    finally:
        plt.close("all")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_made_of_public_functions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    used = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("halfmap"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert not alias.name.startswith("_")
                assert hasattr(module, alias.name)
                used.append(alias.name)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
    assert used
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))
    assert ".. math::" in text


@pytest.mark.slow
def test_the_tutorial_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HALFMAP_GALLERY", "small")
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(tmp_path)
    try:
        runpy.run_path(str(GALLERY.parent / "tutorial" / "plot_three_methods.py"))
    finally:
        plt.close("all")


def test_every_topic_has_its_script() -> None:
    numbers = [int(_number(path)) for path in SCRIPTS]
    assert numbers == list(range(1, TOPICS + 1))
