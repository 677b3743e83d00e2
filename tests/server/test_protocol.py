"""How bundles go out: ETags and waiting, real OPAs, our own engine, and who runs what."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from msgspec import UNSET
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.downloads import Downloaded
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.opa.archive import read_manifest, unpack
from airflow_team_authz.opa.compile import find_opa
from airflow_team_authz.server.clients import STALE
from airflow_team_authz.server.database import Client, connect
from tests.conftest import REPOSITORY, eventually
from tests.server.conftest import Server, good, newest

MEDIA_TYPE = "application/vnd.openpolicyagent.bundles"


def publish(server: Server, team_id: str = "alpha", connection: str = "pg") -> int:
    version = newest(server, team_id)
    answer = server.publish(good(team_id, version, connection))
    assert answer.status_code == 200, answer.text
    serial = answer.json()["serial"]
    eventually(lambda: server.bundle("production").headers["ETag"] != "" and revision(server).startswith(str(serial)))
    return version


def revision(server: Server) -> str:
    return str(read_manifest(unpack(server.bundle("production").content))["revision"])


def test_unchanged_is_304_and_waits_if_asked_to(server: Server) -> None:
    publish(server)
    etag = server.bundle("production").headers["ETag"]
    for tags in (etag, f'"x", {etag}', f"{etag},", f"W/{etag}"):
        answer = server.bundle("production", **{"If-None-Match": tags})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
        assert answer.headers["Content-Type"] == MEDIA_TYPE
    began = time.monotonic()
    answer = server.bundle("production", **{"If-None-Match": etag, "Prefer": "modes=snapshot,delta;wait=1"})
    assert answer.status_code == 304
    assert 0.9 < time.monotonic() - began < 30
    arrived: list[tuple[float, httpx.Response]] = []

    def wait() -> None:
        told = server.bundle("production", **{"If-None-Match": etag, "Prefer": "modes=snapshot,delta;wait=30"})
        arrived.append((time.monotonic(), told))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    assert server.publish(good("alpha", newest(server, "alpha"))).status_code == 200
    done = time.monotonic()
    waiting.join()
    ((moment, told),) = arrived
    assert (told.status_code, told.headers["ETag"] != etag) == (200, True)
    assert moment - done < 5


def test_readers_read_what_is_theirs(server: Server) -> None:
    publish(server)
    assert server.bundle("production.team.alpha", "narrow").status_code == 200
    for name, who, code in (
        ("production", "narrow", 403),
        ("production", "alpha", 403),
        ("production", "nonsense", 401),
        ("production", "platform", 200),
        ("nothing", "reader", 404),
        ("production.team.nobody", "reader", 404),
        ("ä" * 200, "reader", 404),
        ("x" * 251, "reader", 422),
        ("..%2f..%2fetc%2fpasswd", "reader", 404),
    ):
        assert server.bundle(name, who).status_code == code, (name, who)


@contextmanager
def opa(
    server: Server, configuration: str, place: Path, who: str, more: str = "", **environment: str
) -> Iterator[OpaServer]:
    place.mkdir(exist_ok=True)
    (place / "token").write_text(server.tokens[who])
    keys = ["team-authz", "keys", "show", str(server.home / "trusted.pub"), "--opa"]
    shown = subprocess.run(keys, capture_output=True, text=True, check=True).stdout
    (place / "opa.yaml").write_text((REPOSITORY / "bundles" / configuration).read_text() + shown + more)
    known = {"BUNDLE_SERVER_URL": server.url, "BUNDLE_TOKEN_FILE": str(place / "token"), "HOST_NAME": place.name}
    address = f"unix://{place}/opa.sock"
    command = [find_opa(), "run", "--server", "--config-file", "opa.yaml", "--addr", address, "--skip-version-check"]
    with (place / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=place, env=os.environ | known | environment, stderr=log)
    try:
        with closing(OpaServer(address, deadline_ms=5_000)) as engine:
            yield engine
    finally:
        running.terminate()
        running.wait()


def lent(engine: OpaServer | Downloaded, team_id: str = "alpha") -> tuple[bool, object] | None:
    question = Evaluations(Subject("user", "gus"), "read", [Resource("connection", team_id, "pg")])
    try:
        (decision,) = DecisionPoint(engine).decide(question).decisions
    except EngineError:
        return None
    return decision.allow, decision.team_version


def test_published_is_enforced_by_every_engine_and_they_say_so(server: Server, tmp_path: Path) -> None:
    first = publish(server)
    publish(server, "beta")
    trust = Trust(server.home / "trusted.pub", "production.wasm")
    (tmp_path / "reader").write_text(server.tokens["reader"])
    own = Downloaded(f"{server.url}/bundles/production.wasm", tmp_path / "state", trust, tmp_path / "reader")
    with (
        opa(server, "opa.yaml", tmp_path / "shared", "reader") as shared,
        opa(server, "team-opa.yaml", tmp_path / "alphas", "reader", TEAM_ID="alpha") as alphas,
    ):
        engines = [own, shared, alphas]
        for engine in engines:
            eventually(lambda engine=engine: lent(engine) == (True, first))  # type: ignore[misc]
        assert lent(alphas, "beta") == (False, UNSET)
        second = publish(server, connection="other")
        for engine in engines:
            eventually(lambda engine=engine: lent(engine) == (False, second))  # type: ignore[misc]

        def states() -> dict[str, list[str]]:
            return {state["kind"]: state["alarms"] for state in server.ask("GET", "/status").json()["clients"]}

        expected = {"opa shared", "opa alpha alphas"}
        eventually(lambda: expected <= states().keys() and not any(states()[name] for name in expected))
        # There may be others of this host, of other tests.
        ours = {"kind": f"airflow_team_authz {socket.gethostname()}", "alarms": []}
        eventually(lambda: any(state | ours == state for state in server.ask("GET", "/status").json()["clients"]))
    own.close()


def test_alarms(server: Server) -> None:
    publish(server)
    report = {
        "labels": {"id": "<script>", "version": "1.22.2"},
        "bundles": {
            "production": {"name": "production", "active_revision": "old", "code": "bundle_error", "message": "no"}
        },
    }
    assert server.ask("POST", "/status", "reader", json=report).json() == {"noted": "<script>"}
    packed = gzip.compress(json.dumps(report).encode())
    headers = {"Content-Encoding": "gzip"}
    assert server.ask("POST", "/status", "reader", content=packed, headers=headers).status_code == 200
    (state,) = [state for state in server.ask("GET", "/status").json()["clients"] if state["id"] == "<script>"]
    assert state["alarms"] == ["production: bundle_error no", "production: runs old, which is not the present one"]
    shown = httpx.get(server.url, auth=("x", server.tokens["platform"]))
    assert shown.status_code == 200
    assert "&lt;script&gt;" in shown.text
    assert "<script>" not in shown.text
    assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
    for content, code in ((b"nonsense", 422), (b"[]", 422), (b"{}", 422), (b"x" * 300_000, 413)):
        assert server.ask("POST", "/status", "reader", content=content).status_code == code
    bomb = gzip.compress(b"[" * 50_000_000)
    assert server.ask("POST", "/status", "reader", content=bomb, headers=headers).status_code == 422
    assert server.ask("POST", "/status", "alpha", json=report).status_code == 403
    assert server.ask("GET", "/status", "reader").status_code == 403


def test_who_falls_silent_is_told_of(server: Server) -> None:
    publish(server)
    report = {"labels": {"id": "silent"}, "bundles": {"production": {"active_revision": revision(server)}}}
    assert server.ask("POST", "/status", "reader", json=report).is_success
    engine = connect(server.database)

    def alarms() -> list[str]:
        return next(
            state["alarms"] for state in server.ask("GET", "/status").json()["clients"] if state["id"] == "silent"
        )

    def heard_of(ago: timedelta) -> None:
        with Session(engine) as session:
            session.execute(update(Client).where(Client.id == "silent").values(seen_at=datetime.now(UTC) - ago))
            session.commit()

    heard_of(STALE - timedelta(seconds=30))
    assert alarms() == []
    heard_of(STALE + timedelta(seconds=1))
    assert [alarm.partition(" since ")[0] for alarm in alarms()] == ["not heard of"]
    heard_of(timedelta(days=8))
    assert not [state for state in server.ask("GET", "/status").json()["clients"] if state["id"] == "silent"]
    assert server.ask("POST", "/status", "reader", json={"labels": {"id": secrets.token_hex(4)}}).is_success
    with Session(engine) as session:
        assert session.scalar(select(Client).where(Client.id == "silent")) is None
    engine.dispose()


def test_a_client_that_is_new_may_tell_of_itself_many_times_at_once(server: Server) -> None:
    for _ in range(3):
        report = {"labels": {"id": secrets.token_hex(4)}}
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _, said=report: server.ask("POST", "/status", "reader", json=said), range(8))
        assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/status", {"labels": {"id": "a\0b"}}, 422),
        ("POST", "/freeze", {"scope": "*", "reason": "a\0b"}, 422),
        ("DELETE", "/freeze?scope=%00", None, 422),
        ("POST", "/tokens", {"kind": "reader", "bundle": "a\0b"}, 422),
        ("DELETE", "/tokens/a%00b", None, 422),
        ("GET", "/bundles/a%00b", None, 404),
    ],
)
def test_what_postgresql_cannot_keep_is_refused(
    server: Server, method: str, path: str, body: dict[str, object] | None, code: int
) -> None:
    assert server.ask(method, path, json=body).status_code == code


@pytest.mark.parametrize("who", ["reader", "alpha", "nonsense", "taz_a\0b_c"])
def test_the_page_is_the_platforms(server: Server, who: str) -> None:
    assert httpx.get(server.url).status_code == 401
    assert httpx.get(server.url, auth=("x", server.tokens.get(who, who))).status_code == 401


def test_what_a_browser_sends_by_itself_counts_at_the_page_only(server: Server) -> None:
    browser = ("x", server.tokens["platform"])
    assert httpx.get(server.url, auth=browser).status_code == 200
    assert httpx.post(f"{server.url}/status", auth=browser, content=b'{"labels": {}}').status_code == 401
    assert httpx.get(f"{server.url}/tokens", auth=browser).status_code == 401
