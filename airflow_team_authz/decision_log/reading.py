"""Reads records from the table of Airflow's database, or from a file."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from sqlalchemy import Engine, Table, func, or_, select

from airflow_team_authz.decision_log.database import (
    NO_TABLE,
    NoTableError,
    Transaction,
    acting_for,
    column,
    has_table,
)
from airflow_team_authz.decision_log.sinks import KEPT
from airflow_team_authz.decision_log.tables import decisions

Record = dict[str, Any]
# Outcomes of records that are no decisions: what another policy would have answered.
BESIDE = ("shadow", "observe")
# What is committed late may have a lower number than what was read before: so many numbers are read again.
_OVERLAP = 2_000
_SEEN = 50_000
_AT_ONCE = 1_000
# Of a person in more teams, rows are chosen here and not in the database.
_MOST_MARKS = 40
_USES = ("allow", "gap")


class Wanted(NamedTuple):
    """Which records are wanted: those that fit everything that is said. ``since`` is in UTC.

    ``shadow``: the differences of policies that are not in force, instead of decisions.
    """

    since: datetime | None = None
    user: str | None = None
    team: str | None = None
    type: str | None = None
    denied: bool = False
    shadow: bool = False

    def fits(self, record: Record) -> bool:
        """Whether a record is wanted. A gap has no subject and no resource, but hides such, so it always is."""
        custom = record.get("custom")
        if not isinstance(custom, dict) or "outcome" not in custom:
            # Of another program's log.
            return False
        if self.since is not None and moment(record) < self.since:
            return False
        if record["custom"]["outcome"] == "gap":
            return True
        if (record["custom"]["outcome"] in BESIDE) is not self.shadow:
            return False
        input_ = record.get("input", {})
        return (
            (self.user is None or input_.get("subject", {}).get("id") == self.user)
            and (self.team is None or self.team in {one.get("team_id") for one in resources(record)})
            and (self.type is None or self.type in {one.get("type") for one in resources(record)})
            and (not self.denied or record["custom"]["outcome"] in {"deny", "error"})
        )


class Concerned(NamedTuple):
    """Whom records concern: a person by name, and teams by their resources and tasks."""

    user: str
    teams: Sequence[str]


class Records(Protocol):
    """Records of one place."""

    def newest(self, wanted: Wanted, limit: int) -> list[Record]:
        """The newest that are wanted, in the order in which they were written."""

    def each(self, wanted: Wanted) -> Iterator[Record]:
        """All that are wanted, in the order in which they were written, with few of them in memory."""

    def begin(self) -> None:
        """``new`` begins after what is there now."""

    def new(self, wanted: Wanted) -> list[Record]:
        """Records that were written since ``begin``, or since the last call."""

    def one(self, decision_id: str) -> Record | None:
        """The record of this id."""

    def uses(self) -> Iterator[Record]:
        """All records of allowed decisions, and gaps; one after the other, since there may be millions."""

    def last_of_each_subject(self) -> Iterator[Record]:
        """The last decision of each subject."""


def resources(record: Record) -> list[dict[str, Any]]:
    """The resources of a record."""
    input_ = record.get("input", {})
    found: list[dict[str, Any]] = input_.get("resources") or [input_.get("resource") or {}]
    return found


def moment(record: Record) -> datetime:
    """When it was decided."""
    return datetime.fromisoformat(record["timestamp"])


class InDatabase:
    """Records in the table; raises what SQLAlchemy does."""

    def __init__(self, engine: Engine, schema: str | None) -> None:
        self._engine = engine
        self.table: Table = decisions(schema)
        self._last = 0
        self._seen: deque[int] = deque(maxlen=_SEEN)

    def require(self) -> None:
        """``NoTableError`` if there is none."""
        if not has_table(self._engine, self.table):
            raise NoTableError(NO_TABLE)

    def newest(self, wanted: Wanted, limit: int) -> list[Record]:
        """See ``Records``."""
        rows = self._rows(wanted, lambda query: query.order_by(self.table.c.number.desc()).limit(limit))
        return [record for _, record in reversed(rows)]

    def each(self, wanted: Wanted) -> Iterator[Record]:
        """See ``Records``."""
        number = self.table.c.number
        rows: list[tuple[int, Record]] = [(0, {})]
        while rows := self._rows(wanted, partial(_page, number, rows[-1][0])):
            yield from (record for _, record in rows)

    def new(self, wanted: Wanted) -> list[Record]:
        """See ``Records``."""
        newer = self.table.c.number > self._last - _OVERLAP
        seen = set(self._seen)
        rows = self._rows(wanted, lambda query: query.where(newer).order_by(self.table.c.number))
        return [record for number, record in rows if number not in seen]

    def begin(self) -> None:
        """See ``Records``."""
        query = select(self.table.c.number).order_by(self.table.c.number.desc()).limit(_OVERLAP)
        with self._engine.connect() as connection:
            self._note(list(connection.scalars(query)))

    def one(self, decision_id: str) -> Record | None:
        """See ``Records``."""
        query = select(self.table.c.record).where(self.table.c.decision_id == decision_id)
        with self._engine.connect() as connection:
            text = connection.scalar(query)
        return None if text is None else json.loads(text)

    def page(self, wanted: Wanted, whose: Concerned | None, id_: str | None, before: str, limit: int) -> list[Record]:
        """Records that are wanted, newest first: those that may concern somebody, or all, with gaps, without ``whose``.

        ``id_``: that of one. ``before``: the id of the record after which the page begins, empty for the first page.
        Ids sort by time.
        """
        c = self.table.c
        marks = [mark for team in whose.teams for mark in (team, acting_for(team))] if whose else []
        query = self._narrowed(select(c.decision_id, c.subject, c.teams).order_by(c.decision_id.desc()), wanted)
        if whose is not None:
            query = query.where(c.outcome != "gap")
        if whose is not None and len(marks) <= _MOST_MARKS:
            query = query.where(or_(c.subject == column(whose.user), *map(self._about, marks)))
        if len(marks) <= _MOST_MARKS:
            query = query.limit(limit)
        if id_ is not None:
            query = query.where(c.decision_id == id_)
        if before:
            query = query.where(c.decision_id < before)
        with Transaction(self._engine) as connection:
            with connection.execution_options(yield_per=_AT_ONCE).execute(query) as result:
                rows: Iterable[Any] = result
                if whose is not None and len(marks) > _MOST_MARKS:
                    # A database compares each row with each of very many, and SQLite does not take as many at all.
                    user, names = column(whose.user), set(map(column, marks))
                    rows = (row for row in rows if row.subject == user or not names.isdisjoint(row.teams.split(",")))
                ids = [row.decision_id for row in islice(rows, limit)]
            whole = select(c.record).where(c.decision_id.in_(ids)).order_by(c.decision_id.desc())
            return [_unicode(text) for text in connection.scalars(whole)]

    def uses(self) -> Iterator[Record]:
        """See ``Records``."""
        query = select(self.table.c.record).where(self.table.c.outcome.in_(_USES))
        with self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=_AT_ONCE).execute(query)
            yield from (json.loads(text) for (text,) in rows)

    def last_of_each_subject(self) -> Iterator[Record]:
        """See ``Records``."""
        c = self.table.c
        decided = select(func.max(c.number)).where(c.outcome.not_in((*BESIDE, "gap"))).group_by(c.subject)
        with self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=_AT_ONCE).execute(
                select(c.record).where(c.number.in_(decided))
            )
            yield from (json.loads(text) for (text,) in rows)

    def _rows(self, wanted: Wanted, narrowed: Callable[[Any], Any]) -> list[tuple[int, Record]]:
        c = self.table.c
        query = self._narrowed(select(c.number, c.record), wanted)
        with self._engine.connect() as connection:
            rows = [(number, json.loads(text)) for number, text in connection.execute(narrowed(query))]
        self._note([number for number, _ in rows])
        return rows

    def _about(self, team: str) -> Any:
        return self.table.c.teams.contains(f",{column(team)},", autoescape=True)

    def _narrowed(self, query: Any, wanted: Wanted) -> Any:
        c = self.table.c
        gap = c.outcome == "gap"
        if wanted.since is not None:
            query = query.where(c.decided_at >= wanted.since.astimezone(UTC).replace(tzinfo=None))
        if wanted.user is not None:
            query = query.where(gap | (c.subject == column(wanted.user)))
        if wanted.team is not None:
            query = query.where(gap | self._about(wanted.team))
        if wanted.type is not None:
            query = query.where(gap | (c.type == column(wanted.type)))
        query = query.where(gap | (c.outcome.in_(BESIDE) if wanted.shadow else c.outcome.not_in(BESIDE)))
        if wanted.denied:
            query = query.where(c.outcome.in_(("deny", "error", "gap")))
        return query

    def _note(self, numbers: Sequence[int]) -> None:
        self._seen.extend(set(numbers) - set(self._seen))
        self._last = max(self._last, *numbers, 0)


def _unicode(text: str) -> Record:
    """A record of Unicode texts: half a surrogate pair, which ASCII JSON may have, is in no question and no answer."""
    record: Record = json.loads(text)
    if "\\ud" in text:
        record = json.loads(json.dumps(record, ensure_ascii=False).encode(errors="replace"))
    return record


def _page(number: Any, last: int, query: Any) -> Any:
    return query.where(number > last).order_by(number).limit(_AT_ONCE)


class InFile:
    """Records in a file and in those that were put aside; raises ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def newest(self, wanted: Wanted, limit: int) -> list[Record]:
        """See ``Records``."""
        return list(deque(self.each(wanted), maxlen=limit))

    def each(self, wanted: Wanted) -> Iterator[Record]:
        """See ``Records``."""
        return (record for record in self._all() if wanted.fits(record))

    def begin(self) -> None:
        """See ``Records``."""
        self._file = self._path.open("rb")
        self._file.seek(0, os.SEEK_END)

    def new(self, wanted: Wanted) -> list[Record]:
        """See ``Records``."""
        if self._file is None:
            self.begin()
        assert self._file is not None  # noqa: S101
        found = _rest(self._file)
        if self._path.exists() and not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            # It was put aside; something may have come in between.
            found += _rest(self._file)
            self._file.close()
            self._file = self._path.open("rb")
            found += _rest(self._file)
        return [record for record in found if wanted.fits(record)]

    def one(self, decision_id: str) -> Record | None:
        """See ``Records``."""
        return next((record for record in self._all() if record["decision_id"] == decision_id), None)

    def uses(self) -> Iterator[Record]:
        """See ``Records``."""
        return (record for record in self._all() if _outcome(record) in _USES)

    def last_of_each_subject(self) -> Iterator[Record]:
        """See ``Records``."""
        found: dict[tuple[str, str], Record] = {}
        for record in self._all():
            if _outcome(record) not in {*BESIDE, "gap"}:
                subject = record.get("input", {}).get("subject", {})
                found[str(subject.get("type")), str(subject.get("id"))] = record
        yield from found.values()

    def _all(self) -> Iterator[Record]:
        for number in range(KEPT, -1, -1):
            path = Path(f"{self._path}.{number}") if number else self._path
            if number and not path.exists():
                continue
            with path.open("rb") as file:
                yield from _records(file)


