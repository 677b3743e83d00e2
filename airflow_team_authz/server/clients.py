"""Who runs what: OPA's status reports, and those of Airflow processes, which have the same form."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from airflow_team_authz.server.database import TEXT, Client
from airflow_team_authz.server.served import Held

STALE = timedelta(minutes=2)
_FORGOTTEN = timedelta(days=7)
_TOLD_CHARACTERS = 500
# Where a report of discovery is kept among those of bundles; it tells no revision.
_DISCOVERY = "discovery"


class BundleStatus(BaseModel):
    """What a client says of one bundle."""

    model_config = ConfigDict(extra="ignore")
    active_revision: str = Field("", max_length=200)
    last_successful_activation: str = Field("", max_length=60)
    code: str = Field("", max_length=100)
    message: str = ""
    name: str = Field("", max_length=200)


class StatusReport(BaseModel):
    """See https://www.openpolicyagent.org/docs/management-status. What is not needed here is ignored."""

    model_config = ConfigDict(extra="ignore")
    labels: dict[str, Annotated[str, Field(pattern=TEXT)]] = Field(max_length=50, description="`id` names the client.")
    bundles: dict[str, BundleStatus] = Field(default_factory=dict, max_length=50)
    discovery: BundleStatus | None = Field(None, description="Of an OPA that gets its configuration from elsewhere.")


class ClientState(BaseModel):
    """A client, and whether there is something to do about it."""

    id: str
    kind: str
    version: str
    seen_at: datetime
    revisions: dict[str, str]
    alarms: list[str]


def note(engine: Engine, report: StatusReport) -> None:
    """Remember what a client says."""
    labels = report.labels
    bundles = {
        name[:200]: {
            "revision": status.active_revision,
            "trouble": f"{status.code} {status.message}".strip()[:_TOLD_CHARACTERS],
        }
        for name, status in (report.bundles | ({_DISCOVERY: report.discovery} if report.discovery else {})).items()
    }
    client = Client(
        id=labels.get("id", "unnamed")[:200],
        # OPA makes an id of its own, so people tell them apart by what else they say.
        kind=" ".join(labels[name] for name in ("app", "team_id", "host") if labels.get(name))[:100],
        version=labels.get("version", "")[:40],
        bundles=bundles,
        seen_at=datetime.now(UTC),
    )
    try:
        _write(engine, client)
    except IntegrityError:
        # It was new, and told of itself twice at once.
        _write(engine, client)


def _write(engine: Engine, client: Client) -> None:
    with Session(engine) as session:
        if session.get(Client, client.id) is None:
            session.execute(delete(Client).where(Client.seen_at < client.seen_at - _FORGOTTEN))
        session.merge(client)
        session.commit()


def states(engine: Engine, served: Mapping[str, Held]) -> list[ClientState]:
    """All clients that were seen in the last days, with alarms."""
    now = datetime.now(UTC)
    current = {held.revision for held in served.values()}
    with Session(engine) as session:
        found = session.scalars(select(Client).where(Client.seen_at > now - _FORGOTTEN).order_by(Client.id)).all()
    # An OPA has another id after a restart: it is not missed while one of the same app, team and host speaks.
    speaking = {client.kind for client in found if now - client.seen_at <= STALE} - {""}
    return [
        _state(client, current, now) for client in found if now - client.seen_at <= STALE or client.kind not in speaking
    ]


def _state(client: Client, current: set[str], now: datetime) -> ClientState:
    alarms = []
    if now - client.seen_at > STALE:
        alarms.append(f"not heard of since {client.seen_at:%Y-%m-%d %H:%M:%S} UTC")
    if not client.bundles.keys() - {_DISCOVERY}:
        alarms.append("has no bundle")
    for name, told in client.bundles.items():
        if told["trouble"]:
            alarms.append(f"{name}: {told['trouble']}")
        if name != _DISCOVERY and told["revision"] not in current:
            alarms.append(f"{name}: runs {told['revision'] or 'no revision'}, which is not the present one")
    revisions = {name: str(told["revision"]) for name, told in client.bundles.items() if told["revision"]}
    return ClientState(
        id=client.id,
        kind=client.kind,
        version=client.version,
        seen_at=client.seen_at,
        revisions=revisions,
        alarms=alarms,
    )


def as_rows(found: list[ClientState]) -> list[list[Any]]:
    """For the page."""
    return [
        [
            state.id,
            state.kind,
            ", ".join(state.revisions.values()),
            f"{state.seen_at:%Y-%m-%d %H:%M:%S}",
            "; ".join(state.alarms),
        ]
        for state in found
    ]
