"""The present request of a person: the person, and the allowed questions. Airflow passes neither on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from airflow_team_authz.model import Resource, Subject


@dataclass
class Request:
    """The data of a request while the process serves it.

    ``find_subject`` makes the subject of the person who has logged in, when somebody needs it: it may raise what an
    auth manager raises. ``allowed`` holds each action with the resource that the policy has allowed it on here,
    ``concealed`` types and ids of what is answered as if it did not exist. A route ``of_airflow`` shows rows of its
    database and nothing else, and none before there is a subject. ``readable`` is kept by ``doors.wall``, which sets
    ``writes_checked`` while a session writes the rows that were checked.
    """

    subject: Subject | None = None
    find_subject: Callable[[], Subject] | None = None
    allowed: set[tuple[str, Resource]] = field(default_factory=set)
    concealed: set[tuple[str, str]] = field(default_factory=set)
    of_airflow: bool = False
    readable: Any = None
    writes_checked: bool = False

    @property
    def is_narrowed(self) -> bool:
        """Whether its queries see only what somebody may read; not in pages of plugins that need no login."""
        return self.of_airflow or self.subject is not None or self.find_subject is not None


_request: ContextVar[Request | None] = ContextVar("team_authz_request", default=None)


@contextmanager
def request(of_airflow: bool = False) -> Iterator[Request]:
    """A request begins and ends: Airflow's threads that serve it see the same ``Request``."""
    begun = Request(of_airflow=of_airflow)
    token = _request.set(begun)
    try:
        yield begun
    finally:
        _request.reset(token)


def begin(subject: Subject, allowed: set[tuple[str, Resource]]) -> None:
    """The rest of this context, which serves one request only, is that of a task which was ``allowed`` this."""
    _request.set(Request(subject, allowed=allowed))


def current() -> Request | None:
    """The request that runs in this context; ``None`` outside of any."""
    return _request.get()


def remember_login(find_subject: Callable[[], Subject]) -> None:
    """Keep how to find who makes the request that runs in this context, if any: a login comes before any decision."""
    if (running := _request.get()) is not None:
        running.subject, running.find_subject, running.readable = None, find_subject, None


def remember(subject: Subject) -> None:
    """Keep who makes the request that runs in this context, if any."""
    if (running := _request.get()) is not None and running.subject != subject:
        # What somebody else may read is another question.
        running.subject, running.readable = subject, None


def remember_allowed(action: str, resource: Resource) -> None:
    """Keep what the policy has allowed in the request that runs in this context, if any."""
    if (running := _request.get()) is not None:
        running.allowed.add((action, resource))


def hide_rows() -> None:
    """Say that requests of this process see only rows that their subjects may read: from now on ``conceal`` works."""
    global _rows_are_hidden  # noqa: PLW0603 - once, when the process starts
    _rows_are_hidden = True


_rows_are_hidden = False


def rows_are_hidden() -> bool:
    """Whether requests of this process see only rows that their subjects may read."""
    return _rows_are_hidden


def conceal(resource: Resource) -> bool:
    """Have the rest of the request see nothing of a resource; whether it will see nothing, which must be looked at."""
    running = _request.get()
    if running is None or not (running.of_airflow and _rows_are_hidden):
        return False
    running.concealed.add((resource.type, str(resource.id)))
    return True


def remembered() -> Subject | None:
    """The person who makes the request of this context, if somebody has logged in."""
    running = _request.get()
    if running is None:
        return None
    if running.subject is None and running.find_subject is not None:
        running.subject = running.find_subject()
    return running.subject


_before_handler: ContextVar[bool] = ContextVar("team_authz_before_handler", default=False)


@contextmanager
def before_handler(sees_everything: bool = True) -> Iterator[None]:
    """In here Airflow asks about a request, before its handler runs: queries see whose something really is.

    With ``sees_everything`` false they see what the subject may read, as the handler's do.
    """
    token = _before_handler.set(True)
    try:
        with unfiltered() if sees_everything else nullcontext():
            yield
    finally:
        _before_handler.reset(token)


def is_before_handler() -> bool:
    """Whether what is asked in this context is asked before the handler of the request runs."""
    return _before_handler.get()


_unfiltered: ContextVar[bool] = ContextVar("team_authz_unfiltered", default=False)


@contextmanager
def unfiltered() -> Iterator[None]:
    """Queries in here see every team's rows: for finding the owner of what a question is about."""
    token = _unfiltered.set(True)
    try:
        yield
    finally:
        _unfiltered.reset(token)


def is_unfiltered() -> bool:
    """Whether queries of this context see every team's rows."""
    return _unfiltered.get()
