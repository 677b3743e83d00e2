"""``team-authz whoami``."""

from __future__ import annotations

import json

import pytest

SIMPLE = {
    "AIRFLOW__CORE__MULTI_TEAM": "True",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ann:op:alpha,bob:viewer:beta|alpha,pat:admin",
}


def shown(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_somebody_who_is_described(run, engine):
    found = shown(run("whoami", "--group", "engineers", "--role", "Viewer", *engine, "-o", "json"))
    assert found["said_by"] == "the command line"
    assert found["subject"] == {
        "type": "user", "id": "somebody", "team_ids": [], "roles": ["Viewer"], "groups": ["engineers"],
    }  # fmt: skip
    assert found["team_roles"] == {"alpha": ["op", "user", "viewer"]}
    assert (found["common_roles"], found["platform_roles"]) == (["op", "user", "viewer"], [])
    assert found["entries"] == [
        {"table": "groups", "name": "engineers", "entry": {"team_id": "alpha", "role": "op"}},
    ]
    assert isinstance(found["revision"], str)


def test_an_entry_without_a_role_takes_the_logins_own(run, engine):
    found = shown(run("whoami", "--role", "Staff", "--role", "op", *engine, "-o", "json"))
    assert found["team_roles"] == {"alpha": ["op", "user", "viewer"]}
    assert found["entries"] == [{"table": "roles", "name": "Staff", "entry": {"team_id": "alpha"}}]


def test_claims_and_patterns(run, tmp_path):
    policy = tmp_path / "policy"
    (policy / "airflow/directory").mkdir(parents=True)
    directory = {
        "claims": {"unit": {"sales = 1": [{"team_id": "sales", "role": "user"}]}},
        "group_patterns": {"airflow-<team>-<role>": [{"team_id": "<team>", "role": "<role>"}]},
    }
    (policy / "airflow/directory/data.json").write_text(json.dumps(directory))
    described = ("--claim", "unit=sales = 1", "--group", "airflow-gamma-viewer", "--team", "delta")
    found = shown(run("whoami", *described, "--policy", policy, "-o", "json"))
    assert found["team_roles"] == {"delta": [], "gamma": ["viewer"], "sales": ["user", "viewer"]}
    assert {entry["table"] for entry in found["entries"]} == {"claims.unit", "group_patterns"}


def test_people_read_where_it_comes_from(run, engine):
    result = run("whoami", "--group", "engineers", *engine)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "in team alpha op, user, viewer" in lines
    assert "on the platform no role" in lines
    assert "because groups 'engineers' of the directory: op in team alpha" in lines


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name one of --token and --user, or describe somebody"),
        (("--user", "ann", "--role", "op"), "name one of --token and --user"),
        (("--user", "ann", "--token", "-"), "name one of --token and --user"),
        (("--claim", "unit"), "'unit' has no value"),
    ],
)
def test_what_cannot_be_meant(run, platform, arguments, told):
    result = run("whoami", *arguments, "--policy", platform)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_user_of_the_login_manager(program, platform):
    done = program("whoami", "--user", "bob", "--policy", platform, "-o", "json", **SIMPLE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["said_by"] == "SimpleAuthManager"
    assert found["subject"] == {
        "type": "user", "id": "bob", "team_ids": ["beta", "alpha"], "roles": ["viewer"],
    }  # fmt: skip
    assert found["team_roles"] == {"alpha": ["viewer"], "beta": ["viewer"]}


def test_a_user_whom_nobody_knows(program, platform):
    done = program("whoami", "--user", "eve", "--policy", platform, **SIMPLE)
    assert done.returncode == 2
    assert "SimpleAuthManager has no user eve" in done.stderr


def test_keycloak_does_not_tell_of_others(program, platform):
    keycloak = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"
    done = program("whoami", "--user", "ann", "--policy", platform, AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER=keycloak)
    assert done.returncode == 2
    assert "Keycloak shows groups and roles of ann in a token only: use --token, or describe somebody" in done.stderr


def test_a_token_that_is_none(program, platform, tmp_path):
    file = tmp_path / "token"
    file.write_text("not.a.token")
    done = program("whoami", "--token", file, "--policy", platform, **SIMPLE)
    assert done.returncode == 2
    assert "SimpleAuthManager cannot read this token" in done.stderr
    assert "not.a.token" not in done.stderr


def test_a_token_in_place_of_its_file_is_not_shown(run, platform):
    token = f"eyJhbGciOi{'J' * 300}"
    result = run("whoami", "--token", token, "--policy", platform)
    assert result.exit_code == 2
    assert "there is no such file" in result.stderr
    assert token not in result.output


def test_a_login_manager_that_cannot_be_had(program, platform):
    done = program(
        "whoami", "--user", "ann", "--policy", platform, AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER="no.such.Manager"
    )
    assert done.returncode == 2
    assert "the login manager cannot be loaded: [team_authz] authn_manager: no.such.Manager cannot be imported" in (
        done.stderr
    )


def test_groups_that_are_paths_are_told(run, platform):
    """As Keycloak names them with "Full group path" on."""
    found = shown(run("whoami", "--group", "/engineers", "--group", "engineers", "--policy", platform, "-o", "json"))
    (note,) = found["notes"]
    assert note.startswith("the directory does not name /engineers: ")
    assert '"Full group path"' in run("whoami", "--group", "/engineers", "--policy", platform).stdout
    assert shown(run("whoami", "--group", "engineers", "--policy", platform, "-o", "json"))["notes"] == []


def test_a_path_that_the_directory_names_is_no_mistake(run, tmp_path):
    policy = tmp_path / "policy"
    (policy / "airflow/directory").mkdir(parents=True)
    directory = {"groups": {"/alpha/engineers": [{"team_id": "alpha", "role": "op"}]}}
    (policy / "airflow/directory/data.json").write_text(json.dumps(directory))
    found = shown(run("whoami", "--group", "/alpha/engineers", "--policy", policy, "-o", "json"))
    assert (found["team_roles"], found["notes"]) == ({"alpha": ["op", "user", "viewer"]}, [])
