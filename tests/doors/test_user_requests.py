"""Users' routes of Airflow's own app, with a real engine and a real database in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import airflow
import httpx
import pytest
from airflow import settings
from airflow.api_fastapi import app as airflow_app
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api import app as core_api
from airflow.api_fastapi.core_api import security
from airflow.api_fastapi.core_api.routes.public import public_router
from airflow.api_fastapi.core_api.routes.ui import ui_router
from airflow.models import Connection, DagModel, DagRun, Log, Variable
from airflow.models.asset import AssetDagRunQueue, TaskOutletAssetReference
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from msgspec import UNSET
from packaging.version import Version
from sqlalchemy import delete, func, select, update

from airflow_team_authz import questions, review
from airflow_team_authz.doors import connection_tests, user_requests, user_routes, users, wall
from airflow_team_authz.engines import DecisionPoint, Reply
from airflow_team_authz.engines.choice import packaged_baseline
from airflow_team_authz.gate.no_effect import is_asked
from airflow_team_authz.model import Resource, UnreachableError
from tests.doors.conftest import Recording, build

A = "/api/v2"
PEOPLE = {
    "ann": SimpleAuthManagerUser(username="ann", role="op", teams=["alpha"]),
    "bob": SimpleAuthManagerUser(username="bob", role="op", teams=["beta"]),
    "vic": SimpleAuthManagerUser(username="vic", role="viewer", teams=["beta"]),
    "nil": SimpleAuthManagerUser(username="nil", role=None, teams=["beta"]),
    "two": SimpleAuthManagerUser(username="two", role="op", teams=["alpha", "beta"]),
    "pat": SimpleAuthManagerUser(username="pat", role="admin", teams=[]),
    "una": SimpleAuthManagerUser(username="una", role=None, teams=[]),
}
NEWEST = pytest.mark.skipif(Version(airflow.__version__) < Version("3.3"), reason="this Airflow has no such route")


class Failing:
    """An engine that nobody reaches."""

    def query(self, *_: object) -> Reply:
        raise UnreachableError("nobody answers")

    def close(self) -> None:
        """Nothing is open."""


class Site:
    """Airflow's app with people who log in."""

    def __init__(self, manager: Any, engine: Recording, extend: Any = None) -> None:
        self.manager = manager
        self.engine = engine
        self.told: list[str] = []
        self.app = FastAPI()
        self.app.state.auth_manager = manager
        self.app.state.dag_bag = airflow_app.create_dag_bag()
        self.app.state.secret_key = "only-for-these-tests"  # noqa: S105 - it signs nothing that outlives them
        (extend or core_api.init_views)(self.app)
        airflow_app.init_error_handlers(self.app)
        core_api.init_middlewares(self.app)
        self._client = TestClient(self.app, raise_server_exceptions=False)
        self._tokens = {name: manager.generate_jwt(user) for name, user in PEOPLE.items()}

    def ask(self, name: str | None, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._tokens[name]}"} if name else {}
        return self._client.request(method, path, headers=headers, **arguments)  # type: ignore[no-any-return]

    def status(self, name: str | None, method: str, path: str, **arguments: Any) -> int:
        return self.ask(name, method, path, **arguments).status_code


@pytest.fixture(scope="module")
def opened_site(database: None) -> Iterator[Site]:  # noqa: ARG001
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        patch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "only-for-these-tests-" * 4)
        engine = Recording(packaged_baseline())
        manager = build(SimpleAuthManager)()
        patch.setattr(airflow_app._AuthManagerState, "instance", manager)
        vars(manager)["_policy"] = DecisionPoint(engine)
        with settings.Session() as rows:
            # Asset 1 is alpha's product; asset 2 is nobody's, and Dags of alpha and of beta wait for its events.
            rows.add(TaskOutletAssetReference(asset_id=1, dag_id="alpha_daily", task_id="make"))
            rows.add_all(AssetDagRunQueue(asset_id=2, target_dag_id=id_) for id_ in ("alpha_daily", "beta_daily"))
            # Without it Airflow cannot show a Dag.
            rows.execute(update(DagModel).values(fileloc="/dags/some.py"))
            rows.add(DagRun(dag_id="beta_daily", run_id="first", run_type="manual", state="success"))
            rows.commit()
        yield Site(manager, engine)
        engine.close()


