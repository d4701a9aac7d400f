"""A job whose process is really killed: SIGKILL, as the out-of-memory killer or a scheduler does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import halfmap
from halfmap.workspace.job import load_checkpoint

LONGEST_SECONDS = 240


def kill_after_checkpoint(
    command: str, *inputs: Path, out: Path, after: int, part: str = "", **options
) -> None:
    """`halfmap.command(*inputs, out, **options)` in a process of its own, killed as soon as the
    checkpoint of iteration `after` lies on the disk, in the job's folder or the `part` of it."""
    call = f"halfmap.{command}(*{[str(path) for path in inputs]!r}, {str(out)!r}, **{options!r})"
    source = str(Path(halfmap.__file__).parents[1])
    script = f"import sys; sys.path.insert(0, {source!r}); import halfmap; {call}"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + LONGEST_SECONDS
        while _last_checkpoint(out / part) < after:
            assert process.poll() is None, f"ended before iteration {after} was done"
            assert time.monotonic() < deadline, f"iteration {after} takes too long"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the job was finished before it could be killed"


def _last_checkpoint(folder: Path) -> int:
    checkpoint = load_checkpoint(folder)
    return 0 if checkpoint is None else int(checkpoint[1]["iteration"])
