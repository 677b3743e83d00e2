"""The Execution API as Airflow makes it, guarded: with real tokens, a real database and a real engine."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from airflow import settings
from airflow.api_fastapi.auth.tokens import JWTGenerator
from airflow.api_fastapi.common.dagbag import create_dag_bag
from airflow.api_fastapi.execution_api import app as execution_api
from airflow.api_fastapi.execution_api import routes as api_routes
from airflow.api_fastapi.execution_api import security
from airflow.api_fastapi.execution_api.routes import execution_api_router
from airflow.models import Connection, DagModel, Variable
from airflow.models.asset import (
    AssetActive,
    AssetEvent,
    AssetModel,
    AssetWatcherModel,
    DagScheduleAssetNameReference,
    DagScheduleAssetReference,
    DagScheduleAssetUriReference,
    TaskInletAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagcode import DagCode
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.team import Team
from airflow.models.trigger import Trigger
from airflow.secrets import BaseSecretsBackend
from airflow.secrets.local_filesystem import LocalFilesystemBackend
from fastapi import APIRouter
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import delete, insert, select

from airflow_team_authz.doors import decision_point, routes, tasks
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import machines, requests
from airflow_team_authz.model import UnreachableError
from airflow_team_authz.opa.compile import compile_directory
from tests.conftest import REPOSITORY
from tests.decision_log.conftest import Made
from tests.doors.conftest import Recording

# Airflow 3.2 lists no keys of variables and keeps no state with assets.
WITH_STATE = any(getattr(route, "path", "") == "/variables/keys" for route in execution_api_router.routes)
needs_state = pytest.mark.skipif(not WITH_STATE, reason="this Airflow has no such routes")

DAGS = {"alpha": "alpha_daily", "beta": "beta_daily", None: "daily"}
# A task instance of each team's Dag, with its pool.
INSTANCES = {team_id: uuid4() for team_id in DAGS}
STRANGERS_POOL = uuid4()
# An attempt of the same task as alpha's instance, which is archived since its row is the next attempt's, ...
ARCHIVED = uuid4()
# ... and one that is gone with everything.
GONE = uuid4()


@pytest.fixture(scope="module")
def filled(database: None) -> None:  # noqa: ARG001
    """Runs and tasks of the Dags that the database holds."""
    assert settings.Session is not None
    with settings.Session() as session:
        for number, (team_id, dag_id) in enumerate(DAGS.items()):
            run = {"dag_id": dag_id, "run_id": "r", "run_type": "manual", "state": "running", "clear_number": 0}
            session.execute(insert(DagRun).values(id=number + 1, run_after=_now(), log_template_id=1, **run))
            _add_instance(session, INSTANCES[team_id], dag_id, "work", "default_pool")
        _add_instance(session, STRANGERS_POOL, "alpha_daily", "greedy", "beta_pool")
        for index, id_ in enumerate((ARCHIVED, GONE)):
            _add_instance(session, id_, "alpha_daily", "work", "default_pool", map_index=index)
            session.get_one(TaskInstance, id_).prepare_db_for_next_try(session)
        session.flush()
        for row in (TaskInstance, TaskInstanceHistory):
            session.execute(delete(row).where(row.map_index == 1))
        session.add(Variable(key="alpha_old", val="1", team_name="alpha"))
        session.add_all(AssetActive(name=str(id_), uri=f"s3://{id_}") for id_ in (1, 2))
        session.add(TaskOutletAssetReference(asset_id=1, dag_id="alpha_daily", task_id="work"))
        session.commit()


def _now() -> Any:
    from airflow._shared.timezones import timezone

    return timezone.utcnow()


def _add_instance(session: Any, id_: UUID, dag_id: str, task_id: str, pool: str, map_index: int = -1) -> None:
    values = {"pool_slots": 1, "priority_weight": 1, "try_number": 1, "max_tries": 0, "map_index": map_index}
    named = {"dag_id": dag_id, "task_id": task_id, "run_id": "r", "pool": pool, "state": "queued"}
    session.execute(insert(TaskInstance).values(id=id_, queue="default", operator="x", **named, **values))


class Api(NamedTuple):
    """The guarded Execution API, and who may call it."""

    client: TestClient
    engine: Recording
    generator: JWTGenerator

    def call(self, who: str | UUID | None, method: str, path: str, **more: Any) -> Any:
        subject = who if isinstance(who, UUID) else INSTANCES[who]
        token = self.generator.generate({"sub": str(subject), "scope": "execution"})
        headers = {"Authorization": f"Bearer {token}"}
        return self.client.request(method, f"/{path}", headers=headers, **more)


@pytest.fixture(scope="module")
def opened_api(filled: None, bundles: dict[str, Path]) -> Iterator[Api]:  # noqa: ARG001
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_hex(32))
        patch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        engine = Recording(bundles["example"])
        app = execution_api.create_task_execution_api_app()
        app.state.dag_bag = create_dag_bag()
        with TestClient(app, raise_server_exceptions=False) as client:
            yield Api(client, engine, execution_api._jwt_generator())
        engine.close()


@pytest.fixture
def api(opened_api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    point = DecisionPoint(opened_api.engine)
    monkeypatch.setattr(tasks, "decision_point", lambda: point)
    opened_api.engine.asked.clear()
    return opened_api


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
    before = _everything()
    refused = api.call(ATTEMPTS[attempt], method, path.format(ids["beta"]), **more)
    assert refused.status_code == 403
    if method != "HEAD":
        assert refused.json()["detail"]["reason"] == "access_denied"
        assert "task alpha_daily.work may not" in refused.json()["detail"]["message"]
        assert "of team beta" in refused.json()["detail"]["message"]
    assert _everything() == before
    # What follows is whether the reason may be told.
    assert [entrypoint for entrypoint, _ in api.engine.asked].count("decisions") == 1

    api.engine.asked.clear()
    mine = api.call(ATTEMPTS[attempt], method, path.format(ids["alpha"]), **more)
    assert mine.status_code not in {401, 403, 503}
    assert len(api.engine.asked) == 1


@pytest.fixture
def concealing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", "conceal")
    decision_point.forget()
    yield
    decision_point.forget()


# What Airflow finds by a name that need not be there; and what it finds only if nobody hides the rows.
FOUND_BY_NAME = ["read a connection", "read a variable", "delete a variable"]
FOUND_OR_NOT = ["trigger a Dag", "clear a run", "write an XCom", "delete an XCom"]


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("who", DAGS)
@pytest.mark.parametrize("scene", sorted(SCENES.keys() - {"write a variable"}))
def test_anothers_is_answered_like_what_is_not_there(api: Api, scene: str, who: str | None) -> None:
    method, path, ids, more = SCENES[scene]
    before = _everything()
    for owner in {"alpha", "beta"} - {who}:
        there, missing = (api.call(who, method, path.format(id_), **more) for id_ in (ids[owner], "not_there"))
        assert there.status_code == missing.status_code, owner
        assert there.text.replace(ids[owner], "not_there") == missing.text
        assert there.status_code < 500
    assert _everything() == before


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("scene", sorted(SCENES.keys() - {*FOUND_BY_NAME, *FOUND_OR_NOT}))
def test_what_airflow_would_find_is_refused_without_its_owner(
    api: Api, scene: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_rows_are_hidden", False)
    method, path, ids, more = SCENES[scene]
    before = _everything()
    for who in ("alpha", None):
        refused = api.call(who, method, path.format(ids["beta"]), **more)
        assert refused.status_code == 403
        assert "team beta" not in refused.text
    assert _everything() == before


@needs_state
@pytest.mark.usefixtures("concealing")
def test_anothers_state_of_an_asset_is_answered_like_none(api: Api) -> None:
    for by, value in (("name", "1"), ("uri", "s3://1")):
        about = {by: value, "key": "place"}
        path = f"store/asset/by-{by}/value"
        assert api.call("alpha", "PUT", path, params=about, json={"value": "here"}).status_code == 204
        for method in ("GET", "PUT", "DELETE"):
            more = {"json": {"value": "there"}} if method == "PUT" else {}
            there = api.call("beta", method, path, params=about, **more)
            no_asset = api.call("beta", method, path, params=about | {by: "nothing"}, **more)
            assert there.status_code == no_asset.status_code == 404
            assert there.text == no_asset.text.replace("nothing", value)
        with _added(SHARED["waits for it"]("beta_daily")):
            there = api.call("beta", "GET", path, params=about)
            none = api.call("beta", "GET", path, params=about | {"key": "nothing"})
            assert there.status_code == none.status_code == 404
            assert there.text.replace("place", "nothing") == none.text
            # As Airflow has it.
            assert none.text == api.call("alpha", "GET", path, params=about | {"key": "nothing"}).text
            # By this name something is there, so it cannot be made.
            refused = api.call("beta", "PUT", path, params=about, json={"value": "there"})
            assert refused.status_code == 403
            assert "team alpha" not in refused.text
        assert api.call("alpha", "GET", path, params=about).json() == {"value": "here"}
        assert api.call("alpha", "DELETE", path, params=about).status_code == 204


def _everything() -> list[Any]:
    """What tasks could change."""
    assert settings.Session is not None
    with settings.Session() as session:
        return [
            sorted(session.execute(select(*columns)).all(), key=str)
            for columns in (
                (Variable.key, Variable._val, Variable.team_name),
                (Connection.conn_id, Connection.team_name),
                (DagRun.dag_id, DagRun.run_id, DagRun.state),
            )
        ]


def test_common_things_are_read_and_not_written(api: Api) -> None:
    assert api.call("alpha", "GET", "connections/db").status_code == 200
    assert api.call("alpha", "GET", "variables/key").json()["value"] == "1"
    assert api.call("alpha", "GET", "dags/daily").status_code != 403
    before = _everything()
    for method, path, more in (
        ("PUT", "variables/key", {"json": {"val": "2"}}),
        ("DELETE", "variables/key", {}),
        ("POST", "dag-runs/daily/new", {"json": {}}),
        ("POST", "xcoms/daily/r/work/x", {"json": "1"}),
    ):
        answer = api.call("alpha", method, path, **more)
        assert answer.status_code == 403, path
        assert "that takes a task without a team" in answer.json()["detail"]["message"]
    assert _everything() == before


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
    assert f"(decision {put['decision_id']})" in refused.json()["detail"]["message"]
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


@needs_state
def test_an_assets_state_is_its_producers(api: Api) -> None:
    name = {"name": "1", "key": "place"}
    asked = {}
    for who in DAGS:
        for method in ("GET", "PUT", "DELETE"):
            more = {"json": {"value": 1}} if method == "PUT" else {}
            answer = api.call(who, method, "store/asset/by-name/value", params=name, **more)
            asked[who, method] = answer.status_code == 403
    assert asked == {(who, method): who != "alpha" for who in DAGS for method in ("GET", "PUT", "DELETE")}
    assert api.engine.asked[-1][1]["resources"][0]["name"] == "1"
    # Nobody's: everybody keeps a place in it.
    everybodys = {"name": "2", "key": "place"}
    assert api.call("beta", "GET", "store/asset/by-name/value", params=everybodys).status_code != 403
    assert api.call("beta", "GET", "assets/by-name", params=everybodys).status_code != 403


# Each way to an asset of alpha's: the route, what finds the asset, and what finds none.
TO_AN_ASSET = {
    "assets/by-name": ({"name": "1"}, {"name": "nothing"}),
    "assets/by-uri": ({"uri": "s3://1"}, {"uri": "s3://nothing"}),
    "asset-events/by-asset": ({"name": "1", "uri": "s3://1"}, {"name": "nothing", "uri": "s3://nothing"}),
}


@pytest.fixture
def event() -> Iterator[None]:
    """An event of alpha's asset that names no Dag, as a watcher's or a person's does."""
    assert settings.Session is not None
    with settings.Session() as session:
        event = AssetEvent(asset_id=1, extra={"secret": "of alpha"})
        session.add(event)
        session.commit()
        yield
        session.delete(event)
        session.commit()


