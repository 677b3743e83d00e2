"""To whoever may see nothing of a type, a refusal tells what it would about something that does not exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, seed, settings
from msgspec import UNSET
from msgspec.structs import replace

from airflow_team_authz.doors import decision_point
from airflow_team_authz.doors.disclosure import VisibleReason, visible_reason
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Evaluations, Resource
from tests.properties.conftest import EXAMPLES, MANY, Opened
from tests.properties.words import questions, subjects

SIZE = 4


@pytest.fixture(params=["explain", "conceal"])
def refusals(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each value of the setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", request.param)
        decision_point.forget()
        yield request.param
    decision_point.forget()


def knows(engine: DecisionPoint, question: Evaluations, resource: Resource, refusals: str) -> bool:
    """Whether the subject may see the resource; or where refusals explain, others of its kind."""

    def may(action: str, **changed: Any) -> bool:
        return bool(engine.allowed(replace(question, action=action, resources=[replace(resource, **changed)])))

    if may("read") or may("read", entity=UNSET):
        return True
    return refusals == "explain" and (may("read", team_id=None) or may("list", team_id=None, id=UNSET))


def test_the_answer_is_that_about_what_does_not_exist(opened: Opened, refusals: str) -> None:
    seen: Counter[str] = Counter()

    # Without it the cases depend on the text of this function, and there may be few who know what they may not change.
    @seed(3)
    @settings(max_examples=MANY if refusals == "conceal" else EXAMPLES)
    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        for each in question.resources:
            if each.id is UNSET or each.type == "team":
                continue
            owned = [replace(each, team_id=team_id) for team_id in opened.teams]
            for engine in opened.engines.both():
                *decisions, missing = engine.decide(
                    replace(question, resources=[*owned, replace(each, team_id=None)])
                ).decisions
                for resource, decision in zip(owned, decisions, strict=True):
                    if decision.allow:
                        continue
                    answer = visible_reason(engine, question, resource, decision)
                    if knows(engine, question, resource, refusals):
                        assert answer == VisibleReason("; ".join(decision.reasons))
                        seen["knows"] += 1
                    elif missing.allow:
                        assert answer.as_missing
                        assert not any(f"of team {team_id}" in answer.reason for team_id in opened.teams)
                        seen["as missing"] += 1
                    else:
                        assert answer == VisibleReason("; ".join(missing.reasons))
                        seen["refused alike"] += 1

    ask()
    kinds = ("knows", "refused alike") if refusals == "explain" else ("knows", "refused alike", "as missing")
    assert min(seen[kind] for kind in kinds) > 20, seen
