"""The policy's reason reaches whoever was refused, in place of the bare refusal and of nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from airflow_team_authz.doors import decision_point, refusals
from airflow_team_authz.doors.refusals import RefusalReasons, remember_refusal
from tests.decision_log.conftest import Made

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
HTTP: Message = {"type": "http", "method": "GET", "path": "/"}
BARE = b'{"detail":"Forbidden"}'
TOLD = b'{"detail": "Forbidden: because"}'


def start(status: int, body: bytes = BARE, *headers: tuple[bytes, bytes]) -> Message:
    length = (b"content-length", str(len(body)).encode())
    return {"type": "http.response.start", "status": status, "headers": [length, *headers]}


def parts(*bodies: bytes) -> list[Message]:
    """A body in pieces, of which the last says that it is."""
    said: list[Message] = [{"type": "http.response.body", "body": body, "more_body": True} for body in bodies]
    said[-1]["more_body"] = False
    return said


def passed(messages: Sequence[Message], *reasons: str, scope: Message = HTTP) -> list[Message]:
    """What a server gets to send of an app that sends these messages after these refusals."""
    sent: list[Message] = []

    async def app(_scope: Message, _receive: object, send: Send) -> None:
        for reason in reasons:
            remember_refusal(reason)
        for message in messages:
            await send(message)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(RefusalReasons(app)(scope, None, send))
    return sent


def body_of(messages: Sequence[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages[1:])


@pytest.mark.parametrize(
    "pieces",
    [
        (BARE,),
        (BARE, b""),
        (b"", BARE),
        (b'{"detail"', b':"Forbidden"}'),
        (b'{"detail"', b':"Forbidden"}', b""),
        tuple(bytes([byte]) for byte in BARE),
    ],
    ids=len,
)
def test_a_bare_refusal_says_why_however_it_is_cut(pieces: tuple[bytes, ...]) -> None:
    sent = passed([start(403), *parts(*pieces)], "because")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 403
    assert body_of(sent) == TOLD
    assert not sent[1].get("more_body")


def test_headers_stay_but_for_the_length() -> None:
    others = [(b"content-type", b"application/json"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    for name in (b"content-length", b"Content-Length"):
        first = {"type": "http.response.start", "status": 403, "headers": [(name, b"22"), *others]}
        sent = passed([first, *parts(BARE)], "because")
        assert sent[0]["headers"] == [*others, (b"content-length", str(len(TOLD)).encode())]


def test_each_reason_is_said_once_and_in_order() -> None:
    sent = passed([start(403), *parts(BARE)], "second", "first", "second")
    assert body_of(sent) == b'{"detail": "Forbidden: second; first"}'


def test_a_reason_is_text_whatever_is_in_it() -> None:
    reason = 'quote " backslash \\ line\nbreak </script> größe 🚀'
    assert httpx.Response(403, content=body_of(passed([start(403), *parts(BARE)], reason))).json() == {
        "detail": f"Forbidden: {reason}"
    }


UNCHANGED: dict[str, list[Message]] = {
    "a page": [start(200), *parts(BARE)],
    "not found": [start(404), *parts(BARE)],
    "not logged in": [start(401), *parts(BARE)],
    "no decision": [start(503), *parts(BARE)],
    "another refusal": [start(403), *parts(b'{"detail":"You are not a respondent"}')],
    "another refusal that begins alike": [start(403), *parts(b'{"detail":"Forbidden"', b',"code":1}')],
    "a longer refusal": [start(403), *parts(BARE, b"\n")],
    "a shorter refusal": [start(403), *parts(b'{"detail":"Forb')],
    "a refusal in other words": [start(403), *parts(b'{"detail": "Forbidden"}')],
    "a text": [start(403), *parts(b"Forbidden")],
    "an empty refusal": [start(403), *parts(b"")],
    "a body without bytes": [start(403), {"type": "http.response.body"}],
    "a refused stream": [start(403), *parts(b"", b"{", b'"detail"', b"more", b"and more", b"")],
    "a file that the server sends": [start(403), {"type": "http.response.pathsend", "path": "/403.html"}],
    "a file after a part": [start(403), *parts(b"{", b"")[:1], {"type": "http.response.pathsend", "path": "/403.html"}],
    "early hints": [{"type": "http.response.early_hint", "links": []}, start(200), *parts(b"x")],
    "trailers": [start(200), *parts(b"x"), {"type": "http.response.trailers", "headers": []}],
}


@pytest.mark.parametrize("messages", UNCHANGED.values(), ids=UNCHANGED)
def test_everything_else_passes_unchanged(messages: list[Message]) -> None:
    assert passed(messages, "because") == messages


def test_a_bare_refusal_without_a_reason_stays_bare() -> None:
    messages = [start(403), *parts(b'{"detail"', b':"Forbidden"}')]
    assert passed(messages) == messages


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_pass_unchanged(kind: str) -> None:
    messages = [start(403), *parts(BARE)]
    assert passed(messages, "because", scope={"type": kind}) == messages


def test_a_stream_is_not_held_back() -> None:
    sent: list[Message] = []

    async def app(_scope: Message, _receive: object, send: Send) -> None:
        # Each part arrives before the next is made; a refusal's parts as soon as they differ.
        for status in (200, 403):
            await send(start(status))
            for number, part in enumerate((b"x", b"y"), start=1):
                await send({"type": "http.response.body", "body": part, "more_body": True})
                assert [message.get("body") for message in sent][-number:] == [b"x", b"y"][:number]

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(RefusalReasons(app)(HTTP, None, send))
    assert len(sent) == 6


def test_a_reason_outside_of_a_request_is_forgotten() -> None:
    remember_refusal("of nobody")
    assert body_of(passed([start(403), *parts(BARE)])) == BARE


def test_a_reason_does_not_outlive_its_request_even_if_that_fails() -> None:
    async def failing(_scope: Message, _receive: object, _send: Send) -> None:
        remember_refusal("of the failed one")
        raise ConnectionError("the client is gone")

    async def refused(_scope: Message, _receive: object, send: Send) -> None:
        for message in (start(403), *parts(BARE)):
            await send(message)

    async def both() -> bytes:
        # One task, as with a connection that is kept.
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        with pytest.raises(ConnectionError):
            await RefusalReasons(failing)(HTTP, None, send)
        assert refusals._refusals.get() is None
        remember_refusal("between the requests")
        await RefusalReasons(refused)(HTTP, None, send)
        return body_of(sent)

    assert asyncio.run(both()) == BARE


@pytest.fixture
def app() -> FastAPI:
    """Refuses as Airflow does, on the event loop and in threads, when as many requests wait as are told to."""
    app = FastAPI()
    arrived = threading.Barrier(4, timeout=20)
    waiting = asyncio.Event()

    def refuse(reason: str) -> None:
        remember_refusal(reason)
        raise HTTPException(403, "Forbidden")

    @app.get("/thread/{name}")
    def in_thread(name: str) -> None:
        remember_refusal(f"first {name}")
        arrived.wait()
        refuse(f"then {name}")

    @app.get("/loop/{name}")
    async def on_loop(name: str) -> None:
        remember_refusal(f"first {name}")
        if name == "3":
            waiting.set()
        await waiting.wait()
        refuse(f"then {name}")

    @app.get("/allowed")
    async def allowed() -> str:
        # A list that left something out, say.
        remember_refusal("not asked for")
        return "yes"

    @app.get("/bare")
    async def bare() -> None:
        raise HTTPException(403, "Forbidden")

    @app.get("/other")
    async def other() -> None:
        remember_refusal("because")
        raise HTTPException(403, "You are not a respondent")

    app.add_middleware(RefusalReasons)
    return app


async def fetch(app: FastAPI, paths: Sequence[str]) -> list[httpx.Response]:
    """The answers to requests that run at the same time."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://airflow") as client:
        return await asyncio.gather(*(client.get(path) for path in paths))


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_requests_at_the_same_time_get_their_own_reasons(app: FastAPI, where: str) -> None:
    answers = asyncio.run(fetch(app, [f"/{where}/{number}" for number in range(4)]))
    assert [answer.status_code for answer in answers] == [403] * 4
    assert [answer.json() for answer in answers] == [
        {"detail": f"Forbidden: first {number}; then {number}"} for number in range(4)
    ]
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}


def test_what_fastapi_says_is_what_is_replaced(app: FastAPI) -> None:
    # If FastAPI changes these bytes, people are told no reasons any more.
    allowed, bare, other = asyncio.run(fetch(app, ["/allowed", "/bare", "/other"]))
    assert (allowed.status_code, allowed.json()) == (200, "yes")
    assert (bare.status_code, bare.content) == (403, BARE)
    assert (other.status_code, other.json()) == (403, {"detail": "You are not a respondent"})


def test_a_server_that_stops_has_written_its_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Made("denied")
    monkeypatch.setattr(decision_point, "open_log", lambda *_: recorded.log)
    decision_point.forget()
    written: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        decision_point.decision_log()
        await send({"type": "lifespan.startup.complete"})
        recorded.decided()
        recorded.decided()
        await send({"type": "lifespan.shutdown.complete"})

    async def server(_: Any) -> None:
        written.append(len(recorded.sink.records))

    asyncio.run(RefusalReasons(app)({"type": "lifespan"}, None, server))
    # The refusal, and that it came again.
    assert written == [0, 2]
    recorded.decided()
    monkeypatch.undo()
    decision_point.forget()
    assert len(recorded.records()) == 3
