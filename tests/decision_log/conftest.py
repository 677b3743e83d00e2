"""Decision logs whose sinks a test can look into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from airflow_team_authz import decision_log
from airflow_team_authz.decision_log import DecisionLog, origin, writer
from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.decision_log.record import DEFAULT_MASKS, Form, encode
from airflow_team_authz.model import Decision, EngineError, Evaluations, Provenance, Resource, Subject
from tests.conftest import REPOSITORY

SCHEMA = json.loads(Path(decision_log.__file__).with_name("record.schema.json").read_text())
_VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
_QUESTION = jsonschema.Draft7Validator(json.loads((REPOSITORY / "policies/schemas/input.json").read_text()))
BOB = Subject("user", "bob", team_ids=("beta",), roles=("viewer",), groups=("beta-people",))
NO = Decision(False, ("bob may not",), "baseline")
YES = Decision(True, ("bob may",), "baseline")


def valid(record: dict[str, Any]) -> dict[str, Any]:
    """The record as readers get it, which must be as its schema says, and its question as the question's schema."""
    read: dict[str, Any] = json.loads(encode(record))
    _VALIDATOR.validate(read)
    if "erased" not in read and read["custom"]["outcome"] != "gap":
        shared = {name: part for name, part in read["input"].items() if not name.startswith("resource")}
        for resource in read["input"].get("resources", [read["input"].get("resource")]):
            _QUESTION.validate(shared | {"resource": resource})
    return read


class Kept:
    """A sink that keeps what it is given, each of which must be valid."""

    name = setting = "memory"

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        self.records += map(valid, records)
        return 0

    def begin_anew(self) -> None:
        self.records = []


def ask_with(log: DecisionLog, text: str) -> None:
    """A refusal and an error with this text in each place where one may be."""
    subject = Subject(
        "user", text, team_ids=(text,), roles=(text,), groups=(text,), claims={text: (text,)}, unverified=text
    )
    question = Evaluations(subject, "read", [Resource("connection", text, text, "event", text, text, text)])
    header = (b"x-request-id", text.encode("utf-8", "replace"))
    scope = {"method": text, "path": f"/{text}", "client": (text, 1), "headers": [header]}
    with origin.at("users", scope):
        log.decided(question, [Decision(False, (text,), "team")], Provenance(text, 1))
        log.failed(question, EngineError(text), 1)


class Made:
    """A decision log with one sink in memory."""

    def __init__(self, levels: str = "all", masks: str = DEFAULT_MASKS) -> None:
        self.sink = Kept()
        self.log = DecisionLog([self.sink], Levels(levels), Form(masks))

    def decided(self, *resources: Resource, decision: Decision = NO, action: str = "read", by: Subject = BOB) -> str:
        question = Evaluations(by, action, resources or [Resource("connection", "alpha", "db")])
        return self.log.decided(question, [decision] * len(question.resources), Provenance("r1", 7))

    def failed(self, error: EngineError, action: str = "read") -> str:
        return self.log.failed(Evaluations(BOB, action, [Resource("connection", "alpha", "db")]), error, 7)

    def records(self) -> list[dict[str, Any]]:
        """All that was recorded; the log is closed by this."""
        self.log.close()
        return self.sink.records


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what gathers."""
    for name in ("_LINGER_SECONDS", "_FIRST_PAUSE_SECONDS"):
        monkeypatch.setattr(writer, name, 0.001)


@pytest.fixture
def make() -> Iterator[Callable[..., Made]]:
    """Makes logs, which are closed in the end."""
    made: list[Made] = []

    def make_one(*arguments: str, **named: str) -> Made:
        made.append(Made(*arguments, **named))
        return made[-1]

    yield make_one
    for one in made:
        one.log.close()
