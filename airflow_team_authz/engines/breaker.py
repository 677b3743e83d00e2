"""A circuit breaker for an OPA server: while the server answers nothing at all, questions to it are errors at once.

Without it, each question to a server that hangs waits for the deadline, often on Airflow's event loop, one after the
other. Own code, because a breaker library counts failed calls: it would open for everybody when one team's rule takes
its time. What decides here is whether the server answers anything meanwhile, be it ``GET /health``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import cycle

from airflow_team_authz import forks
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import NotAnsweringError

log = logger(__name__)

# In deadlines: how long a question is silent before the server's health is asked for, how long that may take, and how
# often a question that waits looks at the outcome. Together they are less than one, also if the server stops right
# after it has shown its health.
_LOOK_AFTER = 0.25
_LOOK_FOR = 0.6
_SLICE = 0.05
# A busy server also takes a moment for its health, however short the deadline of questions is.
_SHORTEST_SECONDS = 0.2
# How long one try takes, at most, to see that the server is back.
_TRY_SECONDS = 1.0


class Breaker:
    """Knows whether a server answers. Thread-safe; a forked process begins with a closed one.

    ``heard_at``: when it answered anything, by ``time.monotonic``; whoever gets an answer says so here.
    ``answers`` asks for the server's health, or else a question about nothing, and waits for so many seconds; ``False``
    if nothing came. Whatever comes counts as an answer, also a refused connection: then questions are no slower than
    their errors.
    Nobody has a thread of its own for this before a question is silent, and after the server answers.
    """

    def __init__(self, url: str, deadline: float, answers: Callable[[float, bool], bool]) -> None:
        self._url = url
        self._unit = max(deadline, _SHORTEST_SECONDS)
        self.slice = _SLICE * self._unit
        self._answers = answers
        self._closed = threading.Event()
        self._begin_anew()
        forks.after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        # A thread of the parent may have held the lock, and the one that asks for the health runs on there only.
        self._starting = threading.Lock()
        self._looker: threading.Thread | None = None
        self._closed = forks.renewed(self._closed)
        self._open_since: float | None = None
        self._next_try = self.heard_at = 0.0
        self.openings = 0

    @property
    def is_open(self) -> bool:
        """Whether questions are errors at present."""
        return self._open_since is not None

    def check(self) -> None:
        """Raise ``NotAnsweringError`` if it is open."""
        since = self._open_since
        if since is not None:
            now = time.monotonic()
            raise NotAnsweringError(
                f"OPA at {self._url} has answered neither questions nor GET /health for {now - since:.1f} s, so it is "
                f"not asked at present; the next try is in {max(0.0, self._next_try - now):.1f} s: look at its "
                "process and its load, or start it anew"
            )

    def silent(self, since: float = 0.0) -> None:
        """Note that a question has no answer yet, on and off while it waits, and at its end; raises as ``check`` does.

        ``since``: when it was asked. Without, the server's health is asked for however short that is ago.
        """
        self.check()
        if time.monotonic() - max(since, self.heard_at) >= _LOOK_AFTER * self._unit:
            self._look()

    def close(self) -> None:
        """Stop asking for the health."""
        self._closed.set()

    def _look(self) -> None:
        """Have the health asked for, once at a time, by a thread of its own."""
        with self._starting:
            if self._looker is not None or self._closed.is_set():
                return
            looker = threading.Thread(target=self._watch, name="team-authz-breaker", daemon=True)
            try:
                looker.start()
            except RuntimeError:
                # The system has no more threads: questions have their deadlines, and the next one tries again.
                return
            self._looker = looker

    def _watch(self) -> None:
        try:
            began = time.monotonic()
            if self._answers(_LOOK_FOR * self._unit, True):
                self.heard_at = time.monotonic()
            # A busy server may have no time for its health, and answer questions.
            elif self.heard_at < began:
                self._wait_for_answer(began)
        except Exception:
            log.exception("asking OPA at %s for its health failed", self._url)
        finally:
            with self._starting:
                self._looker = None

    def _wait_for_answer(self, since: float) -> None:
        """Open, until the server answers, which has said nothing since then."""
        self._next_try = time.monotonic() + _TRY_SECONDS
        self.openings += 1
        self._open_since = since
        log.warning("OPA at %s answers nothing: questions are errors at once, until it answers GET /health", self._url)
        try:
            # In turns, lest it stay open if something on the way lets nobody ask for the health.
            for health in cycle((True, False)):
                if self._closed.is_set():
                    break
                # This try is the present one; the next begins when its time is over.
                self._next_try = time.monotonic() + _TRY_SECONDS
                if self._answers(_TRY_SECONDS, health):
                    self.heard_at = time.monotonic()
                    break
                self._closed.wait(self._next_try - time.monotonic())
        finally:
            self._open_since = None
            if not self._closed.is_set():
                took = time.monotonic() - since
                log.warning("OPA at %s is silent no longer, after %.1f s: questions are asked again", self._url, took)
