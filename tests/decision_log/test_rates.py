"""5,000 decisions a second for a minute into each sink: nothing is lost, or a gap tells it; memory does not grow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, func, select

from airflow_team_authz.decision_log import DecisionLog
from airflow_team_authz.decision_log.database import Database
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.over_http import BundleServer
from airflow_team_authz.decision_log.record import Form
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.decision_log.tables import decisions
from airflow_team_authz.decision_log.writer import Sink
from airflow_team_authz.model import Decision, Evaluations, Provenance, Resource, Subject
from tests.server.conftest import database_server, running

pytestmark = pytest.mark.exhaustive

RATE, SECONDS, STOPPED_SECONDS = 5_000, 60, 20
_TICK = 0.01
_MOST_GROWTH = 64 << 20
YES = [Decision(True, ("op in team alpha",), "baseline")]
BOB = Subject("user", "bob", ("alpha",), ("op",))


@pytest.fixture(autouse=True)
def quick() -> None:
    """Nothing is quicker here than in a server."""


class Measured(NamedTuple):
    """A sink, and how many records have arrived there."""

    sink: Sink
    arrived: Callable[[], int]


@contextmanager
def a_file(place: Path) -> Iterator[Measured]:
    class Counted(File):
        """Files that are put aside for too long go, so what arrives is counted here."""

        count = 0

        def write(self, records: Sequence[dict[str, Any]]) -> int:
            refused = super().write(records)
            self.count += len(records)
            return refused

    sink = Counted(place / "decisions.ndjson")
    yield Measured(sink, lambda: sink.count)


def _in(engine: Engine) -> Measured:
    table = decisions()
    table.metadata.create_all(engine)

    def arrived() -> int:
        with engine.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(table)) or 0)

    return Measured(Database(lambda: engine, None, 90), arrived)


@contextmanager
def sqlite(place: Path) -> Iterator[Measured]:
    yield _in(create_engine(f"sqlite:///{place}/decisions.db"))


@contextmanager
def postgresql(place: Path) -> Iterator[Measured]:
    with database_server(place / "postgres") as started:
        yield _in(create_engine(started.url))


@contextmanager
def bundle_server(place: Path) -> Iterator[Measured]:
    with running(place / "server") as server:
        (place / "token").write_text(server.tokens["reader"])

        def arrived() -> int:
            lines = server.ask("GET", "/metrics").text.splitlines()
            return int(float(next(one for one in lines if "decisions_written" in one and one[0] != "#").split()[1]))

        yield Measured(BundleServer(server.url, place / "token"), arrived)


SINKS = {"a file": a_file, "SQLite": sqlite, "PostgreSQL": postgresql, "a bundle server": bundle_server}


class Stopped:
    """A sink that takes nothing between two moments after its first use, in seconds."""

    def __init__(self, sink: Sink, start: float, end: float) -> None:
        self.name, self.setting = sink.name, sink.setting
        self._sink, self._from, self._to = sink, start, end
        self._began = 0.0

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        self._began = self._began or time.monotonic()
        if self._from <= time.monotonic() - self._began < self._to:
            raise OSError("stopped by the test")
        return self._sink.write(records)

    def begin_anew(self) -> None:
        self._sink.begin_anew()


def asked(log: DecisionLog, seconds: float) -> tuple[int, list[int]]:
    """How many were decided at this rate, and the memory of this process, each second."""
    count, memory, began = 0, list[int](), time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        while count < passed * RATE:
            question = Evaluations(BOB, "update", [Resource("connection", "alpha", f"db{count % 1000}")])
            log.decided(question, YES, Provenance("r1", 1))
            count += 1
        if len(memory) < passed:
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        time.sleep(_TICK)
    return count, memory


@pytest.mark.parametrize("name", sorted(SINKS))
def test_a_minute_of_decisions_arrives(tmp_path: Path, name: str) -> None:
    with SINKS[name](tmp_path) as (sink, arrived):
        log = DecisionLog([sink], Levels("changes"), Form(), tells_lines=False)
        count, memory = asked(log, SECONDS)
        (writer,) = log.writers
        writer.close(30)
        grown = f"memory {memory[0] >> 20} to {memory[-1] >> 20} MiB"
        told = f"{name}: {count:,} in {SECONDS} s, lost {writer.lost:,}, {grown}"
        print(told)
        assert writer.lost == 0, told
        assert arrived() == count, told
    # Not from the first second on: pools of connections and of memory grow to their size.
    assert memory[-1] - memory[len(memory) // 4] < _MOST_GROWTH, told


def test_what_a_stopped_sink_does_not_take_is_told_to_the_record(tmp_path: Path) -> None:
    with a_file(tmp_path) as (sink, _):
        lost: list[int] = []
        taken = 0

        class Watched(Stopped):
            def write(self, records: Sequence[dict[str, Any]]) -> int:
                nonlocal taken
                refused = super().write(records)
                gaps = [one["custom"]["lost"] for one in records if one["custom"]["outcome"] == "gap"]
                lost.extend(gaps)
                taken += len(records) - len(gaps)
                return refused

        log = DecisionLog([Watched(sink, 5, 5 + STOPPED_SECONDS)], Levels("changes"), Form(), tells_lines=False)
        count, memory = asked(log, STOPPED_SECONDS + 40)
        log.writers[0].close(30)
    assert lost
    assert taken + sum(lost) == count
    assert log.writers[0].lost == sum(lost)
    assert memory[-1] - memory[4] < _MOST_GROWTH
    assert not any(thread.name == "team-authz-decisions" for thread in threading.enumerate())
