"""The auth manager over Simple and FAB, with a real engine and a real database in this process."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from airflow.api_fastapi.auth.managers.models import resource_details as details
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.common.types import MenuItem
from fastapi import HTTPException

import airflow_team_authz
from airflow_team_authz.doors import decision_point
from airflow_team_authz.doors.bodies import TeamChanges
from airflow_team_authz.doors.refusals import RefusalReasons
from airflow_team_authz.engines import Answer, DecisionPoint, Reply
from airflow_team_authz.model import (
    Decision,
    EngineError,
    MalformedError,
    PolicyBrokenError,
    Provenance,
    UnreachableError,
)
from airflow_team_authz.settings import SettingsError
from tests.doors.conftest import OWNED, World, build, login_manager

PREFIXES = ("is_authorized", "get_authorized", "filter_authorized", "batch_is_authorized", "get_extra_menu_items")
# Of each list: its type, its filter, and the details of one.
LISTS: dict[str, tuple[str, str, str, Callable[[Any, Any], Any]]] = {
    "get_authorized_connections": ("connection", "connections", "conn_ids", details.ConnectionDetails),
    "get_authorized_dag_ids": ("dag", "dag_ids", "dag_ids", details.DagDetails),
    "get_authorized_pools": ("pool", "pools", "pool_names", details.PoolDetails),
    "get_authorized_variables": ("variable", "variables", "variable_keys", details.VariableDetails),
    "get_authorized_teams": ("team", "teams", "teams_names", lambda name, _: details.TeamDetails(name)),
    "get_authorized_assets": ("asset", "assets", "asset_ids", lambda id_, _: details.AssetDetails(str(id_))),
}
GET = {"method": "GET"}
BATCH = [GET, {"method": "PUT", "details": None}]
CALLS: dict[str, dict[str, Any]] = {
    **{f"is_authorized_{type_}": GET for type_ in (*OWNED, "asset_alias", "configuration")},
    **{f"batch_is_authorized_{type_}": {"requests": BATCH} for type_ in ("connection", "dag", "pool", "variable")},
    **{name: {} for name in LISTS},
    **{f"filter_authorized_{plural}": {ids: set(OWNED[type_])} for type_, plural, ids, _ in LISTS.values()},
    "is_authorized_backfill": GET,
    "is_authorized_view": {"access_view": details.AccessView.JOBS},
    "is_authorized_custom_view": {"method": "can_edit", "resource_name": "Users"},
    "is_authorized_hitl_task": {"assigned_users": {"sue", "7"}},
    "filter_authorized_menu_items": {"menu_items": list(MenuItem)},
    "get_authorized_menu_items": {},
    "get_extra_menu_items": {},
}
# Nothing can be decided about a backfill, which does not tell its Dag.
ASKING = sorted(CALLS.keys() - {"is_authorized_backfill"})


class Later(Enum):
    """What a coming Airflow may ask about."""

    SECRETS = "Secrets"


class Newer(BaseAuthManager[Any]):
    """A login manager that decides what is not known here."""

    def is_authorized_teapot(self, **_: Any) -> bool:
        return True

    batch_is_authorized_teapots = filter_authorized_teapots = get_authorized_teapots = is_authorized_teapot


class Saying:
    """An engine that says this, whatever it is asked; an error it raises."""

    def __init__(self, said: bytes | EngineError) -> None:
        self._said = said

    def query(self, *_: object) -> Reply:
        if isinstance(self._said, EngineError):
            raise self._said
        return Reply(self._said, "")

    def close(self) -> None: ...


def test_the_calls_are_all_decisions_there_are(world: World) -> None:
    assert {name for name in dir(world.manager) if name.startswith(PREFIXES)} == CALLS.keys()


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_the_set_of_single_checks_and_one_question(world: World, name: str) -> None:
    type_, plural, ids, make = LISTS[name]
    listed: dict[str, set[Any]] = {}
    for user, method in product(world.people, ("GET", "PUT", "DELETE", "MENU")):
        world.engine.asked.clear()
        found = world.call(name, user, method=method)
        assert [entrypoint for entrypoint, _ in world.engine.asked] == ["allowed"]
        rows = OWNED[type_].items()
        single = {
            id_
            for id_, team in rows
            if world.call(f"is_authorized_{type_}", user, method=method, details=make(id_, team))
        }
        assert found == single, (user, method)
        filtered: set[Any] = set()
        for owner in {*OWNED[type_].values()}:
            some = {ids: {id_ for id_, team in rows if team == owner}, "method": method}
            more = {"team_name": owner} if type_ not in {"team", "asset"} else {}
            filtered |= world.call(f"filter_authorized_{plural}", user, **some, **more)
        assert filtered == found
        listed[f"{user} {method}"] = found
    assert listed["nobody GET"] <= {"announcement"}
    assert listed["admin GET"] == OWNED[type_].keys()
    assert world.call(f"filter_authorized_{plural}", **{ids: set()}) == set()


def test_lists_hold_what_belongs_to_the_team_and_what_site_and_teams_say(world: World) -> None:
    audit, announcement = ({"audit_store"}, set()) if world.policy == "baseline" else (set(), {"announcement"})
    assert world.call("get_authorized_connections") == {"alpha_db", "alpha_warehouse", "db"} | audit
    assert world.call("get_authorized_connections", "admin") == OWNED["connection"].keys()
    assert world.call("get_authorized_variables", "nobody") == announcement
    assert world.call("get_authorized_dag_ids") == {"alpha_daily", "größe/🚀", "daily"}
    assert world.call("get_authorized_teams") == {"alpha"}


@pytest.mark.parametrize("type_", ["connection", "dag", "pool", "variable"])
def test_a_batch_is_allowed_as_a_whole_with_one_question_per_action(world: World, type_: str) -> None:
    make = next(make for kind, _, _, make in LISTS.values() if kind == type_)
    mine = [{"method": method, "details": make("x", "alpha")} for method in ("GET", "PUT", "GET", "DELETE")]
    assert world.call(f"batch_is_authorized_{type_}", requests=mine) is True
    assert sorted(question["action"] for _, question in world.engine.asked) == ["delete", "read", "update"]
    for place in range(5):
        theirs = {"method": "PUT", "details": make("x", "beta")}
        assert world.call(f"batch_is_authorized_{type_}", requests=[*mine[:place], theirs, *mine[place:]]) is False
    assert world.call(f"batch_is_authorized_{type_}", requests=[]) is True


def test_a_task_that_waits_for_people_is_answered_by_them(world: World) -> None:
    id_ = str(world.people["op"].get_id())
    may = {user: world.call("is_authorized_hitl_task", user, assigned_users={id_, "x"}) for user in world.people}
    assert may == {"op": True, "viewer": True, "admin": True, "nobody": False}
    assert not any(world.call("is_authorized_hitl_task", user, assigned_users={"x"}) for user in world.people)


def test_the_subject_is_who_logged_in_unchanged(world: World) -> None:
    world.call("is_authorized_pool", method="GET")
    simple = {"type": "user", "id": "sue", "team_ids": ["alpha"], "roles": ["Op"]}
    fab = {"type": "user", "id": "sue", "team_ids": [], "roles": [], "groups": ["alpha-engineers"]}
    assert world.engine.asked[0][1]["subject"] == (simple if isinstance(world.manager, SimpleAuthManager) else fab)


def test_the_menu_and_the_login_managers_pages_are_those_that_policy_allows(world: World) -> None:
    items = list(MenuItem)
    shown = {user: world.call("get_authorized_menu_items", user) for user in world.people}
    less = [item for item in items if item.name not in {"CONNECTIONS", "VARIABLES"}]
    assert shown == {"op": items, "viewer": less, "admin": items, "nobody": []}
    assert len(world.engine.asked) == 4
    assert world.call("filter_authorized_menu_items", menu_items=[Later.SECRETS, MenuItem.DOCS]) == [MenuItem.DOCS]
    pages = {user: [page.text for page in world.call("get_extra_menu_items", user)] for user in world.people}
    everybodys = ["Policy:Decisions"]
    assert pages == {
        "op": everybodys, "viewer": everybodys, "admin": ["Users", "Roles", *everybodys], "nobody": everybodys,
    }  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_a_question_and_what_coming_versions_add_to_it_is_tolerated(world: World, name: str) -> None:
    answers = [world.call(name, user, **CALLS[name]) for user in world.people]
    assert bool(world.engine.asked) is (name in ASKING)
    more = {"team_name": "beta"} if name == "is_authorized_view" else {}
    assert [world.call(name, user, coming=1, **more, **CALLS[name]) for user in world.people] == answers


def test_what_is_unknown_is_denied_without_a_question(world: World) -> None:
    unknown: list[tuple[str, dict[str, Any]]] = [
        ("is_authorized_dag", {"method": "GET", "access_entity": Later.SECRETS}),
        ("is_authorized_view", {"access_view": Later.SECRETS}),
        *((f"is_authorized_{type_}", {"method": "PATCH"}) for type_ in OWNED),
        ("batch_is_authorized_dag", {"requests": [GET, {"method": "PATCH"}]}),
        ("batch_is_authorized_dag", {"requests": [GET, {"method": "GET", "access_entity": Later.SECRETS}]}),
    ]
    assert [world.call(name, "admin", **arguments) for name, arguments in unknown] == [False] * len(unknown)
    assert [world.call(name, "admin", method="PATCH") for name in LISTS] == [set()] * len(LISTS)
    assert world.call("is_authorized_backfill", "admin") is False
    assert world.engine.asked == []


@pytest.mark.parametrize("name", ASKING)
def test_an_error_of_the_engine_is_neither_yes_nor_no(world: World, name: str) -> None:
    for error in (UnreachableError("nobody answers"), PolicyBrokenError("conflict"), MalformedError("nonsense")):
        world.decided_by(DecisionPoint(Saying(error)))
        with pytest.raises(HTTPException) as raised:
            world.call(name, **CALLS[name])
        assert raised.value.status_code == 503
        assert raised.value.detail == f"No decision can be had about this request. {error}"


def test_a_name_that_no_question_can_hold_is_neither_yes_nor_no(world: World) -> None:
    with pytest.raises(HTTPException, match="503"):
        world.call("is_authorized_pool", method="GET", details=details.PoolDetails("half a pair: \ud83d"))


@pytest.mark.parametrize("allow", ["1", '"yes"', '"true"', "null", "[]", "1.0", "{}"])
def test_only_true_allows(world: World, allow: str) -> None:
    said = f'[{{"allow": {allow}, "reasons": [], "layer": "baseline"}}]'.encode()
    for answer in (said, said[1:-1], b'[{"reasons": [], "layer": "baseline"}]', b"[]", b"[true]", b"", b"true"):
        world.decided_by(DecisionPoint(Saying(answer)))
        with pytest.raises(HTTPException, match="503"):
            world.call("is_authorized_dag", method="GET")
    for answer in (b"[true]", b'["0"]', b"[0.5]", b"[-1]", b"[99]", b"[0, 0]", b'{"0": true}', b"true", b"null", b""):
        world.decided_by(DecisionPoint(Saying(answer)))
        with pytest.raises(HTTPException, match="503"):
            world.call("get_authorized_dag_ids")


@pytest.mark.parametrize("allow", [1, "yes", [True], None, 1.0])
def test_a_decision_that_is_not_true_itself_is_a_refusal(world: World, allow: Any) -> None:
    class Lax:
        weigh = staticmethod(lambda _: (Answer([Decision(allow, (), "default")], ""), Provenance("", 0)))
        settle = staticmethod(lambda _, answer, __: answer)

    world.decided_by(Lax())
    assert world.call("is_authorized_dag", method="GET") is False


@pytest.mark.parametrize("kind", ["Simple", "FAB"])
def test_logging_in_stays_with_the_login_manager_and_decisions_do_not(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = login_manager(kind)
    manager = build(login)
    assert issubclass(manager, login)
    for name in ("get_url_login", "serialize_user", "get_cli_commands", "get_db_manager"):
        assert getattr(manager, name) is getattr(login, name), name
    if kind == "FAB":
        assert manager()._get_teams() == set()
    for name in CALLS:
        assert getattr(manager, name) is not getattr(login, name, None), name
    newer = type("NewerLogin", (Newer, login), {})
    with pytest.raises(
        TypeError, match=r"_teapots, filter_.*, is_authorized_teapot of NewerLogin would decide without"
    ):
        build(newer)
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "true")
    if hasattr(BaseAuthManager, "get_fastapi_middlewares"):
        of_login = login().get_fastapi_middlewares()
        assert manager().get_fastapi_middlewares() == [*of_login, (RefusalReasons, {}), (TeamChanges, {})]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.Manager", "cannot be imported: No module named 'no'"),
        ("airflow.models.NoSuchManager", "cannot be imported"),
        ("Manager", "cannot be imported"),
        (".relative.Manager", "cannot be imported"),
        ("airflow.models.Pool", "is not an auth manager that logs people in"),
        ("os.path.join", "is not an auth manager that logs people in"),
        ("airflow_team_authz.TeamAuthManager", "is not an auth manager that logs people in"),
        ("airflow_team_authz.doors.users.TeamAuthorization", "is not an auth manager that logs people in"),
    ],
)
def test_what_cannot_log_people_in_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(name)
    assert str(error.value).startswith(f"[team_authz] authn_manager: {name} {message}")


def test_a_manager_of_ours_is_no_login_manager_for_another() -> None:
    with pytest.raises(SettingsError, match="is not an auth manager that logs people in"):
        build(build(SimpleAuthManager))


def test_a_broken_policy_is_noticed_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "true")
    decision_point.forget()
    (tmp_path / "bundle.tar.gz").write_bytes(b"no bundle")
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__POLICY", str(tmp_path / "bundle.tar.gz"))
    with pytest.raises(PolicyBrokenError):
        build(SimpleAuthManager)().init()
    monkeypatch.delenv("AIRFLOW__TEAM_AUTHZ__POLICY")
    decision_point.forget()
    build(SimpleAuthManager)().init()
    decision_point.forget()


@pytest.mark.parametrize("name", ["TeamAuthManager", "Teamauthmanager"])
def test_the_package_has_the_manager_by_its_name_only(name: str) -> None:
    if name == "TeamAuthManager":
        assert issubclass(getattr(airflow_team_authz, name), SimpleAuthManager)
    else:
        with pytest.raises(AttributeError, match=name):
            getattr(airflow_team_authz, name)
