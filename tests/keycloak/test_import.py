"""``team-authz import keycloak``: decisions of the real Keycloak auth manager beside ours over what was imported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from typer.testing import CliRunner

from airflow_team_authz.cli import app
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from demo.airflow import Airflow
from tests.doors.conftest import build
from tests.doors.test_differential import Question, questions
from tests.keycloak.conftest import MANAGER, user
from tests.keycloak.server import CLIENT, PASSWORD, Keycloak, Realm

pytestmark = pytest.mark.timeout(500)

TEAM_ROLES = ("Viewer", "User", "Op", "Admin")
# Roles and groups; the resources are alpha's, beta's and common.
PEOPLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{f"{role.lower()} of alpha": ((role,), ("alpha",)) for role in TEAM_ROLES},
    **{f"{role.lower()} of no team": ((role,), ()) for role in ("Viewer", "Op", "Admin")},
    "op and viewer of both": (("Op", "Viewer"), ("alpha", "beta")),
    "superadmin": (("SuperAdmin",), ()),
    "superadmin of alpha": (("SuperAdmin",), ("alpha",)),
    "nobody of alpha": ((), ("alpha",)),
    "nobody": ((), ()),
}


class Compared(NamedTuple):
    """A question and both answers to somebody."""

    who: str
    question: Question
    ours: bool
    theirs: bool


def asked() -> Iterator[Question]:
    """All but lists and batches, which come down to these; of a Dag's parts, which Keycloak ignores, two."""
    parts = {None, DagAccessEntity.RUN, DagAccessEntity.CODE}
    for question in questions():
        single = question.function.startswith("is_authorized") and question.arguments.get("access_entity") in parts
        # Keycloak knows no scope for a page's own verb, and its manager fails over that.
        if single and question.method != "can_edit":
            yield question


@pytest.fixture(scope="module")
def imported_realm(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> Realm:
    """Two teams, made by the commands of Airflow's provider."""
    realm = Realm(keycloak, "imported")
    realm.add_roles(*TEAM_ROLES, "SuperAdmin")
    realm.add_client(CLIENT, authorizationSettings={"decisionStrategy": "AFFIRMATIVE"})
    section = {"server_url": keycloak.url, "realm": realm.name, "client_id": CLIENT}
    section["client_secret"] = realm.secrets[CLIENT]
    core = {"auth_manager": MANAGER, "multi_team": "True"}
    airflow = Airflow(tmp_path_factory.mktemp("imported"), {"core": core, "keycloak_auth_manager": section})
    airflow.run("db", "migrate")
    login = ("--username", "admin", "--password", PASSWORD)
    airflow.run("keycloak-auth-manager", "create-all", *login)
    for team in ("alpha", "beta"):
        airflow.run("keycloak-auth-manager", "create-team", team, *login)
    return realm


@pytest.fixture(scope="module")
def policy(imported_realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of them."""
    directory = tmp_path_factory.mktemp("policy")
    (client,) = imported_realm.admin("GET", f"/clients?clientId={CLIENT}")
    settings = directory / "settings.json"
    settings.write_text(
        json.dumps(imported_realm.admin("GET", f"/clients/{client['id']}/authz/resource-server/settings"))
    )
    assert CliRunner().invoke(app, ["init", str(directory / "policy")]).exit_code == 0
    done = CliRunner().invoke(app, ["import", "keycloak", str(settings), str(directory / "policy"), "-o", "json"])
    assert done.exit_code == 1, done.output
    assert [entry["what"] for entry in json.loads(done.stdout)["untranslated"]] == ["menu items"]
    return directory / "policy"


@pytest.fixture(scope="module")
def compared(imported_realm: Realm, policy: Path) -> Iterator[list[Compared]]:
    from airflow.providers.keycloak.auth_manager.keycloak_auth_manager import KeycloakAuthManager

    realm = imported_realm
    settings = {"server_url": realm.keycloak.url, "realm": realm.name, "client_id": CLIENT}
    settings["client_secret"] = realm.secrets[CLIENT]
    engine = InProcess(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        for key, value in settings.items():
            patch.setenv(f"AIRFLOW__KEYCLOAK_AUTH_MANAGER__{key.upper()}", value)
        us, them = build(MANAGER)(), KeycloakAuthManager()
        vars(us)["_policy"] = DecisionPoint(engine)
        people = {}
        for name, (roles, groups) in PEOPLE.items():
            login = name.replace(" ", "-")
            realm.add_person(login, roles, groups)
            people[name] = user(str(realm.tokens(login)["access_token"]), login)
            asyncio.run(us.prepare(people[name]))
        every = [(who, question) for who, question in product(people, asked())]
        with ThreadPoolExecutor(8) as threads:
            theirs = list(threads.map(lambda each: ask(them, each[1], people[each[0]]), every))
        yield [
            Compared(who, question, ask(us, question, people[who]), answer)
            for (who, question), answer in zip(every, theirs, strict=True)
        ]
    engine.close()


def ask(manager: Any, question: Question, somebody: Any) -> bool:
    arguments = dict(question.arguments)
    if "assigned_users" in arguments:
        mine = {"sue": str(somebody.get_id())}
        arguments["assigned_users"] = {mine.get(name, name) for name in arguments["assigned_users"]}
    allowed = getattr(manager, question.function)(user=somebody, **arguments)
    assert isinstance(allowed, bool)
    return allowed


def test_every_decision_is_the_same(compared: list[Compared]) -> None:
    assert len(compared) > 2_000
    assert [it for it in compared if it.ours != it.theirs and not is_of_a_teams_admin(it)] == []
    assert [it for it in compared if is_of_a_teams_admin(it) and (it.ours or not it.theirs)] == []


def is_of_a_teams_admin(it: Compared) -> bool:
    """Whether an admin of the team changes the team itself: a guardrail, about what Airflow never asks."""
    return (it.who, it.question.place) == ("admin of alpha", "own") and (
        it.question.type == "team" and it.question.method != "GET"
    )


def test_people_may_different_things(compared: list[Compared]) -> None:
    """Otherwise it would show nothing that all is the same."""
    may = {who: [it.theirs for it in compared if it.who == who] for who in PEOPLE}
    assert sum(may["superadmin"]) > sum(may["op of alpha"]) > sum(may["viewer of alpha"]) > sum(may["nobody"])
    assert may["op of alpha"] != may["op of no team"]
    assert {it.question.place for it in compared if it.theirs} == {"own", "another team's", "common"}