def _about_an_asset(api: Api, who: str | None) -> dict[str, tuple[Any, Any]]:
    """The answers about alpha's asset, and those about none, as if it had been asked about by the same name."""
    answers = {}
    for path, (there, nothing) in TO_AN_ASSET.items():
        found, missing = (api.call(who, "GET", path, params=params) for params in (there, nothing))
        as_asked = missing.text
        for name, value in there.items():
            as_asked = as_asked.replace(nothing[name], value)
        answers[path] = (found.status_code, found.text), (missing.status_code, as_asked)
    return answers


@pytest.mark.usefixtures("concealing", "event")
def test_anothers_asset_is_answered_like_none(api: Api) -> None:
    for who in ("beta", None):
        assert all(found == missing for found, missing in _about_an_asset(api, who).values())


@pytest.mark.usefixtures("event")
def test_a_refused_asset_says_whose_it_is(api: Api) -> None:
    for who in ("beta", None):
        for path, ((status, text), (missing, _)) in _about_an_asset(api, who).items():
            assert (status, missing) == (403, 200 if "events" in path else 404)
            assert "of team alpha" in text


@pytest.mark.usefixtures("concealing", "event")
def test_ones_own_asset_is_found(api: Api) -> None:
    assert all(
        status == 200 and text != missing for (status, text), (_, missing) in _about_an_asset(api, "alpha").values()
    )


