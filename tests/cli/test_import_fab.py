"""``team-authz import fab``: every decision of the real FabAuthManager beside ours over what was imported."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import string
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import quote_plus

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
from airflow.api_fastapi.common.types import MenuItem
from msgspec import UNSET
from typer.testing import CliRunner

pytest.importorskip("airflow.providers.fab", reason="the FAB provider is not installed")

from airflow.providers.fab.auth_manager import fab_auth_manager
from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager
from airflow.providers.fab.auth_manager.models import User
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_team_authz.cli import app
from airflow_team_authz.cli.imports import fab as importer
from airflow_team_authz.cli.imports.fab_database import FabDatabase, read_fab
from airflow_team_authz.cli.imports.translation import ROLES
from airflow_team_authz.doors import users
from airflow_team_authz.doors.decisions import TITLE
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.questions import menu_item
from tests.conftest import PATIENT_MS, REPOSITORY, Opa
from tests.doors.conftest import build
from tests.support.fab_tables import (
    DAGS,
    NAMES,
    ODD,
    TEAMS,
    VERBS,
    Person,
    Tables,
    airflows,
    random_roles,
    standard_roles,
)

METHODS = ("GET", "POST", "PUT", "DELETE")
LOGIN = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
OWNED: dict[str, Callable[..., Any]] = {
    "connection": ConnectionDetails,
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
    "pool": ("filter_authorized_pools", "pool_names"),
    "variable": ("filter_authorized_variables", "variable_keys"),
}
LISTS = {
    "connection": "get_authorized_connections",
    "pool": "get_authorized_pools",
    "variable": "get_authorized_variables",
    "asset": "get_authorized_assets",
}
RAISES = "not answered"
# Roles that the policy cannot tell from each other.
TWICE = {"Twice", "TWICE"}
SMALL = {ord(capital): capital.lower() for capital in string.ascii_uppercase}
LIST_DAGS = {"method": "GET", "access_entity": None, "details": None}


class Question(NamedTuple):
    """A call of a decision method, and what it is about."""

    function: str
    arguments: dict[str, Any]
    type: str
    method: str = "GET"


class Comparison(NamedTuple):
    """What both say to a user."""

    question: Question
    user: str
    ours: Any
    theirs: Any


class World(NamedTuple):
    """A database, what was imported of it, and both managers over it."""

    url: str
    directory: Path
    report: dict[str, Any]
    ours: Any
    theirs: FabAuthManager
    people: dict[str, User]
    asked: list[Evaluations]

    def listed(self, what: str) -> set[str]:
        """Names in the entries of what was not translated that begin so."""
        entries = (entry["what"] for entry in self.report["untranslated"] if entry["what"].startswith(what))
        return {name for entry in entries for name in re.findall(r'"(.*?)"(?:, |$)', entry, re.DOTALL)}

    def compare(self, questions: list[Question], *people: str) -> Iterator[Comparison]:
        for user in people or self.people:
            for question in questions:
                ours = ask(self.ours, question, self.people[user])
                yield Comparison(question, user, ours, ask(self.theirs, question, self.people[user]))


class Recording(DecisionPoint):
    """Keeps what was asked."""

    asked: list[Evaluations]

    def decide(self, question: Evaluations, aside: bool = False) -> Any:
        self.asked.append(question)
        return super().decide(question, aside)


def ask(manager: Any, question: Question, user: User) -> Any:
    try:
        return getattr(manager, question.function)(user=user, **question.arguments)
    except NotImplementedError:
        return RAISES


def dag_questions() -> Iterator[Question]:
    places = [None, DagDetails(), *(DagDetails(team_name=team) for team in TEAMS)]
    places += [DagDetails(id=dag, team_name=team) for dag, team in DAGS.items()]
    places += [DagDetails(id="quiet", team_name="quiet"), DagDetails(id="DAG Run:gone"), DagDetails(id="nowhere")]
    for method, entity, details in product(METHODS, (None, *DagAccessEntity), places):
        about = {"method": method, "access_entity": entity, "details": details}
        yield Question("is_authorized_dag", about, "dag", method)
    for method, details in product(METHODS, places):
        entity = DagAccessEntity.RUN
        requests = [
            {"method": "GET", "details": details},
            {"method": method, "access_entity": entity, "details": details},
        ]
        yield Question("batch_is_authorized_dag", {"requests": requests}, "dag", method)
    for method in METHODS:
        for team in (None, *TEAMS):
            ids = {dag for dag, owner in DAGS.items() if owner == team}
            about = {"dag_ids": ids, "method": method, "team_name": team}
            yield Question("filter_authorized_dag_ids", about, "dag", method)
        yield Question("get_authorized_dag_ids", {"method": method}, "dag", method)


def other_questions() -> Iterator[Question]:
    for method, (type_, kind) in product(METHODS, OWNED.items()):
        for details in (None, kind(), kind("x"), kind("x", "alpha"), kind(None, "my-team")):
            about = {"method": method, "details": details}
            yield Question(f"is_authorized_{type_}", about, type_, method)
            requests = [{"method": "GET", "details": details}, about]
            yield Question(f"batch_is_authorized_{type_}", {"requests": requests}, type_, method)
        for team in (None, "alpha"):
            function, ids = FILTERS[type_]
            yield Question(function, {ids: {"x", "y"}, "method": method, "team_name": team}, type_, method)
    for method, (type_, kind) in product(METHODS, SHARED.items()):
        for details in (None, kind("7"), kind()):
            yield Question(f"is_authorized_{type_}", {"method": method, "details": details}, type_, method)
    for method in METHODS:
        yield Question("is_authorized_backfill", {"method": method}, "backfill", method)
        yield Question("is_authorized_team", {"method": method, "details": None}, "team", method)
        yield Question("is_authorized_team", {"method": method, "details": TeamDetails("alpha")}, "team", method)
        yield Question("filter_authorized_teams", {"teams_names": {"alpha"}, "method": method}, "team", method)
        for type_, function in LISTS.items():
            yield Question(function, {"method": method}, type_, method)
    yield Question("get_authorized_teams", {}, "team")
    for view in AccessView:
        yield Question("is_authorized_view", {"access_view": view}, "view")
    pages = [name for name in NAMES if ":" not in name or "alpha_etl" in name or "gone" in name]
    for method, name in product((*METHODS, "MENU", *VERBS[-4:], "unheard_of"), (*pages, "Nowhere", "Actions")):
        about = {"method": method, "resource_name": name}
        yield Question("is_authorized_custom_view", about, "custom_view", method)
    for people in ({"1", "2", "3"}, {"nobody"}):
        yield Question("is_authorized_hitl_task", {"assigned_users": people}, "hitl_task", "PUT")
    yield from MENU
    yield Question("get_extra_menu_items", {}, "link")


MENU = [
    *(Question("filter_authorized_menu_items", {"menu_items": [item]}, "menu") for item in MenuItem),
    Question("get_authorized_menu_items", {}, "menu"),
]
QUESTIONS = [*dag_questions(), *other_questions()]


# What always differs: the rows of the table in docs/importing.md. Only the first, the links and the page allow more.
ALWAYS: dict[str, Callable[[Comparison], bool]] = {
    "questions about teams": lambda it: it.question.type == "team" and it.theirs is RAISES,
    "lists of connections, pools, variables and assets": lambda it: (
        it.question.function in LISTS.values() and it.ours == set()
    ),
    "the links Users, Roles and Permissions": lambda it: (
        it.question.type == "custom_view"
        and it.question.method in {"MENU", "menu_access"}
        and it.question.arguments["resource_name"] in importer.LINKS
    ),
    "the page of decisions in the menu": lambda it: (
        it.question.type == "link" and [item for item in it.ours if item.text != TITLE] == it.theirs
    ),
    "backfills": lambda it: it.question.type == "backfill" and it.ours is False,
    "pages called like a permission on one Dag": lambda it: (
        it.question.type == "custom_view"
        and it.question.arguments["resource_name"].startswith(("DAG:", "DAG Run:"))
        and it.ours is False
    ),
}


def open_world(place: Path, tables: Tables) -> World:
    url = tables.url(place / "airflow.db")
    directory = place / "policy"
    assert invoke("init", directory).exit_code == 0
    result = invoke("import", "fab", directory, "--database", url, "-o", "json")
    report = json.loads(result.stdout)
    assert result.exit_code == (1 if report["untranslated"] else 0), result.output
    compile_directory(directory, place / "bundle.tar.gz")
    ours, point = build(LOGIN)(), Recording(InProcess(place / "bundle.tar.gz"))
    point.asked = []
    vars(ours)["_policy"] = point
    with airflows(url):
        with create_session(scoped=False) as session:
            ids = {user.username: user.id for user in session.scalars(select(User)).unique()}
        ours.cache.clear()
        people = {name: ours.deserialize_user({"sub": str(id_)}) for name, id_ in ids.items()}
        ours.cache.clear()
    return World(url, directory, report, ours, FabAuthManager(), people, point.asked)


@contextmanager
def quiet() -> Iterator[None]:
    """Without a line for each denial, which takes longer than the denial."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(users.log, "disabled", True)
        yield


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def custom_site() -> Tables:
    """The standard roles and 30 others; a user of each, of each second pair, without any, and through groups."""
    custom = random_roles(20, 30)
    roles = standard_roles() | custom | {"Twice": custom["Team Lead"], "TWICE": custom["data/eng"]}
    names = [name for name in roles if name.lower() != "twice"]
    pairs = [*zip(names, chance(7).sample(names, len(names)), strict=True)]
    people = {f"has role {i}": Person((role,)) for i, role in enumerate(roles)} | {"nobody": Person()}
    people |= {f"has both {i}": Person(pair) for i, pair in enumerate(pairs) if len(set(pair)) == 2}
    people |= {"grouped": Person(("Viewer",), ("crew",)), "its twin": Person(("Viewer", "Custom 12", "Custom 13"))}
    return Tables(roles, people, {"crew": ("Custom 12", "Custom 13"), "idle": ()})


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = open_world(tmp_path_factory.mktemp("custom"), custom_site())
    with airflows(world.url):
        yield world
    vars(world.ours)["_policy"].close()


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["half", "the others"])
def compared(custom: World, request: pytest.FixtureRequest) -> list[Comparison]:
    """Every question, for half of the users whose roles could be translated."""
    left_out = {
        "grouped",
        *(name for name, user in custom.people.items() if {str(role) for role in user.roles} & TWICE),
    }
    translated = [name for name in custom.people if name not in left_out]
    with quiet():
        return [*custom.compare(QUESTIONS, *translated[request.param :: 2])]


