"""What tasks, asset events and parsed Dags cost, with and without this package, on SQLite in one process."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from benchmarks.__main__ import compare, compiled, write_policies

TEAMS = 50
CONSUMERS = 500
DAGS = 500
TASKS = 20
ALONE, OURS = "Airflow alone", "with this package, in process"
BODY = {"state": "running", "hostname": "h", "unixname": "u", "pid": 1, "start_date": "2026-01-01T00:00:00Z"}


def comparisons(home: Path) -> Iterator[dict[str, Any]]:
    """All of them."""
    os.environ["AIRFLOW__API_AUTH__JWT_SECRET"] = secrets.token_hex(32)
    policy = compiled(write_policies(home / "policies", teams=TEAMS))
    yield from starts(home)
    # Not before: the processes above are to be as they are without any setting.
    os.environ["AIRFLOW__TEAM_AUTHZ__POLICY"] = str(policy)
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundle = {"name": "team1", "classpath": local, "kwargs": {"path": str(home / "dags")}, "team_name": "team1"}
    os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps([bundle])
    _create_database()
    yield from events()
    yield from parsing(home)
    yield from tasks()


def starts(home: Path) -> Iterator[dict[str, Any]]:
    """A process that runs a task: until it could, without a question asked."""

    def start(**variables: str) -> Callable[[], None]:
        env = {"AIRFLOW_HOME": str(home), "PATH": os.environ["PATH"], **variables}
        code = "import airflow.settings, airflow.sdk.execution_time.supervisor, airflow.sdk.execution_time.task_runner"
        return lambda: subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True) and None

    ours = start(AIRFLOW__CORE__AUTH_MANAGER="airflow_team_authz.TeamAuthManager")
    yield from compare("start of a process that runs a task", {ALONE: start(), OURS: ours}, 10, {OURS: "100 ms more"})


def events() -> Iterator[dict[str, Any]]:
    """One event of a common task on an asset that Dags of all teams wait for."""
    from airflow.assets.manager import AssetManager
    from airflow.models.asset import AssetDagRunQueue, AssetModel
    from sqlalchemy import delete

    from airflow_team_authz.doors.datasets import TeamAssetManager

    task = SimpleNamespace(dag_id="common_dag", task_id="work", run_id="r", map_index=-1)

    def event(manager: Any) -> Callable[[], None]:
        def register() -> None:
            with _session() as session:
                asset = session.get(AssetModel, 1)
                manager.register_asset_change(task_instance=task, asset=asset, session=session)
                if session.query(AssetDagRunQueue).count() != CONSUMERS:
                    raise AssertionError("all of them take events of common Dags")
                session.execute(delete(AssetDagRunQueue))
                session.commit()

        return register

    contestants = {ALONE: event(AssetManager), OURS: event(TeamAssetManager)}
    yield from compare(f"an asset event for {CONSUMERS} Dags of {TEAMS} teams", contestants, 20, {})


def parsing(home: Path) -> Iterator[dict[str, Any]]:
    """Files with one Dag each, parsed, serialized and written, as the Dag processor does."""
    from airflow.dag_processing import collection
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db

    folder = home / "dags"
    folder.mkdir()
    lines = "\n".join(f'    EmptyOperator(task_id="t{number}", pool="pool")' for number in range(TASKS))
    for number in range(DAGS // 10):
        source = "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.empty import EmptyOperator\n"
        (folder / f"dag{number}.py").write_text(f'{source}with DAG("dag{number}", schedule=None):\n{lines}\n')

    def parse(write: Any) -> Callable[[], None]:
        def run() -> None:
            with _replaced(collection, "update_dag_parsing_results_in_db", write):
                for file in sorted(folder.glob("*.py")):
                    bag = BundleDagBag(dag_folder=str(file), bundle_path=folder, bundle_name="team1", safe_mode=False)
                    if bag.import_errors:
                        raise AssertionError(bag.import_errors)
                    with _session() as session:
                        sync_bag_to_db(bag, "team1", None, session=session)
                        session.commit()

        return run

    guarded = collection.update_dag_parsing_results_in_db
    alone = guarded.__closure__[0].cell_contents  # type: ignore[index]
    title = f"parsing {DAGS // 10} Dags of {TASKS} tasks, a file each"
    yield from compare(title, {ALONE: parse(alone), OURS: parse(guarded)}, 5, {OURS: "1.05 or less"})


def tasks() -> Iterator[dict[str, Any]]:
    """What a task asks of the API server from its start to its end: two variables, a connection, an XCom, its state."""
    from airflow.api_fastapi.common.dagbag import create_dag_bag
    from airflow.api_fastapi.execution_api import app as execution_api
    from fastapi.testclient import TestClient

    generator = execution_api._jwt_generator()

    def life(client: TestClient, task_id: str) -> Callable[[], None]:
        def run() -> None:
            id_ = _new_task(task_id)
            headers = {"Authorization": f"Bearer {generator.generate({'sub': id_, 'scope': 'execution'})}"}
            for method, path, more in (
                ("PATCH", f"task-instances/{id_}/run", {"json": BODY}),
                ("GET", "variables/key", {}),
                ("GET", "variables/key", {}),
                ("GET", "connections/db", {}),
                ("PUT", f"task-instances/{id_}/heartbeat", {"json": {"hostname": "h", "pid": 1}}),
                ("POST", f"xcoms/common_dag/r/{task_id}/return_value", {"json": "1"}),
                ("PATCH", f"task-instances/{id_}/state", {"json": {"state": "failed", "end_date": BODY["start_date"]}}),
            ):
                answer = client.request(method, f"/{path}", headers=headers, **more)
                if answer.status_code >= 300:
                    raise AssertionError(f"{path}: {answer.status_code} {answer.text}")

        return run

    ours, alone = execution_api.create_task_execution_api_app(), execution_api.create_task_execution_api_app()
    alone.dependency_overrides.clear()
    for app in (ours, alone):
        app.state.dag_bag = create_dag_bag()
    with TestClient(ours) as guarded, TestClient(alone) as unguarded:
        contestants = {ALONE: life(unguarded, "work"), OURS: life(guarded, "work2")}
        yield from compare("a task's requests, from start to end", contestants, 60, {})


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, kept)


def _session() -> Any:
    from airflow import settings

    assert settings.Session is not None
    return settings.NonScopedSession()  # type: ignore[misc]


def _create_database() -> None:
    """Teams, an asset that Dags of all of them wait for, a Dag run whose task asks for things, a pool."""
    import airflow.settings
    from airflow._shared.timezones import timezone
    from airflow.models import Connection, DagModel, Pool, Variable, import_all_models
    from airflow.models.asset import AssetActive, AssetModel, DagScheduleAssetReference
    from airflow.models.base import Base
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.models.team import Team
    from sqlalchemy import insert

    import_all_models()
    assert airflow.settings.engine is not None
    Base.metadata.create_all(airflow.settings.engine)
    with _session() as session:
        for number in range(TEAMS):
            bundle = DagBundleModel(name=f"team{number}")
            bundle.teams.append(Team(name=f"team{number}"))
            session.add(bundle)
        session.add(DagBundleModel(name="common"))
        session.flush()
        session.add(AssetModel(id=1, name="orders", uri="s3://orders", group="asset"))
        session.flush()
        session.add(AssetActive(name="orders", uri="s3://orders"))
        session.add(DagModel(dag_id="common_dag", bundle_name="common"))
        for number in range(CONSUMERS):
            dag_id = f"waits{number}"
            session.add(DagModel(dag_id=dag_id, bundle_name=f"team{number % TEAMS}", is_paused=False))
            session.flush()
            session.add(DagScheduleAssetReference(asset_id=1, dag_id=dag_id))
        session.add_all([Variable(key="key", val="1"), Connection(conn_id="db", conn_type="x")])
        session.add_all(Pool(pool=name, slots=1, include_deferred=False) for name in ("pool", "default_pool"))
        named = {"dag_id": "common_dag", "run_id": "r", "run_type": "manual", "state": "running", "clear_number": 0}
        session.execute(insert(DagRun).values(id=1, run_after=timezone.utcnow(), **named))
        session.commit()


def _new_task(task_id: str) -> str:
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import delete, insert

    id_ = uuid4()
    values = {"pool_slots": 1, "priority_weight": 1, "try_number": 1, "max_tries": 0, "map_index": -1}
    named = {"dag_id": "common_dag", "task_id": task_id, "run_id": "r", "pool": "default_pool", "state": "queued"}
    with _session() as session:
        session.execute(delete(TaskInstance).where(TaskInstance.task_id == task_id))
        session.execute(insert(TaskInstance).values(id=id_, queue="default", operator="x", **named, **values))
        session.commit()
    return str(id_)
