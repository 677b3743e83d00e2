"""An API server whose workers are forked and replaced all the time: each decides by the newest policy at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from airflow_team_authz.bundles.aggregate import build
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.opa.compile import compile_directory
from demo.airflow import Airflow, Settings, merged
from demo.opa import Opa
from tests.bundles.conftest import lends
from tests.conftest import merge, write

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(600)]

NAME = "production.wasm"
PASSWORDS = {"gus": "secret-of-gus", "pat": "secret-of-pat"}
# What lends the connection `pg`, and what has the right withdrawn.
LENT, WITHDRAWN = "pg", "other"
# Settings, and what puts a policy in its place.
Source = tuple[Settings, Callable[[str], object]]


def rules(home: Path, id_: str) -> Path:
    rego = f'package teams.alpha\n\nallow contains "lent" if input.resource.id == "{id_}"\n'
    return write(home / "policy", {"teams/alpha/alpha.rego": rego})


@contextmanager
def directory(home: Path) -> Iterator[Source]:
    yield {"team_authz": {"policy": str(home / "policy")}}, partial(rules, home)


@contextmanager
def bundle_file(home: Path) -> Iterator[Source]:
    file = home / "bundle.tar.gz"
    yield {"team_authz": {"policy": str(file)}}, lambda id_: compile_directory(rules(home, id_), file)


@contextmanager
def bundle_server(home: Path) -> Iterator[Source]:
    """Any web server is one."""
    key, serials = SigningKey.new(), iter(range(10, 100))
    (home / "bundles").mkdir()
    (home / "key.pub").write_bytes(key.public.pem())

    def publish(id_: str) -> None:
        serial = next(serials)
        (home / "new").write_bytes(build("production", None, {"alpha": lends("alpha", id_, serial)}, serial, key)[NAME])
        (home / "new").replace(home / "bundles" / NAME)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(home))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/bundles/{NAME}"
        yield {"team_authz": {"policy": url, "policy_keys_file": str(home / "key.pub")}}, publish
        web.shutdown()


@contextmanager
def opa_server(home: Path) -> Iterator[Source]:
    opa = Opa(home / "opa", merge(rules(home, LENT), home / "merged" / "policy"))
    opa.start()
    try:
        yield {"team_authz": {"opa_url": opa.url, "deadline_ms": "20000"}}, partial(rules, home / "merged")
    finally:
        opa.stop()


SOURCES = {"directory": directory, "bundle file": bundle_file, "bundle server": bundle_server, "OPA server": opa_server}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A database with a team."""
    airflow = Airflow(tmp_path_factory.mktemp("database"), {"core": {"multi_team": "True"}})
    airflow.run_all(("db", "migrate"), ("teams", "create", "alpha"))
    return {"database": {"sql_alchemy_conn": f"sqlite:///{airflow.home}/airflow.db"}}


@pytest.mark.parametrize("source", SOURCES)
def test_a_withdrawn_right_does_not_come_back_with_a_new_worker(
    source: str, database: Settings, tmp_path: Path
) -> None:
    (tmp_path / "passwords.json").write_text(json.dumps(PASSWORDS))
    settings = {
        "core": {
            "multi_team": "True",
            "auth_manager": "airflow_team_authz.TeamAuthManager",
            "simple_auth_manager_users": "gus:viewer,pat:admin",
            "simple_auth_manager_passwords_file": str(tmp_path / "passwords.json"),
        },
        "api": {"server_type": "gunicorn", "worker_refresh_interval": "1"},
    }
    with SOURCES[source](tmp_path) as (told, put):
        put(LENT)
        airflow = Airflow(tmp_path / "airflow", merged(settings, told, database))
        with airflow, airflow.login("pat", PASSWORDS["pat"]) as pat, airflow.login("gus", PASSWORDS["gus"]) as gus:
            pat.post("/api/v2/connections", json={"connection_id": LENT, "conn_type": "http", "team_name": "alpha"})
            assert statuses_of_new_workers(airflow, gus, 2) == {200}
            put(WITHDRAWN)
            end = time.monotonic() + 200
            while ask(gus) != 403:
                assert time.monotonic() < end, "the right is not withdrawn"
            assert statuses_of_new_workers(airflow, gus, 4) == {403}


def ask(client: httpx.Client) -> int:
    """The status of a request that any of the workers may get; 0 if one that is replaced does not answer it."""
    try:
        # Each time another connection: whoever is connected stays with its worker.
        return client.get(f"/api/v2/connections/{LENT}", headers={"Connection": "close"}).status_code
    except httpx.TransportError:
        return 0


def statuses_of_new_workers(airflow: Airflow, client: httpx.Client, number: int) -> set[int]:
    """What is answered while so many workers begin."""
    before, seen, statuses = workers(airflow), set[str](), set[int]()
    end = time.monotonic() + 200
    while len(seen) < number:
        assert time.monotonic() < end, "no worker is replaced"
        statuses.add(ask(client))
        seen |= workers(airflow) - before
    return statuses - {0}


def workers(airflow: Airflow) -> set[str]:
    pid = airflow.pid
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
