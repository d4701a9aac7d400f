"""halfmap: cryo-EM single-particle reconstruction and classification.

One engine; the methods are combinations of score, assignment, update and search. Every command of the command line is a
function here of the same name; heavy imports happen on first use.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

# public name -> module that defines it; resolved lazily so that `import halfmap` stays light
_PUBLIC = {
    "InputError": "halfmap.errors",
    "abinitio": "halfmap.algorithms.abinitio",
    "refine": "halfmap.algorithms.refine3d",
    "class3d": "halfmap.algorithms.class3d",
    "class2d": "halfmap.algorithms.class2d",
    "reconstruct": "halfmap.algorithms.reconstruct3d",
    "restore": "halfmap.restore",
    "simulate": "halfmap.algorithms.simulation",
    "project": "halfmap.reproject",
    "load_particles": "halfmap.particles",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'halfmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing the submodule `halfmap.restore` must not hide the function `halfmap.restore`: such names stay functions."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
