"""The progress line tells where a job stands, and never ends one."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from halfmap.workspace.progress import STRICT_PICTURES, Progress, _duration, drawing


def terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=120)


def run_progress(*, terminal: bool, quiet: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with Progress("refine", iterations=2, quiet=quiet, console=console) as progress:
        for iteration in (1, 2):
            progress.start_iteration(iteration, 100)
            progress.advance(50)
            progress.advance(50)
            progress.finish_iteration("7.5 Å", reached="7.5 Å")
        progress.start_stage("final maps", 100)
        progress.advance(50)
    return stream.getvalue()


def test_progress_prints_one_line_per_iteration_without_a_terminal() -> None:
    lines = run_progress(terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("refine 2/2: 7.5 Å (")


def test_progress_on_a_terminal_and_quiet() -> None:
    assert "refine 1/2" in run_progress(terminal=True)
    assert run_progress(terminal=True, quiet=True) == run_progress(terminal=False, quiet=True) == ""


@pytest.mark.parametrize("iterations", [None, 2])
def test_a_stage_that_is_no_iteration_has_neither_number_nor_division(
    iterations: int | None,
) -> None:
    with Progress("refine", iterations=iterations, console=terminal(io.StringIO())) as progress:
        progress.start_stage("final maps", 100)
        assert progress._where() == "refine final maps"
        for _ in range(3):
            assert "Error" not in progress._numbers()
            progress.advance(50)  # more than there are, too


def test_the_time_left_is_that_of_the_iteration_and_at_most_that_of_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress("refine", iterations=10, console=terminal(io.StringIO())) as progress:
        now[0] = 100.0  # reading and preparing is no part of an iteration's pace
        progress.start_iteration(1, 100)
        now[0] = 110.0
        progress.advance(25)
        assert "30.0 s of this iteration, at most 6:30 left" in progress._numbers()
        now[0] = 140.0
        progress.finish_iteration("done")
        progress.start_iteration(10, 100)
        now[0] = 150.0
        progress.advance(50)
        assert "· 10.0 s left" in progress._numbers()
        progress.start_stage("final maps", 4)
        now[0] = 151.0
        progress.advance(1)
        assert "· 3.0 s left" in progress._numbers()
        assert "at most" not in progress._numbers()


def test_a_line_that_cannot_be_drawn_is_given_up_with_one_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: Progress) -> str:
        raise ZeroDivisionError("no share")

    monkeypatch.setattr(Progress, "_numbers", broken)
    stream = io.StringIO()
    with Progress("refine", iterations=2, console=terminal(stream)) as progress:
        for iteration in (1, 2):
            progress.start_iteration(iteration, 100)
            progress.advance(100)
            progress.finish_iteration("7.5 A")
    shown = stream.getvalue()
    assert shown.count("no progress line from here on: ZeroDivisionError: no share") == 1
    assert "refine 2/2: 7.5 A (" in shown


def test_a_terminal_that_is_gone_does_not_end_the_job() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with Progress("refine", iterations=1, console=terminal(Gone())) as progress:
        progress.start_iteration(1, 10)
        progress.advance(10)
        progress.finish_iteration("7.5 A")
        progress.note("a note")


def test_a_job_inside_a_job_has_the_one_live_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Progress("outer", console=terminal(stream)) as outer:
        with Progress("inner", console=terminal(stream)) as inner:
            assert outer._live is None
            inner.start_iteration(1, 10)
        assert outer._live is not None


def test_a_picture_that_fails_is_a_note_and_raises_where_tests_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="no font"), drawing("a.png"):
        raise ValueError("no font")
    monkeypatch.delenv(STRICT_PICTURES)
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    with Progress("refine", console=console), drawing("pictures/map.png"):
        raise ValueError("no font")
    assert stream.getvalue() == "could not draw map.png: ValueError: no font\n"
    with drawing("map.png"):
        raise ValueError("no font")
    assert capsys.readouterr().err == "could not draw map.png: ValueError: no font\n"
    with pytest.raises(KeyboardInterrupt), drawing("map.png"):
        raise KeyboardInterrupt


def test_durations() -> None:
    assert [_duration(seconds) for seconds in (1.23, 59.9, 61, 3723)] == [
        "1.2 s",
        "59.9 s",
        "1:01",
        "1:02:03",
    ]
