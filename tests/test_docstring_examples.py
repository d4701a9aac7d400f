"""Examples in docstrings: of every command a line that its parser takes and the same in Python, of
other functions Python that runs. `benchmarks/run.py docstring_examples` counts who has none."""

import ast
import doctest
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

import halfmap
from package_walk import SOURCE
from test_docs import COMMANDS

ROOT = Path(__file__).parents[1]
WITH_PYTHON = sorted(path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text("utf-8"))


def _module(path: Path) -> str:
    return ".".join(["halfmap", *path.relative_to(SOURCE).with_suffix("").parts])


@pytest.mark.parametrize("path", WITH_PYTHON, ids=_module)
def test_python_in_docstrings_runs(path: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(_module(path)), report=False)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_job_has_an_example_that_its_parser_takes(name: str) -> None:
    (line,) = re.findall(
        r"^Example: halfmap (.+?)(?=\n\n|\Z)",
        inspect.getdoc(getattr(halfmap, name)),
        re.MULTILINE | re.DOTALL,
    )
    words = shlex.split(" ".join(line.split()))
    assert words[0] == name
    COMMANDS[name].make_context(name, words[1:])


def test_the_pages_of_jobs_show_the_same_call_in_python(monkeypatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    from jobs import in_python

    assert in_python("halfmap fsc a.mrc b.mrc --diameter 180") == (
        "halfmap.fsc(map1='a.mrc', map2='b.mrc', diameter_angstrom=180.0)"
    )
    for name in COMMANDS:
        shell = re.findall(
            r"^Example: (.+?)(?=\n\n|\Z)", inspect.getdoc(getattr(halfmap, name)), re.M | re.S
        )
        (call,) = [
            node for node in ast.walk(ast.parse(in_python(shell[0]))) if isinstance(node, ast.Call)
        ]
        arguments = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
        inspect.signature(getattr(halfmap, name)).bind(**arguments)


def test_public_names_have_examples(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "documentation", raising=False)
    from documentation import gallery_functions, has_example, public_functions

    every = dict(public_functions())
    public = [getattr(halfmap, name) for name in halfmap.__all__]
    without = [f.__name__ for f in public if callable(f) and not has_example(f)]
    print(f"{sum(not has_example(f) for f in every.values())} of {len(every)} without an example")
    assert not without
    assert not [name for name, function in every.items() if not inspect.getdoc(function)]
    used = [name for name in gallery_functions() if name in every]
    assert len(used) > 50
    assert not [name for name in used if not has_example(every[name])]
