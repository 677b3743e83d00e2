"""``team-authz init``: what it writes passes its own checks, compiles, and decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_team_authz.compile import MINIMUM_OPA, compile_directory
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Resource, Subject

# Ordinary ones; not an identifier; a number; keywords and names of Rego; the template's own; what looks like a test.
TEAM_IDS = ["alpha", "my-team", "123", "import", "input", "true", "example", "my-example", "AbC", "beta_test"]


def check(directory):
    """Runs the directory's ``check.sh`` as its CI does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["./check.sh"], cwd=directory, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def written(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def entries(result):
    return {entry["file"]: entry["did"] for entry in json.loads(result.stdout)}


def test_platform_directory_passes_its_checks(run, tmp_path):
    assert run("init", tmp_path / "policy").exit_code == 0
    done = check(tmp_path / "policy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: 6/6" in done.stdout
    assert "No violations found" in done.stdout


@pytest.mark.parametrize("team", TEAM_IDS)
def test_team_repository_passes_its_checks(run, tmp_path, team):
    assert run("init", tmp_path, "--team", team).exit_code == 0
    done = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: 5/5" in done.stdout
    assert "No violations found" in done.stdout
    assert f"team {team}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("site.rego", "package airflow.site\n", "package   airflow.site\n", "site.rego"),
        ("site.rego", "input.resource.type ==", "input.resource.tipe ==", "tipe"),
        ("site.rego", '"read"', "opa.runtime().x", "opa.runtime"),
        ("site_test.rego", "decision.allow == true", "decision.allow == false", "FAIL"),
        ("site_test.rego", "\ntest_", "\n# METADATA\n# title: x\nTest_", "no tests"),
        (
            "site.rego",
            "\nallow contains",
            "\ncamelCase := 1\n\n# METADATA\n# scope: document\nallow contains",
            "camelCase",
        ),
    ],
)
def test_checks_find_mistakes(run, tmp_path, file, before, after, told):
    run("init", tmp_path)
    path = tmp_path / "airflow/site" / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    done = check(tmp_path)
    assert done.returncode != 0
    assert told.lower() in (done.stdout + done.stderr).lower()


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
    assert "is no team id" in result.stderr
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
    decisions, revision = decide(bundle, Subject("user", "ada", roles=("admin",)), Resource("pool"))
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
    assert check(tmp_path / "policy").returncode == 0
    decisions, _ = decide(
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
    assert all(file.startswith(".team-authz/") for file in did)
    del fresh["check.sh"]
    expected = fresh | {"README.md": b"mine", ".team-authz/notes.txt": b"mine"}
    assert {file: (tmp_path / file).read_bytes() for file in written(tmp_path)} == expected


def test_update_of_another_directory_is_refused(run, tmp_path):
    result = run("init", tmp_path, "--update")
    assert result.exit_code == 2
    assert "run team-authz init without --update" in result.stderr
    assert written(tmp_path) == set()


def test_ci_installs_an_opa_that_the_package_accepts(run, tmp_path):
    run("init", tmp_path)
    workflow = (tmp_path / ".github/workflows/policy.yml").read_text()
    assert f"version: {'.'.join(map(str, MINIMUM_OPA))}\n" in workflow


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
