"""A real OPA that is restarted, emptied, stopped, overloaded or forked away from."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.engines import Reply
from airflow_team_authz.model import (
    DeadlineExceededError,
    Evaluations,
    NotAnsweringError,
    PolicyBrokenError,
    Resource,
    Subject,
    UndefinedError,
    UnreachableError,
)
from tests.conftest import PATIENT_MS, Opa, errors, eventually, merge
from tests.support.fake_opa import LIST, QUESTION, Connect, allow

ABOUT_EVE = Evaluations(Subject("user", "eve"), "read", QUESTION.resources)


LENDS = """package teams.beta

allow contains "lent" if input.resource.id == "lent"
"""


@pytest.fixture
def real(opa: Opa, policy: Callable[[dict[str, str]], Path], tmp_path: Path) -> Opa:
    """OPA with the shipped policy, and a team that has rules for what comes."""
    own = """package teams.alpha

        allow contains "lent" if input.resource.id == "lent"
        deny contains "fails" if {
            input.resource.id == "fails"
            lower(data.teams.alpha.number) == "x"
        }
        deny contains "takes its time" if {
            input.resource.id == "slow"
            some i in data.teams.alpha.many
            some j in data.teams.alpha.many
            some k in data.teams.alpha.many
            i + j + k < 0
        }
    """
    numbers = json.dumps({"number": 1, "many": list(range(1_000))})
    files = {"teams/alpha/alpha.rego": own, "teams/alpha/data.json": numbers, "teams/beta/beta.rego": LENDS}
    opa.policies = merge(policy(files), tmp_path / "merged")
    opa.start()
    return opa


def about(name: str) -> Evaluations:
    return Evaluations(QUESTION.subject, "read", [Resource("connection", "alpha", name)])


def busy(opa: Opa, seconds: float) -> float:
    """The share of a core that OPA uses in that time."""

    def used() -> float:
        assert opa.process is not None
        # proc(5): user and system time, in ticks, after the name in parentheses.
        fields = Path(f"/proc/{opa.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def test_opa_is_restarted(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, PATIENT_MS)
    assert allow(decisions) is True
    real.stop()
    with pytest.raises(UnreachableError):
        decisions.decide(QUESTION)
    real.start()
    assert allow(decisions) is True
    # Between two questions: the kept connection is stale, and nobody notices.
    real.stop()
    real.start()
    assert allow(decisions) is True


def test_opa_comes_back_without_its_policy(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, PATIENT_MS)
    assert allow(decisions) is True
    with_policy, real.policies = real.policies, None
    real.stop()
    real.start()
    for _ in range(2):
        with pytest.raises(UndefinedError, match="bundle is not loaded"):
            decisions.decide(QUESTION)
        with pytest.raises(UndefinedError):
            decisions.allowed(LIST)
    real.policies = with_policy
    real.stop()
    real.start()
    assert allow(decisions) is True


def test_a_stopped_opa_answers_the_next_question_and_not_one_before(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, 1_000)
    decisions.decide(QUESTION)
    real.send(signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(NotAnsweringError):
                decisions.decide(QUESTION)
    finally:
        real.send(signal.SIGCONT)
    # On a busy machine it takes its time to wake up; the first answer that comes has to be the one to this question.
    answers: list[bool] = []
    while not answers:
        with contextlib.suppress(DeadlineExceededError, NotAnsweringError):
            answers.append(allow(decisions, ABOUT_EVE))
    assert answers == [False]
    assert allow(connect(real.url, PATIENT_MS)) is True


def test_a_rule_that_fails_is_an_error_not_a_lost_deny(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, PATIENT_MS)
    with pytest.raises(PolicyBrokenError, match="lower"):
        decisions.decide(about("fails"))
    assert allow(decisions, about("lent")) is True


def test_a_rule_that_takes_its_time_is_cut_off(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, 1_000)
    with pytest.raises(DeadlineExceededError):
        decisions.decide(about("slow"))
    assert allow(decisions, about("lent")) is True
    # Closing the connection has ended the evaluation in OPA: it has its time for others again.
    eventually(lambda: busy(real, 0.3) < 0.1)


def test_slow_rules_of_one_team_do_not_take_the_lists_of_others_along(
    connect: Connect, real: Opa, caplog: pytest.LogCaptureFixture
) -> None:
    decisions = connect(real.url, 600)
    slow, *lent = (
        Resource("connection", *owned) for owned in (("alpha", "slow"), ("beta", "lent"), (None, "x"), ("beta", "lent"))
    )
    question = Evaluations(Subject("user", "eve"), "read", [slow, *lent])
    for _ in range(2):
        assert decisions.allowed(question) == [lent[0], lent[2]]
    with pytest.raises(DeadlineExceededError):
        decisions.allowed(Evaluations(question.subject, "read", [slow]))
    told = [error.partition(" (DeadlineExceeded)")[0] for error in errors(caplog)]
    assert told == [
        "lists leave out what team alpha owns, until its package changes or is faster",
        "no decision can be had from the engine",
    ]


def test_a_stopped_opa_is_not_asked_about_each_team(
    connect: Connect, real: Opa, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = connect(real.url, 200)
    listed = [Resource("connection", f"team{number}", "x") for number in range(50)]
    asked: list[str] = []
    query = decisions._engine.query

    def noted(entrypoint: str, *rest: Any) -> Reply:
        asked.append(entrypoint)
        return query(entrypoint, *rest)

    monkeypatch.setattr(decisions._engine, "query", noted)
    real.send(signal.SIGSTOP)
    try:
        # On a busy machine its deadline may come before anybody has noticed its silence.
        with pytest.raises((NotAnsweringError, DeadlineExceededError)):
            decisions.allowed(Evaluations(QUESTION.subject, "read", listed))
        assert len(asked) <= 2
    finally:
        real.send(signal.SIGCONT)
    assert [error.partition(" (")[0] for error in errors(caplog)] == ["no decision can be had from the engine"]


def test_opa_dies_while_it_evaluates(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, PATIENT_MS)
    assert allow(decisions) is True
    killer = threading.Timer(0.3, real.send, [signal.SIGKILL])
    killer.start()
    with pytest.raises(UnreachableError):
        decisions.decide(about("slow"))
    killer.join()
    real.stop()
    real.start()
    assert allow(decisions, ABOUT_EVE) is False
    assert allow(decisions) is True


def test_a_forked_child_does_not_use_its_parents_connection(connect: Connect, real: Opa) -> None:
    decisions = connect(real.url, PATIENT_MS)
    decisions.decide(QUESTION)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def ask() -> None:
        for number in range(50):
            answers.put(allow(decisions, QUESTION if number % 2 else ABOUT_EVE) is bool(number % 2))

    children = [context.Process(target=ask) for _ in range(2)]
    for child in children:
        child.start()
    parents = [allow(decisions, QUESTION if number % 2 else ABOUT_EVE) for number in range(50)]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert parents == [bool(number % 2) for number in range(50)]
    assert [answers.get() for _ in range(100)] == [True] * 100
