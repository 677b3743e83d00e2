"""What tasks, asset events and parsed Dags cost, with and without this package, on SQLite in one process."""

from __future__ import annotations

import json
import os
import resource
import secrets
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from benchmarks.harness import compare, compiled, write_policies
from demo.airflow import Airflow, merged

TEAMS = 50
CONSUMERS = 500
DAGS = 500
DAGS_PER_FILE = 5
TASKS = 20
SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
ALONE, OURS = "Airflow alone", "with this package, in process"
BODY = {"state": "running", "hostname": "h", "unixname": "u", "pid": 1, "start_date": "2026-01-01T00:00:00Z"}


def comparisons(home: Path, _: Namespace) -> Iterator[dict[str, Any]]:
    """All of them."""
    os.environ["AIRFLOW__API_AUTH__JWT_SECRET"] = secrets.token_hex(32)
    policy = compiled(write_policies(home / "policies", teams=TEAMS))
    yield from starts(home)
    # Not before: the processes above are to be as they are without any setting.
    os.environ["AIRFLOW__TEAM_AUTHZ__POLICY"] = str(policy)
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

    from airflow_team_authz.doors.assets import TeamAssetManager

    runs = count()

    def event(manager: Any) -> Callable[[], None]:
        def register() -> None:
            # Each of another run, as in life: what was asked about the run before is of no use.
            task = SimpleNamespace(dag_id="common_dag", task_id="work", run_id=f"r{next(runs)}", map_index=-1)
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
    """A real Dag processor goes three times over files with Dags, and writes what it finds into its database."""
    lines = "\n".join(f'        EmptyOperator(task_id="t{number}", pool="pool")' for number in range(TASKS))
    dags = f'for number in range({DAGS_PER_FILE}):\n    with DAG(f"dag{{FILE}}_{{number}}", schedule=None):\n{lines}\n'
    imports = "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.empty import EmptyOperator\n"
    folder = home / "dags"
    folder.mkdir()
    for number in range(DAGS // DAGS_PER_FILE):
        (folder / f"file{number}.py").write_text(f"{imports}FILE = {number}\n{dags}")
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": "dags", "classpath": local, "kwargs": {"path": str(folder)}, "team_name": "alpha"}]
    told = {
        "core": {"multi_team": "True"},
        "dag_processor": {
            "dag_bundle_config_list": json.dumps(bundles),
            "parsing_processes": "2",
            "min_file_process_interval": "0",
        },
    }

    def processor(name: str, **more: dict[str, str]) -> Callable[[], None]:
        airflow = Airflow(home / name, merged(told, more))
        airflow.run_all(("db", "migrate"), ("teams", "create", "alpha"), ("teams", "sync"))
        return lambda: airflow.run("dag-processor", "--num-runs", "3") and None

    alone = processor("alone", core={"auth_manager": SIMPLE})
    ours = processor("ours", core={"auth_manager": "airflow_team_authz.TeamAuthManager"})
    title = f"parsing {DAGS} Dags of {TASKS} tasks in {DAGS // DAGS_PER_FILE} files, by a Dag processor, processor time"
    yield from compare(title, {ALONE: alone, OURS: ours}, 3, {OURS: "1.05 or less"}, _children)


def _children() -> float:
    """Seconds that programs which have ended have kept a processor busy: steadier than a clock on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tasks() -> Iterator[dict[str, Any]]:
    """What a task asks of the API server from its start to its end, each in a process of its own."""
    ours, alone = Child("ours"), Child("alone", AIRFLOW__TEAM_AUTHZ__POLICY=None)
    try:
        yield from compare("a task's requests, from start to end", {ALONE: alone.ask, OURS: ours.ask}, 100, {})
    finally:
        for child in (ours, alone):
            child.close()


class Child:
    """A process that does as its first argument says, once for each line it gets."""

    def __init__(self, task_id: str, **variables: str | None) -> None:
        env = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
        command = [sys.executable, "-c", "import sys\nfrom benchmarks.doors import live\nlive(sys.argv[1])", task_id]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=env, **pipes)

    def ask(self) -> None:
        """Have it done once, and wait for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        while (line := self._process.stdout.readline()) != "done\n":
            if not line:
                raise AssertionError("the process has ended")

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def live(name: str) -> None:
    """Lives of a task, one for each line of the input: two variables, a connection, an XCom, its end."""
    import airflow.settings  # noqa: F401
    from airflow.api_fastapi.common.dagbag import create_dag_bag
    from airflow.api_fastapi.execution_api import app as execution_api
    from fastapi.testclient import TestClient

    generator = execution_api._jwt_generator()
    app = execution_api.create_task_execution_api_app()
    app.state.dag_bag = create_dag_bag()
    with TestClient(app) as client:
        for number, _ in enumerate(sys.stdin):
            id_ = _new_task(task_id := f"{name}{number}")
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
            print("done", flush=True)


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