@pytest.fixture
def site(opened_site: Site) -> Site:
    """The same for every test, with an empty audit log, and nothing asked yet."""
    with settings.Session() as rows:
        rows.execute(delete(Log))
        rows.commit()
    vars(opened_site.manager)["_policy"] = DecisionPoint(opened_site.engine)
    opened_site.engine.asked.clear()
    return opened_site


def airflows_routes(site: Site) -> list[APIRoute]:
    return [route for route in site.app.routes if user_routes.is_users(route) and isinstance(route, APIRoute)]


# The table


@NEWEST
def test_the_table_says_of_every_route_what_airflow_asks_there(site: Site) -> None:
    asked = {
        (method, route.path): user_routes.airflow_asks(route)
        for route in airflows_routes(site)
        for method in route.methods
    }
    until_airflow_3_3 = {("GET", "/ui/pending_partitioned_dag_run/{dag_id}/{partition_key}")}
    assert asked == {
        key: route.questions() for key, route in user_routes.ROUTES.items() if key not in until_airflow_3_3
    }
    assert user_routes.unknown_routes() == []


@pytest.mark.parametrize(
    ("who", "teams"),
    [
        ("nil", []),
        ("una", []),
        ("vic", ["beta"]),
        ("ann", ["alpha"]),
        ("two", ["alpha", "beta"]),
        ("pat", ["alpha", "beta"]),
    ],
)
def test_the_list_of_teams_has_ones_own(site: Site, who: str, teams: list[str]) -> None:
    answer = site.ask(who, "GET", "/ui/teams?order_by=name").json()
    assert ([team["name"] for team in answer["teams"]], answer["total_entries"]) == (teams, len(teams))


def test_what_is_asked_is_seen_through_the_wall() -> None:
    """The wall puts a function of its own around each of Airflow's that asks."""
    module: Any = SimpleNamespace(requires_access_dag=security.requires_access_dag)
    wall.guard(module)
    found = []
    for make in (security.requires_access_dag, module.requires_access_dag):
        router = APIRouter()
        asking = Depends(make(method="PUT", access_entity=DagAccessEntity.RUN))
        router.add_api_route("/api/v2/new", lambda: None, dependencies=[asking])
        (route,) = router.routes
        assert isinstance(route, APIRoute)
        found.append(user_routes.airflow_asks(route))
    assert found == [{"PUT dag.run"}] * 2


def test_every_route_of_every_airflow_is_known_unless_it_asks_less(site: Site) -> None:
    assert {key for route in airflows_routes(site) for key in ((*route.methods, route.path),)} <= set(
        user_routes.ROUTES
    )
    # Airflow 3.2 asks whether one may read the Dag whose events are deleted, and about a Dag of the query's choice.
    assert set(user_routes.unknown_routes()) <= {
        f"DELETE {A}/assets/{{asset_id}}/queuedEvents",
        f"DELETE {A}/dags/{{dag_id}}/assets/queuedEvents",
        f"DELETE {A}/dags/{{dag_id}}/assets/{{asset_id}}/queuedEvents",
        f"PUT {A}/parseDagFile/{{file_token}}",
    }


def test_where_airflow_finds_names_is_known_for_every_question(site: Site) -> None:
    in_body = {"dag_run_bulk", "dag_run_clear_bulk", "connection_bulk", "pool_bulk", "variable_bulk"}
    by_their_path_alone = {"connection", "pool", "variable", "dag_from_file_token", "view"}
    kinds = {
        question.rpartition(" ")[2].partition(".")[0]
        for route in airflows_routes(site)
        for question in user_routes.airflow_asks(route)
        if question != "login" and not question.startswith("handler ") and not question.endswith(" rows")
    }
    assert kinds <= set(user_routes.NAMED_BY) | in_body | by_their_path_alone


