"""Owners of assets. Airflow knows only which Dags produce, watch and use an asset, and since when."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.models import DagModel
from airflow.models.asset import (
    AssetWatcherModel,
    DagScheduleAssetNameReference,
    DagScheduleAssetReference,
    DagScheduleAssetUriReference,
    TaskInletAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.team import dag_bundle_team_association_table
from airflow.models.trigger import Trigger
from msgspec import UNSET, Struct
from sqlalchemy import Select, func, literal, select, union, union_all

from airflow_team_authz import airflow_compat
from airflow_team_authz.doors.many_rows import Rows, Table, many_rows
from airflow_team_authz.model import Subject

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Reference(Struct, array_like=True, frozen=True, gc=False):
    """A Dag's use of an asset, or a watcher's, which has a team in place of a Dag. ``since`` is only to be compared
    with itself: each database writes times in its own way.
    """

    kind: str
    asset_id: int
    by: str | None
    since: str | None


class _Owner(Struct, array_like=True, frozen=True, gc=False):
    asset_id: int
    team_id: str | None


def owning_teams(session: Session, asset_ids: Collection[int] | None = None) -> dict[int, str | None]:
    """The team that has produced or watched each asset for longest; ``None`` where that is a common Dag.

    Of what nobody produces it is the team that has used it for longest: Airflow forgets who watches an asset while that
    Dag is paused. Assets that no Dag names are not in it. Without ``asset_ids`` it is about all assets.
    """
    return _owners(session, _using(), asset_ids) | _owners(session, _producing(), asset_ids)


class NamedAsset(NamedTuple):
    """The identity of an asset: its number in the database, and both of its names."""

    id: int
    name: str
    uri: str


def owner_for(subject: Subject, asset: NamedAsset, session: Session) -> str | None:
    """The team that a task has to ask for an asset; ``None`` for a common asset, and for one that it shares.

    A subject shares what a Dag of its team names, what its own Dag refers to (``Asset.ref``), and what the author of
    the owner's Dag lets its team consume.
    """
    owner, own = owning_teams(session, [asset.id]).get(asset.id), set(subject.team_ids or (None,))
    if owner is None or owner in own or own & _naming_teams(asset, session):
        return None
    if own & _consumers(owner, asset, session) or _refers_to(asset, subject, session):
        return None
    return owner


def _naming_teams(asset: NamedAsset, session: Session) -> set[str | None]:
    """The teams of all Dags that produce the asset, read it or wait for it."""
    naming = (
        (DagScheduleAssetReference.dag_id, DagScheduleAssetReference.asset_id == asset.id),
        (TaskInletAssetReference.dag_id, TaskInletAssetReference.asset_id == asset.id),
        (TaskOutletAssetReference.dag_id, TaskOutletAssetReference.asset_id == asset.id),
        (DagScheduleAssetNameReference.dag_id, DagScheduleAssetNameReference.name == asset.name),
        (DagScheduleAssetUriReference.dag_id, DagScheduleAssetUriReference.uri == asset.uri),
    )
    return set(session.scalars(union(*(_teams(dag_id).where(names) for dag_id, names in naming))))


def _teams(dag_id: Any) -> Select[Any]:
    """The team of each Dag with an id in that column."""
    team = dag_bundle_team_association_table.c
    return (
        select(team.team_name)
        .select_from(dag_id.class_)
        .join(DagModel, DagModel.dag_id == dag_id)
        .outerjoin(dag_bundle_team_association_table, team.dag_bundle_name == DagModel.bundle_name)
    )


def _consumers(owner: str, asset: NamedAsset, session: Session) -> set[str]:
    """The teams that the owner's Dags let consume the asset (``AssetAccessControl``)."""
    if (consumers := airflow_compat.consumer_teams(TaskOutletAssetReference)) is None:
        return set()
    statement = _teams(TaskOutletAssetReference.dag_id).with_only_columns(consumers)
    team = dag_bundle_team_association_table.c.team_name
    found = session.scalars(statement.where(TaskOutletAssetReference.asset_id == asset.id, team == owner))
    return {team_id for team_ids in found for team_id in team_ids or ()}


