"""What stays when something breaks: the last good bundles, and everybody's decisions."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, update

from airflow_team_authz.bundles.aggregate import scope
from airflow_team_authz.bundles.signing import TrustedKeys
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines.downloads import Downloaded
from airflow_team_authz.opa.archive import read_manifest, unpack
from airflow_team_authz.server.database import _GONE_SECONDS, Token
from tests.conftest import eventually
from tests.server.conftest import Server, beside, database_server, good, newest, of_platform, running, told
from tests.server.test_protocol import lent, opa
from tests.support.postgres import Postgres


def serial(server: Server, name: str = "production") -> int:
    """The serial of a bundle that is whole and signed."""
    files = unpack(server.bundle(name).content)
    TrustedKeys.of([server.key.public]).verify(files, scope(name))
    return int(read_manifest(files)["metadata"]["serial"])


def test_killed_at_any_moment_nothing_is_half_published(own_server: Server) -> None:
    chance = random.Random(6)  # noqa: S311
    assert own_server.publish(of_platform()).status_code == 200
    for round_ in range(5):
        version = newest(own_server, "alpha")
        publishing = threading.Thread(target=_publish, args=(own_server, version))
        publishing.start()
        time.sleep(chance.uniform(0.05, 0.7))
        own_server.stop(signal.SIGKILL)
        publishing.join()
        own_server.start()
        history = own_server.ask("GET", "/teams/alpha/history").json()
        versions = [entry["version"] for entry in history]
        assert versions == sorted(set(versions), reverse=True), round_
        eventually(lambda: own_server.bundle("production").status_code == 200)
        bundled = read_manifest(unpack(own_server.bundle("production").content))["metadata"]
        # All of it is there, or nothing: the history, the shared bundle, and the team's own.
        assert bundled["teams"].get("alpha", {}).get("version") == (versions[0] if versions else None)
        assert serial(own_server) == serial(own_server, "production.wasm")
        if versions:
            assert serial(own_server, "production.team.alpha") == history[0]["serial"]


def _publish(server: Server, version: int) -> None:
    from contextlib import suppress

    import httpx

    with suppress(httpx.HTTPError):
        server.publish(good("alpha", version))


def test_while_the_database_is_gone_bundles_are_served_and_nothing_is_published(tmp_path: Path) -> None:
    with database_server(tmp_path / "postgres") as database, running(tmp_path / "server", database.url) as server:
        assert server.publish(good("alpha", 1)).status_code == 200
        eventually(lambda: server.bundle("production").status_code == 200)
        etag = server.bundle("production").headers["ETag"]
        over, revoked, unseen = (
            server.ask("POST", "/tokens", json={"kind": "reader"}).json()["secret"] for _ in range(3)
        )
        with create_engine(database.url).begin() as connection:
            soon = datetime.now(UTC) + timedelta(seconds=3)
            connection.execute(update(Token).where(Token.id == over.split("_")[1]).values(expires_at=soon))
        for token, code in ((over, 200), (revoked, 200), ("narrow", 403)):
            assert server.bundle("production", token).status_code == code
        assert server.ask("DELETE", f"/tokens/{revoked.split('_')[1]}").status_code == 200
        time.sleep(1.1)
        assert server.bundle("production", revoked).status_code == 401
        database.stop()
        # Longer than a token is remembered, and until one of them is over.
        time.sleep(2)
        assert server.bundle("production").status_code == 200
        assert server.bundle("production", **{"If-None-Match": etag}).status_code == 304
        began = time.monotonic()
        assert server.bundle("production", **{"If-None-Match": etag, "Prefer": "wait=1"}).status_code == 304
        assert time.monotonic() - began > 0.9
        assert server.bundle("production", "narrow").status_code == 403
        for token in (unseen, over, revoked, "taz_x_y"):
            assert server.bundle("production", token).status_code == 503
        assert server.bundle("production", "nonsense").status_code == 401
        refused = server.publish(good("alpha", 2))
        assert (refused.status_code, "nothing has changed, try again" in told(refused)) == (503, True)
        health = server.ask("GET", "/health", None)
        assert (health.status_code, health.json()["ok"], health.json()["bundles"]) == (200, False, 3)
        assert "nothing can be published" in health.json()["trouble"]
        assert server.log().count("the database cannot be read") == 1
        database.start()
        assert server.publish(good("alpha", 2)).status_code == 200
        eventually(lambda: server.bundle("production").headers["ETag"] != etag)
        assert server.ask("GET", "/health", None).json() == {"ok": True, "trouble": "", "bundles": 3}
        assert server.bundle("production", over).status_code == 401


def everything_of(database: Postgres) -> list[int]:
    """The processes of PostgreSQL, the first of all first."""
    first = int((database._home / "data" / "postmaster.pid").read_text().split()[0])
    return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_while_the_database_hangs_bundles_are_served(server: Server, postgres: Postgres) -> None:
    assert server.publish(good("alpha", newest(server, "alpha"))).status_code == 200
    eventually(lambda: server.bundle("production").status_code == 200)
    stopped = everything_of(postgres)
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        # Longer than a token is remembered.
        time.sleep(1.5)
        assert server.bundle("production").status_code == 200
        eventually(lambda: server.ask("GET", "/health", None).json()["ok"] is False)
        began = time.monotonic()
        assert server.bundle("production").status_code == 200
        assert time.monotonic() - began < _GONE_SECONDS
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    eventually(lambda: server.ask("GET", "/health", None).json()["ok"])
    assert server.publish(good("alpha", newest(server, "alpha"))).status_code == 200


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    """The database may not grow any more; then there is no room for the gate's files either."""
    server = Server(tmp_path / "server")
    server.start()
    try:
        server.prepare()
        assert server.publish(good("alpha", 1)).status_code == 200
        before = serial(server)
        import resource

        size = max(path.stat().st_size for path in server.home.glob("server.db*"))
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
        answer = server.publish(good("alpha", 2))
        assert answer.status_code == 503, answer.text
        assert "nothing has changed" in told(answer)
        assert serial(server) == before
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        answer = server.publish(good("alpha", 2))
        assert (answer.status_code, "the server lacks something (File too large)" in told(answer)) == (503, True)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert server.publish(good("alpha", 2)).status_code == 200
        eventually(lambda: serial(server) > before)
    finally:
        server.stop()


