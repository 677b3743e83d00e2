"""``team-authz doctor``."""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from airflow_team_authz.cli import doctor
from airflow_team_authz.cli.support.directory import group_path_checks
from airflow_team_authz.cli.support.engine import Named
from airflow_team_authz.cli.support.opa_admin import server_checks, version_check
from airflow_team_authz.cli.support.vocabulary import resource_words
from airflow_team_authz.decision_log.tables import decisions
from airflow_team_authz.engines.opa_server import OpaServer
from airflow_team_authz.opa.compile import compile_directory
from airflow_team_authz.settings import MANAGER
from tests.conftest import REPOSITORY


def checks(result):
    return {check["check"]: check for check in json.loads(result.stdout)}


def wrong(result):
    return [check for check in json.loads(result.stdout) if not check["ok"]]


def test_all_is_well(run, engine):
    result = run("doctor", *engine, "--output", "json")
    assert wrong(result) == []
    assert result.exit_code == 0
    found = checks(result)
    assert set(found["engine"]) == {"check", "ok", "detail", "help", "microseconds"}
    assert engine[1] in found["engine"]["detail"]
    decided = [name for name, check in found.items() if check["microseconds"] is not None]
    assert decided == [f"decision {type_}" for type_ in resource_words("type")]
    assert all(0 < found[name]["microseconds"] < 1_000_000 for name in decided)


def test_text_says_what_to_do(run, platform):
    result = run("doctor", "--policy", platform)
    assert result.exit_code == 0
    assert all(line.startswith("ok ") for line in result.stdout.splitlines())
    result = run("doctor", "--policy", platform, "--role", "boss")
    assert result.exit_code == 1
    assert "wrong  decision dag" in result.stdout
    assert "by --role" in result.stdout


def test_every_type_that_airflow_asks_about_is_decided():
    from airflow_team_authz.questions import KINDS

    assert set(resource_words("type")) == set(KINDS) | {"view", "custom_view", "hitl_task", "platform_view", "route"}


def test_the_server_tells_version_and_health(run, opa_server):
    by_tcp = checks(run("doctor", "--opa-url", opa_server["tcp"], "-o", "json"))
    by_socket = checks(run("doctor", "--opa-url", opa_server["unix"], "-o", "json"))
    assert by_tcp["opa version"]["detail"] == by_socket["opa version"]["detail"]
    assert by_tcp["opa version"]["detail"].startswith("OPA 1.")
    assert by_tcp["opa health"]["ok"]
    assert "opa health" not in by_socket  # the client cannot speak to a socket


def test_without_the_extra_the_version_is_told_all_the_same(run, opa_server, monkeypatch):
    monkeypatch.setitem(sys.modules, "opa_client", None)
    monkeypatch.setitem(sys.modules, "opa_client.opa", None)
    result = run("doctor", "--opa-url", opa_server["tcp"], "-o", "json")
    assert result.exit_code == 0
    found = checks(result)
    assert found["opa version"]["detail"].startswith("OPA 1.")
    assert found["opa health"]["help"] == "pip install 'airflow-team-authz[opa]'"


