"""Who may see nothing of a type cannot tell what another team has from what does not exist; the log has the reason."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
from airflow.api_fastapi.auth.managers.models import resource_details as details
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

from airflow_team_authz.doors import decision_point, disclosure
from airflow_team_authz.doors.refusals import RefusalReasons
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import requests
from tests.conftest import eventually
from tests.decision_log.conftest import Made
from tests.doors.conftest import OWNED, World

DETAILS: dict[str, Any] = {
    "connection": details.ConnectionDetails,
    "dag": details.DagDetails,
    "pool": details.PoolDetails,
    "variable": details.VariableDetails,
}
METHODS = ("GET", "POST", "PUT", "DELETE")
PARTS = (None, DagAccessEntity.RUN, DagAccessEntity.XCOM)
# Each thing that a team owns, with each part of it, and each method.
FOREIGN = [
    (type_, id_, team, method, part)
    for type_ in DETAILS
    for id_, team in OWNED[type_].items()
    if team is not None
    for method, part in product(METHODS, PARTS if type_ == "dag" else (None,))
]


class Answer(NamedTuple):
    """What a request is answered, and what the request knows at its end."""

    status: int
    body: bytes
    request: requests.Request


def ask(world: World, name: str, user: str, path: str = "/api/v2/x", **arguments: Any) -> Answer:
    """The answer of a route that asks this, and finds nothing if it is allowed to look."""
    sent: list[Any] = []
    ended: list[Any] = []

    async def route(_scope: Any, _receive: Any, send: Any) -> None:
        with requests.before_handler():
            allowed = world.call(name, user, **arguments)
        ended.append(requests.current())
        status, body = (404, b'{"detail":"not found"}') if allowed else (403, b'{"detail":"Forbidden"}')
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def keep(message: Any) -> None:
        sent.append(message)

    asyncio.run(RefusalReasons(route)({"type": "http", "path": path, "root_path": "/at"}, None, keep))
    return Answer(sent[0]["status"], sent[1]["body"], ended[0])


def one(world: World, user: str, type_: str, id_: str, team: str | None, method: str, part: Any = None) -> Answer:
    """Asks about one resource as it would be asked if this team owned it; without a team, if it did not exist."""
    entity = {} if type_ != "dag" else {"access_entity": part}
    return ask(world, f"is_authorized_{type_}", user, method=method, details=DETAILS[type_](id_, team), **entity)


def may(world: World, user: str, type_: str, id_: str | None, team: str | None, part: Any = None) -> bool:
    entity = {} if type_ != "dag" else {"access_entity": part}
    return bool(world.call(f"is_authorized_{type_}", user, method="GET", details=DETAILS[type_](id_, team), **entity))


@pytest.fixture(params=["explain", "conceal"])
def refusals(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each value of the setting."""
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", request.param)
    decision_point.forget()
    yield request.param
    decision_point.forget()


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests see only rows that their subjects may read."""
    monkeypatch.setattr(requests, "_rows_are_hidden", True)


@pytest.mark.usefixtures("hidden", "refusals")
@pytest.mark.parametrize("refusals", ["explain"], indirect=True)
def test_an_owner_is_told_to_those_who_see_something_of_the_type_and_to_nobody_else(world: World) -> None:
    seen = {"told": 0, "alike": 0}
    for user, (type_, id_, team, method, part) in product(world.people, FOREIGN):
        answer = one(world, user, type_, id_, team, method, part)
        if answer.status != 403:
            continue
        if any(may(world, user, type_, *about) for about in ((None, None, part), ("x", None, part), (id_, team, part))):
            assert f"of team {team}" in answer.body.decode() or b"denied" not in answer.body
            seen["told"] += 1
        else:
            assert answer[:2] == one(world, user, type_, id_, None, method, part)[:2], (user, type_, id_, method)
            assert f"team {team}" not in answer.body.decode()
            seen["alike"] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.usefixtures("hidden", "refusals")
@pytest.mark.parametrize("refusals", ["conceal"], indirect=True)
def test_what_one_may_not_read_is_answered_like_what_does_not_exist(world: World) -> None:
    seen = {403: 0, 404: 0, "readable": 0}
    for user, (type_, id_, team, method, part) in product(world.people, FOREIGN):
        answer = one(world, user, type_, id_, team, method, part)
        if may(world, user, type_, id_, team, part) or may(world, user, type_, id_, team):
            seen["readable"] += 1
            continue
        missing = one(world, user, type_, id_, None, method, part)
        if missing.status == 404 and answer.status == 403:
            # Airflow creates by the name, so that it is taken cannot be hidden.
            assert (method, part) == ("POST", None)
            assert f"team {team}" not in answer.body.decode()
            continue
        assert answer[:2] == missing[:2], (user, type_, id_, method, part)
        seen[answer.status] += 1
        # Nobody may take it for allowed, neither under its owner nor as something common.
        assert answer.request.allowed == set()
        assert answer.request.concealed == ({(type_, id_)} if answer.status == 404 else set())
    assert min(seen.values()) > 20, seen


@pytest.mark.usefixtures("refusals")
def test_nothing_is_allowed_where_rows_are_not_hidden(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test of this process may have hidden them.
    monkeypatch.setattr(requests, "_rows_are_hidden", False)
    for user, (type_, id_, team, method, part) in product(("viewer", "nobody"), FOREIGN):
        reached = one(world, user, type_, id_, team, method, part).status == 404
        assert reached is bool(
            world.call(
                f"is_authorized_{type_}",
                user,
                method=method,
                details=DETAILS[type_](id_, team),
                **({} if type_ != "dag" else {"access_entity": part}),
            )
        )
        if reached:
            assert team == "beta" or id_ == "alpha_warehouse"


@pytest.mark.usefixtures("hidden", "refusals")
@pytest.mark.parametrize("refusals", ["conceal"], indirect=True)
@pytest.mark.parametrize("path", ["/at/api/v2/dags/x", "/ui/grid", "/plugin/api/v2/x", "/at/plugin/ui/", "/x/ui/", "/"])
def test_only_airflows_own_routes_go_on_to_find_nothing(world: World, path: str) -> None:
    about = {"method": "GET", "details": details.DagDetails("alpha_daily", "alpha")}
    answer = ask(world, "is_authorized_dag", "viewer", path, **about)
    assert answer.status == (404 if path in {"/at/api/v2/dags/x", "/ui/grid"} else 403)
    assert b"of team alpha" not in answer.body


@pytest.mark.usefixtures("hidden", "refusals")
@pytest.mark.parametrize("type_", DETAILS)
def test_a_batch_with_what_is_hidden_goes_on_with_the_rest(world: World, type_: str) -> None:
    alphas = next(id_ for id_, team in OWNED[type_].items() if team == "alpha")
    asked = [{"method": "GET", "details": DETAILS[type_](*named)} for named in ((alphas, "alpha"), ("x", None))]
    both = ask(world, f"batch_is_authorized_{type_}", "viewer", requests=asked)
    alone = one(world, "viewer", type_, alphas, "alpha", "GET")
    assert both[:2] == alone[:2]
    assert {resource.id for _, resource in both.request.allowed} == ({"x"} if both.status == 404 else set())


@pytest.mark.usefixtures("refusals")
def test_a_rule_about_one_thing_tells_nothing_of_its_owner(world: World) -> None:
    # The example's site denies this one by its name, the baseline by the role.
    existing, missing = (one(world, "nobody", "connection", "audit_store", team, "GET") for team in ("alpha", None))
    assert existing[:2] == missing[:2]


@pytest.mark.usefixtures("refusals")
def test_the_record_that_an_answer_tells_of_has_the_reason_and_does_not_tell_whether_a_thing_exists(
    world: World,
) -> None:
    recorded = Made("denied")
    world.decided_by(DecisionPoint(world.engine, recorded.log))
    existing, missing = (one(world, "nobody", "connection", "audit_store", team, "GET") for team in ("alpha", None))
    assert existing[:2] == missing[:2]
    record, again = recorded.records()
    told = f"{record['custom']['told']} (decision {record['decision_id']})"
    page = f"/auth/decisions?id={record['decision_id']}"
    before, see, address = json.loads(existing.body)["detail"].partition(". See ")
    assert (before, see, address.endswith(page)) == (f"Forbidden: {told}", ". See ", True)
    assert record["custom"]["door"] == "users"
    assert record["custom"]["request"]["path"] == "/api/v2/x"
    assert record["input"]["resource"] == {"type": "connection", "team_id": "alpha", "id": "audit_store"}
    assert again["custom"]["repeated"]["decision_id"] == record["decision_id"]


ONE, OTHER = "01a21b3a-0000-7000-8000-000000000001", "01a21b3a-0000-7000-8000-000000000002"


@pytest.mark.parametrize(
    ("sinks", "base_url", "ids", "told"),
    [
        ("database", "https://airflow.example/x/", [ONE], f". See https://airflow.example/x/auth/decisions?id={ONE}"),
        ("file, database", "", [ONE, "", ONE], f". See /auth/decisions?id={ONE}"),
        ("database", "", [ONE, OTHER], ". See /auth/decisions?denied=true"),
        ("database", "", [""], ""),
        ("file, log", "", [ONE], ""),
        ("none", "", [ONE], ""),
        ("no sink", "", [], ""),
    ],
)
def test_an_answer_names_the_page_that_has_its_record(
    sinks: str, base_url: str, ids: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", sinks)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    decision_point.forget()
    assert disclosure.where_to_look(*ids) == told
    monkeypatch.undo()
    decision_point.forget()


@pytest.mark.usefixtures("refusals")
def test_what_is_refused_without_a_question_is_recorded_too(world: World) -> None:
    recorded = Made("denied")
    world.decided_by(DecisionPoint(world.engine, recorded.log))
    answer = ask(world, "is_authorized_backfill", "op", method="GET")
    (record,) = recorded.records()
    assert json.loads(answer.body)["detail"].partition(". See ")[0].endswith(f" (decision {record['decision_id']})")
    assert (record["input"]["resource"]["type"], record["input"]["subject"]["id"]) == ("route", "sue")
    assert record["result"]["reasons"] == ["user sue: ask about the runs of the backfill's Dag instead"]


@pytest.mark.usefixtures("refusals")
def test_the_log_has_the_whole_reason(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        answer = one(world, "viewer", "connection", "alpha_db", "alpha", "GET")
        # Lines come from a thread of their own, those of tests before too.
        whole = "may not read connection alpha_db of team alpha: that takes the role op in team alpha"
        eventually(lambda: whole in caplog.text)
    told = "Forbidden: user sue may not read connection alpha_db: that takes the role op in any team"
    assert json.loads(answer.body)["detail"] == told
    (line,) = [record.getMessage() for record in caplog.records if whole in record.getMessage()]
    assert line.startswith("denied (")


@pytest.mark.usefixtures("refusals")
def test_who_names_a_team_for_something_new_is_told_what_that_takes(world: World) -> None:
    named = details.ConnectionDetails(None, "beta")
    answer = ask(world, "is_authorized_connection", "nobody", method="POST", details=named)
    told = "user sue may not create a connection of team beta: that takes the role op in team beta"
    assert json.loads(answer.body)["detail"] == f"Forbidden: {told}; sue has no role in any team"
