"""Who has nothing gets nothing, and one team's rules decide nothing about what it does not own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import assume, given

from airflow_team_authz.model import Evaluations
from tests.properties.conftest import Opened
from tests.properties.rules import NOTHING, Package, a_package
from tests.properties.sites import Site
from tests.properties.words import nobodies, questions, subjects

SIZE = 25
LAYERS = ("guardrail", "team", "baseline", "default")
# Asked only about what others own, so that it does not matter what its rules amount to.
GREEDY = Package(
    """allow contains "mine" if true
deny contains "mine" if input.subject.type != "user"
default decision := {"allow": true, "reasons": ["mine"], "layer": "team"}
team_ids := {"alpha"}
team_roles := {"alpha": {"admin"}}
platform_roles := {"admin"}
guardrails.deny contains "mine"
baseline.allows(_) := true
teams.alpha.allow contains "mine"
""",
    {"roles": {"platform": ["viewer"]}, "directory": {"groups": {"": [{"team_id": None, "role": "admin"}]}}},
    (),
)


def check(opened: Opened, question: Evaluations, roles: bool = False) -> Counter[str]:
    """Checks the decisions against the rules, in both engines; which layers have decided."""
    layers: Counter[str] = Counter()
    for engine in opened.engines.both():
        decisions = engine.decide(question).decisions
        for asked, decision in zip(opened.site.asked(question), decisions, strict=True):
            opened.site.check(asked, decision, roles)
        layers.update(decision.layer for decision in decisions)
    return layers


def test_who_has_no_role_group_or_team_is_allowed_what_a_rule_allows_and_nothing_else(opened: Opened) -> None:
    seen: Counter[str] = Counter()

    @given(questions(opened.teams, SIZE, nobodies))
    def ask(question: Evaluations) -> None:
        seen.update(check(opened, question))

    ask()
    assert all(seen[layer] > 20 for layer in LAYERS), seen


def test_another_teams_resource_is_allowed_by_its_owners_or_the_sites_rules_only(opened: Opened) -> None:
    seen: Counter[str] = Counter()

    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        assume(not opened.site.reaches_all(question.subject))
        own = opened.site.team_ids(question.subject)
        foreign = [each for each in question.resources if each.team_id is not None and each.team_id not in own]
        seen.update(check(opened, msgspec.structs.replace(question, resources=foreign)))

    ask()
    assert all(seen[layer] > 20 for layer in LAYERS), seen


def test_what_a_rule_denies_no_role_allows(opened: Opened) -> None:
    seen: Counter[str] = Counter()

    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        seen.update(check(opened, question, roles=True))

    ask()
    assert all(seen[layer] > 20 for layer in LAYERS), seen


@pytest.fixture(scope="module", params=[0, 1], ids=["even teams", "odd teams"])
def changed(
    request: pytest.FixtureRequest, opened: Opened, open_site: Callable[[Site], Opened]
) -> tuple[frozenset[str], Opened]:
    """Every other team, and the site with these teams' packages taken away, replaced, or made to grasp for more."""
    random = Random(request.param)  # noqa: S311 - not for secrets
    teams = opened.teams[request.param :: 2]
    others = [NOTHING, GREEDY, GREEDY, *(a_package(random) for _ in teams)]
    return frozenset(teams), open_site(opened.site.with_packages(dict(zip(teams, others, strict=False))))


def test_a_teams_rules_change_no_decision_about_what_it_does_not_own(
    opened: Opened, changed: tuple[frozenset[str], Opened]
) -> None:
    teams, after = changed
    seen: Counter[str] = Counter()

    @given(questions(opened.teams, SIZE, subjects(opened.teams)))
    def ask(question: Evaluations) -> None:
        others = [each for each in question.resources if each.team_id not in teams]
        for was, becomes in zip(opened.engines.both(), after.engines.both(), strict=True):
            before, now = was.decide(question).decisions, becomes.decide(question).decisions
            for each, old, new in zip(question.resources, before, now, strict=True):
                seen["theirs, changed" if each.team_id in teams and old != new else "others'"] += 1
                assert each.team_id in teams or old == new
            assert [each for each in becomes.allowed(question) if each.team_id not in teams] == [
                each for each in was.allowed(question) if each.team_id not in teams
            ]
            # And without theirs in the same list.
            alone = msgspec.structs.replace(question, resources=others)
            assert becomes.decide(alone).decisions == was.decide(alone).decisions

    ask()
    assert min(seen["theirs, changed"], seen["others'"]) > 50, seen
