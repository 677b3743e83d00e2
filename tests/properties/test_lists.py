"""A list is the set of its single checks, in both engines."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from airflow_team_authz.model import Decision, Evaluation, Evaluations, Resource
from tests.properties.conftest import Opened
from tests.properties.words import questions, subjects

SIZE = 15
POSITIONS = st.lists(st.integers(0, SIZE - 1), min_size=SIZE, max_size=SIZE)


def single(question: Evaluations, resource: Resource) -> bytes:
    return msgspec.json.encode(Evaluation(question.subject, question.action, resource, question.context))


def of(question: Evaluations, resources: list[Resource]) -> Evaluations:
    return msgspec.structs.replace(question, resources=resources)


def test_a_list_is_what_its_single_checks_allow(opened: Opened) -> None:
    _is_the_single_checks(opened)


def test_a_list_that_asks_once_for_a_kind_is_what_its_single_checks_allow(looking_at_kinds: Opened) -> None:
    _is_the_single_checks(looking_at_kinds)


def _is_the_single_checks(opened: Opened) -> None:
    seen: Counter[bool] = Counter()

    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        for engine in opened.engines.both():
            together = engine.decide(question).decisions
            replies = [engine._engine.query("decision", single(question, each), 1) for each in question.resources]
            assert [msgspec.json.decode(reply.value, type=Decision) for reply in replies] == together
            alone = [of(question, [each]) for each in question.resources]
            assert [engine.decide(one).decisions for one in alone] == [[decision] for decision in together]
            allowed = [each for each, decision in zip(question.resources, together, strict=True) if decision.allow]
            assert engine.allowed(question) == allowed
            assert [each for one in alone for each in engine.allowed(one)] == allowed
            seen.update(decision.allow for decision in together)

    ask()
    assert seen.total() >= 1_500
    assert min(seen[True], seen[False]) > 50


def test_the_order_of_a_list_and_what_else_is_in_it_change_nothing(opened: Opened) -> None:
    seen: Counter[bool] = Counter()

    @given(questions(opened.teams, SIZE, subjects(opened.teams)), POSITIONS)
    def ask(question: Evaluations, positions: list[int]) -> None:
        other = of(question, [question.resources[position] for position in positions])
        for engine in opened.engines.both():
            decisions = engine.decide(question).decisions
            assert engine.decide(other).decisions == [decisions[position] for position in positions]
            allowed = [question.resources[position] for position in positions if decisions[position].allow]
            assert engine.allowed(other) == allowed
            seen.update(decisions[position].allow for position in positions)

    ask()
    assert min(seen[True], seen[False]) > 50
