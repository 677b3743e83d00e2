"""A candidate policy is asked what the policy in force was asked: its differences are recorded, and change nothing."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz import shadow
from airflow_team_authz.decision_log import open_log
from airflow_team_authz.decision_log.reading import InFile, Wanted
from airflow_team_authz.doors import decision_point
from airflow_team_authz.engines import DecisionPoint, Engine, Reply
from airflow_team_authz.engines.choice import packaged_baseline
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, PolicyBrokenError, Resource, Subject, TooLongError
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.review import recorded
from airflow_team_authz.shadow import Candidate, Queue, Shadow
from tests.conftest import eventually, forked, write
from tests.decision_log.conftest import Made

RULES = """package teams.alpha

import data.airflow.authz.standing

allow contains "alpha lends db" if {
	input.resource.type == "connection"
	input.resource.id == "db"
	input.action == "read"
	"beta" in standing.team_ids
}

deny contains "alpha hides this" if {
	input.resource.type == "dag"
	startswith(input.resource.id, "hidden")
}
"""
BOB = Subject("user", "bob", team_ids=("beta",), roles=("viewer",))
ANN = Subject("user", "ann", team_ids=("alpha",), roles=("viewer",))
DB = Evaluations(BOB, "read", [Resource("connection", "alpha", "db")])
DAGS = [Resource("dag", "alpha", f"{'hidden' if number % 2 else 'shown'}{number}") for number in range(300)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candidate in which team alpha has rules."""
    place = tmp_path_factory.mktemp("shadow")
    compile_directory(write(place / "policy", {"teams/alpha/alpha.rego": RULES}), place / "bundle.tar.gz")
    return place / "bundle.tar.gz"


@pytest.fixture(scope="module")
def policies(bundle: Path) -> Iterator[tuple[InProcess, InProcess]]:
    """The packaged policy, and the candidate."""
    engines = InProcess(packaged_baseline()), InProcess(bundle)
    yield engines
    for engine in engines:
        engine.close()


class Failing:
    """An engine that has no answer."""

    def query(self, *_: Any) -> Reply:
        raise TooLongError("the rules take too long")

    def close(self) -> None:
        pass


