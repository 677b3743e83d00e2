"""The Execution API as Airflow makes it, guarded: with real tokens, a real database and a real engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from airflow import settings
from airflow.api_fastapi.auth.tokens import JWTGenerator
from airflow.api_fastapi.common.dagbag import create_dag_bag
from airflow.api_fastapi.execution_api import app as execution_api
from airflow.api_fastapi.execution_api.routes import execution_api_router
from airflow.models import Connection, Variable
from airflow.models.asset import (
    AssetActive,
    TaskOutletAssetReference,
)
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from fastapi.testclient import TestClient
from sqlalchemy import delete, insert, select

from airflow_team_authz.doors import decision_point, tasks
from airflow_team_authz.engines import DecisionPoint
from tests.doors.conftest import Recording

# Airflow 3.2 lists no keys of variables and keeps no state with assets.
WITH_STATE = any(getattr(route, "path", "") == "/variables/keys" for route in execution_api_router.routes)
needs_state = pytest.mark.skipif(not WITH_STATE, reason="this Airflow has no such routes")

DAGS = {"alpha": "alpha_daily", "beta": "beta_daily", None: "daily"}
# A task instance of each team's Dag, with its pool.
INSTANCES = {team_id: uuid4() for team_id in DAGS}
STRANGERS_POOL = uuid4()
# An attempt of the same task as alpha's instance, which is archived since its row is the next attempt's, ...
ARCHIVED = uuid4()
# ... and one that is gone with everything.
GONE = uuid4()


@pytest.fixture(scope="module")
def filled(database: None) -> None:  # noqa: ARG001
    """Runs and tasks of the Dags that the database holds."""
    assert settings.Session is not None
    with settings.Session() as session:
        for number, (team_id, dag_id) in enumerate(DAGS.items()):
            run = {"dag_id": dag_id, "run_id": "r", "run_type": "manual", "state": "running", "clear_number": 0}
            session.execute(insert(DagRun).values(id=number + 1, run_after=_now(), log_template_id=1, **run))
            _add_instance(session, INSTANCES[team_id], dag_id, "work", "default_pool")
        _add_instance(session, STRANGERS_POOL, "alpha_daily", "greedy", "beta_pool")
        for index, id_ in enumerate((ARCHIVED, GONE)):
            _add_instance(session, id_, "alpha_daily", "work", "default_pool", map_index=index)
            session.get_one(TaskInstance, id_).prepare_db_for_next_try(session)
        session.flush()
        for row in (TaskInstance, TaskInstanceHistory):
            session.execute(delete(row).where(row.map_index == 1))
        session.add(Variable(key="alpha_old", val="1", team_name="alpha"))
        session.add_all(AssetActive(name=str(id_), uri=f"s3://{id_}") for id_ in (1, 2))
        session.add(TaskOutletAssetReference(asset_id=1, dag_id="alpha_daily", task_id="work"))
        session.commit()


def _now() -> Any:
    from airflow._shared.timezones import timezone

    return timezone.utcnow()


def _add_instance(session: Any, id_: UUID, dag_id: str, task_id: str, pool: str, map_index: int = -1) -> None:
    values = {"pool_slots": 1, "priority_weight": 1, "try_number": 1, "max_tries": 0, "map_index": map_index}
    named = {"dag_id": dag_id, "task_id": task_id, "run_id": "r", "pool": pool, "state": "queued"}
    session.execute(insert(TaskInstance).values(id=id_, queue="default", operator="x", **named, **values))


class Api(NamedTuple):
    """The guarded Execution API, and who may call it."""

    client: TestClient
    engine: Recording
    generator: JWTGenerator

    def call(self, who: str | UUID | None, method: str, path: str, **more: Any) -> Any:
        subject = who if isinstance(who, UUID) else INSTANCES[who]
        token = self.generator.generate({"sub": str(subject), "scope": "execution"})
        headers = {"Authorization": f"Bearer {token}"}
        return self.client.request(method, f"/{path}", headers=headers, **more)


@pytest.fixture(scope="module")
def opened_api(filled: None, bundles: dict[str, Path]) -> Iterator[Api]:  # noqa: ARG001
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_hex(32))
        patch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        engine = Recording(bundles["example"])
        app = execution_api.create_task_execution_api_app()
        app.state.dag_bag = create_dag_bag()
        with TestClient(app, raise_server_exceptions=False) as client:
            yield Api(client, engine, execution_api._jwt_generator())
        engine.close()


@pytest.fixture
def api(opened_api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    point = DecisionPoint(opened_api.engine)
    monkeypatch.setattr(tasks, "decision_point", lambda: point)
    opened_api.engine.asked.clear()
    return opened_api


@pytest.fixture
def concealing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", "conceal")
    decision_point.forget()
    yield
    decision_point.forget()


def everything() -> list[Any]:
    """What tasks could change."""
    assert settings.Session is not None
    with settings.Session() as session:
        return [
            sorted(session.execute(select(*columns)).all(), key=str)
            for columns in (
                (Variable.key, Variable._val, Variable.team_name),
                (Connection.conn_id, Connection.team_name),
                (DagRun.dag_id, DagRun.run_id, DagRun.state),
            )
        ]


def read(api: Api, who: str | UUID | None, name: str) -> set[str]:
    """What a task gets: the host of a connection and the value of a variable, or the status."""
    connection = api.call(who, "GET", f"connections/{name}")
    variable = api.call(who, "GET", f"variables/{name}")
    return {
        str(answer.json()[field] if answer.status_code == 200 else answer.status_code)
        for answer, field in ((connection, "host"), (variable, "value"))
    }
