"""``team-authz shadow report`` and ``replay``: what the log says of another policy."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.decision_log.bursts import Repeated
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Beside, Entry, Form, Gap, Listed, new_id
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Decision, Evaluations, Resource, Subject, TooLongError
from airflow_team_authz.opa.compile import compile_directory
from tests.cli.conftest import Run
from tests.conftest import REPOSITORY, write

NO = Decision(False, ("user bob may not",), "default")
LENT = Decision(True, ("alpha lends db",), "team")
DB = Resource("connection", "alpha", "db")
BOB, BEA = (Subject("user", name, team_ids=("beta",), roles=("viewer",)) for name in ("bob", "bea"))
ANN = Subject("user", "ann", team_ids=("alpha",), roles=("op",))
ANNS = {("ann", action, id_) for action in ("read", "update") for id_ in ("db", "other")} | {
    ("ann", "update", "warehouse")
}
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
    assert lost.startswith(
        "a task of team beta loses: read dag \\x1b[2Jforged\\n`x` of team beta, since user bob may not"
    )
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
    assert report([*OPENS, CLOSES], "--user", "bea", "--type", "connection").stdout.count("1 decision of bea") == 1
    assert report([*OPENS, CLOSES], "--since", "2099-01-01").stdout.startswith("\nNothing would be gained or lost")


def test_two_policies_in_one_report_are_told(report: Any) -> None:
    other = difference(BOB, NO, LENT)
    other["bundles"]["authz"]["revision"] = "r0"
    assert "The policy in force has changed meanwhile: revisions r1, r0." in report([*OPENS, other]).stdout


def test_what_the_policy_only_observed_is_told_by_person(run: Run, tmp_path: Path) -> None:
    records = [difference(who, old, LENT, outcome="observe") for who in (BOB, BEA) for old in (NO, NO)]
    File(tmp_path / "log.ndjson").write([*records, *OPENS])
    command = ("observe", "report", "--file", tmp_path / "log.ndjson", "--fail-on", "gained")
    result = run(*command)
    assert result.exit_code == 1
    alike, _, summary = result.stdout.splitlines()
    assert alike.startswith(
        "user bob, user bea gain: read connection db of team alpha, by the team (alpha lends db): 4"
    )
    assert summary.startswith("4 recorded decisions would be different")
    assert run(*command, "--by", "groups").stdout.startswith(
        "people with the login's role viewer and of team beta gain:"
    )


HOSTILE = 'a"b\n} deny contains "x" if true #\u2028\x1b \U0001f600 \\'
DANGER = Resource("connection", "beta", "closed")
OBSERVED = [
    # The policy allows to ann what she did not have, and refuses to bob what he had.
    difference(ANN, NO, LENT, Resource("connection", "alpha", "warehouse")),
    difference(BOB, Decision(True, ("",), "default"), NO),
    difference(BOB, Decision(True, ("",), "default"), NO, Resource("dag", "alpha", HOSTILE, "run")),
    difference(BEA, Decision(True, ("",), "default"), NO, Resource("pool", "alpha")),
    difference(BEA, Decision(True, ("",), "default"), Decision(False, ("closed",), "team"), DANGER),
    difference(Subject("user", HOSTILE, groups=("g", HOSTILE)), Decision(True, ("",), "default"), NO),
]
CLOSED_DB = """package teams.beta

