"""The sink that is Airflow's own database."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import Connection, Dialect, Engine, Table, delete, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from airflow_team_authz.decision_log.record import encode, without_secrets
from airflow_team_authz.decision_log.tables import LONGEST, LONGEST_TEAMS, TABLE, decisions
from airflow_team_authz.decision_log.writer import Sink
from airflow_team_authz.escaping import logger

log = logger(__name__)

NO_TABLE = f"Airflow's database has no table {TABLE}: run `airflow db migrate`"
_LOOK_AGAIN_SECONDS = 60.0
_CLEAN_SECONDS = 3600.0
_CLEANED_AT_ONCE = 1_000
_STATEMENT_SECONDS = 15


class NoTableError(Exception):
    """The database has no table of decisions."""


class Database:
    """A table of Airflow's database, as long as it has one; until then records go to another sink."""

    name, setting = "Airflow's database", "database"

    def __init__(
        self, engine: Callable[[], Engine], schema: str | None, days: int, instead: Sink | None = None
    ) -> None:
        """``engine`` gives Airflow's, which changes when a process forks. Records are kept for so many days."""
        self._engine = engine
        self._table = decisions(schema)
        self._days = days
        self._instead = instead
        self.begin_anew()

    def begin_anew(self) -> None:
        """See ``writer.Sink``."""
        self._is_there: bool | None = None
        self._look_at = 0.0
        # Not at once: processes that start together do not all clean at the same time.
        self._clean_at = time.monotonic() + _CLEAN_SECONDS * (os.getpid() % 100 + 1) / 100

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``."""
        if not self._has_table():
            return self._instead.write(records) if self._instead is not None else 0
        rows = [row_of(record) for record in records]
        try:
            with self._begin() as connection:
                insert_rows(connection, self._table, rows)
            refused = 0
        except OperationalError:
            self._is_there = None
            raise
        except SQLAlchemyError:
            # A row is there from an attempt whose success nobody heard of, or the database does not take one of them.
            self._is_there = None
            if not self._has_table():
                return self.write(records)
            refused = sum(not self._insert(row) for row in rows)
        self._clean()
        return refused

    def _insert(self, row: dict[str, Any]) -> bool:
        """Whether the row is there now."""
        try:
            with self._begin() as connection:
                connection.execute(insert(self._table), [row])
        except OperationalError:
            raise
        except SQLAlchemyError as error:
            if isinstance(error, IntegrityError) and self._has(row["decision_id"]):
                return True
            log.error("Airflow's database does not take a decision: %s", type(error).__name__)
            return False
        return True

    def _has(self, decision_id: str) -> bool:
        number = select(self._table.c.number).where(self._table.c.decision_id == decision_id)
        with self._begin() as connection:
            return connection.scalar(number) is not None

    def _begin(self) -> Transaction:
        return Transaction(self._engine())

    def _has_table(self) -> bool:
        if self._is_there or (self._is_there is False and time.monotonic() < self._look_at):
            return bool(self._is_there)
        there = has_table(self._engine(), self._table)
        if not there and self._is_there is None:
            log.error("%s. Until then decisions go to the standard log", NO_TABLE)
        self._is_there, self._look_at = there, time.monotonic() + _LOOK_AGAIN_SECONDS
        return there

    def _clean(self) -> None:
        """Delete a part of what is too old, and the next part after the next records, which must not wait for long."""
        if time.monotonic() < self._clean_at:
            return
        self._clean_at = time.monotonic() + _CLEAN_SECONDS
        try:
            if clean_part(self._engine(), self._table, self._days) == _CLEANED_AT_ONCE:
                self._clean_at = 0.0
        except SQLAlchemyError as error:
            log.warning("old decisions could not be deleted (%s)", type(error).__name__)


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that all have the same columns; raises what SQLAlchemy does, and then none is there."""
    dialect = connection.dialect
    if dialect.name not in {"postgresql", "sqlite"}:
        connection.execute(insert(table), rows)
        return
    quoted = dialect.identifier_preparer.quote
    names = ", ".join(map(quoted, rows[0]))
    into = dialect.identifier_preparer.format_table(table)
    if dialect.name == "sqlite":
        statement = f"INSERT INTO {into} ({names}) VALUES ({', '.join('?' * len(rows[0]))})"  # noqa: S608 - likewise
        connection.exec_driver_sql(statement, _values(table, dialect, rows))
        return
    # One parameter, whose JSON is made in C: drivers in Python take several times as long with one for each value.
    typed = ", ".join(f"{quoted(name)} {table.c[name].type.compile(dialect)}" for name in rows[0])
    statement = f"INSERT INTO {into} ({names}) SELECT {names} FROM json_to_recordset(CAST(:rows AS json)) AS r({typed})"  # noqa: S608 - names of ours
    connection.execute(text(statement), {"rows": msgspec.json.encode(rows).decode()})


