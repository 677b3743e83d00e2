"""``team-authz import keycloak`` over exports made here; tests/keycloak compares with a real Keycloak."""

from __future__ import annotations

import json
import re

import pytest

from airflow_team_authz.compile import fingerprint
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Resource, Subject
from tests.conftest import REPOSITORY

METHODS = ("GET", "LIST", "POST", "PUT", "DELETE")


def role(name, *roles, **more):
    listed = [{"id": one, "required": False} for one in roles]
    return {"name": name, "type": "role", "config": {"roles": json.dumps(listed)}} | more


def group(name, path, children=False):
    listed = [{"path": path, "extendChildren": children}]
    return {"name": name, "type": "group", "config": {"groups": json.dumps(listed)}}


def both(name, *policies, **more):
    return {"name": name, "type": "aggregate", "config": {"applyPolicies": json.dumps(policies)}} | more


def permission(name, resources, policies, scopes=METHODS, **more):
    config = {"applyPolicies": json.dumps(policies)}
    if resources:
        config["resources"] = json.dumps(resources)
    if scopes:
        config["scopes"] = json.dumps(scopes)
    return {"name": name, "type": "scope" if scopes else "resource", "config": config} | more


BASIC = [role("op", "Op"), group("in alpha", "/alpha"), group("in beta", "/beta"), role("super", "SuperAdmin")]
BASIC += [both("op of alpha", "op", "in alpha"), both("op of beta", "op", "in beta")]


def export(*policies, names=("Connection", "Connection:alpha", "Connection:beta"), **more):
    resources = [{"name": name, "scopes": [{"name": scope} for scope in (*METHODS, "MENU")]} for name in names]
    return {"decisionStrategy": "AFFIRMATIVE", "resources": resources, "policies": [*BASIC, *policies]} | more


@pytest.fixture
def imported(run, tmp_path):
    """What the command makes of an export: exit code, what is left, and the directory."""

    def imported(content, *options):
        file, directory = tmp_path / "settings.json", tmp_path / "policy"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        if not directory.exists():
            assert run("init", directory).exit_code == 0
        return run("import", "keycloak", file, directory, "-o", "json", *options), directory

    return imported


def left(result):
    assert result.exit_code in {0, 1}, result.output
    found = json.loads(result.stdout)["untranslated"]
    assert (result.exit_code == 1) == bool(found)
    return {entry["what"]: entry for entry in found}


@pytest.fixture
def decided():
    """Whether the policy of a directory allows somebody something; each state of it is compiled once."""
    opened = {}

    def decided(directory, roles, groups, action="read", team_id="alpha"):
        state = directory, fingerprint(directory)
        if state not in opened:
            opened[state] = DecisionPoint(InProcess(directory))
        subject = Subject("user", "ann", (), tuple(roles), tuple(groups))
        question = Evaluations(subject, action, [Resource("connection", team_id, "x")])
        ((decision,), _) = opened[state].decide(question)
        assert opened[state].allowed(question) == (question.resources if decision.allow else [])
        return decision.allow

    yield decided
    for point in opened.values():
        point.close()


def test_a_role_in_a_teams_group(imported, decided):
    result, directory = imported(
        export(
            permission("a", ["Connection:alpha"], ["op of alpha"]), permission("b", ["Connection:beta"], ["op of beta"])
        )
    )
    assert left(result) == {}
    table = json.loads((directory / "airflow/roles/data.json").read_text())
    assert table["permissions"]["connection"]["read"] == ["op"]
    assert table["common"]["connection"]["read"] == []
    assert not (directory / "teams").exists()
    assert decided(directory, ["Op"], ["alpha"])
    assert not decided(directory, ["Op"], ["beta"])
    assert not decided(directory, ["Op"], [])
    assert not decided(directory, [], ["alpha"])
    assert not decided(directory, ["Op"], ["alpha"], team_id=None)


