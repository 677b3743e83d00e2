"""Tokens of the server and of an OpenID Connect issuer: which count, for how long, and that nobody sees them."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from sqlalchemy import create_engine

from airflow_team_authz.server.access import Access, IssuerUnreachableError, Oidc, UnknownClientError
from tests.conftest import eventually
from tests.server.conftest import Server, told


def test_a_revoked_token_is_over_within_a_second(server: Server) -> None:
    made = server.ask("POST", "/tokens", json={"kind": "team", "team_id": "alpha"}).json()
    assert server.ask("GET", "/teams/alpha/history", made["secret"]).status_code == 200
    listed = server.ask("GET", "/tokens").json()
    assert [token["revoked"] for token in listed if token["id"] == made["id"]] == [False]
    assert "secret" not in json.dumps(listed)
    assert server.ask("DELETE", f"/tokens/{made['id']}").json()["revoked"] is True
    time.sleep(1.1)
    answer = server.ask("GET", "/teams/alpha/history", made["secret"])
    assert (answer.status_code, f"the token {made['id']} was revoked" in told(answer)) == (401, True)
    assert server.ask("DELETE", "/tokens/0").status_code == 404


@pytest.mark.parametrize(
    "wanted",
    [
        {"kind": "team"},
        {"kind": "reader", "team_id": "alpha"},
        {"kind": "platform", "bundle": "x"},
        {"kind": "god"},
        {"kind": "team", "team_id": "../x"},
        {"kind": "reader", "days": 0},
        {},
    ],
)
def test_tokens_that_make_no_sense_are_not_made(server: Server, wanted: dict[str, object]) -> None:
    assert server.ask("POST", "/tokens", json=wanted).status_code == 422
    for who in ("alpha", "reader"):
        assert server.ask("POST", "/tokens", who, json={"kind": "platform"}).status_code == 403
        assert server.ask("GET", "/tokens", who).status_code == 403


def test_an_expired_token_and_a_wrong_secret_are_refused(own_server: Server) -> None:
    secret = own_server.command("token", "create", "--reader", "--days", "1")
    assert own_server.bundle("x", secret).status_code == 404
    assert own_server.bundle("x", secret[:-1] + ("A" if secret[-1] != "A" else "B")).status_code == 401
    id_ = secret.split("_")[1]
    assert own_server.bundle("x", f"taz_{id_}_").status_code == 401
    with sqlite3.connect(own_server.home / "server.db") as database:
        stored = database.execute("select hash from token where id = ?", [id_]).fetchone()[0]
        assert secret.split("_", 2)[2] not in stored
        database.execute("update token set expires_at = '2020-01-01 00:00:00.000000' where id = ?", [id_])
    time.sleep(1.1)
    answer = own_server.bundle("x", secret)
    assert (answer.status_code, "is over since 2020-01-01" in told(answer)) == (401, True)
    own_server.command("token", "revoke", id_)
    listed = json.loads(own_server.command("token", "list", "--output", "json"))
    assert [token["revoked"] for token in listed if token["id"] == id_] == [True]


def test_a_reader_of_one_bundle_may_name_it_as_the_file(server: Server) -> None:
    secret = server.command("token", "create", "--reader", "--bundle", "production.tar.gz")
    assert server.bundle("production.tar.gz", secret).status_code in {200, 404}
    assert server.bundle("staging", secret).status_code == 403


class Issuer(ThreadingHTTPServer):
    """An issuer's two documents, for tokens that a test signs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Documents)
        self.key = rsa.generate_private_key(65537, 2048)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def token(self, algorithm: str = "RS256", key: Any = None, **claims: Any) -> str:
        said = {"iss": self.url, "aud": "bundles", "sub": "ci", "exp": time.time() + 60} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key or self.key, algorithm, headers={"kid": "one"})


