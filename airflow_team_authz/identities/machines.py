"""Subjects that are not people: tasks by their verified token, and the Dag processor and triggerer in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow_team_authz import airflow_compat
from airflow_team_authz.identities import requests
from airflow_team_authz.model import Subject

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# What Airflow's in-process Execution API puts in place of a task instance's id.
NO_TASK = UUID(int=0)

# Who makes the present in-process request: makes the subject when it is asked for, which takes a query.
_acting: ContextVar[Callable[[Session], Subject | None] | None] = ContextVar("team_authz_acting", default=None)


def subject_of_token(task_instance_id: UUID, session: Session) -> Subject | None:
    """The subject of a verified token of the Execution API; ``None`` if the task instance does not exist."""
    if task_instance_id != NO_TASK:
        return task(task_instance_id, session)
    acting = _acting.get()
    return acting(session) if acting else Subject("dag_processor", "in-process", ())


def task(task_instance_id: UUID, session: Session) -> Subject | None:
    """The task of a task instance, with the team of its Dag; ``None`` if there is no such task instance.

    Airflow gives the row of a task a new id for each attempt, and keeps the old one in the history. What an attempt
    does after that, such as its callbacks, it does as the same task.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from sqlalchemy import select

    # In this order: a row that has just got its new id is in the history by then.
    for attempt, id_ in ((TaskInstance, TaskInstance.id), (TaskInstanceHistory, TaskInstanceHistory.task_instance_id)):
        columns = (attempt.dag_id, attempt.task_id, attempt.run_id)
        if (row := session.execute(select(*columns).where(id_ == task_instance_id)).one_or_none()) is not None:
            return task_of_dag(*row, teams_of_dags([row.dag_id], session)[row.dag_id])
    return None


def task_of_dag(dag_id: str, task_id: str, run_id: str, team_id: str | None) -> Subject:
    """A task as a subject. Its Dag's team is the only one that it works for."""
    return Subject("task", f"{dag_id}.{task_id}", _teams(team_id), dag_id=dag_id, task_id=task_id, run_id=run_id)


def teams_of_dags(dag_ids: list[str], session: Session) -> dict[str, str | None]:
    """The team of each Dag by way of its bundle; ``None`` for one that is common, or not known."""
    from airflow.models import DagModel
    from airflow.models.team import dag_bundle_team_association_table
    from sqlalchemy import select

    of_bundle = dag_bundle_team_association_table.c
    statement = (
        select(DagModel.dag_id, of_bundle.team_name)
        .join(dag_bundle_team_association_table, of_bundle.dag_bundle_name == DagModel.bundle_name)
        .where(DagModel.dag_id.in_(dag_ids))
    )
    with requests.unfiltered():
        return dict.fromkeys(dag_ids) | {row.dag_id: row.team_name for row in session.execute(statement)}


def dag_processor(bundle_name: str, session: Session) -> Subject:
    """The Dag processor of a bundle, for the team of that bundle."""
    from airflow.models.team import dag_bundle_team_association_table
    from sqlalchemy import select

    of_bundle = dag_bundle_team_association_table.c
    statement = select(of_bundle.team_name).where(of_bundle.dag_bundle_name == bundle_name)
    return Subject("dag_processor", bundle_name, _teams(session.scalar(statement)))


def triggerer(team_id: str | None) -> Subject:
    """The triggerer of a team, or of no team."""
    return Subject("triggerer", team_id or "common", _teams(team_id))


def is_acting() -> bool:
    """Whether this is an in-process request that something makes on behalf of somebody."""
    return _acting.get() is not None


@contextmanager
def acting(subject: Callable[[Session], Subject | None]) -> Iterator[None]:
    """In-process requests made in here are made by this subject."""
    token = _acting.set(subject)
    try:
        yield
    finally:
        _acting.reset(token)


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: has the in-process requests of a supervisor say whom they are made for."""
    for name, subject in _SUPERVISORS[module.__name__]:
        supervisor: Any = getattr(module, name)
        # Its own, not inherited: a supervisor for tasks on a worker speaks to an API server, with a token.
        supervisor._handle_request = _acting_for(supervisor._handle_request, subject)


def _acting_for(
    handle: Callable[..., None], subject: Callable[[Any], Callable[[Session], Subject | None]]
) -> Callable[..., None]:
    def handle_request(self: Any, *arguments: Any, **named: Any) -> None:
        with acting(subject(self)):
            handle(self, *arguments, **named)

    return handle_request


_SUPERVISORS: dict[str, list[tuple[str, Callable[[Any], Callable[[Any], Subject | None]]]]] = {
    "airflow.dag_processing.processor": [
        ("DagFileProcessorProcess", lambda parsing: lambda session: dag_processor(parsing.bundle_name, session))
    ],
    "airflow.jobs.triggerer_job_runner": [
        ("TriggerRunnerSupervisor", lambda running: lambda _: triggerer(airflow_compat.team_of_triggerer(running)))
    ],
    "airflow.sdk.execution_time.supervisor": [
        # `dag.test()` and `airflow tasks test`.
        ("InProcessTestSupervisor", lambda testing: lambda session: task(testing.id, session))
    ],
}


def _teams(team_id: str | None) -> tuple[str, ...]:
    return () if team_id is None else (team_id,)
