"""Rows that the database hands out as one text are those that it would hand out one by one, on each database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from unittest import mock

import msgspec
import pytest
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.orm import Session

from airflow_team_authz.doors import many_rows
from tests.support.postgres import Postgres, programs

THING = Table("thing", MetaData(), Column("id", Integer), Column("name", String(300)), Column("since", DateTime))
NAMES = ["", "a", 'quoted "twice"', "back\\slash", "line\nbreak", "größe 🚀", "x" * 250, "[1,null]", None]


class Thing(msgspec.Struct, array_like=True, frozen=True):
    id: int
    name: str | None


class Dated(msgspec.Struct, array_like=True, frozen=True):
    id: int
    since: str | None


EVERY = many_rows.Table(select(THING.c.id, THING.c.name), Thing)
DATED = many_rows.Table(select(THING.c.id, THING.c.since), Dated)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = create_engine("sqlite://")
        THING.metadata.create_all(engine)
        yield engine
        return
    # The oldest dependencies come without it.
    pytest.importorskip("psycopg2")
    if programs() is None and not os.environ.get("REQUIRE_ALL"):
        pytest.skip("PostgreSQL is not installed")
    server = Postgres(tmp_path_factory.mktemp("rows") / "postgres")
    try:
        server.start()
        engine = create_engine(server.url)
        THING.metadata.create_all(engine)
        yield engine
        engine.dispose()
    finally:
        server.stop()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session
        session.rollback()


def fill(session: Session, names: list[str | None]) -> list[Thing]:
    session.execute(insert(THING), [{"id": number, "name": name} for number, name in enumerate(names)])
    return [Thing(number, name) for number, name in enumerate(names)]


def test_any_text_arrives_as_it_is(session: Session) -> None:
    written = fill(session, NAMES)
    assert sorted(many_rows.many_rows(session, EVERY), key=lambda thing: thing.id) == written


def test_no_row_is_no_row(session: Session) -> None:
    assert list(many_rows.many_rows(session, EVERY)) == []


def test_a_change_is_seen_at_once(session: Session) -> None:
    """What is kept are texts that were decoded, never what a table holds."""
    fill(session, ["a", "b"])
    assert {thing.name for thing in many_rows.many_rows(session, EVERY)} == {"a", "b"}
    session.execute(delete(THING).where(THING.c.name == "a"))
    assert {thing.name for thing in many_rows.many_rows(session, EVERY)} == {"b"}
    session.rollback()
    assert list(many_rows.many_rows(session, EVERY)) == []


def test_rows_in_other_places_are_the_same_rows(session: Session) -> None:
    """Airflow writes into a Dag's row each time that it parses the file; what was found out about all Dags is kept."""
    written = fill(session, ["a", "b", "b"])
    before = many_rows.many_rows(session, EVERY)
    moved = written[0]
    session.execute(delete(THING).where(THING.c.id == moved.id))
    session.execute(insert(THING), [{"id": moved.id, "name": moved.name}])
    assert many_rows.many_rows(session, EVERY) is before
    session.execute(update(THING).where(THING.c.id == 1).values(id=0))
    after = many_rows.many_rows(session, EVERY)
    assert sorted(thing.id for thing in after) == [0, 0, 2]


def test_tables_are_read_together(session: Session) -> None:
    written = fill(session, ["a"])
    sent: list[str] = []
    connection = session.connection()
    event.listen(connection, "before_cursor_execute", lambda *told: sent.append(told[2]))
    things, dated = many_rows.rows_of_each(session, (EVERY, DATED))
    assert (list(things), list(dated)) == (written, [Dated(0, None)])
    assert len(sent) == 1


@pytest.mark.parametrize("json", [many_rows._JSON, {}], ids=["as one text", "as rows"])
def test_another_time_is_another_row(session: Session, json: dict[str, tuple[str, str]]) -> None:
    begun = datetime(2026, 1, 1)
    with mock.patch.object(many_rows, "_JSON", json):
        for since in (begun, begun + timedelta(microseconds=1)):
            session.execute(delete(THING))
            session.execute(insert(THING), [{"id": 1, "since": since}])
            (dated,) = many_rows.many_rows(session, DATED)
            assert str(dated.since).replace("T", " ").startswith(str(since))


@pytest.mark.parametrize("most", [0, many_rows._MOST_KEPT], ids=["decoded each time", "kept"])
def test_long_and_short_texts_are_the_same_rows(session: Session, most: int) -> None:
    written = fill(session, [f"name {number}" for number in range(5_000)])
    with mock.patch.object(many_rows, "_MOST_KEPT", most):
        assert sorted(many_rows.many_rows(session, EVERY), key=lambda thing: thing.id) == written


def test_another_database_hands_out_rows(session: Session) -> None:
    written = fill(session, NAMES)
    with mock.patch.object(many_rows, "_JSON", {}):
        assert sorted(many_rows.many_rows(session, EVERY), key=lambda thing: thing.id) == written
