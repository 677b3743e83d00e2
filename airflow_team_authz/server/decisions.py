"""Decisions of all engines in one table: OPA servers and Airflow processes send them by OPA's protocol.

The server cannot verify a record. Each belongs to the token that sent it, and replaces no record of another token.
A team sees records about its resources, if the policy lets it read their audit logs.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Engine, Table, delete, false, or_, select
from sqlalchemy.exc import IntegrityError

from airflow_team_authz.bundles.aggregate import team_of_bundle
from airflow_team_authz.decision_log.database import column, insert_rows, row_of
from airflow_team_authz.decision_log.parts import audited, in_order, outcome_of, part
from airflow_team_authz.decision_log.reading import BESIDE, Wanted
from airflow_team_authz.decision_log.record import Form, encode
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.server import ServerError, access
from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.database import Decision
from airflow_team_authz.server.policies import Policies

MAX_UNPACKED_BYTES = 32 << 20
MAX_EVENTS = 10_000
_MAX_RECORD_BYTES = 256 << 10
# Of one token: so many records a second for long, and so many at once.
RATE, BURST = 10_000, 50_000
_MOST_TOKENS = 10_000
_DELETED_AT_ONCE = 1_000
# Rows that are looked at for a page of a team: what the policy hides is no reason to read the whole table.
_LOOKED_AT = 2_000
_READ_AT_ONCE, _MOST_RECENT_BYTES = 100, 16 << 20
_MAX_ID = 64
# Of OPA's event; what is left out is what it has asked others, and headers of requests.
_KEPT = (
    "labels", "decision_id", "batch_decision_id", "trace_id", "span_id", "revision", "bundles", "path", "input",
    "result", "error", "erased", "requested_by", "timestamp", "metrics", "req_id", "custom",
)  # fmt: skip
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TABLE: Table = Decision.__table__  # type: ignore[assignment]


class NoDecisionsError(ServerError, ValueError):
    """The request is not a list of decisions, or the list is too long."""


class TooFastError(ServerError):
    """A token sends more than it may."""


class Counts(NamedTuple):
    """Records that came, those that are written now, and those that are no records or cannot be written."""

    received: int
    written: int
    dropped: int


class Search(NamedTuple):
    """Which records are wanted, and where a page of them begins and ends. ``before`` is a number of a row.

    ``id`` is that of a record, or of an OPA server's own record of the same question.
    """

    wanted: Wanted = Wanted()
    id: str | None = None
    before: int | None = None
    limit: int = 100


class Shown(NamedTuple):
    """A record, its number in the table, and whose token it came by."""

    number: int
    reporter: str
    record: dict[str, Any]


class Page(NamedTuple):
    """Records, newest first; ``next`` is where the following page begins, if there may be one."""

    found: list[Shown]
    next: int | None


class Decisions:
    """The table of decisions. Thread-safe."""

    def __init__(self, engine: Engine, form: Form, days: int) -> None:
        """``form`` has the masks; records are kept for so many days."""
        self._engine, self._form, self._days = engine, form, days
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}
        self.counts = Counts(0, 0, 0)

    def take(self, who: Caller, content: bytes, encoding: str) -> Counts:
        """Write what somebody has sent; ``NoDecisionsError``, ``TooFastError``, or what SQLAlchemy raises."""
        events = read(content, encoding)
        self._pay(who.name, len(events))
        made = [self._row(who, event) for event in events]
        written = self._write(who.name, {row["decision_id"]: row for row in made if row is not None})
        # What is there already has come once more, since its sender did not hear of it: it is written, not dropped.
        done = Counts(len(events), written, made.count(None))
        with self._lock:
            self.counts = Counts(*map(sum, zip(self.counts, done, strict=True)))
        return done

    def _pay(self, name: str, count: int) -> None:
        now = time.monotonic()
        with self._lock:
            left, at = self._left.get(name, (float(BURST), now))
            left = min(float(BURST), left + (now - at) * RATE)
            if count > left:
                raise TooFastError(f"{name} sends more than {RATE:,} decisions a second: send the same again later")
            self._left[name] = (left - count, now)
            if len(self._left) > _MOST_TOKENS:
                self._left.pop(next(iter(self._left)))

    def _row(self, who: Caller, event: Any) -> dict[str, Any] | None:
        if _id(event) == "" or (moment := _moment(event)) is None:
            return None
        record = {name: event[name] for name in _KEPT if name in event}
        record["input"] = input_ = record["input"] if isinstance(record.get("input"), dict) else {}
        if not isinstance(record.get("custom"), dict) or "outcome" not in record["custom"]:
            record["custom"] = {"outcome": outcome_of(record), "door": "opa"}
        record["custom"]["outcome"] = str(record["custom"]["outcome"])[:10]
        if "resource" in input_ and "resources" in input_:
            del input_["resource"]
        ids = record["custom"].get("opa_decision_ids")
        self._form.mask(record)
        if len(encoded := encode(record)) > _MAX_RECORD_BYTES:
            record = {name: part for name, part in record.items() if name not in {"input", "result"}} | {"input": {}}
            encoded = encode(record)
        try:
            row = row_of(record, encoded)
        except (AttributeError, TypeError, KeyError, IndexError):
            # An OPA is asked about other things than ours, of other forms.
            row = row_of(record | {"input": {}}, encoded)
        if team_id := team_of_bundle(who.bundle or ""):
            # The token of one team's own OPA: what it says of other teams is not for those to see.
            row["teams"] = f",{team_id}," if f",{team_id}," in row["teams"] else ","
        related = str(ids[0])[:_MAX_ID] if isinstance(ids, list) and ids else ""
        return row | {"reporter": who.name, "related": related, "decided_at": moment}

    def _write(self, reporter: str, rows: Mapping[str, dict[str, Any]]) -> int:
        """How many were not there yet."""
        for last in (False, True):
            there = self._there(reporter, list(rows))
            new = [row for id_, row in rows.items() if id_ not in there]
            if not new:
                return 0
            try:
                with self._engine.begin() as connection:
                    insert_rows(connection, _TABLE, new)
                return len(new)
            except IntegrityError:
                # The same came twice at once, such as after a retry of a slow answer.
                if last:
                    raise
        return 0

    def _there(self, reporter: str, ids: Sequence[str]) -> set[str]:
        c, found = _TABLE.c, set[str]()
        with self._engine.connect() as connection:
            for start in range(0, len(ids), 500):
                part = c.decision_id.in_(ids[start : start + 500])
                found.update(connection.scalars(select(c.decision_id).where(c.reporter == reporter, part)))
        return found

    def clean(self) -> int:
        """Delete what is too old, a part at a time; how many there were."""
        c, deleted = _TABLE.c, 0
        before = datetime.now(UTC) - timedelta(days=self._days)
        old = select(c.number).where(c.decided_at < before).order_by(c.decided_at).limit(_DELETED_AT_ONCE)
        while True:
            with self._engine.begin() as connection:
                if not (numbers := list(connection.scalars(old))):
                    return deleted
                connection.execute(delete(_TABLE).where(c.number.in_(numbers)))
            deleted += len(numbers)

    def search(self, who: Caller, search: Search, readable: Readable) -> Page:
        """A page of the caller's records. Raises ``NoPolicyError``, an ``EngineError``, and errors of SQLAlchemy."""
        is_platform = who.kind == access.PLATFORM
        # The rows are of this person and time; by the rest, a filter would tell a team of the other parts of a record.
        fits = search.wanted._replace(since=None, user=None).fits
        found: list[Shown] = []
        before, looked_at = search.before, 0
        while len(found) < search.limit and looked_at < _LOOKED_AT:
            rows = self._rows(search._replace(before=before), None if is_platform else who.team_ids)
            found += rows if is_platform else (one for one in readable.parts(who, rows) if fits(one.record))
            looked_at += len(rows)
            if len(rows) < search.limit:
                return Page(found[: search.limit], _after(found, search.limit, None))
            before = rows[-1].number
        return Page(found[: search.limit], _after(found, search.limit, before))

    def _rows(self, search: Search, teams: Sequence[str] | None) -> list[Shown]:
        """``teams``: only rows about one of these; ``None`` for all."""
        c, wanted = _TABLE.c, search.wanted
        query = select(c.number, c.reporter, c.record).order_by(c.number.desc()).limit(search.limit)
        if teams is not None:
            query = query.where(or_(false(), *map(_of_team, teams)))
        if search.before is not None:
            query = query.where(c.number < search.before)
        if search.id is not None:
            query = query.where(or_(c.decision_id == search.id, c.related == search.id, c.decision_id.in_(
                select(c.related).where(c.decision_id == search.id, c.related != ""))))  # fmt: skip
        if wanted.since is not None:
            query = query.where(c.decided_at >= wanted.since)
        for of_row, value in ((c.subject, wanted.user), (c.type, wanted.type)):
            if value is not None:
                query = query.where(of_row == column(value))
        if wanted.team is not None:
            query = query.where(_of_team(wanted.team))
        query = query.where(c.outcome.in_(BESIDE) if wanted.shadow else c.outcome.not_in(BESIDE))
        if wanted.denied:
            query = query.where(c.outcome.in_(("deny", "error")))
        with self._engine.connect() as connection:
            return [Shown(number, by, json.loads(text)) for number, by, text in connection.execute(query)]

    def recent(self, teams: Sequence[str] | None) -> list[Shown]:
        """The newest records, ``None`` for those of all teams: of so many rows and bytes that they fit into memory."""
        found, size = [], 0
        c = _TABLE.c
        query = select(c.number, c.reporter, c.record).order_by(c.number.desc()).limit(_LOOKED_AT)
        if teams is not None:
            query = query.where(or_(false(), *map(_of_team, teams)))
        with self._engine.connect() as connection:
            for number, by, text in connection.execution_options(yield_per=_READ_AT_ONCE).execute(query):
                size += len(text)
                if size > _MOST_RECENT_BYTES:
                    break
                found.append(Shown(number, by, json.loads(text)))
        return found


