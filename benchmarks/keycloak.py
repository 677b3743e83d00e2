"""What people out of Keycloak cost: with this package, and with Airflow's Keycloak auth manager alone."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Rows, compare, compiled, manager_with, op_of_team1, write_policies
from demo.airflow import Airflow
from tests.support.keycloak import CLIENT, PASSWORD, Keycloak, Realm, what_is_missing

OURS = "a Keycloak user, in process"
MANAGER = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"
TEAMS = ("team1", "team2")
DAGS = [(f"dag_{number}", TEAMS[number % 2]) for number in range(1_000)]


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """Both comparisons, with a real Keycloak."""
    rounds: int = options.rounds // 4
    if missing := what_is_missing():
        raise SystemExit(missing)
    keycloak = Keycloak(home / "keycloak")
    try:
        keycloak.start()
        yield from _compared(home, _realm(home, keycloak), rounds)
    finally:
        keycloak.stop()


def _realm(home: Path, keycloak: Keycloak) -> Realm:
    """Two teams, made by the commands of Airflow's provider, and bob, who is an op of the first."""
    realm = Realm(keycloak)
    realm.add_roles("Viewer", "User", "Op", "Admin", "SuperAdmin")
    realm.add_client(CLIENT, authorizationSettings={"decisionStrategy": "AFFIRMATIVE"})
    section = {"server_url": keycloak.url, "realm": realm.name, "client_id": CLIENT}
    section |= {"client_secret": realm.secrets[CLIENT], "cache_ttl_seconds": "0"}
    os.environ.update({f"AIRFLOW__KEYCLOAK_AUTH_MANAGER__{name.upper()}": value for name, value in section.items()})
    airflow = Airflow(
        home / "airflow", {"core": {"auth_manager": MANAGER, "multi_team": "True"}, "keycloak_auth_manager": section}
    )
    airflow.run("db", "migrate")
    login = ("--username", "admin", "--password", PASSWORD)
    airflow.run("keycloak-auth-manager", "create-all", *login)
    for team in TEAMS:
        airflow.run("keycloak-auth-manager", "create-team", team, *login)
    realm.add_person("bob", ("Op",), ("team1",))
    return realm


def _compared(home: Path, realm: Realm, rounds: int) -> Iterator[dict[str, Any]]:
    from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
    from airflow.providers.keycloak.auth_manager.keycloak_auth_manager import KeycloakAuthManager

    policies = write_policies(home / "policies", teams=100)
    directory = policies / "airflow" / "directory"
    directory.mkdir()
    (directory / "data.json").write_text(json.dumps({"groups": {"team1": [{"team_id": "team1"}]}}))
    bundle = compiled(policies)
    bob, *others = (_user(realm) for _ in range(21))
    of_simple, of_keycloak = manager_with(policy=bundle), _over_keycloak(bundle)
    asyncio.run(of_keycloak.prepare(bob))
    unseen = iter(others)
    yield from compare(
        "a token of Keycloak's",
        {"seen before": lambda: of_keycloak.subject(bob), "not seen before": lambda: of_keycloak.subject(next(unseen))},
        18,
        {},
    )
    details = ConnectionDetails(conn_id="pg", team_name="team1")

    def one(manager: Any, user: Any) -> None:
        if manager.is_authorized_connection(method="GET", user=user, details=details) is not True:
            raise AssertionError("an op may read a connection of the own team")

    def many(manager: Any, user: Any) -> None:
        if len(manager.get_authorized_dag_ids(user=user, session=Rows(DAGS))) != len(DAGS) // 2:
            raise AssertionError("an op may read the Dags of the own team only")

    simple, ours, alone = (of_simple, op_of_team1()), (of_keycloak, bob), (KeycloakAuthManager(), bob)
    both = {"a Simple user, in process": simple, OURS: ours}
    beside = {OURS: ours, "KeycloakAuthManager alone": alone}
    for title, ask, people, times, goals in (
        ("one decision, by who logs in", one, both, 4 * rounds, {OURS: "1.1 or less"}),
        ("a list of 1,000 Dags, by who logs in", many, both, 40, {OURS: "1.1 or less"}),
        ("one decision about people out of Keycloak", one, beside, rounds, {}),
        ("a list of 1,000 Dags for people out of Keycloak", many, beside, 10, {}),
    ):
        asked = {name: (lambda who=who, ask=ask: ask(*who)) for name, who in people.items()}
        yield from compare(title, asked, times, goals)


def _user(realm: Realm) -> Any:
    """Bob, logged in once more."""
    import jwt
    from airflow.providers.keycloak.auth_manager.user import KeycloakAuthManagerUser

    token = str(realm.tokens("bob")["access_token"])
    subject = str(jwt.decode(token, options={"verify_signature": False})["sub"])
    return KeycloakAuthManagerUser(user_id=subject, name="bob", access_token=token, refresh_token=None)


def _over_keycloak(bundle: Path) -> Any:
    """Our manager with people out of Keycloak; there is one in a process otherwise."""
    from airflow_team_authz.doors.users import build_manager
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.engines.in_process import InProcess

    os.environ["AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER"] = MANAGER
    build_manager.cache_clear()
    try:
        manager: Any = build_manager()()
    finally:
        build_manager.cache_clear()
        del os.environ["AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER"]
    engine = InProcess(bundle)
    atexit.register(engine.close)
    vars(manager)["_policy"] = DecisionPoint(engine)
    return manager
