"""An API server that starts while nobody listens at Keycloak's address: nobody logs in, and logging out works."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.airflow import Settings
from demo.site import Site
from tests.keycloak.conftest import MANAGER
from tests.keycloak.server import CLIENT, PASSWORD

pytestmark = [pytest.mark.timeout(600), pytest.mark.exhaustive]


class SiteWithoutKeycloak(Site):
    """Keycloak's address is one where nobody listens."""

    def login_settings(self) -> Settings:
        address = {"server_url": "http://127.0.0.1:1", "realm": "company", "client_id": CLIENT, "client_secret": "x"}
        return {"team_authz": {"authn_manager": MANAGER}, "keycloak_auth_manager": address}


def test_an_api_server_starts_without_keycloak_and_logs_out(tmp_path: Path) -> None:
    pytest.importorskip("airflow.providers.keycloak", reason="the provider of Keycloak is not installed")
    airflow = SiteWithoutKeycloak(tmp_path).airflow
    told = {"detail": "Nobody can log in now: Keycloak does not answer"}
    try:
        airflow.run("db", "migrate")
        airflow.run("teams", "sync")
        airflow.start()
        assert airflow.health("metadatabase") == "healthy"
        with airflow.client() as client:
            by_password = client.post("/auth/token", json={"username": "ann", "password": PASSWORD})
            assert (by_password.status_code, by_password.json()) == (503, told)
            in_browser = client.get("/auth/login_callback?code=1&state=s", headers={"Cookie": "_oauth_state=s"})
            assert (in_browser.status_code, in_browser.json()) == (503, told)
            assert client.get("/api/v2/dags").status_code == 401
            kept = {"Cookie": "_id_token=a.b.c; _access_token=a; _refresh_token=r"}
            left = client.get("/auth/logout", headers=kept)
            assert (left.status_code, left.headers["location"]) == (307, "logout_callback")
            ended = client.get("/auth/logout_callback", headers=kept)
            assert ended.headers["location"].endswith("/auth/login")
    finally:
        airflow.stop()
