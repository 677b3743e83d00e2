"""The gate over the corpus: what is hostile is refused for the right reason, what only looks so is not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.gate.check import check_package
from airflow_team_authz.opa.compile import find_opa
from tests.gate.corpus import FINE, HOSTILE

ASKED = {
    "subject": {"type": "user", "id": "ann", "team_ids": ["alpha"], "roles": ["op"], "claims": {"dept": ["sales"]}},
    "action": "read",
    "resource": {"type": "connection", "id": "pg", "team_id": "alpha"},
}
DATA = {"names": ["ann"], "lent": {"pg": True}}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}},
        "lent": {"type": "object", "additionalProperties": {"type": "boolean"}},
    },
}
TEST = f"""package teams.alpha_test

import data.teams.alpha

test_asked if {{
	team := alpha with input as {json.dumps(ASKED)}
	is_object(team)
}}
"""
# Of these a package may have some beside what it is refused for.
BESIDE = {"format", "coverage", "test-failed", "no-tests", "merged"}


def formatted(text: str) -> bytes:
    done = subprocess.run([find_opa(), "fmt"], input=text, capture_output=True, text=True, check=False)
    return (done.stdout or text).encode()


def package(rego: str, typed: bool, tested: bool = True) -> dict[str, bytes]:
    """``typed``: with a schema of its data; ``tested``: with tests, which take the gate most of its time."""
    files = {
        "teams/alpha/alpha.rego": formatted(f"package teams.alpha\n\n{rego}"),
        "teams/alpha/data.json": json.dumps(DATA).encode(),
    }
    files |= {"teams/alpha/alpha_test.rego": formatted(TEST)} if tested else {}
    return files | ({"teams/alpha/schema.json": json.dumps(SCHEMA).encode()} if typed else {})


def some(cases: Iterable[str], often: int) -> list[Any]:
    """Every case, of which one in so many is run by default: the gate takes half a second for each."""
    return [
        case if number % often == 0 else pytest.param(case, marks=pytest.mark.exhaustive)
        for number, case in enumerate(cases)
    ]


# What only reads what is not the team's is refused while the text is walked.
_READS = {case for case, hostile in HOSTILE.items() if hostile.rules == {"foreign-data"}}


@pytest.mark.parametrize("case", [*some(sorted(_READS), 6), *some((case for case in HOSTILE if case not in _READS), 3)])
def test_what_is_hostile_is_refused(case: str) -> None:
    hostile = HOSTILE[case]
    files = package(hostile.rego, typed=False, tested=False)
    found = check_package(files, "alpha")
    # What is refused for another reason may be unknown to OPA as well, or of no known type.
    assert {finding.rule for finding in found} - BESIDE - ({"check", "operand-type"} - hostile.rules) == hostile.rules
    lines = files["teams/alpha/alpha.rego"].decode().split("\n")
    here = [number for number, line in enumerate(lines, 1) if line.endswith("# here")]
    if here:
        told = [finding for finding in found if finding.rule in hostile.rules - {"schema-missing"}]
        # Formatting may put the mark a line or two away from what it stood behind.
        assert any(finding.file.endswith("alpha.rego") and abs(finding.line - here[0]) <= 2 for finding in told)
    assert all(finding.message and finding.help for finding in found)


@pytest.mark.parametrize("case", some(FINE, 3))
def test_what_only_looks_hostile_is_fine(case: str) -> None:
    found = check_package(package(FINE[case], typed=True), "alpha")
    # A question goes one way only, past the branch of an else.
    assert [finding for finding in found if finding.rule != "coverage"] == []


def test_names_that_only_tests_declare_are_open() -> None:
    files = package('kind := role if input.subject.claims[role]\n\nallow contains "x" if kind == "dept"\n', typed=True)
    files["teams/alpha/more_test.rego"] = formatted('package teams.alpha\n\nrole := "dept"\n')
    assert "may-conflict" in {finding.rule for finding in check_package(files, "alpha")}


def test_another_file_may_define_the_same_rule() -> None:
    files = package('x := ["a"] if input.action == "read"\n\nallow contains "x" if concat("", x) == "a"\n', typed=True)
    assert "operand-type" not in {finding.rule for finding in check_package(files, "alpha")}
    files["teams/alpha/more.rego"] = formatted("package teams.alpha\n\ndefault x := [1]\n")
    assert "operand-type" in {finding.rule for finding in check_package(files, "alpha")}


def test_the_corpus_is_there() -> None:
    assert len(HOSTILE) >= 60
    assert len(FINE) >= 20


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    cases = ("another team", "with input", "allow is true", "a pattern in a variable", "the clock")
    files = {
        f"teams/alpha/{number}.rego": formatted(f"package teams.alpha.p{number}\n\n{HOSTILE[case].rego}")
        for number, case in enumerate(cases)
    }
    files |= {"teams/alpha/main.rego": b"package teams.alpha\nallow  := true\n", "teams/alpha/data.json": b"{"}
    found = {finding.rule for finding in check_package(files, "alpha")}
    assert {"foreign-data", "with", "entry-rule", "pattern", "check", "format", "data-invalid", "no-tests"} <= found
    assert not list(tmp_path.iterdir())
