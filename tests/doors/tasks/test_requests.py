"""Requests of tasks to the guarded Execution API: what it asks, allows and refuses."""

from __future__ import annotations

import contextlib
import json
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from airflow import settings
from airflow.api_fastapi.execution_api import app as execution_api
from airflow.api_fastapi.execution_api import routes as api_routes
from airflow.api_fastapi.execution_api import security
from airflow.api_fastapi.execution_api.routes import execution_api_router
from airflow.models import Variable
from airflow.models.taskinstance import TaskInstance
from fastapi import APIRouter
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from sqlalchemy import select

from airflow_team_authz.doors import routes, tasks
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import machines, requests
from airflow_team_authz.model import UnreachableError
from tests.decision_log.conftest import Made
from tests.doors.tasks.conftest import (
    ARCHIVED,
    DAGS,
    GONE,
    INSTANCES,
    STRANGERS_POOL,
    WITH_STATE,
    Api,
    everything,
    needs_state,
    read,
)

XCOM = "xcoms/{}/r/work/return_value"
OTHER_XCOM = "xcoms/{}/r/other/return_value"
# What a task of alpha asks for: allowed for its own, refused for beta's.
SCENES: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    "read a connection": ("GET", "connections/{}", {"alpha": "alpha_db", "beta": "beta_db"}, {}),
    "read a variable": ("GET", "variables/{}", {"alpha": "alpha_key", "beta": "beta_key"}, {}),
    "trigger a Dag": ("POST", "dag-runs/{}/new", {"alpha": "alpha_daily", "beta": "beta_daily"}, {"json": {}}),
    "clear a run": ("POST", "dag-runs/{}/r/clear", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "read a run": ("GET", "dag-runs/{}/r", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "read a run's state": ("GET", "dag-runs/{}/r/state", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "count runs": ("GET", "dag-runs/count?dag_id={}", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "read a Dag": ("GET", "dags/{}", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "count tasks": ("GET", "task-instances/count?dag_id={}", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "read states": ("GET", "task-instances/states?dag_id={}", {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "read an XCom": ("GET", XCOM, {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "count XComs": ("HEAD", XCOM, {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "write an XCom": ("POST", OTHER_XCOM, {"alpha": "alpha_daily", "beta": "beta_daily"}, {"json": "1"}),
    "delete an XCom": ("DELETE", OTHER_XCOM, {"alpha": "alpha_daily", "beta": "beta_daily"}, {}),
    "write a variable": ("PUT", "variables/{}", {"alpha": "alpha_key", "beta": "beta_key"}, {"json": {"val": "2"}}),
    "delete a variable": ("DELETE", "variables/{}", {"alpha": "alpha_old", "beta": "beta_key"}, {}),
}


ATTEMPTS: dict[str, str | UUID] = {"the present attempt": "alpha", "an archived attempt": ARCHIVED}


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("scene", SCENES)
def test_a_task_reaches_its_own_and_not_anothers(api: Api, scene: str, attempt: str) -> None:
    method, path, ids, more = SCENES[scene]
    before = everything()
    refused = api.call(ATTEMPTS[attempt], method, path.format(ids["beta"]), **more)
    assert refused.status_code == 403
    if method != "HEAD":
        assert refused.json()["detail"]["reason"] == "access_denied"
        assert "task alpha_daily.work may not" in refused.json()["detail"]["message"]
        assert "of team beta" in refused.json()["detail"]["message"]
    assert everything() == before
    # What follows is whether the reason may be told.
    assert [entrypoint for entrypoint, _ in api.engine.asked].count("decisions") == 1

    api.engine.asked.clear()
    mine = api.call(ATTEMPTS[attempt], method, path.format(ids["alpha"]), **more)
    assert mine.status_code not in {401, 403, 503}
    assert len(api.engine.asked) == 1


# What Airflow finds by a name that need not be there; and what it finds only if nobody hides the rows.
FOUND_BY_NAME = ["read a connection", "read a variable", "delete a variable"]
FOUND_OR_NOT = ["trigger a Dag", "clear a run", "write an XCom", "delete an XCom"]


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("who", DAGS)
@pytest.mark.parametrize("scene", sorted(SCENES.keys() - {"write a variable"}))
def test_anothers_is_answered_like_what_is_not_there(api: Api, scene: str, who: str | None) -> None:
    method, path, ids, more = SCENES[scene]
    before = everything()
    for owner in {"alpha", "beta"} - {who}:
        there, missing = (api.call(who, method, path.format(id_), **more) for id_ in (ids[owner], "not_there"))
        assert there.status_code == missing.status_code, owner
        assert there.text.replace(ids[owner], "not_there") == missing.text
        assert there.status_code < 500
    assert everything() == before


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("scene", sorted(SCENES.keys() - {*FOUND_BY_NAME, *FOUND_OR_NOT}))
def test_what_airflow_would_find_is_refused_without_its_owner(
    api: Api, scene: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_rows_are_hidden", False)
    method, path, ids, more = SCENES[scene]
    before = everything()
    for who in ("alpha", None):
        refused = api.call(who, method, path.format(ids["beta"]), **more)
        assert refused.status_code == 403
        assert "team beta" not in refused.text
    assert everything() == before


def test_common_things_are_read_and_not_written(api: Api) -> None:
    assert api.call("alpha", "GET", "connections/db").status_code == 200
    assert api.call("alpha", "GET", "variables/key").json()["value"] == "1"
    assert api.call("alpha", "GET", "dags/daily").status_code != 403
    before = everything()
    for method, path, more in (
        ("PUT", "variables/key", {"json": {"val": "2"}}),
        ("DELETE", "variables/key", {}),
        ("POST", "dag-runs/daily/new", {"json": {}}),
        ("POST", "xcoms/daily/r/work/x", {"json": "1"}),
    ):
        answer = api.call("alpha", method, path, **more)
        assert answer.status_code == 403, path
        assert "that takes a task without a team" in answer.json()["detail"]["message"]
    assert everything() == before


def test_a_task_without_a_team_has_what_is_common(api: Api) -> None:
    assert api.call(None, "PUT", "variables/new_common", json={"val": "1"}).status_code == 201
    assert ("new_common", None) in _variables()
    assert api.call(None, "DELETE", "variables/new_common").status_code == 204
    assert api.call(None, "GET", "connections/db").status_code == 200
    assert api.call(None, "GET", "connections/alpha_db").status_code == 403
    assert api.call(None, "POST", "xcoms/alpha_daily/r/work/x", json="1").status_code == 403


def _variables() -> set[tuple[str, str | None]]:
    assert settings.Session is not None
    with settings.Session() as session:
        return {(key, team_id) for key, team_id in session.execute(select(Variable.key, Variable.team_name))}


def test_what_a_task_creates_is_its_teams(api: Api) -> None:
    assert api.call("alpha", "PUT", "variables/größe 🚀/a", json={"val": "1"}).status_code == 201
    assert api.engine.asked[-1][1]["action"] == "create"
    assert ("größe 🚀/a", "alpha") in _variables()
    assert api.call("beta", "PUT", "variables/größe 🚀/a", json={"val": "2"}).status_code == 403
    assert api.call("alpha", "PUT", "variables/größe 🚀/a", json={"val": "3"}).status_code == 201
    assert api.engine.asked[-1][1]["action"] == "update"
    assert api.call("alpha", "GET", "variables/größe 🚀/a").json()["value"] == "3"
    assert api.call("alpha", "DELETE", "variables/größe 🚀/a").status_code == 204
    assert ("größe 🚀/a", "alpha") not in _variables()


def test_what_a_task_reports_of_itself_is_no_decision(api: Api) -> None:
    for method, path in (("POST", "xcoms/alpha_daily/r/work/x"), ("DELETE", "xcoms/alpha_daily/r/work/x")):
        assert api.call("alpha", method, path, **({"json": "1"} if method == "POST" else {})).status_code < 300
    assert api.engine.asked == []
    # Another run of the same task is not itself.
    api.call("alpha", "POST", "xcoms/alpha_daily/elsewhen/work/x", json="1")
    assert len(api.engine.asked) == 1


def test_what_a_teams_policy_lends_is_found(api: Api) -> None:
    # alpha's package lends this connection to beta: without us Airflow answers 404.
    answer = api.call("beta", "GET", "connections/alpha_warehouse")
    assert answer.status_code == 200
    assert answer.json()["conn_id"] == "alpha_warehouse"
    assert api.call("beta", "GET", "connections/alpha_db").status_code == 403


@needs_state
def test_keys_are_those_that_could_be_read(api: Api) -> None:
    listed = {who: api.call(who, "GET", "variables/keys").json() for who in DAGS}
    for who, answer in listed.items():
        single = [key for key, _ in sorted(_variables()) if api.call(who, "GET", f"variables/{key}").status_code == 200]
        assert answer == {"keys": single, "total_entries": len(single)}
    assert "beta_key" in listed["beta"]["keys"]
    assert "beta_key" not in listed["alpha"]["keys"] + listed[None]["keys"]


@needs_state
def test_what_a_task_asked_is_recorded_and_its_secrets_are_not(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Made("all", "none")
    monkeypatch.setattr(tasks, "decision_point", lambda: DecisionPoint(api.engine, recorded.log))
    refused = api.call(
        "alpha", "PUT", "variables/beta_key?MARKED=MARKED", json={"val": "MARKED", "description": "MARKED"}
    )
    assert api.call("alpha", "GET", "variables/keys?prefix=alpha&MARKED=MARKED").status_code == 200
    put, listed = recorded.records()
    assert refused.json()["detail"]["message"] == f"{put['custom']['told']} (decision {put['decision_id']})"
    assert put["custom"]["door"] == listed["custom"]["door"] == "tasks"
    assert put["custom"]["request"] == {"method": "PUT", "path": "/variables/beta_key"}
    assert put["input"]["subject"]["run_id"] == "r"
    assert put["input"]["subject"]["task_id"] == "work"
    assert listed["custom"]["outcome"] == "list"
    assert "MARKED" not in json.dumps([put, listed])


def test_what_is_refused_without_a_question_is_recorded_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Made("denied")
    monkeypatch.setattr(tasks, "decision_point", lambda: DecisionPoint(api.engine, recorded.log))
    monkeypatch.delitem(routes.ROUTES, ("GET", "/connections/{connection_id}"))
    refused = api.call("alpha", "GET", "connections/alpha_db")
    (record,) = recorded.records()
    assert refused.status_code == 403
    assert f"(decision {record['decision_id']})" in refused.json()["detail"]["message"]
    assert record["input"]["resource"]["id"] == "GET /connections/{connection_id}"
    assert record["input"]["subject"]["type"] == "task"
    assert record["custom"]["request"]["path"] == "/connections/alpha_db"


def test_without_a_decision_the_answer_tells_the_record(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Made("denied")

    class Gone:
        def query(self, *_: object) -> Any:
            raise UnreachableError("nobody answers")

    monkeypatch.setattr(tasks, "decision_point", lambda: DecisionPoint(Gone(), recorded.log))
    answer = api.call("alpha", "GET", "connections/alpha_db")
    (record,) = recorded.records()
    assert answer.status_code == 503
    assert f"(decision {record['decision_id']})" in answer.json()["detail"]["message"]
    assert record["error"]["code"] == "Unreachable"


@needs_state
def test_pages_of_keys(api: Api) -> None:
    whole = api.call("alpha", "GET", "variables/keys").json()["keys"]
    assert len(whole) > 2
    page = api.call("alpha", "GET", "variables/keys?limit=1&offset=1").json()
    assert page == {"keys": whole[1:2], "total_entries": len(whole)}
    assert api.call("alpha", "GET", "variables/keys?prefix=alpha_k").json()["keys"] == ["alpha_key"]
    assert api.call("alpha", "GET", "variables/keys?prefix=%25").json()["keys"] == []
    for query in ("limit=0", "limit=10001", "offset=-1", "limit=many", "limit="):
        assert api.call("alpha", "GET", f"variables/keys?{query}").status_code == 422


def test_a_pool_is_asked_about_when_the_task_starts(api: Api) -> None:
    body = {"state": "running", "hostname": "h", "unixname": "u", "pid": 1, "start_date": "2026-01-01T00:00:00Z"}
    refused = api.call(STRANGERS_POOL, "PATCH", f"task-instances/{STRANGERS_POOL}/run", json=body)
    assert refused.status_code == 403
    # A task sees no pools, so it is not told whose this one is.
    assert refused.json()["detail"]["message"] == "task alpha_daily.greedy may not use pool beta_pool"
    own = INSTANCES["alpha"]
    api.call(own, "PATCH", f"task-instances/{own}/run", json=body)
    asked = api.engine.asked[-1][1]
    assert (asked["action"], asked["resources"]) == ("use", [{"type": "pool", "id": "default_pool", "team_id": None}])
    # Airflow's own check goes first: nobody starts another's task.
    assert api.call("beta", "PATCH", f"task-instances/{own}/run", json=body).status_code == 403


class Noting(dict[str, Any]):
    """Parameters of a request, of which one is there whatever it is called; keeps what was looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return str(UUID(int=1))

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        return self[name]

    def __contains__(self, name: object) -> bool:
        raise AssertionError(f"whether there is {name} is not for the table to ask")


# Parameters that choose among what belongs to the resource which the others name.
WITHIN = {
    "after", "ascending", "before", "dag_result", "include_prior_dates", "key", "limit", "logical_date",
    "logical_dates", "map_index", "mapped_length", "offset", "run_id", "run_ids", "start", "state", "states", "step",
    "stop", "task_group_id", "task_id", "task_ids",
}  # fmt: skip


def _taken(route: APIRoute) -> tuple[set[str], set[str]]:
    """The parameters that a handler and what it depends on take, of path and query."""
    flat = get_flat_dependant(route.dependant)
    queries = {
        name
        for field in flat.query_params
        for name in (getattr(field.field_info.annotation, "model_fields", None) or {field.alias})
    }
    return {field.alias for field in flat.path_params}, queries


def _guarded_routes() -> dict[tuple[str, str], APIRoute]:
    return {
        (method, route.path): route
        for route in execution_api_router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


@pytest.mark.parametrize("about", [about for about, route in routes.ROUTES.items() if route], ids=" ".join)
def test_the_table_reads_the_parameters_that_the_handler_takes(filled: None, about: tuple[str, str]) -> None:  # noqa: ARG001
    route = routes.ROUTES[about]
    assert route is not None
    path, query = Noting(), Noting()
    assert settings.Session is not None
    with settings.Session() as session, contextlib.suppress(routes.MissingError):
        route.resource(routes.Request(path, query, machines.triggerer(None), session))
    if about not in _guarded_routes():
        pytest.skip("this Airflow has no such route")
    in_path, in_query = _taken(_guarded_routes()[about])
    assert path.read <= in_path
    assert query.read <= in_query
    # And all of them that name something.
    assert (in_path | in_query) - WITHIN <= path.read | query.read


def test_an_archived_attempt_has_what_its_task_has(api: Api) -> None:
    own = "xcoms/alpha_daily/r/work/left"
    assert api.call(ARCHIVED, "POST", own, params={"map_index": 0}, json="1").status_code == 201
    for who in ATTEMPTS.values():
        assert api.call(who, "GET", own, params={"map_index": 0}).json() == {"key": "left", "value": "1"}
    assert api.call(ARCHIVED, "DELETE", own, params={"map_index": 0}).status_code == 200
    assert api.engine.asked[-1][1]["subject"] == api.engine.asked[0][1]["subject"]
    assert read(api, ARCHIVED, "db") == read(api, "alpha", "db")
    if WITH_STATE:
        keys = api.call(ARCHIVED, "GET", "variables/keys")
        assert keys.json() == api.call("alpha", "GET", "variables/keys").json()
        assert "alpha_key" in keys.json()["keys"]


_AT = "2026-01-01T00:00:00Z"
REPORTS: dict[str, tuple[str, str, Any]] = {
    "starts": ("PATCH", "run", {"state": "running", "hostname": "h", "unixname": "u", "pid": 1, "start_date": _AT}),
    "succeeds": ("PATCH", "state", {"state": "success", "end_date": _AT}),
    "fails": ("PATCH", "state", {"state": "failed", "end_date": _AT}),
    "tries again": ("PATCH", "state", {"state": "up_for_retry", "end_date": _AT}),
    "lives": ("PUT", "heartbeat", {"hostname": "h", "pid": 1}),
    "skips": ("PATCH", "skip-downstream", {"tasks": ["work"]}),
    "renders": ("PUT", "rtif", {"x": "1"}),
    "renders its index": ("PATCH", "rendered-map-index", "x"),
}


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("gone", [ARCHIVED, GONE], ids=["archived", "gone"])
def test_an_archived_attempt_reports_nothing_of_the_next(api: Api, report: str, gone: UUID) -> None:
    method, path, body = REPORTS[report]
    assert settings.Session is not None
    with settings.Session() as session:
        following = session.scalar(select(TaskInstance.id).where(TaskInstance.map_index == 0))
        before = session.execute(select(TaskInstance.__table__)).all()
    assert following is not None
    answer = api.call(gone, method, f"task-instances/{gone}/{path}", json=body)
    assert answer.status_code in {403, 404, 410}, answer.text
    # The token is for this attempt alone.
    assert api.call(gone, method, f"task-instances/{following}/{path}", json=body).status_code == 403
    with settings.Session() as session:
        assert session.execute(select(TaskInstance.__table__)).all() == before


@pytest.mark.parametrize("gone", [uuid4(), GONE], ids=["never there", "deleted"])
def test_a_token_of_no_task_gets_nothing(api: Api, gone: UUID) -> None:
    for method, path in (
        ("GET", "connections/db"),
        ("GET", "variables/keys"),
        ("GET", "dags/daily"),
        ("GET", XCOM.format("daily")),
    ):
        answer = api.call(gone, method, path)
        assert answer.status_code == 403
        assert "not there any more" in answer.json()["detail"]["message"]
    assert api.engine.asked == []


@pytest.mark.parametrize(
    "token",
    ["", "nonsense", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIwIn0.", "🚀"],
    ids=["none", "nonsense", "unsigned", "unicode"],
)
def test_no_token_no_question(api: Api, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
    answer = api.client.get("/connections/db", headers=headers)
    assert answer.status_code in {401, 403}
    assert api.engine.asked == []


def test_no_decision_is_an_error_that_airflow_tries_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def weigh(self, _: Any) -> Any:
            raise UnreachableError("nobody answers at unix:///x")

        allowed = weigh

    monkeypatch.setattr(tasks, "decision_point", Gone)
    before = everything()
    for method, path, more in (
        ("GET", "connections/alpha_db", {}),
        ("GET", "variables/keys", {}),
        ("PUT", "variables/alpha_key", {"json": {"val": "2"}}),
    ):
        answer = api.call("alpha", method, path, **more)
        assert answer.status_code == 503
        assert answer.json()["detail"]["reason"] == "no_decision"
        assert "nobody answers" in answer.json()["detail"]["message"]
    assert everything() == before


def test_the_schema_holds_what_a_task_is(api: Api) -> None:
    api.call("alpha", "GET", "dags/daily")
    assert api.engine.asked[-1][1]["subject"] == {
        "type": "task",
        "id": "alpha_daily.work",
        "dag_id": "alpha_daily",
        "task_id": "work",
        "run_id": "r",
        "team_ids": ["alpha"],
    }


def test_every_route_of_airflow_is_in_the_table() -> None:
    found = {
        (method, route.path)
        for route in execution_api_router.routes
        if isinstance(route, APIRoute) and route.path not in routes.PUBLIC
        for method in route.methods
    }
    # Airflow 3.2 has fewer.
    assert found == set(routes.ROUTES) & found
    assert found == set(routes.ROUTES) or not WITH_STATE


def test_an_unknown_route_is_denied(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(routes.ROUTES, ("GET", "/dags/{dag_id}"))
    answer = api.call("alpha", "GET", "dags/alpha_daily")
    assert answer.status_code == 403
    assert "is unknown to this version" in answer.json()["detail"]["message"]


def test_a_route_without_a_token_keeps_the_api_from_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    router = APIRouter()
    router.add_api_route("/secrets", lambda: "everything")
    monkeypatch.setattr(api_routes, "execution_api_router", router)
    with pytest.raises(tasks.NotGuardedError, match="/secrets"):
        execution_api.create_task_execution_api_app()
    monkeypatch.setattr(api_routes, "execution_api_router", APIRouter())
    with pytest.raises(tasks.NotGuardedError, match="no routes"):
        execution_api.create_task_execution_api_app()


def test_a_check_of_xcoms_that_nobody_knows_keeps_the_api_from_serving() -> None:
    module = ModuleType("airflow.api_fastapi.execution_api.routes.xcoms")
    vars(module)["has_xcom_access"] = lambda dag_id, session, purpose: (dag_id, session, purpose)
    with pytest.raises(tasks.NotGuardedError, match="checks XComs"):
        tasks.guard(module)


def test_guarding_twice_is_guarding_once(api: Api) -> None:
    for module in (security, execution_api):
        tasks.guard(module)
    assert tasks._airflows.require_auth is not tasks.decide
    assert api.call("alpha", "GET", "connections/alpha_db").status_code == 200


def test_who_acts_is_forgotten_afterwards(api: Api) -> None:
    with machines.acting(lambda _: machines.triggerer("alpha")):
        assert api.call(machines.NO_TASK, "GET", "connections/alpha_db").status_code == 200
        # A token says more than who makes the request.
        assert api.call("beta", "GET", "connections/alpha_db").status_code == 403
    assert api.call(machines.NO_TASK, "GET", "connections/alpha_db").status_code == 403
