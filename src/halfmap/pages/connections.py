"""Connections that are opened and then say nothing: enough of them would take all there are."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENT_SECONDS = 10.0  # a request's line and headers come within this


class Impatient(H11Protocol):
    """uvicorn's connection, closed where a request that was begun, or should have been, is not
    whole after `SILENT_SECONDS`; who is answered may take any time to read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answered: object = None
        self._wait()

    def _wait(self) -> None:
        self.loop.call_later(SILENT_SECONDS, self._look)

    def _look(self) -> None:
        """Close what still waits for the request that it waited for at the last look."""
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._answered is self.cycle:
            self.transport.close()
            return
        self._answered = self.cycle if idle else self
        self._wait()
