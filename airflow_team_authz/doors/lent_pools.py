"""A pool that policy lends to another team's Dag: Airflow would leave the Dag's tasks waiting for ever.

The policy is asked where a Dag is parsed (``doors.pools``) and where its task starts (``doors.routes``). In between
Airflow compares the teams of pool and Dag by itself, in the scheduler and in the dependency that tells why a task
waits. Neither asks here: a Dag that was parsed may use its pools, and what was taken back since is refused when the
task starts. So the scheduler needs no engine, and holds no lock on the pools while a question is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from types import ModuleType
from typing import Any

from airflow_team_authz import airflow_compat
from airflow_team_authz.identities import requests


class OwningTeam(str):
    """The name of a pool's team, from which no Dag's team differs where Airflow compares the two by ``!=``."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False


_queueing: ContextVar[bool] = ContextVar("team_authz_queueing", default=False)


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``; one of the two modules that compare teams."""
    if (runner := getattr(module, "SchedulerJobRunner", None)) is not None:
        from airflow.models.pool import Pool

        owners: Any = Pool
        owners.get_name_to_team_name_mapping = staticmethod(_as_compared(owners.get_name_to_team_name_mapping))
        runner._executable_task_instances_to_queued = _comparing(runner._executable_task_instances_to_queued)
    if (dependency := getattr(module, "PoolSlotsAvailableDep", None)) is not None:
        dependency._get_dep_statuses = _of_slots_alone(dependency._get_dep_statuses)


def _comparing(choose: Callable[..., Any]) -> Callable[..., Any]:
    """The scheduler's choice of tasks to be queued: in it, and nowhere else, pools have an ``OwningTeam``."""

    @wraps(choose)
    def chosen(*arguments: Any, **named: Any) -> Any:
        token = _queueing.set(True)
        try:
            return choose(*arguments, **named)
        finally:
            _queueing.reset(token)

    return chosen


def _as_compared(find: Callable[..., dict[str, str | None]]) -> Callable[..., dict[str, str | None]]:
    @wraps(find)
    def found(*arguments: Any, **named: Any) -> dict[str, str | None]:
        owners = find(*arguments, **named)
        return {pool: owner and OwningTeam(owner) for pool, owner in owners.items()} if _queueing.get() else owners

    return found


def _of_slots_alone(statuses: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Why a task waits for its pool, apart from whose that is, which not everybody may know who may see the task."""

    def of_slots(self: Any, ti: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
        from airflow.models.pool import Pool
        from sqlalchemy import select
        from sqlalchemy.orm.attributes import set_committed_value

        session = airflow_compat.session_among(arguments, named)
        statement = select(Pool).where(Pool.pool == ti.pool)
        with requests.unfiltered():
            there = session.scalar(statement) is not None
        pool = session.scalar(statement)
        if there and pool is None:
            yield self._passing_status(reason=f"Pool {ti.pool} is there, and how full it is may not be told here")
            return
        owner = None if pool is None else pool.team_name
        if not owner:
            yield from statuses(self, ti, *arguments, **named)
            return
        # Only as the comparison reads it: a committed value is nothing to be written.
        set_committed_value(pool, "team_name", OwningTeam(owner))
        try:
            yield from statuses(self, ti, *arguments, **named)
        finally:
            set_committed_value(pool, "team_name", owner)

    return of_slots