def test_what_one_team_allows_more_is_in_its_package(imported, decided):
    result, directory = imported(
        export(
            permission("a", ["Connection:alpha"], ["op of alpha"]),
            permission("b", ["Connection:beta"], ["op of beta"], scopes=("GET", "LIST")),
        )
    )
    assert left(result) == {}
    assert decided(directory, ["Op"], ["alpha"], "delete")
    assert decided(directory, ["Op"], ["beta"], "read", "beta")
    assert not decided(directory, ["Op"], ["beta"], "delete", "beta")
    assert not decided(directory, ["Op"], ["beta"], "delete", "alpha")
    assert (directory / "teams/alpha/imported.rego").exists()
    assert not (directory / "teams/beta").exists()


def test_superadmin_reaches_all_teams(imported, decided):
    names = ["Connection", "Connection:alpha", "Connection:beta"]
    result, directory = imported(export(permission("all", names, ["super"])))
    assert left(result) == {}
    for team in ("alpha", "beta", None):
        assert decided(directory, ["SuperAdmin"], [], "delete", team)
        assert not decided(directory, ["Admin"], ["alpha"], "delete", team)


def test_common_resources_for_members_of_some_team(imported, decided):
    result, directory = imported(export(permission("view", ["Connection"], ["op of alpha"], scopes=("GET",))))
    assert left(result) == {}
    assert decided(directory, ["Op"], ["alpha"], team_id=None)
    assert not decided(directory, ["Op"], ["beta"], team_id=None)
    assert not decided(directory, ["Op"], [], team_id=None)
    assert not decided(directory, [], ["alpha"], team_id=None)


def test_a_permission_that_is_bound_to_nothing_is_told_and_gives_nothing(imported, decided):
    """What `create-all` alone makes: whoever has the role reads every team's resources."""
    result, directory = imported(export(permission("ReadOnly", [], ["op"], scopes=("GET", "LIST"))))
    told = left(result)["role Op"]
    assert "reaches resources of teams whose group they are not in (by ReadOnly)" in told["why"]
    assert '"Op": [{"team_id": null, "role": "op"}]' in told["help"]
    assert not decided(directory, ["Op"], ["alpha"])
    assert decided(directory, ["Op"], [], team_id=None)
    (directory / "airflow/directory/data.json").write_text(
        json.dumps({"roles": {"Op": [{"team_id": None, "role": "op"}]}})
    )
    assert not decided(directory, ["Op"], ["alpha"], "delete")


