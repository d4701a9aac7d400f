"""One live line per job on the terminal, or one plain line per iteration where there is no
terminal."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from halfmap.workspace.machine import peak_memory_bytes

_PLAIN_SECONDS = 60.0  # without a terminal, a word this often inside a long iteration


class Progress:
    """Where a job stands: stage, iteration, particles done, resolution, elapsed, time left, memory.

    On a terminal this is one line that is redrawn, on stderr; elsewhere (a log file, a pipe) a line
    per finished iteration and one a minute within. `iterations` is the number expected, for the
    time left; without it the time left is that of the iteration. `quiet` prints nothing.
    """

    def __init__(
        self,
        title: str,
        *,
        iterations: int | None = None,
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self._title, self._iterations, self._quiet = title, iterations, quiet
        self._console = console or Console(file=sys.stderr)
        self._live: RichProgress | None = None
        self._task: Any = None
        self._start = time.monotonic()
        self._iteration, self._done, self._total, self._label = 0, 0, 0, ""
        self._first_iteration: int | None = None
        self._iteration_start = self._last_word = self._start
        self._resolution_angstrom: float | None = None

    def __enter__(self) -> "Progress":
        self._start = time.monotonic()
        if not self._quiet and self._console.is_terminal:
            columns = [
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=20),
                _Numbers(self),
            ]
            self._live = RichProgress(
                *columns, console=self._console, transient=True, refresh_per_second=4
            )
            self._live.start()
            self._task = self._live.add_task(self._title, total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start_iteration(self, iteration: int, total_particles: int, label: str = "") -> None:
        """Begin (or within an iteration begin the next stage of) `iteration`, over
        `total_particles`."""
        now = time.monotonic()
        if iteration != self._iteration or self._first_iteration is None:
            self._iteration_start = now
        self._first_iteration = (
            iteration if self._first_iteration is None else self._first_iteration
        )
        self._iteration, self._done, self._total, self._label = iteration, 0, total_particles, label
        self._last_word = now
        if self._live is not None:
            self._live.reset(
                self._task,
                total=total_particles,
                description=f"{self._title} {iteration}{self._of()} {label}".rstrip(),
            )

    def advance(self, particles: int) -> None:
        """Tell that `particles` more are done."""
        self._done += particles
        if self._live is not None:
            self._live.update(self._task, completed=self._done)
        elif not self._quiet and time.monotonic() - self._last_word > _PLAIN_SECONDS:
            self._last_word = time.monotonic()
            self._print(
                f"{self._title} {self._iteration}{self._of()} {self._label}: {self._numbers()}"
            )

    def finish_iteration(self, summary: str, *, resolution_angstrom: float | None = None) -> None:
        """End the iteration with its one-line `summary`, which stays on the terminal; the
        resolution is shown from now on."""
        self._resolution_angstrom = resolution_angstrom
        seconds = time.monotonic() - self._iteration_start
        self._print(
            f"{self._title} {self._iteration}{self._of()}: {summary} ({_duration(seconds)})"
        )

    def note(self, message: str) -> None:
        """Print a line that stays (a warning, a step that is no iteration)."""
        self._print(message)

    def _print(self, line: str) -> None:
        if not self._quiet:
            console = self._live.console if self._live is not None else self._console
            console.print(Text(line), soft_wrap=True)

    def _of(self) -> str:
        return f"/{self._iterations}" if self._iterations else ""

    def _numbers(self) -> str:
        parts = [f"{self._done}/{self._total}"] if self._total else []
        parts += [f"{self._resolution_angstrom:.1f} Å"] if self._resolution_angstrom else []
        parts.append(_duration(time.monotonic() - self._start))
        if (left := self._seconds_left()) is not None:
            parts.append(f"{_duration(left)} left")
        parts.append(f"{peak_memory_bytes() / 1e9:.1f} GB")
        return " · ".join(parts)

    def _seconds_left(self) -> float | None:
        """Seconds to the end of this iteration at its own pace, and of the job at the mean pace of
        its iterations."""
        now = time.monotonic()
        if not self._done or not self._total or self._first_iteration is None:
            return None
        share = min(1.0, self._done / self._total)
        this = (now - self._iteration_start) * (1 - share) / share
        if not self._iterations:
            return this
        passed = self._iteration - self._first_iteration + share
        return max(
            this, (now - self._start) / passed * (self._iterations - self._iteration + 1 - share)
        )


class _Numbers(ProgressColumn):
    """The numbers behind the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress._numbers())


def _duration(seconds: float) -> str:
    """12.3 s, 4:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