class Stopped:
    """An engine that answers when it is let go."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.goes, self.is_asked = engine, threading.Event(), threading.Event()

    def query(self, *asked: Any) -> Reply:
        self.is_asked.set()
        assert self.goes.wait(30)
        return self._engine.query(*asked)

    def close(self) -> None:
        self.goes.set()


class Beside:
    """A decision point with a candidate beside it, and what is recorded of both."""

    def __init__(
        self, engine: Engine, candidate: Callable[[], Engine], masks: str = "none", share: float = 1.0
    ) -> None:
        self.made = Made("none", masks)
        self.counts: Counter[str] = Counter()
        self.candidate = Candidate(
            self.made.log, lambda: DecisionPoint(candidate(), name="the shadow"), self._count, share
        )
        self.queue = Queue(self.candidate, share)
        self.point = DecisionPoint(engine, Shadow(self.made.log, self.queue))

    def _count(self, outcome: str, count: int) -> None:
        self.counts[outcome] += count

    def records(self) -> list[dict[str, Any]]:
        """Differences that were recorded; everything is closed by this."""
        self.queue.writer.flush(30)
        self.candidate.end_bursts(at_once=True)
        return self.made.records()


Open = Callable[..., Beside]


@pytest.fixture
def beside(policies: tuple[InProcess, InProcess]) -> Iterator[Open]:
    """Makes a candidate beside the packaged policy."""
    made: list[Beside] = []

    def open_(engine: Engine | Callable[[], Engine] = policies[1], **named: Any) -> Beside:
        made.append(Beside(policies[0], engine if callable(engine) else lambda: engine, **named))
        return made[-1]

    yield open_
    for one in made:
        one.queue.writer.close(0)
        one.made.log.close()


def test_a_different_answer_is_a_record_of_both(beside: Open, policies: tuple[InProcess, InProcess]) -> None:
    one = beside()
    (answer,) = one.point.decide(DB).decisions
    assert answer.allow is False
    (record,) = one.records()
    assert record["input"]["resource"] == {"type": "connection", "team_id": "alpha", "id": "db"}
    assert record["result"]["allow"] is False
    assert record["bundles"]["authz"]["revision"] == policies[0].revision
    assert record["custom"]["outcome"] == "shadow"
    assert record["custom"]["candidate"] == {
        "direction": "opens",
        "result": {"allow": True, "reasons": ["alpha lends db"], "layer": "team"},
        "revision": policies[1].revision,
    }
    assert one.counts == {"opens": 1, "same": 0}


def test_the_same_answer_is_counted_only(beside: Open) -> None:
    one = beside()
    one.point.decide(Evaluations(ANN, "read", [Resource("connection", "alpha", "db")]))
    one.point.allowed(Evaluations(BOB, "read", DAGS[:2]))
    assert one.records() == []
    assert one.counts == {"same": 3}


def test_of_a_list_each_difference_is_told_up_to_a_bound_and_then_counted(beside: Open) -> None:
    one = beside()
    assert len(one.point.allowed(Evaluations(ANN, "read", DAGS))) == 300
    records = one.records()
    assert len(records) == 50
    assert {record["custom"]["candidate"]["direction"] for record in records} == {"closes"}
    assert records[0]["result"] == {"allow": True}
    assert records[0]["custom"]["candidate"]["more"] == 100
    assert one.counts == {"closes": 150, "same": 150}


def test_the_same_difference_is_recorded_once_and_counted(beside: Open) -> None:
    one = beside()
    for _ in range(5):
        one.point.decide(DB)
    first, again = one.records()
    assert again["custom"]["repeated"]["times"] == 4
    assert again["custom"]["repeated"]["decision_id"] == first["decision_id"]
    assert one.counts["opens"] == 5


def test_a_candidate_that_fails_changes_no_answer_and_is_told(beside: Open, caplog: pytest.LogCaptureFixture) -> None:
    one = beside(Failing())
    assert one.point.decide(DB).decisions[0].allow is False
    assert len(one.point.allowed(Evaluations(ANN, "read", DAGS[:4]))) == 4
    records = one.records()
    assert {record["custom"]["candidate"]["direction"] for record in records} == {"fails"}
    assert records[0]["custom"]["candidate"]["error"]["code"] == "PlatformTooLong"
    assert [record["result"]["allow"] for record in records] == [False, True]
    assert one.counts == {"fails": 5}
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told
    assert all(line.startswith("the shadow: ") for line in told), told


def test_a_candidate_that_cannot_be_loaded_is_told_once_and_tried_again(
    beside: Open, policies: tuple[InProcess, InProcess], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(shadow, "_AGAIN_SECONDS", 0)
    broken = [PolicyBrokenError("it does not compile")] * 3

    def open_() -> Engine:
        if broken:
            raise broken.pop()
        return policies[1]

    one = beside(open_)
    for number in range(4):
        assert one.point.decide(DB).decisions[0].allow is False
        eventually(lambda number=number: sum(one.counts.values()) > number)  # type: ignore[misc]
    assert one.counts == {"fails": 3, "opens": 1, "same": 0}
    assert caplog.text.count("the shadow policy cannot be loaded, so it is not asked: it does not compile") == 1
    failed, *_ = one.records()
    assert failed["custom"]["candidate"]["error"]["message"] == "it does not compile"


def test_nobody_waits_for_the_candidate_and_what_is_not_asked_is_counted(
    beside: Open, policies: tuple[InProcess, InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MOST_QUESTIONS", 10)
    monkeypatch.setattr(shadow, "MOST_RESOURCES_WAITING", 100)
    stopped = Stopped(policies[1])
    one = beside(stopped)
    one.point.decide(DB)
    assert stopped.is_asked.wait(30)
    for _ in range(15):
        assert one.point.decide(DB).decisions[0].allow is False
    assert len(one.point.allowed(Evaluations(ANN, "read", DAGS))) == 300
    stopped.goes.set()
    records = one.records()
    assert [record["custom"]["lost"] for record in records if record["custom"]["outcome"] == "gap"] == [6]
    assert (one.counts["lost"], one.counts["opens"], one.counts["closes"]) == (6, 11, 0)
    assert one.candidate.room.take(100)


def test_what_waits_has_a_limit_also_by_the_names_of_its_subjects(
    beside: Open, policies: tuple[InProcess, InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MOST_RESOURCES_WAITING", 1_000)
    stopped = Stopped(policies[1])
    one = beside(stopped)
    groups = tuple(f"group {number}" for number in range(150))
    many = Subject("user", "many", ("beta",), ("viewer",), groups, {"department": groups})
    one.point.decide(Evaluations(many, "read", DB.resources))
    assert stopped.is_asked.wait(30)
    for _ in range(5):
        one.point.decide(Evaluations(many, "read", DB.resources))
    stopped.goes.set()
    one.records()
    assert (one.counts["lost"], one.counts["opens"]) == (3, 3)
    assert one.candidate.room.take(1_000)


def test_only_a_share_is_asked_and_records_say_so(beside: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one = beside(share=0.25)
    taken = iter([True, False, False, True] * 5)
    monkeypatch.setattr(shadow, "is_taken", lambda share: share == 0.25 and next(taken))
    for number in range(20):
        one.point.decide(Evaluations(Subject("user", f"bob{number}", ("beta",), ("viewer",)), "read", DB.resources))
    records = one.records()
    assert len(records) == 10
    assert {record["custom"]["share"] for record in records} == {0.25}


@pytest.mark.exhaustive
def test_the_settings_put_a_policy_into_the_shadow(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_point, "open_log", open_log)
    named = {"SHADOW": bundle, "DECISION_LOG": "file", "DECISION_LOG_FILE": tmp_path / "decisions.ndjson"}
    for name, value in named.items():
        monkeypatch.setenv(f"AIRFLOW__TEAM_AUTHZ__{name}", str(value))
    decision_point.forget()
    try:
        answer = decision_point.decision_point().decide(DB)
        queue = decision_point.shadow()
        assert queue is not None
        eventually(lambda: not queue.writer.waiting())
        decision_point.flush_log()
    finally:
        decision_point.forget()
    assert answer.decisions[0].allow is False
    found = {record["custom"]["outcome"]: record for record in InFile(tmp_path / "decisions.ndjson")._all()}
    assert found.keys() == {"deny", "shadow"}
    # A refusal's own record is named by that of the difference.
    assert found["shadow"]["custom"]["candidate"]["decision_id"] == found["deny"]["decision_id"] == answer.decision_id


def test_what_a_door_refuses_without_the_policy_is_not_compared(beside: Open) -> None:
    one = beside()
    one.point.refuse(DB, "nobody can say what to ask")
    assert one.records() == []
    assert not one.counts


def test_masks_of_a_result_hide_that_of_the_candidate(beside: Open) -> None:
    one = beside(masks="/result/reasons, /input/subject/roles")
    one.point.decide(DB)
    (record,) = one.records()
    assert "reasons" not in record["custom"]["candidate"]["result"]
    assert "roles" not in record["input"]["subject"]
    assert set(record["erased"]) == {"/result/reasons", "/input/subject/roles"}


def test_a_forked_process_asks_on_its_own(beside: Open) -> None:
    one = beside()
    one.point.decide(DB)
    eventually(lambda: one.counts["opens"] == 1)

    def asked() -> int:
        before = one.counts["opens"]
        one.point.decide(DB)
        eventually(lambda: one.counts["opens"] > before)
        return one.counts["opens"]

    with forked(asked) as child:
        assert child() == 2
    assert one.counts["opens"] == 1


def test_no_error_of_the_candidates_thread_ends_it(
    beside: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = beside()
    with monkeypatch.context() as patch:
        patch.setattr(shadow, "_differences", lambda *_: 1 / 0)
        one.point.decide(DB)
        eventually(lambda: one.counts["fails"] == 1)
    one.point.decide(DB)
    assert len(one.records()) == 1
    assert "a question could not be asked of the shadow policy" in caplog.text


# The report


def read(records: Sequence[dict[str, Any]]) -> recorded.Log:
    return recorded.beside(records, "shadow")


def test_differences_of_alike_people_are_one_line_with_their_number(beside: Open) -> None:
    one = beside()
    for name in ("bob", "bea", "ben"):
        for _ in range(2):
            one.point.decide(Evaluations(Subject("user", name, ("beta",), ("viewer",)), "read", DB.resources))
    one.point.allowed(Evaluations(ANN, "read", DAGS))
    log = read(one.records())
    gained, lost = log.found.changes
    assert gained.first.gained
    assert [who.name for who in gained.whos] == ["people with the login's role viewer and of team beta"]
    assert gained.seen is not None
    assert (gained.seen.times, set(gained.seen.people)) == (6, {"bob", "bea", "ben"})
    assert lost.seen is not None
    assert lost.seen.times == 150
    assert log.found.different == 156
    assert not log.failed


def test_a_policy_that_has_changed_meanwhile_is_told(beside: Open, policies: tuple[InProcess, InProcess]) -> None:
    one = beside()
    one.point.decide(DB)
    (record,) = one.records()
    other = record | {"bundles": {"authz": {"revision": "another"}}}
    assert read([record, other]).policies == (policies[0].revision, "another")


@pytest.mark.parametrize(
    "broken",
    [{"input": {}}, {"result": {}}, {"result": {"allow": "yes"}}, {"input": {"subject": 7, "resource": {}}}],
    ids=["no question", "no answer", "no such answer", "no subject"],
)
def test_a_record_without_its_question_is_counted_and_not_guessed(beside: Open, broken: dict[str, Any]) -> None:
    one = beside()
    one.point.decide(DB)
    (record,) = one.records()
    log = read([record | broken])
    assert log.found.changes == ()
    assert sum(log.left_out.values()) == 1


def test_other_records_are_no_differences(beside: Open) -> None:
    one = beside()
    one.point.decide(DB)
    (record,) = one.records()
    plain = record | {"custom": record["custom"] | {"outcome": "deny"}}
    assert read([plain]).found.questions == 0
    assert Wanted(shadow=True).fits(record)
    assert not Wanted().fits(record)
    assert Wanted().fits(plain)
    assert not Wanted(shadow=True).fits(plain)
