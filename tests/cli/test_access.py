"""``team-authz can``, ``who-can`` and ``matrix``: each answer is what the same engine says to the single question."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from airflow_team_authz.doors.users import build_manager
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import compile_directory
from tests.conftest import opened, write
from tests.support.fab_tables import Person, Tables, airflows, standard_roles

DIRECTORY = {
    "groups": {"alpha-ops": [{"team_id": "alpha", "role": "op"}], "=1+1": [{"team_id": None, "role": "viewer"}]},
    "claims": {"unit": {"audit": [{"team_id": None, "role": "viewer"}]}},
}
ALPHA = """package teams.alpha

allow contains "bob is a friend" if {
	input.subject.id == "bob"
	input.resource.id == "connection_of_alpha"
	input.action == "read"
	not input.resource.entity
}
"""
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a bundle, which is opened faster."""
    place = tmp_path_factory.mktemp("access")
    files = {"airflow/directory/data.json": json.dumps(DIRECTORY), "teams/alpha/alpha.rego": ALPHA}
    compile_directory(write(place / "policy", files), place / "bundle.tar.gz")
    return place / "bundle.tar.gz"


@pytest.fixture(autouse=True)
def login_by_the_settings():
    """Not the login manager that another test has configured."""
    build_manager.cache_clear()
    yield
    build_manager.cache_clear()


@pytest.fixture(scope="module")
def point(policy: Path):
    with opened(policy) as point:
        yield point


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory):
    """Airflow's things, and FAB's people."""
    people = {"fay": Person(("Op",), ("alpha-ops",)), "bob": Person(("Viewer",))}
    tables = Tables(standard_roles(), people, {"alpha-ops": ()}, {"alpha_etl": "alpha", "common_etl": None})
    with airflows(tables.url(tmp_path_factory.mktemp("airflow") / "airflow.db")):
        yield


@pytest.fixture
def simple(database, monkeypatch):  # noqa: ARG001 - both are needed together
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ann:op:alpha,bob:viewer:my-team,pat:admin")


def permissions(result) -> set[tuple[str, ...]]:
    assert result.exit_code == 0, result.output
    return {
        (one["who"], one["action"], one["type"], one["id"], one["team"]) for one in json.loads(result.stdout)["allowed"]
    }


@pytest.mark.usefixtures("simple")
def test_what_a_person_may_do_is_what_the_engine_says_of_each_thing(run, policy, point):
    found = permissions(run("can", "bob", "--policy", policy, "-o", "json"))
    assert ("user bob", "read", "connection", "connection_of_alpha", "alpha") in found
    assert ("user bob", "read", "dag.code", "common_etl", "") in found
    assert ("user bob", "read", "connection", "connection_of_input", "input") not in found
    bob = Subject("user", "bob", ("my-team",), ("viewer",))
    for _, action, kind, id_, team in found:
        assert says(point, bob, action, kind, id_, team)


def says(point: DecisionPoint, subject: Subject, action: str, kind: str, id_: str, team: str) -> bool:
    type_, _, entity = kind.partition(".")
    named = {"id": id_} if id_ else {}
    resource = Resource(type_, team or None, **named, **({"entity": entity} if entity else {}))
    return point.decide(Evaluations(subject, action, [resource])).decisions[0].allow is True


@pytest.mark.exhaustive
@pytest.mark.usefixtures("simple")
def test_one_question_about_somebody(run, policy):
    result = run("can", "bob", "read", "connection/connection_of_alpha", "--policy", policy)
    assert (result.exit_code, "bob is a friend" in result.stdout) == (0, True), result.output
    assert run("can", "bob", "update", "connection/connection_of_alpha", "--policy", policy).exit_code == 1
    assert run("can", "group:alpha-ops", "update", "connection/connection_of_alpha", "--policy", policy).exit_code == 0
    assert run("can", "task:alpha", "update", "variable/variable of alpha", "--policy", policy).exit_code == 0


