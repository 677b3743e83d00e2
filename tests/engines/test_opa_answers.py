"""An OPA server that answers badly, late, twice or not at all: the right error, never an allow, and nothing kept."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import EngineError, MalformedError
from tests.support.fake_opa import (
    ALLOW,
    BAD_ANSWERS,
    DEADLINE_MS,
    DENY,
    GOOD,
    LIST,
    ONE,
    QUESTION,
    FakeOpa,
    allow,
    answer,
    chunked,
    result,
)


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_bad_answer_is_its_error_and_the_next_good_one_counts(
    case: str, fake: FakeOpa, decisions: DecisionPoint
) -> None:
    bad, expected = BAD_ANSWERS[case]
    fake.answers = [bad]
    began = time.monotonic()
    with pytest.raises(EngineError) as raised:
        decisions.decide(QUESTION)
    assert type(raised.value) is expected
    # The deadline is for the whole exchange; what is more than twice of it was not bound by it.
    assert time.monotonic() - began < 2 * DEADLINE_MS / 1000
    assert len(fake.questions) == 1
    assert allow(decisions) is True


@pytest.mark.parametrize(
    "value",
    ['"all"', "true", "null", "{}", "[3]", "[-1]", "[0,0]", "[0,1,2,0]", "[1.5]", '["0"]', "[null]", "[true]", "[[0]]",
     "[18446744073709551616]", f"[{ONE}]"],
)  # fmt: skip
def test_a_bad_list_is_malformed_and_lists_nothing(value: str, fake: FakeOpa, decisions: DecisionPoint) -> None:
    fake.answers = [result(value), result("[2,0]")]
    with pytest.raises(MalformedError):
        decisions.allowed(LIST)
    assert {resource.id for resource in decisions.allowed(LIST)} == {"a", "c"}


@pytest.mark.parametrize("case", ["undefined", "yes", "500 with HTML", "never", "reset", "closed"])
def test_a_failed_list_is_an_error(case: str, fake: FakeOpa, decisions: DecisionPoint) -> None:
    bad, expected = BAD_ANSWERS[case]
    fake.answers = [bad]
    with pytest.raises(expected):
        decisions.allowed(LIST)


def test_chunked_answers_are_read_wherever_they_are_cut(fake: FakeOpa, decisions: DecisionPoint) -> None:
    def in_pieces(connection: socket.socket) -> None:
        whole = chunked(ALLOW[:10], ALLOW[10:11], ALLOW[11:])
        for start in range(0, len(whole), 7):
            connection.sendall(whole[start : start + 7])
            time.sleep(0.001)

    fake.answers = [in_pieces, chunked(ALLOW)]
    assert allow(decisions) is True
    assert allow(decisions) is True
    assert fake.connections == 1


def test_an_answer_that_nobody_asked_for_is_never_taken_for_one(fake: FakeOpa, decisions: DecisionPoint) -> None:
    def answers_twice(connection: socket.socket) -> None:
        connection.sendall(DENY)
        time.sleep(0.1)
        connection.sendall(GOOD)

    fake.answers = [answers_twice, DENY]
    assert allow(decisions) is False
    time.sleep(0.3)
    assert allow(decisions) is False
    assert fake.connections == 2


def test_an_interrupted_question_leaves_no_answer_for_the_next(fake: FakeOpa, decisions: DecisionPoint) -> None:
    """Airflow's timeouts interrupt by an exception out of a signal handler, wherever the program is."""

    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def late(connection: socket.socket) -> None:
        time.sleep(0.3)
        connection.sendall(GOOD)

    fake.answers = [GOOD, late, DENY]
    decisions.decide(QUESTION)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            decisions.decide(QUESTION)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert allow(decisions) is False


def test_outages_are_logged_once_per_change_and_apart_from_denials(
    fake: FakeOpa, decisions: DecisionPoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airflow_team_authz")
    for said, wanted in [(answer(b"{}"), ["ERROR"]), (GOOD, ["WARNING"]), (GOOD, []), (answer(b"{}"), ["ERROR"])]:
        caplog.clear()
        for _ in range(3):
            fake.answers = [said]
            with contextlib.suppress(EngineError):
                decisions.decide(QUESTION)
        assert [record.levelname for record in caplog.records] == wanted