# How a Dag comes to share alpha's asset.
SHARED: dict[str, Callable[[str], Any]] = {
    "waits for it": lambda dag_id: DagScheduleAssetReference(asset_id=1, dag_id=dag_id),
    "reads it": lambda dag_id: TaskInletAssetReference(asset_id=1, dag_id=dag_id, task_id="later"),
    "produces it too": lambda dag_id: TaskOutletAssetReference(asset_id=1, dag_id=dag_id, task_id="later"),
    "waits for whatever has its name": lambda dag_id: DagScheduleAssetNameReference(name="1", dag_id=dag_id),
    "waits for whatever has its address": lambda dag_id: DagScheduleAssetUriReference(uri="s3://1", dag_id=dag_id),
}


@contextlib.contextmanager
def _added(row: Any) -> Iterator[None]:
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(row)
        session.commit()
        try:
            yield
        finally:
            session.delete(row)
            session.commit()


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("who", ["beta", None])
@pytest.mark.parametrize("case", SHARED)
def test_an_asset_that_a_dag_of_its_team_names_is_found_by_a_task(api: Api, case: str, who: str | None) -> None:
    with _added(SHARED[case](DAGS[who])):
        assert _found(api, who) == {200}
        # And by nobody else's.
        assert _found(api, "beta" if who is None else None) == {404}