def _after(found: Sequence[Shown], limit: int, before: int | None) -> int | None:
    return found[limit - 1].number if len(found) > limit else before


def _of_team(team: str) -> Any:
    return _TABLE.c.teams.contains(f",{team},", autoescape=True)


def read(content: bytes, encoding: str) -> list[Any]:
    """The events of a request; ``NoDecisionsError`` if it holds none, or too many."""
    try:
        if encoding == "gzip":
            unpacking = zlib.decompressobj(wbits=31)
            content = unpacking.decompress(content, MAX_UNPACKED_BYTES)
            if unpacking.unconsumed_tail:
                raise NoDecisionsError(f"unpacked it is larger than {MAX_UNPACKED_BYTES:,} bytes: send less at once")
        # Bytes alone would be read as texts that have no form in UTF-8.
        events = _decoded(content.decode())
        if _SURROGATE.search(content):
            # Half a pair is in no Unicode text: no answer and no question could hold it.
            events = json.loads(json.dumps(events, ensure_ascii=False).encode(errors="replace"))
    except (zlib.error, ValueError, RecursionError) as error:
        if isinstance(error, NoDecisionsError):
            raise
        raise NoDecisionsError("it is not a list of decisions, as OPA's decision_logs plugin sends them") from None
    if not isinstance(events, list):
        raise NoDecisionsError("it is not a list of decisions, as OPA's decision_logs plugin sends them")
    if len(events) > MAX_EVENTS:
        raise NoDecisionsError(f"it holds {len(events):,} decisions, and {MAX_EVENTS:,} may come at once")
    return events


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # It takes no half pairs and no infinite numbers. What is no JSON for Python either is an error.
        return json.loads(text)


