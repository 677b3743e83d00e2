"""Our decisions beside those of SimpleAuthManager: the same, but for the differences that docs/roles.md lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import (
    AccessView,
    AssetAliasDetails,
    AssetDetails,
    ConfigurationDetails,
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
    PoolDetails,
    TeamDetails,
    VariableDetails,
)
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.common.types import MenuItem

from airflow_team_authz.doors.users import build_manager
from tests.conftest import REPOSITORY, Engines

METHODS = ("GET", "POST", "PUT", "DELETE")
NAMES = ("viewer", "user", "op", "admin")
ROLES = (None, *NAMES, *map(str.upper, NAMES), *map(str.capitalize, NAMES))
TEAMS = {"of alpha": ["alpha"], "of alpha and gamma": ["alpha", "gamma"], "of no team": []}
# Where a resource is: its team. The users above are no members of beta.
PLACES = {"own": "alpha", "another team's": "beta", "common": None}
OWNED: dict[str, Callable[..., Any]] = {
    "connection": ConnectionDetails,
    "dag": DagDetails,
    "pool": PoolDetails,
    "variable": VariableDetails,
}
SHARED: dict[str, Callable[..., Any]] = {
    "asset": AssetDetails,
    "asset_alias": AssetAliasDetails,
    "configuration": ConfigurationDetails,
}
FILTERS = {
    "connection": ("filter_authorized_connections", "conn_ids"),
    "dag": ("filter_authorized_dag_ids", "dag_ids"),
    "pool": ("filter_authorized_pools", "pool_names"),
    "variable": ("filter_authorized_variables", "variable_keys"),
}
# Lists of what the database holds: test_users.py has them equal to single checks, which are compared here.
FROM_DATABASE = {
    "get_authorized_assets",
    "get_authorized_connections",
    "get_authorized_dag_ids",
    "get_authorized_pools",
    "get_authorized_teams",
    "get_authorized_variables",
}


class Question(NamedTuple):
    """A call of a decision method, and what it is about in words that the list of differences uses."""

    function: str
    arguments: dict[str, Any]
    type: str
    method: str = "GET"
    place: str = "common"


class Comparison(NamedTuple):
    """What both say to a user, each answer a bool or a list."""

    question: Question
    role: str | None
    teams: str
    ours: Any
    theirs: Any


def details_of(kind: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """No details, details of one in each place, and of a new one that is to get there."""
    yield "common", None
    for place, team in PLACES.items():
        yield place, kind("x", team)
        yield place, kind(None, team)


def questions() -> Iterator[Question]:
    for method, (type_, kind) in product(METHODS, OWNED.items()):
        for place, details in details_of(kind):
            about: dict[str, Any] = {"method": method, "details": details}
            for entity in (None, *DagAccessEntity) if type_ == "dag" else (None,):
                part = {} if entity is None else {"access_entity": entity}
                yield Question(f"is_authorized_{type_}", about | part, type_, method, place)
                requests = [{"method": "GET"} | part, about | part]
                yield Question(f"batch_is_authorized_{type_}", {"requests": requests}, type_, method, place)
        for place, team in PLACES.items():
            function, ids = FILTERS[type_]
            yield Question(function, {ids: {"x", "y"}, "method": method, "team_name": team}, type_, method, place)
    for method, (type_, kind) in product(METHODS, SHARED.items()):
        for details in (None, kind("7"), kind()):
            yield Question(f"is_authorized_{type_}", {"method": method, "details": details}, type_, method)
    for method, (place, team) in product(METHODS, PLACES.items()):
        details = None if team is None else TeamDetails(team)
        yield Question("is_authorized_team", {"method": method, "details": details}, "team", method, place)
        if team is not None:
            arguments = {"teams_names": {team}, "method": method}
            yield Question("filter_authorized_teams", arguments, "team", method, place)
    for view in AccessView:
        yield Question("is_authorized_view", {"access_view": view}, "view")
    for method in (*METHODS, "can_edit"):
        arguments = {"method": method, "resource_name": "Users"}
        yield Question("is_authorized_custom_view", arguments, "custom_view", method)
    for place, people in {"own": {"sue", "tom"}, "another team's": {"tom"}}.items():
        yield Question("is_authorized_hitl_task", {"assigned_users": people}, "hitl_task", "PUT", place)
    yield Question("filter_authorized_menu_items", {"menu_items": list(MenuItem)}, "menu")
    yield Question("get_authorized_menu_items", {}, "menu")


def is_member(it: Comparison) -> bool:
    return it.question.place == "own" and "alpha" in it.teams


def holds(it: Comparison, *roles: str) -> bool:
    return it.role is not None and it.role.lower() in roles


# Where the answers differ, and always do: the rows of the table in docs/roles.md.
DIFFERENCES: dict[str, Callable[[Comparison], bool]] = {
    "changes of common connections, variables and pools": lambda it: (
        it.question.type in {"connection", "variable", "pool"}
        and it.question.method != "GET"
        and it.question.place == "common"
        and holds(it, "op")
    ),
    "custom views": lambda it: it.question.type == "custom_view" and holds(it, "viewer", "user", "op"),
    "a member of a team without a role": lambda it: (
        it.question.type == "team" and it.question.method == "GET" and is_member(it) and it.role is None
    ),
    "a question about teams in general": lambda it: (
        it.question.type == "team"
        and it.question.place == "common"
        and (holds(it, "admin") or (it.question.method == "GET" and it.role is not None))
    ),
    "menu": lambda it: it.question.type == "menu" and not holds(it, "op", "admin"),
    "a task that waits for a named person without a role": lambda it: (
        it.question.type == "hitl_task" and it.question.place == "own" and it.role is None
    ),
}
# Not in that table, because Airflow asks about teams with GET only. SimpleAuthManager does not look at the method.
NEVER_ASKED: dict[str, Callable[[Comparison], bool]] = {
    "a team created, changed or deleted by a member": lambda it: (
        it.question.type == "team" and it.question.method != "GET" and is_member(it) and not holds(it, "admin")
    ),
}
ALL = DIFFERENCES | NEVER_ASKED


@pytest.fixture(scope="module")
def compared(example: Engines) -> Iterator[list[Comparison]]:
    """Every question asked of both managers, for every user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__MULTI_TEAM", "true")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "false")
        build_manager.cache_clear()
        us, them = build_manager()(), SimpleAuthManager()
        vars(us)["_policy"] = example.in_process
        users = [
            (role, teams, SimpleAuthManagerUser(username="sue", role=role, teams=TEAMS[teams]))
            for role, teams in product(ROLES, TEAMS)
        ]
        yield [
            Comparison(question, role, teams, ask(us, question, user), ask(them, question, user))
            for question in questions()
            for role, teams, user in users
        ]
        build_manager.cache_clear()


