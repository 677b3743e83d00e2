"""Which rows of Airflow's database belong to whom: one table, from each mapped class to how its rows name their owner.

An owner is a column of the row or of a row that it hangs on. ``criteria`` says which rows a subject may read, or write
in bulk, as a condition of a query. A mapped class that is in neither table here fails a test.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from airflow.models import import_all_models
from airflow.models.base import Base
from msgspec import UNSET, UnsetType
from sqlalchemy import ColumnElement, and_, bindparam, exists, false, func, inspect, literal, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from airflow_team_authz.doors.asset_owners import owning_teams
from airflow_team_authz.identities.machines import teams_of_dags
from airflow_team_authz.model import Resource

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_team_authz.doors.readable import Readable

ANY_PART = frozenset({"*"})


class Owner(Protocol):
    """How the rows of a class name their owner."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        """Which rows may be read, or with ``writes`` changed in bulk; ``None`` for all of them."""

    def resources(self, row: Any, session: Session) -> set[Resource]:
        """Resources of the questions about writing this row. The policy has to allow all of them."""


class OfDag(NamedTuple):
    """A row with the id of its Dag; it is read by whom may read this ``entity`` of the Dag.

    Who was allowed one of ``also`` of a Dag by name needs these rows to answer that request, and sees them there.
    """

    column: str = "dag_id"
    entity: str | UnsetType = UNSET
    also: frozenset[str] = frozenset()

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        column = getattr(entity, self.column)
        scope = readable.dags(self.entity, self.also, writes)
        return None if scope.everything else _among(column, scope.ids)

    def resources(self, row: Any, session: Session) -> set[Resource]:
        return {_dag(getattr(row, self.column), self.entity, session)}


class OfDagIfAny(NamedTuple):
    """A row that may have the id of a Dag; without one it is a process of the platform's, which all may see."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        of_dag = OfDag().criteria(entity, readable, writes)
        return None if of_dag is None else or_(entity.dag_id.is_(None), of_dag)

    def resources(self, row: Any, session: Session) -> set[Resource]:  # noqa: ARG002
        return {_platforms(row)}


class DagRow(NamedTuple):
    """A Dag itself. Those of the same file are seen too: Airflow asks itself whether all of a file may be read."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        scope = readable.dags(UNSET, ANY_PART, writes)
        if scope.everything:
            return None
        return _among(entity.dag_id, scope.ids if writes else readable.with_same_file(scope.ids))

    def resources(self, row: Any, session: Session) -> set[Resource]:
        return {_dag(row.dag_id, UNSET, session)}


class OfFile(NamedTuple):
    """A row about a Dag file, which belongs to the owners of each of its Dags. Requests write such rows only."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:  # noqa: ARG002
        return None

    def resources(self, row: Any, session: Session) -> set[Resource]:
        dag = mapped_classes()["DagModel"]
        of_file = (dag.bundle_name == row.bundle_name, dag.relative_fileloc == row.relative_fileloc)
        return {_dag(dag_id, UNSET, session) for dag_id in session.scalars(select(dag.dag_id).where(*of_file))}


class OfRow(NamedTuple):
    """A row that hangs on another one: ``column`` holds the ``key`` of a ``parent``."""

    column: str
    parent: str
    key: str = "id"

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        parent = _alias(mapped_classes()[self.parent].__table__.name).c
        narrowed = OWNED[self.parent].criteria(parent, readable, writes)
        if narrowed is None:
            return None
        return exists().where(getattr(parent, self.key) == getattr(entity, self.column), narrowed)

    def resources(self, row: Any, session: Session) -> set[Resource]:
        parent = mapped_classes()[self.parent]
        found = session.scalar(select(parent).where(getattr(parent, self.key) == getattr(row, self.column)))
        # A parent that is not in the database yet is written, and asked about, with this row.
        return set() if found is None else OWNED[self.parent].resources(found, session)


class Named(NamedTuple):
    """A connection, variable or pool: a row with a name of its own and a team."""

    type: str
    column: str

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        scope = readable.named(self.type, writes)
        if scope.everything:
            return None
        of_teams: dict[str | None, set[str]] = {}
        for name, team_id in scope.ids:
            of_teams.setdefault(team_id, set()).add(name)
        column = getattr(entity, self.column)
        return or_(
            false(), *(and_(entity.team_name == team_id, _among(column, of_teams[team_id])) for team_id in of_teams)
        )

    def resources(self, row: Any, session: Session) -> set[Resource]:  # noqa: ARG002
        # The team that it had, and the one that it goes to.
        state = inspect(row, raiseerr=False)
        teams = {row.team_name, *(state.attrs.team_name.history.deleted if state else ())}
        return {Resource(self.type, team_id, str(getattr(row, self.column))) for team_id in teams}


