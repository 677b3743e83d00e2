"""A client is one of the token that reports it: nobody replaces, hides or pushes out what others report."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from airflow_team_authz.opa.archive import read_manifest, unpack
from airflow_team_authz.server import clients
from airflow_team_authz.server.access import READER, Caller
from airflow_team_authz.server.clients import STALE, StatusReport
from airflow_team_authz.server.database import Client, connect
from tests.server.conftest import Server, good, newest
from tests.server.test_commands import run
from tests.server.test_protocol import publish, revision

LABELS = {"id": "prod-host-1", "app": "airflow_team_authz", "host": "prod-host-1"}
# What takes most room of all that a report may hold.
LARGEST: dict[str, Any] = {
    "labels": {"id": "x" * 9999, "app": "y" * 9999, "host": "z" * 9999, "version": "v" * 9999},
    "bundles": {
        f"{number}{'n' * 9999}": {"active_revision": "r" * 100, "code": "c" * 100, "message": "m" * 9999}
        for number in range(4)
    },
}


def token(server: Server, **wanted: str) -> tuple[str, str]:
    """A new token's secret, and how its clients are named."""
    made = server.ask("POST", "/tokens", json={"kind": "reader", **wanted}).json()
    return made["secret"], f"token {made['id']}"


def report(server: Server, who: str, labels: dict[str, str] = LABELS, **bundles: str) -> None:
    said = {name: {"active_revision": revision} for name, revision in bundles.items()}
    server.ask("POST", "/status", who, json={"labels": labels, "bundles": said}).raise_for_status()


def pages(server: Server, limit: int = 100) -> Iterator[dict[str, Any]]:
    after = 0
    while after is not None:
        page = server.ask("GET", f"/status?after={after}&limit={limit}").json()
        yield page
        after = page["next"]


def listed(server: Server, reporter: str, limit: int = 100) -> list[dict[str, Any]]:
    return [state for page in pages(server, limit) for state in page["clients"] if state["reporter"] == reporter]


def alarms(server: Server, reporter: str) -> list[list[str]]:
    return [state["alarms"] for state in listed(server, reporter)]


@pytest.fixture
def database_of(server: Server) -> Iterator[Engine]:
    engine = connect(server.database)
    yield engine
    engine.dispose()


def silence(engine: Engine, reporter: str, ago: timedelta = 2 * STALE) -> None:
    with Session(engine) as session:
        session.execute(update(Client).where(Client.reporter == reporter).values(seen_at=datetime.now(UTC) - ago))
        session.commit()


def test_who_takes_anothers_name_hides_nothing_of_it(server: Server, database_of: Engine) -> None:
    publish(server)
    honest, of_honest = token(server)
    liar, of_liar = token(server, bundle="production.team.gamma")
    report(server, honest, production="old")
    wrong = ["production: runs old, which is not the present one"]
    assert alarms(server, of_honest) == [wrong]
    report(server, liar, production=revision(server))
    assert alarms(server, of_honest) == [wrong]
    silence(database_of, of_honest)
    report(server, liar, production=revision(server))
    ((missed, *rest),) = alarms(server, of_honest)
    assert (missed.partition(" since ")[0], rest) == ("not heard of", wrong)
    (claimed,) = listed(server, of_liar)
    assert (claimed["id"], claimed["bundle"]) == (LABELS["id"], "production.team.gamma")
    # The page tells whose word it is, too.
    shown = httpx.get(server.url, auth=("x", server.tokens["platform"])).text
    assert f"{of_honest} for all bundles" in shown
    assert f"{of_liar} for production.team.gamma" in shown


def test_a_revision_counts_for_the_bundle_that_the_token_fetches(server: Server) -> None:
    publish(server, "beta")
    publish(server)
    narrow, of_narrow = token(server, bundle="production.team.alpha")
    report(server, narrow, airflow=revision(server))
    assert "which is not the present one" in str(alarms(server, of_narrow))
    own = read_manifest(unpack(server.bundle("production.team.alpha").content))["revision"]
    report(server, narrow, airflow=own)
    assert alarms(server, of_narrow) == [[]]


