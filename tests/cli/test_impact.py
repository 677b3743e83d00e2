"""``team-authz impact``."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from airflow_team_authz.opa.compile import compile_directory, find_opa, merged
from airflow_team_authz.review import kind_of
from airflow_team_authz.review.kinds import Kinds
from airflow_team_authz.review.names import read_sources
from tests.conftest import REPOSITORY, write

PAGE = (REPOSITORY / "docs/review.md").read_text()
(TOLD,) = re.findall(r"```\n(a member.*?)```", PAGE, re.DOTALL)
SLOW = """package teams.alpha

allow contains "slow" if {
	some i in data.teams.alpha.numbers
	some j in data.teams.alpha.numbers
	i * j == -1
}
"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both policies of the documentation."""
    before, after = re.findall(r"```rego\n(package teams.*?)```", PAGE, re.DOTALL)
    root = tmp_path_factory.mktemp("impact")
    return tuple(
        write(root / name, {"teams/alpha/alpha.rego": text}) for name, text in (("old", before), ("new", after))
    )


def test_the_example_of_the_documentation_is_told_like_that(run, policies):
    result = run("impact", *policies)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{TOLD}\n")
    assert "Not seen: " in result.stdout


def test_programs_get_a_question_and_a_test_that_holds_with_the_new_policy(run, policies, tmp_path):
    result = run("impact", *policies, "--output", "json", "--fail-on", "gained:team=beta,owner=alpha,id=alpha_db")
    assert result.exit_code == 1
    (change,) = json.loads(result.stdout)["changes"]
    assert (change["direction"], change["team_ids"]) == ("gained", ["alpha"])
    assert change["where"] == ["teams/alpha/alpha.rego:5"]
    assert {"action": "read", "type": "connection", "id": "alpha_db"} in change["permissions"]
    (tmp_path / "question.json").write_text(json.dumps(change["question"]))
    for policy, code in zip(policies, (1, 0), strict=True):
        assert run("decide", tmp_path / "question.json", "--policy", policy).exit_code == code
    for policy, passes in zip(policies, (False, True), strict=True):
        files = {path.relative_to(policy).as_posix(): path.read_bytes() for path in policy.rglob("*.rego")}
        staged = write(tmp_path / policy.name, {name: text.decode() for name, text in merged(files).items()})
        (staged / "impact_test.rego").write_text(change["rego_test"])
        done = subprocess.run([find_opa(), "test", staged], capture_output=True, text=True, check=False)
        assert ("PASS: 1/1" in done.stdout) is passes, done.stdout


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "selector", ["gained:team=gamma", "gained:action=write", "lost:owner=alpha", "gained:id=other"]
)
def test_what_the_selector_does_not_name_does_not_fail(run, policies, selector):
    assert run("impact", *policies, "--fail-on", selector).exit_code == 0


def test_a_misspelt_selector_names_the_option(run, policies):
    result = run("impact", *policies, "--fail-on", "gained:ownr=alpha")
    assert result.exit_code == 2
    assert "--fail-on: 'ownr=alpha' is no condition: write one of team, owner" in result.output


@pytest.mark.exhaustive
def test_what_is_lost_is_told_with_the_rule_that_is_gone(run, policies):
    old, new = policies
    result = run("impact", new, old, "--fail-on", "gained", "--output", "markdown")
    assert result.exit_code == 0
    assert "## Lost" in result.stdout
    assert "## Gained" not in result.stdout
    assert "no longer by teams/alpha/alpha.rego:5" in result.stdout


@pytest.mark.exhaustive
def test_bundles_are_compared_as_directories_are(run, policies, tmp_path):
    old, new = policies
    compile_directory(new, tmp_path / "new.tar.gz")
    result = run("impact", old, tmp_path / "new.tar.gz")
    assert result.stdout.startswith(f"{TOLD}\n")


def test_a_policy_that_fails_is_no_policy_without_changes(run, policies, tmp_path):
    broken = write(
        tmp_path / "broken",
        {
            "teams/alpha/data.json": json.dumps({"numbers": list(range(5000))}),
            "teams/alpha/alpha.rego": SLOW,
        },
    )
    result = run("impact", policies[0], broken)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "no decision about team alpha" in result.stderr


def test_what_is_not_there_is_told(run, policies):
    result = run("impact", policies[0], "nowhere")
    assert result.exit_code == 2
    assert "there is no nowhere" in result.stderr


def test_an_action_that_a_rule_names_is_asked_only_of_types_that_a_door_asks_it_of(tmp_path):
    rules = 'package teams.alpha\n\nallow contains "open" if input.action in {"use", "steer"}\n'
    kinds = Kinds(read_sources(write(tmp_path, {"teams/alpha/alpha.rego": rules})))
    asked = {(one.action, kind_of(resource)) for one in kinds.questions() for resource in one.resources}
    named = {action: {kind for verb, kind in asked if verb == action} for action in ("use", "steer")}
    assert named == {"use": {"custom_view", "pool"}, "steer": {"custom_view"}}
