"""What halfmap asks of the machine: its name and versions, memory and time used, files that are
safe against a kill.

`fcntl` and `resource` are Unix. Windows has a way of its own for each of what they give: a lock
file, the times and the memory that the system tells; what it does not tell is 0.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import halfmap
from halfmap.errors import InputError
from halfmap.io.files import rename_durably

try:
    import fcntl
    import resource

    _UNIX = True
except ImportError:
    _UNIX = False


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
    if not _UNIX:
        return _windows_peak_memory_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, but bytes on macOS


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    if not _UNIX:
        return sum(os.times()[:4])
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def physical_memory_bytes() -> int:
    """Memory of this machine, in bytes."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _windows_physical_memory_bytes()


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """Let torch and numba use so many CPU threads; None leaves each at its own number.

    numba's threads are started here, before torch's number is set: starting, they set OpenMP's
    number anew, and results would depend on when that was.

    Raises:
        InputError: fewer than 1, or more than there are processors.
    """
    if threads is not None and not 1 <= threads <= processors():
        raise InputError(
            f"--threads {threads}: expected 1 to {processors()}, the processors of this machine"
        )
    import numba
    import torch

    of_torch = threads or torch.get_num_threads()
    numba.set_num_threads(threads or numba.get_num_threads())
    torch.set_num_threads(of_torch)


def lock_folder(folder: Path) -> int | None:
    """Hold the folder for this process, until the handle is closed; None if another holds it. The
    system lets go when the process ends, however it ends."""
    if not _UNIX:
        return _lock_file(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # a file system without locks: go on unprotected
        pass
    return handle


def is_held(path: Path) -> bool:
    """Whether a process at work holds a folder or file."""
    try:
        lock = lock_folder(path)
    except OSError:  # it is not there
        return False
    if lock is not None:
        os.close(lock)
    return lock is None


def hold_open(handle: int) -> None:
    """Hold an open file for as long as any process has it open under this handle: this one, and
    those that it is handed to. Where files cannot be locked nothing is held."""
    if _UNIX:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_file(folder: Path) -> int | None:
    """Where a folder cannot be locked itself: a locked file of its name in the machine's temporary
    folder, which keeps out the processes of this machine."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"halfmap_{name}.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        import msvcrt
    except ImportError:  # neither way: go on unprotected
        return handle
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        os.close(handle)
        return None
    return handle


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file, or replace it: a reader sees the old or the new one, whole, after a crash
    too if it is to be `durable`; where it cannot be written, nothing is left of the new one."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if durable:
            rename_durably(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        *((f"other_{n}", ctypes.c_size_t) for n in range(7)),
    )


class _MachineMemory(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("physical", ctypes.c_uint64),
        *((f"other_{n}", ctypes.c_uint64) for n in range(6)),
    )


def _windows_peak_memory_bytes() -> int:
    kernel = _kernel()
    if kernel is None:
        return 0
    told = _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    done = kernel.K32GetProcessMemoryInfo(process, ctypes.byref(told), told.size)
    return int(told.peak_working_set) if done else 0


def _windows_physical_memory_bytes() -> int:
    kernel = _kernel()
    if kernel is None:
        return 0
    told = _MachineMemory(size=ctypes.sizeof(_MachineMemory))
    return int(told.physical) if kernel.GlobalMemoryStatusEx(ctypes.byref(told)) else 0


def _kernel() -> Any:
    """The library of Windows that tells of memory, or None."""
    return getattr(getattr(ctypes, "windll", None), "kernel32", None)
