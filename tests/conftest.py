"""Shared by all tests: jaxtyping shapes are checked at every call of the package; third-party data
is found or skipped."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch: see `halfmap.cli.main`
import pytest
import torch
from jaxtyping import install_import_hook

from package_walk import checked_modules, is_unchecked

SHARED_DATA = Path(
    os.environ.get("HALFMAP_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)


class _Unchecked(MetaPathFinder):
    """Finds the modules of `UNCHECKED` before the hook, which takes a package for all under it."""

    def find_spec(self, fullname, path=None, target=None):
        return PathFinder.find_spec(fullname, path, target) if is_unchecked(fullname) else None


os.environ.setdefault("HALFMAP_STRICT_PICTURES", "1")  # a picture that fails, fails its test
# an int is a float, as everywhere in Python
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(checked_modules(), CHECKER)
sys.meta_path.insert(0, _Unchecked())
pytest_plugins = ("scenes",)  # fixtures for engine and pose search; after the hook is there


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
