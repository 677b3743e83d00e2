"""``team-authz init``: what it writes passes its own checks, compiles, and decides."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from airflow_team_authz.cli.init import tool_files, written_before
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import MINIMUM_OPA, compile_directory
from tests.conftest import REPOSITORY

# Names that Rego, the checks or the templates could take for something else: not an identifier, a keyword; then an
# ordinary one, what looks like a test, a number, other names of Rego, the template's own.
TEAM_IDS = [
    *("my-team", "import"),
    *(
        pytest.param(name, marks=pytest.mark.exhaustive)
        for name in ("alpha", "beta_test", "123", "input", "true", "example", "my-example", "AbC")
    ),
]


class Checked(NamedTuple):
    """What CI printed, and the step that failed."""

    failed: str | None
    told: str


def steps(directory):
    """The steps of the directory's CI."""
    (job,) = yaml.safe_load((directory / ".github/workflows/policy.yml").read_text())["jobs"].values()
    return job["steps"]


def commands(directory):
    """What CI runs, but for what it installs: that is installed here."""
    return [step["run"] for step in steps(directory) if not step.get("run", "pip").startswith("pip")]


def check(directory):
    """Runs what the directory's CI runs, as that does: until something fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = ""
    for command in commands(directory):
        line, here = ["bash", "-e", "-c", command], os.environ | {"PATH": path}
        done = subprocess.run(line, cwd=directory, env=here, capture_output=True, text=True, check=False)
        told += done.stdout + done.stderr
        if done.returncode != 0:
            return Checked(command.removeprefix("./check.sh "), told)
    return Checked(None, told)


def written(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def entries(result):
    return {entry["file"]: entry["did"] for entry in json.loads(result.stdout)}


def test_platform_directory_passes_its_checks(run, tmp_path):
    assert run("init", tmp_path / "policy").exit_code == 0
    done = check(tmp_path / "policy")
    assert done.failed is None, done.told
    assert "PASS: 6/6" in done.told
    assert "No violations found" in done.told


def test_people_run_the_steps_that_ci_runs(run, tmp_path):
    run("init", tmp_path)
    done = subprocess.run([tmp_path / "check.sh"], capture_output=True, text=True, check=True)
    headings = [line.removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert [f"./check.sh {step}" for step in headings] == commands(tmp_path)
    assert headings == ["format", "types", "tests", "lint", "gate"]


@pytest.mark.parametrize("options", [[], ["--team", "alpha"]])
@pytest.mark.parametrize("command", ["opa check .", "opa test .", "regal lint ."])
def test_what_people_type_passes_without_options(run, tmp_path, options, command):
    run("init", tmp_path, *options)
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = {"opa check .": "", "opa test .": "PASS: ", "regal lint .": "No violations found"}
    assert passed[command] in done.stdout


def test_a_second_workflow_does_not_disturb_the_tests(run, tmp_path):
    run("init", tmp_path)
    ours = (tmp_path / ".github/workflows/policy.yml").read_text()
    (tmp_path / ".github/workflows/other.yml").write_text(ours.replace("name: Policy", "name: Other"))
    subprocess.run([tmp_path / "check.sh", "tests"], capture_output=True, check=True)


@pytest.mark.parametrize("team", TEAM_IDS)
def test_team_repository_passes_its_checks(run, tmp_path, team):
    assert run("init", tmp_path, "--team", team).exit_code == 0
    done = check(tmp_path)
    assert done.failed is None, done.told
    assert "PASS: 5/5" in done.told
    assert "No violations found" in done.told
    assert f"{team}: nothing keeps it from being published." in done.told
    assert f"team {team}" in (tmp_path / "README.md").read_text()


MISTAKES_OF_A_PLATFORM = [
    ("format", "site.rego", "package airflow.site\n", "package   airflow.site\n", "site.rego"),
    ("types", "site.rego", "input.resource.type ==", "input.resource.tipe ==", "tipe"),
    ("types", "site.rego", '"read"', "opa.runtime().x", "opa.runtime"),
    ("tests", "site_test.rego", "decision.allow == true", "decision.allow == false", "FAIL"),
    ("tests", "site_test.rego", "\ntest_", "\n# METADATA\n# title: x\nTest_", "no tests"),
    (
        "lint",
        "site.rego",
        "\nallow contains",
        "\ncamelCase := 1\n\n# METADATA\n# scope: document\nallow contains",
        "camelCase",
    ),
    # Its metadata names no schema.
    (
        "gate",
        "site.rego",
        "# schemas:\n#   - input: schema.input\npackage airflow.site\n\nimport data.airflow.authz.standing\n",
        "package airflow.site\n\nimport data.airflow.authz.standing\n\n# METADATA\n# title: A typo\n"
        '# scope: rule\ndeny contains "it is theirs" if input.resource.tem_id == "alpha"\n',
        "there is no input.resource.tem_id",
    ),
]
_ALLOW = "# METADATA\n# title: Reasons to allow\n"
MISTAKES_OF_A_TEAM = [
    ("format", "alpha.rego", "package teams.alpha\n", "package   teams.alpha\n", "alpha.rego"),
    ("types", "alpha.rego", "input.resource.type ==", "input.resource.tipe ==", "tipe"),
    ("tests", "alpha_test.rego", "decision.allow == true", "decision.allow == false", "FAIL"),
    ("lint", "alpha.rego", _ALLOW, f"theirs := data.teams.beta.x\n\n{_ALLOW}", "foreign-data"),
    # What the linter is told to overlook, the gate still sees.
    (
        "gate",
        "alpha.rego",
        _ALLOW,
        f"# regal ignore:foreign-data\ntheirs := data.teams.beta.x\n\n{_ALLOW}",
        "it reads data.teams.beta.x [foreign-data]",
    ),
    (
        "gate",
        "alpha.rego",
        _ALLOW,
        f'deny contains "it is new" if {{\n\tinput.resource.type == "dag"\n\tinput.resource.id == "new"\n\t'
        f'input.action == "delete"\n}}\n\n{_ALLOW}',
        "no test comes here",
    ),
]


@pytest.mark.parametrize(("step", "file", "before", "after", "told"), MISTAKES_OF_A_PLATFORM)
def test_checks_find_mistakes_of_a_platform(run, tmp_path, step, file, before, after, told):
    run("init", tmp_path)
    assert_found(tmp_path, tmp_path / "airflow/site" / file, step, before, after, told)


@pytest.mark.parametrize(("step", "file", "before", "after", "told"), MISTAKES_OF_A_TEAM)
def test_checks_find_mistakes_of_a_team(run, tmp_path, step, file, before, after, told):
    run("init", tmp_path, "--team", "alpha")
    assert_found(tmp_path, tmp_path / "teams/alpha" / file, step, before, after, told)


def assert_found(directory, path, step, before, after, told):
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    done = check(directory)
    assert done.failed == step, done.told
    assert told.lower() in done.told.lower()


def test_the_linter_knows_rules_that_the_gate_has(run, tmp_path):
    """By line of a team's file, so that its editor shows them as it is written."""
    run("init", tmp_path, "--team", "alpha")
    rules = {
        "import data.teams.gamma": "foreign-data",
        "foreign := data.teams.beta.x": "foreign-data",
        'quoted := data["teams"]["beta"]': "foreign-data",
        "by_name := data.teams[input.action]": "foreign-data",
        "all_teams := data.teams": "foreign-data",
        "everything := data": "foreign-data",
        "walked contains x if walk(data, [_, x])": "foreign-data",
        "own := data.teams.alpha.x": None,
        "allow := true": "entry-rule",
        'deny contains "x" if regex.match(input.action, "x")': "constant-pattern",
        'deny contains "y" if data.teams.alpha.x with input as {}': "with-outside-test-context",
    }
    (tmp_path / "teams/alpha/odd.rego").write_text("\n".join(["package teams.alpha", *rules]))
    done = subprocess.run(["regal", "lint", "--format", "json", "."], cwd=tmp_path, capture_output=True, check=False)
    of_gate = {"foreign-data", "entry-rule", "constant-pattern", "with-outside-test-context"}
    found = {
        (violation["location"]["row"], violation["title"])
        for violation in json.loads(done.stdout)["violations"]
        if violation["title"] in of_gate
    }
    assert found == {(row, rule) for row, rule in enumerate(rules.values(), 2) if rule}


