"""Where numba keeps what it has compiled: where it usually does, or elsewhere if nothing can be
written there."""

import os
import stat
import tempfile
from pathlib import Path

_VARIABLE = "NUMBA_CACHE_DIR"
# compiled, all kernels take about a megabyte; a full disk has not even this
_TRIAL_BYTES = 1 << 18


def choose_cache() -> bool:
    """Let numba keep compiled code in the machine's folder for temporary files where it could not
    otherwise: the package lies where nothing can be written (a container, a module system) and the
    user has no home there either, or their disk is full. Whether there is such a place at all.

    numba takes the package's own folder, else the user's cache; without either it refuses to
    compile. What the user has chosen (NUMBA_CACHE_DIR) stays, if it can be written.
    """
    import numba
    from numba.misc.appdirs import AppDirs

    usual = [Path(__file__).parent / "__pycache__", Path(AppDirs("numba", False).user_cache_dir)]
    if given := os.environ.get(_VARIABLE):
        usual.insert(0, Path(given))
    if _can_write(usual[0]) or (not given and _can_write(usual[1])):
        return True
    folder = _own_temporary_folder()
    if folder is None:
        return False
    os.environ[_VARIABLE] = str(folder)  # for processes that this one starts
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    return True


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
    except OSError:
        return False
    return True


def _own_temporary_folder() -> Path | None:
    """A folder that is this user's alone: what is in it will be run."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir(), f"halfmap-numba-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        own = not hasattr(os, "getuid") or (
            found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
        if not own or not stat.S_ISDIR(found.st_mode):
            folder = Path(tempfile.mkdtemp(prefix="halfmap-numba-"))
    except OSError:
        return None
    return folder if _can_write(folder) else None