def silent(it: Comparison, items: set[str]) -> bool:
    """Whether it differs and nobody was told: neither the documentation nor the command."""
    if it.question.type == "menu" and {item.value for item in {*it.ours} ^ {*it.theirs}} <= items:
        return False
    return it.ours != it.theirs and not any(row(it) for row in ALWAYS.values())


def test_every_decision_is_the_same_but_for_what_is_listed(custom: World, compared: list[Comparison]) -> None:
    items = custom.listed("menu item")
    assert [it for it in compared if silent(it, items)] == []
    assert len(compared) > 45_000, len(compared)


def test_every_decision_method_is_compared(compared: list[Comparison]) -> None:
    prefixes = ("is_authorized", "batch_is_authorized", "filter_authorized", "get_authorized", "get_extra")
    methods = {name for name in dir(FabAuthManager) if name.startswith(prefixes)}
    assert {it.question.function for it in compared} == methods


def test_all_questions_have_both_answers(compared: list[Comparison]) -> None:
    """So that nothing is the same because nobody is ever allowed, or everybody."""
    answers: dict[tuple[str, str], set[Any]] = {}
    for it in compared:
        if isinstance(it.theirs, bool) and it.question.type not in {"hitl_task", "backfill"}:
            answers.setdefault((it.question.function, it.question.method), set()).add(it.ours)
    assert {asked for asked, seen in answers.items() if seen != {True, False}} == {
        ("is_authorized_custom_view", "unheard_of")
    }
    parts = {
        (it.question.arguments["access_entity"], it.question.method)
        for it in compared
        if it.question.function == "is_authorized_dag" and it.ours
    }
    assert parts == set(product((None, *DagAccessEntity), METHODS))


