"""``mode = observe`` on a running Airflow with a real Keycloak, beside the policy that the import has made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.api_fastapi.common.types import MenuItem

from airflow_team_authz import questions
from demo.airflow import Settings
from tests.keycloak.conftest import MANAGER
from tests.keycloak.test_import import PEOPLE, TEAM_ROLES, import_from, run_provider
from tests.support.keycloak import CLIENT, PASSWORD, Keycloak, Realm
from tests.support.plain_site import PlainSite, check_that_only_observes

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(2400)]


class PlainKeycloak(PlainSite):
    """Keycloak's authorization services decide."""

    manager = MANAGER
    admin = "superadmin"
    strangers = ("nobody", "nobody-of-alpha")
    has_teams = True
    realm: Realm

    def login_settings(self) -> Settings:
        """See ``Site``."""
        section = {"server_url": self.realm.keycloak.url, "realm": self.realm.name, "client_id": CLIENT}
        return {"keycloak_auth_manager": section | {"client_secret": self.realm.secrets[CLIENT]}}

    def create_people(self) -> None:
        """Also what the provider's commands make in Keycloak."""
        run_provider(self.airflow, ("create-all",), ("create-team", "alpha"), ("create-team", "beta"))
        self.passwords = {}
        for name, (roles, groups) in PEOPLE.items():
            self.realm.add_person(name.replace(" ", "-"), roles, groups)
            self.passwords[name.replace(" ", "-")] = PASSWORD
        self.untranslated = import_from(self.realm, self.home / "imported").untranslated


def test_not_one_answer_of_keycloak_differs_while_the_imported_policy_observes(
    keycloak: Keycloak, tmp_path: Path
) -> None:
    realm = Realm(keycloak, "observed")
    realm.add_roles(*TEAM_ROLES, "SuperAdmin")
    realm.add_client(CLIENT, authorizationSettings={"decisionStrategy": "AFFIRMATIVE"})
    PlainKeycloak.realm = realm
    (tmp_path / "imported").mkdir()
    site = PlainKeycloak(tmp_path)
    site.policy = tmp_path / "imported/policy"
    found = check_that_only_observes(site, tmp_path)
    # Items of the menu that the import has said it cannot translate, and nothing else.
    start = "menu items "
    items = [item for what in site.untranslated if what.startswith(start) for item in what[len(start) :].split(", ")]
    every = {(one.asked.action, one.resource) for change in found.found.changes for one in change.every}
    assert every
    assert every <= {("list", questions.menu_item(MenuItem(item))) for item in items}