def ask(manager: Any, question: Question, user: Any) -> Any:
    return getattr(manager, question.function)(user=user, **question.arguments)


def test_every_decision_method_is_compared(compared: list[Comparison]) -> None:
    asked = {it.question.function for it in compared}
    prefixes = ("is_authorized", "batch_is_authorized", "filter_authorized", "get_authorized")
    assert asked == {name for name in dir(SimpleAuthManager) if name.startswith(prefixes)} - FROM_DATABASE
    assert len(compared) > 10_000
    assert {type(it.ours) for it in compared} == {type(it.theirs) for it in compared} == {bool, set, list}


def test_nothing_differs_but_what_is_listed(compared: list[Comparison]) -> None:
    unlisted = [it for it in compared if it.ours != it.theirs and not any(row(it) for row in ALL.values())]
    assert unlisted == []


@pytest.mark.parametrize("name", ALL)
def test_what_is_listed_differs_always_and_is_listed_once(compared: list[Comparison], name: str) -> None:
    listed = [it for it in compared if ALL[name](it)]
    assert listed
    assert [it for it in listed if it.ours == it.theirs] == []
    assert [it for it in listed for other in ALL if other != name and ALL[other](it)] == []


def test_we_allow_more_than_the_other_only_where_teams_are_asked_about_in_general(compared: list[Comparison]) -> None:
    in_general = DIFFERENCES["a question about teams in general"]
    more = [it for it in compared if it.ours and it.ours != it.theirs and it.question.type != "menu"]
    assert more
    assert [it for it in more if not in_general(it)] == []


def test_the_menu_lacks_what_the_user_may_not_list(compared: list[Comparison]) -> None:
    for it in compared:
        if it.question.type == "menu":
            hidden = {item.name for item in it.theirs} - {item.name for item in it.ours}
            everything = {item.name for item in MenuItem}
            of_ops = set() if holds(it, "op", "admin") else {"CONNECTIONS", "VARIABLES"}
            assert hidden == (everything if it.role is None else of_ops), it


def test_the_documentation_lists_the_same_differences() -> None:
    text = (REPOSITORY / "docs/roles.md").read_text().partition("## How it differs from SimpleAuthManager")[2]
    head, _, *rows = re.findall(r"^\|(.+?)\|", text, re.M)
    assert head.strip() == "case"
    assert [row.strip() for row in rows] == list(DIFFERENCES)


def test_with_all_admins_a_task_that_waits_for_named_people_is_answered_by_nobody(
    example: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the table in docs/roles.md."""
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "true")
    build_manager.cache_clear()
    us = build_manager()()
    build_manager.cache_clear()
    vars(us)["_policy"] = example.in_process
    anonymous = SimpleAuthManagerUser(username="Anonymous", role="admin")
    for assigned, ours in ({"ann"}, False), ({"Anonymous"}, True):
        asked = {"assigned_users": assigned, "user": anonymous}
        assert SimpleAuthManager().is_authorized_hitl_task(**asked) is True
        assert us.is_authorized_hitl_task(**asked) is ours