@pytest.mark.parametrize("name", ALWAYS)
def test_what_always_differs_does(compared: list[Comparison], name: str) -> None:
    differing = [it for it in compared if ALWAYS[name](it) and it.ours != it.theirs]
    assert differing
    more = [it for it in differing if it.ours and it.theirs in (False, RAISES)]
    assert bool(more) == (name in {"questions about teams", "the links Users, Roles and Permissions"})


def test_a_link_is_not_a_right_to_more_than_the_link(compared: list[Comparison]) -> None:
    shown = {it.user: {item.text for item in it.theirs} for it in compared if it.question.type == "link"}
    links = [it for it in compared if ALWAYS["the links Users, Roles and Permissions"](it)]
    assert [it for it in links if it.theirs and not it.ours] == []
    more = [it for it in links if it.ours and not it.theirs]
    assert [it for it in more if it.question.arguments["resource_name"] not in shown[it.user]] == []


def test_who_sees_teams_is_who_lists_dags(compared: list[Comparison]) -> None:
    asked = [it for it in compared if it.question.function in {"is_authorized_team", "is_authorized_dag"}]
    lists_dags = {it.user: it.theirs for it in asked if it.question.arguments == LIST_DAGS}
    for it in asked:
        if it.question.type == "team":
            assert it.ours == (it.question.method == "GET" and lists_dags[it.user])