@pytest.mark.usefixtures("simple")
def test_who_can_knows_people_names_of_the_directory_and_tasks(run, policy):
    result = run("who-can", "read", "connection/connection_of_alpha", "--policy", policy)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "user ann baseline op in team alpha",
        "user bob team bob is a friend",
        "user pat baseline op in team alpha",
        "anybody in group alpha-ops baseline op in team alpha",
        "a task of team alpha baseline task in team alpha",
    ]


@pytest.mark.usefixtures("database")
def test_fabs_people_come_with_their_groups(run, policy, monkeypatch):
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER", FAB)
    found = permissions(run("who-can", "update", "connection/connection_of_alpha", "--policy", policy, "-o", "json"))
    assert {who for who, *_ in found} == {"user fay", "anybody in group alpha-ops"}


@pytest.mark.usefixtures("database")
def test_people_who_are_not_known_are_told(run, policy, monkeypatch):
    keycloak = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER", keycloak)
    result = run("who-can", "read", "connection/connection_of_alpha", "--policy", policy)
    assert "not covered: people of KeycloakAuthManager" in result.stderr
    assert "known by their groups only" in result.stderr
    assert "not covered: people whom the decision log has seen: " in result.stderr


def of_log(number: int, subject: dict[str, object], outcome: str = "allow", **more: object) -> str:
    asked = {"subject": subject, "action": "read", "resource": {"type": "dag", "team_id": "alpha", "id": "d"}}
    made = {"decision_id": str(number), "timestamp": "2026-11-20T10:00:00Z", "custom": {"outcome": outcome}}
    return json.dumps(made | {"input": asked} | more)


@pytest.mark.usefixtures("database")
def test_people_whom_no_login_manager_lists_are_those_of_the_decision_log(run, policy, monkeypatch, tmp_path):
    """Each as the last decision saw them."""
    in_group, without = {"groups": ["alpha-ops"]}, {"groups": []}
    lines = [
        of_log(1, {"type": "user", "id": "kay", **without}),
        of_log(2, {"type": "user", "id": "kay", **in_group}, "deny", erased=["/input/subject/claims"]),
        of_log(3, {"type": "user", "id": "kay", **without}, "shadow"),
        of_log(4, {"type": "user", "id": "joe", **in_group}),
        of_log(5, {"type": "user", "id": "joe", **without}),
        of_log(6, {"type": "task", "id": "d.t", "team_ids": ["alpha"]}),
        of_log(7, {"type": "user", **in_group}, erased=["/input/subject/id"]),
        of_log(8, {"type": "user", "id": 1, "groups": "alpha-ops"}),
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", "file")
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG_FILE", str(tmp_path / "log"))
    keycloak = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER", keycloak)
    result = run("who-can", "update", "connection/connection_of_alpha", "--policy", policy, "-o", "json")
    found = {who for who, *_ in permissions(result)}
    assert {who for who in found if who.startswith("user ")} == {"user kay"}
    told = json.loads(result.stdout)["not_covered"]
    assert "people whom the decision log has not seen, beside the 2 whom it has" in told
    assert "claims of 1 of these people, which masks of the decision log hide" in told
    assert "people of 2 records, which do not say who it was" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("who-can", "reed", "connection/x"), "no door asks about reed of a connection: did you mean read?"),
        (("who-can", "use", "connection/x"), "no door asks about use of a connection"),
        (("who-can", "read", "conection/x"), "'conection' is not a type of resource: did you mean connection?"),
        (("who-can", "read", "connection/gone"), "there is no connection gone: name its owner by --team"),
        (("who-can", "list", "connection/x"), "write connection to list resources"),
        (("can", "ann", "read"), "name both ACTION and TYPE/ID, or neither"),
        (("can", "eve"), "has no user eve"),
        (("can", "claim:unit"), "claim:unit has no value"),
        (("matrix", "--type", "spaceship"), "'spaceship' is not a type of resource"),
    ],
)
@pytest.mark.usefixtures("simple")
def test_what_cannot_be_meant_is_an_error_and_no_empty_answer(run, policy, arguments, told):
    result = run(*arguments, "--policy", policy)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


