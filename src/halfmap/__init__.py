"""halfmap: cryo-EM single-particle reconstruction and classification.

One engine; the methods are combinations of score, assignment, update and search. Every command of
the command line is a function here of the same name; heavy imports happen on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_COMMANDS = (
    "abinitio",
    "class2d",
    "class3d",
    "convert",
    "demo",
    "expand",
    "fsc",
    "info",
    "join",
    "localres",
    "mask",
    "orientations",
    "postprocess",
    "project",
    "reconstruct",
    "refine",
    "ctfrefine",
    "restore",
    "resume",
    "select",
    "simulate",
    "stack",
    "subtract",
    "symmetry",
    "volume",
    "web",
)
# public name -> module that defines it; resolved lazily so that `import halfmap` stays light
_PUBLIC = {name: f"halfmap.commands.{name}" for name in _COMMANDS} | {
    "CTFParameters": "halfmap.transfer_function",
    "InputError": "halfmap.errors",
    "Particles": "halfmap.particles",
    "ctf": "halfmap.transfer_function",
    "euler_to_matrix": "halfmap.so3",
    "fourier_shell_correlation": "halfmap.resolution",
    "load_particles": "halfmap.particles",
    "matrix_to_euler": "halfmap.so3",
    "options_of": "halfmap.options",
    "read_map": "halfmap.io.mrc",
    "resolution_at": "halfmap.resolution",
    "symmetry_matrices": "halfmap.symmetries",
    "write_map": "halfmap.io.mrc",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'halfmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
