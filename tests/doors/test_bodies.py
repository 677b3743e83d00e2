"""Where a changed resource really goes is read from the request's body, which reaches Airflow as it came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import httpx
import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, PoolDetails, VariableDetails
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi import FastAPI, Request

from airflow_team_authz.doors import users
from airflow_team_authz.doors.bodies import TeamChange, TeamChanges, team_change
from airflow_team_authz.doors.users import TeamAuthorization, build_manager
from airflow_team_authz.engines import Answer
from airflow_team_authz.model import Decision, Evaluations, Provenance

Message = dict[str, Any]
Asked = list[tuple[str, Any, Any]]
NOTHING = TeamChange()
KEEPS = TeamChange(keeps_team=True)
ONE = "/api/v2/connections/pg"
MANY = "/api/v2/connections"
DETAILS: dict[str, Callable[..., Any]] = {
    "connection": ConnectionDetails,
    "pool": PoolDetails,
    "variable": VariableDetails,
}


class Seen(NamedTuple):
    """What the app behind the middleware saw."""

    change: TeamChange
    body: bytes
    messages: list[Message]


def cut(body: bytes, pieces: int = 1) -> list[Message]:
    """A body as a server delivers it, in about so many messages."""
    size = len(body) // pieces + 1
    messages: list[Message] = [
        {"type": "http.request", "body": body[at : at + size], "more_body": True}
        for at in range(0, pieces * size, size)
    ]
    messages[-1]["more_body"] = False
    return messages


def through(messages: Sequence[Message], path: str = ONE, method: str = "PATCH", kind: str = "http") -> Seen:
    """Hands a request through the middleware to an app that reads all of it, and what comes after."""
    waiting = [*messages, {"type": "http.disconnect"}]
    seen: list[Seen] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def app(_scope: Message, receive: Callable[[], Awaitable[Message]], _send: object) -> None:
        got = []
        while not got or got[-1]["type"] != "http.disconnect":
            got.append(await receive())
        body = b"".join(message.get("body", b"") for message in got)
        seen.append(Seen(team_change(), body, got))

    scope = {"type": kind, "path": path} | ({"method": method} if kind == "http" else {})

    async def request() -> None:
        await TeamChanges(app)(scope, receive, None)
        assert team_change() == NOTHING, "it outlives the request"

    asyncio.run(request())
    return seen[0]


def change(document: object, path: str = ONE, method: str = "PATCH") -> TeamChange:
    body = json.dumps(document).encode()
    seen = through(cut(body), path, method)
    assert seen.body == body
    return seen.change


def bulk(action: str, *entities: object) -> dict[str, Any]:
    return {"actions": [{"action": action, "entities": list(entities)}]}


def common(*ids: str) -> TeamChange:
    return TeamChange(to_common=frozenset(ids))


@pytest.mark.parametrize("collection", ["connections", "variables", "pools"])
@pytest.mark.parametrize("prefix", ["", "/airflow", "/deep/er"])
def test_a_patch_of_one_tells_whether_it_names_a_team(collection: str, prefix: str) -> None:
    for name in ("x", "a/b", "größe", "x/", "api/v2/dags"):
        path = f"{prefix}/api/v2/{collection}/{name}"
        assert change({"description": "new"}, path) == KEEPS
        assert change({"description": "new", "team_name": None}, path) == NOTHING
        assert change({"team_name": "beta"}, path) == NOTHING
        assert change({"TEAM_NAME": None, "teamName": None, "extra": {"team_name": None}}, path) == KEEPS


@pytest.mark.parametrize(
    ("collection", "field"),
    [("connections", "connection_id"), ("variables", "key"), ("pools", "name"), ("pools", "pool")],
)
def test_a_bulk_patch_tells_what_it_takes_from_teams(collection: str, field: str) -> None:
    path = f"/api/v2/{collection}"
    taken, left = {field: "taken", "team_name": None}, {field: "left"}
    given = {field: "given", "team_name": "beta"}
    assert change(bulk("update", taken, left, given), path) == common("taken")
    assert change(bulk("update", left, given), path) == NOTHING
    several = {"actions": [*bulk("update", taken)["actions"], *bulk("update", taken | {field: "too"})["actions"]]}
    assert change(several, path) == common("taken", "too")
    assert change(bulk("delete", "taken", "left"), path) == NOTHING


def test_variables_that_a_bulk_patch_creates_become_common() -> None:
    new, null = {"key": "new", "team_name": "alpha"}, {"key": "null", "team_name": None}
    made = frozenset({"new", "null"})
    assert change(bulk("create", new, null), "/api/v2/variables") == TeamChange(False, frozenset({"null"}), made)
    assert change(bulk("update", new), "/api/v2/variables") == NOTHING
    for collection, field in (("connections", "connection_id"), ("pools", "name")):
        assert change(bulk("create", {field: "new", "team_name": "alpha"}), f"/api/v2/{collection}") == NOTHING


HUGE = json.dumps({"value": "x" * 8_000_000}).encode()
UNREADABLE = {
    "empty": b"",
    "not JSON": b"team_name=alpha",
    "cut off": b'{"team_name": nul',
    "not UTF-8": b'{"value": "\xff\xfe"}',
    "deeper than Python can read": b"[" * 200_000,
    "a number longer than Python reads": b'{"slots": ' + b"9" * 10_000 + b"}",
    "a list": b'[{"connection_id": "pg", "team_name": null}]',
    "a text": b'"team_name"',
}
ODD: dict[str, object] = {
    "no actions": {},
    "actions that are null": {"actions": None},
    "actions that are a text": {"actions": "update"},
    "an action that is a text": {"actions": ["update", None, 7]},
    "entities that are null": {"actions": [{"action": "create", "entities": None}]},
    "entities that are an object": {"actions": [{"action": "create", "entities": {"key": "x", "team_name": None}}]},
    "entities that are texts": bulk("create", "x", None, 7, ["team_name"]),
    "an entity without id": bulk("create", {"team_name": None}),
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("path", [ONE, MANY, "/api/v2/variables"])
def test_what_cannot_be_read_says_nothing_and_is_airflows_to_refuse(body: bytes, path: str) -> None:
    seen = through(cut(body), path)
    assert (seen.change, seen.body) == (NOTHING, body)


@pytest.mark.parametrize("document", ODD.values(), ids=ODD)
def test_a_bulk_patch_of_another_form_says_nothing(document: object) -> None:
    assert change(document, "/api/v2/variables") == NOTHING


def test_ids_that_are_no_texts_are_compared_as_texts() -> None:
    assert change(bulk("update", {"key": 7, "team_name": None}), "/api/v2/variables") == common("7")


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("body", [HUGE, b'{"value": "gr\xc3\xb6\xc3\x9fe \xf0\x9f\x9a\x80"}'], ids=["huge", "small"])
def test_a_body_in_pieces_is_read_whole_and_handed_on_as_it_came(body: bytes, pieces: int) -> None:
    messages = cut(body, pieces)
    seen = through(messages)
    assert seen.change == KEEPS
    assert seen.messages == [*messages, {"type": "http.disconnect"}]


def test_a_client_that_goes_away_is_seen_to() -> None:
    first = {"type": "http.request", "body": b'{"team_name"', "more_body": True}
    seen = through([first])
    assert seen.change == NOTHING
    assert seen.messages == [first, {"type": "http.disconnect"}]
    assert through([{"type": "http.request"}]).messages == [{"type": "http.request"}, {"type": "http.disconnect"}]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", MANY),
        ("PUT", ONE),
        ("GET", ONE),
        ("DELETE", ONE),
        ("PATCH", "/api/v2/dags/daily"),
        ("PATCH", "/api/v2/connections2/pg"),
        ("PATCH", "/api/v1/connections/pg"),
    ],
)
def test_other_requests_are_not_looked_at(method: str, path: str) -> None:
    seen = through(cut(b'{"description": "new"}', 3), path, method)
    assert seen.change == NOTHING
    assert len(seen.messages) == 4


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_are_not_looked_at(kind: str) -> None:
    assert through([{"type": f"{kind}.startup"}], kind=kind).messages[0] == {"type": f"{kind}.startup"}


def test_requests_at_the_same_time_have_their_own_changes() -> None:
    app = FastAPI()
    everybody = asyncio.Event()
    arrived: list[str] = []

    @app.patch("/api/v2/pools/{name}")
    async def patch(name: str, request: Request) -> list[Any]:
        arrived.append(name)
        if len(arrived) == 6:
            everybody.set()
        await everybody.wait()
        return [team_change().keeps_team, await request.json()]

    app.add_middleware(TeamChanges)
    bodies: list[dict[str, Any]] = [
        {"slots": number} | ({"team_name": None} if number % 2 else {}) for number in range(6)
    ]

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://airflow") as client:
            return await asyncio.gather(
                *(client.patch(f"/api/v2/pools/p{number}", json=body) for number, body in enumerate(bodies))
            )

    assert [answer.json() for answer in asyncio.run(send())] == [["team_name" not in body, body] for body in bodies]


class Generous:
    """A policy that allows everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: Asked = []

    def weigh(self, question: Evaluations) -> tuple[Answer, Provenance]:
        self.asked += [(question.action, resource.team_id, resource.id) for resource in question.resources]
        return Answer([Decision(True, (), "baseline")] * len(question.resources), ""), Provenance("", 0)

    def settle(self, _: Evaluations, answer: Answer, __: Provenance) -> Answer:
        return answer


