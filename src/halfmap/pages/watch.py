"""Follows a folder of jobs by its files alone, for as long as somebody looks."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfmap.errors import InputError
from halfmap.reports.jobs import find_jobs, job_row, parents, stamp
from halfmap.workspace.records import as_json

LOOK_SECONDS = 0.5  # a page is at most this, and the time to read what changed, behind the files
SEARCH_SECONDS = 3.0  # new folders are looked for less often than known ones are read
RUNNING_AGAIN_SECONDS = 5.0  # a running job is asked whether it lives still, this often
BEAT_SECONDS = 15.0  # something is sent this often, so that proxies keep the line open
_SENT_AT_ONCE = 500  # rows in one message


@dataclass
class Watch:
    """The rows of all jobs below `root`, as of the last look.

    `rows` is replaced, never changed: who reads it sees one moment. `version` counts its changes.
    A reader that is slow, or never reads, costs nothing but its own line: it is given what is new
    since what it was given last, not everything that was.
    """

    root: Path
    starts: Callable[[], list[dict[str, Any]]] = list
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 0
    _stamps: dict[str, tuple[float, ...]] = field(default_factory=dict)
    _asked: dict[str, float] = field(default_factory=dict)
    _searched: float = -SEARCH_SECONDS
    _found: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _listeners: int = 0
    _looking: threading.Lock = field(default_factory=threading.Lock)
    _task: asyncio.Task[None] | None = None

    def look(self, *, search: bool = False) -> bool:
        """Read what has changed since the last look; whether anything had. One thread at a time."""
        with self._looking:
            return self._look(search=search)

    def look_since(self, moment: float) -> None:
        """Look for jobs, unless that was begun after `moment` and has ended by now: of many pages
        that open at once the first looks, and the others wait for it. What was known before may be
        gone, and what is gone is asked for in vain."""
        with self._looking:
            if self._searched <= moment:
                self._look(search=True)

    def _look(self, *, search: bool) -> bool:
        now = time.monotonic()
        if search or now - self._searched > SEARCH_SECONDS or not self._found:
            self._found, self._searched = find_jobs(self.root), now
        known, rows, changed = set(self._found), {}, False
        for job in self._found:
            mark = stamp(self.root, job)
            before = self.rows.get(job)
            alive = before is not None and before["status"] == "running"
            again = alive and now - self._asked.get(job, 0) > RUNNING_AGAIN_SECONDS
            if before is not None and mark == self._stamps.get(job) and not again:
                rows[job] = before
                continue
            try:
                row = job_row(self.root, job)
            except (InputError, OSError, KeyError, TypeError, ValueError):
                continue  # deleted, or half written, under our eyes
            row["parents"] = parents(self.root, job, known)
            row["stamp"] = f"{hash(mark) & 0xFFFFFFFF:x}"
            self._stamps[job], self._asked[job] = mark, now
            rows[job] = as_json(row)
            changed |= rows[job] != before
        changed |= rows.keys() != self.rows.keys()
        if changed:
            self.rows, self.version = rows, self.version + 1
        return changed

    async def follow(self) -> AsyncIterator[str]:
        """Server-sent events: first all rows, then those that changed and the names of those that
        are gone, and a comment now and then."""
        self._listeners += 1
        sent: dict[str, dict[str, Any]] = {}
        told: list[dict[str, Any]] | None = None
        try:
            yield "retry: 1000\n\n"
            await asyncio.to_thread(self.look_since, time.monotonic() - LOOK_SECONDS / 5)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._keep_looking())
            while True:
                rows, starts, event = self.rows, self.starts(), self._changed
                new = [row for job, row in rows.items() if sent.get(job) is not row]
                gone = [job for job in sent if job not in rows]
                if new or gone or told is None or starts != told:
                    first = told is None
                    for at in range(0, max(1, len(new)), _SENT_AT_ONCE):
                        part = new[at : at + _SENT_AT_ONCE]
                        message = {"rows": part, "gone": gone, "starts": starts, "all": first}
                        yield f"data: {json.dumps(message)}\n\n"
                        first = False
                    sent, told = dict(rows), starts
                try:
                    await asyncio.wait_for(event.wait(), BEAT_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._listeners -= 1

    def wake(self) -> None:
        """Let every reader see what is new."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep_looking(self) -> None:
        told = self.starts()
        while self._listeners:
            changed = await asyncio.to_thread(self.look)
            starts = self.starts()
            if changed or starts != told:
                told = starts
                self.wake()
            await asyncio.sleep(LOOK_SECONDS)
