"""``team-authz import keycloak``: decisions of the real Keycloak auth manager beside ours over what was imported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.types import MenuItem
from typer.testing import CliRunner

from airflow_team_authz.cli import app
from airflow_team_authz.cli.imports.keycloak_holders import Holder
from airflow_team_authz.cli.imports.keycloak_settings import read_settings_file
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from demo.airflow import Airflow
from tests.doors.conftest import build
from tests.doors.test_differential import Question, questions
from tests.keycloak.conftest import MANAGER, user
from tests.support.keycloak import CLIENT, PASSWORD, Keycloak, Realm

pytestmark = pytest.mark.timeout(500)

TEAM_ROLES = ("Viewer", "User", "Op", "Admin")
# Roles and groups; the resources are alpha's, beta's and common.
PEOPLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{f"{role.lower()} of alpha": ((role,), ("alpha",)) for role in TEAM_ROLES},
    **{f"{role.lower()} of no team": ((role,), ()) for role in TEAM_ROLES},
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


class Imported(NamedTuple):
    """A policy directory, and what differs."""

    policy: Path
    untranslated: list[str]

    @property
    def menu(self) -> set[str]:
        start = "menu items "
        return {item for what in self.untranslated if what.startswith(start) for item in what[len(start) :].split(", ")}


class Managers(NamedTuple):
    """Ours and Keycloak's, and people who are logged in."""

    ours: Any
    theirs: Any
    people: dict[str, Any]


def asked() -> Iterator[Question]:
    """All but lists and batches, which come down to these; of a Dag's parts, which Keycloak ignores, two."""
    parts = {None, DagAccessEntity.RUN, DagAccessEntity.CODE}
    for question in questions():
        single = question.function.startswith("is_authorized") and question.arguments.get("access_entity") in parts
        # Keycloak knows no scope for a page's own verb, and its manager fails over that.
        if single and question.method != "can_edit":
            yield question


@pytest.fixture(scope="module")
def imported_realm(keycloak: Keycloak) -> Realm:
    realm = Realm(keycloak, "imported")
    realm.add_roles(*TEAM_ROLES, "SuperAdmin")
    realm.add_client(CLIENT, authorizationSettings={"decisionStrategy": "AFFIRMATIVE"})
    return realm


def run_provider(airflow: Airflow, *commands: Sequence[str]) -> None:
    """Commands of Airflow's provider, as Keycloak's administrator."""
    login = ("--username", "admin", "--password", PASSWORD)
    airflow.run_all(*(("keycloak-auth-manager", *words, *login) for words in commands))


