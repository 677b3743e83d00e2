"""The queue of records before a sink, and the thread that writes them: a request never waits for a sink."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from typing import Any, Protocol

from airflow_team_authz import forks
from airflow_team_authz.decision_log.record import Gap
from airflow_team_authz.escaping import logger

log = logger(__name__)

# How many entries may wait; what comes then is lost, and counted.
MOST_WAITING = 10_000
_BATCH = 500
# How long the thread waits for more before it writes, how often it looks for bursts that are over, how soon it tries a
# sink again that has failed, and how long a process that ends waits for it.
_LINGER_SECONDS = 0.05
_TICK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_ENDING_SECONDS = 2.0
_SOURCE_ENDING_SECONDS = 0.5
_POLL_SECONDS = 0.01
_PRIORITY = 10
# How often the log tells of losses.
_TELL_SECONDS = 60.0


class Sink(Protocol):
    """Where records go. Used by one thread.

    ``name`` is for people. ``setting`` is its word in the setting ``decision_log``, for metrics: Airflow's StatsD takes
    no tags with spaces.
    """

    name: str
    setting: str

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """Write them, or raise: then all are written again later. How many can never be written, and were left out."""

    def begin_anew(self) -> None:
        """In a forked child: what is open is the parent's."""


class Waiting(Protocol):
    """Waits to be written; ``record.Entry`` is one."""

    @property
    def at(self) -> int:
        """Unix time in nanoseconds."""


class Maker(Protocol):
    """Makes records of what waits; ``record.Form`` is one."""

    def record(self, entry: Any) -> dict[str, Any]: ...
    def gap(self, gap: Gap, sink: str) -> dict[str, Any]: ...


class Writer:
    """A bounded queue before one sink. ``tick`` is called about once a second, while the sink is in order or not."""

    def __init__(
        self,
        sink: Sink,
        form: Maker,
        tick: Callable[[], None],
        most: int = MOST_WAITING,
        is_source: bool = False,
    ) -> None:
        """``is_source``: of entries for other writers, so it ends before them."""
        self.sink = sink
        self._form = form
        self._tick = tick
        self._most = most
        self._priority = _PRIORITY + is_source
        # Nobody waits for what another writer would only get.
        self._patience = _SOURCE_ENDING_SECONDS if is_source else _ENDING_SECONDS
        self._unfinished = "questions could not be asked of" if is_source else "decisions could not be recorded in"
        self._begin_anew()
        forks.after_fork(self._fork)

    def _fork(self) -> None:
        # What waits, the parent writes.
        self._begin_anew()
        self.sink.begin_anew()

    def _begin_anew(self) -> None:
        self._waiting: deque[Waiting] = deque()
        # Taken from the queue, and not yet known to be written.
        self._batch: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._gap: Gap | None = None
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._at_end: Finalize | None = None
        self._failing = False
        self._look_at = self._tell_at = 0.0
        self._give_up_at = math.inf
        self.written = self.lost = 0

    def offer(self, entry: Waiting) -> bool:
        """Have an entry written, or counted as lost if too many wait: ``False``. Never waits, never raises."""
        if len(self._waiting) >= self._most:
            self.refuse(entry.at)
            return False
        self._waiting.append(entry)
        self._begin()
        return True

    def refuse(self, at: int) -> None:
        """Count an entry of this time as lost."""
        self._lose(1, at, at)
        self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._start()
        if not self._wake.is_set():
            self._wake.set()

    def waiting(self) -> int:
        """How many are not known to be written."""
        return len(self._waiting) + len(self._batch)

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all is written, as long as that takes no more than this; what is not is told to the log."""
        end = time.monotonic() + (self._patience if seconds is None else seconds)
        while self.waiting() and time.monotonic() < end:
            self._wake.set()
            time.sleep(_POLL_SECONDS)
        if waiting := self.waiting():
            log.error("%d %s %s yet, and this server stops", waiting, self._unfinished, self.sink.name)

    def close(self, seconds: float | None = None) -> None:
        """Write what waits, as long as that takes no more than this; what is lost is told to the log. Once."""
        if self._at_end is None:
            return
        self._at_end.cancel()
        self._at_end = None
        seconds = self._patience if seconds is None else seconds
        self._give_up_at = time.monotonic() + seconds
        self._ending.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
        if lost := self.waiting():
            log.error("%d %s %s before this process ended", lost, self._unfinished, self.sink.name)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="team-authz-decisions", daemon=True)
                self._thread.start()
                # At the end of this process, also of one that multiprocessing has made.
                self._at_end = Finalize(self, self.close, exitpriority=self._priority)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(_TICK_SECONDS)
            self._ending.wait(_LINGER_SECONDS)
            self._wake.clear()
            self._look()
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self._take():
            try:
                refused = self.sink.write(self._batch)
            except Exception as error:  # of a database, a driver, a file system
                self._failed(error)
                if time.monotonic() >= self._give_up_at:
                    return
                if self._ending.is_set():
                    time.sleep(_LINGER_SECONDS)
                self._ending.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._look()
                continue
            self.written += len(self._batch) - refused
            self._batch = []
            pause = _FIRST_PAUSE_SECONDS
            if refused:
                now = time.time_ns()
                self._lose(refused, now, now)
            self._works()
            self._look()

    def _look(self) -> None:
        """``tick``, if it is time to."""
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _TICK_SECONDS
            self._tick()

    def _take(self) -> bool:
        """Whether there is something to write; it is in the batch then."""
        if self._batch:
            return True
        while self._waiting and len(self._batch) < _BATCH:
            entry = self._waiting.popleft()
            try:
                self._batch.append(self._form.record(entry))
            except Exception:
                log.exception("a decision could not be recorded in %s", self.sink.name)
                self._lose(1, entry.at, entry.at)
        with self._lock:
            gap, self._gap = self._gap, None
        if gap is not None:
            self._batch.append(self._form.gap(gap, self.sink.name))
        return bool(self._batch)

    def _lose(self, count: int, since: int, until: int) -> None:
        with self._lock:
            if self._gap is None:
                self._gap = Gap(count, since, until)
            else:
                self._gap = Gap(self._gap.lost + count, min(since, self._gap.since), max(until, self._gap.until))
            self.lost += count
            is_told = time.monotonic() < self._tell_at
            if not is_told:
                self._tell_at = time.monotonic() + _TELL_SECONDS
        if not is_told:
            log.error(
                "%d %s %s so far, since more come than it takes: gaps in the decision log have their number",
                self.lost, self._unfinished, self.sink.name,
            )  # fmt: skip

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            # Not what a driver says: it shows statements, and with them the records.
            why = str(getattr(error, "orig", None) or error)
            log.error("decisions cannot be recorded in %s (%s): %s", self.sink.name, type(error).__name__, why)

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            log.warning("decisions can be recorded again in %s", self.sink.name)