def test_what_users_routes_ask_is_known_to_the_gate_and_the_review() -> None:
    """The gate says of a rule about any other question that it has no effect; the review asks no other."""
    renamed = {"event_log": "dag.audit_log", "backfill": "dag.run", "dag_from_file_token": "dag"}
    bulk = {f"{kind}_bulk": ("POST", "PUT", "DELETE") for kind in ("connection", "pool", "variable")}
    bulk |= {"dag_run_bulk": ("PUT", "DELETE"), "dag_run_clear_bulk": ("PUT",)}
    for question in sorted(set().union(*(route.questions() for route in user_routes.ROUTES.values()))):
        if question == "login" or question.startswith("handler "):
            continue
        *methods, about = question.removesuffix(" rows").split()
        kind = "view" if about.startswith("view.") else renamed.get(about, about)
        if about in bulk:
            kind = "dag.run" if about.startswith("dag_run") else about.removesuffix("_bulk")
        type_, _, entity = kind.partition(".")
        for method in methods or bulk.get(about, ("GET",)):
            for resource in (Resource(type_, entity=entity or UNSET), Resource(type_, None, "x", entity or UNSET)):
                action = questions.action(method, resource)
                assert is_asked("user", action, type_, entity or None), question
                assert action in review.ACTIONS[kind] or (kind, action) == ("view", "list"), question


# Routes of a coming Airflow


def coming(app: FastAPI) -> None:
    """Airflow's routes and some more: two that ask nothing, one that asks no longer, and one of somebody else's."""
    app.include_router(ui_router)
    app.include_router(public_router)
    for path in ("/ui/new", f"{A}/new/{{name}}", "/elsewhere"):
        app.add_api_route(path, lambda: "told", methods=["GET", "PATCH"])
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path == f"{A}/dagTags":
            asking = [part for part in route.dependant.dependencies if part.name is None]
            for part in asking:
                route.dependant.dependencies.remove(part)
    user_requests.put_into(app)


@pytest.fixture(scope="module")
def coming_site(opened_site: Site) -> Iterator[Site]:
    """A site with these, which keeps what has been logged about them."""
    told: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = told.append  # type: ignore[method-assign]
    user_requests.log.addHandler(handler)
    site = Site(opened_site.manager, opened_site.engine, coming)
    site.told = [record.getMessage() for record in told]
    yield site
    user_requests.log.removeHandler(handler)


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/ui/new", "GET /ui/new"),
        ("PATCH", "/ui/new", "PATCH /ui/new"),
        ("GET", f"{A}/new/x", f"GET {A}/new/{{name}}"),
        ("GET", f"{A}/dagTags", f"GET {A}/dagTags"),
    ],
)
def test_a_route_that_the_table_does_not_know_is_for_the_platforms_admins(
    site: Site, coming_site: Site, method: str, path: str, route: str
) -> None:
    assert coming_site.status(None, method, path) == 401
    for name in ("ann", "vic"):
        answer = coming_site.ask(name, method, path)
        assert answer.status_code == 403
        assert f"route {route}" in answer.json()["detail"]
        assert "that takes the role admin on the platform" in answer.json()["detail"]
    assert coming_site.status("pat", method, path) == 200
    (asked,) = [question for _, question in site.engine.asked if question["subject"]["id"] == "pat"][:1]
    assert asked["action"] == {"GET": "read", "PATCH": "update"}[method]
    assert asked["resources"] == [{"type": "route", "id": route, "team_id": None}]


@pytest.mark.usefixtures("site")
def test_what_is_not_a_users_route_is_not_asked_about(coming_site: Site) -> None:
    assert coming_site.ask(None, "GET", "/elsewhere").json() == "told"
    assert coming_site.status(None, "GET", f"{A}/version") == 200


def test_unknown_routes_are_told_once(coming_site: Site) -> None:
    (message,) = coming_site.told
    assert f"GET /ui/new, PATCH /ui/new, GET {A}/new/{{name}}" in message
    assert f"GET {A}/dagTags" in message
    assert "the platform's admins" in message


def test_a_route_that_takes_no_question_is_not_served() -> None:
    app = FastAPI()
    app.mount("/ui/static", FastAPI())
    with pytest.raises(user_requests.NotGuardedError, match="cannot ask about /ui/static, which is a Mount"):
        user_requests.put_into(app)


def test_a_server_without_our_questions_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    users.refuse_unguarded_users()
    monkeypatch.setattr(core_api, "init_views", core_api.init_views.__closure__[0].cell_contents)
    with pytest.raises(RuntimeError, match="users' routes are not guarded"):
        users.refuse_unguarded_users()


# What the question is about is what the handler takes