def _outcome(record: Record) -> Any:
    custom = record.get("custom")
    return custom.get("outcome") if isinstance(custom, dict) else None


def of_opa(path: Path) -> Iterator[Record]:
    """The records of an OPA server's own decision log, one in a line, as it writes them to its console or by a plugin.

    They get what ours have in ``custom``. Raises ``OSError``.
    """
    with path.open("rb") as file:
        yield from _records(file)


def _formed(record: Record) -> Record | None:
    """The record with the parts that each of ours has, since a line may be of an OPA server, or anybody's.

    ``None`` for what was not decided at any time.
    """
    if not isinstance(record.get("custom"), dict) or "outcome" not in record["custom"]:
        record["custom"] = {"outcome": "other", "door": "opa"}
    record["custom"]["outcome"] = str(record["custom"]["outcome"])
    if "input" in record and not _is_question(record["input"]):
        # Of another policy than ours.
        record["input"] = {}
    try:
        return record if moment(record).tzinfo is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def _is_question(asked: object) -> bool:
    """Whether this may be a question, or the part of one that masks have left."""
    if not isinstance(asked, dict) or not isinstance(asked.get("subject", {}), dict):
        return False
    about = asked["resources"] if "resources" in asked else [asked.get("resource", {})]
    return isinstance(about, list) and all(isinstance(one, dict) for one in about)


def _rest(file: IO[bytes]) -> list[Record]:
    """The records of all lines from here on that have an end."""
    start = file.tell()
    whole = file.read().rpartition(b"\n")[0]
    file.seek(start + len(whole) + 1 if whole else start)
    return list(_records(whole.splitlines()))


def _records(lines: Iterable[bytes]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            # A process was killed while it wrote.
            continue
        if isinstance(record, dict) and "decision_id" in record and (formed := _formed(record)) is not None:
            yield formed