deny contains "closed" if input.resource.id == "closed"
"""


@pytest.mark.parametrize("by", ["person", "groups"])
def test_proposed_rules_give_the_answers_that_people_had(run: Run, tmp_path: Path, by: str) -> None:
    policy = write(tmp_path / "policy", {"teams/beta/beta.rego": CLOSED_DB})
    log, rules = tmp_path / "log.ndjson", policy / "airflow/site/observed.rego"
    rules.parent.mkdir(parents=True)
    File(log).write([one | {"custom": one["custom"] | {"outcome": "observe"}} for one in OBSERVED])
    command = ("observe", "report", "--file", log, "--by", by, "--rules", rules, "--policy", policy)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert f"They end 5 of 6 differences in a copy of {policy}" in result.stderr
    assert "no added rule ends this difference: bea read connection closed, team: closed" in result.stderr
    for checks in (("opa", "check", "--strict"), ("opa", "fmt", "--fail", "--list"), ("regal", "lint")):
        subprocess.run([*checks, str(policy / "airflow")], check=True, capture_output=True)
    compile_directory(policy, tmp_path / "new.tar.gz")
    engine = InProcess(tmp_path / "new.tar.gz")
    allowed = {
        (subject.id, action, id_)
        for subject in (ANN, BOB, BEA, Subject("user", "eve"))
        for action in ("read", "update")
        for id_ in ("db", "warehouse", "other")
        if DecisionPoint(engine).allowed(Evaluations(subject, action, [Resource("connection", "alpha", id_)]))
    }
    engine.close()
    # Not one right more. Bea has the same login as bob, if names do not count.
    assert allowed == ANNS | {(who, "read", "db") for who in (("bob",) if by == "person" else ("bob", "bea"))}


@pytest.mark.parametrize("policy", [(), ("--policy", "bundle.tar.gz"), ("--policy", "nowhere")])
def test_proposed_rules_need_a_policy_to_test_them(run: Run, tmp_path: Path, policy: tuple[str, ...]) -> None:
    File(tmp_path / "log.ndjson").write(OBSERVED)
    result = run("observe", "report", "--file", tmp_path / "log.ndjson", "--rules", tmp_path / "rules.rego", *policy)
    assert result.exit_code == 2
    assert f"{policy[0] if policy else '[team_authz] policy'} is not a directory" in result.stderr
    assert not (tmp_path / "rules.rego").exists()


@pytest.mark.parametrize("name", ["rules.txt", "rules_test.rego", "here.rego", "site.rego", "nowhere/rules.rego"])
def test_proposed_rules_replace_no_others(run: Run, tmp_path: Path, name: str) -> None:
    policy = write(tmp_path / "policy", {"airflow/site/site.rego": "package airflow.site\n"})
    written = write(tmp_path, {"here.rego": "package airflow.site\n"}) / name
    before = written.exists()
    File(tmp_path / "log.ndjson").write(OBSERVED)
    result = run(
        "observe", "report", "--file", tmp_path / "log.ndjson", "--rules", written, "--policy", policy
    )  # fmt: skip
    assert result.exit_code == 2
    assert written.name in result.stderr
    assert written.exists() is before
    assert not before or written.read_text() == "package airflow.site\n"


def test_what_others_have_written_into_a_log_does_nothing_in_a_report(report: Any) -> None:
    other = difference(Subject("user", "\x1b[2J<b>`x`\nforged", groups=("g" * 5_000,)), NO, LENT)
    other["bundles"]["authz"]["revision"] = "<script>alert(1)</script>"
    other["decision_id"] = "![x](https://x)\n# forged"
    broken = [
        {"decision_id": "x"},
        {"decision_id": "y", "custom": 7},
        {"decision_id": "z", "custom": {"outcome": "shadow"}},
    ]
    for form in ("markdown", "json"):
        result = report([*OPENS, other, *({"timestamp": "2026-11-27T04:19:09Z"} | one for one in broken)], "-o", form)
        assert result.exit_code == 0, result.output
        assert not any(line.startswith(("forged", "# forged")) for line in result.stdout.splitlines())
        assert "\x1b" not in result.stdout
        if form == "markdown":
            shown = re.sub("``.*?``", "", result.stdout)
            assert "<" not in shown
            assert "[x]" not in shown


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


# team-authz replay

SLOW = """package teams.alpha

allow contains "slow" if {
	some i in data.teams.alpha.numbers
	some j in data.teams.alpha.numbers
	i * j == -1
}
"""
CLOSED = """package teams.alpha