def misreadable(site: Site) -> list[tuple[str, str, str, str]]:
    """Each name that Airflow would ask about at a route whose handler does not know that name there."""
    found = []
    for route in airflows_routes(site):
        flat = user_requests.get_flat_dependant(route.dependant)
        known = {("query", field.alias) for field in flat.query_params} | {
            ("path", field.alias) for field in flat.path_params
        }
        if flat.body_params:
            known |= {("body", name) for name in ("dag_id", "team_name")}
        strays = set(user_routes.names_read(route)) - known
        found += [(method, route.path, where, name) for method in route.methods for where, name in sorted(strays)]
    return found


def filled(path: str) -> str:
    return (
        path.replace("{asset_id}", "1")
        .replace("{event_log_id}", "1")
        .replace("{section}", "core")
        .replace("{option}", "executor")
    )


def test_a_name_that_only_the_question_would_be_about_is_refused(site: Site) -> None:
    found = misreadable(site)
    assert ("GET", f"{A}/backfills", "body", "dag_id") in found
    assert ("GET", f"{A}/eventLogs/{{event_log_id}}", "query", "dag_id") in found
    assert ("PATCH", f"{A}/dags", "query", "dag_id") in found
    assert ("GET", f"{A}/config/section/{{section}}/option/{{option}}", "query", "section") in found
    for method, path, where, name in found:
        given: dict[str, Any] = {"params": {name: "beta_daily"}} if where == "query" else {"json": {name: "beta"}}
        answer = site.ask("pat", method, filled(path), **given)
        assert answer.status_code == 400, (method, path, where, name, answer.text)
        assert answer.json()["detail"].startswith(f"{method} {path} "), answer.text


def test_the_backfills_of_another_teams_dag_are_not_listed_for_a_body_that_names_ones_own(site: Site) -> None:
    path = f"{A}/backfills?dag_id=alpha_daily"
    assert site.status("bob", "GET", path) == 403
    answer = site.ask("bob", "GET", path, json={"dag_id": "beta_daily"})
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        f"GET {A}/backfills does not take dag_id in its body: leave it out.",
    )
    assert site.status("bob", "GET", f"{A}/backfills?dag_id=beta_daily") == 200


def test_one_name_twice_is_refused(site: Site) -> None:
    twice = site.ask("bob", "GET", f"{A}/backfills?dag_id=alpha_daily&dag_id=beta_daily")
    assert (twice.status_code, "several" in twice.json()["detail"]) == (400, True)
    assert site.status("bob", "GET", f"{A}/eventLogs?dag_id=beta_daily") == 200


@pytest.mark.parametrize("written", ["1.0", "+1", "01", " 1"])
@pytest.mark.parametrize("path", ["assets/{}", "assets/aliases/{}", "assets/{}/queuedEvents"])
def test_a_number_is_asked_about_as_the_handler_reads_it(site: Site, path: str, written: str) -> None:
    answer = site.ask("pat", "GET", f"{A}/{path.format(written)}")
    assert (answer.status_code, "written as 1." in answer.json()["detail"]) == (400, True)
    assert site.status("pat", "GET", f"{A}/{path.format('1')}") in {200, 404}


def test_what_is_no_number_is_airflows_to_refuse(site: Site) -> None:
    assert site.status("pat", "GET", f"{A}/assets/one") == 422


# An asset's state


@NEWEST
def test_an_assets_state_is_for_those_who_may_have_it_from_its_producer(site: Site) -> None:
    states = f"{A}/assets/1/state-store"
    assert site.status("ann", "PUT", f"{states}/place", json={"value": 1}) == 204
    for name in ("bob", "vic"):
        # Nobody of beta uses it.
        assert site.status(name, "GET", f"{A}/assets/1") == 404
        for method, path in (
            ("GET", states), ("GET", f"{states}/place"), ("PUT", f"{states}/place"), ("DELETE", f"{states}/place"),
            ("DELETE", states),
        ):  # fmt: skip
            given = {"json": {"value": 2}} if method == "PUT" else {}
            answer = site.ask(name, method, path, **given)
            assert answer.status_code == 403, (name, method, path)
            assert name == "vic" or "asset 1 (state) of team alpha" in answer.json()["detail"]
    assert site.ask("ann", "GET", f"{states}/place").json()["value"] == 1
    assert site.status("ann", "DELETE", states) == 204


