"""Jobs that were started from the page: processes of their own, that outlive the server.

A process holds the log that it prints to for as long as it lives, and beside the log stands what
was started: by these a server that comes back knows it again.
"""

import contextlib
import json
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
from halfmap.workspace.machine import hold_open, is_held, write_whole

LOGS = ".halfmap"  # in the served folder: what the jobs print
_MOST_LOGS = 500  # the last ones, among which a server that comes back looks for processes at work
_KEPT = 20  # starts that the page still tells of
_TAIL_BYTES = 4000
MOST_RUNNING = 16  # started from one page and at work at once


STOPPED = (130, -signal.SIGTERM)  # how a command ends that was told to


@dataclass
class Start:
    """One command that was started: its words, its process (None where an earlier server started
    it), the process' number, and where it prints to."""

    number: int
    words: tuple[str, ...]
    process: subprocess.Popen[bytes] | None
    pid: int
    log: Path
    out: str | None
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def is_alive(self) -> bool:
        """Whether it is at work."""
        return is_held(self.log) if self.process is None else self.process.poll() is None

    def told(self) -> dict[str, Any]:
        """What the page shows."""
        status, message = self._status()
        shown = {"number": self.number, "command": self.words[0], "status": status}
        return {
            **shown,
            "message": message,
            "out": self.out,
            "shell": shlex.join(["halfmap", *self.words]),
            "when": self.when,
        }

    def _status(self) -> tuple[str, str]:
        if self.is_alive:
            return "running", ""
        _beside(self.log).unlink(missing_ok=True)
        lines = [line for line in tail(self.log).splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        if self.process is None:  # its code was another server's to know: its last line tells
            stopped = last.startswith("halfmap: stopped")
            refused = not stopped and last.startswith("halfmap: ")
        else:
            stopped = self.process.returncode in STOPPED
            refused = not stopped and self.process.returncode != 0
            last = last or f"ended with {self.process.returncode}"
        status = "stopped" if stopped else "refused" if refused else "finished"
        return status, last if refused else ""

    def keep(self) -> None:
        """Put what was started beside its log, for a server that comes after this one."""
        told = {"number": self.number, "words": self.words, "pid": self.pid}
        write_whole(_beside(self.log), json.dumps({**told, "out": self.out, "when": self.when}))


def _beside(log: Path) -> Path:
    return log.with_suffix(".json")


def _known_again(log: Path) -> Start | None:
    """What an earlier server started and is at work, by its log. Whoever else can write into the
    folder must not choose what is stopped: both files are this user's own."""
    if not is_held(log):
        return None
    try:
        if not (_is_own(log) and _is_own(_beside(log))):
            return None
        told = json.loads(_beside(log).read_text(encoding="utf-8"))
        words = tuple(str(word) for word in told["words"])
        number, pid, when = int(told["number"]), int(told["pid"]), str(told["when"])
        out = None if told["out"] is None else str(told["out"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Start(number, words, None, pid, log, out, when) if words and pid > 1 else None


def _is_own(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


@dataclass
class Processes:
    """Starts, stops and resumes jobs below `root`."""

    root: Path
    starts: list[Start] = field(default_factory=list)

    def __post_init__(self) -> None:
        folder = self.root / LOGS
        if folder.is_dir() and not folder.is_symlink():
            logs = sorted(folder.glob("*.log"))[-_MOST_LOGS:]
            self.starts += [one for log in logs if (one := _known_again(log))]

    def start(self, words: Sequence[str], out: str | None) -> dict[str, Any]:
        """Run `halfmap WORDS` in the served folder: a list of arguments, never a shell.

        Raises:
            InputError: too many at work.
        """
        if sum(one.is_alive for one in self.starts) >= MOST_RUNNING:
            raise InputError(f"{MOST_RUNNING} jobs of this page are at work; wait for one to end")
        folder = self.root / LOGS
        if folder.is_symlink():
            raise InputError(f"{folder}: a folder was expected, this is a link")
        folder.mkdir(mode=0o700, exist_ok=True)
        number = max((one.number for one in self.starts), default=0) + 1
        log = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{number}-{words[0]}.log"
        with open(log, "wb") as printed:
            hold_open(printed.fileno())  # the process has it too, and longer
            process = subprocess.Popen(
                [*halfmap_command(), *words],
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it goes on when the server ends
            )
        start = Start(number, tuple(words), process, process.pid, log, out)
        with contextlib.suppress(OSError):
            start.keep()
        ended = [one for one in self.starts if not one.is_alive]
        for one in ended[: max(0, len(self.starts) + 1 - _KEPT)]:
            self.starts.remove(one)
        self.starts.append(start)
        return start.told()

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

    def stop_start(self, number: object) -> None:
        """Ask a command that was started here to stop, as Ctrl-C does; one with a job folder can be
        resumed, of another nothing is left.

        Raises:
            InputError: no such start, or it has come to an end.
        """
        one = self._start(number)
        if not one.is_alive:
            raise InputError(f"{one.words[0]}: it has come to an end, there is nothing to stop")
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGTERM)

    def log(self, number: int) -> str:
        """The end of what a start has printed.

        Raises:
            InputError: no such start.
        """
        return tail(self._start(number).log)

    def _start(self, number: object) -> Start:
        for one in self.starts:
            if type(number) is int and one.number == number:
                return one
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
