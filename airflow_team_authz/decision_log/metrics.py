"""Counts what is decided, and hands the sums to Airflow's own metrics (StatsD, OpenTelemetry) every ten seconds.

A datagram for each decision would cost as much as its record. No tag holds an id: the decision log has those.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

from airflow_team_authz import forks
from airflow_team_authz.decision_log import DecisionLog, origin
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import Decision, EngineError, Evaluations, Provenance, Resource

log = logger(__name__)

PERIOD_SECONDS = 10.0
# Of so many durations in a period each is told; of more, the newest.
_MOST_DURATIONS = 100

# What is counted, by what.
_TAGS = {
    "answers": ("cache", "kind"),
    "decisions": ("door", "layer", "outcome", "type"),
    "errors": ("door", "error"),
    "lists": ("door", "type"),
    "policy.changes": (),
    "shadow": ("outcome",),
}
_CACHE = {True: "hit", False: "miss"}


class Meter(Protocol):
    """Airflow's metrics: ``airflow.observability.stats``. A duration is in milliseconds."""

    def incr(self, stat: str, count: int, *, tags: dict[str, str]) -> None: ...
    def gauge(self, stat: str, value: float, *, tags: dict[str, str]) -> None: ...
    def timing(self, stat: str, dt: float, *, tags: dict[str, str]) -> None: ...


class Breaker(Protocol):
    """The circuit breaker of an engine: whether questions are errors at once, and how often they began to be."""

    @property
    def is_open(self) -> bool: ...
    @property
    def openings(self) -> int: ...


class Metrics:
    """An observer of the decision point, in front of the decision log. It neither waits nor raises.

    ``breaker`` is that of the engine, if it has one.
    """

    breaker: Breaker | None = None

    def __init__(self, decision_log: DecisionLog, meter: Meter) -> None:
        self._log = decision_log
        self._meter = meter
        self._told: Counter[tuple[str, str]] = Counter()
        self._begin_anew()
        forks.after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        # What was counted before a fork, the parent tells.
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = {}
        self._durations: dict[tuple[str, str], deque[int]] = {}
        self._revision, self._since = "", time.monotonic()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._failure = ""
        self._told.clear()

    def decided(self, question: Evaluations, decisions: Sequence[Decision], how: Provenance) -> str:
        """See ``engines.Observer``."""
        door = origin.door()
        for resource, decision in zip(question.resources, decisions, strict=False):
            self._count(
                ("decisions", door, decision.layer, "allow" if decision.allow is True else "deny", resource.type)
            )
        self._took(("decision", door), how)
        self._count(("answers", _CACHE[how.kept], "decision"))
        return self._log.decided(question, decisions, how)

    def listed(self, question: Evaluations, allowed: Sequence[Resource], how: Provenance) -> None:
        """See ``engines.Observer``."""
        door = origin.door()
        if question.resources:
            self._count(("lists", door, question.resources[0].type))
            self._took(("list", door), how)
            self._count(("answers", _CACHE[how.kept], "list"))
        self._log.listed(question, allowed, how)

    def failed(self, question: Evaluations, error: EngineError, nanoseconds: int) -> str:
        """See ``engines.Observer``."""
        self._count(("errors", origin.door(), error.code))
        self._begin()
        return self._log.failed(question, error, nanoseconds)

    def beside(self, outcome: str, count: int = 1) -> None:
        """Count questions that a policy was asked which is not in force."""
        with self._lock:
            self._counts["shadow", outcome] = self._counts.get(("shadow", outcome), 0) + count
        self._begin()

    def _count(self, counted: tuple[str, ...]) -> None:
        with self._lock:
            self._counts[counted] = self._counts.get(counted, 0) + 1

    def _took(self, kind: tuple[str, str], how: Provenance) -> None:
        durations = self._durations.get(kind)
        if durations is None:
            durations = self._durations.setdefault(kind, deque(maxlen=_MOST_DURATIONS))
        durations.append(how.nanoseconds)
        if how.revision != self._revision and how.revision:
            if self._revision:
                self._count(("policy.changes",))
            self._revision, self._since = how.revision, time.monotonic()
        self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._tell_again, name="team-authz-metrics", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system has no more threads: the next question tries again.
                return
            self._thread = thread

    def _tell_again(self) -> None:
        while not self._closed.wait(PERIOD_SECONDS):
            self.tell()

    def close(self) -> None:
        """Hand on what was counted, and stop."""
        self._closed.set()
        self.tell()

    def tell(self) -> None:
        """Hand on what was counted since the last time."""
        with self._lock:
            counts, self._counts = self._counts, {}
            durations, self._durations = self._durations, {}
        try:
            for (name, *values), count in sorted(counts.items()):
                self._meter.incr(f"team_authz.{name}", count, tags=dict(zip(_TAGS[name], values, strict=True)))
            for (kind, door), taken in sorted(durations.items()):
                for nanoseconds in taken:
                    self._meter.timing("team_authz.duration", nanoseconds / 1e6, tags={"door": door, "kind": kind})
            self._meter.gauge("team_authz.policy.age_seconds", round(time.monotonic() - self._since), tags={})
            self._tell_of_breaker()
            self._tell_of_log()
            self._failure = ""
        except Exception as error:
            # Once, and not every period for as long as it lasts.
            if self._failure != repr(error):
                log.exception("Airflow's metrics took no counts")
            self._failure = repr(error)

    def _tell_of_breaker(self) -> None:
        if self.breaker is None:
            return
        self._meter.gauge("team_authz.breaker.open", int(self.breaker.is_open), tags={})
        total = self.breaker.openings
        if more := total - self._told["openings", ""]:
            self._meter.incr("team_authz.breaker.openings", more, tags={})
            self._told["openings", ""] = total

    def _tell_of_log(self) -> None:
        for writer in self._log.writers:
            sink = writer.sink.setting
            tags = {"sink": sink}
            for name, total in (("written", writer.written), ("lost", writer.lost)):
                if more := total - self._told[name, sink]:
                    self._meter.incr(f"team_authz.log.{name}", more, tags=tags)
                    self._told[name, sink] = total
            self._meter.gauge("team_authz.log.waiting", writer.waiting(), tags=tags)