UNKNOWN = {
    "negative logic": (role("x", "Op", logic="NEGATIVE"), "x has negative logic"),
    "JavaScript": ({"name": "x", "type": "script-x.js", "config": {}}, "x is a policy of the kind 'script-x.js'"),
    "time": ({"name": "x", "type": "time", "config": {}}, "x is a policy of the kind 'time'"),
    "consensus": (both("x", "op", "in alpha", decisionStrategy="CONSENSUS"), "x has the decision strategy CONSENSUS"),
    "itself": (both("x", "x", "op"), "x is a part of itself"),
    "nothing": (both("x"), "x has no policy"),
    "what is not there": (both("x", "gone"), "x cannot be read"),
    "another client's role": (role("x", "other/Op"), "x is about a role of the client other"),
    "a group inside": (group("x", "/alpha/ops"), "inside of another"),
    "groups inside": (group("x", "/alpha", children=True), "x counts groups inside of /alpha too"),
    "some required": (
        {"name": "x", "type": "role", "config": {"roles": '[{"id":"Op","required":true},{"id":"User"}]'}},
        "x requires some of its roles",
    ),
    "no JSON": ({"name": "x", "type": "role", "config": {"roles": "Op"}}, "x cannot be read"),
    "another JSON": ({"name": "x", "type": "role", "config": {"roles": '{"id": "Op"}'}}, "x cannot be read"),
    "a number": ({"name": "x", "type": "role", "config": {"roles": "[7]"}}, "x cannot be read"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_not_understood_is_told_and_grants_nothing(imported, decided, kind):
    policy, why = UNKNOWN[kind]
    result, directory = imported(export(policy, permission("odd", ["Connection:alpha", "Connection"], ["x"])))
    assert why in left(result)["permission odd"]["why"]
    for roles, groups in ((["Op"], ["alpha"]), (["Op", "User"], []), ([], [])):
        assert not decided(directory, roles, groups)
        assert not decided(directory, roles, groups, team_id=None)


@pytest.mark.parametrize(
    ("policies", "what"),
    [
        (["in alpha"], "GET of Connection:alpha for group alpha"),
        (["op of beta"], "GET of Connection:alpha for role Op, group beta"),
        (["op of alpha", "super"], "GET of Connection:alpha for role Op and SuperAdmin, group alpha"),
    ],
)
def test_what_fits_no_role_in_its_team_is_told(imported, decided, policies, what):
    odd = permission("odd", ["Connection:alpha"], policies, scopes=("GET",), decisionStrategy="UNANIMOUS")
    result, directory = imported(export(odd))
    assert what in left(result)
    assert not decided(directory, ["Op"], ["alpha", "beta"])


def test_an_unanimous_client_lets_in_whom_all_permissions_let_in(imported, decided):
    one = permission("one", ["Connection:alpha"], ["op of alpha"])
    other = permission("other", ["Connection:alpha"], ["super"])
    result, directory = imported(export(one, other, decisionStrategy="UNANIMOUS"))
    assert "decision strategy UNANIMOUS of the client" in left(result)
    assert not decided(directory, ["Op"], ["alpha"])


def test_a_permissive_client_is_told(imported):
    result, _ = imported(export(policyEnforcementMode="PERMISSIVE"))
    assert "policy enforcement mode PERMISSIVE" in left(result)


def test_roles_that_differ_in_case_only_and_odd_teams_are_told(imported):
    names = ["Connection", "Connection:a team", "Connection:größe"]
    result, _ = imported(
        export(
            role("again", "oP"), permission("all", names, ["op", "again"], decisionStrategy="AFFIRMATIVE"), names=names
        )
    )
    told = left(result)
    assert {"team 'a team'", "team 'größe'"} <= set(told)
    assert "role oP" in told or "role Op" in told


def test_names_are_data_and_never_rules(imported, decided):
    name = '"} allow contains "x" if true #'
    result, directory = imported(export(role("x", name), permission("all", ["Connection"], ["x"])))
    assert left(result) == {}
    assert decided(directory, [name], [], team_id=None)
    assert not decided(directory, ["Op"], [], team_id=None)


@pytest.mark.parametrize("content", ["", "no JSON", "[]", "{}", '{"resources": 1, "policies": []}', "[" * 100_000])
def test_what_is_no_export_is_refused(imported, content):
    result, directory = imported(content)
    assert result.exit_code == 2
    assert "is no export of a client's authorization settings" in result.stderr
    assert not (directory / "airflow/site/imported.rego").exists()


def test_a_file_that_is_not_there(run, tmp_path):
    assert run("init", tmp_path / "policy").exit_code == 0
    result = run("import", "keycloak", tmp_path / "no.json", tmp_path / "policy")
    assert result.exit_code == 2
    assert "no.json cannot be read" in result.stderr


def test_nothing_that_somebody_has_changed_is_replaced_without_force(imported):
    content = export(permission("a", ["Connection:alpha"], ["op of alpha"]))
    _, directory = imported(content)
    (directory / "airflow/roles/data.json").write_text("{}")
    result, _ = imported(content)
    assert result.exit_code == 2
    assert "airflow/roles/data.json" in result.stderr
    assert (directory / "airflow/roles/data.json").read_text() == "{}"
    result, _ = imported(content, "--force")
    assert result.exit_code == 0
    assert "op" in (directory / "airflow/roles/data.json").read_text()


def test_the_documentation_shows_commands_that_work(run, tmp_path, monkeypatch):
    page = (REPOSITORY / "docs/importing.md").read_text()
    _, block = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    commands = [line.removeprefix("$ team-authz ") for line in block.splitlines()]
    monkeypatch.chdir(tmp_path)
    content = export(
        permission("a", ["Connection:alpha"], ["op of alpha"]), permission("all", ["Connection"], ["super"])
    )
    (tmp_path / "settings.json").write_text(json.dumps(content))
    assert [run(*command.split()).exit_code for command in commands[:2]] == [0, 0]
    told = json.loads(run(*commands[2].split(), "-o", "json").stdout)
    assert {check["check"]: check["ok"] for check in told}["decision connection"]