def _id(event: Any) -> str:
    id_ = event.get("decision_id") if isinstance(event, dict) else None
    return id_ if isinstance(id_, str) and 0 < len(id_) <= _MAX_ID and id_.isprintable() else ""


def _moment(event: Any) -> datetime | None:
    try:
        # OPA tells nanoseconds, which Python reads as far as it can.
        moment = datetime.fromisoformat(event["timestamp"])
    except (KeyError, TypeError, ValueError):
        return None
    return moment.astimezone(UTC) if moment.tzinfo else None


class Readable:
    """The parts of records that a team may see. It asks the policy of each environment, and all have to agree."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def parts(self, who: Caller, rows: Sequence[Shown]) -> list[Shown]:
        """Of each record what is about resources whose audit log the caller may read; others are left out."""
        about = [(row, list(audited(row.record))) for row in rows]
        own = (logs for _, parts in about for _, logs in parts if logs[0].team_id in who.team_ids)
        allowed = self._allowed(who, in_order(log for logs in own for log in logs))
        kept = ((row, [place for place, logs in parts if allowed.issuperset(logs)]) for row, parts in about)
        return [row._replace(record=part(row.record, places)) for row, places in kept if places]

    def _allowed(self, who: Caller, resources: list[Resource]) -> set[Resource]:
        # Whoever holds a team's token writes the team's rules, and may give its people any role in it.
        subject = Subject("user", who.name, who.team_ids, ("admin",))
        allowed = set(resources)
        for point in self._policies.all():
            allowed &= set(point.allowed(Evaluations(subject, "read", resources))) if resources else set()
        return allowed
