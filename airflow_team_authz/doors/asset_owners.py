"""Whose an asset is. Airflow knows no owner of an asset, only which Dags produce, watch and use it, and since when."""

from __future__ import annotations

from collections.abc import Collection
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
from sqlalchemy import Select, func, select, union_all

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def producing_teams(session: Session, asset_ids: Collection[int] | None = None) -> dict[int, str | None]:
    """The team that has produced or watched each asset for longest; ``None`` where that is a common Dag.

    Assets that nobody produces or watches are not in it. Without ``asset_ids`` it is about all assets.
    """
    claims = [_of_dags(TaskOutletAssetReference)]
    # Airflow 3.2 knows no teams of triggers.
    if (team_of_trigger := getattr(Trigger, "team_name", None)) is not None:
        columns = (AssetWatcherModel.asset_id, team_of_trigger.label("team_id"), Trigger.created_date.label("since"))
        claims.append(select(*columns).join(Trigger, AssetWatcherModel.trigger_id == Trigger.id))
    return _first(claims, session, asset_ids)


def using_teams(session: Session) -> dict[int, str | None]:
    """The team whose Dag has waited for, or read, each asset for longest."""
    return _first([_of_dags(DagScheduleAssetReference), _of_dags(TaskInletAssetReference)], session, None)


def _of_dags(reference: Any) -> Select[Any]:
    """Which team claims which asset since when, by a Dag."""
    team = dag_bundle_team_association_table.c
    return (
        select(reference.asset_id, team.team_name.label("team_id"), reference.created_at.label("since"))
        # A Dag that is gone was once common, as far as anybody can tell.
        .outerjoin(DagModel, DagModel.dag_id == reference.dag_id)
        .outerjoin(dag_bundle_team_association_table, team.dag_bundle_name == DagModel.bundle_name)
    )


def _first(
    claims: Collection[Select[Any]], session: Session, asset_ids: Collection[int] | None
) -> dict[int, str | None]:
    """The team with the oldest claim to each asset. The database compares the times: there may be many of them."""
    claim = union_all(*claims).subquery().c
    statement = select(claim.asset_id, claim.team_id).group_by(claim.asset_id, claim.team_id)
    if asset_ids is not None:
        statement = statement.where(claim.asset_id.in_(asset_ids))
    oldest_last = statement.order_by(func.min(claim.since).desc(), func.coalesce(claim.team_id, "").desc())
    rows: Any = session.connection().execute(oldest_last)
    return dict(rows.all())