def test_an_engine_goes_on_while_the_server_is_gone_and_takes_what_comes_then(
    own_server: Server, tmp_path: Path
) -> None:
    assert own_server.publish(good("alpha", 1)).status_code == 200
    eventually(lambda: own_server.bundle("production.wasm").status_code == 200)
    (tmp_path / "token").write_text(own_server.tokens["reader"])
    trust = Trust(own_server.home / "trusted.pub", "production.wasm")

    def engine() -> Downloaded:
        return Downloaded(f"{own_server.url}/bundles/production.wasm", tmp_path / "state", trust, tmp_path / "token")

    first = engine()
    assert lent(first) == (True, 1)
    own_server.stop(signal.SIGKILL)
    restarted = engine()
    assert lent(first) == lent(restarted) == (True, 1)
    own_server.start()
    assert own_server.publish(good("alpha", 2, "other")).status_code == 200
    eventually(lambda: lent(first) == lent(restarted) == (False, 2))
    for opened in (first, restarted):
        opened.close()


def test_an_opa_restarted_while_the_server_is_gone_still_answers(own_server: Server, tmp_path: Path) -> None:
    assert own_server.publish(good("alpha", 1)).status_code == 200
    kept = tmp_path / "opa"
    with opa(own_server, "opa.yaml", kept, "reader") as first:
        eventually(lambda: lent(first) == (True, 1))
    own_server.stop(signal.SIGKILL)
    with opa(own_server, "opa.yaml", kept, "reader") as second:
        eventually(lambda: lent(second) == (True, 1))
        own_server.start()
        assert own_server.publish(good("alpha", 2, "other")).status_code == 200
        eventually(lambda: lent(second) == (False, 2))


def test_two_servers_on_one_database(own_server: Server) -> None:
    with beside(own_server) as second:
        for version in range(1, 5):
            publisher, other = (own_server, second) if version % 2 else (second, own_server)
            answer = publisher.publish(good("alpha", version))
            assert answer.status_code == 200, answer.text
            expected = answer.json()["serial"]
            eventually(lambda other=other, expected=expected: serial_or_none(other) == expected)  # type: ignore[misc]


def serial_or_none(server: Server) -> int | None:
    return serial(server) if server.bundle("production").status_code == 200 else None
