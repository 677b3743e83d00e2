"""Decisions in Airflow's database: the table, what does not fit into it, and a database that is not there."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from airflow import settings
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, String, Table, create_engine, insert, inspect, select, type_coerce
from sqlalchemy.orm import Session

from airflow_team_authz.decision_log import database
from airflow_team_authz.decision_log.database import Database, clean_part, insert_rows, row_of
from airflow_team_authz.decision_log.db_manager import DecisionLogManager
from airflow_team_authz.decision_log.reading import InDatabase
from airflow_team_authz.decision_log.record import Form, new_id
from airflow_team_authz.decision_log.tables import TABLE, decisions
from airflow_team_authz.decision_log.writer import Writer
from airflow_team_authz.server.database import Decision
from tests.conftest import eventually
from tests.decision_log.conftest import Kept, valid
from tests.decision_log.test_writer import entry, gaps

_TABLE = decisions()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Engine]:
    """A database without our table."""
    engine = create_engine(f"sqlite:///{tmp_path}/airflow.db", connect_args={"timeout": 0.05})
    yield engine
    engine.dispose()


@pytest.fixture
def engine(empty: Engine) -> Engine:
    _TABLE.metadata.create_all(empty)
    return empty


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(_TABLE).order_by(_TABLE.c.number)))


def written(engine: Engine) -> list[dict[str, Any]]:
    return [valid(json.loads(row.record)) for row in rows(engine)]


def record(name: str = "db", **named: Any) -> dict[str, Any]:
    return Form("none").record(entry(name)._replace(**named))


def migrate(engine: Engine, monkeypatch: pytest.MonkeyPatch, by_files: bool) -> DecisionLogManager:
    """As `airflow db migrate` does it."""
    monkeypatch.setattr(settings, "engine", engine)
    monkeypatch.setattr(settings, "SQL_ALCHEMY_CONN", str(engine.url))
    with Session(engine) as session:
        manager = DecisionLogManager(session)
        manager.upgradedb(use_migration_files=by_files)
        assert manager.check_migration()
    return manager


@pytest.mark.parametrize("by_files", [True, False])
def test_airflow_makes_the_table_and_takes_it_away(
    empty: Engine, monkeypatch: pytest.MonkeyPatch, by_files: bool
) -> None:
    manager = migrate(empty, monkeypatch, by_files)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": manager.version_table_name})
        assert compare_metadata(context, _TABLE.metadata) == []
        assert context.get_current_revision() == "0001"
    migrate(empty, monkeypatch, by_files)
    with Session(empty) as session, empty.begin() as connection:
        DecisionLogManager(session).drop_tables(connection)
    assert inspect(empty).get_table_names() == []


def test_a_row_has_what_a_record_is_found_by(engine: Engine) -> None:
    sent = record("größe")
    assert Database(lambda: engine, None, 90).write([sent]) == 0
    (row,) = rows(engine)
    assert row.decision_id == sent["decision_id"]
    assert (row.outcome, row.subject, row.action, row.type, row.resource, row.teams) == (
        "deny", "bob", "read", "connection", "größe", ",alpha,",
    )  # fmt: skip
    assert f"{row.decided_at:%Y-%m-%dT%H:%M:%S.%f}Z" == sent["timestamp"]
    assert written(engine) == [sent]


def test_the_records_of_uses_are_those_of_allowed_decisions_and_gaps(engine: Engine) -> None:
    outcomes = {outcome: record() for outcome in ("allow", "deny", "list", "gap", "error")}
    for outcome, one in outcomes.items():
        one["custom"]["outcome"] = outcome
    Database(lambda: engine, None, 90).write(list(outcomes.values()))
    assert list(InDatabase(engine, None).uses()) == [outcomes["allow"], outcomes["gap"]]


def test_what_is_masked_is_in_no_column(engine: Engine) -> None:
    masked = Form("/input/subject/id, /input/resource, /result").record(entry("MARKED", subject="MARKED"))
    Database(lambda: engine, None, 90).write([masked])
    assert "MARKED" not in repr(rows(engine))


@pytest.mark.parametrize("text", ["x" * 10_000, "\0", "\ud800", "postgresql://a:MARKED@b/c", "\n;--'\"%"])
def test_no_text_is_too_much_for_a_column(engine: Engine, text: str) -> None:
    sent = record(text)
    Database(lambda: engine, None, 90).write([sent])
    (row,) = rows(engine)
    assert len(row.resource) <= 250
    assert row.resource.isprintable()
    assert "MARKED" not in repr(row)
    assert "MARKED" in text or written(engine)[0]["input"]["resource"]["id"] == text


@pytest.mark.parametrize("table", [_TABLE, cast(Table, Decision.__table__)], ids=["Airflow's", "the bundle server's"])
@pytest.mark.parametrize(
    "moment", ["2026-11-27T04:19:09Z", "2026-11-27T04:19:09.551292123Z", "2026-11-27T04:19:09.5+02:00"]
)
def test_rows_that_sqlite_gets_at_once_are_those_of_sqlalchemy(empty: Engine, table: Table, moment: str) -> None:
    table.metadata.create_all(empty)
    row = row_of(record() | {"timestamp": moment})
    if "reporter" in table.c:
        row |= {"reporter": "r", "related": "", "decided_at": datetime.fromisoformat(moment).astimezone(UTC)}
    else:
        assert row["decided_at"] == datetime.fromisoformat(moment).replace(tzinfo=None)
    with empty.begin() as connection:
        connection.execute(insert(table), [row])
        others = [{**dict(reversed(row.items())), "decision_id": new_id()} for _ in range(2)]
        insert_rows(connection, table, others)
        # The very texts of the database.
        query = select(*(type_coerce(column, String).label(column.name) for column in table.c)).order_by(table.c.number)
        kept = connection.execute(query).mappings().all()
    by, *ours = [{name: part for name, part in one.items() if name not in {"number", "decision_id"}} for one in kept]
    assert ours == [by, by]
    assert [one["decision_id"] for one in kept] == [row["decision_id"], *(one["decision_id"] for one in others)]


def test_without_a_table_decisions_go_to_the_standard_log_until_there_is_one(
    empty: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    instead = Kept()
    sink = Database(lambda: empty, None, 90, instead)
    for _ in range(3):
        assert sink.write([record()]) == 0
    assert len(instead.records) == 3
    (line,) = [line.getMessage() for line in caplog.records if "table" in line.getMessage()]
    assert line == f"{database.NO_TABLE}. Until then decisions go to the standard log"
    migrate(empty, monkeypatch, by_files=True)
    monkeypatch.setattr(database.time, "monotonic", lambda: 1e9)
    sink.write([record("later")])
    assert [row.resource for row in rows(empty)] == ["later"]


def test_a_table_that_goes_away_meanwhile_is_no_error_for_ever(engine: Engine) -> None:
    instead = Kept()
    sink = Database(lambda: engine, None, 90, instead)
    sink.write([record()])
    _TABLE.metadata.drop_all(engine)
    with pytest.raises(Exception, match="no such table"):
        sink.write([record("after")])
    assert sink.write([record("after")]) == 0
    assert len(instead.records) == 1


def test_what_was_written_without_an_answer_is_not_written_twice(engine: Engine) -> None:
    sink = Database(lambda: engine, None, 90)
    first, second = record("one"), record("two")
    sink.write([first])
    assert sink.write([first, second]) == 0
    assert [row.resource for row in rows(engine)] == ["one", "two"]


def test_what_the_database_never_takes_is_a_gap_and_holds_nothing_up(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE {TABLE} (number INTEGER PRIMARY KEY, decision_id TEXT UNIQUE, decided_at TEXT, outcome TEXT,"
            " subject TEXT, action TEXT, type TEXT, resource TEXT CHECK (resource <> 'odd'), teams TEXT, record TEXT)"
        )
    writing = Writer(Database(lambda: empty, None, 90), Form(), lambda: None)
    for name in ("one", "odd", "two"):
        writing.offer(entry(name))
    eventually(lambda: writing.waiting() == 0 and writing.written == 3)
    writing.close()
    records = [json.loads(text) for (text,) in _all(empty, "record")]
    assert [text for (text,) in _all(empty, "resource") if text] == ["one", "two"]
    assert gaps(records) == [1]


def _all(engine: Engine, column: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(_TABLE.c[column]).order_by(_TABLE.c.number)))


def test_a_database_that_does_not_answer_keeps_nobody_waiting(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    writing = Writer(Database(lambda: engine, None, 90), Form(), lambda: None, most=50)
    writing.offer(entry("before"))
    eventually(lambda: len(rows(engine)) == 1)
    other = sqlite3.connect(str(engine.url.database), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING):
        writing.offer(entry("first"))
        eventually(lambda: "cannot be recorded in Airflow's database" in caplog.text)
        for number in range(80):
            writing.offer(entry(str(number)))
        lost = writing.lost
        assert lost >= 30
        other.execute("ROLLBACK")
        writing.close(20)
    assert "can be recorded again in Airflow's database" in caplog.text
    assert "MARKED" not in caplog.text
    records = written(engine)
    assert len(records) == 1 + 1 + 80 - lost + 1
    assert gaps(records) == [lost]


def test_a_database_that_is_gone_is_told_without_its_statements(caplog: pytest.LogCaptureFixture) -> None:
    gone = create_engine("sqlite:////nowhere/airflow.db")
    writing = Writer(Database(lambda: gone, None, 90), Form(), lambda: None)
    writing.offer(entry("MARKED"))
    eventually(lambda: "cannot be recorded" in caplog.text)
    writing.close(0.1)
    assert "unable to open database file" in caplog.text
    assert "MARKED" not in caplog.text


def test_what_is_too_old_is_deleted_in_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_CLEANED_AT_ONCE", 10)
    now = datetime.now(UTC)
    at = [int((now - timedelta(days=days)).timestamp() * 1e9) for days in (100, 91, 89, 0)]
    sink = Database(lambda: engine, None, 90)
    sink.write([record(str(index), at=moment, id=new_id()) for index, moment in enumerate(at) for _ in range(25)])
    monkeypatch.setattr(database.time, "monotonic", lambda: 1e9)
    # One part after each time that records come: these do not wait for all of it.
    left = []
    for number in range(7):
        sink.write([record(f"new{number}")])
        left.append(sum(row.resource in {"0", "1"} for row in rows(engine)))
    assert left == [40, 30, 20, 10, 0, 0, 0]
    assert sum(row.resource in {"2", "3"} for row in rows(engine)) == 50
    # There was nothing more, so it looks again in an hour.
    sink.write([record("old", at=at[0]), record("new")])
    assert "old" in {row.resource for row in rows(engine)}
    assert clean_part(engine, _TABLE, 90) == 1
