"""The program as a whole: what it costs to start, and how it treats the person in front of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from airflow_team_authz.opa.compile import CompileError, find_opa, opa_version

COMMANDS = ["can", "decide", "doctor", "explain", "impact", "init", "matrix", "who-can"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_has_json(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--output" in result.stdout
    assert "json" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_form_of_output_is_refused(run, command):
    result = run(command, "--output", "yaml")
    assert result.exit_code == 2
    assert "yaml" in result.stderr


def test_help_lists_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)


def test_start_up_imports_nothing_heavy():
    code = (
        "import sys; import airflow_team_authz.cli; "
        "print({'airflow', 'wasmtime', 'pydantic', 'msgspec', 'opa_client', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_mistake_is_one_line_on_stderr(program):
    done = program("decide", "nowhere.json", "--policy", "nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("team-authz: nowhere.json cannot be read")


def test_version_names_this_package_airflow_and_opa(run):
    told = run("--version")
    assert told.exit_code == 0
    opa = find_opa()
    assert [line.split() for line in told.stdout.splitlines()] == [
        ["airflow-team-authz", version("airflow-team-authz")],
        ["apache-airflow-core", version("apache-airflow-core")],
        ["opa", ".".join(map(str, opa_version(opa))), f"({opa})"],
    ]


def test_version_needs_no_opa(run, monkeypatch):
    def no_opa():
        raise CompileError("none was found")

    monkeypatch.setattr("airflow_team_authz.opa.compile.find_opa", no_opa)
    told = run("--version")
    assert told.exit_code == 0
    assert "opa " not in told.stdout


def test_the_shell_completes_commands(program):
    told = program(_TEAM_AUTHZ_COMPLETE="complete_bash", COMP_WORDS="team-authz bun", COMP_CWORD="1")
    assert told.stdout.split() == ["bundle"]
    assert (
        "complete -o default -F _team_authz_completion team-authz" in program(_TEAM_AUTHZ_COMPLETE="source_bash").stdout
    )
    assert "--install-completion" in program("--help").stdout
