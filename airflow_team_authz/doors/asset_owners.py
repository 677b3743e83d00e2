"""Whose an asset is. Airflow knows no owner of an asset, only which Dags produce, watch and use it, and since when."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
from sqlalchemy import func, select

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# Since when, which asset, and whose.
_Claim = tuple[Any, int, str | None]


def producing_teams(session: Session, asset_ids: Collection[int] | None = None) -> dict[int, str | None]:
    """The team that has produced or watched each asset for longest; ``None`` where that is a common Dag.

    Assets that nobody produces or watches are not in it. Without ``asset_ids`` it is about all assets.
    """
    claims = _of_dags(TaskOutletAssetReference, session, asset_ids)
    # Airflow 3.2 knows no teams of triggers.
    if (team_of_trigger := getattr(Trigger, "team_name", None)) is not None:
        columns = (Trigger.created_date, AssetWatcherModel.asset_id, team_of_trigger)
        watching = select(*columns).join(Trigger, AssetWatcherModel.trigger_id == Trigger.id)
        if asset_ids is not None:
            watching = watching.where(AssetWatcherModel.asset_id.in_(asset_ids))
        claims += [(since, asset_id, team_id) for since, asset_id, team_id in session.execute(watching)]
    return _first(claims)


def using_teams(session: Session) -> dict[int, str | None]:
    """The team whose Dag has waited for, or read, each asset for longest."""
    return _first(
        claim
        for reference in (DagScheduleAssetReference, TaskInletAssetReference)
        for claim in _of_dags(reference, session, None)
    )


def _of_dags(reference: Any, session: Session, asset_ids: Collection[int] | None) -> list[_Claim]:
    team = dag_bundle_team_association_table.c
    statement = (
        select(func.min(reference.created_at), reference.asset_id, team.team_name)
        # A Dag that is gone was once common, as far as anybody can tell.
        .outerjoin(DagModel, DagModel.dag_id == reference.dag_id)
        .outerjoin(dag_bundle_team_association_table, team.dag_bundle_name == DagModel.bundle_name)
        .group_by(reference.asset_id, team.team_name)
    )
    if asset_ids is not None:
        statement = statement.where(reference.asset_id.in_(asset_ids))
    return [(since, asset_id, team_id) for since, asset_id, team_id in session.execute(statement)]


def _first(claims: Iterable[_Claim]) -> dict[int, str | None]:
    owners: dict[int, str | None] = {}
    for _, asset_id, team_id in sorted(claims, key=lambda claim: (claim[0], claim[2] or "")):
        owners.setdefault(asset_id, team_id)
    return owners
