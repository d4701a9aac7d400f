"""The jaxtyping annotations of all modules are checked in tests: the walk misses none, and a wrong
shape is refused at the call."""

import ast
import importlib
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from halfmap.alignment import Alignment
from halfmap.restoration import divide
from package_walk import SOURCE, UNCHECKED, checked_modules, package_modules

# what takes arrays refuses shapes itself (test_arrays): these are functions that do not
UNMOVED = Alignment(torch.eye(3), torch.zeros(3), False, 1.0)


def test_the_walk_finds_every_file_of_the_package():
    files = {
        ".".join(("halfmap", *path.relative_to(SOURCE).with_suffix("").parts))
        for path in SOURCE.rglob("*.py")
    }
    assert {name.removesuffix(".__init__") for name in files} - {"halfmap"} == set(
        package_modules()
    )


def test_every_annotated_module_is_checked():
    """Modules that use jaxtyping are hooked; what is left out by name holds no shapes."""
    checked = set(checked_modules())
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        annotated = any(
            isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
            for node in ast.walk(tree)
        )
        name = ".".join(("halfmap", *path.relative_to(SOURCE).with_suffix("").parts))
        name = name.removesuffix(".__init__")
        if annotated:
            assert name in checked, f"{name} holds shapes, but is not checked"
    assert not any(name.startswith(UNCHECKED) for name in checked)


@pytest.mark.parametrize("name", checked_modules())
def test_a_module_is_loaded_through_the_hook(name):
    module = importlib.import_module(name)
    assert type(module.__spec__.loader).__name__ == "_JaxtypingLoader"
    assert sys.modules[name] is module


@pytest.mark.parametrize(
    "call",
    [
        lambda: UNMOVED.apply_to_map(torch.zeros(4, 4)),
        lambda: UNMOVED.apply_to_map(torch.zeros(4, 4, 5)),
        lambda: divide(torch.zeros(2, 5, dtype=torch.complex64), torch.zeros(2, 4)),
    ],
    ids=["an-image-for-a-volume", "no-cube", "samples-that-differ"],
)
def test_a_wrong_shape_is_refused_at_the_call(call):
    with pytest.raises(TypeCheckError):
        call()