def _found(api: Api, who: str | None) -> set[int]:
    return {api.call(who, "GET", path, params=TO_AN_ASSET[path][0]).status_code for path in sorted(TO_AN_ASSET)[1:]}


@needs_state
@pytest.mark.usefixtures("concealing")
def test_a_team_that_the_owner_lets_consume_an_asset_finds_it(api: Api) -> None:
    with _added(_outlet("alpha_daily", allow_consumer_teams=["beta"])):
        assert _found(api, "beta") == {200}
        assert _found(api, None) == {404}
    # Nobody else lets anybody consume it.
    with _added(_outlet("daily", allow_consumer_teams=["beta"])):
        assert _found(api, "beta") == {404}


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("reference", [{"name": "1"}, {"uri": "s3://1"}], ids=str)
def test_an_asset_that_ones_own_dag_refers_to_is_found(api: Api, reference: dict[str, str]) -> None:
    """As ``@asset`` functions refer to others by their parameters."""
    from airflow.models.dag_version import DagVersion
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG, Asset
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    with DAG("beta_daily", schedule=None) as dag:
        EmptyOperator(task_id="work", inlets=[Asset.ref(**reference)])
    assert settings.Session is not None
    with settings.Session() as session:
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(dag), "of beta", session=session)
        session.commit()
        try:
            assert _found(api, "beta") == {200}
            assert _found(api, None) == {404}
        finally:
            for model in (DagCode, SerializedDagModel, DagVersion):
                session.execute(delete(model).where(model.dag_id == "beta_daily"))
            session.commit()
        assert _found(api, "beta") == {404}