@pytest.fixture(scope="module")
def commands(imported_realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs the commands of Airflow's provider."""
    section = {"server_url": imported_realm.keycloak.url, "realm": imported_realm.name, "client_id": CLIENT}
    section["client_secret"] = imported_realm.secrets[CLIENT]
    core = {"auth_manager": MANAGER, "multi_team": "True"}
    airflow = Airflow(tmp_path_factory.mktemp("imported"), {"core": core, "keycloak_auth_manager": section})
    airflow.run("db", "migrate")
    return partial(run_provider, airflow)


def import_from(realm: Realm, directory: Path) -> Imported:
    """What our command makes of the realm's client."""
    (client,) = realm.admin("GET", f"/clients?clientId={CLIENT}")
    settings = realm.admin("GET", f"/clients/{client['id']}/authz/resource-server/settings")
    (directory / "settings.json").write_text(json.dumps(settings))
    policy = directory / "policy"
    assert CliRunner().invoke(app, ["init", str(policy)]).exit_code == 0
    done = CliRunner().invoke(app, ["import", "keycloak", str(directory / "settings.json"), str(policy), "-o", "json"])
    assert done.exit_code == 1, done.output
    return Imported(policy, [entry["what"] for entry in json.loads(done.stdout)["untranslated"]])


@pytest.fixture(scope="module")
def imported(
    imported_realm: Realm, commands: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Imported:
    """Two teams."""
    commands(("create-all",), ("create-team", "alpha"), ("create-team", "beta"))
    made = import_from(imported_realm, tmp_path_factory.mktemp("policy"))
    others = [what for what in made.untranslated if not what.startswith("menu items ")]
    assert others == ["resources AdminView, Backfill", "POST, PUT, DELETE of Team for admin"]
    return made


@pytest.fixture(scope="module")
def managers(imported_realm: Realm, imported: Imported) -> Iterator[Managers]:
    from airflow.providers.keycloak.auth_manager.keycloak_auth_manager import KeycloakAuthManager

    realm = imported_realm
    settings = {"server_url": realm.keycloak.url, "realm": realm.name, "client_id": CLIENT}
    settings["client_secret"] = realm.secrets[CLIENT]
    engine = InProcess(imported.policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        for key, value in settings.items():
            patch.setenv(f"AIRFLOW__KEYCLOAK_AUTH_MANAGER__{key.upper()}", value)
        made = Managers(build(MANAGER)(), KeycloakAuthManager(), {})
        vars(made.ours)["_policy"] = DecisionPoint(engine)
        for name, (roles, groups) in PEOPLE.items():
            login = name.replace(" ", "-")
            realm.add_person(login, roles, groups)
            made.people[name] = user(str(realm.tokens(login)["access_token"]), login)
            asyncio.run(made.ours.prepare(made.people[name]))
        yield made
    engine.close()


@pytest.fixture(scope="module")
def compared(managers: Managers) -> list[Compared]:
    return compare(managers)


def compare(managers: Managers) -> list[Compared]:
    """Every question, asked of both about everybody."""
    ours, theirs, people = managers
    every = [(who, question) for who, question in product(people, asked())]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda each: ask(theirs, each[1], people[each[0]]), every))
    return [
        Compared(who, question, ask(ours, question, people[who]), answer)
        for (who, question), answer in zip(every, answers, strict=True)
    ]


def ask(manager: Any, question: Question, somebody: Any) -> bool:
    arguments = dict(question.arguments)
    if "assigned_users" in arguments:
        mine = {"sue": str(somebody.get_id())}
        arguments["assigned_users"] = {mine.get(name, name) for name in arguments["assigned_users"]}
    allowed = getattr(manager, question.function)(user=somebody, **arguments)
    assert isinstance(allowed, bool)
    return allowed


@pytest.mark.exhaustive
def test_every_decision_is_the_same(compared: list[Compared]) -> None:
    assert len(compared) > 2_000
    differing = [it for it in compared if it.ours != it.theirs]
    assert [it for it in differing if not is_a_team_changed(it)] == []
    assert {(it.who, it.question.place) for it in differing} == {("admin of alpha", "own")}


def is_a_team_changed(it: Compared) -> bool:
    """By an admin who is none for the platform: a guardrail, about what Airflow never asks."""
    changed = it.question.type == "team" and it.question.method != "GET"
    return changed and "Admin" in PEOPLE[it.who][0] and not it.ours


@pytest.mark.exhaustive
def test_people_may_different_things(compared: list[Compared]) -> None:
    """Otherwise it would show nothing that all is the same."""
    may = {who: [it.theirs for it in compared if it.who == who] for who in PEOPLE}
    assert sum(may["superadmin"]) > sum(may["op of alpha"]) > sum(may["viewer of alpha"]) > sum(may["nobody"])
    assert may["op of alpha"] != may["op of no team"]
    assert {it.question.place for it in compared if it.theirs} == {"own", "another team's", "common"}


def test_the_menu_differs_by_the_items_that_are_listed(managers: Managers, imported: Imported) -> None:
    ours, theirs, people = managers
    differing: set[str] = set()
    for somebody in people.values():
        here, there = (
            {item.value for item in manager.filter_authorized_menu_items(list(MenuItem), user=somebody)}
            for manager in (ours, theirs)
        )
        differing |= here ^ there
    assert differing == imported.menu


# Settings of any kind, and not only what the commands make: what an export means is asked of Keycloak itself.
SCOPES = ("GET", "LIST", "POST")
RESOURCES = ("Connection", "Connection:alpha", "Connection:beta")
OTHERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "any op": (("Op",), ()),
    "any op of alpha": (("Op",), ("alpha",)),
    "any op and viewer of both": (("Op", "Viewer"), ("alpha", "beta")),
    "any viewer of alpha": (("Viewer",), ("alpha",)),
    "any superadmin": (("SuperAdmin",), ()),
    "anybody of alpha": ((), ("alpha",)),
}


