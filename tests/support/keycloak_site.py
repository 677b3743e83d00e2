"""The demonstration's site with the people of a Keycloak."""

from __future__ import annotations

from pathlib import Path

from demo.airflow import Settings
from demo.site import Site
from tests.support.keycloak import CLIENT, PASSWORD, Realm


class KeycloakSite(Site):
    """Nobody belongs to a team but through a group in their token."""

    def __init__(self, home: Path, realm: Realm, people: tuple[str, ...]) -> None:
        self.realm = realm
        super().__init__(home)
        self.passwords = dict.fromkeys(people, PASSWORD)

    def login_settings(self) -> Settings:
        """See ``Site``."""
        manager = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"
        return {
            "team_authz": {"authn_manager": manager},
            "keycloak_auth_manager": {
                "server_url": self.realm.keycloak.url,
                "realm": self.realm.name,
                "client_id": CLIENT,
                "client_secret": self.realm.secrets[CLIENT],
            },
        }
