"""Processes beside the server: tasks that wait are not those that take long."""

import asyncio
import time
from pathlib import Path

from halfmap.errors import InputError
from halfmap.pages import workers
from halfmap.pages.workers import Workers


def sleeps(monkeypatch, longest: float) -> Workers:
    """Workers that may take so long over a task, and whose tasks are functions by name."""
    monkeypatch.setattr(workers, "LONGEST_SECONDS", longest)
    monkeypatch.setattr(workers, "_call", _call)
    return Workers()


def _call(function: str, *arguments) -> object:
    if function == "sleep":
        time.sleep(arguments[0])
    elif function == "die once":
        path = Path(arguments[0])
        if not path.exists():
            path.touch()
            import os

            os._exit(1)
    elif function == "die":
        import os

        os._exit(1)
    return arguments


def test_time_in_the_queue_is_not_time_at_work(monkeypatch) -> None:
    """Of tasks that are short each and long together none is refused."""
    pool = sleeps(monkeypatch, 20.0)

    async def all_at_once() -> list:
        await pool.run("warm")  # starting the process is none of it
        monkeypatch.setattr(workers, "LONGEST_SECONDS", 3.0)
        return await asyncio.gather(*(pool.run("sleep", 1.0) for _ in range(5)))

    assert asyncio.run(all_at_once()) == [(1.0,)] * 5
    pool.close()


def test_a_task_that_takes_too_long_or_dies_takes_no_other_with_it(monkeypatch, tmp_path) -> None:
    pool = sleeps(monkeypatch, 4.0)
    tasks = [
        ("sleep", 60),
        ("echo", 1),
        ("die", 2),
        ("echo", 3),
        ("die once", str(tmp_path / "died")),
        ("echo", 4),
    ]

    async def all_at_once() -> list:
        await pool.run("warm")
        asked = (pool.run(*one) for one in tasks)
        return await asyncio.gather(*asked, return_exceptions=True)

    told = asyncio.run(all_at_once())
    pool.close()
    assert isinstance(told[0], InputError)
    assert "too long" in str(told[0])
    assert isinstance(told[2], InputError)
    assert "out of memory" in str(told[2])
    assert [told[1], told[3], told[5]] == [(1,), (3,), (4,)]
    assert told[4] == (str(tmp_path / "died"),)