deny contains "alpha is closed" if input.resource.id == "db"
"""


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy in which nobody has anything of team alpha's db."""
    place = tmp_path_factory.mktemp("replay")
    compile_directory(write(place / "next", {"teams/alpha/alpha.rego": CLOSED}), place / "next.tar.gz")
    return place / "next.tar.gz"


OP = Subject("user", "ann", team_ids=("alpha",), roles=("op",))
YES = Decision(True, ("op in team alpha",), "baseline")
OTHER_DB = Resource("connection", "alpha", "other")


def decided(
    resources: list[Resource], said: list[Decision] | None, subject: Subject = OP, door: str = "users", **named: Any
) -> dict[str, Any]:
    """The record of a decision, or of a list that refuses these."""
    question = Evaluations(subject, "update", ())
    allowed = sum(one.allow for one in said or ())
    at, asked = 1_790_000_000 * 10**9, len(resources)
    entry = Entry(new_id(), at, 7, Origin(door), question, "r1", asked, allowed, resources, said)
    return Form().record(entry._replace(**named))


def of_opa(path: str, input_: dict[str, Any], result: Any, **named: Any) -> dict[str, Any]:
    """An event of a stock OPA's log."""
    told = {"path": path, "input": input_, "result": result, "timestamp": "2026-11-27T04:19:09.551292123Z"}
    return {"decision_id": f"opa-{path}", "bundles": {"authz": {"revision": "o1"}}, **told, **named}


LIST: dict[str, Any] = {
    "subject": {"type": "user", "id": "ann", "team_ids": ["alpha"], "roles": ["op"]},
    "action": "update",
    "resources": [{"type": "connection", "id": id_, "team_id": "alpha"} for id_ in ("db", "other")],
}


DB_ASKED = LIST["resources"][0]
ONE: dict[str, Any] = {"subject": LIST["subject"], "action": "update", "resource": DB_ASKED}


def test_recorded_decisions_are_decided_again_exactly(run: Run, tmp_path: Path, candidate: Path) -> None:
    burst = Repeated(new_id(), 4, 1.0, 2.0)
    masked = Form("/input/subject/roles")
    hidden = decided([DB], [YES])
    masked.mask(hidden)
    secret = decided([Resource("connection", "alpha", "***")], [YES])
    records = [
        decided([DB], [YES]),
        decided([OTHER_DB, DB], [YES, YES]),
        decided([OTHER_DB], [YES]),
        # Refused in a list, which has one more that is not told.
        decided([DB], None, asked=2, allowed=1),
        decided([OTHER_DB], [Decision(False, ("no",), "default")], repeated=burst),
        hidden, secret,
        decided([DB], None, error=TooLongError("slow")),
        decided([DB], [NO], nanoseconds=0, revision=""),
        difference(BOB, NO, LENT),
        Form().gap(Gap(7, 1, 2), "a sink"),
        decided([DB], [YES]) | {"input": {"subject": {"type": "user"}, "action": "update"}},
    ]  # fmt: skip
    File(tmp_path / "log.ndjson").write(records)
    result = run("replay", candidate, "--file", tmp_path / "log.ndjson", "--output", "json", "--fail-on", "any")
    assert result.exit_code == 1, result.stderr
    told = json.loads(result.stdout)
    gained, lost = told["changes"]
    assert (gained["decisions"], gained["permissions"][0]["id"]) == (4, "other")
    assert (lost["decisions"], lost["people"], lost["decision_id"]) == (2, ["ann"], records[0]["decision_id"])
    assert lost["where"] == ["teams/alpha/alpha.rego:3"]
    assert lost["reasons"] == ["alpha is closed"]
    assert told["questions"] == 9
    assert told["left_out"] == {
        "decisions that the log has lost": 7,
        "decisions whose question has *** for what looks like a secret": 1,
        "decisions whose question is masked": 1,
        "questions without an answer, since the engine failed": 1,
        "records of another form": 1,
        "refusals of Airflow's routes about which the policy was not asked": 1,
        "resources of long questions, and allowed ones of lists, that are not in the log": 1,
        "decisions that the levels of the decision log leave out, such as allowed reads": 0,
    }
    assert run("replay", candidate, "--file", tmp_path / "log.ndjson", "--door", "tasks").exit_code == 2
    assert "lose: update connection db of team alpha, by teams/alpha/alpha.rego:3 (alpha is closed): 2" in lost["told"]


