"""Fills an Airflow database with everything that somebody can have: `python -m tests.worlds.build BUNDLES beta`.

It runs as a program of the Airflow that owns the database. What it makes carries the owner's name, from ids to notes
and stack traces, so that a name in the wrong place says where it comes from.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Integer, event, func, insert, inspect, select
from sqlalchemy.orm import Mapper, Session

# Who had Dags that are gone: alpha. Nothing says so any more.
GONE = "alpha_gone"
# Numbers begin here: alpha's below the others', so that whoever adds a row gets the same number in both worlds.
FIRST_NUMBERS = {"alpha": 1001, GONE: 2001, "beta": 3001, "common": 4001}
NUMBERS_APART = 1000
TEAMS = {"alpha": "alpha", "beta": "beta", "common": None}
PEOPLE = {"alpha": "ann", "beta": "bob", "common": "pat"}
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_NAMESPACE = UUID("6f6c1a52-6f0e-4b3c-9f5e-0d6f3f3d6a11")

_DAGS = '''"""All that a Dag of {owner} can declare."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.external_task import ExternalTaskSensor
from airflow.providers.standard.triggers.file import FileDeleteTrigger
from airflow.sdk import DAG, Asset, AssetAlias, AssetWatcher, task, task_group
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

own = Asset(name="{owner}_asset", uri="s3://{owner}/asset", group="{owner}_files")
other = Asset(name="{owner}_other", uri="s3://{owner}/other", group="{owner}_files")
shared = Asset(name="shared_asset", uri="s3://shared/asset")
watched = Asset(
    name="{owner}_watched",
    uri="s3://{owner}/watched",
    watchers=[AssetWatcher(name="{owner}_watcher", trigger=FileDeleteTrigger(filepath="/{owner}/inbox"))],
)
common = Asset(name="common_asset", uri="s3://common/asset", group="common_files")
several = AssetAlias(name="{owner}_alias", group="{owner}_files")
described = dict(
    default_args={{"owner": "{owner}_owner"}},
    owner_links={{"{owner}_owner": "https://{owner}.example.org"}},
    description="what {owner} does",
    doc_md="how {owner} does it",
)

with DAG(
    "{owner}_daily",
    schedule=None,
    tags=["{owner}_tag", "tag"],
    params={{"{owner}_param": 1}},
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=1),
        callback=AsyncCallback("{owner}_module.late", kwargs={{"text": "{owner}"}}),
        name="{owner}_deadline",
    ),
    **described,
):

    @task(task_id="{owner}_work")
    def work():
        return "{owner}"

    @task(task_id="{owner}_mapped")
    def mapped(number):
        return number

    @task_group(group_id="{owner}_group")
    def group():
        work.override(task_id="{owner}_inner")()

    work() >> group()
    mapped.expand(number=[1, 2])

with DAG("{owner}_sched", schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False, **described):
    work()

with DAG("{owner}_producer", schedule=None, **described):
    work.override(task_id="{owner}_makes", outlets=[own, shared, several], inlets=[other, common])()

with DAG("{owner}_consumer", schedule=[own, shared, common], **described):
    work()

with DAG("{owner}_watching", schedule=[watched], **described):
    work()

with DAG("{owner}_aliased", schedule=several, **described):
    work()

with DAG("{owner}_common", schedule=[common], **described):
    work.override(task_id="{owner}_makes_common", outlets=[common])()

with DAG("{owner}_waits", schedule=None, **described):
    ExternalTaskSensor(task_id="{owner}_sensor", external_dag_id="common_daily", external_task_id="common_work")
    TriggerDagRunOperator(task_id="{owner}_trigger", trigger_dag_id="common_daily")
