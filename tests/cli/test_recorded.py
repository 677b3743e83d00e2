"""``team-authz shadow report``: what the log says of another policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Beside, Entry, Form, Gap, Listed, new_id
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.model import Decision, Evaluations, Resource, Subject, TooLongError
from tests.cli.conftest import Run
from tests.conftest import REPOSITORY

NO = Decision(False, ("user bob may not",), "default")
LENT = Decision(True, ("alpha lends db",), "team")
DB = Resource("connection", "alpha", "db")
BOB, BEA = (Subject("user", name, team_ids=("beta",), roles=("viewer",)) for name in ("bob", "bea"))
TASK = Subject("task", "d.t", team_ids=("beta",), dag_id="d", task_id="t", run_id="r")


def difference(
    subject: Subject, old: Decision | Listed, new: Decision | None, resource: Resource = DB, **named: Any
) -> dict[str, Any]:
    error = None if new else TooLongError("the rules of team alpha take too long")
    question = Evaluations(subject, "read", ())
    entry = Entry(
        new_id(), 1_790_000_000 * 10**9, 1, Origin("users"), question, "r1", 1, int(old.allow), [resource], [old]
    )
    return Form().record(entry._replace(beside=Beside(new, error, "r2", **named)))


OPENS = [difference(BOB, NO, LENT), difference(BOB, NO, LENT), difference(BEA, NO, LENT)]
CLOSES = difference(TASK, Listed(True), NO, Resource("dag", "beta", "\x1b[2Jforged\n`x`"), more=9)
FAILS = difference(BOB, NO, None)


@pytest.fixture
def report(run: Run, tmp_path: Path) -> Any:
    """Runs the command over these records."""

    def report(records: list[dict[str, Any]], *options: str) -> Any:
        (tmp_path / "log.ndjson").unlink(missing_ok=True)
        File(tmp_path / "log.ndjson").write(records)
        return run("shadow", "report", "--file", tmp_path / "log.ndjson", *options)

    return report


def test_the_report_is_as_documented(report: Any) -> None:
    result = report([*OPENS, CLOSES])
    assert result.exit_code == 0
    gained, lost, empty, summary = result.stdout.splitlines()
    page = (REPOSITORY / "docs/review.md").read_text()
    documented = next(line for line in page.splitlines() if line.startswith("people with the login's role viewer"))
    assert gained.partition(": 3 decisions")[0] == documented.partition(": 12 decisions")[0]
    assert gained.endswith(f": 3 decisions of bob, bea, such as {OPENS[0]['decision_id']}")
    assert lost.startswith("a task of team beta loses: read dag \\x1b[2Jforged\\n`x` of team beta, by no rule or role")
    assert ": 10 decisions of d.t" in lost
    assert empty == ""
    assert summary.startswith("13 recorded decisions would be different, from 2026-09-21T")


def test_programs_get_the_same(report: Any) -> None:
    result = report([*OPENS, CLOSES], "--output", "json")
    told = json.loads(result.stdout)
    gained, lost = told["changes"]
    assert (gained["direction"], gained["decisions"], gained["people"]) == ("gained", 3, ["bob", "bea"])
    assert gained["permissions"] == [{"action": "read", "type": "connection", "id": "db"}]
    assert gained["question"]["subject"]["id"] == "bob"
    assert "answer.allow" in gained["rego_test"]
    assert lost["direction"] == "lost"
    assert (told["policies"], told["candidates"]) == (["r1"], ["r2"])


@pytest.mark.parametrize(
    ("records", "fail_on", "code"),
    [
        ([CLOSES], "gained", 0), ([CLOSES], "lost", 1), ([CLOSES], "any", 1), (OPENS, "gained", 1), (OPENS, "lost", 0),
        ([], "any", 0), ([FAILS], "any", 2),
    ],
)  # fmt: skip
def test_the_exit_code_says_what_would_change(report: Any, records: Any, fail_on: str, code: int) -> None:
    assert report(records, "--fail-on", fail_on).exit_code == code


def test_a_shadow_that_fails_is_none_without_differences(report: Any) -> None:
    result = report([FAILS])
    assert result.exit_code == 2
    assert "the shadow policy has not answered 1 questions: the rules of team alpha take too long" in result.stderr


def test_what_is_not_seen_is_told(report: Any) -> None:
    result = report([*OPENS, Form().gap(Gap(7, 1, 2), "the shadow policy")], "--output", "markdown")
    assert "## Gained" in result.stdout
    assert "- Not seen: 7 decisions that the log has lost." in result.stdout


def test_only_wanted_records_are_counted(report: Any) -> None:
    assert report([*OPENS, CLOSES], "--user", "bea", "--output", "json").stdout.count('"decisions": 1') == 1
    assert "gain" not in report([*OPENS, CLOSES], "--type", "dag").stdout
    assert report([*OPENS, CLOSES], "--since", "2099-01-01").stdout.startswith("\nNothing would be gained or lost")


def test_two_policies_in_one_report_are_told(report: Any) -> None:
    other = difference(BOB, NO, LENT)
    other["bundles"]["authz"]["revision"] = "r0"
    assert "The policy in force has changed meanwhile: revisions r1, r0." in report([*OPENS, other]).stdout


def test_a_log_that_is_not_there_is_told(run: Run) -> None:
    result = run("shadow", "report", "--file", "/no/such/log")
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr


def test_single_differences_are_shown_by_decisions(run: Run, tmp_path: Path) -> None:
    plain = Form().record(Entry(new_id(), 1, 1, Origin("users"), Evaluations(BOB, "read", ()), "r1", 1, 0, [DB], [NO]))
    File(tmp_path / "log.ndjson").write([plain, *OPENS])
    shown = run("decisions", "--file", tmp_path / "log.ndjson", "--shadow").stdout
    assert plain["decision_id"] not in shown
    assert shown.count("the other policy opens this: alpha lends db") == 3
    shown = run("decisions", "--file", tmp_path / "log.ndjson").stdout
    assert plain["decision_id"] in shown
    assert OPENS[0]["decision_id"] not in shown
    assert "revision r2" in run("decisions", "--file", tmp_path / "log.ndjson", OPENS[0]["decision_id"]).stdout
