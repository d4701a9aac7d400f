"""The modules of the package, found without importing them, and those whose shapes are checked."""

import pkgutil
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "halfmap"
# what cannot be hooked: numba compiles the kernels from their own source; typer reads the
# annotations of the command line's functions
UNCHECKED = (
    "halfmap.kernels.cpu",
    "halfmap.kernels.cpu_slices",
    "halfmap.kernels.cpu_sums",
    "halfmap.cli",
)


def package_modules() -> list[str]:
    """Every module of the package, found by walking its folders; nothing is imported."""
    found, folders = [], [("halfmap.", SOURCE)]
    for prefix, folder in folders:  # grows while it is walked
        for module in pkgutil.iter_modules([str(folder)], prefix):
            found.append(module.name)
            if module.ispkg:
                folders.append((f"{module.name}.", folder / module.name.rsplit(".", 1)[1]))
    return sorted(found)


def checked_modules() -> list[str]:
    """Those whose shapes are checked: all but `UNCHECKED` and what lies in it."""
    return [name for name in package_modules() if not is_unchecked(name)]


def is_unchecked(name: str) -> bool:
    return any(name == skipped or name.startswith(f"{skipped}.") for skipped in UNCHECKED)
