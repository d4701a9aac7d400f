"""What the public mathematics takes: tensors, numpy arrays, lists and plain numbers, of the shapes
that its annotations name.

Shapes are written once, as jaxtyping annotations; `takes_arrays` holds callers to them wherever the
program runs, in a few microseconds a call, and tells in one line what was expected and what came.
"""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jaxtyping
import numpy as np
import torch
from torch import Tensor

from halfmap.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
Sizes = dict[str, tuple[Any, str]]  # of an axis (or of several): how long, and by which argument

_KINDS = {"Float": "real", "Complex": "complex", "Int": "whole", "Bool": "true or false"}


@dataclass(frozen=True)
class _Pattern:
    """One annotation: the kind of its numbers and its axes, `variadic` the place of `*name` or
    `...` among them."""

    kind: str
    axes: tuple[str, ...]
    variadic: int | None

    def described(self) -> str:
        return "(" + ", ".join(self.axes) + ("," if len(self.axes) == 1 else "") + ")"


def takes_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """The function, taking numpy arrays, lists and numbers wherever an annotation says `Tensor`,
    and refusing what has another shape.

    An array that is no tensor yet goes to the device of the first tensor among the arguments; whole
    numbers become floats where floats are asked for. Axes of one name must agree over all
    arguments.

    Raises:
        InputError: naming the argument, the shape expected and the shape that arrived.
    """
    call: Callable[..., R] = function
    names = tuple(inspect.signature(function).parameters)
    checked = [
        (place, name, patterns)
        for place, (name, parameter) in enumerate(inspect.signature(function).parameters.items())
        if (patterns := _patterns(parameter.annotation))
    ]

    @wraps(function)
    def with_arrays(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > len(names):
            return function(*args, **kwargs)  # Python's own message
        given, named, sizes = list(args), dict(kwargs), Sizes()
        for place, name, patterns in checked:
            if place < len(given):
                if given[place] is not None:
                    given[place] = _checked(name, given[place], patterns, sizes, args, kwargs)
            elif named.get(name) is not None:
                named[name] = _checked(name, named[name], patterns, sizes, args, kwargs)
        return call(*given, **named)

    return with_arrays


def _patterns(annotation: Any) -> tuple[_Pattern, ...]:
    """Of each jaxtyping annotation in it (several in a union); none, where no tensor is meant."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return tuple(p for part in typing.get_args(annotation) for p in _patterns(part))
    if not (isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)):
        return ()
    axes = tuple(annotation.dim_str.split())
    variadic = [n for n, axis in enumerate(axes) if axis == "..." or "*" in axis]
    return (_Pattern(_KINDS[annotation.dtype.__name__], axes, variadic[0] if variadic else None),)


def _checked(
    name: str, value: Any, patterns: tuple[_Pattern, ...], sizes: Sizes, args: Any, kwargs: Any
) -> Tensor:
    kind = patterns[0].kind
    if not isinstance(value, Tensor):
        others = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        value = as_tensor(name, value).to(next((a.device for a in others), "cpu"))
    tensor = _of_kind(name, value, kind)
    shape = tuple(tensor.shape)
    for pattern in patterns:
        if (found := _bound(shape, pattern, sizes)) is not None:
            for axis, size in found.items():
                sizes.setdefault(axis, (size, name))
            return tensor
    expected = " or ".join(pattern.described() for pattern in patterns)
    mentioned = {axis.lstrip("*#") for pattern in patterns for axis in pattern.axes}
    known = [f"{a} = {n} as in {by}" for a, (n, by) in sizes.items() if a in mentioned]
    raise InputError(
        f"argument {name}: expected an array of shape {expected}"
        f"{' with ' + ', '.join(known) if known else ''}, got {shape}"
    )


def as_tensor(name: str, value: Any) -> Tensor:
    """The tensor of a numpy array, a list or a number; shares memory where it can.

    Raises:
        InputError: it holds no numbers.
    """
    try:
        if not isinstance(value, np.ndarray | np.generic):
            plain = np.asarray(value)
            return torch.as_tensor(plain, dtype=_DEFAULTS.get(plain.dtype.kind))
        array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        array = array.reshape(value.shape)  # ascontiguousarray gives a number an axis
        if array.dtype.kind == "u":
            array = array.astype(np.int64)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"argument {name}: expected an array of numbers, got {type(value).__name__}"
        ) from error


# numbers of Python have no precision of their own: they take torch's
_DEFAULTS = {"f": torch.float32, "c": torch.complex64, "i": torch.int64, "b": torch.bool}


def _of_kind(name: str, tensor: Tensor, kind: str) -> Tensor:
    """The tensor in numbers of the kind asked for; whole numbers are real, and all are complex."""
    if kind == "real" and tensor.is_floating_point():
        return tensor
    found = "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"
    found = "true or false" if tensor.dtype == torch.bool else found
    if found == kind:
        return tensor
    if kind == "real" and found != "complex":
        return tensor.to(torch.get_default_dtype())
    if kind == "complex" and tensor.is_floating_point():
        return torch.complex(tensor, torch.zeros_like(tensor))
    raise InputError(f"argument {name}: expected {kind} numbers, got {tensor.dtype}")


def _bound(shape: tuple[int, ...], pattern: _Pattern, sizes: Sizes) -> dict[str, Any] | None:
    """The axes that a shape gives a length to, None where it does not fit the pattern."""
    axes, middle = pattern.axes, pattern.variadic
    if middle is None:
        if len(shape) != len(axes):
            return None
    else:
        after = len(axes) - middle - 1
        if len(shape) < middle + after:
            return None
        inner, axis = shape[middle : len(shape) - after], axes[middle]
        shape = shape[:middle] + shape[len(shape) - after :]
        axes = axes[:middle] + axes[middle + 1 :]
    found: dict[str, Any] = {}
    if middle is not None and axis != "..." and "#" not in axis and axis != "*_":
        found[axis[1:]] = inner
        if axis[1:] in sizes and sizes[axis[1:]][0] != inner:
            return None
    for axis, size in zip(axes, shape, strict=True):
        if axis.isdigit():
            if size != int(axis):
                return None
        elif axis[0] == "#":
            if size != 1 and found.setdefault(axis[1:], size) != size:
                return None
        else:
            known = found.setdefault(axis, sizes[axis][0] if axis in sizes else size)
            if known != size:
                return None
    return found