def test_the_linters_rules_are_those_that_are_tested_here(run, tmp_path):
    run("init", tmp_path, "--team", "alpha")
    written, tested = (
        {path.name: path.read_text() for path in (place / ".regal/rules").iterdir() if path.name != "rules_test.rego"}
        for place in (tmp_path, REPOSITORY)
    )
    assert written == tested


def test_everything_written_is_listed(run, tmp_path):
    result = run("init", tmp_path / "a" / "policy", "-o", "json")
    assert entries(result).keys() == written(tmp_path / "a" / "policy")
    assert set(entries(result).values()) == {"wrote"}
    text = run("init", tmp_path / "b", "--team", "alpha").stdout
    assert all(f"wrote  {file}" in text for file in written(tmp_path / "b"))


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "airflow/site").mkdir(parents=True)
    (tmp_path / "airflow/site/site.rego").symlink_to("nowhere")
    first = entries(run("init", tmp_path, "-o", "json"))
    assert {file for file, did in first.items() if did == "kept"} == {"README.md", "airflow/site/site.rego"}
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "airflow/site/nowhere").exists()
    before = {file: (tmp_path / file).read_bytes() for file in written(tmp_path)}
    second = run("init", tmp_path, "-o", "json")
    assert set(entries(second).values()) == {"kept"}
    assert {file: (tmp_path / file).read_bytes() for file in written(tmp_path)} == before


