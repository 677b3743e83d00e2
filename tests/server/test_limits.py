"""What one caller sends, asks or holds keeps the server from nobody else."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from starlette.types import Message, Receive, Scope, Send

from airflow_team_authz.bundles.artifact import Artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.server import bodies, releases
from airflow_team_authz.server.database import Package, Release, connect, migrate
from airflow_team_authz.server.releases import Releases
from airflow_team_authz.server.work_queue import Turns
from tests.conftest import eventually
from tests.server.conftest import Server, good, newest, told


def spaces(mebibytes: int) -> Iterator[bytes]:
    for _ in range(mebibytes):
        yield b" " * (1 << 20)


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("POST", "/tokens", "65,536"),
        ("PUT", "/teams/alpha/keys", "65,536"),
        ("PUT", "/teams/alpha/package", "4,194,304"),
        ("POST", "/status", "262,144"),
    ],
)
def test_a_body_is_read_up_to_a_limit(server: Server, method: str, path: str, limit: str) -> None:
    answer = server.ask(method, path, content=spaces(9), headers={"Content-Type": "application/json"})
    assert (answer.status_code, told(answer)) == (413, f"it is larger than {limit} bytes")
    stranger = httpx.request(method, server.url + path, content=spaces(9), headers={"Content-Type": "application/json"})
    assert stranger.status_code in {401, 413}


def test_a_body_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SECONDS", 0.1)

    async def read(_: Scope, receive: Receive, __: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    async def drip() -> Message:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(bodies.HTTPException, match="not whole"):
        asyncio.run(bodies.Bodies(read)({"type": "http", "path": "/"}, drip, None))  # type: ignore[arg-type]


def test_of_large_files_is_told_only_that_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    publishing = Releases(create_engine("sqlite://"), SigningKey.new(), ["production"], None, lambda: None)
    versions = {
        1: {"a.rego": b"old\n", "large.json": b"1\n2\n" * 100_000, "same.json": b"1\n" * 100_000},
        2: {"a.rego": b"new\n", "large.json": b"2\n1\n" * 100_000, "same.json": b"1\n" * 100_000},
    }
    monkeypatch.setattr(publishing, "files", lambda _, version: versions[version])
    lines = publishing.diff("alpha", 1, 2).splitlines()
    assert lines[-3:] == ["-old", "+new", "Files large.json@1 and large.json@2 differ"]


def test_each_package_in_force_is_unpacked_once_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(f"sqlite:///{tmp_path}/server.db")
    migrate(engine)
    teams = [f"team_{number}" for number in range(1_500)]
    said = {"version": 1, "actor": "platform", "at": datetime.now(UTC)}
    with Session(engine) as session:
        session.add_all(Package(**said, owner=team, digest="d", content=b"") for team in teams)
        place = {"environment": "production", "serial": 1, "action": "publish"}
        session.add_all(Release(**said, **place, owner=team) for team in teams)
        session.commit()
    unpacked: list[str] = []

    def noted(_: Session, owner: str, version: int) -> Artifact:
        unpacked.append(owner)
        return Artifact(owner, version, {})

    monkeypatch.setattr(releases, "_unpacked", noted)
    publishing = Releases(engine, SigningKey.new(), ["production"], None, lambda: None)
    for _ in range(2):
        assert publishing._before("production").artifacts.keys() == set(teams)
    assert sorted(unpacked) == sorted(teams)
    with Session(engine) as session:
        session.add(Package(**said | {"version": 2}, owner="team_7", digest="e", content=b""))
        session.add(Release(**said | {"version": 2}, **place, owner="team_7"))
        session.commit()
    assert publishing._before("production").artifacts["team_7"].version == 2
    assert unpacked[len(teams) :] == ["team_7"]


def test_one_team_does_not_take_all_turns(server: Server) -> None:
    version = newest(server, "alpha")
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.publish, good("alpha", version, f"c{number}")) for number in range(12)]
        assert server.ask("GET", "/teams/beta/history", "beta").status_code == 200
        assert server.publish(good("beta", newest(server, "beta"))).status_code == 200
        back = {"version": 2**50}
        assert server.ask("POST", "/teams/alpha/rollback", "platform", json=back).status_code == 404
        answers = [future.result() for future in asked]
    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(409) >= 5, codes.count(503) >= 1) == (1, True, True), codes
    assert {answer.headers["Retry-After"] for answer in answers if answer.status_code == 503} == {"10"}


class NotedTurns(Turns):
    """Notes whose turn it is. When the call then begins is up to its thread."""

    def __init__(self, in_one_queue: int) -> None:
        super().__init__(in_one_queue)
        self.order: list[str] = []

    async def _turn(self, queue: str) -> None:
        await super()._turn(queue)
        self.order.append(queue)


def test_queues_take_turns() -> None:
    called: list[str] = []

    async def asked() -> list[str]:
        turns = NotedTurns(in_one_queue=20)
        much = [asyncio.create_task(turns.run("much", called.append, "much")) for _ in range(20)]
        await asyncio.sleep(0)
        gone = asyncio.create_task(turns.run("gone", called.append, "gone"))
        few = [asyncio.create_task(turns.run("few", called.append, "few")) for _ in range(2)]
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(*much, *few)
        # All turns have come back.
        await asyncio.gather(*(turns.run(name, called.append, "again") for name in "abc"))
        return turns.order

    order = asyncio.run(asked())
    assert (called.count("much"), called.count("gone"), called.count("again")) == (20, 0, 3)
    # Two at once have begun, and then each queue has one turn after another.
    assert [number for number, name in enumerate(order) if name == "few"][-1] <= 7, order


def ask(server: Server, text: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10)
    connection.sendall(text.encode())
    return connection


def has_answer(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def is_cut(connection: socket.socket) -> bool:
    try:
        return has_answer(connection) and not connection.recv(1)
    except ConnectionResetError:
        return True


def test_polls_do_not_take_all_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = Server(tmp_path / "server")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        server.prepare()
        assert server.publish(good("alpha", 1)).status_code == 200
        eventually(lambda: server.bundle("production").status_code == 200)
        etag = server.bundle("production").headers["ETag"]
        poll = (
            f"GET /bundles/production HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.tokens['reader']}\r\n"
            f"If-None-Match: {etag}\r\nPrefer: wait=60\r\n\r\n"
        )
        polls = [ask(server, poll) for _ in range(300)]
        eventually(lambda: sum(has_answer(one) for one in polls) == 300 - 128)
        waiting = [one for one in polls if not has_answer(one)]
        answered = [one for one in polls if one not in waiting]
        said = [one.recv(4000).decode().lower() for one in answered]
        # Nobody is refused: who comes when all places are taken gets that of one that asks for nothing more.
        assert all(answer.startswith("http/1.1 304") and "openpolicyagent" not in answer for answer in said), said
        assert len([one for one in answered if is_cut(one)]) >= 300 - 192
        for one in answered:
            one.close()
        assert server.publish(good("alpha", 2)).status_code == 200
        assert waiting[0].recv(4000).startswith(b"HTTP/1.1 200")
    finally:
        server.stop()


def test_a_token_that_is_revoked_while_it_waits_is_refused(server: Server) -> None:
    assert server.publish(good("alpha", newest(server, "alpha"))).status_code == 200
    reader = server.ask("POST", "/tokens", json={"kind": "reader"}).json()
    team = server.ask("POST", "/tokens", json={"kind": "team", "team_id": "alpha"}).json()
    eventually(lambda: server.bundle("production", reader["secret"]).status_code == 200)
    waits = {"If-None-Match": server.bundle("production").headers["ETag"], "Prefer": "wait=60"}
    upload = ask(
        server,
        f"PUT /teams/alpha/package HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {team['secret']}\r\n"
        "Content-Length: 2\r\n\r\nx",
    )
    with ThreadPoolExecutor(1) as pool:
        polled = pool.submit(server.bundle, "production", reader["secret"], **waits)
        server.ask("DELETE", f"/tokens/{reader['id']}").raise_for_status()
        server.ask("DELETE", f"/tokens/{team['id']}").raise_for_status()
        time.sleep(1.1)
        upload.sendall(b"x")
        assert upload.recv(100).startswith(b"HTTP/1.1 401")
        assert server.publish(good("alpha", newest(server, "alpha"), "other")).status_code == 200
        assert polled.result().status_code == 401


def test_who_asks_for_what_there_is_not_does_not_wait(server: Server) -> None:
    began = time.monotonic()
    answer = server.bundle("nothing", **{"If-None-Match": '"x"', "Prefer": "wait=60"})
    assert (answer.status_code, time.monotonic() - began < 30) == (404, True)
