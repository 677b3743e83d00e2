"""The demonstration's site with people out of the FAB auth manager's database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from demo.airflow import Settings
from demo.process import StartError
from demo.site import Site

_PASSWORD = "only-for-this-test"  # noqa: S105 - of users that live as long as the test

_PAT = ("--username", "pat", "--firstname", "pat", "--lastname", "pat", "--email", "pat@example.org")

# So long FAB keeps what it has read of a user; 30 seconds unless told otherwise.
CACHE_SECONDS = 1


class Person(NamedTuple):
    """A FAB user with roles of its own and groups; ``policies/airflow/directory/data.json`` says what groups mean."""

    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


PEOPLE = {
    "ann": Person(groups=("alpha-engineers",)),
    "bob": Person(groups=("beta-engineers",)),
    "aud": Person(groups=("auditors",)),
    "opal": Person(roles=("Op",)),
    "una": Person(roles=("User",)),
    "vic": Person(roles=("Viewer",)),
    "nil": Person(roles=("Public",)),
    "pat": Person(roles=("Admin",)),
}

# One process for all: a command apiece takes as long as the server needs to start.
CREATE_PEOPLE = """
import json, sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.providers.fab.auth_manager.models import Group

people, password = json.loads(sys.argv[1]), sys.argv[2]
with get_application_builder() as builder:
    manager = builder.sm
    groups = {}
    for name, (roles, member_of) in people.items():
        for group in member_of:
            groups.setdefault(group, Group(name=group, label=group, description=group))
        made = manager.add_user(
            name, name, name, f"{name}@example.org", [manager.find_role(role) for role in roles], password,
            groups=[groups[group] for group in member_of],
        )
        assert made, name
"""


class FabSite(Site):
    """Nobody belongs to a team but through a group."""

    # The admin as an administrator makes one.
    commands = (*Site.commands, ("users", "create", *_PAT, "--role", "Admin", "--password", _PASSWORD))

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.passwords = dict.fromkeys(PEOPLE, _PASSWORD)

    def login_settings(self) -> Settings:
        """See ``Site``."""
        manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
        return {"team_authz": {"authn_manager": manager}, "fab": {"cache_ttl": str(CACHE_SECONDS)}}

    def create_people(self) -> None:
        """All but the admin, by FAB's security manager."""
        others = {name: person for name, person in PEOPLE.items() if name != "pat"}
        done = self.airflow.attempt("-c", CREATE_PEOPLE, json.dumps(others), _PASSWORD)
        if done.returncode != 0:
            raise StartError(f"FAB users cannot be created:\n{done.stdout}{done.stderr}")
