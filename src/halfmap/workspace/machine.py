"""What halfmap asks of the machine: its name and versions, memory and time used, files that are
safe against a kill."""

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import halfmap
from halfmap.errors import InputError


def versions() -> dict[str, str]:
    """Versions of halfmap, Python and the libraries that compute; none of them is loaded for it."""
    found = {"halfmap": halfmap.__version__, "python": platform.python_version()}
    for name in ("torch", "numba", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Host name, system, processor and number of cores."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, but bytes on macOS


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """Let torch and numba use so many CPU threads; None leaves them as they are.

    Raises:
        InputError: fewer than 1, or more than there are processors.
    """
    if threads is None:
        return
    if not 1 <= threads <= processors():
        raise InputError(
            f"--threads {threads}: expected 1 to {processors()}, the processors of this machine"
        )
    import numba
    import torch

    numba.set_num_threads(
        threads
    )  # starts numba's threads, which sets OpenMP's count anew: before torch's
    torch.set_num_threads(threads)


def lock_folder(folder: Path) -> int | None:
    """Hold the folder for this process; None if another holds it. The system lets go when the
    process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # a file system without locks: go on unprotected
        pass
    return handle


def rename_durably(temporary: Path, final: Path) -> None:
    """Rename a synced file over another, and sync the folder: after a crash the old or the new file
    is there, whole."""
    os.replace(temporary, final)
    handle = os.open(final.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        os.fsync(handle)
    os.close(handle)
