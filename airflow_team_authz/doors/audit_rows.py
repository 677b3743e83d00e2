"""Rows of the audit log about users' requests: each says what the request is about, as the policy was asked.

Airflow takes Dag, task and run of a row out of query and body, whatever they say there, and writes some rows before it
asks whether the request is allowed. Here a row is about what has been decided, and there is none of what was refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from typing import Any

from airflow.models import Log
from fastapi import HTTPException
from fastapi.routing import APIRoute
from msgspec import UNSET
from sqlalchemy import delete

from airflow_team_authz.identities import requests
from airflow_team_authz.model import Resource

_READING = {"list", "menu", "read"}
# What a refusal is, and what nobody could decide about.
_NOT_DONE = {403, 503}
PLATFORM = Resource("platform")


def is_logging(call: Any) -> bool:
    """Whether a route's dependency is the one with which Airflow writes a row."""
    return bool(getattr(call, "__qualname__", "").startswith("action_logging."))


def logged(log_action: Any, route: APIRoute, asks: bool) -> Callable[..., AsyncIterator[None]]:
    """In place of Airflow's ``log_action``, which it calls; ``asks`` says whether anything is decided at the route."""

    @wraps(log_action)
    async def log_decided(request: Any, session: Any, user: Any) -> AsyncIterator[None]:
        kept = _Kept(session)
        await log_action(request, kept, user)
        about = _decided() if asks else {PLATFORM}
        rows = [row for written in kept.rows for row in _rows(written, about, request, route)]
        # As Airflow does it: what is tried is told, whether it succeeds or not.
        session.add_all(rows)
        session.flush()
        ids = [row.id for row in rows]
        session.commit()
        try:
            yield
        except HTTPException as answer:
            if answer.status_code in _NOT_DONE and ids:
                session.rollback()
                with requests.unfiltered():
                    session.execute(delete(Log).where(Log.id.in_(ids)))
                session.commit()
            raise

    return log_decided


class _Kept:
    """A session that keeps rows instead of writing them."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.rows: list[Any] = []
        self.add = self.rows.append

    def commit(self) -> None:
        """Write nothing yet."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _decided() -> set[Resource]:
    """Resources that the request may write; if it writes nothing, those that it may read; empty without a decision."""
    running = requests.current()
    allowed = running.allowed if running else set()
    about = {resource for action, resource in allowed if action not in _READING} or {
        resource for _, resource in allowed
    }
    dags = {resource for resource in about if resource.type == "dag"}
    return (
        {resource for resource in dags if resource.id is not UNSET} or (about - dags) or ({PLATFORM} if dags else set())
    )


def _rows(written: Any, about: set[Resource], request: Any, route: APIRoute) -> Iterator[Any]:
    """A row for each team of the request. A row about several teams would reveal each to the others."""
    teams = sorted({resource.team_id for resource in about}, key=str)
    said = json.loads(written.extra) if written.extra else {}
    for team_id in teams:
        of_team = {resource for resource in about if resource.team_id == team_id}
        extra = said if len(teams) == 1 else {"ids": _ids(of_team), "method": request.method}
        yield _row(written, of_team, team_id, extra, request, route)


def _row(written: Any, about: set[Resource], team_id: str | None, extra: Any, request: Any, route: APIRoute) -> Any:
    (type_, *_) = sorted({resource.type for resource in about})
    dag_ids = _ids({resource for resource in about if resource.type == "dag"})
    row = Log(event=written.event, owner=written.owner, owner_display_name=written.owner_display_name)
    row.dttm = written.dttm
    if len(dag_ids) == 1:
        (row.dag_id,) = dag_ids
        row.task_id = _named(request, route, written.task_id, "task_id")
        row.run_id = _named(request, route, written.run_id, "dag_run_id", "run_id")
        row.logical_date = written.logical_date
        row.extra = json.dumps(extra)
    else:
        if dag_ids:
            extra = {**extra, "ids": dag_ids}
        # First, so that a row can be found by it; a body has no say in it.
        said = {("body_about" if name == "about" else name): value for name, value in extra.items()}
        row.extra = json.dumps({"about": {"type": type_, "team_id": team_id}, **said})
    return row


def _ids(resources: set[Resource]) -> list[str]:
    return sorted(str(resource.id) for resource in resources if resource.id is not UNSET)


def _named(request: Any, route: APIRoute, written: str | None, *names: str) -> str | None:
    """A part of the Dag as the handler reads it: in the path, or else where the body of this route has it."""
    for name in names:
        if name in request.path_params:
            return str(request.path_params[name])
    fields = [getattr(field.field_info.annotation, "model_fields", {}) for field in route.dependant.body_params]
    return written if any(name in known for known in fields for name in names) else None