def _refers_to(asset: NamedAsset, subject: Subject, session: Session) -> bool:
    """Whether the subject's own Dag refers to the asset: Airflow keeps references of tasks in the whole Dag only."""
    if subject.dag_id is UNSET:
        return False
    whole = SerializedDagModel.get(subject.dag_id, session=session)
    waiting: list[Any] = [whole.data if whole is not None else None]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            # Those of tasks have their names one level below.
            names = part.get("__var", part) if part.get("__type") == "asset_ref" else {}
            if names.get("name") == asset.name or names.get("uri") == asset.uri:
                return True
            part = list(part.values())
        waiting += part if isinstance(part, list) else ()
    return False


def uses(found: Rows[Reference]) -> dict[str, tuple[int, ...]]:
    """The assets that each Dag waits for, reads or writes."""
    used: dict[str, set[int]] = {}
    for reference in found:
        if reference.kind != _WATCHER and reference.by is not None:
            used.setdefault(reference.by, set()).add(reference.asset_id)
    # Sets of one take four times as much memory.
    return {dag_id: tuple(asset_ids) for dag_id, asset_ids in used.items()}


_WATCHER = "watcher"


@cache
def references() -> Table[Reference]:
    """Everything, beside the teams of Dags, that says whose assets are."""
    of_dags: dict[str, Any] = {
        "writes": TaskOutletAssetReference,
        "waits": DagScheduleAssetReference,
        "reads": TaskInletAssetReference,
    }
    parts = [_reference(kind, table.asset_id, table.dag_id, table.created_at) for kind, table in of_dags.items()]
    if (team_of_trigger := airflow_compat.team_of_trigger(Trigger)) is not None:
        watching = _reference(_WATCHER, AssetWatcherModel.asset_id, team_of_trigger, Trigger.created_date)
        parts.append(watching.join(Trigger, AssetWatcherModel.trigger_id == Trigger.id))
    together = union_all(*parts).subquery()
    return Table(select(*together.c), Reference)


def _reference(kind: str, asset_id: Any, by: Any, since: Any) -> Select[Any]:
    return select(literal(kind).label("kind"), asset_id, by.label("made_by"), since.label("since"))


@cache
def _producing() -> Select[Any]:
    claims = [_of_dags(TaskOutletAssetReference)]
    if (team_of_trigger := airflow_compat.team_of_trigger(Trigger)) is not None:
        columns = (AssetWatcherModel.asset_id, team_of_trigger.label("team_id"), Trigger.created_date.label("since"))
        claims.append(select(*columns).join(Trigger, AssetWatcherModel.trigger_id == Trigger.id))
    return _oldest(claims)


@cache
def _using() -> Select[Any]:
    return _oldest([_of_dags(DagScheduleAssetReference), _of_dags(TaskInletAssetReference)])


def _of_dags(reference: Any) -> Select[Any]:
    """Which team claims which asset since when, by a Dag."""
    team = dag_bundle_team_association_table.c
    return (
        select(reference.asset_id, team.team_name.label("team_id"), reference.created_at.label("since"))
        # A Dag that is gone was once common, as far as anybody can tell.
        .outerjoin(DagModel, DagModel.dag_id == reference.dag_id)
        .outerjoin(dag_bundle_team_association_table, team.dag_bundle_name == DagModel.bundle_name)
    )


def _oldest(claims: Collection[Select[Any]]) -> Select[Any]:
    """The team with the oldest claim to each asset. The database compares the times: there may be many of them."""
    claim = union_all(*claims).subquery().c
    order = (claim.since, func.coalesce(claim.team_id, ""))
    rank = func.row_number().over(partition_by=claim.asset_id, order_by=order).label("rank")
    ranked = select(claim.asset_id, claim.team_id, rank).subquery().c
    return select(ranked.asset_id, ranked.team_id).where(ranked.rank == 1)


def _owners(session: Session, statement: Select[Any], asset_ids: Collection[int] | None) -> dict[int, str | None]:
    if asset_ids is None:
        return {owner.asset_id: owner.team_id for owner in many_rows(session, Table(statement, _Owner))}
    asset_id = statement.selected_columns.asset_id
    rows: Any = session.connection().execute(statement.where(asset_id.in_(asset_ids)))
    return dict(rows.all())
