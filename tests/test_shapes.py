"""The index of a directory's patterns: what is in it, and where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.opa.shapes import PATTERN_SHAPES, pattern_shapes
from tests.conftest import write

OP = [{"team_id": "<team>", "role": "op"}]
MANY = {f"{number}-<team>": OP for number in range(21)}
DIRECTORY = "airflow/directory/data.json"


def shapes(tables: Any, **others: bytes) -> Any:
    return json.loads(
        pattern_shapes(
            {DIRECTORY: json.dumps(tables).encode(), "airflow/site/a.rego": b"package airflow.site", **others}
        )
    )


def test_patterns_are_found_by_what_is_before_the_first_and_after_the_last_word() -> None:
    odd = {
        "größe <team> x <role> 🚀": OP, "<role><team>": OP, "on call": OP, "a<b": OP, "x<role": OP,
        "<<team>>": OP, "fixed-<role>": [{"team_id": "gamma", "role": "<role>"}, *OP],
    }  # fmt: skip
    found = shapes({"group_patterns": MANY | odd, "role_patterns": odd})
    assert list(found) == ["group_patterns"]
    index = found["group_patterns"]
    assert (index["count"], index["fixed"]) == (28, {"gamma": True})
    assert {pattern: shape for shape, pattern in _shapes(index) if pattern in odd} == {
        "größe <team> x <role> 🚀": ("größe ", " 🚀"), "<role><team>": ("", ""), "on call": ("on call", ""),
        "a<b": ("a<b", ""), "x<role": ("x<role", ""), "<<team>>": ("<", ">"), "fixed-<role>": ("fixed-", ""),
    }  # fmt: skip
    assert {(len(start), len(end)) for (start, end), _ in _shapes(index)} == {tuple(one) for one in index["lengths"]}


def _shapes(index: Any) -> list[tuple[tuple[str, str], str]]:
    return [
        ((start, end), pattern)
        for start, ends in index["patterns"].items()
        for end, patterns in ends.items()
        for pattern in patterns
    ]


ELSEWHERE = (
    "data.json", "airflow/data.yaml", "airflow/directory/data.yml", "airflow/directory/group_patterns/data.json",
    "airflow/directory/a.rego",
)  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_directory_that_may_be_in_several_files_has_no_index(name: str) -> None:
    assert shapes({"group_patterns": MANY})
    assert shapes({"group_patterns": MANY}, **{name: b"{}"}) == {}


@pytest.mark.parametrize(
    "tables", [[], None, 1, {"group_patterns": list(MANY)}, {"groups": MANY}, {"group_patterns": {}}]
)
def test_what_is_no_table_of_patterns_has_no_index(tables: Any) -> None:
    assert shapes(tables) == {}
    assert pattern_shapes({DIRECTORY: b"{"}) == pattern_shapes({}) == pattern_shapes({DIRECTORY: b"\xff"}) == b"{}"


def test_templates_of_a_wrong_form_are_the_compilers_matter() -> None:
    wrong = {
        f"{number}": value for number, value in enumerate([None, 1, "x", [1], [{"team_id": 1}], [{}], {"team_id": "x"}])
    }
    assert shapes({"role_patterns": MANY | wrong})["role_patterns"]["fixed"] == {}


def test_a_bundles_own_index_is_made_anew() -> None:
    assert (
        shapes({"group_patterns": MANY}, **{PATTERN_SHAPES: b'{"group_patterns":{}}'})["group_patterns"]["count"] == 21
    )


OF_DIRECTORY = (
    "package airflow.directory", "package airflow.directory # here", "  package\tairflow.directory.group_patterns",
    'package airflow["directory"]', "package airflow", "package # here\nairflow.directory",
    "package\nairflow.directory", "#\rpackage airflow.site\npackage airflow.directory", "",
)  # fmt: skip
OF_OTHERS = (
    "# METADATA\n# title: x\npackage airflow.site # airflow.directory", "package airflow.directory_of_us", "package a",
)  # fmt: skip


@pytest.mark.parametrize("package", [*OF_DIRECTORY, *OF_OTHERS])
def test_a_directory_to_which_a_rule_may_add_has_no_index(package: str) -> None:
    rules = f'{package}\n\ngroup_patterns["1-<team>"] := []\n'.encode()
    assert bool(shapes({"group_patterns": MANY}, **{"airflow/site/more.rego": rules})) is (package in OF_OTHERS)


def test_a_rule_of_the_directory_counts_for_one_team_as_for_several(tmp_path: Path) -> None:
    """An index would know the entries of the data only, and OPA takes the rule's."""
    rule = 'package airflow.directory\n\ngroup_patterns["1-<team>"] := [{"team_id": "gamma", "role": "op"}]\n'
    files = {DIRECTORY: json.dumps({"group_patterns": MANY}), "airflow/site/directory.rego": rule}
    compile_directory(write(tmp_path / "policy", files), tmp_path / "bundle.tar.gz")
    point = DecisionPoint(InProcess(tmp_path / "bundle.tar.gz"))
    ann, dags = Subject("user", "ann", groups=("1-alpha",)), [Resource("dag", team, "d") for team in ("alpha", "gamma")]
    together = point.allowed(Evaluations(ann, "read", dags))
    assert [dag for dag in dags if point.allowed(Evaluations(ann, "read", [dag]))] == together
    assert dags[1] in together
    point.close()
