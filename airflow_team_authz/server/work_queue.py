"""Limits how many CPU-heavy calls run at once, and how many of one caller wait, and lets callers take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

_AT_ONCE = 2
_IN_ONE_QUEUE = 6
_RETRY_SECONDS = 10

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """Queues of the event loop that take turns: many calls in one queue do not delay a call in another queue for long.

    A waiting call does not occupy a thread.
    """

    def __init__(self, in_one_queue: int = _IN_ONE_QUEUE) -> None:
        self._free = _AT_ONCE
        self._in_one_queue = in_one_queue
        self._asked: Counter[str] = Counter()
        # The next turn is that of the first queue.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def run(self, queue: str, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """The result of the call; 503 if this queue is full."""
        if self._asked[queue] >= self._in_one_queue:
            again = {"Retry-After": str(_RETRY_SECONDS)}
            raise HTTPException(503, f"much waits already ({queue}): nothing has changed, try again", again)
        self._asked[queue] += 1
        try:
            await self._turn(queue)
            try:
                return await run_in_threadpool(call, *arguments, **named)
            finally:
                self._next()
        finally:
            self._asked[queue] -= 1
            if not self._asked[queue]:
                del self._asked[queue]

    async def _turn(self, queue: str) -> None:
        if self._free:
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queue, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                # The turn came at the same moment.
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            queue = next(iter(self._waiting))
            waiting = self._waiting.pop(queue)
            first = waiting.popleft()
            if waiting:
                self._waiting[queue] = waiting
            # A client may have hung up.
            if not first.done():
                first.set_result(None)
                return
        self._free += 1