def test_invented_clients_neither_hide_others_nor_make_answers_large(server: Server) -> None:
    honest, of_honest = token(server)
    liar, of_liar = token(server, bundle="production.team.gamma")
    report(server, honest, production="old")

    def invent(number: int) -> int:
        labels = LARGEST["labels"] | {"id": f"{number}-{LARGEST['labels']['id']}"}
        return server.ask("POST", "/status", liar, json=LARGEST | {"labels": labels}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(invent, range(300))) == {200}
    assert len(listed(server, of_liar)) == 300
    assert len(listed(server, of_honest)) == 1
    found = list(pages(server))
    assert [len(page["clients"]) for page in found[:-1]] == [100] * (len(found) - 1)
    assert max(len(json.dumps(page)) for page in found) < 1_000_000
    numbers = [state["number"] for page in found for state in page["clients"]]
    assert numbers == sorted(set(numbers))
    page = httpx.get(server.url, auth=("x", server.tokens["platform"])).text
    assert len(page) < 500_000
    assert "<td>280 more</td>" in page
    assert f"{of_honest} for all bundles" in page
    server.ask("DELETE", f"/tokens/{of_liar.removeprefix('token ')}").raise_for_status()


@pytest.mark.parametrize("wrong", ["limit=0", "limit=101", "after=-1", f"after={2**31}", "after=x"])
def test_a_page_is_one_of_a_list(server: Server, wrong: str) -> None:
    assert server.ask("GET", f"/status?{wrong}").status_code == 422


def test_more_bundles_than_an_opa_has_are_refused(server: Server) -> None:
    bundles: dict[str, dict[str, str]] = {str(number): {} for number in range(5)}
    answer = server.ask("POST", "/status", "reader", json={"labels": LABELS, "bundles": bundles})
    assert answer.status_code == 422


def test_of_one_token_the_oldest_clients_go_and_nothing_of_another(
    database_of: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "KEPT_CLIENTS", 3)
    one, other = (Caller(f"token {secrets.token_hex(6)}", READER) for _ in range(2))

    def told(who: Caller, id_: str) -> None:
        clients.note(database_of, who, StatusReport.model_validate({"labels": {"id": id_}}))

    def known(who: Caller) -> list[str]:
        with Session(database_of) as session:
            named = select(Client.id).where(Client.reporter == who.name).order_by(Client.number)
            return list(session.scalars(named))

    told(other, "alone")
    silence(database_of, other.name, timedelta(days=1))
    for id_ in "abcd":
        told(one, id_)
    assert known(one) == ["b", "c", "d"]
    told(one, "b")
    told(one, "e")
    assert known(one) == ["b", "d", "e"]
    assert known(other) == ["alone"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: told(one, str(number)), range(24)))
    assert len(known(one)) <= 3 + 8
    told(one, "last")
    assert (len(known(one)), known(other)) == (3, ["alone"])


def test_what_a_revoked_token_reported_is_forgotten(server: Server) -> None:
    secret, reporter = token(server)
    report(server, secret, production="old")
    assert len(alarms(server, reporter)) == 1
    server.command("token", "revoke", reporter.removeprefix("token "))
    assert alarms(server, reporter) == []


def test_the_command_shows_all_pages(server: Server) -> None:
    secret, reporter = token(server)
    for number in range(101):
        report(server, secret, LABELS | {"id": f"host-{number}"})
    shown = run(server, "server", "status", who="platform", code=1)
    assert shown.count(f"by {reporter}") == 101
    told = json.loads(run(server, "server", "status", "-o", "json", who="platform", code=1))
    assert len([state for state in told["clients"] if state["reporter"] == reporter]) == 101
    server.ask("DELETE", f"/tokens/{reporter.removeprefix('token ')}").raise_for_status()


def test_what_is_frozen_is_told_to_those_concerned(server: Server) -> None:
    reasons = {"team:alpha": "alpha is audited", "team:beta": "beta is audited", "environment:staging": "it moves"}
    for scope, reason in reasons.items():
        assert server.ask("POST", "/freeze", json={"scope": scope, "reason": reason}).status_code == 200
    try:
        for who, told in (
            ("platform", ["it moves", "alpha is audited", "beta is audited"]),
            ("alpha", ["it moves", "alpha is audited"]),
            ("beta", ["it moves", "beta is audited"]),
        ):
            assert [frozen["reason"] for frozen in server.ask("GET", "/freeze", who).json()] == told
        for who in ("reader", "narrow"):
            answer = server.ask("GET", "/freeze", who)
            assert (answer.status_code, "audited" in answer.text) == (403, False)
        refused = server.publish(good("alpha", newest(server, "alpha")))
        assert (refused.status_code, "alpha is audited" in refused.text) == (423, True)
    finally:
        for scope in reasons:
            server.ask("DELETE", f"/freeze?scope={scope}").raise_for_status()
