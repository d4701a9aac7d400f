"""One live line per job on the terminal, or one plain line per iteration where there is no
terminal; the same in a small file for readers elsewhere; and `drawing`, around every picture. None
of them ever ends a job."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from halfmap.workspace.machine import peak_memory_bytes, write_whole

STRICT_PICTURES = "HALFMAP_STRICT_PICTURES"  # environment: a picture that fails raises (tests)
PROGRESS = "progress.json"  # in the job's folder, while it runs
MESSAGES = "messages.txt"  # beside it, and kept: the lines that stay on the terminal
_SAVED_SECONDS = 1.0  # that file is written anew no more often than this
_PLAIN_SECONDS = 60.0  # without a terminal, a word this often inside a long iteration


class Progress:
    """Where a job stands: stage, iteration, particles done, what is reached, elapsed, time left,
    memory.

    On a terminal this is one line that is redrawn, on stderr; elsewhere (a log file, a pipe) a line
    per finished iteration and one a minute within. `iterations` is the most there can be: a job
    that converges ends before, so that the time left is told as "at most". `quiet` prints nothing.
    Each of `processes` has about as much done as this one.

    A line that cannot be drawn (a bug, a terminal that is gone) is given up, with one note.

    With `file` the same numbers are kept there as JSON while the job runs, for whoever follows it
    by its folder alone, `quiet` or not; and the lines that stay in `messages.txt` beside it.
    """

    def __init__(
        self,
        title: str,
        *,
        iterations: int | None = None,
        quiet: bool = False,
        processes: int = 1,
        console: Console | None = None,
        file: Path | None = None,
    ) -> None:
        self._file, self._saved = file, 0.0
        self._title, self._iterations, self._quiet = title, iterations, quiet
        self._processes = processes
        self._console = console or Console(file=sys.stderr)
        self._live: RichProgress | None = None
        self._task: Any = None
        self._failure: Exception | None = None  # of the live line: it is not drawn again
        self._outer: tuple[Progress, ...] = ()
        self._start = time.monotonic()
        self._done, self._total, self._label = 0, 0, ""
        self._iteration: int | None = None  # None in a stage that is no iteration
        self._passed = 0  # iterations of this run that are finished, and the seconds they took
        self._passed_seconds = 0.0
        self._stage_start = self._last_word = self._start
        self._reached = ""

    def __enter__(self) -> "Progress":
        self._start = time.monotonic()
        self._outer = _OPEN.get()
        for progress in self._outer:  # a job inside a job has the terminal's one live line
            progress._end_live()
        _OPEN.set((*self._outer, self))
        self._begin_live()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_live()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
        _OPEN.set(self._outer)
        for progress in self._outer[-1:]:
            progress._begin_live()

    def start_iteration(self, iteration: int, total_particles: int) -> None:
        """Begin `iteration` (1, 2, ...) over `total_particles`."""
        self._begin(iteration, total_particles, "")

    def start_stage(self, label: str, total: int) -> None:
        """Begin a stage that is no iteration, such as the final maps, over `total` particles."""
        self._begin(None, total, label)

    def _begin(self, iteration: int | None, total: int, label: str) -> None:
        self._stage_start = self._last_word = time.monotonic()
        self._iteration, self._done, self._total, self._label = iteration, 0, total, label
        self._draw(
            lambda live: live.reset(self._task, total=total or None, description=self._where())
        )
        self._save(at_once=True)

    def advance(self, particles: int) -> None:
        """Tell that this process has done `particles` more."""
        self._done += particles
        if self._processes > 1:
            self._done = min(self._done + (self._processes - 1) * particles, self._total)
        self._save()
        if self._live is not None:
            self._draw(lambda live: live.update(self._task, completed=self._done))
        elif not self._quiet and time.monotonic() - self._last_word > _PLAIN_SECONDS:
            self._last_word = time.monotonic()
            self._print(f"{self._where()}: {self._numbers()}")

    def finish_iteration(self, summary: str, *, reached: str = "") -> None:
        """End the iteration with its one-line `summary`, which stays on the terminal; what it
        `reached`, in a few words, stands in the live line from now on."""
        self._reached = reached
        seconds = time.monotonic() - self._stage_start
        self._passed, self._passed_seconds = self._passed + 1, self._passed_seconds + seconds
        self._keep(f"{self._where()}: {summary}")
        self._print(f"{self._where()}: {summary} ({_duration(seconds)})")

    def note(self, message: str) -> None:
        """Print a line that stays (a warning, a step that is no iteration)."""
        self._keep(message)
        self._print(message)

    def _begin_live(self) -> None:
        if self._quiet or self._failure is not None or not self._console.is_terminal:
            return
        columns = [
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            _Numbers(self),
        ]
        self._live = RichProgress(
            *columns, console=self._console, transient=True, refresh_per_second=4
        )
        self._draw(self._first_draw)

    def _first_draw(self, live: RichProgress) -> None:
        self._task = live.add_task(self._where(), total=self._total or None, completed=self._done)
        live.start()

    def _draw(self, action: Callable[[RichProgress], object]) -> None:
        """Change the live line, if there is one: a failure ends the line, never the job."""
        if self._live is None:
            return
        try:
            action(self._live)
        except Exception as error:
            self._failure = error
        if self._failure is not None:
            self._end_live()

    def _end_live(self) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()
        except Exception as error:
            self._failure = error
        if self._failure is not None:
            self._print(f"no progress line from here on: {_reason(self._failure)}")

    def _keep(self, line: str) -> None:
        """Put a line into the job's folder, without times, which stand elsewhere."""
        if self._file is None:
            return
        with (
            contextlib.suppress(OSError),
            open(self._file.with_name(MESSAGES), "a", encoding="utf-8") as kept,
        ):
            kept.write(" ".join(line.split()) + "\n")

    def _print(self, line: str) -> None:
        if self._quiet:
            return
        console = self._live.console if self._live is not None else self._console
        try:
            console.print(Text(line), soft_wrap=True)
        except Exception:  # the terminal is gone: nobody is there to be told
            self._quiet = True
            self._end_live()

    def _where(self) -> str:
        """`refine 3/20`, or `refine final maps`."""
        of = f"/{self._iterations}" if self._iterations else ""
        number = "" if self._iteration is None else f"{self._iteration}{of}"
        return " ".join(word for word in (self._title, number, self._label) if word)

    def _numbers(self) -> str:
        parts = [f"{self._done}/{self._total}"] if self._total else []
        parts += [self._reached] if self._reached else []
        parts.append(_duration(time.monotonic() - self._start))
        parts += [left] if (left := self._left()) else []
        parts.append(f"{peak_memory_bytes() / 1e9:.1f} GB")
        return " · ".join(parts)

    def _left(self) -> str:
        """Time to the end of the iteration or stage, and at most to the end of the iterations."""
        this, most = self._seconds_left()
        if this is None:
            return ""
        if most is None or most <= this:
            return f"{_duration(this)} left"
        return f"{_duration(this)} of this iteration, at most {_duration(most)} left"

    def _seconds_left(self) -> tuple[float | None, float | None]:
        """Seconds to the end of the iteration or stage at its own pace, and at most to the end of
        the iterations at their mean pace: they end before where the job converges. None where it
        is not known."""
        if not self._done or not self._total:
            return None, None
        share = min(1.0, self._done / self._total)
        spent = time.monotonic() - self._stage_start
        this = spent * (1 - share) / share
        if self._iteration is None or not self._iterations:
            return this, None
        pace = (self._passed_seconds + spent) / (self._passed + share)
        return this, this + pace * max(0, self._iterations - self._iteration)

    def _save(self, *, at_once: bool = False) -> None:
        """Write the file, if there is one and it is time; a reader sees the whole of it or the one
        before. A disk that is full or gone ends nothing."""
        now = time.monotonic()
        if self._file is None or not (at_once or now - self._saved > _SAVED_SECONDS):
            return
        self._saved = now
        this, most = self._seconds_left()
        told = {
            "iteration": self._iteration,
            "iterations": self._iterations,
            "stage": self._label,
            "done": self._done,
            "total": self._total,
            "elapsed_seconds": now - self._start,
            "stage_seconds_left": this,
            "most_seconds_left": most,
            "memory_bytes": peak_memory_bytes(),
            "written": time.time(),
        }
        with contextlib.suppress(OSError):
            # not durable: once a second, and worth nothing after a crash
            write_whole(self._file, json.dumps(told), durable=False)


# the progress lines that are open in this thread, the innermost last
_OPEN: ContextVar[tuple[Progress, ...]] = ContextVar("open progress lines", default=())


@contextmanager
def drawing(picture: str | Path) -> Iterator[None]:
    """Around every picture that a job draws: what goes wrong there is one note on the job's
    progress line, "could not draw map.png: reason", and the job goes on.

    With the environment variable `HALFMAP_STRICT_PICTURES` set it is raised, as tests ask.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(STRICT_PICTURES):
            raise
        message = f"could not draw {Path(picture).name}: {_reason(error)}"
        if progress := _OPEN.get()[-1:]:
            progress[0].note(message)
        else:
            print(message, file=sys.stderr)


class _Numbers(ProgressColumn):
    """The numbers behind the bar. It is drawn by a thread of its own, which only notes a failure:
    the next change of the line ends it."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        try:
            return Text(self._progress._numbers())
        except Exception as error:
            self._progress._failure = error
            return Text("")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _duration(seconds: float) -> str:
    """12.3 s, 4:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
