"""Lists ask the policy in process once about all resources of a kind, where no rule looks at ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from airflow_team_authz.engines import CHUNK, DecisionPoint
from airflow_team_authz.engines.by_kind import by_kind
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.engines.kept import Kept
from airflow_team_authz.model import AssetNames, Delivery, Evaluations, Resource, Resources, Subject
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.opa.wasm import Machine, _of_data
from tests.conftest import write

change = msgspec.structs.replace
BOB = Subject("user", "bob", ("alpha", "beta"), ("op",))
# The package of alpha looks at ids, that of beta at kinds, and gamma has none.
SITE = {
    "teams/alpha/a.rego": 'package teams.alpha\ndeny contains "secret" if startswith(input.resource.id, "secret")',
    "teams/beta/b.rego": 'package teams.beta\ndeny contains "no code" if input.resource.entity == "code"',
}
DELIVERY = Delivery("d", None, AssetNames("a", "u", "g"), True, True, True)
OTHER: dict[str, Any] = {
    "type": "pool", "team_id": "beta", "id": UNSET, "entity": "code",
    "name": "n", "uri": "u", "group": "g", "delivery": DELIVERY,
}  # fmt: skip


def dags(team: str, *names: str, **more: Any) -> list[Resource]:
    return [Resource("dag", team, name, **more) for name in names]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    home = tmp_path_factory.mktemp("kinds")
    write(home / "site", SITE)
    compile_directory(home / "site", home / "bundle.tar.gz")
    engine = InProcess(home / "bundle.tar.gz")
    yield engine
    engine.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids in each question that the policy is evaluated for."""
    questions: list[list[str]] = []
    evaluate = Machine.evaluate

    def noted(machine: Machine, entrypoint: str, question: bytes, fuel: int) -> msgspec.Raw:
        questions.append([resource.get("id", "") for resource in msgspec.json.decode(question)["resources"]])
        return evaluate(machine, entrypoint, question, fuel)

    monkeypatch.setattr(Machine, "evaluate", noted)
    return questions


@pytest.mark.parametrize("listed", [list, Resources])
def test_a_list_asks_about_each_id_only_where_a_rule_looks_at_ids(
    listed: Any, engine: InProcess, asked: list[list[str]]
) -> None:
    engine._in_force = engine._in_force._replace(kept=Kept(engine.revision, is_alike=engine._in_force.policy.alike))
    resources = dags("alpha", "a", "secret1", "b") + dags("beta", "c", "secret2", "d")
    code = dags("beta", "e", "f", entity="code") + dags("gamma", "g", "h")
    allowed = DecisionPoint(engine).allowed(Evaluations(BOB, "read", listed([*resources, *code])))
    assert asked == [["a", "secret1", "b", "c", "e", "g"]]
    assert [resource.id for resource in allowed] == ["a", "b", "c", "secret2", "d"]


@pytest.mark.parametrize("listed", [list, Resources])
def test_a_list_of_several_parts_asks_once_for_each_kind(
    listed: Any, engine: InProcess, asked: list[list[str]]
) -> None:
    engine._in_force = engine._in_force._replace(kept=Kept(engine.revision, is_alike=engine._in_force.policy.alike))
    alike, secret = dags("beta", *map(str, range(2 * CHUNK))), dags("alpha", *(f"secret{n}" for n in range(CHUNK)))
    allowed = DecisionPoint(engine).allowed(Evaluations(BOB, "read", listed([*alike, *secret, *dags("alpha", "a")])))
    assert allowed == [*alike, *dags("alpha", "a")]
    assert [len(ids) for ids in asked] == [CHUNK, 2]
    assert asked[0][:2] == ["0", "secret0"]


@pytest.mark.parametrize("field", Resource.__struct_fields__)
def test_resources_that_differ_in_any_field_but_the_id_are_of_different_kinds(field: str) -> None:
    one = Resource("dag", "alpha", "a")
    assert by_kind([one, change(one, **{field: OTHER[field]})], lambda _: True) is None
    assert by_kind([one, change(one, id="b")], lambda _: True) == ((one,), [0, 0])


def test_a_policy_that_replaces_the_one_of_the_kinds_is_asked_about_each_resource(
    engine: InProcess, asked: list[list[str]]
) -> None:
    point = DecisionPoint(engine)
    # To the policy before it all were alike.
    point._kept = lambda: Kept("before", is_alike=lambda _: True)
    names = ["a", "b", "secret1"]
    allowed = point.allowed(Evaluations(BOB, "read", dags("alpha", *names)))
    assert [resource.id for resource in allowed] == ["a", "b"]
    assert asked == [["a"], names]


NO_TABLES = (
    b"", b"[]", b'"site"', b'{"site":1,"teams":{"alpha":true},"others":true}',
    b'{"site":true,"teams":{"alpha":"true"}}', b'{"site":false,"others":true}',
)  # fmt: skip


@pytest.mark.parametrize("table", NO_TABLES)
def test_what_is_no_table_of_such_owners_makes_nobodys_resources_alike(table: bytes) -> None:
    data = b'{"airflow":{"directory":{"a":1},"regardless_of_id":%b}}' % table if table else b'{"airflow":{}}'
    directory_bytes, alike = _of_data(data)
    assert directory_bytes == (7 if table else 0)
    assert not alike("alpha")
    assert not alike(None)
