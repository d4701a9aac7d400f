"""What memory this process may use, and what is said when it has run out."""

import contextlib
import math
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from halfmap.errors import MemoryShortage, asked_bytes
from halfmap.workspace.machine import peak_memory_bytes, physical_memory_bytes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CONTROL_GROUPS = Path("/sys/fs/cgroup")
# of control groups, where Linux keeps their limits
_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}
SMALLER = 0.75  # of what a job held when memory ran out, what it may stay below when it goes on
# options that make a job smaller, as they are told to whoever starts it anew
_SMALLER_JOBS = {"box": "--box", "folds": "--folds", "classes": "--classes"}


def allowed_memory_bytes() -> int:
    """The machine's memory, or less where a control group (a container, a job of Slurm) or ulimit
    lets this process have less."""
    limits = [physical_memory_bytes(), *_control_group_limits()]
    if resource is not None:
        limits += [resource.getrlimit(one)[0] for one in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min(limit for limit in limits if limit > 0)  # -1 is no limit


def _control_group_limits(
    told: Path = Path("/proc/self/cgroup"), root: Path = CONTROL_GROUPS
) -> Iterator[int]:
    """Of this process's groups and those that they are in. Of version 2 all are one tree, of
    version 1 memory has one of its own; inside a container its own group may be the root."""
    with contextlib.suppress(OSError):
        for line in told.read_text().splitlines():
            _, controller, group = line.split(":", 2)
            if controller not in _LIMITS:
                continue
            folder = Path(group)
            for one in (folder, *folder.parents):
                path = root / controller / one.relative_to("/") / _LIMITS[controller]
                with contextlib.suppress(OSError, ValueError):  # "max" is none
                    yield int(path.read_text())


def free_memory_bytes() -> int | None:
    """What the system has left for whoever asks, where it tells."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return None


def memory_shortage(error: BaseException, options: Collection[str], way_on: str) -> MemoryShortage:
    """What was asked for when memory ran out, what there is, and the way on: `way_on`, for a
    command with these options (names)."""
    asked, held = asked_bytes(error), peak_memory_bytes()
    wanted = "an array" if asked is None else f"an array of {_in_words(asked)}"
    there = f"{_in_words(allowed_memory_bytes())} may be used"
    if (free := free_memory_bytes()) is not None:
        there += f", {_in_words(free)} of the machine's are free"
    if "memory" in options:
        less = max(1, math.floor(10 * SMALLER * held / 1e9)) / 10
        way_on += f" --memory {less:g}GB (smaller batches), or where there is more memory"
    changed = [flag for name, flag in _SMALLER_JOBS.items() if name in options]
    if changed:
        way_on += f"; a job begun anew takes less with a smaller {' or '.join(changed)}"
    return MemoryShortage(
        f"memory ran out: there was no room for {wanted} beside the {_in_words(held)} at most that "
        f"this process held; {there}; {way_on}"
    )


def _in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