@NEWEST
def test_the_state_of_an_asset_that_nobody_produces_is_common(site: Site) -> None:
    states = f"{A}/assets/2/state-store"
    assert site.status("bob", "PUT", f"{states}/place", json={"value": 1}) == 204
    assert site.ask("vic", "GET", f"{states}/place").json()["value"] == 1
    assert site.status("vic", "DELETE", states) == 403
    assert site.status("bob", "GET", f"{A}/assets/77/state-store") == 404


# What a route does beyond its question


def test_default_connections_are_common_whatever_team_the_body_names(site: Site) -> None:
    def ids() -> set[str]:
        with settings.Session() as session:
            return set(session.scalars(select(Connection.conn_id)))

    before, path = ids(), f"{A}/connections/defaults"
    assert site.status("bob", "POST", path, json={"team_name": "beta"}) == 400
    assert "that takes the role admin on the platform" in site.ask("bob", "POST", path, json={}).json()["detail"]
    assert ids() == before
    assert rows() == []
    assert site.status("pat", "POST", path, json={}) == 204
    assert len(ids() - before) > 10
    with settings.Session() as session:
        session.execute(delete(Connection).where(Connection.conn_id.in_(ids() - before)))
        session.commit()


@NEWEST
def test_what_waits_for_a_dag_is_deleted_by_who_may_update_that_dag(site: Site) -> None:
    waiting = f"{A}/assets/2/queuedEvents"
    assert site.status("bob", "DELETE", waiting) == 204
    (_, asked) = [question for question in site.engine.asked if question[1]["action"] == "update"][-1]
    assert asked["resources"] == [{"type": "dag", "id": "beta_daily", "team_id": "beta"}]
    with settings.Session() as rows:
        assert list(rows.scalars(select(AssetDagRunQueue.target_dag_id))) == ["alpha_daily"]
        rows.add(AssetDagRunQueue(asset_id=2, target_dag_id="beta_daily"))
        rows.commit()


# The audit log


def rows() -> list[tuple[str, str | None, str | None, str | None, str]]:
    """What the audit log holds: event, Dag, task, run and, for a row without a Dag, how its text begins."""
    with settings.Session() as session:
        return [
            (row.event, row.dag_id, row.task_id, row.run_id, "" if row.dag_id else row.extra)
            for row in session.scalars(select(Log).order_by(Log.id))
        ]


def about(type_: str, team_id: str | None) -> str:
    """How the lead-in of a row without a Dag is written, letter by letter: the rows of a team are found by it."""
    return f'{{"about": {{"type": "{type_}", "team_id": {json.dumps(team_id)}}}, '


PLANTED = {"dag_id": "alpha_daily", "task_id": "make", "run_id": "x", "dag_run_id": "x", "logical_date": "2026-01-01"}
NEW = {
    "variable": ("variables", {"key": "made_here", "value": "only for this test"}),
    "connection": ("connections", {"connection_id": "made_here", "conn_type": "x"}),
    "pool": ("pools", {"name": "made_here", "slots": 1}),
}


def given_back(path: str, site: Site) -> None:
    assert site.status("pat", "DELETE", f"{A}/{path}/made_here") == 204


@pytest.mark.parametrize("type_", NEW)
def test_a_row_of_the_audit_log_is_about_what_was_decided(site: Site, type_: str) -> None:
    path, body = NEW[type_]
    answer = site.ask("bob", "POST", f"{A}/{path}", params=PLANTED, json={**body, "team_name": "beta"})
    assert answer.status_code == 201, answer.text
    ((event, *named, extra),) = rows()
    assert (event, named) == (f"post_{type_}", [None, None, None])
    assert extra.startswith(about(type_, "beta"))
    given_back(path, site)
    assert [row[-1].startswith(about(type_, "beta")) for row in rows()] == [True, True]


