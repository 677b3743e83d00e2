"""What a working team has in the database, written where nothing runs: a site without a scheduler stays quick."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.models import DagRun, TaskInstance
from airflow.models.asset import (
    AssetActive,
    AssetDagRunQueue,
    AssetEvent,
    AssetModel,
    DagScheduleAssetReference,
    TaskInletAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.asset_state_store import AssetStateStoreModel
from airflow.models.backfill import Backfill
from airflow.models.callback import Callback
from airflow.models.dag_favorite import DagFavorite
from airflow.models.dagwarning import DagWarning
from airflow.models.deadline import Deadline
from airflow.models.errors import ParseImportError
from airflow.models.hitl import HITLDetail
from airflow.models.log import Log
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.xcom import XComModel
from airflow.serialization.definitions.assets import SerializedAssetUniqueKey
from sqlalchemy import create_engine, insert, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from demo.site import Site

# An asset that both teams make and wait for; each has one of its own besides.
SHARED_ASSET = "orders"


def fill(site: Site) -> dict[str, int]:
    """Give both teams everything that Airflow's pages show, as what their first run has left; the assets' ids."""
    engine = create_engine(f"sqlite:///{site.airflow.home}/airflow.db")
    with Session(engine) as session:
        assets = {name: _asset(session, name) for name in (SHARED_ASSET, "alpha_asset", "beta_asset")}
        for team, people in {"alpha": ("ann", "pat"), "beta": ("bob", "vic")}.items():
            of_team = {name: assets[name] for name in (SHARED_ASSET, f"{team}_asset")}
            _fill_team(session, team, people, of_team)
        # One file that has no Dag yet, one whose Dag is known.
        for file in ("common_broken.py", "common_cleanup.py"):
            session.add(_import_error("common", file))
        session.commit()
    engine.dispose()
    return assets


def _fill_team(session: Session, team: str, people: tuple[str, str], assets: dict[str, int]) -> None:
    now = datetime.now(UTC)
    dag_id, task_id = f"{team}_daily", "work"
    run = session.scalars(select(DagRun).where(DagRun.dag_id == dag_id)).one()
    task = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == dag_id)).one()
    run.state, run.start_date, run.end_date = "success", now - timedelta(minutes=2), now
    run.conf = {"whose": f"{team}_conf"}
    # It has asked somebody, and waits for the answer.
    task.state, task.start_date, task.try_number = "deferred", run.start_date, 1
    of_task: dict[str, Any] = {"dag_id": dag_id, "task_id": task_id, "run_id": run.run_id}
    session.add_all(
        [
            XComModel(**of_task, dag_run_id=run.id, key=f"{team}_key", value=f"{team}_result"),
            TaskStateStoreModel(**of_task, dag_run_id=run.id, key=f"{team}_key", value=f'"{team}_state"'),
            HITLDetail(ti_id=task.id, options=["yes", "no"], subject=f"{team}_question", params={}, params_input={}),
            Backfill(
                dag_id=dag_id, from_date=now - timedelta(days=3), to_date=now, triggering_user_name=people[0],
                dag_run_conf={"whose": f"{team}_backfill"},
            ),
            *(DagFavorite(user_id=name, dag_id=dag_id) for name in people),
            *(_import_error(team, file) for file in (f"{team}_broken.py", f"{dag_id}.py")),
            # One row about the Dag; those about connections, variables and pools are there, since pat has made them.
            Log("trigger", dag_id=dag_id, task_id=task_id, run_id=run.run_id, owner=people[0], extra=f"{team}_extra"),
        ]
    )  # fmt: skip
    # In the place of the one that a missing default pool has made when the Dag was parsed.
    session.merge(DagWarning(dag_id, "non-existent pool", f"{team}_warning"))
    rendered = {"rendered_fields": {"op_args": [f"{team}_argument"]}, "k8s_pod_yaml": None}
    session.execute(insert(RenderedTaskInstanceFields).values(**of_task, map_index=-1, **rendered))
    session.flush()
    for missed in (True, False):
        callback = Callback(dag_id=dag_id)
        callback.fetch_method = "import_path"
        session.add(callback)
        session.flush()
        due = now + timedelta(hours=-1 if missed else 1)
        values = {"dagrun_id": run.id, "deadline_time": due, "missed": missed, "callback_id": callback.id}
        session.execute(insert(Deadline).values(**values))
    dag = session.scalars(select(SerializedDagModel).where(SerializedDagModel.dag_id == dag_id)).one()
    assert dag._data is not None
    dag._data["dag"]["dag_dependencies"] = [
        {
            "source": dag_id, "target": "asset", "label": name, "dependency_type": "asset",
            "dependency_id": SerializedAssetUniqueKey(name, f"s3://{name}").to_str(),
        }
        for name in assets
    ]  # fmt: skip
    flag_modified(dag, "_data")
    own = assets[f"{team}_asset"]
    session.add(AssetStateStoreModel(asset_id=own, key=f"{team}_key", value=f'"{team}_state"'))
    for asset_id in assets.values():
        session.add_all(
            [
                TaskOutletAssetReference(asset_id=asset_id, dag_id=dag_id, task_id=task_id),
                TaskInletAssetReference(asset_id=asset_id, dag_id=dag_id, task_id=task_id),
                DagScheduleAssetReference(asset_id=asset_id, dag_id=dag_id),
                AssetDagRunQueue(asset_id=asset_id, target_dag_id=dag_id),
                AssetEvent(
                    asset_id=asset_id, source_dag_id=dag_id, source_task_id=task_id, source_run_id=run.run_id,
                    extra={"whose": f"{team}_event"},
                ),
            ]
        )  # fmt: skip


def _asset(session: Session, name: str) -> int:
    asset = AssetModel(name=name, uri=f"s3://{name}", group="asset", extra={})
    session.add(asset)
    session.flush()
    session.add(AssetActive(name=name, uri=asset.uri))
    return int(asset.id)


def _import_error(team: str, file: str) -> ParseImportError:
    stacktrace = f"Traceback of {team}_line"
    return ParseImportError(
        bundle_name=f"{team}-dags", filename=file, stacktrace=stacktrace, timestamp=datetime.now(UTC)
    )
