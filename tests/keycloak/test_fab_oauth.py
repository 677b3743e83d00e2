"""People whom FAB's auth manager sends to Keycloak: an OAuth login, groups that become FAB roles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.airflow import Settings
from demo.site import Site
from tests.keycloak.conftest import require
from tests.support.browser import browser, chromium, fill_in_keycloaks_form
from tests.support.keycloak import CLIENT, Realm

# FAB's own Airflow beside Keycloak takes most of a minute.
pytestmark = [pytest.mark.timeout(400), pytest.mark.exhaustive]

CONFIGURATION = """
from flask_appbuilder.const import AUTH_OAUTH

REALM = {realm!r}
AUTH_TYPE = AUTH_OAUTH
AUTH_USER_REGISTRATION = True
AUTH_USER_REGISTRATION_ROLE = "Public"
AUTH_ROLES_SYNC_AT_LOGIN = True
AUTH_ROLES_MAPPING = {{"alpha-engineers": ["alpha-engineers"], "beta-engineers": ["beta-engineers"]}}
OAUTH_PROVIDERS = [{{
    "name": "keycloak",
    "icon": "fa-key",
    "token_key": "access_token",
    "remote_app": {{
        "client_id": {client!r},
        "client_secret": {secret!r},
        "api_base_url": REALM + "/protocol/",
        "client_kwargs": {{"scope": "openid email profile"}},
        "server_metadata_url": REALM + "/.well-known/openid-configuration",
    }},
}}]
"""
_CREATE = """
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

with get_application_builder() as builder:
    for name in ("alpha-engineers", "beta-engineers"):
        assert builder.sm.add_role(name)
"""


class OAuthSite(Site):
    """Nobody is in Airflow's database but who has come from Keycloak."""

    def __init__(self, home: Path, realm: Realm) -> None:
        self.realm = realm
        super().__init__(home)
        self.passwords = {}

    def login_settings(self) -> Settings:
        """See ``Site``."""
        manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
        return {"team_authz": {"authn_manager": manager}, "fab": {"cache_ttl": "1"}}

    def create_people(self) -> None:
        """Roles that the groups of Keycloak are mapped to; what they mean is in the directory."""
        values = {"realm": self.realm.url, "client": CLIENT, "secret": self.realm.secrets[CLIENT]}
        (self.airflow.home / "webserver_config.py").write_text(CONFIGURATION.format(**values))
        done = self.airflow.attempt("-c", _CREATE)
        assert done.returncode == 0, done.stderr
        roles = {f"{team}-engineers": [{"team_id": team, "role": "op"}] for team in ("alpha", "beta")}
        (self.policy / "airflow/directory/data.json").write_text(json.dumps({"roles": roles}))

    def _fill(self) -> None:
        """The Dags are enough."""


@pytest.fixture(scope="module")
def oauth_site(realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OAuthSite]:
    require("" if chromium() else "a browser is needed: apt-get install chromium")
    site = OAuthSite(tmp_path_factory.mktemp("oauth"), realm)
    try:
        site.start()
        yield site
    finally:
        site.stop()


@pytest.mark.parametrize(
    ("name", "dags"),
    [
        ("ann", {"alpha_daily", "alpha_report", "common_cleanup"}),
        ("bob", {"beta_daily", "common_cleanup"}),
        ("nil", set()),
    ],
)
def test_keycloaks_groups_count_by_way_of_fabs_roles(oauth_site: OAuthSite, name: str, dags: set[str]) -> None:
    with browser() as page:
        page.goto(f"{oauth_site.airflow.url}/auth/login/")
        page.click("text=/keycloak/i")
        fill_in_keycloaks_form(page, name)
        page.wait_for_url(f"{oauth_site.airflow.url}/**")
        assert page.request.get(f"{oauth_site.airflow.url}/ui/auth/me").json()["username"] == name
        answer = page.request.get(f"{oauth_site.airflow.url}/ui/dags")
        assert {dag["dag_id"] for dag in answer.json().get("dags", [])} == dags
        own = page.request.get(f"{oauth_site.airflow.url}/api/v2/dags/alpha_daily")
        assert own.status == (200 if "alpha_daily" in dags else 403)
