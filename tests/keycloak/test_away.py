"""An API server that starts while nobody listens at Keycloak's address: logging out works, and later logging in."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from demo.airflow import Settings, free_port
from tests.keycloak.conftest import MANAGER
from tests.keycloak.server import CLIENT, PASSWORD, Realm
from tests.keycloak.site import KeycloakSite

pytestmark = [pytest.mark.timeout(600), pytest.mark.exhaustive]

ANN = {"username": "ann", "password": PASSWORD}


class Address:
    """A port of loopback where nobody listens until ``open``, and then who is behind it."""

    def __init__(self, behind: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        parts = urlsplit(behind)
        self._behind = str(parts.hostname), int(parts.port or 0)
        self._listening: socket.socket | None = None

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def close(self) -> None:
        if self._listening is not None:
            self._listening.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._behind)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        target.close()


class SiteWithoutKeycloak(KeycloakSite):
    """Keycloak's address is one where it does not answer yet; ``realm`` is what it will have there, if it comes up."""

    def __init__(self, home: Path, realm: Realm | None, address: Address) -> None:
        self._address, self._made = address, realm
        super().__init__(home, realm, ())  # type: ignore[arg-type]

    def login_settings(self) -> Settings:
        settings = {"realm": "company", "client_id": CLIENT, "client_secret": "x"}
        if self._made is not None:
            settings |= {"realm": self._made.name, "client_secret": self._made.secrets[CLIENT]}
        return {
            "team_authz": {"authn_manager": MANAGER},
            "keycloak_auth_manager": settings | {"server_url": self._address.url},
        }


def start_without_keycloak(site: SiteWithoutKeycloak) -> None:
    """It starts and is well, says who cannot log in, and logs out."""
    site.airflow.run("db", "migrate")
    site.airflow.run("teams", "sync")
    site.airflow.start()
    assert site.airflow.health("metadatabase") == "healthy"
    told = {"detail": "Nobody can log in now: Keycloak does not answer"}
    with site.airflow.client() as client:
        by_password = client.post("/auth/token", json=ANN)
        assert (by_password.status_code, by_password.json()) == (503, told)
        in_browser = client.get("/auth/login_callback?code=1&state=s", headers={"Cookie": "_oauth_state=s"})
        assert (in_browser.status_code, in_browser.json()) == (503, told)
        assert client.get("/api/v2/dags").status_code == 401
        kept = {"Cookie": "_id_token=a.b.c; _access_token=a; _refresh_token=r"}
        left = client.get("/auth/logout", headers=kept)
        assert (left.status_code, left.headers["location"]) == (307, "logout_callback")
        ended = client.get("/auth/logout_callback", headers=kept)
        assert ended.headers["location"] == "/auth/login"
        assert any(line.startswith("_token=") for line in ended.headers.get_list("set-cookie"))


def test_an_api_server_starts_without_keycloak(tmp_path: Path) -> None:
    site = SiteWithoutKeycloak(tmp_path, None, Address("http://127.0.0.1:1"))
    try:
        start_without_keycloak(site)
    finally:
        site.airflow.stop()


def test_people_log_in_once_keycloak_is_there(realm: Realm, tmp_path: Path) -> None:
    address = Address(realm.keycloak.url)
    site = SiteWithoutKeycloak(tmp_path, realm, address)
    try:
        start_without_keycloak(site)
        address.open()
        with site.airflow.login(**ANN) as client:
            assert client.get("/api/v2/dags").status_code == 200
            assert client.get("/api/v2/connections/none").status_code in {403, 404}
    finally:
        site.airflow.stop()
        address.close()
