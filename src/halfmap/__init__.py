"""halfmap: cryo-EM single-particle reconstruction and classification.

One engine; the methods are combinations of score, assignment, update and search. Every command of
the command line is a function here of the same name; heavy imports happen on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

# public name -> module that defines it; resolved lazily so that `import halfmap` stays light
_PUBLIC = {
    "InputError": "halfmap.errors",
    "abinitio": "halfmap.commands.abinitio",
    "refine": "halfmap.commands.refine",
    "class3d": "halfmap.commands.class3d",
    "class2d": "halfmap.commands.class2d",
    "reconstruct": "halfmap.commands.reconstruct",
    "restore": "halfmap.commands.restore",
    "simulate": "halfmap.commands.simulate",
    "project": "halfmap.commands.project",
    "load_particles": "halfmap.particles",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'halfmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