class _Documents(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        public = json.loads(RSAAlgorithm.to_jwk(self.server.key.public_key()))
        documents = {
            "/.well-known/openid-configuration": {"issuer": self.server.url, "jwks_uri": f"{self.server.url}/keys"},
            "/keys": {"keys": [public | {"kid": "one", "use": "sig", "alg": "RS256"}]},
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(documents[self.path]).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as started:
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def trusting(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("trusting"))
    server.start("--oidc-issuer", issuer.url, "--oidc-audience", "bundles", "--oidc-platform-claim", "role=platform")
    server.prepare()
    yield server
    server.stop()


def test_tokens_of_the_issuer(trusting: Server, issuer: Issuer) -> None:
    assert trusting.ask("GET", "/teams/alpha/history", issuer.token(team_id="alpha")).status_code == 200
    assert trusting.ask("GET", "/teams/alpha/history", issuer.token(team_id=["beta", "alpha"])).status_code == 200
    assert trusting.ask("GET", "/teams/alpha/history", issuer.token(team_id="beta")).status_code == 403
    assert trusting.ask("GET", "/teams", issuer.token(role="platform")).status_code == 200
    assert trusting.ask("GET", "/teams", issuer.token(role=["x", "platform"])).status_code == 200
    assert trusting.ask("GET", "/teams", issuer.token(team_id="alpha", role="other")).status_code == 403


FORGED: dict[str, Callable[[Issuer], str]] = {
    "another key": lambda issuer: issuer.token(key=rsa.generate_private_key(65537, 2048), team_id="alpha"),
    "another audience": lambda issuer: issuer.token(aud="other", team_id="alpha"),
    "another issuer": lambda issuer: issuer.token(iss="http://other", team_id="alpha"),
    "expired": lambda issuer: issuer.token(exp=time.time() - 60, team_id="alpha"),
    "without expiry": lambda issuer: issuer.token(exp=None, team_id="alpha"),
    "not yet": lambda issuer: issuer.token(nbf=time.time() + 600, team_id="alpha"),
    "alg none": lambda issuer: jwt.encode({"iss": issuer.url, "aud": "bundles", "team_id": "alpha"}, None, "none"),
    "HS256": lambda issuer: issuer.token("HS256", "secret" * 8, team_id="alpha"),
    "no team": lambda issuer: issuer.token(),
    "a team that is no text": lambda issuer: issuer.token(team_id=[1, None, ""]),
    "nonsense": lambda _: "x.y.z",
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_tokens_are_refused(case: str, trusting: Server, issuer: Issuer) -> None:
    answer = trusting.ask("GET", "/teams/alpha/history", FORGED[case](issuer))
    assert answer.status_code == 401, answer.text


def test_an_issuer_that_is_gone_is_told_apart_from_a_wrong_token(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with Issuer() as gone:
        token = gone.token(team_id="alpha")
        gone.shutdown()
    server.start("--oidc-issuer", gone.url, "--oidc-audience", "bundles")
    try:
        server.prepare()
        answer = server.ask("GET", "/teams/alpha/history", token)
        assert (answer.status_code, "cannot be had" in told(answer)) == (503, True)
        assert server.ask("GET", "/teams/alpha/history", "alpha").status_code == 200
    finally:
        server.stop()


def asks(issuer: str) -> Access:
    return Access(create_engine("sqlite://"), Oidc(issuer, "bundles"))


def test_made_up_key_ids_do_not_ask_the_issuer_each_time(issuer: Issuer) -> None:
    access, before = asks(issuer.url), len(issuer.asked)
    for number in range(20):
        made_up = jwt.encode({"iss": issuer.url}, "k" * 32, "HS256", headers={"kid": f"made up {number}"})
        with pytest.raises(UnknownClientError, match="no such key"):
            access.caller(made_up)
    assert access.caller(issuer.token(team_id="alpha")).owns("alpha")
    assert len(issuer.asked) - before == 2


def test_an_issuer_that_says_nothing_is_waited_for_once(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_team_authz.issuer._TIMEOUT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        access, came = asks(address), _coming(silent)
        for text in ("x", issuer.token(team_id="alpha")):
            with pytest.raises(UnknownClientError):
                access.caller(text)
        assert came == []
        for _ in range(5):
            with pytest.raises(IssuerUnreachableError):
                access.caller(issuer.token(iss=address, team_id="alpha"))
        assert len(came) == 1


def _coming(server: socket.socket) -> list[socket.socket]:
    """The connections to a server that says nothing, as they come."""
    came: list[socket.socket] = []

    def accept() -> None:
        # Until it is closed.
        with suppress(OSError):
            while True:
                came.append(server.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    return came


def test_the_keys_of_an_issuer_that_is_gone_are_good_for_minutes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with Issuer() as gone:
        access, tokens = asks(gone.url), [gone.token(team_id="alpha", jti=str(number)) for number in range(3)]
        assert access.caller(tokens[0]).owns("alpha")
        gone.shutdown()
    assert access.caller(tokens[1]).owns("alpha")
    monkeypatch.setattr("airflow_team_authz.server.access.RENEW_SECONDS", 0.0)
    monkeypatch.setattr("airflow_team_authz.server.access._PAUSE_SECONDS", 0.0)
    with pytest.raises(IssuerUnreachableError):
        access.caller(tokens[2])


def test_where_an_issuer_sends_us_is_neither_followed_nor_told(issuer: Issuer) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{issuer.url}{self.path}?secret")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as moved:
        threading.Thread(target=moved.serve_forever, args=(0.05,), daemon=True).start()
        address, before = f"http://127.0.0.1:{moved.server_port}", len(issuer.asked)
        with pytest.raises(IssuerUnreachableError, match=f"^the keys of {address} cannot be had$"):
            asks(address).caller(issuer.token(iss=address, team_id="alpha"))
        assert len(issuer.asked) == before
        moved.shutdown()


def test_no_token_is_in_the_log(trusting: Server, issuer: Issuer, server: Server) -> None:
    token = issuer.token(team_id="alpha")
    trusting.ask("GET", f"/teams/alpha/history?token={token}", token)
    trusting.ask("GET", "/teams/alpha/history", token[:-3])
    server.ask("GET", "/nothing")
    for started, secrets in ((trusting, [token]), (server, list(server.tokens.values()))):
        eventually(lambda started=started: "Uvicorn running" in started.log())  # type: ignore[misc]
        assert not [secret for secret in secrets if secret in started.log()]