def test_lists_hold_what_may_be_read(compared: list[Comparison]) -> None:
    single = {(it.user, it.question.function, it.question.method): it.ours for it in compared}
    for it in compared:
        if it.question.function in LISTS.values():
            may = single[it.user, f"is_authorized_{it.question.type}", it.question.method]
            assert it.ours == (it.theirs if may else set())


def test_the_menu_differs_where_it_is_said_to(custom: World, compared: list[Comparison]) -> None:
    differing = {item.value for it in compared if it.question.type == "menu" for item in {*it.ours} ^ {*it.theirs}}
    assert custom.listed("menu item") == differing


def test_roles_of_groups_count_and_are_listed(custom: World) -> None:
    assert custom.listed("group") == {"crew"}
    (entry,) = (entry for entry in custom.report["untranslated"] if entry["what"] == 'group "crew"')
    assert '"Custom 12", "Custom 13"' in entry["why"]
    assert {role.name for role in custom.people["grouped"].roles} == {"Viewer"}
    questions = [question for question in QUESTIONS if question.type != "hitl_task"]
    with quiet():
        for question in questions:
            ours = ask(custom.ours, question, custom.people["grouped"])
            # The list of links is cut down by FAB itself first.
            if question.type != "link":
                assert ours == ask(custom.ours, question, custom.people["its twin"]), question


def test_roles_that_differ_in_case_only_allow_nothing_and_are_listed(custom: World) -> None:
    assert custom.listed("roles") == TWICE
    tables = [
        json.loads((custom.directory / "airflow" / name / "data.json").read_text()) for name in ("roles", "directory")
    ]
    assert "twice" not in json.dumps(tables).lower()
    people = [name for name, user in custom.people.items() if {role.name for role in user.roles} & TWICE]
    assert len(people) == 2
    with quiet():
        differing = [it for it in custom.compare(QUESTIONS, *people) if it.ours != it.theirs]
    more = [it for it in differing if it.ours and not it.theirs and not ALWAYS["the page of decisions in the menu"](it)]
    assert len(differing) > 100
    assert more == []


def test_an_opa_server_decides_the_same(custom: World, compared: list[Comparison], tmp_path: Path) -> None:  # noqa: ARG001
    opa = Opa(tmp_path / "opa.sock", custom.directory)
    opa.start()
    server = DecisionPoint(OpaServer(opa.url, PATIENT_MS))
    try:
        for question in chance(3).sample(custom.asked, 1_500):
            assert server.decide(question)[0] == vars(custom.ours)["_policy"].decide(question)[0]
    finally:
        server.close()
        opa.stop()


def test_the_directory_passes_its_checks(custom: World) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["./check.sh"],
        cwd=custom.directory,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_data(custom: World) -> None:
    """Whatever a role is called: no rule has its name in it, and the data has it as it is."""
    rules = [path.read_text() for path in custom.directory.rglob("*.rego")]
    table = json.loads((custom.directory / "airflow/directory/data.json").read_text())
    for name in ODD:
        assert table["roles"][name] == [{"team_id": None, "role": name.translate(SMALL)}]
        assert not any(name in text for text in rules)


