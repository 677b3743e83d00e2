"""``team-authz decide``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from airflow_team_authz.bundles.aggregate import build
from airflow_team_authz.bundles.signing import SigningKey
from tests.bundles.conftest import lends

ANN = {"type": "user", "id": "ann", "roles": ["op"], "team_ids": ["alpha"]}
BOB = {"type": "user", "id": "bob"}
ADA = {"type": "user", "id": "ada", "roles": ["Admin"]}


def question(subject=ANN, action="read", type_="connection", team_id="alpha", **resource):
    return {"subject": subject, "action": action, "resource": {"type": type_, "team_id": team_id, **resource}}


@pytest.fixture
def asked(tmp_path):
    def asked(content):
        file = tmp_path / "question.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return asked


def test_decisions_come_in_order_with_all_that_is_known(run, asked, engine):
    questions = [
        question(BOB, id="pg"),
        question(ANN, id="pg"),
        question(ADA, "delete", "pool", None, id="default_pool"),
        question(ANN, id="pg", team_id="beta"),
        question(BOB, id="pg", team_id=None),
        question({"type": "user", "id": "eve", "groups": ["engineers"]}, id="pg"),
    ]
    result = run("decide", asked(questions), *engine, "--output", "json")
    assert result.exit_code == 1, result.output
    answers = json.loads(result.stdout)
    assert [answer["allow"] for answer in answers] == [False, True, True, False, False, True]
    assert [set(answer) for answer in answers] == [{"allow", "reasons", "layer", "revision"}] * len(questions)
    assert answers[0]["reasons"] == [
        "user bob may not read connection pg of team alpha: that takes the role op in team alpha; "
        "bob has no role in any team"
    ]
    assert (answers[1]["layer"], answers[1]["reasons"]) == ("baseline", ["op in team alpha"])
    assert len({answer["revision"] for answer in answers}) == 1


def test_one_question_is_a_list_of_one(run, asked, engine):
    result = run("decide", asked(question(id="pg")), *engine, "-o", "json")
    assert result.exit_code == 0
    assert [answer["allow"] for answer in json.loads(result.stdout)] == [True]


def test_context_counts(run, asked, engine):
    assigned = {"user_id": "ann", "assigned_users": ["ann"]}
    others = {"user_id": "ann", "assigned_users": ["bob"]}
    both = [question(action="update", type_="hitl_task") | {"context": context} for context in (assigned, others)]
    result = run("decide", asked(both), *engine, "-o", "json")
    assert [answer["allow"] for answer in json.loads(result.stdout)] == [True, False]


def test_text_is_one_line_each(run, asked, engine):
    result = run("decide", asked([question(id="pg"), question(BOB, id="pg")]), *engine)
    assert result.exit_code == 1
    allowed, denied = result.stdout.splitlines()
    assert allowed.split()[:2] == ["allow", "baseline"]
    assert "op in team alpha" in allowed
    assert denied.split()[:2] == ["deny", "default"]
    assert "user bob may not read connection pg of team alpha" in denied
    assert "revision" in denied


def test_the_version_of_the_package_that_decided_is_told(run, asked, tmp_path):
    bundle = tmp_path / "production.wasm.tar.gz"
    built = build("production", None, {"alpha": lends("alpha", version=7)}, 3, SigningKey.new())
    bundle.write_bytes(built["production.wasm"])
    both = asked([question(BOB, id="pg"), question(ADA, id="pg", team_id=None)])
    of_team, of_all = json.loads(run("decide", both, "--policy", bundle, "-o", "json").stdout)
    assert (of_team["allow"], of_team["team_version"]) == (True, 7)
    assert "team_version" not in of_all
    of_team, of_all = run("decide", both, "--policy", bundle).stdout.splitlines()
    assert of_team.endswith("version 7 of the team's package")
    assert "package" not in of_all


def test_what_a_question_smuggles_into_a_reason_stays_on_its_line(run, asked, platform):
    smuggled = {"type": "user", "id": "bob\n\x1b[32mallow  baseline"}
    result = run("decide", asked(question(smuggled, id="pg")), "--policy", platform)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert "\x1b" not in result.stdout
    assert r"\x1b[32mallow" in result.stdout


def test_questions_from_standard_input(run, platform):
    result = run("decide", "-", "--policy", platform, stdin=json.dumps(question(id="pg")))
    assert result.exit_code == 0
    assert result.stdout.startswith("allow")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "truncated"),
        ("{'a'", "malformed"),
        ("3", "Expected `object | array`"),
        ("[]", "has no question"),
        ("[" * 100_000, "Expected"),
        ([question(), 3], "`$[1]`"),
        ({"subject": ANN, "action": "read"}, "missing required field `resource`"),
        (
            {"subject": ANN, "action": "read", "resource": {"type": "dag"}},
            "missing required field `team_id` - at `$.resource`",
        ),
        (question(team_id=3), "at `$.resource.team_id`"),
        (question(id=None), "at `$.resource.id`"),
        (question(ident="pg"), "unknown field `ident` - at `$.resource`"),
        (question(BOB | {"type": "robot"}), "'robot' - at `$.subject.type`"),
        (question(BOB | {"roles": "op"}), "at `$.subject.roles`"),
        (question() | {"context": None}, "at `$.context`"),
        ([question(), question(type_="conection")], "at `$[1].resource.type`: did you mean connection?"),
        (question(type_="dag", entity="Run"), "at `$.resource.entity`: did you mean run?"),
    ],
)
def test_mistakes_are_told_with_their_place(run, asked, platform, content, told):
    file = asked(content)
    result = run("decide", file, "--policy", platform)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"team-authz: {file}: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_text_that_is_no_text(run, platform, tmp_path):
    file = tmp_path / "question.json"
    file.write_bytes(b"\xff\xfe{")
    result = run("decide", file, "--policy", platform)
    assert result.exit_code == 2
    assert str(file) in result.stderr


def test_a_directory_is_no_question(run, platform, tmp_path):
    result = run("decide", tmp_path, "--policy", platform)
    assert result.exit_code == 2
    assert f"{tmp_path} cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--policy", "nowhere"], "--policy: nowhere does not exist"),
        (["--opa-url", "ftp://there"], "--opa-url: opa_url is unix:///path"),
        (["--opa-url", "http://there:port"], "--opa-url: "),
        (["--opa-url", "http://there/?token=hush"], "--opa-url: opa_url is unix:///path"),
        (["--opa-url", "http://127.0.0.1:1"], "OPA at http://127.0.0.1:1 cannot be reached"),
        (["--opa-url", "unix:///nowhere/opa.sock"], "OPA at unix:///nowhere/opa.sock cannot be reached"),
        (["--policy", "x", "--opa-url", "http://there"], "exclude each other"),
        (["--policy", __file__], "cannot be read"),
    ],
)
def test_no_engine_is_an_error_and_no_denial(run, asked, options, told):
    result = run("decide", asked(question()), *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert told in result.stderr


def test_a_server_without_policy_is_an_error_and_no_denial(run, asked, empty_opa_server):
    result = run("decide", asked(question()), "--opa-url", empty_opa_server)
    assert result.exit_code == 2
    assert "policy bundle is not loaded" in result.stderr


def test_a_directory_that_does_not_compile(run, asked, tmp_path):
    (tmp_path / "airflow/site").mkdir(parents=True)
    (tmp_path / "airflow/site/site.rego").write_text("package airflow.site\n\nallow if\n")
    result = run("decide", asked(question()), "--policy", tmp_path)
    assert result.exit_code == 2
    assert "does not compile" in result.stderr
    assert "site.rego:4: the file ends in the middle of a rule" in result.stderr
    assert result.stderr.count("\n") == 1


def test_airflow_is_not_imported_for_a_named_engine(asked, engine):
    code = (
        "import sys\n"
        "from airflow_team_authz.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as done:\n"
        "    print(done.code, 'airflow' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "decide", str(asked(question(id="pg"))), *engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert done.stderr == ""


def test_the_configured_engine_is_asked(program, asked, platform, tmp_path):
    done = program(
        "decide", asked(question(id="pg")), "-o", "json",
        AIRFLOW_HOME=str(tmp_path), AIRFLOW__TEAM_AUTHZ__POLICY=str(platform),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["reasons"] == ["op in team alpha"]


def test_a_wrong_setting_is_named(program, asked, tmp_path):
    done = program("decide", asked(question()), AIRFLOW_HOME=str(tmp_path), AIRFLOW__TEAM_AUTHZ__OPA_URI="http://there")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "[team_authz] opa_uri is not a setting: did you mean opa_url?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_configuration_file_is_no_traceback(program, asked, tmp_path):
    (tmp_path / "airflow.cfg").write_text("no section\n")
    done = program("decide", asked(question()), AIRFLOW_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Airflow's configuration cannot be read" in done.stderr


def test_without_airflow_the_options_are_named(run, asked, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "airflow"] + [
        "airflow",
        "airflow.configuration",
    ]:
        monkeypatch.setitem(sys.modules, module, None)
    result = run("decide", asked(question()))
    assert result.exit_code == 2
    assert "Airflow cannot be imported" in result.stderr
    assert "--policy or --opa-url" in result.stderr


def test_a_reader_that_goes_away_is_no_traceback(platform, asked):
    command = [sys.executable, "-c", "from airflow_team_authz.cli import main; main()", "decide"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        many = asked([question(id=f"pg{i}") for i in range(2000)])
        done = subprocess.run(
            [*command, str(many), "--policy", str(platform)],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert "Traceback" not in done.stderr
