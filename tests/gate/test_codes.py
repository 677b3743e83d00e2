"""Codes of rules: what is wrong with them is told with file and line, by the gate and of a directory."""

from __future__ import annotations

import pytest

from airflow_team_authz.gate.check import check_package
from airflow_team_authz.gate.findings import Finding
from airflow_team_authz.gate.policy_files import rule_findings, warnings_of
from airflow_team_authz.model import code_of

ALPHA, SITE = "package teams.alpha\n\n", "package airflow.site\n\n"


def rule(code: str, reason: str, head: str = "deny", scope: str = "") -> str:
    """A rule whose METADATA name a code; it stands in the fifth line, or in the sixth if there is a scope."""
    named = f"# METADATA\n# custom: {{code: {code}}}\n" + (f"# scope: {scope}\n" if scope else "")
    return f"{named}{head} contains {reason} if input.resource.id == {reason}\n"


WRONG = {
    "no code": (rule("a1", '"a1: x"'), 5, "'a1' is not a code"),
    "one word": (rule("ALPHA", '"ALPHA: x"'), 5, "'ALPHA' is not a code"),
    "of a document": (rule("A-1", '"A-1: x"', scope="document"), 3, "not that of one rule"),
    "of another rule": (rule("A-1", '"A-1: x"', head="helper"), 3, "not that of one rule"),
    "another reason": (rule("A-1", '"x"'), 5, "does not begin with its code A-1"),
    "another code": (rule("A-1", '"A-2: x"'), 5, "does not begin with its code A-1"),
    "who knows": (rule("A-1", "input.resource.id"), 5, "does not begin with its code A-1"),
    "twice": (rule("A-1", '"A-1: x"') + "\n" + rule("A-1", '"A-1: y"'), 9, "A-1 is the code of {}:5 too"),
}
RIGHT = {
    "text": rule("A-1", '"A-1: x"'),
    "template": rule("ALPHA-XCOM-2", '$"ALPHA-XCOM-2: {input.action}"'),
    "quoted": rule('"A-1"', '"A-1: x"'),
    "variable": '# METADATA\n# custom:\n#   code: A-1\ndeny contains text if {\n\ttext := $"A-1: {input.action}"\n}\n',
    "none": 'deny contains "x: y" if input.resource.id == "x"\n',
    "of allow and of deny": rule("A-1", '"A-1: x"') + "\n" + rule("A-2", '"A-2: y"', head="allow"),
}


def codes(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.rule == "code"]


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_a_wrong_code_is_told_with_its_line(kind: str) -> None:
    text, line, told = WRONG[kind]
    for name, start in (("airflow/site/x.rego", SITE), ("teams/alpha/x.rego", ALPHA)):
        (one, *more) = codes(rule_findings({name: f"{start}{text}".encode()}))
        assert (one.file, one.line, one.level, more) == (name, line, "error", [])
        assert told.format(name) in one.message


def test_the_gate_tells_the_same_and_no_warning() -> None:
    files = {
        f"teams/alpha/{number}.rego": f"{ALPHA}{text}".encode() for number, (text, *_) in enumerate(WRONG.values())
    }
    told = {(one.file, one.line) for one in codes(check_package(files, "alpha"))}
    assert told >= {(f"teams/alpha/{number}.rego", line) for number, (_, line, _) in enumerate(WRONG.values())}
    warned = f'{ALPHA}deny contains "A-1: x" if input.resource.id == "x"\n'.encode()
    assert codes(check_package({"teams/alpha/x.rego": warned}, "alpha")) == []


@pytest.mark.parametrize("kind", sorted(RIGHT))
def test_a_right_code_is_not_told(kind: str) -> None:
    assert codes(rule_findings({"teams/alpha/x.rego": f"{ALPHA}{RIGHT[kind]}".encode()})) == []


def test_a_code_is_unique_among_the_files_of_a_team_and_free_for_others() -> None:
    text = rule("A-1", '"A-1: x"')
    files = {"teams/alpha/a.rego": ALPHA, "teams/alpha/b.rego": f"{ALPHA[:-2]}.part\n\n", "airflow/site/x.rego": SITE}
    (one,) = codes(rule_findings({name: f"{start}{text}".encode() for name, start in files.items()}))
    assert (one.file, one.line) == ("teams/alpha/b.rego", 5)
    assert one.message == "A-1 is the code of teams/alpha/a.rego:5 too"


def test_two_codes_that_have_changed_places_are_told() -> None:
    text = rule("A-1", '"A-2: x"') + "\n" + rule("A-2", '"A-1: y"')
    assert [one.line for one in codes(rule_findings({"teams/alpha/a.rego": f"{ALPHA}{text}".encode()}))] == [5, 9]


def test_what_looks_like_a_code_is_a_warning() -> None:
    files = {"airflow/site/x.rego": f'{SITE}deny contains "JIRA-7: x" if input.resource.id == "x"\n'.encode()}
    (one,) = codes(warnings_of(files))
    assert (one.line, one.level) == (3, "warning")
    assert "custom: {code: JIRA-7}" in one.help


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("A-1: x", "A-1"), ("PAY-XCOM-20: x: y", "PAY-XCOM-20"), ("A-1:x", ""), ("A-1", ""), ("A: x", ""),
        ("a-1: x", ""),
        ("user bob may not: A-1: x", ""), ("1-A: x", ""), ("A--1: x", ""), ("A-1\n: x", ""), ("A-1-2-3-4: x", ""),
    ],
)  # fmt: skip
def test_a_code_is_what_a_reason_begins_with(reason: str, code: str) -> None:
    assert code_of(reason) == code