@pytest.mark.parametrize("team", ["ab", "a" * 51, "a b", "../x", "a/b/c", "abc\n", "", 'a"]b', "ä_team", "a.b.c"])
def test_impossible_team_ids_are_refused(run, tmp_path, team):
    result = run("init", tmp_path / "policy", "--team", team)
    assert result.exit_code == 2
    assert "is not a team id" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "policy").exists()


def test_a_file_is_no_directory(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run("init", tmp_path / "file")
    assert result.exit_code == 2
    assert "is a file: name a directory" in result.stderr
    (tmp_path / "airflow").write_text("mine")
    result = run("init", tmp_path)
    assert result.exit_code == 2
    assert "cannot be written (Not a directory)" in result.stderr


def test_fresh_platform_directory_decides(run, tmp_path):
    run("init", tmp_path / "policy")
    bundle = tmp_path / "bundle.tar.gz"
    compile_directory(tmp_path / "policy", bundle)
    decisions, revision, _ = decide(bundle, Subject("user", "ada", roles=("admin",)), Resource("pool"))
    assert decisions[0].allow
    assert revision


@pytest.mark.parametrize("team", TEAM_IDS)
def test_a_team_is_added_to_a_platform_directory(run, tmp_path, team):
    run("init", tmp_path / "policy")
    added = run("init", tmp_path / "policy", "--team", team, "-o", "json")
    assert {Path(file).parts[:2] for file, did in entries(added).items() if did == "wrote"} == {("teams", team)}
    (tmp_path / "policy/teams" / team / "data.json").write_text(
        '{"closed_pools": {}, "lent_connections": {"pg": ["beta"]}}'
    )
    assert check(tmp_path / "policy").failed is None
    decisions, *_ = decide(
        tmp_path / "policy",
        Subject("user", "ben", ("beta",)),
        Resource("connection", team, "pg"),
        Resource("connection", team, "other"),
    )
    assert [decision.allow for decision in decisions] == [True, False]
    assert decisions[0].layer == "team"


def test_a_teams_repository_is_no_platform_directory(run, tmp_path):
    run("init", tmp_path, "--team", "alpha")
    result = run("init", tmp_path)
    assert result.exit_code == 2
    assert "is a team's repository" in result.stderr
    assert not (tmp_path / "airflow").exists()


@pytest.mark.parametrize("options", [[], ["--team", "alpha"]])
def test_update_renews_what_is_ours_and_nothing_else(run, tmp_path, options):
    run("init", tmp_path, *options)
    fresh = {file: (tmp_path / file).read_bytes() for file in written(tmp_path)}
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "check.sh").unlink()
    (tmp_path / ".team-authz/capabilities.json").write_text("{}")
    (tmp_path / ".team-authz/airflow/authz/authz.rego").unlink()
    (tmp_path / ".team-authz/airflow/authz/gone.rego").write_text("package airflow.authz")
    (tmp_path / ".team-authz/notes.txt").write_text("mine")
    did = entries(run("init", tmp_path, "--update", "-o", "json"))
    assert {file: what for file, what in did.items() if what != "kept"} == {
        ".team-authz/capabilities.json": "renewed",
        ".team-authz/airflow/authz/authz.rego": "wrote",
        ".team-authz/airflow/authz/gone.rego": "removed",
    }
    tools = {file for file in fresh if file.startswith((".github/", ".regal/", ".vscode/"))}
    assert {file for file in did if not file.startswith(".team-authz/")} == tools
    del fresh["check.sh"]
    expected = fresh | {"README.md": b"mine", ".team-authz/notes.txt": b"mine"}
    assert {file: (tmp_path / file).read_bytes() for file in written(tmp_path)} == expected


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_every_text_that_was_written_is_known():
    """Whoever changes a template adds its digest to templates/written.json: last, after those of earlier texts."""
    assert {name: digests[-1] for name, digests in written_before().items()} == {
        str(name): digest(content) for name, content in tool_files().items()
    }


