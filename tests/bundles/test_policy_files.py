"""What is checked is what runs: rules against the schema of questions, and rules where no engine looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_team_authz.gate.check import check_package
from airflow_team_authz.gate.platform_part import check_platform, read_platform
from airflow_team_authz.gate.policy_files import directory_findings, rule_findings
from airflow_team_authz.opa.compile import CompileError, compile_directory, shipped_policies
from tests.conftest import write

SITE, ALPHA = "package airflow.site\n\n", "package teams.alpha\n\n"
TYPO = 'deny contains "x" if input.resource.typ == "dag"\n'
OTHER = "# METADATA\n# {}schemas:\n#   - input: {}\n"
# A file, its text, the line, and what is told of it.
UNKNOWN: dict[str, tuple[str, str, int, str]] = {
    "the site's": ("airflow/site/x.rego", SITE + TYPO, 3, "no input.resource.typ"),
    "a team's": ("teams/alpha/x.rego", ALPHA + "x if input.resource.tem_id\n", 3, "no input.resource.tem_id"),
    "a team of an odd name": (
        "teams/my-team/x.rego", 'package teams["my-team"].lib\n\nx if input.subjct.id\n', 3, "no input.subjct.id",
    ),
    "a library": ("airflow/lib/x.rego", f"package airflow.lib\n\n{TYPO}", 3, "no input.resource.typ"),
    "another place": ("lib/x.rego", f"package company.lib\n\n{TYPO}", 3, "no input.resource.typ"),
    "brackets": ("airflow/x/x.rego", f"package airflow[ `x y` ]\n\n{TYPO}", 3, "no input.resource.typ"),
    "after comments": ("airflow/site/x.rego", f"\ufeff# a\r\n\r\n# b\r\npackage\tairflow.site\n\n{TYPO}", 6, "typ"),
    "a schema of its own": (
        "airflow/site/x.rego", OTHER.format("", "{type: object}") + SITE + TYPO, 6, "no input.resource.typ",
    ),
    "a schema of a rule": (
        "airflow/site/x.rego", SITE + OTHER.format("scope: rule\n# ", "schema.evaluations") + TYPO, 7, "resource.typ",
    ),
    "a part of the question": ("airflow/site/x.rego", f"{SITE}r := input.resource\n\nx if r.typ\n", 5, "site.r.typ"),
    "an import": ("airflow/site/x.rego", f"{SITE}import input.subject as who\n\nx if who.nam\n", 5, "subject.nam"),
    "a loop": ("airflow/site/x.rego", f"{SITE}x if some y in input.subject.role\n", 3, "input.subject.role[_]"),
    "a reason": ("airflow/site/x.rego", f'{SITE}deny contains $"{{input.resource.nam}}"\n', 3, "input.resource.nam"),
    "another type": ("airflow/site/x.rego", f"{SITE}x if input.subject.id == 7\n", 3, "string with a number"),
    "a list as a text": ("airflow/site/x.rego", f'{SITE}x if startswith(input.subject.roles, "a")\n', 3, "array[str"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_no_question_has_is_told(case: str) -> None:
    file, text, line, told = UNKNOWN[case]
    (found,) = rule_findings({file: text.encode()})
    assert (found.rule, found.file, found.line) == ("check", file, line)
    assert told in found.message
    assert found.help


def test_what_questions_have_is_not_told(tmp_path: Path) -> None:
    rules = ('"sales" in input.subject.claims.department', "input.resource.team_id == null", "input.context.user_id",
             'input.resource.delivery.asset.name == "x"', 'input["subject"].roles[_] == "op"')  # fmt: skip
    text = SITE + "\n\n".join(f'deny contains "{number}" if {rule}' for number, rule in enumerate(rules))
    # Data has no schema here, whatever the metadata names.
    text = "# METADATA\n# schemas:\n#   - data.airflow.site.x: schema.mine\n" + text
    write(tmp_path, {"airflow/site/x.rego": text, "airflow/site/data.json": "{}"})
    assert directory_findings(tmp_path) == []
    assert directory_findings(shipped_policies()) == []


def test_a_package_that_cannot_be_read_is_told() -> None:
    (found, *_) = rule_findings({"airflow/site/x.rego": b'import data.x\n\nx := "package airflow.site"\n'})
    assert "its package cannot be read" in found.message


# A test file, its text, and the line of what looks as if it decided, if that is so.
TESTS: dict[str, tuple[str, str, int | None]] = {
    "a deny": ("teams/alpha/ab_test.rego", f'{ALPHA}deny contains "x" if input.action == "read"\n', 3),
    "an allow": ("teams/alpha/ab_test.rego", f'{ALPHA}test_x if true\n\nallow contains "x"\n', 5),
    "a value": ("teams/alpha/ab_test.rego", f"{ALPHA}default allow := true\n", 3),
    "a pool": ("teams/alpha/ab_test.rego", f'{ALPHA}default_pool := "x"\n', 3),
    "in a package of tests": ("teams/alpha/ab_test.rego", 'package teams.alpha_test\n\ndeny contains "x"\n', 3),
    "a helper of tests": ("teams/alpha/ab_test.rego", "package teams.alpha_test\n\nallow(x) if x == 1\n", None),
    "a text": ("teams/alpha/ab_test.rego", f"{ALPHA}x := `\nallow contains 1\n`\n", None),
    "a team that is called like one": (
        "teams/my_test/my_test.rego", 'package teams.my_test\n\nallow contains "x"\n', 3,
    ),
    "the site's": ("airflow/site/x_test.rego", f'{SITE}deny contains "x"\n', 3),
    "a helper of the site's": ("airflow/site/x_test.rego", "package airflow.site_test\n\nallow := 1\n", None),
}  # fmt: skip


@pytest.mark.parametrize("case", TESTS)
def test_what_decides_in_a_test_file_is_told(case: str) -> None:
    file, text, line = TESTS[case]
    found = rule_findings({file: text.encode()})
    assert [(one.rule, one.file, one.line) for one in found] == ([("test-decides", file, line)] if line else [])


def test_the_gate_and_the_platforms_check_tell_it_too() -> None:
    file, text, line = TESTS["a deny"]
    found = check_package({file: text.encode(), "teams/alpha/x.rego": b"package teams.alpha\n"}, "alpha")
    assert ("test-decides", file, line) in {finding[:3] for finding in found}
    file, text, line = TESTS["the site's"]
    assert ("test-decides", file, line) in {finding[:3] for finding in check_platform({file: text.encode()})}
    file, text, line, _ = UNKNOWN["the site's"]
    assert ("check", file, line) in {finding[:3] for finding in check_platform({file: text.encode()})}


@pytest.mark.parametrize(
    ("rule", "in_test"),
    [
        ("input.subject.id in data.teams.alpha.interns", 'interns := {"bob"}'),
        ("some name, _ in data.teams.alpha; input.subject.id in data.teams.alpha[name]", 'interns := {"bob"}'),
        ("input.subject.id in interns", 'interns contains "bob"'),
    ],
)
def test_what_rules_read_of_a_test_file_is_told(rule: str, in_test: str) -> None:
    """It is there while they are tested, and gone when they decide."""
    rules = f'{ALPHA}deny contains "x" if {{ {rule} }}\n\ninterns contains "ann" if input.action == "x"\n'
    if ":=" in in_test:
        rules = rules.partition("\n\ninterns")[0] + "\n"
    files = {"teams/alpha/alpha.rego": rules.encode(), "teams/alpha/a_test.rego": f"{ALPHA}{in_test}\n".encode()}
    assert ("test-decides", "teams/alpha/a_test.rego", 3) in {one[:3] for one in check_package(files, "alpha")}


def test_what_no_engine_loads_is_told(tmp_path: Path) -> None:
    left_out = {
        "airflow/site/people.json",
        "teams/alpha/more.yaml",
        "airflow/site/.old/x.rego",
        "teams/alpha/.y/y.rego",
    }
    write(tmp_path, dict.fromkeys(left_out, "{}") | {".github/x.yml": "", ".regal/x.rego": "", "x.json": "{}"})
    write(tmp_path, dict.fromkeys(["airflow/site/data.json", "teams/alpha/schema.json", "airflow/data.yaml"], "{}"))
    assert {finding.file for finding in directory_findings(tmp_path)} == left_out
    assert {finding.rule for finding in directory_findings(tmp_path)} == {"left-out"}


def test_what_is_published_is_what_an_engine_loads_of_the_directory(tmp_path: Path) -> None:
    files = {"airflow/site/x.rego": SITE, "airflow/site/x_test.rego": SITE, "airflow/lib/data.yaml": "x: 1"}
    write(tmp_path, files | {"airflow/site/.old/x.rego": SITE + TYPO, "airflow/authz/x.rego": "", "airflow/a.json": ""})
    platform = read_platform(tmp_path)
    assert platform.keys() == files.keys()
    # A bundle would lack it.
    assert ("data-place", "airflow/lib/data.yaml") in {finding[:2] for finding in check_platform(platform)}
    (tmp_path / "airflow/linked").symlink_to(tmp_path / "airflow/site")
    for read in (read_platform, lambda place: compile_directory(place, tmp_path.parent / "out.tar.gz")):
        with pytest.raises((CompileError, OSError), match="is a link to a directory"):
            read(tmp_path)
