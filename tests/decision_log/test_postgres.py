"""The same on PostgreSQL, as far as it differs; and a server that is stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, func, select, text

from airflow_team_authz.decision_log import writer
from airflow_team_authz.decision_log.database import Database
from airflow_team_authz.decision_log.reading import Concerned, InDatabase, Wanted
from airflow_team_authz.decision_log.record import Form
from airflow_team_authz.decision_log.writer import Writer
from tests.conftest import eventually
from tests.decision_log.conftest import valid
from tests.decision_log.test_database import _TABLE, migrate, record, written
from tests.decision_log.test_record import ODD
from tests.decision_log.test_writer import entry, gaps, names
from tests.support.postgres import Postgres, programs

pytestmark = [pytest.mark.exhaustive, pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres") / "server")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def engine(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = create_engine(server.url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    monkeypatch.setattr(writer, "_FIRST_PAUSE_SECONDS", 0.01)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("by_files", [True, False])
def test_every_text_is_kept_and_found(engine: Engine, monkeypatch: pytest.MonkeyPatch, by_files: bool) -> None:
    # The address with its password, which `str` hides.
    monkeypatch.setattr(type(engine.url), "__str__", lambda url: url.render_as_string(hide_password=False))
    migrate(engine, monkeypatch, by_files)
    sink = Database(lambda: engine, None, 90)
    assert sink.write([record(odd) for odd in ODD]) == 0
    assert [one["input"]["resource"]["id"] for one in written(engine)] == ODD
    reading = InDatabase(engine, None)
    assert len(reading.newest(Wanted(user="bob", team="alpha", type="connection", denied=True), 100)) == len(ODD)
    assert reading.newest(Wanted(team="alph_"), 100) == []
    ids: list[str] = []
    while rows := reading.page(Wanted(), Concerned("nobody", ["alpha"]), None, ids[-1] if ids else "", 2):
        ids += [row["decision_id"] for row in rows]
        json.dumps(rows, ensure_ascii=False).encode()
    assert ids == sorted((one["decision_id"] for one in written(engine)), reverse=True)
    many = Concerned("nobody", ["alpha", *(f"t{number}" for number in range(3_000))])
    assert [row["decision_id"] for row in reading.page(Wanted(), many, None, "", 3)] == ids[:3]
    assert reading.page(Wanted(), Concerned("alpha", ["alph_", "beta"]), None, "", 100) == []


def _send(server: Postgres, number: int) -> None:
    """To the server, and to each of its processes: every connection has one."""
    parent = server._server.pid
    for pid in (str(parent), *Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        os.kill(int(pid), number)


def test_a_stopped_server_keeps_nobody_waiting_and_the_gap_is_told(engine: Engine, server: Postgres) -> None:
    _TABLE.metadata.create_all(engine)
    writing = Writer(Database(lambda: engine, None, 90), Form(), lambda: None, most=1_000)
    writing.offer(entry("before"))
    eventually(lambda: writing.written == 1)
    _send(server, signal.SIGSTOP)
    try:
        writing.offer(entry("first"))
        eventually(lambda: not writing._waiting)
        for number in range(3_000):
            writing.offer(entry(str(number)))
        assert writing.lost == 2_000
    finally:
        _send(server, signal.SIGCONT)
    eventually(lambda: writing.waiting() == 0 and writing.written >= 1_003)
    writing.close(20)
    records = list(map(valid, written(engine)))
    assert names(records)[:3] == ["before", "first", "0"]
    assert (len(names(records)), gaps(records)) == (1_002, [2_000])


def test_a_server_that_restarts_loses_nothing(engine: Engine, server: Postgres) -> None:
    _TABLE.metadata.create_all(engine)
    writing = Writer(Database(lambda: engine, None, 90), Form(), lambda: None)
    writing.offer(entry("before"))
    eventually(lambda: writing.written == 1)
    server.stop()
    for number in range(100):
        writing.offer(entry(str(number)))
    server.start()
    eventually(lambda: writing.written == 101)
    writing.close(20)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(_TABLE)) == 101
