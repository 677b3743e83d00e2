"""Repetitions of one refusal: one record for the first, and one more with the number of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import Any, NamedTuple

from airflow_team_authz import forks

# How long the same counts as repetition, and of how many refusals at once this is known.
WINDOW_SECONDS = 60.0
_MOST = 10_000


class Repeated(NamedTuple):
    """Repetitions of a refusal: id of its record, number, and first and last time (seconds of Unix time)."""

    decision_id: str
    times: int
    since: float
    until: float


class _Burst:
    __slots__ = ("ends", "entry", "since", "times", "until")

    def __init__(self, ends: float, entry: Any) -> None:
        self.ends, self.entry, self.times, self.since, self.until = ends, entry, 0, 0.0, 0.0

    def again(self) -> str:
        """Count a repetition; the id of the first record."""
        self.times += 1
        self.until = time.time()
        self.since = self.since or self.until
        return str(self.entry.id)


class Bursts:
    """Remembers what was refused lately. Thread-safe."""

    def __init__(self) -> None:
        self._begin_anew()
        forks.after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        # In the order in which they end, and those that have ended with repetitions.
        self._running: dict[Hashable, _Burst] = {}
        self._ended: list[_Burst] = []

    def again(self, key: Hashable) -> str:
        """The id under which the same was recorded lately, and note that it came again; nothing if it is new."""
        with self._lock:
            burst = self._running.get(key)
            if burst is None or burst.ends <= time.monotonic():
                return ""
            return burst.again()

    def begin(self, key: Hashable, entry: Any) -> str:
        """Note what is new; the id of the same if another thread was faster.

        ``entry`` has an ``id``, and is handed back by ``over`` if it has come again.
        """
        now = time.monotonic()
        with self._lock:
            if (burst := self._running.get(key)) is not None:
                if burst.ends > now:
                    return burst.again()
                self._end(key)
            self._running[key] = _Burst(now + WINDOW_SECONDS, entry)
            if len(self._running) > _MOST:
                self._end(next(iter(self._running)))
        return ""

    def _end(self, key: Hashable) -> None:
        burst = self._running.pop(key, None)
        if burst is not None and burst.times:
            self._ended.append(burst)

    def over(self, at_once: bool = False) -> list[tuple[Any, Repeated]]:
        """Bursts that have ended, or all ``at_once``, with their repetitions, if there were any."""
        now = time.monotonic()
        with self._lock:
            for key in [key for key, burst in self._running.items() if at_once or burst.ends <= now]:
                self._end(key)
            ended, self._ended = self._ended, []
        return [(burst.entry, Repeated(burst.entry.id, burst.times, burst.since, burst.until)) for burst in ended]
