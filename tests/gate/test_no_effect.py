"""Rules that cannot have an effect are told: misspelt words, and questions that no door asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airflow_team_authz.cli import app
from airflow_team_authz.gate.check import check_package
from airflow_team_authz.gate.no_effect import ACTIONS, ALWAYS_COMMON, is_asked, vocabulary
from airflow_team_authz.gate.platform_part import check_platform
from airflow_team_authz.gate.policy_files import rule_findings, warnings_of
from airflow_team_authz.opa.compile import shipped_policies
from tests.conftest import write

SITE, ALPHA = "package airflow.site\n\n", "package teams.alpha\n\n"
TYPE, ACTION = 'input.resource.type == "{}"', 'input.action == "{}"'

# What rules of the site, and below of a team, compare; and what is told of it.
MISSPELT = {
    'input.resource.type == "conection"': "input.resource.type is never 'conection': did you mean connection?",
    '"conection" == input.resource.type': "did you mean connection?",
    'not input.resource.type == "conection"': "did you mean connection?",
    'input.resource.type != "Pool"': "did you mean pool?",
    'input.resource.type in {"pool", "variables"}': "did you mean variable?",
    '{"pools"}[input.resource.type]': "did you mean pool?",
    'input.resource.type == {"pool", "dags"}[_]': "did you mean dag?",
    'some word in ["pool", "assett"]; input.resource.type == word': "did you mean asset?",
    'every word in {"dga"} { input.resource.type != word }': "did you mean dag?",
    'count([1 | input.resource.type == "menu"]) == 0': "input.resource.type is never 'menu': known are asset,",
    'word := "dags"; input["resource"]["type"] == word': "did you mean dag?",
    'asked := input.resource; asked.type == "dags"': "did you mean dag?",
    'input.resource.entity == "runs"': "did you mean run?",
    'input.subject.type == "usr"': "did you mean user?",
    '[input.subject.type, input.action] == ["tasks", "read"]': "did you mean task?",
    'input.resource.type == "pool"; input.action == "raed"': "input.action is never 'raed': did you mean read?",
    'input.resource.type in {"dag", "pool"}; input.action in {"read", "updat"}': "did you mean update?",
}
NEVER_ASKED = {
    'input.action == "use"; input.resource.type == "variable"': "what is asked about variable: create, delete, list,",
    'input.action == "use"; input.subject.type == "user"': "input.subject.type user, input.action use",
    'input.action == "menu"; input.resource.type in {"dag", "pool"}': "menu, input.resource.type dag or pool",
    'input.action == "trigger"; input.resource.type == "dag"; not input.resource.entity': "input.action trigger",
    'input.action == "trigger"; input.resource.type == "connection"': "input.resource.type connection",
    'input.resource.type == "pool"; input.resource.entity == "run"': "input.resource.entity run",
    'input.resource.type == "dag"; input.resource.entity == "state"': "input.resource.entity state",
    'input.resource.type == "hitl_task"; not input.action == "update"': "what is asked about hitl_task: update",
    'input.subject.type == "task"; input.resource.type == "configuration"': "what is asked by a task about configur",
    'input.subject.type == "dag_processor"; input.action in {"create", "delete"}': "input.subject.type dag_processor",
    'input.action == "read"; input.action == "update"': "two things as input.action",
    'input.resource.type == "dag"; input.resource.type != "dag"': "two things as input.resource.type",
}  # fmt: skip
OF_A_TEAM = {
    'input.resource.team_id == "beta"': "input.resource.team_id is never beta: leave the line out",
    'input.resource.team_id in {"beta", "gamma"}': "never beta or gamma",
    'input.resource.type == "view"': "view belongs to no team, so no team's rules are asked about it",
    'input.resource.type in {"configuration", "route"}': "configuration or route belongs to no team",
}
MAY_BE_MEANT = {
    ACTION.format("raed"): "never 'raed', but for a plugin's own page: did you mean read?",
    'input.action in {"read", "shw"}': "never 'shw'",
    'input.resource.type == "connection"; input.resource.id == "sales___db"': "a name with ___",
    'input.resource.type == "dag"; input.resource.entity == "run"; input.action == "create"': "asked about as trigger",
}
MEANT = [
    'input.resource.type == "custom_view"; input.action == "can_edit"',
    'input.resource.type == "custom_view"; input.action == "menu"',
    'input.action in {"read", "use"}; input.resource.type == "connection"',
    'input.resource.type != "dag"; input.action == "read"',
    # One that is unlike one of them there always is.
    'some word in {"dag", "pool"}; input.resource.type != word; input.resource.type == "dag"',
    'not input.resource.entity == "run"; not input.resource.entity',
    'not input.resource.entity != "run"; input.resource.type == "pool"',
    'input.resource.entity; input.resource.entity != "run"; input.resource.type == "dag"',
    'input.subject.type == "triggerer"; input.action == "update"; input.resource.entity == "state"',
    'input.subject.type == "watcher"; input.action == "trigger"',
    'input.subject.type == "dag_processor"; input.action == "use"',
    'input.resource.entity == "audit_log"; input.resource.type == "variable"',
    'input.resource.type == "platform_view"; input.action == "delete"',
    'input.resource.delivery.team_id == "beta"; input.action == "trigger"',
    'input.subject.id == "conection"; input.resource.id == "raed"',
    'names := {"x"}; input.subject.id in names',
]


@pytest.fixture(scope="module")
def told() -> dict[tuple[str, str], list[str]]:
    """What is told of each, as a rule of the site and of a team: all in one go, each in a file of its own."""
    files: dict[str, bytes] = {}
    where: dict[str, tuple[str, str]] = {}
    for number, body in enumerate(MISSPELT | NEVER_ASKED | OF_A_TEAM | MAY_BE_MEANT | dict.fromkeys(MEANT, "")):
        for package, root in ((SITE, "airflow/site"), (ALPHA, "teams/alpha")):
            lines = body if "every" in body else body.replace("; ", "\n")
            name = f"{root}/{number}.rego"
            files[name] = f'{package}deny contains "{number}" if {{\n{lines}\n}}\n'.encode()
            where[name] = package, body
    found: dict[tuple[str, str], list[str]] = {place: [] for place in where.values()}
    for one in rule_findings(files):
        assert one.rule == "no-effect"
        assert one.line > 2
        found[where[one.file]].append(f"{one.level}: {one.message}: {one.help}")
    return found


Told = dict[tuple[str, str], list[str]]


@pytest.mark.parametrize("body", sorted(MISSPELT | NEVER_ASKED))
def test_a_rule_that_never_holds_is_told(told: Told, body: str) -> None:
    (found,) = told[SITE, body]
    assert found.startswith("error: ")
    assert (MISSPELT | NEVER_ASKED)[body] in found


@pytest.mark.parametrize("body", sorted(OF_A_TEAM))
def test_a_teams_rule_about_what_is_not_the_teams_is_told(told: Told, body: str) -> None:
    (found,) = told[ALPHA, body]
    assert OF_A_TEAM[body] in found
    assert told[SITE, body] == []


@pytest.mark.parametrize("body", sorted(MAY_BE_MEANT))
def test_what_may_be_meant_is_a_warning(told: Told, body: str) -> None:
    (found,) = told[SITE, body]
    assert found.startswith("warning: ")
    assert MAY_BE_MEANT[body] in found


@pytest.mark.parametrize("body", MEANT)
def test_a_rule_that_may_hold_is_not_told(told: Told, body: str) -> None:
    assert told[SITE, body] == []


def test_names_count_as_what_they_stand_for() -> None:
    """Imports, and rules of the same package in another file; an argument hides both."""
    first = (
        f"{SITE}import input.resource as asked\n\nsort_of := input.resource.type\n\n"
        'x if asked.type == "dags"\n\ny if asked.entity in parts\n\nz if sort_of == "pol"\n\n'
        'f(asked) if asked.type == "dags"\n\ng(parts) if input.resource.entity in parts\n'
    )
    second = f'{SITE}parts := {{"run", "tsk"}}\n'
    listed = rule_findings({"airflow/site/a.rego": first.encode(), "airflow/site/b.rego": second.encode()})
    assert [(one.line, one.help) for one in listed] == [
        (7, "did you mean dag?"), (9, "did you mean task?"), (11, "did you mean pool?"),
    ]  # fmt: skip


def test_each_branch_of_a_rule_is_looked_at() -> None:
    text = f'{SITE}x := 1 if input.action == "read"\nelse := 2 if input.subject.type == "usr"\n'
    assert [one.line for one in rule_findings({"airflow/site/x.rego": text.encode()})] == [4]


NO_REASONS = (
    'deny["x"] if input.action == "read"', 'allow := "x" if input.action == "read"', "default deny := false",
    'deny.x contains "y"', "allow[reason] := 1 if reason := input.action",
    "allow contains false", "deny contains null if input.resource.id", 'deny contains {"code": 1}',
)  # fmt: skip


def test_what_is_no_set_of_reasons_is_told() -> None:
    files = {
        f"teams/t{number}/x.rego": f"package teams.t{number}\n\n{rule}\n" for number, rule in enumerate(NO_REASONS)
    }
    for number, rule in enumerate(('deny contains $"{1}"', 'helper["x"] if input.action == "read"')):
        files[f"teams/r{number}/x.rego"] = f"package teams.r{number}\n\n{rule}\n"
    found = rule_findings({name: text.encode() for name, text in files.items()})
    assert {(one.rule, one.file, one.line) for one in found} == {
        ("entry-rule", f"teams/t{number}/x.rego", 3) for number in range(len(NO_REASONS))
    }
    assert all('contains "the reason" if' in one.help for one in found)


MISNAMED = {"denies": "deny", "Deny": "deny", "deny_interns": "deny", "allows": "allow", "alow": "allow"}


def test_reasons_that_nobody_asks_for_are_told() -> None:
    """Unless a rule of the package reads them."""
    files = {"airflow/site/y.rego": f"{SITE}deny contains reason if some reason in denied\n"}
    for number, name in enumerate([*MISNAMED, "denied", "drawn"]):
        files[f"airflow/site/{number}.rego"] = f'{SITE}{name} contains "x" if input.action == "read"\n'
    found = rule_findings({name: text.encode() for name, text in files.items()})
    assert [(one.file, one.level, one.line, one.help) for one in found] == [
        (f"airflow/site/{number}.rego", "warning", 3, f"did you mean {meant}?")
        for number, meant in enumerate(MISNAMED.values())
    ]


@pytest.mark.parametrize("rule", [NO_REASONS[0], NO_REASONS[2]])
def test_of_the_sites_it_is_told_where_it_is(rule: str) -> None:
    (one,) = rule_findings({"airflow/site/x.rego": f"{SITE}{rule}\n".encode()})
    assert one[:3] == ("entry-rule", "airflow/site/x.rego", 3)


def test_the_gate_and_the_platforms_check_refuse_it() -> None:
    rule = 'deny contains "x" if input.resource.type == "conection"\n'
    (told,) = [
        one for one in check_package({"teams/alpha/x.rego": f"{ALPHA}{rule}".encode()}, "alpha")
        if one.rule == "no-effect"
    ]  # fmt: skip
    assert (told.line, told.help) == (3, "did you mean connection?")
    assert [one.rule for one in check_platform({"airflow/site/x.rego": f"{SITE}{rule}".encode()})] == ["no-effect"]
    # Of what may be meant, they say nothing.
    warned = {"airflow/site/x.rego": f'{SITE}deny contains "x" if input.action == "raed"\n'.encode()}
    assert check_platform(warned) == []
    assert [one.level for one in warnings_of(warned)] == ["warning"]


def test_doctor_tells_it_with_its_line(tmp_path: Path) -> None:
    rules = 'deny contains "x" if input.action == "raed"\n\nallow["y"] if input.resource.type == "conection"\n'
    write(tmp_path, {"airflow/site/x.rego": SITE + rules})
    done = CliRunner().invoke(app, ["doctor", "--rules", "--policy", str(tmp_path), "-o", "json"])
    checks = [(check["ok"], check["detail"].partition(": ")[0]) for check in json.loads(done.stdout)]
    assert done.exit_code == 1
    assert checks == [
        (True, "airflow/site/x.rego:3"), (False, "airflow/site/x.rego:5"), (False, "airflow/site/x.rego:5"),
    ]  # fmt: skip


def test_what_the_shipped_roles_speak_of_is_asked() -> None:
    """An action of the role table that nobody asks about would be a row in vain."""
    roles = json.loads((shipped_policies() / "airflow/roles/data.json").read_bytes())
    people = vocabulary()["subject", "type"]
    for table in (roles["permissions"], roles["common"]):
        for name, actions in table.items():
            type_, _, entity = name.partition(".")
            for action in actions:
                parts = [entity] if entity else [None, "run"]
                assert action == "*" or any(is_asked(who, action, type_, part) for who in people for part in parts)
    assert {action for actions in roles["permissions"].values() for action in actions} <= ACTIONS | {"*"}
    assert set(roles["permissions"]) >= ALWAYS_COMMON