def some_settings(random: Random) -> dict[str, Any]:
    """Authorization settings of a client: some permissions for some policies, with any strategies."""

    def policy(name: str, kind: str, config: dict[str, Any], strategy: str = "UNANIMOUS") -> dict[str, Any]:
        texts = {key: json.dumps(value) for key, value in config.items()}
        return {"name": name, "type": kind, "logic": "POSITIVE", "decisionStrategy": strategy, "config": texts}

    def some(names: tuple[str, ...] | list[str], most: int) -> list[str]:
        return random.sample(names, random.randint(1, most))

    policies = [policy(role, "role", {"roles": [{"id": role}]}) for role in ("Op", "Viewer", "SuperAdmin")]
    policies.append(policy("either", "role", {"roles": [{"id": "Op"}, {"id": "Viewer"}]}))
    policies += [policy(f"in {team}", "group", {"groups": [{"path": f"/{team}"}]}) for team in ("alpha", "beta")]
    single = [made["name"] for made in policies]
    strategies = ("AFFIRMATIVE", "UNANIMOUS")
    for number in range(3):
        applied = {"applyPolicies": some(single, 2)}
        policies.append(policy(f"several {number}", "aggregate", applied, random.choice(strategies)))
    every = [made["name"] for made in policies]
    for number in range(random.randint(1, 5)):
        kind = random.choice(("scope", "scope", "resource"))
        config = {"applyPolicies": some(every, 3)}
        if kind == "scope":
            config["scopes"] = some(SCOPES, 3)
        if kind == "resource" or random.random() < 0.7:
            config["resources"] = some(RESOURCES, 2)
        policies.append(policy(f"permission {number}", kind, config, random.choice(strategies)))
    scopes = [{"name": scope} for scope in SCOPES]
    return {
        "policyEnforcementMode": "ENFORCING",
        "decisionStrategy": random.choice(strategies),
        "resources": [{"name": name, "scopes": scopes} for name in RESOURCES],
        "scopes": scopes,
        "policies": policies,
    }


@pytest.mark.parametrize(("seed", "exports"), [(71277, 6), pytest.param(71278, 30, marks=pytest.mark.exhaustive)])
def test_an_export_means_what_keycloak_makes_of_it(
    imported_realm: Realm, tmp_path: Path, seed: int, exports: int
) -> None:
    realm, random = imported_realm, Random(seed)  # noqa: S311 - nothing is secret
    tokens = {}
    for name, (roles, groups) in OTHERS.items():
        realm.add_person(name.replace(" ", "-"), roles, groups)
        tokens[name] = str(realm.tokens(name.replace(" ", "-"))["access_token"])
    every = list(product(OTHERS, RESOURCES, SCOPES))
    granted = 0
    for number in range(exports):
        client = f"settings-{seed}-{number}"
        id_ = realm.add_client(client, authorizationSettings=some_settings(random))
        export = realm.admin("GET", f"/clients/{id_}/authz/resource-server/settings")
        (tmp_path / "settings.json").write_text(json.dumps(export))
        settings = read_settings_file(tmp_path / "settings.json", client)
        assert {problem.what for problem in settings.problems} <= {"decision strategy UNANIMOUS of the client"}
        with ThreadPoolExecutor(8) as threads, httpx.Client(trust_env=False, timeout=60) as http:
            theirs = list(
                threads.map(lambda it: grants(http, realm, client, tokens[it[0]], f"{it[1]}#{it[2]}"), every)  # noqa: B023
            )
        ours = [
            any(Holder(*map(frozenset, OTHERS[who])).includes(holder) for holder in settings.holders(resource, scope))
            for who, resource, scope in every
        ]
        assert [it for it, here, there in zip(every, ours, theirs, strict=True) if here != there] == [], export
        granted += sum(theirs)
    assert 100 * exports < 15 * granted < exports * (15 * len(every) - 100)


@pytest.mark.exhaustive
def test_a_role_that_reaches_every_team_is_listed_and_does_not_reach_them(
    managers: Managers, compared: list[Compared], imported_realm: Realm, commands: Callable[..., None], tmp_path: Path
) -> None:
    """Whoever runs `create-all` once more takes its permissions off the resources that `create-team` bound them to.

    The last of this file: it changes what the others compare.
    """
    commands(("create-all",))
    again = import_from(imported_realm, tmp_path)
    assert {f"role {role}" for role in TEAM_ROLES} <= set(again.untranslated)
    engine = InProcess(again.policy)
    vars(managers.ours)["_policy"] = DecisionPoint(engine)
    now = compare(managers)
    engine.close()
    more = [it for it, before in zip(now, compared, strict=True) if it.theirs and not before.theirs]
    assert len([it for it in more if it.question.place == "another team's"]) > 50
    differing = [it for it in now if it.ours != it.theirs]
    assert [it for it in differing if it.ours] == []
    listed = [it for it in differing if it.question.place != "common" and it in more]
    assert [it for it in differing if it not in listed and not is_a_team_changed(it)] == []
    assert len(listed) > 200
    # An op of both teams may read all of it anyway.
    reaching = {who for who, (roles, groups) in PEOPLE.items() if {*TEAM_ROLES} & {*roles} and len(groups) < 2}
    assert {it.who for it in listed} == reaching


def grants(http: httpx.Client, realm: Realm, client: str, token: str, permission: str) -> bool:
    """What Keycloak answers, asked as its auth manager asks."""
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:uma-ticket", "audience": client, "permission": permission}
    answer = http.post(
        f"{realm.url}/protocol/openid-connect/token", data=form, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code in {200, 403}, answer.text
    return answer.status_code == 200
