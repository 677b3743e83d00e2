"""Findings as SARIF, as its standard has it (sections 3.13 to 3.30): code review refuses what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from airflow_team_authz.cli import app
from airflow_team_authz.gate.findings import Finding, sarif

# A URI reference: what is not a letter, digit or one of these is percent-encoded.
_URI = re.compile(r"(?:[A-Za-z0-9._~/-]|%[0-9A-F]{2})+")


def located(report: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Rule, file and line of each result of a report, which has all that the standard requires and nothing unknown."""
    assert report.keys() == {"$schema", "version", "runs"}
    assert (report["version"], report["$schema"].startswith("https://")) == ("2.1.0", True)
    (run,) = report["runs"]
    assert run.keys() == {"tool", "results"}
    assert run["tool"].keys() == {"driver"}
    driver = run["tool"]["driver"]
    assert driver.keys() == {"name", "rules"}
    assert isinstance(driver["name"], str)
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids))
    for rule in driver["rules"]:
        assert rule.keys() == {"id", "shortDescription", "help"}
        for text in (rule["shortDescription"], rule["help"]):
            assert text.keys() == {"text"}
            assert text["text"]
    return [_located(result, ids) for result in run["results"]]


def _located(result: dict[str, Any], ids: list[str]) -> tuple[str, str, int]:
    assert result.keys() == {"ruleId", "ruleIndex", "level", "message", "locations"}
    assert ids[result["ruleIndex"]] == result["ruleId"]
    assert result["level"] in {"none", "note", "warning", "error"}
    assert result["message"].keys() == {"text"}
    assert result["message"]["text"]
    (location,) = result["locations"]
    assert location.keys() == {"physicalLocation"}
    place = location["physicalLocation"]
    assert place.keys() == {"artifactLocation", "region"}
    assert place["artifactLocation"].keys() == {"uri"}
    assert _URI.fullmatch(place["artifactLocation"]["uri"])
    assert place["region"].keys() == {"startLine"}
    assert place["region"]["startLine"] >= 1
    return result["ruleId"], place["artifactLocation"]["uri"], place["region"]["startLine"]


def finding(file: str, line: int = 1, rule: str = "check") -> Finding:
    return Finding(rule, file, line, "it is wrong", "correct it")


def test_nothing_found_is_a_report_too() -> None:
    assert located(sarif([])) == []


def test_rules_and_lines_are_as_the_standard_has_them() -> None:
    found = [finding("teams/alpha/a.rego", 3, "with"), finding("teams/alpha/a.rego", 0), finding("teams/alpha/b.rego")]
    assert located(sarif(found)) == [
        ("with", "teams/alpha/a.rego", 3),
        ("check", "teams/alpha/a.rego", 1),
        ("check", "teams/alpha/b.rego", 1),
    ]


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("teams/alpha/a b.rego", "teams/alpha/a%20b.rego"),
        ("teams/alpha/50%.rego", "teams/alpha/50%25.rego"),
        ("teams/alpha/x:y?#.rego", "teams/alpha/x%3Ay%3F%23.rego"),
        ("teams/alpha/ä.rego", "teams/alpha/%C3%A4.rego"),
    ],
)
def test_names_of_files_are_encoded(file: str, uri: str) -> None:
    assert located(sarif([finding(file)])) == [("check", uri, 1)]


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["data.json", "a_test.rego", "z.rego", "m.rego"], "teams/alpha/m.rego"),
        (["data.json", "a_test.rego"], "teams/alpha/a_test.rego"),
        (["schema.json", "data.json"], "teams/alpha/data.json"),
        ([], "teams/alpha/alpha.rego"),
    ],
)
def test_what_is_wrong_with_a_package_is_shown_at_a_file(files: list[str], shown: str) -> None:
    names = [f"teams/alpha/{name}" for name in files] + ["teams/alpha_two/a.rego"]
    assert located(sarif([finding("teams/alpha")], names)) == [("check", shown, 1)]


def test_the_command_shows_files_that_there_are(tmp_path: Path) -> None:
    for team in ("alpha", "beta"):
        (tmp_path / "teams" / team).mkdir(parents=True)
        (tmp_path / "teams" / team / "rules.rego").write_text(f"package teams.{team}\n")
    (tmp_path / "teams/beta/a b.rego").write_text("package teams.beta\n")
    done = CliRunner().invoke(app, ["bundle", "check", str(tmp_path), "--output", "sarif"])
    assert done.exit_code == 1
    assert located(json.loads(done.stdout)) == [
        ("no-tests", "teams/alpha/rules.rego", 1),
        ("file-name", "teams/beta/a%20b.rego", 1),
    ]