def test_the_log_of_a_stock_opa_is_decided_again(run: Run, tmp_path: Path, candidate: Path) -> None:
    one: dict[str, Any] = {name: part for name, part in LIST.items() if name != "resources"} | {
        "resource": LIST["resources"][0]
    }
    lines = [
        of_opa("airflow/authz/allowed", LIST, [0, 1]),
        of_opa("airflow/authz/decisions", LIST, [{"allow": True}, {"allow": True}], erased=["/input/subject/groups"]),
        of_opa("airflow/authz/decision", one, {"allow": False}),
        of_opa("airflow/authz/allowed", LIST, [0, 2]),
        of_opa("system/main", {"x": 1}, True),
        {"level": "info", "msg": "Initializing server."},
        of_opa("airflow/authz/decision", one, {"allow": True}, timestamp="yesterday"),
    ]
    (tmp_path / "opa.ndjson").write_text("not JSON\n" + "\n".join(map(json.dumps, lines)))
    told = json.loads(run("replay", candidate, "--against", tmp_path / "opa.ndjson", "-o", "json").stdout)
    (lost,) = told["changes"]
    assert (lost["direction"], lost["decisions"], told["questions"]) == ("lost", 1, 3)
    assert told["left_out"]["decisions whose question is masked"] == 1
    assert told["left_out"]["records of another form"] == 1
    options = ("--user", "ann", "--door", "opa", "--since", "2026-11-01")
    text = run("replay", candidate, "--against", tmp_path / "opa.ndjson", *options).stdout
    assert "1 of 3 recorded decisions would be different" in text


OF_ANOTHER_FORM: list[dict[str, Any]] = [
    {"erased": 5}, {"erased": {"x": 1}, "result": None}, {"result": "yes"}, {"result": {"allow": 1}}, {"input": []},
    {"input": None}, {"input": {"subject": "ann", "action": "update", "resource": DB_ASKED}},
    {"input": {**ONE, "resource": [DB_ASKED]}}, {"input": {**ONE, "resources": DB_ASKED}},
    {"input": {**ONE, "subject": {"type": "user", "id": "\ud800"}}}, {"input": {**ONE, "context": []}},
    *({"custom": {"outcome": "allow", "repeated": wrong}} for wrong in (5, [], {}, {"times": True}, {"times": "9"})),
    {"path": "airflow/authz/allowed", "input": LIST, "result": [True], "custom": {}},
    {"path": "airflow/authz/allowed", "input": LIST, "result": {"0": 1}, "custom": {}},
]  # fmt: skip


@pytest.mark.parametrize("place", ["--against", "--file"])
def test_a_record_of_any_form_is_counted_and_never_guessed(
    run: Run, tmp_path: Path, candidate: Path, place: str
) -> None:
    good = decided([DB], [YES])
    # These say nothing of the question or its answer.
    same: list[dict[str, Any]] = [
        {"metrics": []}, {"bundles": [1]}, {"custom": "x"}, {"custom": {"outcome": "allow", "candidate": {"more": 99}}},
        {"custom": {"outcome": "allow", "candidate": 1, "asked": "x"}},
    ]  # fmt: skip
    lines = [json.dumps(good | wrong) for wrong in (*OF_ANOTHER_FORM, *same)]
    undated = [json.dumps(good | {"timestamp": wrong}) for wrong in (None, 7, "yesterday", "2026-11-27T08:00:00")]
    (tmp_path / "log.ndjson").write_text("\n".join([*lines, *undated, "[" * 100_000, "1", ""]))
    for options in ([], ["--user", "ann", "--door", "users", "--since", "2026-01-01"]):
        result = run("replay", candidate, place, tmp_path / "log.ndjson", "-o", "json", *options)
        assert result.exit_code == 0, (result.stderr, result.exception)
        told = json.loads(result.stdout)
        if not options:
            assert told["questions"] == len(same)
            assert told["left_out"]["records of another form"] == len(OF_ANOTHER_FORM)
        (lost,) = told["changes"]
        assert (lost["direction"], lost["decisions"]) == ("lost", told["questions"])