PUT_X, POST_X, DELETE_X = ("PUT", "x", None), ("POST", "x", None), ("DELETE", "x", "alpha")
DESTINATIONS: dict[str, tuple[str, object, list[tuple[str, str, str | None]], Asked]] = {
    "one that stays": ("connections/x", {}, [PUT_X], [("update", "alpha", "x")]),
    "one that becomes common": ("connections/x", {"team_name": None}, [PUT_X], [("update", None, "x")]),
    "one whose owner airflow knows": ("pools/x", {}, [("PUT", "x", "beta")], [("update", "beta", "x")]),
    "one that is deleted": ("variables/x", {}, [("DELETE", "x", None)], [("delete", None, "x")]),
    "many of which one becomes common": (
        "connections",
        bulk("update", {"connection_id": "x", "team_name": None}, {"connection_id": "y"}),
        [("PUT", "x", "alpha"), ("PUT", "y", "alpha")],
        [("update", "alpha", "x"), ("update", "alpha", "y"), ("update", None, "x")],
    ),
    "a new one of a team": (
        "pools",
        bulk("create", {"name": "x", "team_name": "alpha"}),
        [POST_X, ("POST", "x", "alpha")],
        [("create", "alpha", "x")],
    ),
    "a new common one": ("pools", bulk("create", {"name": "x"}), [POST_X], [("create", None, "x")]),
    "the same twice, once common": (
        "pools",
        bulk("create", {"name": "x", "team_name": "alpha"}, {"name": "x"}),
        [POST_X, ("POST", "x", "alpha"), POST_X],
        [("create", "alpha", "x"), ("create", None, "x")],
    ),
    "a new variable, which airflow makes common": (
        "variables",
        bulk("create", {"key": "x", "team_name": "alpha"}),
        [POST_X, ("POST", "x", "alpha"), DELETE_X],
        [("create", "alpha", "x"), ("create", None, "x"), ("delete", "alpha", "x")],
    ),
}


@pytest.mark.parametrize(("path", "document", "requests", "expected"), DESTINATIONS.values(), ids=DESTINATIONS)
def test_the_policy_is_asked_about_where_resources_really_go(
    monkeypatch: pytest.MonkeyPatch, path: str, document: object, requests: list[Any], expected: Asked
) -> None:
    type_ = path.partition("/")[0].removesuffix("s")
    monkeypatch.setitem(users._OWNERS, type_, lambda _: "alpha")
    manager: TeamAuthorization = build_manager()()
    policy = vars(manager)["_policy"] = Generous()
    user = SimpleAuthManagerUser(username="ann", role="op", teams=["alpha"])

    async def app(*_: object) -> None:
        decide: Callable[..., bool] = getattr(manager, f"batch_is_authorized_{type_}")
        asked = [{"method": method, "details": DETAILS[type_](id_, team)} for method, id_, team in requests]
        assert decide(asked, user=user)

    async def receive() -> Message:
        return cut(json.dumps(document).encode())[0]

    scope = {"type": "http", "method": "PATCH", "path": f"/api/v2/{path}"}
    asyncio.run(TeamChanges(app)(scope, receive, None))
    assert sorted(policy.asked, key=str) == sorted(expected, key=str)
