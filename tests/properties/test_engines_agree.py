"""Both engines give the same answer: decision, reasons and layer. So does each compiler of the policy in process."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings

from airflow_team_authz.model import Evaluations
from airflow_team_authz.server.policies import point_of
from tests.properties.conftest import MANY, Opened
from tests.properties.words import questions, subjects

# With a hundred examples for each of two sites, 10,000 questions.
SIZE = 50
ALL = ((True, "team"), (True, "baseline"), (False, "guardrail"), (False, "team"), (False, "default"))


def test_the_engines_agree_and_say_why(opened: Opened) -> None:
    seen: Counter[tuple[bool, str]] = Counter()

    @settings(max_examples=MANY)
    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        in_process, server = (engine.decide(question).decisions for engine in opened.engines.both())
        assert in_process == server
        for decision in in_process:
            assert decision.layer in (("team", "baseline") if decision.allow else ("guardrail", "team", "default"))
            assert decision.reasons
            assert list(decision.reasons) == sorted(set(decision.reasons))
        listed, served = (engine.allowed(question) for engine in opened.engines.both())
        assert listed == served
        seen.update((decision.allow, decision.layer) for decision in in_process)

    ask()
    assert seen.total() >= 5_000
    assert all(seen[kind] > 20 for kind in ALL), seen


def test_a_policy_that_was_compiled_in_a_hurry_answers_the_same(opened: Opened) -> None:
    hurried, for_speed = point_of(opened.engines.bundle.read_bytes(), ""), opened.engines.in_process

    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        assert hurried.decide(question).decisions == for_speed.decide(question).decisions
        assert hurried.allowed(question) == for_speed.allowed(question)

    ask()
