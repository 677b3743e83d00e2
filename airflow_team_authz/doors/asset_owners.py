"""Whose an asset is. Airflow knows no owner of an asset, only which Dags produce, watch and use it, and since when."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from airflow.models.asset import (
    AssetWatcherModel,
    DagScheduleAssetReference,
    TaskInletAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.trigger import Trigger
from sqlalchemy import select

from airflow_team_authz.identities.machines import teams_of_dags

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
    statement = select(reference.created_at, reference.asset_id, reference.dag_id)
    if asset_ids is not None:
        statement = statement.where(reference.asset_id.in_(asset_ids))
    found = session.execute(statement).all()
    teams = teams_of_dags(list({row.dag_id for row in found}), session)
    return [(row.created_at, row.asset_id, teams[row.dag_id]) for row in found]


def _first(claims: Iterable[_Claim]) -> dict[int, str | None]:
    owners: dict[int, str | None] = {}
    for _, asset_id, team_id in sorted(claims, key=lambda claim: (claim[0], claim[2] or "")):
        owners.setdefault(asset_id, team_id)
    return owners
