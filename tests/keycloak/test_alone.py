"""Airflow's Keycloak auth manager alone, and with this package, in the setup of Airflow's issue 71277.

https://github.com/apache/airflow/issues/71277: two teams made by Airflow's own commands, and people in both; lists
of Dags, variables and connections held every team's rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from demo.airflow import Settings
from tests.keycloak.conftest import MANAGER
from tests.support.keycloak import CLIENT, PASSWORD, Keycloak, Realm
from tests.support.keycloak_site import KeycloakSite

pytestmark = [pytest.mark.timeout(600), pytest.mark.comparison]

PEOPLE = {"ann": ("Op", "alpha"), "bob": ("Op", "beta"), "vic": ("Viewer", "beta"), "pat": ("SuperAdmin", None)}
OWN = {
    "dags": ("dag_id", {"alpha": {"alpha_daily", "alpha_report"}, "beta": {"beta_daily"}, None: {"common_cleanup"}}),
    "connections": (
        "connection_id",
        {"alpha": {"alpha_db", "alpha_warehouse", "audit_store"}, "beta": {"beta_db"}, None: {"common_db"}},
    ),
    "variables": (
        "key",
        {"alpha": {"alpha_config"}, "beta": {"beta_config"}, None: {"announcement", "common_config"}},
    ),
    "pools": (
        "name",
        {"alpha": {"alpha_production"}, "beta": {"beta_pool"}, None: {"common_pool", "default_pool"}},
    ),
}


# What the teams' groups and the platform's role mean to us.
DIRECTORY = {
    "groups": {team: [{"team_id": team}] for team in ("alpha", "beta")},
    "roles": {"SuperAdmin": [{"team_id": None, "role": "admin"}]},
}

# Airflow's own commands know nothing of teams here, and nobody may create such things through its API.
_FILL = """
import json, sys
from airflow.models import Connection, Pool, Variable
from airflow.utils.session import create_session

with create_session() as session:
    for kind, names in json.loads(sys.argv[1]).items():
        for name, team in names.items():
            session.add({
                "connections": lambda: Connection(conn_id=name, conn_type="sqlite", team_name=team),
                "variables": lambda: Variable(key=name, val="x", team_name=team),
                "pools": lambda: Pool(pool=name, slots=1, include_deferred=False, team_name=team),
            }[kind]())
"""

# Airflow's own commands one after another, without a start of Airflow for each.
_COMMANDS = """
import json, sys
from airflow.cli.cli_parser import get_parser

for arguments in json.loads(sys.argv[1]):
    known = get_parser().parse_args(arguments)
    known.func(known)
