"""A bundle server as its command starts it, on SQLite or PostgreSQL, and everybody's keys and tokens for it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine

from airflow_team_authz.bundles.artifact import PLATFORM, Artifact, build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.gate.platform_part import read_platform
from demo.airflow import free_port
from tests.bundles.conftest import lends
from tests.conftest import REPOSITORY, eventually
from tests.support.postgres import Postgres, programs

ENVIRONMENTS = ("staging", "production")
# Read once: httpx reads all of the world's for each request, which takes longer than most answers.
_CERTIFICATES = httpx.create_ssl_context()

# What is at stake in these is the database; the others ask PostgreSQL in the exhaustive form.
_BY_EACH_DATABASE = {"test_database", "test_failures", "test_races"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as exhaustive what asks PostgreSQL the same as SQLite."""
    for item in items:
        asks_postgres = "postgresql" in getattr(getattr(item, "callspec", None), "params", {}).values()
        if asks_postgres and item.path.parent.name == "server" and item.path.stem not in _BY_EACH_DATABASE:
            item.add_marker(pytest.mark.exhaustive)


class Server:
    """A server, its files in ``home``; it can be killed and started again."""

    def __init__(self, home: Path, database: str = "", environments: tuple[str, ...] = ENVIRONMENTS) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.database = home, database or f"sqlite:///{home}/server.db"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.key = SigningKey.new()
        self.keys = {owner: SigningKey.new() for owner in (PLATFORM, "alpha", "beta")}
        (home / "signing").write_bytes(self.key.pem())
        (home / "trusted.pub").write_bytes(self.key.public.pem())
        self.options = [*(f"--environment={name}" for name in environments), "--public-url=https://bundles.example/"]
        self.tokens: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            ["team-authz", "server", *arguments, "--database", self.database],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def start(self, *more: str, **environment: str) -> None:
        port = self.url.rpartition(":")[2]
        options = ["--database", self.database, "--port", port, "--signing-key", str(self.home / "signing")]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["team-authz", "server", "run", *options, *self.options, *more],
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=os.environ | environment,
            )
        eventually(self.reached)

    def reached(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "log").read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/health", verify=_CERTIFICATES).status_code in {200, 503}
        except httpx.HTTPError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            os.kill(self._process.pid, how)
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def prepare(self) -> None:
        """Everybody's tokens, and the keys of those who publish."""
        self.tokens["platform"] = self.command("token", "create", "--platform")
        others = {
            "alpha": {"kind": "team", "team_id": "alpha"},
            "beta": {"kind": "team", "team_id": "beta"},
            "reader": {"kind": "reader"},
            "narrow": {"kind": "reader", "bundle": "production.team.alpha"},
        }
        for name, wanted in others.items():
            self.tokens[name] = self.ask("POST", "/tokens", json=wanted).json()["secret"]
        for owner, key in self.keys.items():
            self.register(owner, key.public.pem().decode())

    def register(self, owner: str, pem: str) -> httpx.Response:
        place = "platform" if owner == PLATFORM else f"teams/{owner}"
        return self.ask("PUT", f"/{place}/keys", "platform", json={"pem": pem})

    def ask(self, method: str, path: str, who: str | None = "platform", **more: Any) -> httpx.Response:
        headers = more.pop("headers", {}) | ({"Authorization": f"Bearer {self.tokens.get(who, who)}"} if who else {})
        return httpx.request(method, self.url + path, headers=headers, timeout=60, verify=_CERTIFICATES, **more)

    def publish(
        self, artifact: Artifact, who: str = "", environment: str = "production", key: SigningKey | None = None
    ) -> httpx.Response:
        content = build_artifact(artifact, key or self.keys[artifact.owner])
        place = "platform" if artifact.owner == PLATFORM else f"teams/{artifact.owner}"
        who = who or ("platform" if artifact.owner == PLATFORM else artifact.owner)
        return self.ask("PUT", f"/{place}/package?environment={environment}", who, content=content)

    def bundle(self, name: str, who: str = "reader", **headers: str) -> httpx.Response:
        return self.ask("GET", f"/bundles/{name}", who, headers=headers)

    def log(self) -> str:
        return (self.home / "log").read_text()


def of_platform(version: int = 1) -> Artifact:
    return Artifact(PLATFORM, version, read_platform(REPOSITORY / "policies"))


def good(team_id: str, version: int, connection: str = "pg") -> Artifact:
    """A package that the gate lets through."""
    return lends(team_id, connection, version)


@contextmanager
def running(home: Path, database: str = "") -> Iterator[Server]:
    server = Server(home, database)
    try:
        server.start()
    except AssertionError:
        # Somebody else may have taken the port meanwhile; nothing else is tried again.
        if "address already in use" not in server.log():
            raise
        server.url = f"http://127.0.0.1:{free_port()}"
        server.start()
    try:
        server.prepare()
        yield server
    finally:
        server.stop(signal.SIGKILL)


@contextmanager
def beside(first: Server) -> Iterator[Server]:
    """A second server process on the same database, for the same people."""
    second = Server(first.home / "second", first.database)
    second.key, second.keys, second.tokens = first.key, first.keys, first.tokens
    (second.home / "signing").write_bytes(first.key.pem())
    second.start()
    try:
        yield second
    finally:
        second.stop()


@contextmanager
def database_server(home: Path) -> Iterator[Postgres]:
    if programs() is None:
        assert "REQUIRE_ALL" not in os.environ
        pytest.skip("PostgreSQL is not on this machine: apt-get install postgresql")
    started = Postgres(home)
    started.start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with database_server(tmp_path_factory.mktemp("postgres") / "server") as started:
        yield started


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The address of a database of the test's own, on PostgreSQL."""
    name = f"own_{secrets.token_hex(4)}"
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{postgres.url.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests of this package share: they publish under versions of their own."""
    database = request.getfixturevalue("postgres").url if request.param == "postgresql" else ""
    with running(tmp_path_factory.mktemp("server"), database) as started:
        assert started.publish(of_platform()).status_code == 200
        # What is published is in the database, and the process takes it from there.
        eventually(lambda: started.bundle("production.wasm").status_code == 200)
        yield started


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server for one test, which may break it."""
    with running(tmp_path / "server") as started:
        yield started


def newest(server: Server, owner: str) -> int:
    """The version to publish next."""
    listed = server.ask("GET", f"/teams/{owner}/history").json()
    return max((entry["version"] for entry in listed), default=0) + 1


def told(answer: httpx.Response) -> str:
    return str(json.loads(answer.text).get("error"))