def _values(table: Table, dialect: Dialect, rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows as a driver takes them. SQLAlchemy itself takes as long for a row as SQLite does."""
    processors = {name: table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in rows[0]}
    changed = [(name, process) for name, process in processors.items() if process is not None]
    in_order = itemgetter(*rows[0])
    return [in_order(row | {name: process(row[name]) for name, process in changed}) for row in rows]


class Transaction:
    """A transaction that does not wait for ever, where the database can be told so."""

    def __init__(self, engine: Engine) -> None:
        self._transaction = engine.begin()

    def __enter__(self) -> Connection:
        connection: Connection = self._transaction.__enter__()
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
        return connection

    def __exit__(self, *raised: Any) -> None:
        self._transaction.__exit__(*raised)


def has_table(engine: Engine, table: Table) -> bool:
    """Whether the database has the table; raises what SQLAlchemy does if it cannot be asked."""
    return inspect(engine).has_table(table.name, schema=table.schema)


def clean_part(engine: Engine, table: Table, days: int) -> int:
    """Delete some of the records that are older than so many days; how many: a full part may have more behind it."""
    before = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days)
    old = select(table.c.number).where(table.c.decided_at < before).order_by(table.c.decided_at).limit(_CLEANED_AT_ONCE)
    with Transaction(engine) as connection:
        # MySQL takes no limit in a subquery.
        if numbers := list(connection.scalars(old)):
            connection.execute(delete(table).where(table.c.number.in_(numbers)))
    return len(numbers)


def row_of(record: dict[str, Any], encoded: str = "") -> dict[str, Any]:
    """The row of a record: what is masked is in none of its columns. ``encoded`` is its JSON, if somebody has it."""
    input_ = record.get("input", {})
    resources = input_.get("resources") or [input_.get("resource", {})]
    first = resources[0]
    names = dict.fromkeys(team for one in resources if (team := one.get("team_id")))
    return {
        "decision_id": record["decision_id"],
        "decided_at": _naive(record["timestamp"]),
        "outcome": record["custom"]["outcome"],
        "subject": column(input_.get("subject", {}).get("id", "")),
        "action": column(input_.get("action", "")),
        "type": column(first.get("type", ""))[:50],
        "resource": column(str(first.get("id", ""))),
        "teams": _teams([*_acting(input_.get("subject", {})), *names]),
        "record": encoded or encode(record),
    }


def _naive(timestamp: str) -> datetime:
    if timestamp.endswith("Z"):
        return datetime.fromisoformat(timestamp[:-1])
    return datetime.fromisoformat(timestamp).replace(tzinfo=None)


def acting_for(team_id: str) -> str:
    """The mark of a task's team in the column ``teams``."""
    return f"~{team_id}"


def _acting(subject: dict[str, Any]) -> list[str]:
    """The mark of the team for which a task asks; people ask for themselves."""
    teams = subject.get("team_ids")
    is_of_team = subject.get("type") == "task" and isinstance(teams, list) and len(teams) == 1
    return [acting_for(team) for team in teams if isinstance(team, str)] if is_of_team and teams else []


def _teams(names: Iterable[str]) -> str:
    told = ","
    for name in names:
        if len(longer := f"{told}{column(name)},") > LONGEST_TEAMS:
            break
        told = longer
    return told


def column(value: str) -> str:
    """A value that each of Airflow's databases takes: as in JSON, where every sign is ASCII and none controls."""
    # Most come again and again. What is long is not kept.
    return _short_column(value) if len(value) <= LONGEST else _column(value)


def _column(value: str) -> str:
    value = without_secrets(value)
    if value.isprintable() and '"' not in value and "\\" not in value:
        return value[:LONGEST]
    return json.dumps(value, ensure_ascii=not value.isprintable())[1:-1][:LONGEST]


_short_column = lru_cache(maxsize=4096)(_column)
