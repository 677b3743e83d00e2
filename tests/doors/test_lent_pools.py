"""A pool that policy lends to another team's Dag: Airflow compares their teams, and has nothing to say about it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from inspect import getsource
from pathlib import Path
from uuid import uuid4

import pytest
from airflow import settings
from airflow.jobs import scheduler_job_runner
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models import DagModel, DagRun, Pool, TaskInstance
from airflow.ti_deps.dep_context import DepContext
from airflow.ti_deps.deps import pool_slots_available_dep
from airflow.ti_deps.deps.pool_slots_available_dep import PoolSlotsAvailableDep
from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from airflow_team_authz.doors import lent_pools, readable
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.identities import requests
from airflow_team_authz.model import Subject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOB = Subject("user", "bob", ("beta",), ("op",))
PAT = Subject("user", "pat", (), ("admin",))


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doors in both modules, for one test."""
    chosen, statuses = "_executable_task_instances_to_queued", "_get_dep_statuses"
    monkeypatch.setattr(SchedulerJobRunner, chosen, getattr(SchedulerJobRunner, chosen))
    monkeypatch.setattr(PoolSlotsAvailableDep, statuses, getattr(PoolSlotsAvailableDep, statuses))
    owners = "get_name_to_team_name_mapping"
    monkeypatch.setattr(Pool, owners, staticmethod(getattr(Pool, owners)))
    lent_pools.guard(scheduler_job_runner)
    lent_pools.guard(pool_slots_available_dep)


@pytest.fixture
def session(database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:  # noqa: ARG001
    """A Dag of team beta, and a common one, each with a task that waits for a slot of alpha's pool."""
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    assert settings.Session is not None
    with settings.Session() as session:
        session.execute(update(DagModel).values(is_paused=False, max_active_tasks=4, has_task_concurrency_limits=False))
        for number, dag_id in enumerate(("beta_daily", "daily")):
            run = {"dag_id": dag_id, "run_id": "lent", "run_type": "manual", "state": "running", "clear_number": 0}
            session.execute(insert(DagRun).values(id=number + 1, run_after=NOW, log_template_id=1, **run))
            values = {
                "id": uuid4(), "dag_id": dag_id, "task_id": "work", "run_id": "lent", "state": "scheduled",
                "pool": "alpha_pool", "pool_slots": 1, "queue": "q", "priority_weight": 1, "try_number": 0,
                "max_tries": 0, "map_index": -1, "executor_config": {}, "custom_operator_name": "", "hostname": "h",
            }  # fmt: skip
            session.execute(insert(TaskInstance).values(**values))
        session.execute(update(Pool).where(Pool.pool == "alpha_pool").values(slots=2))
        session.commit()
        yield session
        session.rollback()
        session.execute(delete(TaskInstance))
        session.execute(delete(DagRun))
        session.commit()


def queued(session: Session) -> set[str]:
    """Dags whose tasks the scheduler gives slots to."""
    chosen = SchedulerJobRunner(Job())._executable_task_instances_to_queued(10, session)
    return {task.dag_id for task in chosen}


def waits_for(session: Session) -> list[str]:
    """What the dependency says of the task of beta."""
    task = session.scalar(select(TaskInstance).where(TaskInstance.dag_id == "beta_daily"))
    assert task is not None
    statuses = PoolSlotsAvailableDep().get_dep_statuses(task, dep_context=DepContext(), session=session)
    return [status.reason for status in statuses if not status.passed]


@pytest.mark.usefixtures("guarded")
def test_tasks_of_dags_that_were_parsed_take_slots(session: Session) -> None:
    assert queued(session) == {"beta_daily", "daily"}


@pytest.mark.usefixtures("guarded")
def test_there_are_no_more_slots_than_the_pool_has(session: Session) -> None:
    session.execute(update(Pool).where(Pool.pool == "alpha_pool").values(slots=1))
    assert len(queued(session)) == 1


@pytest.mark.usefixtures("guarded")
def test_elsewhere_a_pools_team_is_compared_as_ever(session: Session) -> None:
    queued(session)
    team = Pool.get_name_to_team_name_mapping(["alpha_pool"], session=session)["alpha_pool"]
    assert team is not None
    assert (team, type(team), team != "beta") == ("alpha", str, True)


@pytest.mark.usefixtures("guarded")
def test_a_task_waits_for_slots_and_not_for_a_team(session: Session) -> None:
    assert waits_for(session) == []
    session.execute(update(Pool).where(Pool.pool == "alpha_pool").values(slots=0))
    assert waits_for(session) == [
        "Not scheduling since there are 0 open slots in pool alpha_pool and require 1 pool slots"
    ]
    assert not session.dirty
    session.flush()
    assert session.scalar(select(Pool.team_name).where(Pool.pool == "alpha_pool")) == "alpha"


@pytest.mark.usefixtures("guarded")
def test_why_a_task_waits_tells_nothing_of_a_pool_that_one_may_not_read(
    session: Session, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = InProcess(bundles["baseline"])
    monkeypatch.setattr(readable, "decision_point", lambda: DecisionPoint(engine))
    session.execute(update(Pool).where(Pool.pool == "alpha_pool").values(slots=0))
    session.commit()
    told = {}
    for subject in (BOB, PAT):
        with requests.request(of_airflow=True):
            requests.remember(subject)
            told[subject.id] = waits_for(session)
        session.expire_all()
    engine.close()
    assert told["bob"] == []
    assert "there are 0 open slots in pool alpha_pool" in told["pat"][0]


def test_airflow_alone_lets_them_wait(session: Session) -> None:
    """What the doors are for: if this changes, they are not needed any more."""
    # Airflow 3.2 compares them in the dependency only.
    if "pool_team" in getsource(SchedulerJobRunner):
        assert queued(session) == set()
    assert waits_for(session) == ["Pool 'alpha_pool' is assigned to team 'alpha' but task's DAG belongs to team 'beta'"]
