"""The one table: each question of Airflow's becomes the right action and resource, and what is unknown none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from itertools import product
from typing import Any

import jsonschema
import msgspec
import pytest
from airflow.api_fastapi.auth.managers import base_auth_manager
from airflow.api_fastapi.auth.managers.models import resource_details
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

from airflow_team_authz import questions
from airflow_team_authz.model import Context, Evaluation, Resource, Subject
from airflow_team_authz.questions import UnknownQuestionError
from tests.conftest import REPOSITORY

SCHEMA = json.loads((REPOSITORY / "policies/schemas/input.json").read_text())
# Type, details of one resource, and what they mean.
NAMED = [
    ("asset", AssetDetails(id="7"), Resource("asset", id="7")),
    ("asset_alias", AssetAliasDetails(id="8"), Resource("asset_alias", id="8")),
    ("configuration", ConfigurationDetails(section="core"), Resource("configuration", id="core")),
    ("connection", ConnectionDetails("pg", "alpha"), Resource("connection", "alpha", "pg")),
    ("connection", ConnectionDetails("pg"), Resource("connection", None, "pg")),
    ("dag", DagDetails("daily", "alpha"), Resource("dag", "alpha", "daily")),
    ("dag", DagDetails("daily"), Resource("dag", None, "daily")),
    ("pool", PoolDetails("small", "alpha"), Resource("pool", "alpha", "small")),
    ("pool", PoolDetails("small"), Resource("pool", None, "small")),
    # A team belongs to itself.
    ("team", TeamDetails("alpha"), Resource("team", "alpha", "alpha")),
    ("variable", VariableDetails("key", "alpha"), Resource("variable", "alpha", "key")),
    ("variable", VariableDetails("key"), Resource("variable", None, "key")),
]
# Details that name no resource, but perhaps the team that a new one goes to.
UNNAMED = [
    ("asset", AssetDetails(), Resource("asset")),
    ("configuration", ConfigurationDetails(), Resource("configuration")),
    ("connection", ConnectionDetails(None, "alpha"), Resource("connection", "alpha")),
    ("dag", DagDetails(), Resource("dag")),
    ("pool", PoolDetails(None, "alpha"), Resource("pool", "alpha")),
    ("team", TeamDetails(), Resource("team")),
    ("variable", VariableDetails(None, "alpha"), Resource("variable", "alpha")),
]
TYPES = sorted({type_ for type_, *_ in NAMED})
# What a method means for a resource, for none in particular, and for the runs of a Dag.
ACTIONS = {
    "GET": ("read", "list", "read"),
    "POST": ("create", "create", "trigger"),
    "PUT": ("update", "update", "update"),
    "DELETE": ("delete", "delete", "delete"),
    "MENU": ("menu", "menu", "menu"),
}
LEADS_TO = {
    "REQUIRED_ACTIONS": Resource("dag", entity="hitl_detail"),
    "ASSETS": Resource("asset"),
    "AUDIT_LOG": Resource("dag", entity="audit_log"),
    "CONFIG": Resource("configuration"),
    "CONNECTIONS": Resource("connection"),
    "DAGS": Resource("dag"),
    "DEADLINES": Resource("dag", entity="run"),
    "DOCS": Resource("view", id="docs"),
    "JOBS": Resource("view", id="jobs"),
    "PLUGINS": Resource("view", id="plugins"),
    "POOLS": Resource("pool"),
    "PROVIDERS": Resource("view", id="providers"),
    "VARIABLES": Resource("variable"),
    "XCOMS": Resource("dag", entity="xcom"),
}
IDS = {
    "Unicode": "größe-名前-🚀-\u202e",
    "composed and decomposed": "\u00e9 e\u0301",
    "slashes": "a/b//c/../d",
    "what URLs and JSON escape": '%2F?#&"\\\n\t\x7f',
    "spaces": "  a b  ",
    "250 characters": "x" * 250,
    "250 characters of four bytes": "🚀" * 250,
    "words of Rego and JSON": "null",
    "upper case": "AlPhA",
    "empty": "",
}


class Later(Enum):
    """Members that a coming Airflow may add to any of its enums."""

    SECRETS = "SECRETS"
    RUNS = "RUN"
    read = "GET"


def asked() -> Iterator[tuple[str, Resource]]:
    """Every question that the table can make of what Airflow knows."""
    entities: list[DagAccessEntity | None] = [None, *DagAccessEntity]
    told = [(type_, details) for type_, details, _ in NAMED + UNNAMED] + [(type_, None) for type_ in TYPES]
    for (type_, details), method in product(told, ACTIONS):
        for entity in entities if type_ == "dag" else [None]:
            resource = questions.resource(type_, details, entity)
            yield questions.action(method, resource), resource
    for view in AccessView:
        yield "read", questions.view(view)
    for method in [*ACTIONS, "can_edit"]:
        yield questions.custom_view(method, "Users/List")
        yield questions.route(method, "/ui/new")
    for item in MenuItem:
        target = questions.menu_item(item)
        assert target is not None
        yield "list", target
    yield "update", Resource("hitl_task")


@pytest.mark.parametrize(("type_", "details", "expected"), NAMED + UNNAMED, ids=str)
def test_details_become_a_resource(type_: str, details: Any, expected: Resource) -> None:
    assert questions.resource(type_, details) == expected


@pytest.mark.parametrize("type_", TYPES)
def test_no_details_mean_no_resource_in_particular(type_: str) -> None:
    assert questions.resource(type_, None) == Resource(type_)


def test_every_kind_of_details_that_airflow_has_is_in_the_table() -> None:
    # Deprecated: Airflow asks about the runs of the Dag instead.
    known = {name for name in vars(resource_details) if name.endswith("Details")} - {"BackfillDetails"}
    assert {type(details).__name__ for _, details, _ in NAMED} == known
    assert set(TYPES) == set(questions.KINDS)


@pytest.mark.parametrize("method", ACTIONS)
@pytest.mark.parametrize("type_", TYPES)
def test_methods_become_actions(type_: str, method: str) -> None:
    about_one, about_none, _ = ACTIONS[method]
    assert questions.action(method, Resource(type_, id="x")) == about_one
    assert questions.action(method, Resource(type_, id="")) == about_one
    assert questions.action(method, Resource(type_, "alpha")) == about_none


def test_airflows_own_enums_of_methods_mean_the_same_as_their_text() -> None:
    for enum in (base_auth_manager.ResourceMethod, base_auth_manager.ExtendedResourceMethod):
        members: list[Any] = list(enum)  # type: ignore[call-overload]
        assert {str(member) for member in members} <= ACTIONS.keys()
        for member in members:
            assert questions.action(member, Resource("dag", id="x")) == ACTIONS[member.value][0]


@pytest.mark.parametrize("method", ["PATCH", "HEAD", "OPTIONS", "get", "", "read", None, Later.read])
def test_an_unknown_method_is_an_unknown_question(method: Any) -> None:
    with pytest.raises(UnknownQuestionError, match=r"the method .* is unknown"):
        questions.action(method, Resource("dag", id="x"))


@pytest.mark.parametrize("method", ACTIONS)
@pytest.mark.parametrize("entity", DagAccessEntity)
def test_every_entity_of_airflow_is_known(entity: DagAccessEntity, method: str) -> None:
    resource = questions.resource("dag", DagDetails("daily", "alpha"), entity)
    assert resource == Resource("dag", "alpha", "daily", entity.name.lower())
    about_one, _, about_runs = ACTIONS[method]
    assert questions.action(method, resource) == (about_runs if entity is DagAccessEntity.RUN else about_one)
    of_none = questions.resource("dag", None, entity)
    assert of_none == Resource("dag", entity=entity.name.lower())
    assert of_none.id is UNSET


def test_the_schema_names_the_entities_and_types_that_can_be_asked_about() -> None:
    properties = SCHEMA["properties"]["resource"]["properties"]
    # An asset has parts for tasks only; Airflow asks about import errors as a view, and the second wall by team.
    of_dags = {entity.name.lower() for entity in DagAccessEntity}
    assert of_dags | {"event", "import_error", "state"} == set(properties["entity"]["enum"])
    # Airflow asks about views of the platform from 3.4 on; until then it is the second wall alone that does.
    assert {resource.type for _, resource in asked()} | {"platform_view"} == set(properties["type"]["enum"])


@pytest.mark.parametrize("access_view", AccessView)
def test_every_view_of_airflow_is_known(access_view: AccessView) -> None:
    assert questions.view(access_view) == Resource("view", None, access_view.name.lower())


@pytest.mark.parametrize("member", [Later.SECRETS, Later.RUNS, Later.read, "RUN", "DOCS", "", 0], ids=repr)
def test_what_no_airflow_knows_yet_is_an_unknown_question(member: Any) -> None:
    with pytest.raises(UnknownQuestionError, match="is unknown"):
        questions.resource("dag", DagDetails("daily"), member)
    with pytest.raises(UnknownQuestionError, match="is unknown"):
        questions.view(member)


@pytest.mark.parametrize("item", MenuItem)
def test_every_menu_item_leads_to_what_it_shows(item: MenuItem) -> None:
    assert questions.menu_item(item) == LEADS_TO[item.name]


def test_an_unknown_menu_item_leads_nowhere() -> None:
    assert questions.menu_item(Later.SECRETS) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "verb"),
    [("GET", "read"), ("POST", "create"), ("MENU", "menu"), ("can_edit", "can_edit"), ("can do/all", "can do/all")],
)
def test_a_custom_view_has_verbs_of_its_own(method: str, verb: str) -> None:
    assert questions.custom_view(method, "List Users") == (verb, Resource("custom_view", None, "List Users"))


@pytest.mark.parametrize("name", IDS.values(), ids=IDS)
def test_names_pass_unchanged(name: str) -> None:
    for type_, details, _ in NAMED:
        field = questions.KINDS[type_].id
        renamed = type(details)(**{**vars(details), field: name})
        assert questions.resource(type_, renamed).id == name, type_
    assert questions.resource("team", TeamDetails(name)).team_id == name
    assert questions.resource("pool", PoolDetails("x", name)).team_id == name
    assert questions.custom_view("GET", name)[1].id == name
    question = Evaluation(Subject("user", name), "read", Resource("dag", name, name), Context(name, (name,)))
    assert msgspec.json.decode(msgspec.json.encode(question), type=Evaluation) == question


def test_a_number_as_id_becomes_text() -> None:
    assert questions.resource("asset", AssetDetails(id=0)).id == "0"  # type: ignore[arg-type]


def test_every_question_is_as_the_schema_says() -> None:
    validator = jsonschema.Draft7Validator(SCHEMA)
    everything = set(asked())
    assert len(everything) > 150
    for action, resource in everything:
        for subject, context in (
            (Subject("user", "ann", ("alpha",), ("op",), ("engineers",)), UNSET),
            (Subject("user", ""), Context("7", ("7", "8"))),
        ):
            sent = msgspec.json.decode(msgspec.json.encode(Evaluation(subject, action, resource, context)))
            assert list(validator.iter_errors(sent)) == [], sent
            assert None not in {**sent["subject"], **sent["resource"], "team_id": ""}.values()


def test_the_schema_refuses_what_is_not_a_question() -> None:
    good = {"subject": {"type": "user", "id": "ann"}, "action": "read", "resource": {"type": "dag", "team_id": None}}
    validator = jsonschema.Draft7Validator(SCHEMA)
    assert validator.is_valid(good)
    for change in (
        {"resource": {"type": "dag"}},
        {"resource": {"type": "dag", "team_id": None, "id": None}},
        {"resource": {"type": "secret", "team_id": None}},
        {"subject": {"type": "king", "id": "ann"}},
        {"context": {"now": "2026"}},
        {"resources": []},
    ):
        assert not validator.is_valid(good | change), change