class AuditRow(NamedTuple):
    """A row of the audit log: of a Dag, or with what it is about at the beginning of ``extra``, or somebody's own."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        dags = readable.dags("audit_log", frozenset(), writes)
        of_dag = entity.dag_id.is_not(None) if dags.everything else _among(entity.dag_id, dags.ids)
        if readable.platform("audit_logs_all"):
            return None if dags.everything else or_(entity.dag_id.is_(None), of_dag)
        own = [entity.owner == readable.person] if readable.person else []
        beginnings = [about(type_, team_id) for type_, team_id in readable.audited_kinds()]
        # One look at each row, however many kinds there are: a page may pass thousands of rows. Those of Airflow alone
        # are seen at their beginning, of which PostgreSQL has statistics too: else it expects rows that nobody may see.
        told = func.substr(entity.extra, 1, _Position(entity.extra, literal("}"))).in_(beginnings)
        of_kind = and_(entity.extra.like(_ABOUT_SOMETHING), told)
        return or_(of_dag, and_(entity.dag_id.is_(None), or_(*own, of_kind)))

    def resources(self, row: Any, session: Session) -> set[Resource]:  # noqa: ARG002
        return {_platforms(row)}


class ImportErrorRow(NamedTuple):
    """Import errors: the owner is the team of the Dag bundle."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:  # noqa: ARG002
        if readable.platform("import_errors_all"):
            return None
        return _among(entity.bundle_name, readable.bundles("import_error"))

    def resources(self, row: Any, session: Session) -> set[Resource]:  # noqa: ARG002
        return {_platforms(row)}


class AssetRow(NamedTuple):
    """An asset, or a row with the id of one."""

    column: str = "id"
    entity: str | UnsetType = UNSET

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        scope = readable.assets(self.entity, writes)
        return None if scope.everything else _among(getattr(entity, self.column), scope.ids)

    def resources(self, row: Any, session: Session) -> set[Resource]:
        asset_id = getattr(row, self.column)
        return {Resource("asset", owning_teams(session, [asset_id]).get(asset_id), str(asset_id), self.entity)}


