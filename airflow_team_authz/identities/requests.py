"""Who makes the present request, where Airflow does not hand that down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from airflow_team_authz.model import Subject

_asking: ContextVar[list[Subject] | None] = ContextVar("team_authz_asking", default=None)


@contextmanager
def request() -> Iterator[None]:
    """A request: Airflow's threads that serve it see the same subject."""
    token = _asking.set([])
    try:
        yield
    finally:
        _asking.reset(token)


def remember(subject: Subject) -> None:
    """Keep who has been decided about with the request that runs in this context, if any."""
    asking = _asking.get()
    if asking is not None:
        asking[:] = [subject]


def remembered() -> Subject | None:
    """Who made the request that runs in this context, as far as a decision has been asked for."""
    return next(iter(_asking.get() or ()), None)