@pytest.mark.parametrize("type_", NEW)
def test_a_body_has_no_say_in_what_a_row_is_about(site: Site, type_: str) -> None:
    path, body = NEW[type_]
    forged = {**body, "team_name": "beta", "about": {"type": type_, "team_id": "alpha"}, **PLANTED}
    assert site.status("bob", "POST", f"{A}/{path}?about=alpha", json=forged) in {201, 422}
    for _, dag_id, task_id, run_id, extra in rows():
        assert (dag_id, task_id, run_id) == (None, None, None)
        assert extra.startswith(about(type_, "beta"))
        assert json.loads(extra)["about"] == {"type": type_, "team_id": "beta"}
        assert json.loads(extra)["body_about"] == forged["about"]
    with settings.Session() as session:
        session.execute(delete(Variable).where(Variable.key == "made_here"))
        session.execute(delete(Connection).where(Connection.conn_id == "made_here"))
        session.commit()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "variables", {"key": "x", "value": "y", "team_name": "alpha"}),
        ("PATCH", "variables/alpha_key", {"key": "alpha_key", "value": "y"}),
        ("DELETE", "variables/alpha_key", None),
        ("PATCH", "variables", {"actions": [{"action": "delete", "entities": ["alpha_key"]}]}),
        # No valid body: nobody is asked, but the row used to be there.
        ("PATCH", "variables", {"actions": "x"}),
        ("POST", "dags/alpha_daily/clearTaskInstances", {"dry_run": False}),
        ("POST", "dags/alpha_daily/dagRuns/x/taskInstances/make/xcomEntries", {"key": "x", "value": 1}),
        ("PATCH", "dags/alpha_daily/dagRuns/x/taskInstances/make", {"new_state": "failed"}),
        ("POST", "backfills", {"dag_id": "alpha_daily", "from_date": "2026-01-01", "to_date": "2026-01-02"}),
        ("POST", "connections", {"connection_id": "x", "conn_type": "x", "team_name": "alpha"}),
        ("DELETE", "pools/alpha_pool", None),
    ],
)
def test_what_is_refused_leaves_no_row(site: Site, method: str, path: str, body: Any) -> None:
    given = {} if body is None else {"json": body}
    assert site.status("bob", method, f"{A}/{path}", **given) in {403, 422}
    assert rows() == []


