"""Whoever logs a person in, the same role in the same teams may do the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from tests.conftest import write
from tests.doors.conftest import build, person
from tests.doors.test_differential import Question, questions
from tests.keycloak.conftest import MANAGER, user
from tests.support.keycloak import Realm

pytestmark = pytest.mark.timeout(400)

SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
ROLES = (None, "Viewer", "User", "Op", "Admin")
TEAMS: dict[str, list[str]] = {"of alpha": ["alpha"], "of alpha and gamma": ["alpha", "gamma"], "of no team": []}
# A group makes a member, whose own role counts: what a team in SimpleAuthManager's user list is.
DIRECTORY = {
    "groups": {"team alpha": [{"team_id": "alpha"}]},
    "group_patterns": {"the <team>s": [{"team_id": "<team>"}]},
}
GROUPS = {"alpha": "team alpha", "gamma": "the gammas"}
Person = tuple[str | None, str]
PEOPLE: list[Person] = list(product(ROLES, TEAMS))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecisionPoint]:
    directory = write(tmp_path_factory.mktemp("policy"), {"airflow/directory/data.json": json.dumps(DIRECTORY)})
    engine = InProcess(directory)
    yield DecisionPoint(engine)
    engine.close()


@pytest.fixture(scope="module")
def decided(policy: DecisionPoint, realm: Realm, configured: None) -> dict[str, dict[Person, list[Any]]]:  # noqa: ARG001
    """What each of the three lets each person do."""
    realm.add_groups(*GROUPS.values())
    people: dict[str, tuple[str, Callable[[Person], Any]]] = {
        "Simple": (SIMPLE, lambda who: person("Simple", who[0], TEAMS[who[1]], [])),
        "FAB": (FAB, lambda who: person("FAB", who[0], [], [GROUPS[team] for team in TEAMS[who[1]]])),
        "Keycloak": (MANAGER, lambda who: from_keycloak(realm, who)),
    }
    found = {}
    for name, (login, somebody) in people.items():
        manager = build(login)()
        vars(manager)["_policy"] = policy
        found[name] = {who: answers(manager, somebody(who)) for who in PEOPLE}
    return found


def from_keycloak(realm: Realm, who: Person) -> Any:
    role, teams = who
    name = f"{role} {teams}".lower().replace(" ", "-")
    realm.add_person(name, (role,) if role else (), tuple(GROUPS[team] for team in TEAMS[teams]))
    return user(str(realm.tokens(name)["access_token"]), name)


def answers(manager: Any, somebody: Any) -> list[Any]:
    if hasattr(manager, "prepare"):
        asyncio.run(manager.prepare(somebody))
    return [ask(manager, question, somebody) for question in questions()]


def ask(manager: Any, question: Question, somebody: Any) -> Any:
    arguments = dict(question.arguments)
    if "assigned_users" in arguments:
        mine = {"sue": str(somebody.get_id())}
        arguments["assigned_users"] = {mine.get(name, name) for name in arguments["assigned_users"]}
    return getattr(manager, question.function)(user=somebody, **arguments)


@pytest.mark.parametrize("login", ["FAB", "Keycloak"])
@pytest.mark.parametrize("who", PEOPLE, ids=[f"{role} {teams}" for role, teams in PEOPLE])
def test_the_same_decisions(decided: dict[str, dict[Person, list[Any]]], login: str, who: Person) -> None:
    expected = decided["Simple"][who]
    assert len(expected) > 600
    differing = [
        (question, there, here)
        for question, there, here in zip(questions(), expected, decided[login][who], strict=True)
        if there != here
    ]
    assert differing == []


def test_people_differ_from_each_other(decided: dict[str, dict[Person, list[Any]]]) -> None:
    """Otherwise it would show nothing that they are the same everywhere."""
    of_alpha = [decided["Simple"][role, "of alpha"] for role in ROLES]
    assert all(one != other for one, other in product(of_alpha, of_alpha) if one is not other)
    assert decided["Simple"]["Op", "of alpha"] != decided["Simple"]["Op", "of no team"]
