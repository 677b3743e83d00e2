"""What one caller sends, asks or holds keeps the server from nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from airflow_team_authz.server import bodies
from tests.server.conftest import Server, told


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
