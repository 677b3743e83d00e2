"""``team-authz explain``."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import Entry, Form, new_id
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.model import Decision, Evaluations, Resource, Subject
from tests.conftest import REPOSITORY

TEAM_RULES = """package teams.alpha

import data.airflow.authz.standing

# METADATA
# title: Lent connections
allow contains $"lent to {borrower}" if {
	input.resource.type == "connection"
	input.action == "read"
	some borrower in data.teams.alpha.lent[input.resource.id]
	borrower in standing.team_ids
}

deny contains "closed" if {
	input.resource.id == "closed"
	not "admin" in standing.platform_roles
}

allow contains "bound below" if {
	i > 0
	input.subject.roles[i] == "king"
}

allow contains "for everybody" if input.resource.id == "open"

deny contains "never"  if false

# METADATA
# title: Sealed
# custom: {code: ALPHA-7}
deny contains $"ALPHA-7: {input.resource.id} is sealed" if {
	startswith(input.resource.id, "sealed")
	input.subject.id != "cleo"
}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain") / "policy"
    files = {
        "airflow/directory/data.json": json.dumps({
            "groups": {"alpha-ops": [{"team_id": "alpha", "role": "op"}], "all": [{"team_id": None, "role": "admin"}]},
            "roles": {"Staff": [{"team_id": "alpha"}]},
            "claims": {"dept": {"data": [{"team_id": "alpha", "role": "admin"}]}},
        }),
        "teams/alpha/alpha.rego": TEAM_RULES,
        "teams/alpha/data.json": json.dumps({"lent": {"shared": ["beta"]}}),
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_example_of_the_documentation_is_explained_like_that(run, tmp_path):
    page = (REPOSITORY / "docs/explain.md").read_text()
    (rego,), (question,) = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("rego", "json"))
    (told,) = re.findall(r"```\n(deny.*?)```", page, re.DOTALL)
    directory = {"groups": {"alpha-engineers": [{"team_id": "alpha", "role": "op"}]}}
    for name, text in {
        "policy/teams/alpha/alpha.rego": rego,
        "policy/airflow/directory/data.json": json.dumps(directory),
        "question.json": question,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    result = run("explain", tmp_path / "question.json", "--policy", tmp_path / "policy")
    assert (result.exit_code, result.stdout) == (1, told)


@pytest.fixture
def explained(run, policy, tmp_path):
    def explained(subject, action="read", type_="connection", id_="db", team_id="alpha", output="json", **more):
        resource = {"type": type_, "id": id_, "team_id": team_id}
        question = {"subject": {"type": "user", "id": "bea", **subject}, "action": action, "resource": resource}
        (tmp_path / "question.json").write_text(json.dumps(question))
        result = run("explain", tmp_path / "question.json", "--policy", policy, "--output", output)
        assert result.exit_code == more.get("exit_code", 1), result.output
        return json.loads(result.stdout) if output == "json" else result.stdout

    return explained


def rules(told, step):
    (found,) = [one for one in told["steps"] if one["step"] == step]
    return {rule["line"]: rule for rule in found["rules"]}


def test_the_first_condition_that_does_not_hold_is_named(explained):
    told = explained({"team_ids": ["gamma"], "roles": ["op"]})
    assert rules(told, "team alpha allows")[7]["missing"] == {
        "line": 10, "text": "some borrower in data.teams.alpha.lent[input.resource.id]"
    }  # fmt: skip
    told = explained({"team_ids": ["gamma"]}, id_="shared")
    assert rules(told, "team alpha allows")[7]["missing"] == {"line": 11, "text": "borrower in standing.team_ids"}
    assert rules(told, "team alpha denies")[26]["missing"] == {"line": 26, "text": "false"}


def test_a_rule_that_speaks_decides_if_no_earlier_step_does(explained):
    told = explained({"team_ids": ["beta"]}, id_="shared", exit_code=0)
    assert rules(told, "team alpha allows")[7]["reasons"] == ["lent to beta"]
    assert [step["step"] for step in told["steps"] if step["decides"]] == ["team alpha allows"]
    told = explained({"groups": ["alpha-ops"]}, id_="closed")
    assert [(step["step"], step["speaks"], step["decides"]) for step in told["steps"] if step["speaks"]] == [
        ("team alpha denies", True, True),
        ("roles allow", True, False),
    ]


def test_a_condition_that_needs_a_later_one_leaves_only_that_rule_unexplained(explained):
    told = explained({"roles": ["clerk"]})
    found = rules(told, "team alpha allows")
    assert found[19]["missing"] is None
    assert found[19]["reasons"] == []
    assert found[24]["missing"]["text"] == 'input.resource.id == "open"'


def test_what_would_allow_it_is_named_with_who_gives_it(explained):
    told = explained({"roles": ["op"], "team_ids": ["beta"]})
    assert [change["told"] for change in told["changes"]] == [
        "the role op in team alpha, which group alpha-ops gives",
        "membership in team alpha, with the login's own roles, which role Staff gives",
        "the role admin in team alpha, which claim dept=data gives",
        "the role admin on the platform, which group all gives",
        "membership in team alpha, with the login's own role op",
    ]


def test_what_would_deny_it_is_named(explained):
    told = explained({"groups": ["alpha-ops", "others"]}, exit_code=0)
    assert [change["told"] for change in told["changes"]] == ["without group alpha-ops"]


def test_a_task_is_explained_too(explained):
    told = explained({"type": "task", "id": "t", "team_ids": ["alpha"]}, exit_code=0)
    assert [step["notes"] for step in told["steps"] if step["decides"]] == [
        ["task t holds task in team alpha", "enough is op or task"]
    ]


def test_text_names_file_and_line(explained):
    told = explained({"team_ids": ["gamma"]}, id_="shared", output="text")
    assert "teams/alpha/alpha.rego:7 would allow it, but line 11 is not true: borrower in standing.team_ids\n" in told
    assert "It would be allowed with one of these:\n  the role op in team alpha, which group alpha-ops gives\n" in told


def test_a_rule_is_told_by_its_code(explained):
    told = explained({}, id_="sealed", output="text")
    assert "teams/alpha/alpha.rego:31 (ALPHA-7) applies: ALPHA-7: sealed is sealed" in told
    (rule,) = [rule for step in explained({}, id_="sealed")["steps"] for rule in step["rules"] if rule["code"]]
    assert (rule["code"], rule["title"]) == ("ALPHA-7", "Sealed")


def test_markdown_shows_what_others_wrote_as_code(explained):
    told = explained({"id": "bea`s **evil** <b>"}, output="markdown")
    assert told.startswith("## Denied: `` user bea's **evil** <b> may not read connection db of team alpha: ")


def test_rules_that_are_not_those_in_force_are_told(run, policy, tmp_path):
    question = {"subject": {"type": "user", "id": "b"}, "action": "read"}
    question["resource"] = {"type": "connection", "id": "open", "team_id": "alpha"}
    (tmp_path / "q.json").write_text(json.dumps(question))
    (tmp_path / "other").mkdir()
    result = run("explain", tmp_path / "q.json", "--policy", policy, "--sources", tmp_path / "other")
    assert result.exit_code == 0, result.output
    assert "are not those in force" in result.stdout


@pytest.mark.parametrize("call", ["opa.runtime().env", 'http.send({"method": "get", "url": input.subject.id})'])
def test_sources_that_no_engine_has_compiled_call_nothing_that_policies_may_not(
    run, policy, tmp_path, monkeypatch, call
):
    monkeypatch.setenv("A_SECRET", "s3cret-of-the-environment")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        question = {"subject": {"type": "user", "id": f"http://127.0.0.1:{listening.getsockname()[1]}"}}
        question |= {"action": "read", "resource": {"type": "connection", "id": "x", "team_id": "alpha"}}
        (tmp_path / "q.json").write_text(json.dumps(question))
        (tmp_path / "sources/teams/alpha").mkdir(parents=True)
        rule = f"package teams.alpha\n\nallow contains json.marshal(found) if found := {call}\n"
        (tmp_path / "sources/teams/alpha/alpha.rego").write_text(rule)
        result = run("explain", tmp_path / "q.json", "--policy", policy, "--sources", tmp_path / "sources")
        assert result.exit_code == 2, result.output
        assert "s3cret" not in result.output
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a file with one question"),
        (["ann", "read"], "name a file with one question"),
        (["ann", "read", "connection"], "'connection' is not a resource: write TYPE/ID"),
        (["ann", "read", "conection/pg"], "did you mean connection?"),
        (["nowhere.json"], "nowhere.json cannot be read"),
        (["--decision", "17"], "'17' is not the id of a decision"),
        (["q.json", "--sources", "nowhere"], "nowhere is not a directory"),
        (["many.json"], "has 2 questions"),
    ],
)
def test_a_mistake_is_told(run, policy, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    question = {"subject": {"type": "user", "id": "b"}, "action": "read"}
    question["resource"] = {"type": "connection", "id": "open", "team_id": "alpha"}
    (tmp_path / "q.json").write_text(json.dumps(question))
    (tmp_path / "many.json").write_text(json.dumps([question, question]))
    result = run("explain", *arguments, "--policy", policy)
    assert (result.exit_code, told in result.stderr) == (2, True), result.output


def test_a_recorded_decision_is_explained_without_what_the_log_masks(run, policy, tmp_path, monkeypatch):
    subject = Subject("user", "bea", ("beta",), (), (), {"dept": ("data",)})
    question = Evaluations(subject, "read", [Resource("connection", "alpha", "shared")])
    made, said = question.resources, [Decision(False, ("because",), "default")]
    entry = Entry(new_id(), 1_700_000_000_000_000_000, 1, Origin("users"), question, "r", 1, 0, made, said)
    File(tmp_path / "log").write([Form().record(entry)])
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", "file")
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG_FILE", str(tmp_path / "log"))
    result = run("explain", "--decision", entry.id, "--policy", policy, "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["question"] == {
        "subject": {"type": "user", "id": "bea", "team_ids": ["beta"], "roles": [], "groups": []},
        "action": "read",
        "resource": {"type": "connection", "id": "shared", "team_id": "alpha"},
    }
    assert run("explain", "--decision", new_id(), "--policy", policy).exit_code == 1


def test_somebody_is_explained_about_what_airflow_has(program, policy, tmp_path):
    create_tables = (
        "import airflow.settings; from airflow.models import import_all_models, Connection; import_all_models();"
        "from airflow.models.base import Base; engine = airflow.settings.engine; Base.metadata.create_all(engine);"
        "from airflow.models.team import Team; from sqlalchemy.orm import Session; session = Session(engine);"
        "session.add(Team(name='alpha')); session.flush();"
        "session.add(Connection('shared', conn_type='http', team_name='alpha')); session.commit()"
    )
    airflow = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "bea:viewer:beta",
        "AIRFLOW__CORE__MULTI_TEAM": "True",
    }
    subprocess.run([sys.executable, "-c", create_tables], env=os.environ | airflow, check=True, capture_output=True)

    def explain(who, what, *options):
        return program("explain", who, "read", what, "--policy", policy, "-o", "json", *options, **airflow)

    done = explain("bea", "connection/shared")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["question"]["resource"] == {"type": "connection", "id": "shared", "team_id": "alpha"}
    assert "there is no connection gone: name its owner by --team" in explain("bea", "connection/gone").stderr
    assert explain("bea", "connection/gone", "--team", "alpha").returncode == 1
    assert "has no user eve" in explain("eve", "connection/shared").stderr


def test_a_bundle_has_no_rules_to_read(run, tmp_path, policy):
    from airflow_team_authz.opa.compile import compile_directory

    bundle = tmp_path / "bundle.tar.gz"
    compile_directory(policy, bundle)
    question = {"subject": {"type": "user", "id": "b"}, "action": "read"}
    question["resource"] = {"type": "connection", "id": "open", "team_id": "alpha"}
    (tmp_path / "q.json").write_text(json.dumps(question))
    result = run("explain", tmp_path / "q.json", "--policy", bundle)
    assert result.exit_code == 2
    assert "--sources" in result.stderr
    result = run("explain", tmp_path / "q.json", "--policy", bundle, "--sources", policy)
    assert (result.exit_code, "not those in force" in result.stdout) == (0, False), result.output
