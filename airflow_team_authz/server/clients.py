"""The clients and their revisions: status reports of OPA and of Airflow processes, which have the same form.

What a client says of itself is its own word: it counts as that of the token which reports it, so it neither replaces
nor hides what others report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Engine, and_, delete, literal, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased
from sqlalchemy.orm.exc import StaleDataError

from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.database import TEXT, Client, Token
from airflow_team_authz.server.served import ServedBundle

STALE = timedelta(minutes=2)
_FORGOTTEN = timedelta(days=7)
_TOLD_CHARACTERS = 300
_NAME_CHARACTERS = 100
# An OPA of ours has one bundle, which owns every path.
_BUNDLES = 4
# How many clients of one token are remembered; those go first that were not heard of for the longest time.
KEPT_CLIENTS = 500
# How many clients of one token the page shows.
_SHOWN_CLIENTS = 20
# Where a report of discovery is kept among those of bundles; it tells no revision.
_DISCOVERY = "discovery"


class BundleStatus(BaseModel):
    """A client's report about one bundle."""

    model_config = ConfigDict(extra="ignore")
    active_revision: str = Field("", max_length=_NAME_CHARACTERS)
    last_successful_activation: str = Field("", max_length=60)
    code: str = Field("", max_length=100)
    message: str = ""
    name: str = Field("", max_length=200)


class StatusReport(BaseModel):
    """See https://www.openpolicyagent.org/docs/management-status. What is not needed here is ignored."""

    model_config = ConfigDict(extra="ignore")
    labels: dict[str, Annotated[str, Field(pattern=TEXT)]] = Field(max_length=50, description="`id` names the client.")
    bundles: dict[str, BundleStatus] = Field(default_factory=dict, max_length=_BUNDLES)
    discovery: BundleStatus | None = Field(None, description="Of an OPA that gets its configuration from elsewhere.")


class ClientState(BaseModel):
    """A client, and whether there is something to do about it."""

    number: int
    id: str
    kind: str
    reporter: str = Field(description="Whose token the client reports by. The rest is the client's own word.")
    bundle: str | None = Field(description="The only bundle that this token fetches; null: all.")
    version: str
    seen_at: datetime
    revisions: dict[str, str]
    alarms: list[str]


def note(engine: Engine, who: Caller, report: StatusReport) -> None:
    """Remember what a client says of itself by somebody's token; errors of the database as they are."""
    labels = report.labels
    bundles = {
        name[:_NAME_CHARACTERS]: {
            "revision": status.active_revision,
            "trouble": f"{status.code} {status.message}".strip()[:_TOLD_CHARACTERS],
        }
        for name, status in (report.bundles | ({_DISCOVERY: report.discovery} if report.discovery else {})).items()
    }
    told = {
        "bundle": who.bundle,
        # OPA makes an id of its own, so people tell them apart by what else they say.
        "kind": " ".join(labels[name] for name in ("app", "team_id", "host") if labels.get(name))[:100],
        "version": labels.get("version", "")[:40],
        "bundles": bundles,
        "seen_at": datetime.now(UTC),
    }
    key = (who.name, labels.get("id", "unnamed")[:200])
    try:
        _write(engine, *key, told)
    except (IntegrityError, StaleDataError):
        # It was new, and told of itself twice at once; or others made it go at this moment.
        _write(engine, *key, told)


def _write(engine: Engine, reporter: str, id_: str, told: dict[str, Any]) -> None:
    with Session(engine) as session:
        known = session.scalar(select(Client).where(Client.reporter == reporter, Client.id == id_))
        if known is None:
            session.add(Client(reporter=reporter, id=id_, **told))
            session.flush()
            _forget(session, reporter)
        else:
            for name, value in told.items():
                setattr(known, name, value)
        session.commit()


def _forget(session: Session, reporter: str) -> None:
    """Forget clients without a recent message, and the oldest ones of a token that has too many."""
    newest = select(Client.number).where(Client.reporter == reporter)
    newest = newest.order_by(Client.seen_at.desc(), Client.number.desc()).limit(KEPT_CLIENTS)
    too_many = and_(Client.reporter == reporter, Client.number.not_in(newest))
    gone = select(Client.number).where(or_(Client.seen_at < datetime.now(UTC) - _FORGOTTEN, too_many))
    # What another server is writing at this moment is left to it, so that nobody waits for anybody.
    numbers = session.scalars(gone.with_for_update(skip_locked=True)).all()
    session.execute(delete(Client).where(Client.number.in_(numbers)))


def states(
    engine: Engine, served: Mapping[str, ServedBundle], after: int = 0, limit: int | None = None
) -> list[ClientState]:
    """Clients that were seen in the last days, with alarms, in the order of their numbers."""
    now = datetime.now(UTC)
    with Session(engine) as session:
        shown = select(Client).where(_shown(now), Client.number > after).order_by(Client.number)
        found = session.scalars(shown.limit(limit)).all()
    return [_state(client, _current(served, client.bundle), now) for client in found]


def _shown(now: datetime) -> ColumnElement[bool]:
    """All but those of a revoked token, and those that another one of the same token has followed.

    An OPA has another id after a restart: it is not missed while one of the same app, team and host speaks.
    """
    speaks = aliased(Client)
    followed = (
        select(speaks.number)
        .where(speaks.reporter == Client.reporter, speaks.kind == Client.kind, speaks.kind != "")
        .where(speaks.seen_at >= now - STALE)
        .exists()
    )
    revoked = select(Token.id).where(
        literal("token ").concat(Token.id) == Client.reporter, Token.revoked_at.is_not(None)
    )
    recent = Client.seen_at > now - _FORGOTTEN
    return and_(recent, ~revoked.exists(), or_(Client.seen_at >= now - STALE, ~followed))


def _current(served: Mapping[str, ServedBundle], bundle: str | None) -> set[str]:
    """The present revisions of what somebody may fetch."""
    return {held.revision for name, held in served.items() if bundle in {None, name}}


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
        number=client.number,
        id=client.id,
        kind=client.kind,
        reporter=client.reporter,
        bundle=client.bundle,
        version=client.version,
        seen_at=client.seen_at,
        revisions=revisions,
        alarms=alarms,
    )


def as_rows(found: list[ClientState]) -> list[list[Any]]:
    """For the page: of each token some, and those first that something is wrong with."""
    by_reporter = defaultdict[str, list[ClientState]](list)
    for state in sorted(found, key=lambda state: (state.reporter, not state.alarms, state.number)):
        by_reporter[state.reporter].append(state)
    rows = []
    for reporter, reported in by_reporter.items():
        rows += [_row(state) for state in reported[:_SHOWN_CLIENTS]]
        left = len(reported) - _SHOWN_CLIENTS
        rows += [[f"{left} more", "see `team-authz server status`", reporter, "", "", ""]] if left > 0 else []
    return rows


def _row(state: ClientState) -> list[Any]:
    return [
        state.id,
        state.kind,
        f"{state.reporter} for {state.bundle or 'all bundles'}",
        ", ".join(state.revisions.values()),
        f"{state.seen_at:%Y-%m-%d %H:%M:%S}",
        "; ".join(state.alarms),
    ]
