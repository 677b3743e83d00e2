"""An API server that starts while Keycloak is away: nobody logs in until it is there, and logging out works."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from demo.airflow import Settings
from demo.site import Site
from tests.keycloak.conftest import MANAGER, require
from tests.support.keycloak import CLIENT, PASSWORD, Keycloak, Realm, what_is_missing

pytestmark = [pytest.mark.timeout(900), pytest.mark.exhaustive]

ANN = {"username": "ann", "password": PASSWORD}
KEPT = {"Cookie": "_id_token=a.b.c; _access_token=a; _refresh_token=r"}


class SiteBeforeKeycloak(Site):
    """Its Keycloak has an address, at which nobody listens yet."""

    def __init__(self, home: Path) -> None:
        self.keycloak = Keycloak(home / "keycloak")
        super().__init__(home)

    def login_settings(self) -> Settings:
        client = {"client_id": CLIENT, "client_secret": f"secret of {CLIENT}"}
        address = {"server_url": self.keycloak.url, "realm": "company"}
        return {"team_authz": {"authn_manager": MANAGER}, "keycloak_auth_manager": address | client}


def test_an_api_server_starts_without_keycloak_logs_out_and_logs_in_when_it_is_there(tmp_path: Path) -> None:
    require(what_is_missing())
    site = SiteBeforeKeycloak(tmp_path)
    airflow = site.airflow
    try:
        airflow.run_all(("db", "migrate"), ("teams", "sync"))
        airflow.start()
        assert airflow.health("metadatabase") == "healthy"
        with airflow.client() as client:
            nobody_logs_in_and_everybody_out(client)
            site.keycloak.start()
            realm = Realm(site.keycloak)
            # Nothing here asks Keycloak's own authorization services, so they may be off.
            realm.add_client(CLIENT, authorizationServicesEnabled=False)
            realm.add_groups("alpha-engineers")
            realm.add_person("ann", (), ("alpha-engineers",))
            answer = client.post("/auth/token", json=ANN)
            assert answer.status_code == 201, answer.text
            as_ann = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            assert client.get("/api/v2/dags", headers=as_ann).status_code == 200
            site.keycloak.stop()
            assert client.get("/api/v2/dags", headers=as_ann).status_code == 200
            nobody_logs_in_and_everybody_out(client)
    finally:
        airflow.stop()
        site.keycloak.stop()


def nobody_logs_in_and_everybody_out(client: httpx.Client) -> None:
    told = {"detail": "Nobody can log in now: Keycloak does not answer"}
    by_password = client.post("/auth/token", json=ANN)
    assert (by_password.status_code, by_password.json()) == (503, told)
    in_browser = client.get("/auth/login_callback?code=1&state=s", headers={"Cookie": "_oauth_state=s"})
    assert (in_browser.status_code, in_browser.json()) == (503, told)
    assert client.get("/api/v2/dags").status_code == 401
    left = client.get("/auth/logout", headers=KEPT)
    assert (left.status_code, left.headers["location"]) == (307, "logout_callback")
    ended = client.get("/auth/logout_callback", headers=KEPT)
    assert ended.headers["location"].endswith("/auth/login")
