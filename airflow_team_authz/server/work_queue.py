"""Limits how many CPU-heavy calls run at once, and how many of one caller wait."""

from __future__ import annotations

import asyncio
from collections import Counter
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
    """A queue of the event loop: a waiting call does not occupy a thread."""

    def __init__(self, in_one_queue: int = _IN_ONE_QUEUE) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._in_one_queue = in_one_queue
        self._asked: Counter[str] = Counter()

    async def run(self, queue: str, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """The result of the call; 503 if this queue is full."""
        if self._asked[queue] >= self._in_one_queue:
            again = {"Retry-After": str(_RETRY_SECONDS)}
            raise HTTPException(503, f"much waits already ({queue}): nothing has changed, try again", again)
        self._asked[queue] += 1
        try:
            async with self._free:
                return await run_in_threadpool(call, *arguments, **named)
        finally:
            self._asked[queue] -= 1
