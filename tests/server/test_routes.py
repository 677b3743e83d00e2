"""Every route for every kind of token: who gets an answer, and that nothing of another team's is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import create_engine

from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.server.app import create_app
from airflow_team_authz.server.releases import Releases
from tests.server.conftest import Server, good, newest

# What only alpha and the platform may see: in its rules, in what is frozen, in the names of its tokens' clients.
ALPHAS_OWN = "nobodyelse"
PLATFORM, ALPHA, BETA, READER, OF_ALPHA, OF_BETA = "platform", "alpha", "beta", "reader", "narrow", "of_beta"
NOBODY = {"without a token": None, "a wrong token": "taz_abc_def", "a revoked token": "revoked"}
EVERYBODY = {PLATFORM, ALPHA, BETA, READER, OF_ALPHA, OF_BETA}
OWNERS = {PLATFORM, ALPHA}


class Request(NamedTuple):
    """What is asked of a route about alpha, who gets further than 403 or 401, and whose answer may hold its secret."""

    path: str
    allowed: set[str]
    told: frozenset[str] | set[str] = frozenset()
    body: dict[str, Any] | None = None


# AuthZEN's questions about what alpha lends.
_ANN, _READ = {"type": "user", "id": "ann"}, {"name": "read"}
_LENT = {"type": "connection", "id": ALPHAS_OWN, "properties": {"team_id": "alpha"}}
_ASKED = {
    "evaluation": {"subject": _ANN, "action": _READ, "resource": _LENT},
    "evaluations": {"subject": _ANN, "action": _READ, "evaluations": [{"resource": _LENT}]},
    "search/subject": {"subject": {"type": "user"}, "action": _READ, "resource": _LENT},
    "search/resource": {"subject": _ANN, "action": _READ, "resource": {"type": "connection"}},
    "search/action": {"subject": _ANN, "resource": _LENT},
}
_WITH_REASONS = {"evaluation", "evaluations"}
# For whoever may, nothing changes, since what is asked for is not there, or wrong, or the same as before.
TABLE: dict[str, list[Request]] = {
    "GET /bundles/{name}": [
        Request("/bundles/production", {PLATFORM, READER}, {PLATFORM, READER}),
        Request("/bundles/production.wasm", {PLATFORM, READER}, {PLATFORM, READER}),
        Request("/bundles/production.team.alpha", {PLATFORM, READER, OF_ALPHA}, {PLATFORM, READER, OF_ALPHA}),
        Request("/bundles/production.team.nobody", {PLATFORM, READER}),
    ],
    "PUT /teams/{team_id}/package": [Request("/teams/alpha/package", OWNERS, OWNERS)],
    "GET /teams/{team_id}/package": [Request("/teams/alpha/package?version=1", OWNERS, OWNERS)],
    "GET /teams/{team_id}/history": [Request("/teams/alpha/history", OWNERS)],
    "GET /teams/{team_id}/diff": [Request("/teams/alpha/diff?from=1&to=2", OWNERS, OWNERS)],
    "POST /teams/{team_id}/rollback": [Request("/teams/alpha/rollback", OWNERS, body={"version": 2**50})],
    "POST /teams/{team_id}/promote": [Request("/teams/alpha/promote", OWNERS, body={"from": "no", "to": "no"})],
    "PUT /teams/{team_id}/keys": [Request("/teams/alpha/keys", {PLATFORM}, body={"pem": ""})],
    "PUT /platform/package": [Request("/platform/package", {PLATFORM})],
    "GET /platform/package": [Request("/platform/package?version=1", {PLATFORM})],
    "GET /platform/history": [Request("/platform/history", {PLATFORM})],
    "GET /platform/diff": [Request("/platform/diff?from=1&to=1", {PLATFORM})],
    "POST /platform/rollback": [Request("/platform/rollback", {PLATFORM}, body={"version": 2**50})],
    "POST /platform/promote": [Request("/platform/promote", {PLATFORM}, body={"from": "no", "to": "no"})],
    "PUT /platform/keys": [Request("/platform/keys", {PLATFORM}, body={"pem": ""})],
    "GET /teams": [Request("/teams", {PLATFORM})],
    "POST /logs": [Request("/logs", {PLATFORM, READER, OF_ALPHA, OF_BETA})],
    "POST /logs/{partition}": [Request("/logs/x", {PLATFORM, READER, OF_ALPHA, OF_BETA})],
    "GET /decisions": [Request("/decisions", {PLATFORM, ALPHA, BETA})],
    "GET /metrics": [Request("/metrics", {PLATFORM, READER, OF_ALPHA, OF_BETA})],
    "GET /freeze": [Request("/freeze", {PLATFORM, ALPHA, BETA}, OWNERS)],
    "POST /freeze": [Request("/freeze", {PLATFORM}, body={"scope": "environment:no", "reason": "x"})],
    "DELETE /freeze": [Request("/freeze?scope=environment:no", {PLATFORM})],
    "GET /approvals": [Request("/approvals", {PLATFORM, ALPHA, BETA})],
    "GET /approvals/{id_}": [Request("/approvals/7", {PLATFORM, ALPHA, BETA})],
    "POST /approvals/{id_}/approve": [Request("/approvals/7/approve", {PLATFORM}, body={"seen": "0" * 32})],
    "POST /approvals/{id_}/refuse": [Request("/approvals/7/refuse", {PLATFORM, ALPHA, BETA}, body={"reason": "x"})],
    "POST /tokens": [Request("/tokens", {PLATFORM}, body={"kind": "team"})],
    "GET /tokens": [Request("/tokens", {PLATFORM})],
    "DELETE /tokens/{id_}": [Request("/tokens/no", {PLATFORM})],
    "POST /status": [Request("/status", EVERYBODY - {ALPHA, BETA}, body={"labels": {"id": "of the table"}})],
    "GET /status": [Request("/status", {PLATFORM}, {PLATFORM})],
    # There are two environments, so it has to be named.
    **{f"POST /access/v1/{name}": [Request(f"/access/v1/{name}", EVERYBODY, body=_ASKED[name])] for name in _ASKED},
    **{
        f"POST /{{environment}}/access/v1/{name}": [
            Request(
                f"/production/access/v1/{name}",
                # It finds resources that the caller may ask about, which may be none.
                EVERYBODY if name == "search/resource" else OWNERS,
                OWNERS if name in _WITH_REASONS else set(),
                _ASKED[name],
            )
        ]
        for name in _ASKED
    },
    "GET /.well-known/authzen-configuration": [Request("/.well-known/authzen-configuration", EVERYBODY | set(NOBODY))],
    "GET /.well-known/authzen-configuration/{environment}": [
        Request("/.well-known/authzen-configuration/production", EVERYBODY | set(NOBODY))
    ],
    "GET /": [Request("/", set())],
    "GET /health": [Request("/health", EVERYBODY | set(NOBODY))],
    "GET /openapi.json": [Request("/openapi.json", EVERYBODY | set(NOBODY))],
}


def routes() -> set[str]:
    """Of the application, as it has them."""
    engine = create_engine("sqlite://")
    app = create_app(engine, lambda changed: Releases(engine, SigningKey.new(), ["production"], None, changed))
    found = set[str]()
    for route in app.routes:
        methods = getattr(route, "methods", None)
        assert methods, f"{route} is of another kind than HTTP: the table has none of that kind"
        found |= {f"{method} {route.path}" for method in methods - {"HEAD"}}  # type: ignore[attr-defined]
        assert isinstance(route, APIRoute) or route.path == "/openapi.json"  # type: ignore[attr-defined]
    return found


def test_the_table_has_every_route() -> None:
    assert routes() == TABLE.keys()


@pytest.fixture(scope="module")
def asked(server: Server) -> Iterator[Server]:
    """The server, with alpha's secret wherever something of alpha's is kept."""
    first = newest(server, "alpha")
    assert first == 1 or server.ask("GET", "/teams/alpha/package?version=1").is_success
    for connection in ("pg", ALPHAS_OWN):
        assert server.publish(good("alpha", newest(server, "alpha"), connection)).status_code == 200
    server.ask("POST", "/freeze", json={"scope": "team:alpha", "reason": ALPHAS_OWN}).raise_for_status()
    report = {
        "labels": {"id": ALPHAS_OWN, "host": ALPHAS_OWN},
        "bundles": {ALPHAS_OWN: {"code": "x", "message": ALPHAS_OWN}},
    }
    server.ask("POST", "/status", OF_ALPHA, json=report).raise_for_status()
    for name, wanted in ((OF_BETA, {"bundle": "production.team.beta"}), ("revoked", {})):
        made = server.ask("POST", "/tokens", json={"kind": "reader", **wanted}).json()
        server.tokens[name] = made["secret"]
    server.ask("DELETE", f"/tokens/{made['id']}").raise_for_status()
    yield server
    server.ask("DELETE", "/freeze?scope=team:alpha").raise_for_status()


def requests(server: Server) -> Iterator[tuple[str, Request, str, httpx.Response]]:
    """Each request of the table by each kind of caller, and the answer."""
    last = newest(server, "alpha") - 1
    for route, wanted in TABLE.items():
        for request in wanted:
            # The secret is in the newest version.
            path = request.path.replace("version=1", f"version={last}") if "teams" in request.path else request.path
            path = path.replace("from=1&to=2", f"from={last - 1}&to={last}") if "teams" in path else path
            for who in [*EVERYBODY, *NOBODY]:
                token = NOBODY.get(who, who)
                sent = {"json": request.body} if request.body is not None else {}
                yield route, request, who, server.ask(route.partition(" ")[0], path, token, **sent)


def test_each_route_answers_those_of_the_table_and_tells_no_others_secret(asked: Server) -> None:
    wrong = []
    for route, request, who, answer in requests(asked):
        allowed, code = who in request.allowed, answer.status_code
        refused = code in ({401} if who in NOBODY or route == "GET /" else {403})
        if allowed == refused or code >= 500:
            wrong.append(f"{route} {request.path} by {who}: {code} {answer.text[:200]}")
        shown = ALPHAS_OWN in json.dumps(dict(answer.headers)) + answer.text or ALPHAS_OWN.encode() in unpacked(answer)
        if shown != (who in request.told):
            wrong.append(f"{route} {request.path} by {who} {'shows' if shown else 'lacks'} what is alpha's")
    assert wrong == []


def unpacked(answer: httpx.Response) -> bytes:
    """What is in a bundle."""
    from airflow_team_authz.opa.archive import unpack

    if answer.headers.get("Content-Type") != "application/vnd.openpolicyagent.bundles":
        return b""
    return b"".join(unpack(answer.content).values())


def test_a_refusal_is_the_same_for_what_there_is_and_what_there_is_not(asked: Server) -> None:
    """So a token tells nothing about teams, versions, bundles and freezes of others."""
    for who in (BETA, READER, OF_BETA):
        for method, path in (
            ("GET", "/teams/{}/history"),
            ("GET", "/teams/{}/package?version=1"),
            ("GET", "/teams/{}/diff?from=1&to=2"),
            ("PUT", "/teams/{}/package"),
            ("GET", "/bundles/production.team.{}"),
        ):
            there, nowhere = (asked.ask(method, path.format(team), who) for team in ("alpha", "nobody"))
            if (who, path) == (READER, "/bundles/production.team.{}"):
                continue
            assert (there.status_code, there.text.replace("alpha", "nobody")) == (nowhere.status_code, nowhere.text)
            assert there.status_code == 403