@NEWEST
def test_what_the_handler_refuses_leaves_no_row(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Disabled")
    tested = {"connection_id": "beta_db", "conn_type": "sqlite"}
    assert site.status("bob", "POST", f"{A}/connections/enqueue-test", json=tested) == 403
    assert rows() == []
    # What fails for other reasons has been tried.
    assert site.status("bob", "POST", f"{A}/assets/2/materialize") == 404
    assert [(event, extra[:45]) for event, *_, extra in rows()] == [("materialize_asset", about("asset", None)[:45])]


def test_without_a_decision_there_is_no_row(site: Site) -> None:
    vars(site.manager)["_policy"] = DecisionPoint(Failing())
    answer = site.ask("bob", "POST", f"{A}/variables", json={"key": "x", "value": "y", "team_name": "beta"})
    assert answer.status_code == 503
    assert rows() == []


def test_the_row_of_a_dag_names_the_dag_that_was_decided_about(site: Site) -> None:
    path, run = f"{A}/dags/beta_daily", f"{A}/dags/beta_daily/dagRuns/first"
    planted = {name: value for name, value in PLANTED.items() if name != "dag_run_id"}
    assert site.status("bob", "PATCH", path, params=planted, json={"is_paused": True}) == 200
    # The Dag's code is nowhere here, but all has been decided by then.
    assert site.status("bob", "PATCH", run, params=planted, json={"note": "x"}) == 404
    assert site.status("bob", "PATCH", run, params=planted, json={"note": "x", **PLANTED}) == 422
    # What the handler reads of the body may be named: the run that is cleared.
    cleared = {"dag_run_id": "first", "dry_run": False}
    assert site.status("bob", "POST", f"{path}/clearTaskInstances", json=cleared) == 404
    assert [row[:4] for row in rows()] == [
        ("patch_dag", "beta_daily", None, None),
        ("patch_dag_run", "beta_daily", None, "first"),
        ("patch_dag_run", "beta_daily", None, "first"),
        ("post_clear_task_instances", "beta_daily", None, "first"),
    ]


def test_a_row_about_many_dags_is_their_teams(site: Site) -> None:
    assert site.status("bob", "PATCH", f"{A}/dags?dag_id_pattern=%25", json={"is_paused": True}) == 200
    ((event, dag_id, _, _, extra),) = rows()
    assert (event, dag_id) == ("patch_dags", None)
    assert extra.startswith(about("platform", None))


def test_a_row_about_two_teams_is_two_rows_and_neither_tells_of_the_other(site: Site) -> None:
    bulk = {"actions": [{"action": "delete", "entities": ["alpha_key", "beta_key"], "action_on_non_existence": "skip"}]}
    assert site.status("two", "PATCH", f"{A}/variables", json=bulk) == 200
    assert [(event, json.loads(extra)) for event, *_, extra in rows()] == [
        ("bulk_variables", {"about": {"type": "variable", "team_id": team}, "ids": [f"{team}_key"], "method": "PATCH"})
        for team in ("alpha", "beta")
    ]
    with settings.Session() as session:
        session.add_all(Variable(key=f"{team}_key", val="1", team_name=team) for team in ("alpha", "beta"))
        session.commit()


def test_who_gets_a_token_is_told_to_the_platform(site: Site) -> None:
    assert site.status("vic", "POST", "/ui/auth/token", json={"about": 1, "dag_id": "alpha_daily"}) == 200
    ((event, dag_id, _, _, extra),) = rows()
    assert (event, dag_id, extra.startswith(about("platform", None))) == ("generate_token", None, True)


# Tests of connections that write the connection


@pytest.fixture
def tested() -> Iterator[Any]:
    """Airflow's requests for a test, none of which is left behind."""
    module = pytest.importorskip("airflow.models.connection_test", reason="this Airflow has no such tests")
    connection_tests.guard(module)
    yield module.ConnectionTestRequest
    with settings.Session() as session:
        session.execute(delete(module.ConnectionTestRequest))
        session.execute(delete(Connection).where(Connection.conn_id == "free"))
        session.commit()


def enqueued(site: Site, name: str, **body: Any) -> httpx.Response:
    wanted = {"connection_id": "free", "conn_type": "http", "host": f"of {name}", "commit_on_success": True, **body}
    return site.ask(name, "POST", f"{A}/connections/enqueue-test", json=wanted)


def succeed(tested: Any) -> tuple[str, str]:
    """What the Execution API does when the worker reports success."""
    with settings.Session() as session:
        test = session.scalar(select(tested))
        test.state = "success"
        test.commit_to_connection_table(session=session)
        said = str(test.state), test.result_message or ""
        session.commit()
    return said


def owner_and_host() -> tuple[str | None, str | None] | None:
    with settings.Session() as session:
        row = session.scalar(select(Connection).where(Connection.conn_id == "free"))
        return None if row is None else (row.team_name, row.host)


def test_a_tested_connection_is_written_for_the_team_that_was_decided_about(site: Site, tested: Any) -> None:
    assert enqueued(site, "bob", team_name="beta").status_code == 202
    asked = [(question["action"], question["resources"]) for _, question in site.engine.asked]
    expected = [{"type": "connection", "id": "free", "team_id": "beta"}]
    assert [action for action, resources in asked if resources == expected] == ["create", "update", "create"]
    assert [row[-1].startswith(about("connection", "beta")) for row in rows()] == [True]
    assert succeed(tested) == ("success", "")
    assert owner_and_host() == ("beta", "of bob")


@pytest.mark.parametrize("owner", ["alpha", None])
def test_a_tested_connection_that_is_somebody_elses_by_then_is_left_alone(
    site: Site, tested: Any, owner: str | None
) -> None:
    assert enqueued(site, "bob", team_name="beta").status_code == 202
    with settings.Session() as session:
        session.add(Connection(conn_id="free", conn_type="http", host="of ann", team_name=owner))
        session.commit()
    state, message = succeed(tested)
    assert state == "failed"
    assert message.startswith("The test has succeeded, but the connection is not written")
    assert "alpha" not in message
    assert owner_and_host() == (owner, "of ann")


def test_a_refused_test_of_a_connection_leaves_nothing(site: Site, tested: Any) -> None:
    for name, body in (("bob", {"team_name": "alpha"}), ("bob", {}), ("vic", {"team_name": "beta"})):
        assert enqueued(site, name, **body).status_code == 403
        assert enqueued(site, name, **body, commit_on_success=False).status_code == 403
    assert rows() == []
    with settings.Session() as session:
        assert session.scalar(select(func.count(tested.id))) == 0
