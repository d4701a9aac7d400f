"""Processes beside the server for what takes long or much memory: surfaces, pictures, posteriors.

The server itself stays small and answers at once; a process ends when nobody has asked for a
while, and a new one takes its place when it dies.
"""

import asyncio
import importlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from halfmap.errors import InputError

IDLE_SECONDS = 120.0
LONGEST_SECONDS = 120.0  # of one task
_AT_ONCE = 256  # tasks that wait, six for each of 40 pages; more are refused: a queue has an end


class Workers:
    """One process, started when first needed. Tasks take turns: none is given to it before the one
    at work has ended, so that waiting is not counted as working, and a task that breaks or
    outlasts the process takes no other one with it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._last = 0.0
        self._waiting = 0

    async def run(self, function: str, *arguments: Any) -> Any:
        """The value of a function of this package, from the other process: `pages.pictures:surface`
        is named, so that what it computes with is loaded there and not here.

        Raises:
            InputError: what the function raises; it took too long; too many wait.
        """
        if self._waiting >= _AT_ONCE:
            raise InputError("too many pictures are being made; try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._run(function, *arguments)
        finally:
            self._waiting -= 1
            self._last = time.monotonic()

    async def _run(self, function: str, *arguments: Any) -> Any:
        for attempt in range(2):
            try:
                future = self._started().submit(_call, function, *arguments)
                return await asyncio.wait_for(asyncio.wrap_future(future), LONGEST_SECONDS)
            except BrokenProcessPool:  # the process died: a new one tries once more
                self.close()
                if attempt:
                    raise InputError("the picture could not be made: out of memory?") from None
            except TimeoutError:
                self.close()
                raise InputError("the picture took too long to make") from None
        raise AssertionError

    def rest(self) -> None:
        """End the process if nobody has asked for a while."""
        if self._pool and not self._waiting and time.monotonic() - self._last > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        return self._pool


def _call(function: str, *arguments: Any) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(f"halfmap.{module}"), name)(*arguments)


def _begin() -> None:
    """In the new process: it is not to slow the jobs that run beside it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "nice"):
        os.nice(5)