def test_no_proxy_comes_between(run, opa_server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    result = run("doctor", "--opa-url", opa_server["tcp"])
    assert result.exit_code == 0, result.output
    assert os.environ["NO_PROXY"] == "elsewhere"


@pytest.mark.parametrize("content", [b"\xff\xfe", "ключ".encode(), b"abc\r\nX-Role: admin"])
def test_a_token_file_that_holds_no_token(opa_server, tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    settings = Named(opa_url=opa_server["tcp"], opa_token_file=file)
    health, version = server_checks(settings, OpaServer(opa_server["tcp"], token_file=file))
    assert (health.ok, version.ok) == (False, False)
    assert f"{file} ([team_authz] opa_token_file) holds no token" in version.detail


@pytest.mark.parametrize(
    ("version", "ok"),
    [
        ("1.22.2", True), ("1.22.10", True), ("2.0.0", True), ("1.23.0-dev", True),
        ("1.22.1", False), ("1.9.0", False), ("0.70.0", False), ("", False), ("latest", False),
    ],
)  # fmt: skip
def test_versions(version, ok):
    check = version_check(version)
    assert check.ok is ok
    assert bool(check.help) is not ok


class _OldOpa(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer({"result": {"version": "1.20.4"}})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"provenance": {"version": "1.20.4"}})

    def _answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    protocol_version = "HTTP/1.1"


@pytest.mark.parametrize("with_client", [True, False])
def test_an_old_server_is_a_failure_with_its_reason(run, monkeypatch, with_client):
    if not with_client:
        monkeypatch.setitem(sys.modules, "opa_client.opa", None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _OldOpa)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        result = run("doctor", "--opa-url", f"http://127.0.0.1:{server.server_port}", "-o", "json")
    finally:
        server.shutdown()
        server.server_close()
    assert result.exit_code == 1
    version = checks(result)["opa version"]
    assert version["ok"] is False
    assert "1.20.4" in version["detail"]
    assert "lose a deny" in version["detail"]
    assert version["help"] == "install OPA 1.22.2 or newer"


def test_a_shadow_that_cannot_be_asked_is_told(run, monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__SHADOW", str(tmp_path / "gone"))
    check = checks(run("doctor", "--output", "json"))["shadow"]
    assert check["ok"] is False
    assert str(tmp_path / "gone") in check["detail"]
    assert "it decides nothing" in check["help"]


def test_observing_is_told_and_no_installation_that_enforces(monkeypatch):
    monkeypatch.setattr(doctor, "configured_engine", lambda: SimpleNamespace(mode="observe"))
    (check,) = [check for check in doctor._airflow_checks(readable=True) if check.check == "mode"]
    assert check.ok is False
    assert check.detail.startswith("OBSERVING: ")
    assert "nothing of this package is enforced" in check.detail


def test_no_server(run):
    result = run("doctor", "--opa-url", "http://127.0.0.1:1", "-o", "json")
    assert result.exit_code == 1
    assert {check["check"] for check in wrong(result)} == {"opa health", "opa version", "policy"}


def test_a_server_without_policy(run, empty_opa_server):
    result = run("doctor", "--opa-url", empty_opa_server, "-o", "json")
    assert result.exit_code == 1
    (check,) = wrong(result)
    assert check["check"] == "policy"
    assert "not loaded" in check["detail"]


@pytest.mark.parametrize(
    ("people", "told"),
    [
        (
            {"groups": {"g": [{"team_id": "alpha"}, {"team_id": "alpha", "role": "Op"}]}},
            "the role 'Op' is unknown - at `$.groups['g'][1].role`: did you mean op?",
        ),
        ({"roles": {"r": [{"team_id": "al", "role": "op"}]}}, "'al' is not a team id"),
        ({"roles": {"r": [{"team_id": "a lpha", "role": "op"}]}}, "at `$.roles['r'][0].team_id`"),
        ({"groups": {"g": [{"team_id": None}]}}, "it gives neither a team nor a role - at `$.groups['g'][0]`"),
        ({"groups": {"g": [{"role": "op"}]}}, "missing required field `team_id` - at `$.groups[...][0]`"),
        ({"groups": {"g": [{"team": "alpha"}]}}, "unknown field `team` - at `$.groups[...][0]`"),
        ({"group": {}}, "unknown field `group`"),
        ({"claims": {"unit": {"x": [{"team_id": "x"}]}}}, "at `$.claims['unit']['x'][0].team_id`"),
        (
            {"group_patterns": {"airflow": [{"team_id": "alpha"}]}},
            "neither <team> nor <role> in it - at `$.group_patterns['airflow']`",
        ),
        ({"group_patterns": {"<team>/<team>": [{"team_id": "<team>"}]}}, "twice"),
        ({"group_patterns": {"<team><role>": [{"team_id": "<team>"}]}}, "nothing is between <team> and <role>"),
        ({"group_patterns": {"<role>s": [{"team_id": "<team>"}]}}, "the pattern has no <team> in it"),
        ({"role_patterns": {"<team>": [{"team_id": "<team>", "role": "<role>"}]}}, "the pattern has no <role> in it"),
        ({"role_patterns": {"<team>": [{"team_id": "all teams", "role": "op"}]}}, "neither <team> nor a team id"),
        ({"role_patterns": {"<team>": [{"team_id": None, "role": "op"}]}}, "Expected `str`, got `null`"),
        (
            {"role_patterns": {"<team>": [{"team_id": "<team>", "role": "Op"}]}},
            "the role 'Op' is unknown - at `$.role_patterns['<team>'][0].role`: did you mean op?",
        ),
        ([], "Expected `object`"),
    ],
)
def test_mistakes_in_the_directory(run, platform, tmp_path, people, told):
    policy = copied(platform, tmp_path)
    (policy / "airflow/directory/data.json").write_text(json.dumps(people))
    result = run("doctor", "--policy", policy, "-o", "json")
    assert result.exit_code == 1
    (check,) = [check for check in wrong(result) if check["check"] == "directory"]
    assert told in check["detail"]
    assert str(policy / "airflow/directory/data.json") in check["help"]


@pytest.mark.parametrize(
    ("pattern", "role", "wrong_ones"),
    [
        ("airflow-<team>-<role>", "super-op", 1),
        ("<role>-<team>", "op-chief", 1),
        ("airflow-<team>-<role>s", "super-op", 1),
        ("airflow-<team>-<role>", "superop", 0),
        ("airflow-<team>/<role>", "super-op", 0),
        ("airflow-<team>-<role>", "great and-op", 0),
    ],
)
def test_a_pattern_that_can_be_read_in_two_ways(run, platform, tmp_path, pattern, role, wrong_ones):
    policy = copied(platform, tmp_path)
    table = json.loads((policy / "airflow/roles/data.json").read_text())
    table["includes"][role] = []
    (policy / "airflow/roles/data.json").write_text(json.dumps(table))
    people = {"group_patterns": {pattern: [{"team_id": "<team>", "role": "<role>"}]}}
    (policy / "airflow/directory/data.json").write_text(json.dumps(people))
    told = [check["detail"] for check in wrong(run("doctor", "--policy", policy, "-o", "json"))]
    assert len(told) == wrong_ones
    assert all("can be read as one with 'op' too" in detail for detail in told)


def test_every_mistake_in_the_directory_is_told(run, platform, tmp_path):
    policy = copied(platform, tmp_path)
    entries = [{"team_id": "alpha", "role": "nobody"}, {"team_id": "?", "role": "op"}]
    (policy / "airflow/directory/data.json").write_text(json.dumps({"groups": {"g": entries}}))
    assert len(wrong(run("doctor", "--policy", policy, "-o", "json"))) == 2


def test_roles_are_the_sites_own(run, platform, tmp_path):
    policy = copied(platform, tmp_path)
    table = json.loads((policy / "airflow/roles/data.json").read_text())
    table["includes"]["steward"] = ["op"]
    (policy / "airflow/roles/data.json").write_text(json.dumps(table))
    people = {"groups": {"g": [{"team_id": None, "role": "steward"}]}}
    (policy / "airflow/directory/data.json").write_text(json.dumps(people))
    assert run("doctor", "--policy", policy).exit_code == 0


@pytest.mark.parametrize(("name", "told"), [("data.yaml", "is YAML"), ("notes.txt", "does not exist")])
def test_a_directory_without_json(run, platform, tmp_path, name, told):
    policy = copied(platform, tmp_path)
    (policy / "airflow/directory/data.json").unlink()
    (policy / "airflow/directory" / name).write_text("groups: {}")
    result = run("doctor", "--policy", policy, "-o", "json")
    assert result.exit_code == 0
    assert told in checks(result)["directory"]["detail"]


def test_a_role_table_in_yaml_is_not_held_against_the_directory(run, platform, tmp_path):
    policy = copied(platform, tmp_path)
    (policy / "airflow/roles/data.json").rename(policy / "airflow/roles/data.yaml")  # JSON is YAML
    assert run("doctor", "--policy", policy).exit_code == 0


def test_a_directory_that_does_not_compile(run, platform, tmp_path):
    policy = copied(platform, tmp_path)
    (policy / "airflow/site/site.rego").write_text("package airflow.site\n\nallow if\n")
    result = run("doctor", "--policy", policy, "-o", "json")
    assert result.exit_code == 1
    assert [check["check"] for check in wrong(result)] == ["rules", "engine"]
    assert all("site.rego:4: the file ends in the middle of a rule" in check["detail"] for check in wrong(result))


@pytest.mark.parametrize("as_bundle", [False, True])
def test_rules_that_read_what_no_question_has(run, platform, tmp_path, as_bundle):
    policy = copied(platform, tmp_path)
    rule = 'package airflow.site\n\ndeny contains "x" if input.resource.tem_id == "alpha"\n'
    (policy / "airflow/site/more.rego").write_text(rule)
    (policy / "airflow/site/more_test.rego").write_text('package airflow.site\n\ndeny contains "y"\n')
    if as_bundle:
        compile_directory(policy, tmp_path / "bundle.tar.gz")
        policy = tmp_path / "bundle.tar.gz"
    result = run("doctor", "--policy", policy, "-o", "json")
    assert result.exit_code == 1
    found = [(check["check"], check["detail"].partition(" (")[0], check["help"]) for check in wrong(result)]
    typo = ("rules", "airflow/site/more.rego:3: there is no input.resource.tem_id", "did you mean team_id?")
    # A bundle has no tests in it.
    assert found[-1] == typo
    assert len(found) == (1 if as_bundle else 2)
    alone = run("doctor", "--rules", "--policy", policy, "-o", "json")
    assert alone.exit_code == 1
    assert json.loads(alone.stdout) == wrong(result)


def test_a_configured_installation(program, opa_server, tmp_path):
    (tmp_path / "token").write_text("hush-hush")
    done = program(
        "doctor", "-o", "json",
        AIRFLOW_HOME=str(tmp_path), AIRFLOW__CORE__AUTH_MANAGER=MANAGER, AIRFLOW__CORE__MULTI_TEAM="True",
        AIRFLOW__TEAM_AUTHZ__OPA_URL=opa_server["tcp"], AIRFLOW__TEAM_AUTHZ__OPA_TOKEN_FILE=str(tmp_path / "token"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = checks(done)
    assert found["settings"]["detail"] == "[team_authz] sets opa_token_file (env var), opa_url (env var)"
    assert found["auth manager"]["ok"]
    assert found["multi team"]["ok"]
    assert "not checked: Airflow's database does not answer here" in found["default pools"]["detail"]
    assert "hush-hush" not in done.stdout + done.stderr


def test_a_default_pool_that_does_not_exist(program, tmp_path):
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.models.team import Team
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    database = f"sqlite:///{tmp_path}/airflow.db"
    import_all_models()
    engine = create_engine(database)
    Base.metadata.create_all(engine)
    decisions().metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Team(name=name) for name in ("alpha", "beta"))
        session.commit()
    engine.dispose()
    done = program(
        "doctor", "-o", "json",
        AIRFLOW_HOME=str(tmp_path), AIRFLOW__CORE__AUTH_MANAGER=MANAGER, AIRFLOW__CORE__MULTI_TEAM="True",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=database, AIRFLOW__TEAM_AUTHZ__POLICY=str(REPOSITORY / "policies"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (check,) = wrong(done)
    assert (check["check"], check["detail"]) == (
        "default pools",
        "the default_pool of team alpha, alpha_pool, does not exist: tasks without another pool wait for ever",
    )
    assert "teams/alpha/data.json" in check["help"]


def test_an_installation_that_asks_nobody(program, tmp_path):
    done = program("doctor", "-o", "json", AIRFLOW_HOME=str(tmp_path), AIRFLOW__TEAM_AUTHZ__POLICI="/somewhere")
    assert done.returncode == 1, done.stderr
    found = {check["check"]: check for check in wrong(done)}
    assert set(found) == {"settings", "auth manager", "multi team"}
    assert "polici is not a setting: did you mean policy?" in found["settings"]["detail"]
    assert MANAGER in found["auth manager"]["help"]
    assert "multi_team = True" in found["multi team"]["help"]
    assert "Traceback" not in done.stderr


def test_what_cannot_be_checked_is_exit_code_2(run):
    result = run("doctor", "--policy", "nowhere")
    assert result.exit_code == 2
    assert result.stderr == "team-authz: --policy: nowhere does not exist: name a bundle file or a policy directory\n"


def copied(platform, tmp_path):
    import shutil

    return shutil.copytree(platform, tmp_path / "copy")


_KEYCLOAKS = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"
KEYCLOAK = {"AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER": _KEYCLOAKS}
REALM = {f"AIRFLOW__KEYCLOAK_AUTH_MANAGER__{name}": "company" for name in ("REALM", "CLIENT_ID", "CLIENT_SECRET")}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (KEYCLOAK, "is not set, so no login can be verified"),
        pytest.param(
            KEYCLOAK | REALM | {"AIRFLOW__KEYCLOAK_AUTH_MANAGER__SERVER_URL": "http://127.0.0.1:1"},
            "are not known",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            {"AIRFLOW__TEAM_AUTHZ__IDENTITY": "no.such.Identity"},
            "[team_authz] identity: no.such.Identity cannot be",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_login_that_cannot_be_verified(program, environment, told):
    done = program("doctor", "-o", "json", **environment)
    assert done.returncode == 1, done.stderr
    (login,) = [check for check in json.loads(done.stdout) if check["check"] == "login"]
    assert not login["ok"]
    assert told in login["detail"]


@pytest.mark.parametrize(
    ("groups", "ok", "told"),
    [
        (("alpha-engineers", "beta"), True, "has to be off"),
        (("/alpha/engineers", "/beta"), True, "has to be on"),
        (("/alpha/engineers", "beta"), False, "names some groups as paths (/alpha/engineers) and others not"),
    ],
    ids=str,
)
def test_whether_the_directory_names_groups_as_keycloak_does(tmp_path, groups, ok, told):
    file = tmp_path / "airflow/directory/data.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"groups": {name: [{"team_id": "alpha"}] for name in groups}}))
    (check,) = group_path_checks(tmp_path)
    assert (check.check, check.ok) == ("groups", ok)
    assert told in check.detail
