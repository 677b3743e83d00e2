"""Clients that keep the server waiting: half a request that was sent, an answer that is not taken.

uvicorn waits for both without end, and each of them holds an open file.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# For how long a client may keep the server waiting. A body that is late has been answered with 408 before.
SECONDS = {"request": 10.0, "body": 70.0, "answer": 60.0}
_LOOK_SECONDS = 1.0


class Connection(H11Protocol):
    """A connection that ends when its client is late.

    As many may be open as uvicorn's ``limit_concurrency`` says. A further one takes the place of the one whose client
    has used up most of its time. Who has sent a request and waits for the server keeps its place.
    """

    _awaited: object = None
    _since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._look()
        # uvicorn would also count what connections do that were cut and have not ended yet.
        most, self.limit_concurrency = self.limit_concurrency, None
        while most is not None and len(self.connections) >= most:
            others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
            latest = max(others, key=Connection.lateness, default=self)
            if latest is self or not latest.lateness():
                # Then uvicorn answers this one with 503.
                self.limit_concurrency = 0
                break
            latest.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def lateness(self) -> float:
        """Which part of its time the client has used up; 0 if it is the client that waits."""
        what, now = self._waits_for(), self.loop.time()
        if (what, self.cycle) != self._awaited:
            self._awaited, self._since = (what, self.cycle), now
        return (now - self._since) / SECONDS[what] if what else 0.0

    def cut(self) -> None:
        """Close it at once, with whatever is still to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def _waits_for(self) -> str:
        if self.transport.get_write_buffer_size():
            return "answer"
        if self.cycle is not None and self.cycle.more_body:
            return "body"
        return "request" if self.cycle is None or self.cycle.response_complete else ""

    def _look(self) -> None:
        if self.lateness() > 1:
            self.cut()
        else:
            self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)