def test_update_renews_what_an_earlier_version_wrote(run, tmp_path, monkeypatch):
    run("init", tmp_path, "--team", "alpha")
    fresh = {file: (tmp_path / file).read_bytes() for file in written(tmp_path)}
    earlier, ours = b"# Written by an earlier version.\n", ["check.sh", ".regal/rules/entry_rule.rego"]
    known = {name: [digest(earlier), *digests] for name, digests in written_before().items()}
    monkeypatch.setattr(importlib.import_module("airflow_team_authz.cli.init"), "written_before", lambda: known)
    for file in ours:
        (tmp_path / file).write_bytes(earlier)
    # Schemas had a name that OPA takes for data.
    (tmp_path / ".team-authz/schemas/input.jsonschema").rename(tmp_path / ".team-authz/schemas/input.json")
    did = entries(run("init", tmp_path, "--update", "-o", "json"))
    assert {file: what for file, what in did.items() if what != "kept"} == dict.fromkeys(ours, "renewed") | {
        ".team-authz/schemas/input.json": "removed",
        ".team-authz/schemas/input.jsonschema": "wrote",
    }
    assert {file: (tmp_path / file).read_bytes() for file in written(tmp_path)} == fresh


def test_update_says_what_a_person_has_edited_and_leaves_it(run, tmp_path):
    run("init", tmp_path, "--team", "alpha")
    (tmp_path / "check.sh").write_text("mine")
    told = run("init", tmp_path, "--update").stdout
    assert (tmp_path / "check.sh").read_text() == "mine"
    assert "edited  check.sh\n" in told
    assert "Files marked `edited` have changes of yours" in told
    (tmp_path / "check.sh").unlink()
    assert "edited" not in run("init", tmp_path, "--update").stdout


def test_update_of_another_directory_is_refused(run, tmp_path):
    result = run("init", tmp_path, "--update")
    assert result.exit_code == 2
    assert "run team-authz init without --update" in result.stderr
    assert written(tmp_path) == set()


def test_ci_installs_what_the_checks_take(run, tmp_path):
    run("init", tmp_path)
    used = {step["uses"].partition("@")[0]: step.get("with", {}) for step in steps(tmp_path) if "uses" in step}
    assert used["open-policy-agent/setup-opa"]["version"] == ".".join(map(str, MINIMUM_OPA))
    regal = used["open-policy-agent/setup-regal"]["version"]
    assert f"github.com/open-policy-agent/regal v{regal} " in (REPOSITORY / "tools/regal/go.mod").read_text()
    (pip,) = [step["run"] for step in steps(tmp_path) if step.get("run", "").startswith("pip")]
    ours = metadata("airflow-team-authz")
    assert "bundles" in ours.get_all("Provides-Extra", [])
    assert shlex.split(pip) == ["pip", "install", f"{ours['Name']}[bundles]"]


def test_editor_files_name_what_exists(run, tmp_path):
    run("init", tmp_path)
    settings = json.loads((tmp_path / ".vscode/settings.json").read_text())
    assert (tmp_path / settings["opa.schema"].removeprefix("${workspaceFolder}/")).is_dir()
    for schema in settings["json.schemas"]:
        assert (tmp_path / schema["fileMatch"][0].lstrip("/")).is_file()
        assert (tmp_path / schema["url"]).is_file()


def decide(policy, subject, *resources):
    engine = InProcess(policy)
    try:
        return DecisionPoint(engine).decide(Evaluations(subject, "read", resources))
    finally:
        engine.close()
