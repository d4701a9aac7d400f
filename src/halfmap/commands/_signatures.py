"""Signatures and docstrings of the commands, read without importing what they compute with."""

import ast
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfmap.commands import _options


@functools.cache
def command_signature(name: str) -> Callable[..., Any]:
    """A function with the options, defaults and docstring of the command `name`, and no work in it.

    Importing a command imports torch, which takes seconds; the help of the command line, and a
    form, must not wait for that. So the `def` is read from the command's file, and its signature
    evaluated with the names of `_options` alone. The function of a package without sources is
    imported.
    """
    module = f"halfmap.commands.{name}"
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).exists():
        return getattr(importlib.import_module(module), name)
    text = Path(spec.origin).read_text(encoding="utf-8")
    # from the line of the def to the next line that begins at the margin and closes no bracket
    found = re.search(rf"^def {name}\(.*?(?=^[^\s)]|\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ImportError(f"{spec.origin}: no function {name}")
    tree = ast.parse(found[0])
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.returns = None  # what a command returns is none of the names of _options
    definition.body = definition.body[:1]  # the docstring
    names: dict[str, Any] = {**vars(_options), "__name__": module}
    exec(compile(tree, spec.origin, "exec"), names)
    return names[name]
