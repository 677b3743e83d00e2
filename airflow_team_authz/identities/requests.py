"""The present request of a person: who makes it and what has been allowed in it. Airflow hands neither down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from airflow_team_authz.model import Resource, Subject


@dataclass
class Request:
    """What the process knows of a request while it serves it.

    ``find_subject`` makes the subject of the person who has logged in, when somebody needs it: it may raise what an
    auth manager raises. ``allowed`` holds each action with the resource that the policy has allowed it on here,
    ``concealed`` types and ids of what is answered as if it did not exist; that needs a route ``of_airflow``, which
    shows rows of its database and nothing else.
    """

    subject: Subject | None = None
    find_subject: Callable[[], Subject] | None = None
    allowed: set[tuple[str, Resource]] = field(default_factory=set)
    concealed: set[tuple[str, str]] = field(default_factory=set)
    of_airflow: bool = False


_request: ContextVar[Request | None] = ContextVar("team_authz_request", default=None)


@contextmanager
def request() -> Iterator[Request]:
    """A request begins and ends: Airflow's threads that serve it see the same ``Request``."""
    begun = Request()
    token = _request.set(begun)
    try:
        yield begun
    finally:
        _request.reset(token)


def current() -> Request | None:
    """The request that runs in this context; ``None`` outside of any."""
    return _request.get()


def remember_login(find_subject: Callable[[], Subject]) -> None:
    """Keep how to find who makes the request that runs in this context, if any: a login comes before any decision."""
    if (running := _request.get()) is not None:
        running.subject, running.find_subject = None, find_subject


def remember(subject: Subject) -> None:
    """Keep who makes the request that runs in this context, if any."""
    if (running := _request.get()) is not None:
        running.subject = subject


def remember_allowed(action: str, resource: Resource) -> None:
    """Keep what the policy has allowed in the request that runs in this context, if any."""
    if (running := _request.get()) is not None:
        running.allowed.add((action, resource))


def hide_rows() -> None:
    """Say that requests of this process see only rows that their subjects may read: from now on ``conceal`` works."""
    global _rows_are_hidden  # noqa: PLW0603 - once, when the process starts
    _rows_are_hidden = True


_rows_are_hidden = False


def conceal(resource: Resource) -> bool:
    """Have the rest of the request see nothing of a resource; whether it will see nothing, which must be looked at."""
    running = _request.get()
    if running is None or not (running.of_airflow and _rows_are_hidden):
        return False
    running.concealed.add((resource.type, str(resource.id)))
    return True


def remembered() -> Subject | None:
    """Who makes the request that runs in this context, as far as anybody has logged in."""
    running = _request.get()
    if running is None:
        return None
    if running.subject is None and running.find_subject is not None:
        running.subject = running.find_subject()
    return running.subject


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
