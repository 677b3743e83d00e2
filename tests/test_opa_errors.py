"""What OPA says of frequent mistakes is told in our words: file, line, sentence, way out. By a real opa."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airflow_team_authz.cli import app
from airflow_team_authz.engines import in_process
from airflow_team_authz.gate.check import check_package
from airflow_team_authz.gate.findings import sarif
from airflow_team_authz.gate.platform_part import check_platform
from airflow_team_authz.opa.compile import CompileError, compile_directory, find_opa, run_opa, shipped_policies
from airflow_team_authz.opa.errors import in_one_text, problems
from tests.conftest import eventually, write

SITE = "package airflow.site\n\n"
V0 = "rewrites a file"
CONDITIONS = "on a line of its own"
# What somebody wrote, the line, what is told of it, and the way out.
MISTAKES: dict[str, tuple[bytes | str, int, str, str]] = {
    "a body as in v0": (f'{SITE}allow {{ input.action == "read" }}\n', 3, "a body without `if` before it", V0),
    "a set as in v0": (f"{SITE}deny[x] {{ x := 1 }}\n", 3, "adds to a set without `contains`", V0),
    "a function as in v0": (f"{SITE}f(x) = y {{ y := x }}\n", 3, "the function has a body without `if`", V0),
    "if is missing": (f'{SITE}deny contains "x" {{\n\tinput.x\n}}\n', 3, "a body without `if`", "deny contains"),
    "no value": (f'{SITE}deny contains who if input.action == "x"\n', 3, "nothing gives who a value", "some who in"),
    "a word without quotes": (f"{SITE}x if input.action == read\n", 3, "nothing gives read a value", "in quotes?"),
    "a misspelt function": (f'{SITE}x if startwith(input.x, "y")\n', 3, "no function startwith", "mean startswith?"),
    "a function of nobody": (f"{SITE}x if is_fine(input)\n", 3, "no function is_fine that a policy", "capabilities"),
    "the clock": (f"{SITE}x if time.now_ns() > 3\n", 3, "no function time.now_ns that a policy", "capabil"),
    "printing": (f"{SITE}x if print(input)\n", 3, "policies may not call print", "tests may print"),
    "too few arguments": (f"{SITE}x if startswith(input.x)\n", 3, "is called with (any), and takes (s", "as many"),
    "a number as a text": (f'{SITE}x if startswith(3, "x")\n', 3, "is called with (number, string)", "what it takes"),
    "types that differ": (f'{SITE}x if count([]) == "3"\n', 3, "compares a number with a string", "one type"),
    "a set and a value": (f'{SITE}deny := 1\n\ndeny contains "x" if true\n', 3, "deny is several things", "one way"),
    "two defaults": (f"{SITE}default x := 1\n\ndefault x := 2\n", 1, "x has several defaults", "leave one"),
    "a circle": (f"{SITE}a if b\n\nb if a\n", 3, "site.a is made of itself: data.airflow.site.a -> ", "no recursion"),
    "an open brace": (f"{SITE}x if {{\n\tinput.x\n", 5, "ends in the middle of a rule", "close each { by a }"),
    "a closing brace too many": (f"{SITE}x if {{ true }}}}\n", 3, "a } without its {", "take it out"),
    "an open bracket": (f'{SITE}x if startswith(input.x, "y"\n', 4, "before a closing )", "close it"),
    "an open text": (f'{SITE}deny contains "x\n', 3, "a text is not closed", 'write " behind it'),
    "half a condition": (f"{SITE}x if input.resource.type ==\n", 4, "ends in the middle of a rule", "what is missing"),
    "and": (f"{SITE}x if input.a == 1 and input.b == 2\n", 3, "no rule, and no part of one", CONDITIONS),
    "&&": (f"{SITE}x if input.a == 1 && input.b == 2\n", 3, "join sets, not conditions", CONDITIONS),
    "a comma": (f"{SITE}x if {{\n\tinput.a == 1,\n\tinput.b == 2\n}}\n", 4, "a comma stands between", CONDITIONS),
    "a text in single quotes": (f"{SITE}deny contains 'x' if true\n", 3, "character here that Rego does not", "double"),
    "// for a comment": (f"{SITE}// x\nx := 1\n", 3, "a rule begins with /", "comments begin with #"),
    "a value twice": (f"{SITE}x if {{\n\ty := 1\n\ty := 2\n\ty == 2\n}}\n", 5, "y gets a value twice", "compare by =="),
    "an import unused": (f"{SITE}import data.airflow.roles\n\nx := 1\n", 3, "nothing reads the import data", "take it"),
    "a variable unused": (f"{SITE}x if {{\n\ty := 1\n}}\n", 4, "nothing reads y", "is another name misspelt?"),
    "a name of the question": (f"{SITE}x if {{ input := 1; input == 1 }}\n", 3, "a name hides input", "another name"),
    "an empty file": ("", 1, "no rule in the file", "or delete it"),
    "no package": ("x := 1\n", 1, "does not begin with its package", "package airflow.site"),
    "a dash in the package": ("package airflow.my-site\n", 1, "there is a - in a name", "in brackets and quotes"),
    "another encoding": (SITE.encode() + b'x := "\xe4"\n', 3, "is not UTF-8", "save the file as UTF-8"),
    "UTF-16": ((SITE + "x := 1\n").encode("utf-16"), 1, "is not UTF-8", "save the file as UTF-8"),
    "a space that is none": (f"{SITE}x if\N{NO-BREAK SPACE}true\n", 3, "no ordinary one", "an ordinary space"),
    "metadata": (f"# METADATA\n# title: [\n{SITE}", 2, "is no YAML", "the comment after `# METADATA`"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_our_words(mistake: str, tmp_path: Path) -> None:
    content, line, sentence, help_ = MISTAKES[mistake]
    place = tmp_path / "airflow/site/x.rego"
    place.parent.mkdir(parents=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    capabilities = str(shipped_policies() / "capabilities.json")
    with pytest.raises(CompileError) as refused:
        run_opa([find_opa(), "check", "--strict", "--capabilities", capabilities, "--bundle", "."], tmp_path)
    found = [problem for problem in refused.value.problems if sentence in problem.message]
    assert len(found) == 1, refused.value.problems
    assert (found[0].file, found[0].line) == ("airflow/site/x.rego", line)
    assert help_ in found[0].help
    # OPA's own words stay, for those who look for them.
    assert "(opa: rego_" in found[0].message
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", [f"{SITE}import future.keywords\n\nx := 1\n", f"\ufeff{SITE}x := 1\r\n"])
def test_what_opa_minds_no_more_is_no_mistake(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.rego").write_text(text, newline="")
    run_opa([find_opa(), "check", "--strict", "."], tmp_path)


def test_every_command_is_read_alike(tmp_path: Path) -> None:
    """Text of some commands, JSON of others, files of a directory and of an archive."""
    place = tmp_path / "airflow/site/x.rego"
    place.parent.mkdir(parents=True)
    place.write_text(f"{SITE}x if {{\n")
    told = set()
    for command in (
        ["check", "."], ["check", "--bundle", "."], ["check", "--format", "json", "."], ["inspect", "."],
        ["parse", "airflow/site/x.rego"], ["parse", "--format", "json", "./airflow/site/x.rego"], ["test", "."],
        ["test", "--bundle", "--format", "json", "."], ["build", "--bundle", ".", "--output", "/dev/null"],
    ):  # fmt: skip
        with pytest.raises(CompileError) as refused:
            run_opa([find_opa(), *command], tmp_path)
        told.add(refused.value.problems)
    ((problem,),) = told
    assert problem[:2] == ("airflow/site/x.rego", 4)


def test_data_that_cannot_be_read_is_told_too(tmp_path: Path) -> None:
    write(tmp_path, {"teams/a/data.json": "{nope", "teams/a/a.rego": "package teams.a\n"})
    with pytest.raises(CompileError) as refused:
        compile_directory(tmp_path, tmp_path.parent / "out.tar.gz")
    (problem,) = refused.value.problems
    assert problem[:2] == ("teams/a/data.json", 1)
    assert "no JSON or YAML that OPA can load" in problem.message


@pytest.mark.parametrize(
    "printed", ["", "null", "{}", '{"errors": null}', '{"errors": [1, {"location": 2}]}', "[]", "x: 1", "[" * 99_999]
)
def test_what_is_none_of_opas_errors_is_handed_on_on_one_line(printed: str) -> None:
    assert problems(printed) == []
    assert in_one_text(f" {printed}\n") == printed


def test_failing_tests_are_told_with_their_cases_and_errors(tmp_path: Path) -> None:
    cases = "test_c[case] if {\n\tsome case, x in {1: 1, 2: 2}\n\tx == 1\n}\n"
    rules = f"test_a if 1 == 2\n\nx := 1 if true\n\nx := 2 if true\n\ntest_b if x == 1\n\n{cases}"
    write(tmp_path, {"airflow/site/x_test.rego": f"package airflow.site_test\n\n{rules}"})
    with pytest.raises(CompileError) as refused:
        run_opa([find_opa(), "test", "--bundle", "--format", "json", "."], tmp_path)
    found = {problem.line: problem.message for problem in refused.value.problems}
    assert found[3] == "test_a fails"
    assert "test_b fails: data.airflow.site_test.x has several values for one question" in found[9]
    assert found[11] == "test_c fails for 2"


V0_FILE = {"teams/alpha/alpha.rego": b'package teams.alpha\n\nallow[msg] {\n\tmsg := "x"\n}\n'}
AT = ("teams/alpha/alpha.rego", 3)


def test_the_gate_tells_it_in_every_form() -> None:
    found = [finding for finding in check_package(V0_FILE, "alpha") if finding.rule == "parse"]
    assert {(finding.file, finding.line) for finding in found} == {AT}
    assert all(V0 in finding.help for finding in found)
    results = sarif(found)["runs"][0]["results"]
    assert all(one["locations"][0]["physicalLocation"]["region"] == {"startLine": 3} for one in results)
    assert any("a body without `if` before it" in one["message"]["text"] for one in results)


def test_the_platforms_part_is_told_alike() -> None:
    (first, *_) = check_platform({"airflow/site/x.rego": f'{SITE}x if startwith("x", "y")\n'.encode()})
    assert first[:3] == ("check", "airflow/site/x.rego", 3)
    assert first.help == "did you mean startswith?"
    tests = b"package airflow.site_test\n\ntest_x if 1 == 2\n"
    assert check_platform({"airflow/site/x_test.rego": tests})[0][:4] == (
        "test-failed", "airflow/site/x_test.rego", 3, "test_x fails",
    )  # fmt: skip


@pytest.mark.parametrize("command", [["decide", "-"], ["doctor", "--output", "json"], ["bundle", "check"]])
def test_commands_tell_it(command: list[str], tmp_path: Path) -> None:
    for name, content in V0_FILE.items():
        write(tmp_path, {name: content.decode()})
    where = [str(tmp_path)] if command[0] == "bundle" else ["--policy", str(tmp_path)]
    resource = {"type": "dag", "team_id": None}
    question = json.dumps({"subject": {"type": "user", "id": "ann"}, "action": "list", "resource": resource})
    done = CliRunner().invoke(app, [*command, *where], input=question)
    assert done.exit_code != 0
    told = " ".join((done.output + done.stderr).split())
    assert "teams/alpha/alpha.rego:3: the rule has a body without `if` before it" in told
    assert V0 in told


def test_the_engines_log_tells_it_on_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"teams/alpha/alpha.rego": "package teams.alpha\n"})
    engine = in_process.InProcess(tmp_path)
    try:
        with caplog.at_level(logging.ERROR, in_process.__name__):
            write(tmp_path, {"teams/alpha/alpha.rego": V0_FILE["teams/alpha/alpha.rego"].decode()})
            eventually(lambda: "teams/alpha/alpha.rego:3: the rule has a body without `if`" in caplog.text)
    finally:
        engine.close()
    assert V0 in caplog.text
    assert "\\n" not in caplog.text