def test_a_role_can_be_narrowed_to_one_team(custom: World, tmp_path: Path) -> None:
    """By the team's id in the directory: then it counts for that team and for what is common, single Dags too."""
    shutil.copytree(custom.directory, tmp_path / "policy")
    path = tmp_path / "policy" / "airflow/directory/data.json"
    table = json.loads(path.read_text())
    table["roles"]["Custom 17"][0]["team_id"] = "alpha"
    path.write_text(json.dumps(table))
    compile_directory(tmp_path / "policy", tmp_path / "bundle.tar.gz")
    point = DecisionPoint(InProcess(tmp_path / "bundle.tar.gz"))
    for action, entity, type_ in product(("read", "update"), (UNSET, "run"), ("dag", "connection")):
        teams = {"alpha": "alpha_etl", "my-team": "mine.etl", None: "common_etl"}
        part = entity if type_ == "dag" else UNSET
        resources = [Resource(type_, team, dag, part) for team, dag in teams.items()]
        subject = Subject("user", "ann", (), ("Custom 17",))
        question = Evaluations(subject, action, resources)
        decisions = point.decide(question).decisions
        before = vars(custom.ours)["_policy"].decide(question).decisions
        assert [it.allow for it in decisions] == [before[0].allow, False, before[2].allow]
    point.close()


def test_a_permission_on_one_dag_does_not_move_with_it(custom: World) -> None:
    """What was common, or another team's, when it was imported."""
    roles = (name for name, has in custom_site().roles.items() if ("can_create", "DAGs") not in has)
    subject = Subject("user", "ann", (), tuple(roles))
    point = vars(custom.ours)["_policy"]
    for team, dag in (("alpha", "alpha_etl"), (None, "common_etl")):
        here, elsewhere = Resource("dag", team, dag), Resource("dag", "quiet", dag)
        assert [it.allow for it in point.decide(Evaluations(subject, "create", [here, elsewhere]))[0]] == [True, False]


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """FAB as it comes, and people with one or two of its roles; two roles that list the audit log together only."""
    halves = {"Half": [("can_read", "Audit Logs")], "Other half": [("can_read", "DAGs"), ("menu_access", "DAGs")]}
    roles = standard_roles() | halves
    people = {" and ".join(pair): Person(pair) for n in (1, 2) for pair in combinations(roles, n)}
    world = open_world(tmp_path_factory.mktemp("standard"), Tables(roles, people))
    with airflows(world.url):
        yield world
    vars(world.ours)["_policy"].close()


def test_standard_roles_are_translated_but_for_menu_items(standard: World) -> None:
    with quiet():
        compared = [*standard.compare([question for question in QUESTIONS if question.type != "custom_view"])]
    items = standard.listed("menu item")
    assert [it for it in compared if silent(it, items)] == []
    differing = {item.value for it in compared if it.question.type == "menu" for item in {*it.ours} ^ {*it.theirs}}
    assert items == differing == {"Pools", "Required Actions", "XComs", "Audit Log"}
    (pools, log) = (
        next(entry["why"] for entry in standard.report["untranslated"] if name in entry["what"])
        for name in ("Pools", "Audit Log")
    )
    assert pools.endswith('now shown to "user", "viewer"')
    assert log.endswith("now shown to people with several roles that allow it together")
    assert {entry["what"].partition(' "')[0] for entry in standard.report["untranslated"]} == {"menu item"}


def test_the_doctor_finds_nothing_wrong(standard: World) -> None:
    result = invoke("doctor", "--policy", standard.directory, "--role", "Admin")
    assert result.exit_code == 0, result.output
    assert "0 groups and 7 roles lead somewhere" in result.stdout


def test_what_fab_looks_at_is_what_the_provider_says() -> None:
    entities = fab_auth_manager._MAP_DAG_ACCESS_ENTITY_TO_FAB_RESOURCE_TYPE
    assert {entity.name.lower(): [*names] for entity, names in entities.items()} == importer.PARTS
    views = fab_auth_manager._MAP_ACCESS_VIEW_TO_FAB_RESOURCE_TYPE
    assert {view.name.lower(): name for view, name in views.items()} == importer.VIEWS
    items = fab_auth_manager._MAP_MENU_ITEM_TO_FAB_RESOURCE_TYPE
    assert {item.value: items.get(item, item.value) for item in MenuItem} == {
        item: name for item, (name, _) in importer.MENU.items()
    }
    for item in MenuItem:
        target = menu_item(item)
        assert target is not None
        named = target.entity or target.type if target.type == "dag" else target.id or target.type
        assert importer.MENU[item.value][1] == named