@pytest.mark.parametrize("form", ["table", "csv"])
def test_a_record_of_any_form_has_a_line(run: Run, tmp_path: Path, form: str) -> None:
    more = [{"custom": {"outcome": outcome, "candidate": []}} for outcome in ("shadow", "deny")]
    more += [{"custom": {"outcome": "gap"}}, {"custom": {"outcome": "deny", "repeated": {"times": [7]}, "door": 5}}]
    lines = [json.dumps(decided([DB], [NO]) | wrong) for wrong in (*OF_ANOTHER_FORM, *more)]
    (tmp_path / "log.ndjson").write_text("\n".join([*lines, ""]))
    shown = [run("decisions", "--file", tmp_path / "log.ndjson", "-o", form, *option) for option in ([], ["--shadow"])]
    assert [result.exit_code for result in shown] == [0, 0], [result.exception for result in shown]
    # A gap is in both, and each has a head.
    assert sum(len(result.stdout.splitlines()) for result in shown) == len(lines) + 3
    assert "a record of another form" in shown[0].stdout
    for line in map(json.loads, lines[-4:]):
        single = run("decisions", "--file", tmp_path / "log.ndjson", line["decision_id"], "-o", "table")
        assert (single.exit_code, line["decision_id"] in single.stdout) == (0, True), single.exception


def test_a_difference_of_any_form_is_counted_and_never_guessed(report: Any) -> None:
    wrong: list[dict[str, Any]] = [
        {"candidate": wrong, "outcome": "shadow"}
        for wrong in (None, [], "x", {}, {"result": {"allow": "yes"}}, {"error": 5}, {"error": {}})
    ]
    wrong.append({**OPENS[0]["custom"], "repeated": {"times": 0}})
    told = json.loads(report([*OPENS, *(OPENS[0] | {"custom": one} for one in wrong)], "--output", "json").stdout)
    assert [change["decisions"] for change in told["changes"]] == [3]
    assert told["left_out"]["records of another form"] == len(wrong)


def test_a_log_without_decisions_is_no_log_without_differences(run: Run, tmp_path: Path, candidate: Path) -> None:
    (tmp_path / "log.ndjson").write_text("")
    result = run("replay", candidate, "--file", tmp_path / "log.ndjson")
    assert result.exit_code == 2
    assert "nothing is compared" in result.stderr


@pytest.mark.exhaustive
def test_a_candidate_that_fails_about_a_record_is_told(run: Run, tmp_path: Path) -> None:
    data = json.dumps({"numbers": list(range(5000))})
    broken = write(tmp_path / "broken", {"teams/alpha/alpha.rego": SLOW, "teams/alpha/data.json": data})
    File(tmp_path / "log.ndjson").write([decided([OTHER_DB], [NO]), decided([Resource("pool", None, "p")], [NO], BOB)])
    result = run("replay", broken, "--file", tmp_path / "log.ndjson")
    assert result.exit_code == 2
    assert "has not answered 1 questions: no decision about team alpha" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "there is no nowhere"),
        ([".", "--file", "a", "--against", "b"], "exclude each other"),
        ([".", "--against", "/no/such/log"], "the decision log /no/such/log cannot be read"),
    ],
)
def test_what_cannot_be_decided_again_is_told(run: Run, arguments: list[str], told: str, candidate: Path) -> None:
    named = [str(candidate) if argument == "." else argument for argument in arguments]
    result = run("replay", *named)
    assert result.exit_code == 2
    assert told in result.stderr
