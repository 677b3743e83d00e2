"""Half-sent requests and answers that nobody takes hold the server from nobody else."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from airflow_team_authz.server import connections
from demo.airflow import free_port
from tests.bundles.test_configurations import started
from tests.conftest import REPOSITORY, eventually
from tests.server.conftest import Server, good

# More than the server below may open files.
MANY = 300
HALF = {
    "nothing": "",
    "a line": "GET /health HTT",
    "headers": "GET /health HTTP/1.1\r\nHost: x\r\nX: ",
    "a body for all": "POST /tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{",
    "a package": "PUT /teams/alpha/package HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\nx",
    "answers that are not read": "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 8,
    "an upgrade": "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
}


def connect(port: int, sent: str) -> socket.socket:
    connection = socket.socket()
    # So that an answer that is not read stays in the server.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    connection.sendall(sent.encode())
    return connection


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may open few files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = Server(tmp_path_factory.mktemp("small"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            server.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server.prepare()
        assert server.publish(good("alpha", 1)).status_code == 200
        eventually(lambda: server.bundle("production").status_code == 200)
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("sent", HALF)
def test_half_sent_requests_keep_nobody_out(small: Server, sent: str) -> None:
    port = int(small.url.rpartition(":")[2])
    held = list[socket.socket]()
    try:
        with ThreadPoolExecutor(8) as pool:
            held += pool.map(lambda _: connect(port, HALF[sent]), range(MANY))
        for _ in range(5):
            assert small.bundle("production").status_code == 200
            assert small.ask("GET", "/teams/alpha/history", "alpha").status_code == 200
        assert httpx.get(f"{small.url}/health").json()["ok"] is True
    finally:
        for connection in held:
            connection.close()


async def application(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Answers late, and with as many bytes as the path says."""
    assert scope["type"] == "http"
    await receive()
    await asyncio.sleep(1.5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * int(scope["path"].removeprefix("/"))})


@contextmanager
def serving(most: int | None = None) -> Iterator[int]:
    """The port of a server that holds so many connections."""
    config = uvicorn.Config(
        application, port=0, http=connections.Connection, lifespan="off", log_level="error", limit_concurrency=most
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_work_of_a_connection_that_was_cut_off_counts_for_nobody() -> None:
    with serving(4) as port, ExitStack() as held:
        # Their work goes on for a while after they were cut off.
        for _ in range(20):
            held.enter_context(connect(port, "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nx"))
        assert httpx.get(f"http://127.0.0.1:{port}/1").status_code == 200


def test_where_all_wait_for_the_server_a_further_one_is_told_so() -> None:
    with serving(4) as port, ExitStack() as held:
        for _ in range(3):
            held.enter_context(connect(port, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"))
        # So that the server has read them: who has sent nothing yet would lose its place.
        threading.Event().wait(0.3)
        assert httpx.get(f"http://127.0.0.1:{port}/1").status_code == 503


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that waits for its clients half a second."""
    monkeypatch.setattr(connections, "SECONDS", dict.fromkeys(connections.SECONDS, 0.5))
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.05)
    with serving() as port:
        yield port


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "GET /1 HTTP/1.1\r\nHost: x\r\nX: ",
        "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nx",
    ],
)
def test_who_sends_no_whole_request_is_cut_off(hurried: int, sent: str) -> None:
    with connect(hurried, sent) as connection, suppress(ConnectionResetError):
        assert connection.recv(1000) == b""


def test_who_does_not_take_an_answer_is_cut_off(hurried: int) -> None:
    size = 20_000_000
    assert len(httpx.get(f"http://127.0.0.1:{hurried}/{size}").content) == size
    with connect(hurried, f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        taken = 0
        # Whatever the server has handed on comes, then the end.
        threading.Event().wait(5)
        with suppress(ConnectionResetError):
            while part := connection.recv(1_000_000):
                taken += len(part)
        assert taken < size


def test_who_waits_for_the_server_is_not_cut_off(hurried: int) -> None:
    with connect(hurried, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        # Nor between two requests, if the second comes soon.
        connection.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1000).startswith((b"HTTP/1.1 200", b"x"))


NGINX = """
daemon off; pid {place}/nginx.pid; error_log stderr warn; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;
  uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;
  server {{ listen 127.0.0.1:{port}; {settings} location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}
}}
"""


def test_behind_the_documented_proxy_half_sent_requests_do_not_reach_the_server(tmp_path: Path) -> None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        assert "REQUIRE_ALL" not in os.environ
        pytest.skip("nginx is not installed")
    (block,) = re.findall(r"```nginx\n(.*?)```", (REPOSITORY / "docs" / "bundle-server.md").read_text(), re.DOTALL)
    assert "client_header_timeout 10s;" in block
    block = block.replace("client_header_timeout 10s;", "client_header_timeout 1s;")
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(10)
        told = {"place": tmp_path, "port": port, "settings": block, "upstream": upstream.getsockname()[1]}
        tmp_path.chmod(0o755)
        (tmp_path / "nginx.conf").write_text(NGINX.format(**told))
        command = [program, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-g", "user root;"]
        with started(command, tmp_path, {}):
            eventually(lambda: listens(port))
            late = [connect(port, sent) for name, sent in HALF.items() if name in {"a line", "headers"}]
            slow = [connect(port, sent) for name, sent in HALF.items() if name in {"a body for all", "a package"}]
            for connection in late:
                assert connection.recv(1000) == b""
            honest = connect(port, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            # The first that the server hears of is the whole one, though it was sent last.
            reached, _ = upstream.accept()
            assert reached.recv(1000).startswith(b"GET /health")
            reached.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert honest.recv(1000).startswith(b"HTTP/1.1 200")
            for connection in (*late, *slow, honest, reached):
                connection.close()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