# What could not be translated


def database(**tables: Any) -> FabDatabase:
    roles = {role: frozenset(permissions) for role, permissions in tables.get("roles", {}).items()}
    return FabDatabase(roles, tables.get("groups", {}), tables.get("owners", {}))


def left_out(**tables: Any) -> list[str]:
    return [entry.what for entry in importer.translate(database(**tables)).untranslated]


def test_everything_can_be_translated_of_roles_whose_menus_follow_from_them() -> None:
    assert left_out(roles={"Reader": [("can_read", "Pools"), ("menu_access", "Pools")]}) == []


@pytest.mark.parametrize("roles", [("Ops", "OPS"), ("ops", "Ops", "oPs"), ("Ä", "Ä", "a", "A")])
def test_roles_of_one_name(roles: tuple[str, ...]) -> None:
    same = sorted({role for role in roles if role.lower() != "ä"})
    assert left_out(roles=dict.fromkeys(roles, ())) == [f"roles {', '.join(map(json.dumps, same))}"]


def test_a_role_without_a_name() -> None:
    translation = importer.translate(database(roles={"": [("can_read", "Pools")]}))
    assert [entry.what for entry in translation.untranslated] == ['role ""']
    assert json.loads(translation.files[ROLES])["includes"] == {}


def test_a_team_that_cannot_have_rules() -> None:
    tables = {"roles": {"R": [("can_edit", "DAG:x"), ("can_read", "DAG Run:x")]}, "owners": {"x": "../../up"}}
    assert left_out(**tables) == ['permissions on "DAG Run:x"', 'permissions on "DAG:x"']
    assert not any("up" in str(name) for name in importer.translate(database(**tables)).files)


def test_a_verb_that_is_a_method() -> None:
    tables = {"roles": {"R": [("read", "Page"), ("can_read", "Page"), ("menu", "Page")]}}
    assert left_out(**tables) == ['permission menu on "Page" of role "R"', 'permission read on "Page" of role "R"']


# What is written, and what is not


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, str]:
    """A new policy directory, and a database with one role that can be translated wholly."""
    roles = {"Reader": [("can_read", "Pools"), ("menu_access", "Pools"), ("can_edit", "DAG:alpha_etl")]}
    url = Tables(roles, {}).url(tmp_path / "airflow.db")
    invoke("init", tmp_path / "policy")
    return tmp_path / "policy", url


NEW = {
    "airflow/site/imported.rego", "airflow/site/imported/data.json", "airflow/site/imported/imported.rego",
    "teams/alpha/imported.rego", "teams/alpha/imported/data.json",
}  # fmt: skip
REPLACED = {"airflow/directory/data.json", "airflow/roles/data.json"}


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_all_is_translated_and_written_and_told(site: tuple[Path, str]) -> None:
    directory, url = site
    before = contents(directory)
    result = invoke("import", "fab", directory, "--database", url)
    assert result.exit_code == 0, result.output
    after = contents(directory)
    assert {name for name in after if after[name] != before.get(name)} == NEW | REPLACED
    assert all(f"wrote     {name}" in result.stdout for name in NEW)
    assert all(f"replaced  {name}" in result.stdout for name in REPLACED)
    assert "Not translated" not in result.stdout
    assert "replace the null by its id in airflow/directory/data.json" in result.stdout
    again = invoke("import", "fab", directory, "--database", url, "-o", "json")
    assert {entry["did"] for entry in json.loads(again.stdout)["files"]} == {"kept"}
    assert contents(directory) == after


def test_what_is_not_translated_is_told_as_text_and_as_json(site: tuple[Path, str]) -> None:
    directory, url = site
    with sqlite3.connect(url.removeprefix("sqlite:///")) as rows:
        rows.execute("INSERT INTO ab_role (name) VALUES ('READER')")
    rows.close()
    result = invoke("import", "fab", directory, "--database", url)
    assert result.exit_code == 1
    assert '- roles "READER", "Reader": they differ in case only' in result.stdout
    again = invoke("import", "fab", directory, "--database", url, "-o", "json")
    assert again.exit_code == 1
    (entry,) = json.loads(again.stdout)["untranslated"]
    assert entry.keys() == {"what", "why", "help"}
    assert entry["what"] == 'roles "READER", "Reader"'


