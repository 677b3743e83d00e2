"""Owners of assets. Airflow knows only which Dags produce, watch and use an asset, and since when."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.models import DagModel
from airflow.models.asset import (
    AssetWatcherModel,
    DagScheduleAssetReference,
    TaskInletAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.team import dag_bundle_team_association_table
from airflow.models.trigger import Trigger
from msgspec import Struct
from sqlalchemy import Select, String, cast, func, literal, select, union_all

from airflow_team_authz.doors.many_rows import Rows, many_rows

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Reference(Struct, array_like=True, frozen=True):
    """A Dag's use of an asset, or a watcher's, which has a team in place of a Dag. ``since`` is only to be compared
    with itself: each database writes times in its own way.
    """

    kind: str
    asset_id: int
    by: str | None
    since: str | None


class _Owner(Struct, array_like=True, frozen=True):
    asset_id: int
    team_id: str | None


def producing_teams(session: Session, asset_ids: Collection[int] | None = None) -> dict[int, str | None]:
    """The team that has produced or watched each asset for longest; ``None`` where that is a common Dag.

    Assets that nobody produces or watches are not in it. Without ``asset_ids`` it is about all assets.
    """
    return _owners(session, _producing(), asset_ids)


def using_teams(session: Session) -> dict[int, str | None]:
    """The team whose Dag has waited for, or read, each asset for longest."""
    return _owners(session, _using(), None)


def references(session: Session) -> Rows[Reference]:
    """Everything, beside the teams of Dags, that says whose assets are."""
    return many_rows(session, _references(), Reference)


def uses(found: Rows[Reference]) -> dict[str, set[int]]:
    """The assets that each Dag waits for, reads or writes."""
    used: dict[str, set[int]] = {}
    for reference in found:
        if reference.kind != _WATCHER and reference.by is not None:
            used.setdefault(reference.by, set()).add(reference.asset_id)
    return used


_WATCHER = "watcher"


@cache
def _references() -> Select[Any]:
    of_dags: dict[str, Any] = {
        "writes": TaskOutletAssetReference,
        "waits": DagScheduleAssetReference,
        "reads": TaskInletAssetReference,
    }
    parts = [_reference(kind, table.asset_id, table.dag_id, table.created_at) for kind, table in of_dags.items()]
    if (team_of_trigger := getattr(Trigger, "team_name", None)) is not None:
        watching = _reference(_WATCHER, AssetWatcherModel.asset_id, team_of_trigger, Trigger.created_date)
        parts.append(watching.join(Trigger, AssetWatcherModel.trigger_id == Trigger.id))
    together = union_all(*parts).subquery()
    return select(*together.c)


def _reference(kind: str, asset_id: Any, by: Any, since: Any) -> Select[Any]:
    return select(literal(kind).label("kind"), asset_id, by.label("made_by"), cast(since, String(40)).label("since"))


@cache
def _producing() -> Select[Any]:
    claims = [_of_dags(TaskOutletAssetReference)]
    # Airflow 3.2 knows no teams of triggers.
    if (team_of_trigger := getattr(Trigger, "team_name", None)) is not None:
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
        return {owner.asset_id: owner.team_id for owner in many_rows(session, statement, _Owner)}
    asset_id = statement.selected_columns.asset_id
    rows: Any = session.connection().execute(statement.where(asset_id.in_(asset_ids)))
    return dict(rows.all())
