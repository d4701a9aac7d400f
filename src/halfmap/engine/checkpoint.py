"""A state as named arrays and JSON, and back, bit for bit, whatever methods and statistics keep in
it.

A tree of dataclasses, tuples, lists, mappings, tensors, numpy arrays and plain values is walked:
tensors go into the arrays under the path that leads to them, a dataclass is noted by its module
and name. Reading imports that module, which may be the user's own, and accepts nothing but a
dataclass there.
"""

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmap.engine.state import State
from halfmap.errors import InputError

_PLAIN = (bool, int, float, str, type(None))


def state_to_arrays(state: State) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and JSON-able meta with `iteration` in it, for a job's checkpoint.

    Raises `InputError` where the state holds something else than the types above.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, "state", arrays)
    return arrays, {"iteration": state.iteration, "state": tree}


def state_from_arrays(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> State:
    """The state that a checkpoint holds, on the CPU.

    Raises `InputError` where a dataclass of the state is not there any more: the module that
    defines a statistic or a method of the user's own must be importable.
    """
    state = _decode(meta["state"], arrays)
    if not isinstance(state, State):
        raise InputError(f"checkpoint: expected a state, found {type(state).__name__}")
    return state


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Tensor):
        arrays[path] = value.detach().cpu().numpy()
        return {"tensor": path}
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        inside = {
            f.name: _encode(getattr(value, f.name), f"{path}.{f.name}", arrays)
            for f in dataclasses.fields(value)
        }
        return {"dataclass": f"{kind.__module__}:{kind.__qualname__}", "fields": inside}
    if isinstance(value, tuple | list):
        items = [_encode(one, f"{path}.{n}", arrays) for n, one in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, Mapping):
        pairs = {str(k): _encode(v, f"{path}.{k}", arrays) for k, v in value.items()}
        return {"mapping": pairs}
    if isinstance(value, _PLAIN):
        return {"plain": value}
    raise InputError(
        f"{path}: expected a tensor, a dataclass, a tuple, a mapping or a plain value, "
        f"got {type(value).__name__}, which no checkpoint can keep"
    )


def _decode(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    ((kind, value),) = [(k, v) for k, v in tree.items() if k != "fields"]
    if kind == "tensor":
        return torch.from_numpy(np.array(arrays[value]))
    if kind == "array":
        return arrays[value]
    if kind == "tuple":
        return tuple(_decode(one, arrays) for one in value)
    if kind == "list":
        return [_decode(one, arrays) for one in value]
    if kind == "mapping":
        return {k: _decode(one, arrays) for k, one in value.items()}
    if kind == "plain":
        return value
    inside = {name: _decode(one, arrays) for name, one in tree["fields"].items()}
    return _dataclass(value)(**inside)


def _dataclass(name: str) -> type:
    module, _, path = name.partition(":")
    try:
        kind: Any = import_module(module)
        for part in path.split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError):
        kind = None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(
            f"checkpoint: it holds a {path} of the module {module}, which is not there; "
            "resume where that module can be imported"
        )
    return kind