@pytest.mark.parametrize("name", sorted(NEW | REPLACED))
def test_what_somebody_changed_is_replaced_by_force_only(site: tuple[Path, str], name: str) -> None:
    directory, url = site
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = contents(directory)
    refused = invoke("import", "fab", directory, "--database", url)
    assert refused.exit_code == 2
    assert refused.stderr == f"team-authz: these files exist, and only --force replaces them: {name}\n"
    assert contents(directory) == before
    forced = invoke("import", "fab", directory, "--database", url, "--force", "-o", "json")
    assert forced.exit_code == 0
    assert {"did": "replaced", "file": name} in json.loads(forced.stdout)["files"]
    assert path.read_text() != "mine"


def test_what_an_earlier_import_left_is_removed_by_force_only(site: tuple[Path, str]) -> None:
    """Rules about single Dags of a team go on allowing, though nobody has such a permission any more."""
    directory, url = site
    invoke("import", "fab", directory, "--database", url)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as rows:
        rows.execute("DELETE FROM dag_bundle_team WHERE team_name = 'alpha'")
    rows.close()
    refused = invoke("import", "fab", directory, "--database", url)
    assert refused.exit_code == 2
    assert "teams/alpha/imported.rego" in refused.stderr
    forced = invoke("import", "fab", directory, "--database", url, "--force", "-o", "json")
    did = {entry["file"]: entry["did"] for entry in json.loads(forced.stdout)["files"]}
    assert did["teams/alpha/imported.rego"] == did["teams/alpha/imported/data.json"] == "removed"
    assert did["airflow/site/imported/data.json"] == "replaced"
    assert not (directory / "teams/alpha/imported.rego").exists()


def test_a_link_is_replaced_and_not_followed(site: tuple[Path, str], tmp_path: Path) -> None:
    directory, url = site
    (tmp_path / "elsewhere").write_text("mine")
    (directory / "airflow/site/imported.rego").symlink_to(tmp_path / "elsewhere")
    assert invoke("import", "fab", directory, "--database", url).exit_code == 2
    assert invoke("import", "fab", directory, "--database", url, "--force").exit_code == 0
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_what_cannot_be_written_is_told(site: tuple[Path, str]) -> None:
    directory, url = site
    (directory / "teams").write_text("mine")
    result = invoke("import", "fab", directory, "--database", url)
    assert result.exit_code == 2
    assert "cannot be written (Not a directory)" in result.stderr