"""


class AloneSite(KeycloakSite):
    """The same Airflow without this package. Roles, teams and permissions are what its own commands make."""

    def login_settings(self) -> Settings:
        """See ``Site``; ``told`` is what would make our manager count."""
        settings: dict[str, Any] = dict(super().login_settings())
        del settings["team_authz"]
        # It would answer out of what it has kept for half a minute.
        settings["keycloak_auth_manager"]["cache_ttl_seconds"] = "0"
        return settings | {"core": {"multi_team": "True", "auth_manager": MANAGER}}

    def create_all(self) -> None:
        """The command that makes what is common to all teams."""
        self._commands(("create-all",))

    def create_people(self) -> None:
        """See ``Site``."""
        for name, (role, _) in PEOPLE.items():
            self.realm.add_person(name, (role,))
        added = [("add-user-to-team", name, team) for name, (_, team) in PEOPLE.items() if team]
        self._commands(("create-all",), ("create-team", "alpha"), ("create-team", "beta"), *added)

    def _commands(self, *commands: tuple[str, ...]) -> None:
        login = ("--username", "admin", "--password", PASSWORD)
        told = json.dumps([("keycloak-auth-manager", *command, *login) for command in commands])
        done = self.airflow.attempt("-c", _COMMANDS, told)
        assert done.returncode == 0, done.stderr

    def guard(self) -> None:
        """The same Airflow and the same Keycloak, with this package in between."""
        file = self.airflow.home / "airflow.cfg"
        text = file.read_text().replace(
            f"auth_manager = {MANAGER}", "auth_manager = airflow_team_authz.TeamAuthManager"
        )
        file.write_text(text.replace("[team_authz]", f"[team_authz]\nauthn_manager = {MANAGER}"))
        (self.policy / "airflow/directory/data.json").write_text(json.dumps(DIRECTORY))
        # The example's own rules are about other things.
        shutil.rmtree(self.policy / "teams")
        shutil.rmtree(self.policy / "airflow/site")
        self.airflow.stop()
        self.airflow.start()
        self.log_in_again()

    def log_in_again(self) -> None:
        """Tokens say what was so when they were made."""
        for name, password in self.passwords.items():
            self._clients[name] = self.airflow.login(name, password)

    def _fill(self) -> None:
        rows = {
            kind: {name: team for team, names in owned.items() for name in names if name != "default_pool"}
            for kind, (_, owned) in OWN.items()
            if kind != "dags"
        }
        done = self.airflow.attempt("-c", _FILL, json.dumps(rows))
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def realm_of_commands(keycloak: Keycloak) -> Realm:
    """Roles and a client, the rest is made by the commands."""
    realm = Realm(keycloak, "alone")
    realm.add_roles("Viewer", "User", "Op", "Admin", "SuperAdmin")
    # As the provider's documentation has it: one permission that grants is enough.
    realm.add_client(CLIENT, protocolMappers=[], authorizationSettings={"decisionStrategy": "AFFIRMATIVE"})
    return realm


@pytest.fixture(scope="module")
def alone(realm_of_commands: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AloneSite]:
    site = AloneSite(tmp_path_factory.mktemp("alone"), realm_of_commands, tuple(PEOPLE))
    try:
        site.start()
        yield site
    finally:
        site.stop()


def shown(site: KeycloakSite, name: str) -> dict[str, set[str]]:
    """What somebody finds in each list."""
    found = {}
    for rows, (key, _) in OWN.items():
        answer = site.client(name).get(f"/api/v2/{rows}")
        found[rows] = {row[key] for row in answer.json()[rows]} if answer.status_code == 200 else set()
    return found


def of(*teams: str | None) -> dict[str, set[str]]:
    """All rows of these teams."""
    return {rows: set().union(*(owned[team] for team in teams)) for rows, (_, owned) in OWN.items()}


def test_lists_with_permissions_as_the_issue_has_them_hold_every_teams_rows(alone: AloneSite) -> None:
    """`create-all` makes a permission to read that is bound to no resource, so it counts for those of all teams.

    `create-team` of provider 0.11 and newer binds it; as long as nobody runs `create-all` once more.
    """
    assert shown(alone, "ann") == of("alpha", None)
    assert shown(alone, "bob") == of("beta", None)
    alone.create_all()
    everything = of("alpha", "beta", None)
    assert {name: shown(alone, name) for name in PEOPLE} == dict.fromkeys(PEOPLE, everything)
    # Not only in lists.
    assert alone.client("bob").get("/api/v2/connections/alpha_db").status_code == 200


@pytest.fixture(scope="module")
def guarded(alone: AloneSite) -> AloneSite:
    alone.guard()
    return alone


def test_without_groups_in_the_token_nobody_is_in_a_team(guarded: AloneSite) -> None:
    """The command makes a mapper for groups that leaves them out of the access token."""
    assert shown(guarded, "ann") == of(None)
    assert shown(guarded, "pat") == of("alpha", "beta", None)


def test_lists_hold_ones_own_and_the_common_rows_only(guarded: AloneSite) -> None:
    """The groups are put into the access token; nothing else is changed."""
    realm = guarded.realm
    (client,) = realm.admin("GET", f"/clients?clientId={CLIENT}")
    path = f"/clients/{client['id']}/protocol-mappers/models"
    (mapper,) = [mapper for mapper in realm.admin("GET", path) if mapper["name"] == "groups"]
    mapper["config"]["access.token.claim"] = "true"
    realm.admin("PUT", f"{path}/{mapper['id']}", mapper)
    guarded.log_in_again()
    assert shown(guarded, "ann") == of("alpha", None)
    assert shown(guarded, "bob") == of("beta", None)
    assert shown(guarded, "vic") == of("beta", None) | {"connections": set(), "variables": set()}
    assert shown(guarded, "pat") == of("alpha", "beta", None)
    answer = guarded.client("bob").get("/api/v2/connections/alpha_db")
    assert answer.status_code == 403
    assert "that takes the role op in team alpha" in answer.json()["detail"]
