"""Shared by all tests: jaxtyping shapes are checked at every call of the package; third-party data
is found or skipped."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

SHARED_DATA = Path(
    os.environ.get("HALFMAP_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)

os.environ.setdefault("HALFMAP_STRICT_PICTURES", "1")  # a picture that fails, fails its test

_CHECKED = [
    "transfer_function",
    "fourier",
    "mask",
    "so3",
    "symmetry",
    "projection",
    "likelihood",
    "reconstruction",
    "restoration",
    "alignment",
    "resolution",
    "simulation",
    "engine",
    "pose_search",
    "methods",
    "commands",
]
# an int is a float, as everywhere in Python
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
_hook = install_import_hook([f"halfmap.{name}" for name in _CHECKED], _CHECKER)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of third-party data; a test that asks for it skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"third-party data not found at {SHARED_DATA} (set HALFMAP_SHARED_DATA)")
    return SHARED_DATA


# every device there is; "torch" is the CPU with the kernels that an accelerator would run
DEVICES = [
    "cpu",
    "torch",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]


def _use(name: str, monkeypatch) -> torch.device:
    if name == "torch":
        monkeypatch.setenv("HALFMAP_KERNELS", "torch")
    return torch.device("cpu" if name == "torch" else name)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> torch.device:
    """Each device in turn; `-k cuda` picks one."""
    return _use(request.param, monkeypatch)


@pytest.fixture(params=DEVICES[1:])
def other_device(request, monkeypatch) -> torch.device:
    """Each but the CPU with its own kernels."""
    return _use(request.param, monkeypatch)
