"""What ``can``, ``who-can`` and ``matrix`` show is what the single questions are answered, whatever the policy."""

from __future__ import annotations

from random import Random

from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.review import Who, permissions
from airflow_team_authz.review.inventory import Things, tasks
from airflow_team_authz.review.kinds import holder
from tests.properties.conftest import Opened
from tests.properties.words import GROUPS, NAMES, ROLE_SPELLINGS

TYPES = ("connection", "dag", "pool", "variable")


def test_what_is_shown_is_what_single_questions_are_answered(opened: Opened) -> None:
    random = Random(5)  # noqa: S311 - not for secrets
    teams = [None, *opened.teams[:2]]
    existing = [Resource(random.choice(TYPES), random.choice(teams), random.choice(NAMES)) for _ in range(4)]
    things = Things(existing, [Resource("view", id="docs")])
    whos = [
        *(Who("person", id_, Subject("user", id_, (team,), (role,))) for id_, team, role in _people(random, opened)),
        *(holder("groups", group) for group in GROUPS[:1]),
        *tasks(opened.teams[:1]),
    ]
    point = opened.engines.in_process
    shown = {(one.who.name, one.action, one.resource) for one in permissions(point, things.questions(whos))}
    asked = 0
    for who in whos:
        for one in things.questions([who]):
            for resource in one.resources:
                asked += 1
                (decision,) = point.decide(Evaluations(who.subject, one.action, [resource])).decisions
                assert ((who.name, one.action, resource) in shown) is decision.allow
    assert asked > len(shown) > 20


def _people(random: Random, opened: Opened) -> list[tuple[str, str, str]]:
    names = random.sample([name for name in NAMES if name], 2)
    return [(name, random.choice(opened.teams), random.choice(ROLE_SPELLINGS)) for name in names]
