"""Connections to OPA: kept, one per thread, tried again once, bound by the deadline, and where they lead to."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.engines import CHUNK, DecisionPoint, opa_server
from airflow_team_authz.engines.opa_server import parse_url
from airflow_team_authz.model import (
    DeadlineExceededError,
    Evaluations,
    NotAnsweringError,
    Resource,
    UnreachableError,
)
from tests.support.fake_opa import (
    ALLOW,
    DEADLINE_MS,
    GOOD,
    QUESTION,
    Connect,
    FakeOpa,
    allow,
    answer,
    close,
    never,
    result,
)


def test_connections_are_kept(fake: FakeOpa, decisions: DecisionPoint) -> None:
    for _ in range(5):
        decisions.decide(QUESTION)
    assert fake.connections == 1
    fake.answers = [answer(ALLOW, "200 OK", "Connection: close")]
    decisions.decide(QUESTION)
    decisions.decide(QUESTION)
    assert fake.connections == 2


def test_each_thread_has_its_own_connection(fake: FakeOpa, decisions: DecisionPoint) -> None:
    ready = threading.Barrier(4)

    def ask() -> None:
        decisions.decide(QUESTION)
        ready.wait(5)
        decisions.decide(QUESTION)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (fake.connections, len(fake.questions)) == (4, 8)


def test_a_stale_connection_is_retried_exactly_once(fake: FakeOpa, decisions: DecisionPoint) -> None:
    def then_close(connection: socket.socket) -> None:
        connection.sendall(GOOD)
        time.sleep(0.05)
        close(connection)

    fake.answers = [then_close]
    decisions.decide(QUESTION)
    time.sleep(0.3)
    assert allow(decisions) is True
    assert (fake.connections, len(fake.questions)) == (2, 2)
    # Closed only when the question is there already: a kept connection is tried again, a new one is not.
    fake.answers = [close, close]
    with pytest.raises(UnreachableError):
        decisions.decide(QUESTION)
    assert (fake.connections, len(fake.questions)) == (3, 4)
    fake.answers = [close]
    with pytest.raises(UnreachableError):
        decisions.decide(QUESTION)
    assert (fake.connections, len(fake.questions)) == (4, 5)


def test_the_retry_has_no_deadline_of_its_own(connect: Connect, fake: FakeOpa, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = connect(fake.url, 1_000)
    decisions.decide(QUESTION)
    waits: list[Any] = []
    wait = opa_server._Wait

    def noted(seconds: float, *breaker: Any) -> opa_server._Wait:
        # Whoever looks at its health waits without one.
        waits.extend(breaker)
        return wait(seconds, *breaker)

    monkeypatch.setattr(opa_server, "_Wait", noted)

    def late_close(connection: socket.socket) -> None:
        time.sleep(0.3)
        close(connection)

    fake.answers = [late_close, never]
    with pytest.raises((DeadlineExceededError, NotAnsweringError)):
        decisions.decide(QUESTION)
    assert len(waits) == 1


def test_nobody_listens(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="No such file"):
        connect(f"unix://{tmp_path}/missing.sock").decide(QUESTION)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "bound.sock"))
        with pytest.raises(UnreachableError, match="refused"):
            connect(f"unix://{tmp_path}/bound.sock").decide(QUESTION)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnreachableError, match="refused"):
        connect(f"http://127.0.0.1:{port}").decide(QUESTION)
    with pytest.raises(UnreachableError):
        connect(f"unix://{tmp_path}/{'x' * 200}.sock").decide(QUESTION)
    with pytest.raises(UnreachableError):
        connect(f"http://{'x' * 70}.invalid:1").decide(QUESTION)


@pytest.mark.parametrize(
    "url",
    ["", "opa", "/run/opa.sock", "unix://", "unix:", "unix://run/opa.sock", "ftp://h:1", "http://", "http://:8181",
     "http://h:port", "http://h:99999", "http://user@h:1", "http://user:pw@h:1", "http://:pw@h:1", "http://h:1/?a=b",
     "http://h:1/#x", "http://h:1/a b", "http://h:1/a\r\nHost: x", "http://h:1/ü", "http://hü:1", "file:///x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"unix:///path/to/socket|[Pp]ort"):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("unix:///run/opa.sock", ("unix", "", 0, "/run/opa.sock")),
        ("unix:/run/opa.sock", ("unix", "", 0, "/run/opa.sock")),
        ("unix:///run/my%20opa.sock", ("unix", "", 0, "/run/my opa.sock")),
        ("http://opa", ("http", "opa", 8181, "")),
        ("http://[::1]:81/behind/a/proxy/", ("http", "::1", 81, "/behind/a/proxy")),
        ("https://opa:443", ("https", "opa", 443, "")),
    ],
)
def test_an_address_is_read_as_it_is_written(url: str, address: tuple[object, ...]) -> None:
    assert tuple(parse_url(url)) == address


def test_a_path_before_the_api_is_kept(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a general client would take for a proxy, even for loopback.
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = FakeOpa(listener)
        assert allow(connect(f"{fake.url}/behind/it", DEADLINE_MS)) is True
    assert fake.questions[0].startswith(b"POST /behind/it/v1/data/airflow/authz/decisions?")


def test_of_several_addresses_the_first_that_answers_is_taken(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = (socket.AF_INET, socket.SOCK_STREAM, 6, "", closed.getsockname())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = FakeOpa(listener)
        living = (socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [dead, living])
        assert allow(connect("http://opa", DEADLINE_MS)) is True
        assert fake.connections == 1


def test_each_question_of_a_list_adds_to_the_deadline(
    connect: Connect, fake: FakeOpa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opa_server, "_SECONDS_PER_RESOURCE", 0.01)
    decisions = connect(fake.url, 200)

    def after_the_deadline_of_one(connection: socket.socket) -> None:
        time.sleep(0.4)
        connection.sendall(result("[]"))

    many = Evaluations(QUESTION.subject, "read", [Resource("dag", None, str(number)) for number in range(CHUNK)])
    fake.answers = [after_the_deadline_of_one, after_the_deadline_of_one]
    assert decisions.allowed(many) == []
    with pytest.raises(DeadlineExceededError):
        decisions.allowed(QUESTION)
