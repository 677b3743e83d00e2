"""What the decision log costs whoever asks, at each level; and how many records each sink takes in a second."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from airflow_team_authz.decision_log import DecisionLog
from airflow_team_authz.decision_log.database import Database
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.record import Form
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.decision_log.tables import decisions
from airflow_team_authz.decision_log.writer import Sink
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Provenance, Resource, Subject
from benchmarks.harness import compare, compiled, write_policies

OP = Subject("user", "bob", team_ids=("team1",), roles=("op",))
SECONDS = 10
WITHOUT, DEFAULT = "without a log", "the default level"


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """All of them. A file is the sink, whose thread shares the interpreter with whoever asks."""
    rounds: int = options.rounds
    engine = InProcess(compiled(write_policies(home / "log", teams=10)))
    levels = {WITHOUT: None, "level none": "none", "level denied": "denied", DEFAULT: "changes", "level all": "all"}
    logs = {name: level and _log(File(home / f"{level}.ndjson"), level) for name, level in levels.items()}
    points = {name: DecisionPoint(engine, log or None) for name, log in logs.items()}

    def asking(point: DecisionPoint, action: str, team: str) -> Callable[[], Any]:
        # The engine's answers are kept, so that what is measured is not the policy.
        question = Evaluations(OP, action, [Resource("connection", team, "pg")])
        return lambda: point.decide(question)

    questions = {
        "a read that is allowed": ("read", "team1"),
        "a change that is allowed": ("update", "team1"),
        "a list of one": None,
        "the same refusal again": ("read", "team2"),
    }
    for told, question in questions.items():
        contestants = {
            name: asking(point, *question) if question else _listing(point) for name, point in points.items()
        }
        goals = {DEFAULT: "3 µs more"} if told == "a read that is allowed" else {}
        yield from compare(f"the log: {told}", contestants, rounds, goals)
    for log in logs.values():
        if log:
            log.close()
    yield from rates(home)


def _listing(point: DecisionPoint) -> Callable[[], Any]:
    question = Evaluations(OP, "list", [Resource("connection", "team1", "pg")])
    return lambda: point.allowed(question)


def _log(sink: Sink, level: str) -> DecisionLog:
    return DecisionLog([sink], Levels(level), Form(), tells_lines=False)


def rates(home: Path) -> Iterator[dict[str, Any]]:
    """How long a record takes, when as many come as a sink takes."""
    engine = create_engine(f"sqlite:///{home}/decisions.db")
    decisions().metadata.create_all(engine)
    first = 0.0
    for name, sink in {"a file": File(home / "rate.ndjson"), "SQLite": Database(lambda: engine, None, 90)}.items():
        log = _log(sink, "all")
        (writer,) = log.writers
        question = Evaluations(OP, "read", [Resource("connection", "team1", "pg")])
        decided = DecisionPoint(_Yes()).decide(question).decisions
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            if writer.waiting() < 5_000:
                log.decided(question, decided, Provenance("r1", 1))
            else:
                time.sleep(0.001)
        written = writer.written
        writer.close(60)
        taken = SECONDS / written * 1e6
        first = first or taken
        told = f"{name}: {written / SECONDS:,.0f} records a second"
        yield {"comparison": "a record", "what": told, "value": round(taken, 1), "ratio": round(taken / first, 3)}


class _Yes:
    def query(self, *_: object) -> Any:
        from airflow_team_authz.engines import Reply

        return Reply(b'[{"allow": true, "reasons": ["bob may"], "layer": "baseline"}]', "r1")

    def close(self) -> None:
        pass