class AliasRow(NamedTuple):
    """An asset's alias: it is read by whom may read a Dag that uses it."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:  # noqa: ARG002
        scope = readable.aliases()
        return None if scope.everything else _among(entity.name, scope.ids)

    def resources(self, row: Any, session: Session) -> set[Resource]:  # noqa: ARG002
        return {_platforms(row)}


class AssetEventRow(NamedTuple):
    """An event of an asset that may be read: no Dag's, a readable Dag's, or one that a readable run has taken."""

    def criteria(self, entity: Any, readable: Readable, writes: bool) -> ColumnElement[bool] | None:
        assets, dags = readable.assets(UNSET, writes), readable.all_dags("run", writes)
        if assets.everything and dags.everything:
            return None
        taken, run = _alias("dagrun_asset_event"), _alias("dag_run")
        taken_by_readable = exists().where(
            taken.c.event_id == entity.id, run.c.id == taken.c.dag_run_id, _among(run.c.dag_id, dags.ids)
        )
        return and_(
            _among(entity.asset_id, assets.ids),
            or_(entity.source_dag_id.is_(None), _among(entity.source_dag_id, dags.ids), taken_by_readable),
        )

    def resources(self, row: Any, session: Session) -> set[Resource]:  # noqa: ARG002
        return {_platforms(row)}


def _among(column: Any, values: Collection[Any]) -> ColumnElement[bool]:
    """Whether the column has one of these values. They are of its type: SQLAlchemy need not look at each."""
    return column.in_(bindparam(None, list(values), type_=column.type, expanding=True))  # type: ignore[no-any-return]


class _Position(FunctionElement[int]):
    """Where a text has another one for the first time, from 1 on; 0 if it has not."""

    inherit_cache = True


@compiles(_Position)
def _position(element: Any, compiler: Any, **options: Any) -> str:
    name = "strpos" if compiler.dialect.name == "postgresql" else "instr"
    return f"{name}({compiler.process(element.clauses, **options)})"


@cache
def _alias(table: str) -> Any:
    """A table under another name: a query that has it itself must not be mixed up with it, nor this be narrowed too."""
    return Base.metadata.tables[table].alias()


def _dag(dag_id: Any, entity: str | UnsetType, session: Session) -> Resource:
    return Resource("dag", teams_of_dags([str(dag_id)], session)[str(dag_id)], str(dag_id), entity)


def _platforms(row: Any) -> Resource:
    """Rows that members of teams never write."""
    return Resource("platform_view", None, type(row).__name__)


_OF_A_TASK = frozenset({"task_logs", "xcom", "hitl_detail", "task_instance"})

OWNED: dict[str, Owner] = {
    "AssetAliasModel": AliasRow(),
    "AssetDagRunQueue": OfDag("target_dag_id"),
    "AssetEvent": AssetEventRow(),
    "AssetModel": AssetRow(),
    "AssetPartitionDagRun": OfDag("target_dag_id"),
    "AssetStateStoreModel": AssetRow("asset_id", "state"),
    "AssetWatcherModel": AssetRow("asset_id"),
    "Backfill": OfDag(entity="run"),
    "BackfillDagRun": OfRow("backfill_id", "Backfill"),
    "Connection": Named("connection", "conn_id"),
    "ConnectionTestRequest": Named("connection", "connection_id"),
    "DagCode": OfDag(entity="code"),
    "DagFavorite": OfDag(),
    "DagModel": DagRow(),
    "DagOwnerAttributes": OfDag(),
    "DagPriorityParsingRequest": OfFile(),
    "DagRun": OfDag(entity="run", also=_OF_A_TASK),
    "DagRunNote": OfRow("dag_run_id", "DagRun"),
    "DagScheduleAssetAliasReference": OfDag(),
    "DagScheduleAssetNameReference": OfDag(),
    "DagScheduleAssetReference": OfDag(),
    "DagScheduleAssetUriReference": OfDag(),
    "DagTag": OfDag(),
    "DagVersion": OfDag(entity="version", also=ANY_PART),
    "DagWarning": OfDag(entity="warning"),
    "Deadline": OfRow("dagrun_id", "DagRun"),
    "DeadlineAlert": OfRow("serialized_dag_id", "SerializedDagModel"),
    "HITLDetail": OfRow("ti_id", "TaskInstance"),
    "HITLDetailHistory": OfRow("ti_history_id", "TaskInstanceHistory", "task_instance_id"),
    "Job": OfDagIfAny(),
    "Log": AuditRow(),
    "ParseImportError": ImportErrorRow(),
    "PartitionedAssetKeyLog": OfDag("target_dag_id"),
    "Pool": Named("pool", "pool"),
    "RenderedTaskInstanceFields": OfDag(entity="task_instance"),
    "SerializedDagModel": OfDag(also=ANY_PART),
    "TaskInletAssetReference": OfDag(),
    "TaskInstance": OfDag(entity="task_instance", also=_OF_A_TASK),
    "TaskInstanceHistory": OfDag(entity="task_instance", also=_OF_A_TASK),
    "TaskInstanceNote": OfRow("ti_id", "TaskInstance"),
    "TaskMap": OfDag(entity="task_instance", also=_OF_A_TASK),
    "TaskOutletAssetReference": OfDag(),
    "TaskReschedule": OfRow("ti_id", "TaskInstance"),
    "TaskStateStoreModel": OfDag(entity="task_instance"),
    "Variable": Named("variable", "key"),
    "XComModel": OfDag(entity="xcom"),
}

# What no team owns, or what is reached only through a row that one does.
UNOWNED = {
    "AssetActive": "says which of the assets are in use",
    "Callback": "is reached through its deadline",
    "DagBundleModel": "is the platform's configuration",
    "DagProcessorCallback": "is read by the Dag processor only",
    "ExecutorCallback": "is read by the scheduler only",
    "LogTemplate": "is the platform's configuration",
    "RevokedToken": "is the login's",
    "Team": "the users' door filters teams",
    "Trigger": "is reached through its task instance or watcher",
    "TriggererCallback": "is reached through its deadline",
}

# Rows that a person may add without a decision about their owner: each is this person's own.
OF_THE_PERSON = {"DagFavorite", "Log"}


# Of ``LIKE``: what each text of ``about`` begins with.
_ABOUT_SOMETHING = '{"about": %'


def about(type_: str, team_id: str | None) -> str:
    """How the ``extra`` of an audit row begins that is about a resource of this type and team, up to the first ``}``.

    No request can forge it: it comes before everything that the request has sent.
    """
    return json.dumps({"about": {"type": type_, "team_id": team_id}})[:-1]


@cache
def mapped_classes() -> dict[str, Any]:
    """Airflow's mapped classes by name: all of them, also those that nothing in this process has imported yet."""
    import_all_models()  # type: ignore[no-untyped-call]
    # Airflow's function leaves out this one.
    import airflow.jobs.job  # noqa: F401

    return {mapper.class_.__name__: mapper.class_ for mapper in Base.registry.mappers}


@cache
def owned_tables() -> dict[str, type]:
    """The mapped class of each table that has owned rows."""
    return {entity.__table__.name: entity for name, entity in mapped_classes().items() if name in OWNED}
