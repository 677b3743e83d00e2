"""FAB's people out of a real database: roles, groups and their roles, and how often the database is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from airflow import settings
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagDetails
from sqlalchemy import Engine, event

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.choice import packaged_baseline
from airflow_team_authz.engines.in_process import InProcess
from tests.doors.conftest import build

pytest.importorskip("airflow.providers.fab", reason="the FAB provider is not installed")

from tests.support.fab_tables import Person, Tables, airflows

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
PEOPLE = {
    "ann": Person(("Viewer",), ("engineers", "on call")),
    "bob": Person(("Op", "Data 🚀"), ()),
    "nil": Person((), ("empty",)),
}
GROUPS = {"engineers": ("User",), "on call": ("Op", "User"), "empty": ()}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    roles: dict[str, Any] = dict.fromkeys(("Viewer", "User", "Op", "Data 🚀"), ())
    with airflows(Tables(roles, PEOPLE, GROUPS).url(tmp_path_factory.mktemp("fab") / "airflow.db")):
        yield


@pytest.fixture
def manager(database: None) -> Iterator[Any]:  # noqa: ARG001
    made = build(FAB)()
    # Older versions of the provider read people through Flask's session.
    made.appbuilder = SimpleNamespace(session=settings.Session())
    engine = InProcess(packaged_baseline())
    vars(made)["_policy"] = DecisionPoint(engine)
    made.cache.clear()
    yield made
    engine.close()


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that reach a database meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def logged_in(manager: Any, name: str) -> Any:
    return manager.deserialize_user({"sub": str(manager.find(name).id)})


@pytest.mark.parametrize(
    ("name", "roles", "groups"),
    [
        ("ann", ("Op", "User", "Viewer"), ("engineers", "on call")),
        ("bob", ("Data 🚀", "Op"), ()),
        ("nil", (), ("empty",)),
    ],
)
def test_roles_are_ones_own_and_those_of_the_groups(manager: Any, name: str, roles: Any, groups: Any) -> None:
    found = manager.subject(logged_in(manager, name))
    assert (found.id, found.roles, found.groups, found.team_ids) == (name, roles, groups, ())
    assert manager.subject(manager.find(name)) == found


def test_nobody_is_found_who_is_not_there(manager: Any) -> None:
    assert manager.find("eve") is None


def test_groups_take_one_query_a_request_and_decisions_none(manager: Any) -> None:
    token = {"sub": str(manager.find("ann").id)}
    manager.cache.clear()
    with counted() as first:
        user = manager.deserialize_user(token)
    assert len([statement for statement in first if "ab_user_group" in statement]) == 1
    with counted() as deciding:
        for number in range(20):
            assert manager.is_authorized_dag(method="GET", user=user, details=DagDetails(id=f"dag {number}"))
            manager.is_authorized_connection(method="GET", user=user, details=ConnectionDetails("pg", "alpha"))
            manager.filter_authorized_dag_ids(dag_ids={"a", "b"}, user=user)
    assert deciding == []
    with counted() as second:
        assert manager.deserialize_user(token) is user
    assert second == []
