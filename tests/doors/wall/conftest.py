"""Rows of each team, and a session within a request of somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from airflow import settings
from airflow.models import DagRun, TaskInstance
from airflow.models.asset import (
    DagScheduleAssetReference,
)
from airflow.models.errors import ParseImportError
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstanceNote
from sqlalchemy import insert
from sqlalchemy.orm import Session

from airflow_team_authz.doors import owned_rows, readable, wall
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.identities import requests
from airflow_team_authz.model import Resource, Subject
from tests.conftest import write

ANN = Subject("user", "ann", ("alpha",), ("op",))
BOB = Subject("user", "bob", ("beta",), ("op",))
VIC = Subject("user", "vic", ("beta",), ("viewer",))
PAT = Subject("user", "pat", (), ("admin",))
TASK = Subject("task", "beta_daily.load", ("beta",), dag_id="beta_daily", task_id="load", run_id="first")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def rows(database: None) -> None:  # noqa: ARG001
    """A run of each Dag with a task instance and its note, audit rows and import errors."""
    wall.install()
    about = owned_rows.about
    with settings.Session() as session:
        for number, dag_id in enumerate(("alpha_daily", "beta_daily", "daily")):
            run = {"dag_id": dag_id, "run_id": "first", "run_type": "manual", "state": "running", "clear_number": 0}
            session.execute(insert(DagRun).values(id=number + 1, run_after=NOW, log_template_id=1, **run))
            id_ = uuid4()
            values = {
                "id": id_, "dag_id": dag_id, "task_id": "load", "run_id": "first", "state": "running", "pool": "pool",
                "pool_slots": 1, "queue": "q", "priority_weight": 1, "try_number": 1, "max_tries": 0, "map_index": -1,
                "executor_config": {}, "custom_operator_name": "", "hostname": "h",
            }  # fmt: skip
            session.execute(insert(TaskInstance).values(**values))
            session.execute(insert(TaskInstanceNote).values(ti_id=id_, content=dag_id, created_at=NOW, updated_at=NOW))
            session.add(Log("of a Dag", dag_id=dag_id, owner="somebody"))
            session.add(DagScheduleAssetReference(asset_id=1, dag_id=dag_id))
        for team_id in ("alpha", "beta", None):
            session.add(Log("about", owner=str(team_id), extra=about("connection", team_id) + ', "method": "POST"}'))
            session.add(ParseImportError(bundle_name=f"of {team_id}", filename="x.py", stacktrace=str(team_id)))
        session.add(Log("about", owner="bob", extra="{}"))
        session.add(Log("about", owner="forger", extra='{"x": ' + about("connection", "beta") + "}}"))
        session.add(Log("about", owner="nothing said"))
        session.add(Log("about", owner="cut off", extra=about("connection", "beta")[:-1]))
        session.add(Log("about", owner="longer", extra=about("connection", "beta")[:-1] + ', "x": 1}}'))
        session.add(Log("of a Dag", dag_id="gone", owner="somebody"))
        session.add(ParseImportError(bundle_name="gone", filename="x.py", stacktrace="gone"))
        session.commit()


@pytest.fixture(scope="module")
def policy(bundles: dict[str, Path]) -> Iterator[DecisionPoint]:
    engine = InProcess(bundles["baseline"])
    yield DecisionPoint(engine)
    engine.close()


@pytest.fixture
def policy_directory(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Makes a site's policy directory of these files."""
    return lambda files: write(tmp_path / "policy", files)


As = Callable[..., Any]


@pytest.fixture
def by(rows: None, policy: DecisionPoint, monkeypatch: pytest.MonkeyPatch) -> As:  # noqa: ARG001
    """A session within a request of somebody; nothing that is written in it stays."""
    monkeypatch.setattr(readable, "decision_point", lambda: policy)
    monkeypatch.setattr(wall, "decision_point", lambda: policy)

    @contextmanager
    def by(subject: Subject | None, *allowed: tuple[str, Resource]) -> Iterator[Session]:
        with requests.request(of_airflow=True) as request:
            if subject is not None:
                requests.remember(subject)
            request.allowed.update(allowed)
            with settings.Session() as session:
                yield session
                session.rollback()

    return by