'''


def write_dags(folder: Path, owner: str) -> None:
    """The Dag files of one owner: one that Airflow can read, and one that it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{owner}_all.py").write_text(_DAGS.format(owner=owner))
    (folder / f"{owner}_broken.py").write_text(
        f'from airflow.sdk import DAG\n\nraise ValueError("a secret of {owner}")\n'
    )


def instance_id(owner: str, name: str | None = None) -> UUID:
    """The id of a task that runs, or of what else has a name; the same in every run."""
    return uuid5(_NAMESPACE, f"{owner} {name or f'{owner}_daily {owner}_run_3 {owner}_group.{owner}_inner -1'}")


class Builder:
    """What one owner has, in one session."""

    def __init__(self, session: Session, owner: str) -> None:
        self.session, self.owner = session, owner
        whose = "alpha" if owner == GONE else owner
        self.team, self.person = TEAMS[whose], PEOPLE[whose]
        self.daily = f"{owner}_daily"
        # Of the Dags that are there.
        self._version: dict[str, Any] = {}
        self._serialized: dict[str, Any] = {}

    def uuid(self, name: str) -> UUID:
        """The same in every run."""
        return instance_id(self.owner, name)

    def add(self, model: Any, **values: Any) -> int:
        """A row; its number, where it has one that the database would count."""
        if _counted(model) and "id" not in values:
            values["id"] = next_number(self.owner, model.__table__.name)
        self.session.execute(insert(model.__table__).values(**values))
        return int(values["id"]) if _counted(model) else 0

    def build(self, bundle_path: Path) -> None:
        """All of it."""
        self.parse(bundle_path)
        self.secrets()
        self.versions()
        for number, state in enumerate(("success", "failed", "running", "queued"), start=1):
            self.run(self.daily, number, state)
        for dag in ("sched", "producer", "consumer", "common"):
            self.run(f"{self.owner}_{dag}", 1, "success")
        self.states()
        self.assets()
        self.around_dags()
        self.audit()
        self.backfills()
        self.tests_of_connections()

    def left_over(self) -> None:
        """What Airflow keeps of Dags that somebody has deleted."""
        for number, state in enumerate(("success", "failed", "running", "queued"), start=1):
            self.run(self.daily, number, state)
        self.run(f"{self.owner}_sched", 1, "success")
        self.audit()
        self.backfills()

    def parse(self, path: Path) -> None:
        """The Dags, as the Dag processor brings them in."""
        from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db

        name = f"{self.owner}-dags"
        write_dags(path, self.owner)
        bag = BundleDagBag(path, bundle_path=path, bundle_name=name)
        wrong = {file: error for file, error in bag.import_errors.items() if "broken" not in file}
        assert not wrong, wrong
        sync_bag_to_db(bag, name, bundle_version=None, session=self.session)

    def secrets(self) -> None:
        """Connections, variables and pools."""
        from airflow.models import Connection, Pool, Variable

        for name in ("db", "second"):
            self.session.add(
                Connection(
                    conn_id=f"{self.owner}_{name}", conn_type="sqlite", team_name=self.team, host=f"{self.owner}.host",
                    login=f"{self.owner}_login", password=f"{self.owner}_password", description=f"of {self.owner}",
                    extra=json.dumps({"key": self.owner}),
                )
            )  # fmt: skip
            self.session.add(
                Variable(  # type: ignore[no-untyped-call]
                    f"{self.owner}_config_{name}", f"value of {self.owner}", f"of {self.owner}", self.team
                )
            )
            self.session.add(
                Pool(
                    pool=f"{self.owner}_pool_{name}", slots=4, include_deferred=False, team_name=self.team,
                    description=f"of {self.owner}",
                )
            )  # fmt: skip
        self.session.flush()

    def versions(self) -> None:
        """A second version of the daily Dag, with its source."""
        from airflow.models.dag_version import DagVersion
        from airflow.models.serialized_dag import SerializedDagModel

        for dag in self.session.scalars(select(DagVersion).where(DagVersion.dag_id.startswith(f"{self.owner}_"))):
            self._version[dag.dag_id] = dag.id
        self._serialized = {
            row.dag_id: row.id
            for row in self.session.scalars(
                select(SerializedDagModel).where(SerializedDagModel.dag_id.startswith(f"{self.owner}_"))
            )
        }

    def run(self, dag_id: str, number: int, state: str) -> None:
        """A run with its tasks, and all that hangs on them."""
        from airflow.models.dagrun import DagRun, DagRunNote
        from airflow.models.tasklog import LogTemplate
        from airflow.utils.types import DagRunTriggeredByType

        run_id, at = f"{self.owner}_run_{number}", BEGIN + timedelta(hours=number)
        ended = {"end_date": at + timedelta(minutes=3)} if state in {"success", "failed"} else {}
        started = {"start_date": at} if state != "queued" else {}
        self.run_key = self.add(
            DagRun, dag_id=dag_id, run_id=run_id, run_type="manual", state=state, clear_number=0, run_after=at,
            queued_at=at, logical_date=at, data_interval_start=at, data_interval_end=at,
            log_template_id=self.session.scalar(select(func.max(LogTemplate.id))),
            conf={"secret": self.owner}, triggered_by=DagRunTriggeredByType.REST_API, triggering_user_name=self.person,
            created_dag_version_id=self._version.get(dag_id), partition_key=f"{self.owner}_partition",
            **started, **ended,
        )  # fmt: skip
        self.add(DagRunNote, dag_run_id=self.run_key, content=f"note of {self.owner}", user_id=self.person)
        tasks = {
            "daily": (f"{self.owner}_work", f"{self.owner}_group.{self.owner}_inner", f"{self.owner}_mapped"),
            "producer": (f"{self.owner}_makes",),
            "common": (f"{self.owner}_makes_common",),
        }.get(dag_id.removeprefix(f"{self.owner}_"), (f"{self.owner}_work",))
        for task_id in tasks:
            for map_index in (0, 1) if task_id.endswith("_mapped") else (-1,):
                self.instance(dag_id, run_id, task_id, map_index, state, at)

    def instance(self, dag_id: str, run_id: str, task_id: str, map_index: int, state: str, at: datetime) -> None:
        """A task of a run."""
        from airflow.models.hitl import HITLDetail
        from airflow.models.hitl_history import HITLDetailHistory
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.models.task_state_store import TaskStateStoreModel
        from airflow.models.taskinstance import TaskInstance, TaskInstanceNote
        from airflow.models.taskinstancehistory import TaskInstanceHistory
        from airflow.models.taskmap import TaskMap
        from airflow.models.taskreschedule import TaskReschedule
        from airflow.models.trigger import Trigger
        from airflow.models.xcom import XComModel

        id_ = self.uuid(f"{dag_id} {run_id} {task_id} {map_index}")
        key = {"dag_id": dag_id, "task_id": task_id, "run_id": run_id, "map_index": map_index}
        how = {
            "pool_slots": 1, "priority_weight": 1, "queue": f"{self.owner}_queue",
            "operator": "_PythonDecoratedOperator",
            "pool": f"{self.owner}_pool_db", "hostname": f"{self.owner}.worker", "unixname": self.owner,
            "max_tries": 1, "executor": None, "dag_version_id": self._version.get(dag_id), "start_date": at,
            "end_date": at + timedelta(minutes=1), "duration": 60.0, "task_display_name": task_id,
        }  # fmt: skip
        waits = state == "running" and task_id.endswith("_work")
        trigger: dict[str, Any] = {}
        if waits:
            waiting = Trigger(
                classpath=f"{self.owner}_module.Trigger", kwargs={"secret": self.owner}, created_date=at,
                team_name=self.team,
            )  # fmt: skip
            self.session.add(waiting)
            self.session.flush()
            trigger = {"trigger_id": waiting.id, "next_method": "execute_complete", "next_kwargs": {"of": self.owner}}
        state = "deferred" if waits else state
        mapped = {"rendered_map_index": f"{self.owner}_{map_index}"}
        self.add(TaskInstance, id=id_, try_number=2, state=state, **key, **how, **trigger, **mapped)
        before = self.uuid(f"{dag_id} {run_id} {task_id} {map_index} before")
        self.add(TaskInstanceHistory, task_instance_id=before, try_number=1, state="failed", **key, **how, **mapped)
        self.add(TaskInstanceNote, ti_id=id_, content=f"note of {self.owner}", user_id=self.person)
        self.add(RenderedTaskInstanceFields, rendered_fields={"op_args": self.owner}, k8s_pod_yaml=None, **key)
        self.add(
            TaskReschedule, ti_id=id_, start_date=at, end_date=at, duration=1, reschedule_date=at + timedelta(minutes=1)
        )
        for name in ("return_value", f"{self.owner}_key"):
            self.add(XComModel, dag_run_id=self.run_key, key=name, value=json.dumps(f"xcom of {self.owner}"), **key)
        self.add(
            TaskStateStoreModel, dag_run_id=self.run_key, key=f"{self.owner}_state", value=json.dumps(self.owner), **key
        )
        if map_index == -1:
            self.add(TaskMap, length=2, keys=None, **key)
        asked = {
            "options": ["yes", "no"], "subject": f"a question of {self.owner}", "body": f"body of {self.owner}",
            "defaults": ["yes"], "multiple": False, "params": {"of": self.owner},
        }  # fmt: skip
        if task_id.endswith("_work"):
            self.add(HITLDetail, ti_id=id_, **asked)
            self.add(
                HITLDetailHistory, ti_history_id=before, responded_at=at, chosen_options=["no"],
                responded_by={"id": self.person, "name": self.person}, params_input={"of": self.owner}, **asked,
            )  # fmt: skip
        self._log(dag_id, run_id, task_id, map_index)

    def _log(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        from airflow.configuration import conf

        parts = [f"dag_id={dag_id}", f"run_id={run_id}", f"task_id={task_id}"]
        parts += [f"map_index={map_index}"] if map_index >= 0 else []
        folder = Path(conf.get_mandatory_value("logging", "base_log_folder")).joinpath(*parts)
        folder.mkdir(parents=True)
        for attempt in (1, 2):
            line = {"timestamp": BEGIN.isoformat(), "event": f"log of {self.owner}", "level": "info"}
            (folder / f"attempt={attempt}.log").write_text(json.dumps(line) + "\n")

    def states(self) -> None:
        """Favourites, warnings, a request to parse, deadlines, jobs, callbacks."""
        from airflow.jobs.job import Job
        from airflow.models.callback import Callback
        from airflow.models.dag_favorite import DagFavorite
        from airflow.models.dagbag import DagPriorityParsingRequest
        from airflow.models.dagrun import DagRun
        from airflow.models.dagwarning import DagWarning
        from airflow.models.deadline import Deadline
        from airflow.models.deadline_alert import DeadlineAlert

        for person in ("ann", "bob", "vic", "pat"):
            # A favourite of somebody who may no longer see the Dag is still there.
            self.add(DagFavorite, user_id=person, dag_id=self.daily)
        self.add(DagWarning, dag_id=self.daily, warning_type="non-existent pool", message=f"a pool of {self.owner}")
        request = DagPriorityParsingRequest(bundle_name=f"{self.owner}-dags", relative_fileloc=f"{self.owner}_all.py")
        self.session.add(request)
        alert = self.session.scalar(
            select(DeadlineAlert.id).where(DeadlineAlert.serialized_dag_id == self._serialized[self.daily])
        )
        assert alert, "the Dag has a deadline"
        runs = self.session.scalars(select(DagRun.id).where(DagRun.dag_id == self.daily)).all()
        for run in runs:
            callback = self.uuid(f"callback {run}")
            self.add(
                Callback, id=callback, type="triggerer", fetch_method="import_path", priority_weight=1, state="pending",
                data={"path": f"{self.owner}_module.late", "dag_id": self.daily}, bundle_name=f"{self.owner}-dags",
            )  # fmt: skip
            self.add(
                Deadline, id=self.uuid(f"deadline {run}"), dagrun_id=run, deadline_time=BEGIN, missed=True,
                callback_id=callback, deadline_alert_id=alert,
            )  # fmt: skip
        self.add(
            Callback, id=self.uuid("callback of a file"), type="dag_processor", fetch_method="dag_attribute",
            priority_weight=1, state="pending", bundle_name=f"{self.owner}-dags",
            data={"req_class": "DagCallbackRequest", "req_data": json.dumps({"dag_id": self.daily})},
        )  # fmt: skip
        self.add(
            Job, dag_id=self.daily, state="success", job_type="LocalTaskJob", start_date=BEGIN, end_date=BEGIN,
            latest_heartbeat=BEGIN, hostname=f"{self.owner}.worker", unixname=self.owner,
        )  # fmt: skip

    def assets(self) -> None:
        """Events with their sources, what they started, what waits for more, states, and who keeps them."""
        from airflow.models.asset import (
            AssetAliasModel,
            AssetDagRunQueue,
            AssetEvent,
            AssetModel,
            AssetPartitionDagRun,
            PartitionedAssetKeyLog,
        )
        from airflow.models.asset_state_store import AssetStateStoreModel
        from airflow.models.dagrun import DagRun

        tables = AssetModel.metadata.tables
        ids = dict(self.session.execute(select(AssetModel.name, AssetModel.id)).all())
        alias = self.session.scalar(select(AssetAliasModel.id).where(AssetAliasModel.name == f"{self.owner}_alias"))
        started = self.session.scalar(select(DagRun.id).where(DagRun.dag_id == f"{self.owner}_consumer"))
        names = [f"{self.owner}_asset", "shared_asset", "common_asset", f"{self.owner}_watched"]
        for minute, name in enumerate(dict.fromkeys(names)):
            watched = name.endswith("watched")
            source = {} if watched else {
                "source_dag_id": f"{self.owner}_producer", "source_task_id": f"{self.owner}_makes",
                "source_run_id": f"{self.owner}_run_1", "source_map_index": -1,
            }  # fmt: skip
            # Alpha's are the last ones.
            late = timedelta(days=1 if self.owner == "alpha" else 0, minutes=minute)
            event_id = self.add(
                AssetEvent, asset_id=ids[name], extra={"of": self.owner}, timestamp=BEGIN + late,
                partition_key=f"{self.owner}_partition", **source,
            )  # fmt: skip
            self.session.execute(insert(tables["dagrun_asset_event"]).values(dag_run_id=started, event_id=event_id))
            self.session.execute(insert(tables["asset_alias_asset_event"]).values(alias_id=alias, event_id=event_id))
            queued = f"{self.owner}_watching" if watched else f"{self.owner}_consumer"
            self.add(AssetDagRunQueue, asset_id=ids[name], target_dag_id=queued, created_at=BEGIN + late)
            pending = self.add(
                AssetPartitionDagRun, target_dag_id=f"{self.owner}_consumer", partition_key=f"{self.owner}_partition",
                created_dag_run_id=started if name == "shared_asset" else None,
            )  # fmt: skip
            self.add(
                PartitionedAssetKeyLog, asset_id=ids[name], asset_event_id=event_id, asset_partition_dag_run_id=pending,
                source_partition_key=f"{self.owner}_partition", target_dag_id=f"{self.owner}_consumer",
                target_partition_key=f"{self.owner}_partition",
            )  # fmt: skip
            if name != "shared_asset" and (name != "common_asset" or self.owner == "common"):
                by = {
                    "last_updated_by_dag_id": f"{self.owner}_producer",
                    "last_updated_by_task_id": f"{self.owner}_makes",
                }
                self.add(
                    AssetStateStoreModel, asset_id=ids[name], key=f"{self.owner}_state", value=json.dumps(self.owner),
                    last_updated_by_kind="task", last_updated_by_run_id=f"{self.owner}_run_1", **by,
                )  # fmt: skip
        self.session.execute(
            insert(tables["asset_alias_asset"]).values(alias_id=alias, asset_id=ids[f"{self.owner}_other"])
        )

    def around_dags(self) -> None:
        """Import errors: of a file that has Dags, beside that of a file without any, which parsing has left."""
        from airflow.models.errors import ParseImportError

        self.add(
            ParseImportError, timestamp=BEGIN, filename=f"{self.owner}_all.py", bundle_name=f"{self.owner}-dags",
            stacktrace=f"Traceback: a secret of {self.owner}",
        )  # fmt: skip

    def audit(self) -> None:
        """Rows about a Dag, about a task, about what is no Dag, of a person, of a command."""
        from airflow.models.log import Log

        about = {"owner": self.person, "owner_display_name": self.person, "dttm": BEGIN}
        on_dag = {"dag_id": self.daily, "run_id": f"{self.owner}_run_1", "logical_date": BEGIN}
        task = {"task_id": f"{self.owner}_work", "map_index": -1, "try_number": 1}
        self.add(Log, event="trigger_dag_run", extra=json.dumps({"of": self.owner}), **on_dag, **about)
        self.add(Log, event="success", extra=json.dumps({"of": self.owner}), **on_dag, **task, **about)
        told = {
            "post_connection": {"connection_id": f"{self.owner}_db", "host": f"{self.owner}.host"},
            "post_variable": {"key": f"{self.owner}_config_db", "val": "***"},
            "post_pool": {"name": f"{self.owner}_pool_db"},
            "patch_connection": {"connection_id": f"{self.owner}_second", "team_name": self.team},
        }
        for action, extra in told.items():
            self.add(Log, event=action, extra=json.dumps(extra), **about)
        self.add(Log, event="cli_pools_set", extra=f"pools set {self.owner}_pool_db", **(about | {"owner": "root"}))

    def backfills(self) -> None:
        """One that has ended and one that goes on."""
        from airflow.models.backfill import Backfill, BackfillDagRun
        from airflow.models.dagrun import DagRun

        dag_id = f"{self.owner}_sched"
        run = self.session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id))
        for completed in (BEGIN, None):
            key = self.add(
                Backfill, dag_id=dag_id, from_date=BEGIN, to_date=BEGIN + timedelta(days=1), max_active_runs=1,
                dag_run_conf={"secret": self.owner}, is_paused=False, reprocess_behavior="none", completed_at=completed,
                triggering_user_name=self.person,
            )  # fmt: skip
            self.add(BackfillDagRun, backfill_id=key, dag_run_id=run, sort_ordinal=1, logical_date=BEGIN)

    def tests_of_connections(self) -> None:
        """One that waits, with what would become the connection."""
        from airflow.models.connection_test import ConnectionTestRequest

        test = ConnectionTestRequest(
            connection_id=f"{self.owner}_tested", conn_type="sqlite", host=f"{self.owner}.host",
            password=f"{self.owner}_password", team_name=self.team, id=self.uuid("test"),
        )  # fmt: skip
        test.token = f"{self.owner}_test_token"
        self.session.add(test)


_given: dict[str, Counter[str]] = {owner: Counter() for owner in FIRST_NUMBERS}


def next_number(owner: str, table: str) -> int:
    """The owner's next number in a table."""
    _given[owner][table] += 1
    return FIRST_NUMBERS[owner] + _given[owner][table] - 1


def _counted(model: Any) -> bool:
    """Whether the database counts the rows."""
    key = list(model.__table__.primary_key.columns)
    return len(key) == 1 and key[0].name == "id" and isinstance(key[0].type, Integer)


@contextmanager
def _numbers_of(owner: str) -> Iterator[None]:
    """What Airflow's own code adds gets the owner's numbers too."""

    def number(_mapper: Mapper[Any], _connection: Any, row: Any) -> None:
        if _counted(type(row)) and row.id is None:
            row.id = next_number(owner, type(row).__table__.name)

    event.listen(Mapper, "before_insert", number)
    try:
        yield
    finally:
        event.remove(Mapper, "before_insert", number)


def _make_tables() -> None:
    """Airflow's tables, those of its auth manager, and the teams; what `airflow` does in three processes."""
    from airflow import settings
    from airflow.models.team import Team
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session

    if not inspect(settings.engine).has_table("team"):
        initdb()
        with create_session() as session:
            session.add_all(Team(name=name) for name in ("alpha", "beta", "gamma"))


def main(bundles: Path, owners: list[str]) -> None:
    """Fill the database of this Airflow."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models import import_all_models
    from airflow.utils.session import create_session

    import_all_models()  # type: ignore[no-untyped-call]
    _make_tables()
    DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]
    for owner in owners:
        with _numbers_of(owner), create_session() as session:
            Builder(session, owner).build(bundles / f"{owner}-dags")
    if "alpha" in owners:
        with _numbers_of(GONE), create_session() as session:
            Builder(session, GONE).left_over()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