@pytest.mark.usefixtures("simple")
def test_the_matrix_agrees_with_the_other_commands_and_the_engine(run, policy, point, tmp_path):
    used = {"subject": {"type": "user", "id": "bob"}, "action": "read",
            "resource": {"type": "connection", "team_id": "alpha", "id": "connection_of_alpha"}}  # fmt: skip
    record = {"decision_id": "1", "timestamp": "2026-11-20T10:00:00Z", "custom": {"outcome": "allow"}, "input": used}
    (tmp_path / "log").write_text(json.dumps(record))
    result = run("matrix", "--type", "connection", "--policy", policy, "-o", "json", "--log", tmp_path / "log")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = document["permissions"]
    assert {row["last_use"] for row in rows} == {"2026-11-20T10:00:00Z", "none"}
    assert [(row["who"], row["action"]) for row in rows if row["last_use"] != "none"] == [("user bob", "read")]
    assert document["head"]["not_covered"][-2].startswith("uses before the 1 allowed decisions")
    cells = {(row["who"], row["action"], row["type"], row["id"], row["team"]) for row in rows}
    assert {cell for cell in cells if cell[0] == "user bob"} == {
        one for one in permissions(run("can", "bob", "--policy", policy, "-o", "json")) if one[2] == "connection"
    }
    readers = permissions(run("who-can", "read", "connection/connection_of_alpha", "--policy", policy, "-o", "json"))
    assert {cell for cell in cells if cell[1:4] == ("read", "connection", "connection_of_alpha")} == readers
    pat = Subject("user", "pat", (), ("admin",))
    for team in ("alpha", "input", ""):
        id_ = f"connection_of_{team or None}"
        assert (("user pat", "delete", "connection", id_, team) in cells) is says(
            point, pat, "delete", "connection", id_, team
        )


@pytest.mark.exhaustive
@pytest.mark.usefixtures("simple")
def test_csv_is_for_spreadsheets_and_holds_no_formula(run, tmp_path):
    groups = {"=1+1": [{"team_id": None, "role": "viewer"}]}
    rule = 'package airflow.site\n\nallow contains "=cmd()" if input.resource.id == "connection_of_alpha"\n'
    files = {"airflow/directory/data.json": json.dumps({"groups": groups}), "airflow/site/site.rego": rule}
    result = run("matrix", "--type", "connection", "--policy", write(tmp_path / "policy", files), "-o", "csv")
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows[0] == ["who", "kind", "action", "type", "id", "team", "layer", "reason", "last_use"]
    assert {len(row) for row in rows} == {9}
    assert rows[1][7].startswith("policy revision ")
    assert any(row[7] == "'=cmd()" for row in rows)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


def test_roles_are_shown_without_any_airflow(run, policy):
    result = run("matrix", "--by", "role", "--type", "variable", "--policy", policy, "-o", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["permissions"]
    may = {(row["who"], row["action"], row["team"]) for row in rows if row["type"] == "variable"}
    assert ("op in its own team", "update", "its own team") in may
    assert ("viewer in its own team", "update", "its own team") not in may
    assert ("op in its own team", "update", "another team") not in may
    assert ("a task of its own team", "update", "its own team") in may


@pytest.mark.exhaustive
@pytest.mark.usefixtures("simple")
def test_the_impact_on_what_airflow_has_is_told_by_name(run, policy, tmp_path):
    old = write(tmp_path / "old", {"airflow/directory/data.json": json.dumps(DIRECTORY)})
    result = run("impact", old, policy, "--inventory")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.partition("\n\n")[0].splitlines()
    assert line.startswith(
        "user bob gains: read connection connection_of_alpha of team alpha, by teams/alpha/alpha.rego:3"
    )
