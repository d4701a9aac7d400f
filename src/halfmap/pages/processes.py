"""Jobs that were started from the page: processes of their own, that outlive the server."""

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halfmap.errors import InputError
from halfmap.reports.jobs import job_record

LOGS = ".halfmap"  # in the served folder: what the jobs print
_KEPT = 20  # starts that the page still tells of
_TAIL_BYTES = 4000
MOST_RUNNING = 16  # started from one page and at work at once


@dataclass
class Start:
    """One command that was started: its process, its words, and where it prints to."""

    number: int
    words: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: Path
    out: str | None
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def told(self) -> dict[str, Any]:
        """What the page shows."""
        code = self.process.poll()
        status = "running" if code is None else "finished" if code == 0 else "refused"
        message = ""
        if status == "refused":
            lines = [line for line in tail(self.log).splitlines() if line.strip()]
            message = lines[-1] if lines else f"ended with {code}"
        shown = {"number": self.number, "command": self.words[0], "status": status}
        return {
            **shown,
            "message": message,
            "out": self.out,
            "shell": shlex.join(["halfmap", *self.words]),
            "when": self.when,
        }


@dataclass
class Processes:
    """Starts, stops and resumes jobs below `root`."""

    root: Path
    starts: list[Start] = field(default_factory=list)

    def start(self, words: Sequence[str], out: str | None) -> dict[str, Any]:
        """Run `halfmap WORDS` in the served folder: a list of arguments, never a shell.

        Raises:
            InputError: too many at work.
        """
        if sum(one.process.poll() is None for one in self.starts) >= MOST_RUNNING:
            raise InputError(f"{MOST_RUNNING} jobs of this page are at work; wait for one to end")
        folder = self.root / LOGS
        if folder.is_symlink():
            raise InputError(f"{folder}: a folder was expected, this is a link")
        folder.mkdir(mode=0o700, exist_ok=True)
        number = max((one.number for one in self.starts), default=0) + 1
        log = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{number}-{words[0]}.log"
        with open(log, "wb") as printed:
            process = subprocess.Popen(
                [*halfmap_command(), *words],
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it goes on when the server ends
            )
        self.starts.append(Start(number, tuple(words), process, log, out))
        del self.starts[:-_KEPT]
        return self.starts[-1].told()

    def told(self) -> list[dict[str, Any]]:
        """All starts, the last first; those that have come to an end are reaped."""
        return [one.told() for one in reversed(self.starts)]

    def stop(self, job: str) -> None:
        """Ask a running job to stop, as Ctrl-C does: it can be resumed.

        Raises:
            InputError: it does not run, or not on this machine.
        """
        record = job_record(self.root, job)
        if record["status"] != "running":
            raise InputError(f"{job}: the job is {record['status']}, there is nothing to stop")
        host = record.get("machine", {}).get("host")
        if host != platform.node():
            raise InputError(f"{job}: the job runs on {host}; stop it there")
        process = record.get("process")
        if not isinstance(process, int) or process <= 1:
            raise InputError(f"{job}: its process is not known; stop it where it was started")
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)

    def log(self, number: int) -> str:
        """The end of what a start has printed.

        Raises:
            InputError: no such start.
        """
        for one in self.starts:
            if one.number == number:
                return tail(one.log)
        raise InputError("no such start")


def halfmap_command() -> list[str]:
    """How this installation's `halfmap` is called."""
    script = Path(sys.executable).with_name("halfmap")
    return [str(script)] if script.exists() else [sys.executable, "-m", "halfmap.cli.main"]


def tail(path: Path) -> str:
    """The last words of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