def test_other_directories_are_refused(site: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nothing"):
        result = invoke("import", "fab", tmp_path / place, "--database", site[1])
        assert result.exit_code == 2
        assert "is not a policy directory: run team-authz init" in result.stderr
    invoke("init", tmp_path / "team", "--team", "alpha")
    result = invoke("import", "fab", tmp_path / "team", "--database", site[1])
    assert result.exit_code == 2
    assert "is a team's repository" in result.stderr


# Databases


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///{place}/none.db", "there is no database file"),
        ("sqlite:///{place}", "there is no database file"),
        ("sqlite:///{place}/text.db", "file is not a database"),
        ("sqlite:///{place}/empty.db", "has no FAB tables (ab_permission is missing)"),
        ("sqlite://", "there is no database file"),
        ("postgres", "the database's address cannot be read"),
        ("", "the database's address cannot be read"),
        ("nosuch://ann:s3cr3t@localhost/airflow", "the driver of nosuch databases is not installed"),
        ("postgresql+nosuch://ann:s3cr3t@localhost/airflow", "the driver of postgresql+nosuch databases"),
        ("mysql://ann:s3cr3t@localhost:s3cr3t/airflow", "the database's address cannot be read"),
        ("postgresql+psycopg2://ann:p@s3cr3t@localhost/airflow", "the database's address cannot be read"),
        ("postgresql+psycopg2://ann:p@s3cr3t:1@localhost/airflow", "the database's address cannot be read"),
    ],
)
def test_a_database_that_cannot_be_read_is_told_without_a_password(
    site: tuple[Path, str], tmp_path: Path, url: str, told: str
) -> None:
    (tmp_path / "text.db").write_text("not a database" * 100)
    (tmp_path / "empty.db").touch()
    before = contents(tmp_path)
    result = invoke("import", "fab", site[0], "--database", url.format(place=tmp_path))
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stderr.startswith("team-authz: ")
    assert result.stderr.count("\n") == 1
    assert "s3cr3t" not in result.output
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "url", ["ann:s3cr3t%2F%40%3A+@db.example/airflow", "ann@db.example/airflow?sslpassword=s3cr3t%2F%40%3A+"]
)
def test_what_a_driver_says_is_told_without_the_password(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    driver = ModuleType("pymysql")

    def connect(*_: object, **options: str) -> None:
        said = {**options, "url": url, "plus": quote_plus(options.get("password", ""))}
        raise sqlite3.OperationalError(f"no route with {said}\n".replace("'", '"'))

    vars(driver).update(vars(sqlite3) | {"connect": connect, "paramstyle": "pyformat", "__version__": "2.9.9"})
    monkeypatch.setitem(sys.modules, "pymysql", driver)
    result = invoke("import", "fab", site[0], "--database", f"mysql+pymysql://{url}")
    assert result.exit_code == 2
    assert "db.example/airflow" in result.stderr
    assert "no route with" in result.stderr
    assert "s3cr3t" not in result.output
    assert result.stderr.count("\n") == 1


def test_a_database_of_fab_alone_has_no_teams(tmp_path: Path) -> None:
    rows = sqlite3.connect(tmp_path / "fab.db")
    rows.executescript(
        """CREATE TABLE ab_role (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE dag (dag_id TEXT);
        CREATE TABLE ab_permission (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE ab_view_menu (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE dag_bundle_team (x TEXT);
        CREATE TABLE ab_permission_view (id INTEGER PRIMARY KEY, permission_id INTEGER, view_menu_id INTEGER);
        CREATE TABLE ab_permission_view_role (permission_view_id INTEGER, role_id INTEGER);
        INSERT INTO ab_role VALUES (1, 'R'); INSERT INTO ab_permission VALUES (1, 'can_read');
        INSERT INTO ab_view_menu VALUES (1, 'DAG:x'); INSERT INTO ab_permission_view VALUES (1, 1, 1), (2, NULL, 1);
        INSERT INTO ab_permission_view_role VALUES (1, 1), (2, 1), (7, 1);"""
    )
    rows.close()
    (tmp_path / "fab.db").chmod(0o444)
    read = read_fab(f"sqlite:///{tmp_path / 'fab.db'}")
    assert read == FabDatabase({"R": frozenset({("can_read", "DAG:x")})}, {}, {})


def test_without_an_address_it_is_the_configured_database(site: tuple[Path, str], program: Any) -> None:
    directory, url = site
    done = program("import", "fab", directory, AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=url)
    assert done.returncode == 0, done.stderr
    assert "wrote     teams/alpha/imported.rego" in done.stdout
    failing = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD": "sh -c 'echo s3cr3t >&2; exit 1'"}
    done = program("import", "fab", directory, **failing)
    assert done.returncode == 2
    assert "s3cr3t" not in done.stdout + done.stderr


# What the documentation says


def test_the_documentation_lists_what_always_differs() -> None:
    text = (REPOSITORY / "docs/importing.md").read_text().partition("## What always differs")[2].partition("\n#")[0]
    head, _, *rows = re.findall(r"^\|(.+?)\|", text, re.M)
    assert head.strip() == "what"
    assert [row.strip() for row in rows] == list(ALWAYS)


def test_the_documentation_shows_what_is_told(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs/importing.md").read_text()
    block, _ = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    commands = [
        line.removeprefix("$ team-authz ").partition("  #")[0] for line in block.splitlines() if line[:1] == "$"
    ]
    assert [command.split()[0] for command in commands] == ["init", "import", "doctor"]
    monkeypatch.chdir(site[0].parent)
    assert invoke(*commands[0].split()).exit_code == 0
    result = invoke(*commands[1].split(), "--database", site[1])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split()[0] in {"replaced", "wrote"}
