"""The one decision point of a process, which all doors share."""

from __future__ import annotations

import os
from functools import cache
from threading import Lock
from typing import Any

from airflow_team_authz import airflow_compat, forks
from airflow_team_authz.decision_log import DecisionLog, open_log, sink_names
from airflow_team_authz.decision_log.metrics import Metrics
from airflow_team_authz.decision_log.spans import Spans
from airflow_team_authz.engines import DecisionPoint, Observer
from airflow_team_authz.engines.choice import default_state, open_engine, open_shadow
from airflow_team_authz.escaping import logger
from airflow_team_authz.settings import Settings, metrics_are_on, read_database, read_settings, traces_are_on
from airflow_team_authz.shadow import Candidate, Queue, Shadow

log = logger(__name__)

_opening = Lock()


def _begin_anew() -> None:
    """In a forked child: a thread that is not there may have held the lock."""
    global _opening  # noqa: PLW0603 - a lock has no other state
    _opening = Lock()


os.register_at_fork(after_in_child=_begin_anew)


def decision_point() -> DecisionPoint:
    """The decision point over the configured engine, which the first question opens.

    ``SettingsError`` if ``[team_authz]`` is wrong, ``EngineError`` if the engine cannot be opened: tried again.
    """
    with _opening:
        return _opened()


@cache
def settings() -> Settings:
    """``[team_authz]`` as this process found it; ``SettingsError`` if it is wrong.

    Read once: a policy file that is deleted later must not take the engine along that has it loaded.
    """
    return read_settings()


@cache
def _opened() -> DecisionPoint:
    with forks.whole():
        engine = open_engine(settings())
        if (metrics := counting()) is not None:
            metrics.breaker = getattr(engine, "breaker", None)
        return DecisionPoint(engine, _with_shadow(_with_spans(metrics or decision_log())))


@cache
def decision_log() -> DecisionLog:
    """The decision log of this process; ``SettingsError`` if ``[team_authz]`` is wrong."""
    return open_log(settings(), airflows_engine, read_database()[1], settings().state or default_state())


@cache
def shadow() -> Queue | None:
    """The questions that wait for ``[team_authz] shadow``, if there is one."""
    wanted = settings()
    if wanted.shadow is None:
        return None
    place = wanted.shadow
    log.info("%s decides nothing, and is asked a share of %g of all questions: the shadow", place, wanted.shadow_sample)
    metrics = counting()
    candidate = Candidate(
        decision_log(),
        lambda: DecisionPoint(open_shadow(place, wanted), name=Candidate.name),
        _not_counted if metrics is None else metrics.beside,
        wanted.shadow_sample,
    )
    return Queue(candidate, wanted.shadow_sample)


def _not_counted(_: str, __: int) -> None:
    pass


def _with_shadow(observer: Observer) -> Observer:
    """The same, with a candidate that is asked afterwards if there is one."""
    queue = shadow()
    return observer if queue is None else Shadow(observer, queue)


def records_are_kept() -> bool:
    """Whether Airflow's database has the records, for ``GET /auth/decisions``. Raises ``SettingsError``."""
    return "database" in sink_names(settings().decision_log)


@cache
def counting() -> Metrics | None:
    """The counter of decisions, if Airflow sends metrics."""
    try:
        if not metrics_are_on():
            return None
    except Exception as error:
        # Airflow itself goes on without metrics, and so do decisions.
        log.warning("decisions are not counted, since [metrics] cannot be read: %s", error)
        return None
    return Metrics(decision_log(), airflow_compat.stats())


def _with_spans(observer: Metrics | DecisionLog) -> Observer:
    """The same, with a span for each decision if Airflow sends traces."""
    try:
        if not traces_are_on():
            return observer
        from opentelemetry import trace
    except Exception as error:
        log.warning("decisions have no spans, since [traces] cannot be read: %s", error)
        return observer
    # The provider is Airflow's, whenever it sets one.
    return Spans(observer, trace.get_tracer("airflow_team_authz"))


def flush_log() -> None:
    """Have written what waits in the decision log, if there is one, and tell the metrics; takes seconds at most."""
    if shadow.cache_info().currsize and (queue := shadow()) is not None:
        queue.flush()
    if decision_log.cache_info().currsize:
        decision_log().flush()
    if counting.cache_info().currsize and (metrics := counting()) is not None:
        metrics.tell()


def airflows_engine() -> Any:
    """The engine of Airflow's database in this process."""
    # Looked up each time: Airflow makes another one when it begins anew.
    from airflow import settings as of_airflow

    return of_airflow.engine


def forget() -> None:
    """Read the settings and open the engine anew for the next question; for tests, which change them."""
    if shadow.cache_info().currsize and (queue := shadow()) is not None:
        queue.close()
    if decision_log.cache_info().currsize:
        decision_log().close()
    for kept in (settings, decision_log, shadow, counting, _opened):
        kept.cache_clear()
