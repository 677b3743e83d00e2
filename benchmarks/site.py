"""An Airflow's database as it is after years: teams, their Dags, and what has piled up about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

TASKS = ("extract", "transform", "check", "load")
EVENTS_OF_AN_ASSET = 10
NOW = datetime.now(UTC).replace(microsecond=0)


class Size(NamedTuple):
    """How much there is. Only the newest runs still have their task instances, four each."""

    teams: int = 100
    dags_of_a_team: int = 10
    runs_of_a_dag: int = 100
    runs_with_tasks: int = 25
    audit_rows_of_a_dag: int = 90
    audit_rows_of_no_dag: int = 10_000
    import_errors: int = 5_000
    assets: int = 500
    connections_of_a_team: int = 5


def fill(size: Size, env: Mapping[str, str]) -> None:
    """Fill the database that the settings in ``env`` name, in a process of its own. It may be empty."""
    env = {**env, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import json, sys\nfrom benchmarks.site import Size, _fill\n_fill(Size(*json.loads(sys.argv[1])))"
    subprocess.run([sys.executable, "-c", code, json.dumps(size)], env=env, check=True)


def _fill(size: Size) -> None:
    import airflow.settings
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from sqlalchemy import insert, text

    import_all_models()
    engine = airflow.settings.engine
    assert engine is not None
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for name, rows in _tables(size):
            connection.execute(insert(Base.metadata.tables[name]), rows)
        if engine.dialect.name == "postgresql":
            # Its servers do this on their own after a while.
            connection.execute(text("ANALYZE"))


def _tables(size: Size) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Names of tables with their rows, what is referred to first."""
    teams = [f"team{number}" for number in range(size.teams)]
    dags = [(f"{team}_dag{number}", team) for team in teams for number in range(size.dags_of_a_team)]
    versions = {dag_id: uuid4() for dag_id, _ in dags}
    yield "team", [{"name": team} for team in teams]
    yield "dag_bundle", [{"name": team, "active": True} for team in teams]
    yield "dag_bundle_team", [{"dag_bundle_name": team, "team_name": team} for team in teams]
    yield (
        "slot_pool",
        [
            {"pool": name, "slots": 1, "include_deferred": False, "team_name": team}
            for name, team in [("default_pool", None), *((f"{team}_pool", team) for team in teams)]
        ],
    )
    connections = [(team, number) for team in teams for number in range(size.connections_of_a_team)]
    yield (
        "connection",
        [
            {"conn_id": f"{team}_connection{number}", "conn_type": "x", "is_encrypted": False, "team_name": team}
            for team, number in connections
        ],
    )
    yield (
        "variable",
        [
            {"key": f"{team}_variable{number}", "val": "1", "is_encrypted": False, "team_name": team}
            for team, number in connections
        ],
    )
    yield "log_template", [{"filename": "x", "elasticsearch_id": "x"}]
    yield "dag", [
        {
            "dag_id": dag_id, "dag_display_name": dag_id, "bundle_name": team, "is_paused": False, "is_stale": False,
            "fileloc": f"/dags/{dag_id}.py", "relative_fileloc": f"{dag_id}.py", "owners": team,
            "last_parsed_time": NOW, "timetable_type": "x", "timetable_summary": "None", "timetable_description": "x",
            "timetable_partitioned": False, "timetable_periodic": False, "max_active_tasks": 16, "max_active_runs": 16,
            "max_consecutive_failed_dag_runs": 0, "has_task_concurrency_limits": False, "has_import_errors": False,
        }
        for dag_id, team in dags
    ]  # fmt: skip
    yield "dag_tag", [{"name": f"tag {number % 20}", "dag_id": dag_id} for number, (dag_id, _) in enumerate(dags)]
    yield (
        "dag_version",
        [{"id": versions[dag_id], "version_number": 1, "dag_id": dag_id, "bundle_name": team} for dag_id, team in dags],
    )
    yield "serialized_dag", list(_serialized(versions))
    yield "dag_run", list(_runs(size, versions))
    yield "task_instance", list(_task_instances(size, versions))
    yield "log", list(_audit_rows(size, dags))
    yield "import_error", [
        {"timestamp": NOW, "filename": f"{dag_id}.py" if number < len(dags) else f"file{number}.py",
         "bundle_name": team, "stacktrace": "Traceback\n" * 20}
        for number in range(size.import_errors) for dag_id, team in [dags[number % len(dags)]]
    ]  # fmt: skip
    names = [f"asset{number}" for number in range(size.assets)]
    yield (
        "asset",
        [{"id": id_, "name": name, "uri": f"s3://{name}", "group": "asset"} for id_, name in enumerate(names, 1)],
    )
    yield "asset_active", [{"name": name, "uri": f"s3://{name}"} for name in names]
    waiting = [(1 + number % size.assets, dag_id) for number, (dag_id, _) in enumerate(dags)]
    yield (
        "dag_schedule_asset_reference",
        [{"asset_id": id_, "dag_id": dag_id, "allow_global_producers": True} for id_, dag_id in waiting],
    )
    making = [(1 + (number + 7) % size.assets, dag_id) for number, (dag_id, _) in enumerate(dags)]
    yield (
        "task_outlet_asset_reference",
        [
            {"asset_id": id_, "dag_id": dag_id, "task_id": "load", "allow_global_consumers": True}
            for id_, dag_id in making
        ],
    )
    yield "asset_event", [
        {"asset_id": id_, "source_dag_id": dag_id, "source_task_id": "load", "source_map_index": -1,
         "source_run_id": f"run{size.runs_of_a_dag - 1 - number}", "timestamp": NOW - timedelta(minutes=number)}
        for id_, dag_id in making[:size.assets] for number in range(EVENTS_OF_AN_ASSET)
    ]  # fmt: skip