@pytest.mark.usefixtures("concealing")
def test_a_rule_of_its_owner_lends_an_asset(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rule = """package teams.alpha

allow contains "beta may look at this one" if {
	input.resource.type == "asset"
	input.resource.name == "1"
	input.action == "read"
	"beta" in input.subject.team_ids
}
"""
    policies = tmp_path / "policies"
    shutil.copytree(REPOSITORY / "policies", policies, ignore=shutil.ignore_patterns("authz"))
    (policies / "teams/alpha/lends.rego").write_text(rule)
    compile_directory(policies, tmp_path / "bundle.tar.gz")
    engine = Recording(tmp_path / "bundle.tar.gz")
    monkeypatch.setattr(tasks, "decision_point", lambda: DecisionPoint(engine))
    assert _found(api, "beta") == {200}
    assert _found(api, None) == {404}
    engine.close()


BY_NAME, BY_URI = {"name": "1"}, {"uri": "s3://1"}
OTHERS_STATE = {
    "by name": ("name", BY_NAME),
    "by name, with a uri that is nowhere": ("name", BY_NAME | {"uri": "nowhere"}),
    "by name, with the uri of a common asset": ("name", BY_NAME | {"uri": "s3://2"}),
    "by name, with an empty uri": ("name", BY_NAME | {"uri": ""}),
    "by name, given twice": ("name", {"name": ["2", "1"]}),
    "by name, and in capitals": ("name", {"NAME": "2", "Uri": "s3://2"} | BY_NAME),
    "by name, with another Dag": ("name", BY_NAME | {"dag_id": "beta_daily"}),
    "by uri": ("uri", BY_URI),
    "by uri, with a name that is nowhere": ("uri", BY_URI | {"name": "nowhere"}),
    "by uri, with the name of a common asset": ("uri", BY_URI | {"name": "2"}),
    "by uri, given twice": ("uri", {"uri": ["s3://2", "s3://1"]}),
}


def _states() -> list[Any]:
    from airflow.models.asset_state_store import AssetStateStoreModel

    assert settings.Session is not None
    with settings.Session() as session:
        columns = (AssetStateStoreModel.asset_id, AssetStateStoreModel.key, AssetStateStoreModel.value)
        return sorted(tuple(row) for row in session.execute(select(*columns)))


def _calls(by: str, params: dict[str, Any], who: str | None, api: Api) -> dict[str, int]:
    """The answers to everything that one may do with an asset's state."""
    value = {"url": f"store/asset/by-{by}/value", "params": params | {"key": "place"}}
    return {
        "PUT": api.call(who, "PUT", value["url"], params=value["params"], json={"value": "x"}).status_code,
        "GET": api.call(who, "GET", value["url"], params=value["params"]).status_code,
        "DELETE": api.call(who, "DELETE", value["url"], params=value["params"]).status_code,
        "clear": api.call(who, "DELETE", f"store/asset/by-{by}/clear", params=params).status_code,
    }


@needs_state
@pytest.mark.parametrize("case", OTHERS_STATE)
def test_only_what_the_handler_uses_says_whose_state_it_is(api: Api, case: str) -> None:
    by, params = OTHERS_STATE[case]
    assert api.call("alpha", "PUT", "store/asset/by-name/value", params=BY_NAME | {"key": "place"}, json={"value": "a"})
    before = _states()
    assert (1, "place", '"a"') in before
    for who in ("beta", None):
        assert set(_calls(by, params, who, api).values()) == {403}
        assert _states() == before
    assert set(_calls(by, params, "alpha", api).values()) <= {200, 204}
    assert _states() == []


@needs_state
def test_an_asset_that_is_not_active_has_no_state(api: Api, asset: int) -> None:
    """As the handler has it; another team's inactive asset of the same name says nothing about the active one."""
    del asset
    for who in DAGS:
        assert set(_calls("uri", {"uri": "aaa://1"}, who, api).values()) == {404}
    assert api.engine.asked == []
    assert set(_calls("name", BY_NAME, "beta", api).values()) == {403}
    assert set(_calls("name", BY_NAME, "alpha", api).values()) <= {200, 204}


@pytest.fixture
def asset() -> Iterator[int]:
    """An asset of a name that is taken: it cannot be active, and beta's Dag produces it."""
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(AssetModel(id=3, name="1", uri="aaa://1", group=""))
        session.flush()
        session.add(TaskOutletAssetReference(asset_id=3, dag_id="beta_daily", task_id="work"))
        session.commit()
    yield 3
    with settings.Session() as session:
        session.execute(delete(TaskOutletAssetReference).where(TaskOutletAssetReference.asset_id == 3))
        session.execute(delete(AssetModel).where(AssetModel.id == 3))
        session.commit()


LATER: dict[str, Callable[[], list[Any]]] = {
    "another team's Dag produces it": lambda: [_outlet("beta_daily")],
    "a common Dag produces it": lambda: [_outlet("daily")],
    "another team watches it": lambda: [_watcher("beta")],
    "somebody without a team watches it": lambda: [_watcher(None)],
    "two others produce it": lambda: [_outlet("beta_daily"), _outlet("daily")],
}


def _outlet(dag_id: str, **named: Any) -> Any:
    return TaskOutletAssetReference(asset_id=1, dag_id=dag_id, task_id="later", **named)


def _watcher(team_id: str | None) -> Any:
    trigger = Trigger(classpath="x", kwargs={}, team_name=team_id)
    return AssetWatcherModel(name="w", asset_id=1, trigger=trigger)


@needs_state
@pytest.mark.parametrize("case", LATER)
@pytest.mark.parametrize("stale", [False, True], ids=["the first one's Dag runs", "the first one's Dag is stale"])
def test_no_later_declaration_takes_an_assets_state_away_or_opens_it(api: Api, case: str, stale: bool) -> None:
    assert settings.Session is not None
    with settings.Session() as session:
        later = LATER[case]()
        session.add_all(later)
        session.get_one(DagModel, "alpha_daily").is_stale = stale
        session.commit()
        try:
            for who in ("beta", None):
                assert set(_calls("name", BY_NAME, who, api).values()) == {403}
            assert set(_calls("name", BY_NAME, "alpha", api).values()) <= {200, 204}
        finally:
            for one in later:
                session.delete(one)
            session.get_one(DagModel, "alpha_daily").is_stale = False
            session.commit()


USERS: dict[str, Callable[[str], Any]] = {
    "waits for it": lambda dag_id: DagScheduleAssetReference(asset_id=2, dag_id=dag_id),
    "reads it": lambda dag_id: TaskInletAssetReference(asset_id=2, dag_id=dag_id, task_id="work"),
}


@needs_state
@pytest.mark.parametrize("case", USERS)
def test_the_state_of_an_asset_that_nobody_produces_is_its_first_users(api: Api, case: str) -> None:
    """Airflow forgets who watches an asset while that Dag is paused, and keeps that it waits for the asset."""
    by_name = {"name": "2"}
    with _added(USERS[case]("alpha_daily")):
        for who in ("beta", None):
            assert set(_calls("name", by_name, who, api).values()) == {403}
        # Who uses it later does not get it.
        with _added(USERS[case]("beta_daily")):
            assert set(_calls("name", by_name, "beta", api).values()) == {403}
        assert set(_calls("name", by_name, "alpha", api).values()) <= {200, 204}


@needs_state
def test_the_first_one_is_who_declared_it_first(api: Api) -> None:
    assert settings.Session is not None
    with settings.Session() as session:
        earlier = _outlet("beta_daily", created_at=_now() - timedelta(days=1))
        session.add(earlier)
        session.commit()
        try:
            assert set(_calls("name", BY_NAME, "alpha", api).values()) == {403}
            assert set(_calls("name", BY_NAME, "beta", api).values()) <= {200, 204}
        finally:
            session.delete(earlier)
            session.commit()


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
        def decide(self, _: Any) -> Any:
            raise UnreachableError("nobody answers at unix:///x")

        allowed = decide

    monkeypatch.setattr(tasks, "decision_point", Gone)
    before = _everything()
    for method, path, more in (
        ("GET", "connections/alpha_db", {}),
        ("GET", "variables/keys", {}),
        ("PUT", "variables/alpha_key", {"json": {"val": "2"}}),
    ):
        answer = api.call("alpha", method, path, **more)
        assert answer.status_code == 503
        assert answer.json()["detail"]["reason"] == "no_decision"
        assert "nobody answers" in answer.json()["detail"]["message"]
    assert _everything() == before


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


IN_PROCESS = {
    "the Dag processor of alpha's bundle": (lambda session: machines.dag_processor("of alpha", session), "alpha"),
    "the Dag processor of a common bundle": (lambda session: machines.dag_processor("of None", session), None),
    "the Dag processor of a bundle that is not there": (lambda session: machines.dag_processor("x", session), None),
    "alpha's triggerer": (lambda _: machines.triggerer("alpha"), "alpha"),
    "the common triggerer": (lambda _: machines.triggerer(None), None),
    "nobody in particular": (None, None),
}


@pytest.mark.parametrize("who", IN_PROCESS)
def test_in_process_one_acts_for_a_team_and_only_reads(api: Api, who: str) -> None:
    subject, team_id = IN_PROCESS[who]

    def call(method: str, path: str, **more: Any) -> int:
        if subject is None:
            return int(api.call(machines.NO_TASK, method, path, **more).status_code)
        with machines.acting(subject):
            return int(api.call(machines.NO_TASK, method, path, **more).status_code)

    assert call("GET", "connections/db") == 200
    assert call("GET", "connections/beta_db") == 403
    assert call("GET", "connections/alpha_db") == (200 if team_id == "alpha" else 403)
    before = _everything()
    for key in ("alpha_key", "beta_key", "key", "new"):
        assert call("PUT", f"variables/{key}", json={"val": "2"}) == 403
        assert call("DELETE", f"variables/{key}") == 403
    assert call("POST", "dag-runs/alpha_daily/new", json={}) == 403
    assert _everything() == before


ACTING = {
    "the Dag processor of a team's bundle": ("beta", lambda session: machines.dag_processor("of beta", session)),
    "a team's triggerer": ("beta", lambda _: machines.triggerer("beta")),
    "the common triggerer": (None, lambda _: machines.triggerer(None)),
    "a task that is tested": ("beta", lambda session: machines.task(INSTANCES["beta"], session)),
    "a task that is tested, after its attempt": ("alpha", lambda session: machines.task(ARCHIVED, session)),
}
_HERE = {getattr(route, "path", "") for route in execution_api_router.routes}
ABOUT_A_TASK = [about for about in routes.ROUTES if "{task_instance_id}" in about[1] and about[1] in _HERE]


@pytest.fixture(scope="module")
def without_tokens(opened_api: Api) -> Iterator[TestClient]:  # noqa: ARG001
    with TestClient(execution_api.InProcessExecutionAPI().app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def in_process(api: Api, without_tokens: TestClient) -> Api:
    """The API as the Dag processor and the triggerer have it: without tokens."""
    return api._replace(client=without_tokens)


@pytest.mark.parametrize("who", ACTING)
def test_in_process_nobody_acts_for_a_task_of_another_team(in_process: Api, who: str) -> None:
    own, subject = ACTING[who]
    answers: dict[tuple[str, str], dict[str | None, str]] = {}
    for method, path in ABOUT_A_TASK:
        answers[method, path] = {}
        for team_id, instance in INSTANCES.items():
            url = path.replace("{task_instance_id}", str(instance)).replace("{key:path}", "place")
            with machines.acting(subject):
                answer = in_process.client.request(method, url, **({"json": {}} if method != "GET" else {}))
            refused = answer.status_code == 403 and "may not act for task" in answer.text
            answers[method, path][team_id] = "refused" if refused else "own"
    assert answers == {
        about: {team_id: "own" if team_id == own else "refused" for team_id in INSTANCES} for about in ABOUT_A_TASK
    }
    with machines.acting(subject):
        assert in_process.client.get(f"/hitlDetails/{uuid4()}").status_code == 404


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("who", ACTING)
def test_in_process_a_task_of_another_team_is_answered_like_none(in_process: Api, who: str) -> None:
    own, subject = ACTING[who]
    for method, path in ABOUT_A_TASK:
        for id_ in (str(instance) for team_id, instance in INSTANCES.items() if team_id != own):
            answers = []
            for asked in (id_, unknown := str(uuid4())):
                url = path.replace("{task_instance_id}", asked).replace("{key:path}", "place")
                with machines.acting(subject):
                    answers.append(in_process.client.request(method, url, **({"json": {}} if method != "GET" else {})))
            there, missing = answers
            assert (there.status_code, there.text) == (missing.status_code, missing.text.replace(unknown, id_)), path


@needs_state
def test_in_process_one_answers_for_a_task_of_the_own_team(in_process: Api) -> None:
    asked = {"options": ["yes", "no"], "subject": "?", "ti_id": str(INSTANCES["alpha"])}
    answer = {"chosen_options": ["yes"], "params_input": {}, "ti_id": str(INSTANCES["alpha"])}
    path = f"/hitlDetails/{INSTANCES['alpha']}"
    with machines.acting(lambda _: machines.triggerer("alpha")):
        assert in_process.client.post(path, json=asked).status_code == 201
    with machines.acting(lambda _: machines.triggerer("beta")):
        assert in_process.client.patch(path, json=answer).status_code == 403
        assert in_process.client.get(path).status_code == 403
    with machines.acting(lambda _: machines.triggerer("alpha")):
        assert in_process.client.get(path).json()["response_received"] is False
        assert in_process.client.patch(path, json=answer).status_code == 200


def test_in_process_the_path_says_who_starts_a_task_that_is_tested(in_process: Api) -> None:
    """`dag.test()` starts and ends tasks itself; only what their code asks for is made on their behalf."""
    body = {"state": "running", "hostname": "h", "unixname": "u", "pid": 1, "start_date": "2026-01-01T00:00:00Z"}
    refused = in_process.client.patch(f"/task-instances/{STRANGERS_POOL}/run", json=body)
    assert "may not use pool beta_pool" in refused.json()["detail"]["message"]


class Vault(BaseSecretsBackend):
    """A secrets backend with a connection and a variable for all, and one of either for a team."""

    fails = False

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        return "http://vault" if self._has(conn_id, team_name) else None

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        return "vault" if self._has(key, team_name) else None

    def _has(self, name: str, team_name: str | None) -> bool:
        if self.fails:
            raise OSError("the vault is sealed")
        return name == "kept" or (name, team_name) == ("kept_for_alpha", "alpha")


class OldVault(Vault):
    """One from before there were teams."""

    def get_conn_value(self, conn_id: str) -> str | None:  # type: ignore[override]
        return super().get_conn_value(conn_id)

    def get_variable(self, key: str) -> str | None:  # type: ignore[override]
        return super().get_variable(key)


# Airflow 3.2 itself cannot ask a backend that knows no teams.
@pytest.fixture(params=[Vault, pytest.param(OldVault, marks=needs_state), "environment", "file"], ids=str)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Has a secrets backend keep a connection and a variable ``kept``, which beta has in the database."""
    if request.param == "environment":
        monkeypatch.setenv("AIRFLOW_CONN_KEPT", "http://vault")
        monkeypatch.setenv("AIRFLOW_VAR_KEPT", "vault")
    elif request.param == "file":
        (tmp_path / "connections.env").write_text("kept=http://vault\n")
        (tmp_path / "variables.env").write_text("kept=vault\n")
        files = {"connections": "connections_file_path", "variables": "variables_file_path"}
        named = {parameter: str(tmp_path / f"{name}.env") for name, parameter in files.items()}
        use_backend(monkeypatch, LocalFilesystemBackend(**named))
    else:
        use_backend(monkeypatch, request.param())
    return getattr(request.param, "__name__", str(request.param))


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: BaseSecretsBackend) -> None:
    from airflow import configuration

    backend._set_connection_class(Connection)
    others = configuration.initialize_secrets_backends()
    monkeypatch.setattr(configuration, "secrets_backend_list", [backend, *others])


@pytest.fixture
def betas_rows(filled: None) -> Iterator[None]:  # noqa: ARG001
    """What bob creates in the database, under names that a secrets backend has."""
    assert settings.Session is not None
    names = ("kept", "kept_for_alpha", "betas")
    with settings.Session() as session:
        session.add_all(Connection(conn_id=name, conn_type="http", host="bob", team_name="beta") for name in names)
        session.add_all(Variable(key=name, val="bob", team_name="beta") for name in names)
        session.commit()
    yield
    with settings.Session() as session:
        session.execute(delete(Connection).where(Connection.conn_id.in_(names)))
        session.execute(delete(Variable).where(Variable.key.in_(names)))
        session.commit()


def read(api: Api, who: str | UUID | None, name: str) -> set[str]:
    """What a task gets: the host of a connection and the value of a variable, or the status."""
    connection = api.call(who, "GET", f"connections/{name}")
    variable = api.call(who, "GET", f"variables/{name}")
    return {
        str(answer.json()[field] if answer.status_code == 200 else answer.status_code)
        for answer, field in ((connection, "host"), (variable, "value"))
    }


def test_a_row_hides_nothing_of_what_a_secrets_backend_has_for_all(api: Api, kept: str, betas_rows: None) -> None:
    del betas_rows
    for who in DAGS:
        assert read(api, who, "kept") == {"vault"}
    # What no backend has is the row's owner's alone.
    assert {who: read(api, who, "betas") for who in DAGS} == {"alpha": {"403"}, "beta": {"bob"}, None: {"403"}}
    if kept == "Vault":
        of_alpha = {who: read(api, who, "kept_for_alpha") for who in DAGS}
        assert of_alpha == {"alpha": {"vault"}, "beta": {"bob"}, None: {"403"}}


def test_a_backend_that_fails_is_no_denial(api: Api, betas_rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    del betas_rows
    use_backend(monkeypatch, Vault())
    monkeypatch.setattr(Vault, "fails", True)
    assert read(api, "alpha", "kept") == {"503"}
    answer = api.call("alpha", "GET", "variables/kept").json()["detail"]
    assert answer["message"] == "No decision can be had. The secrets backend Vault fails: OSError"
    # Who needs no backend to be decided about gets Airflow's own answer.
    assert read(api, "beta", "kept") == {"bob"}


SAME_NAMES = {"in capitals": ("one_team", "ONE_team", "key"), "but for underscores": ("two", "two_", "key")}


@pytest.mark.parametrize("case", SAME_NAMES)
def test_a_variable_of_the_environment_that_may_be_two_teams_is_nobodys(
    api: Api, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow alone hands it to both."""
    one, other, key = SAME_NAMES[case]
    assert settings.Session is not None
    with settings.Session() as session:
        session.add(Team(name=other))
        session.flush()
        bundle = session.get_one(DagBundleModel, "of alpha")
        before, bundle.teams = list(bundle.teams), [session.get_one(Team, other)]
        session.commit()
        for kind, value in (("VAR", "vault"), ("CONN", "http://vault")):
            monkeypatch.setenv(f"AIRFLOW_{kind}__{other}___{key}".upper(), value)
        try:
            assert read(api, "alpha", key) == {"vault"}
            session.add(Team(name=one))
            session.commit()
            assert read(api, "alpha", key) == {"403"}
            reason = api.call("alpha", "GET", f"variables/{key}").json()["detail"]["message"]
            assert f"may be meant for team {' or '.join(sorted((one, other)))}" in reason
            # Nothing else is.
            assert read(api, "beta", "beta_key") == {"1", "404"}
        finally:
            bundle.teams = before
            session.flush()
            session.execute(delete(Team).where(Team.name.in_((one, other))))
            session.commit()


def test_who_acts_is_forgotten_afterwards(api: Api) -> None:
    with machines.acting(lambda _: machines.triggerer("alpha")):
        assert api.call(machines.NO_TASK, "GET", "connections/alpha_db").status_code == 200
        # A token says more than who makes the request.
        assert api.call("beta", "GET", "connections/alpha_db").status_code == 403
    assert api.call(machines.NO_TASK, "GET", "connections/alpha_db").status_code == 403