def _serialized(versions: Mapping[str, UUID]) -> Iterator[dict[str, Any]]:
    """One Dag, which goes by as many names as there are Dags."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("THE_DAG", schedule=None) as dag:
        first, *others = (EmptyOperator(task_id=task_id) for task_id in TASKS)
        for other in others:
            first >> other
            first = other
    text = json.dumps(DagSerialization.to_dict(dag))
    for dag_id, version in versions.items():
        data = json.loads(text.replace("THE_DAG", dag_id))
        yield {"dag_id": dag_id, "data": data, "dag_hash": version.hex, "dag_version_id": version}


def _runs(size: Size, versions: Mapping[str, UUID]) -> Iterator[dict[str, Any]]:
    for dag_id, version in versions.items():
        for number in range(size.runs_of_a_dag):
            start = NOW - timedelta(hours=size.runs_of_a_dag - number)
            yield {
                "dag_id": dag_id, "run_id": f"run{number}", "run_type": "scheduled", "logical_date": start,
                "state": "failed" if number % 10 == 0 else "success", "start_date": start, "clear_number": 0,
                "end_date": start + timedelta(minutes=5), "queued_at": start, "run_after": start, "conf": {},
                "data_interval_start": start, "data_interval_end": start, "log_template_id": 1,
                "created_dag_version_id": version,
            }  # fmt: skip


def _task_instances(size: Size, versions: Mapping[str, UUID]) -> Iterator[dict[str, Any]]:
    for dag_id, version in versions.items():
        for number in range(size.runs_of_a_dag - size.runs_with_tasks, size.runs_of_a_dag):
            start = NOW - timedelta(hours=size.runs_of_a_dag - number)
            for task_id in TASKS:
                yield {
                    "id": uuid4(), "dag_id": dag_id, "run_id": f"run{number}", "task_id": task_id, "map_index": -1,
                    "task_display_name": task_id, "state": "success", "start_date": start, "duration": 60,
                    "end_date": start + timedelta(minutes=1), "try_number": 1, "max_tries": 0, "hostname": "h",
                    "unixname": "u", "pool": "default_pool", "queue": "default", "priority_weight": 1,
                    "operator": "EmptyOperator", "executor_config": {}, "dag_version_id": version,
                }  # fmt: skip


def _audit_rows(size: Size, dags: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for number in range(size.audit_rows_of_a_dag):
        for dag_id, team in dags:
            yield {
                "dttm": NOW - timedelta(minutes=number), "dag_id": dag_id, "task_id": TASKS[number % 4],
                "map_index": -1, "run_id": f"run{number}", "event": "success", "owner": team,
                "owner_display_name": team, "extra": '{"host_name": "h"}', "try_number": 1,
            }  # fmt: skip
    nothing = dict.fromkeys(("dag_id", "task_id", "map_index", "run_id", "try_number"))
    for number in range(size.audit_rows_of_no_dag):
        told = {"event": "post_connection", "owner": "pat", "owner_display_name": "pat", "extra": "{}"}
        yield {"dttm": NOW - timedelta(seconds=number), **told, **nothing}
