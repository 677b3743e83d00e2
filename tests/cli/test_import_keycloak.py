"""``team-authz import keycloak`` over exports made here; tests/keycloak compares with a real Keycloak."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import fingerprint
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "tests/cli/data"
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
        (decision,) = opened[state].decide(question).decisions
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
    assert "reaches every team's resources without being in the team" in told["why"]
    assert "(by the permission ReadOnly), GET, LIST of Connection;" in told["why"]
    assert '"Op": [{"team_id": null, "role": "op"}]' in told["help"]
    assert not decided(directory, ["Op"], ["alpha"])
    assert decided(directory, ["Op"], [], team_id=None)


def test_what_is_told_about_reaching_all_teams_does_it(imported, decided):
    every = permission("ReadOnly", [], ["op"], scopes=("GET", "LIST"))
    result, directory = imported(export(every, permission("a", ["Connection:alpha"], ["op of alpha"], scopes=("GET",))))
    entry = re.search(r"write (.*) into roles of airflow/directory/data.json", left(result)["role Op"]["help"])[1]
    assert not decided(directory, ["Op"], [], team_id="beta")
    assert decided(directory, ["Op"], ["alpha"])
    (directory / "airflow/directory/data.json").write_text(f'{{"roles": {{{entry}}}}}')
    assert not decided(directory, ["Op"], [], team_id="beta")
    table = json.loads((directory / "airflow/roles/data.json").read_text())
    table["permissions"]["connection"]["read"] = ["op"]
    (directory / "airflow/roles/data.json").write_text(json.dumps(table))
    assert decided(directory, ["Op"], [], team_id="beta")
    assert not decided(directory, ["Op"], [], "delete", "beta")


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
    "JSON without end": ({"name": "x", "type": "role", "config": {"roles": "[" * 100_000}}, "x cannot be read"),
    "no name": (role("x", "airflow/"), "x is about a role without a name"),
    "another claim": (
        {"name": "x", "type": "group", "config": {"groups": '[{"path": "/alpha"}]', "groupsClaim": "teams"}},
        "x looks for groups in the claim teams",
    ),
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
    ("config", "why"),
    [
        ({"resources": "x", "scopes": '["GET"]'}, "odd cannot be read"),
        ({"resources": '["Connection"]', "scopes": '{"GET": 1}'}, "odd cannot be read"),
        ({"resources": '["Connection"]', "scopes": "[7]"}, "odd cannot be read"),
        ({"scopes": '["GET"]', "defaultResourceType": "t"}, "odd is for a type of resources"),
    ],
)
@pytest.mark.parametrize("strategy", ["AFFIRMATIVE", "UNANIMOUS"])
def test_a_permission_whose_reach_is_not_understood_grants_nothing(imported, decided, config, why, strategy):
    """Where all have to grant, it may cover what another grants."""
    odd = {"name": "odd", "type": "scope", "config": config | {"applyPolicies": '["op"]'}}
    known = permission("known", ["Connection"], ["super"])
    result, directory = imported(export(odd, known, decisionStrategy=strategy))
    assert left(result)["permission odd"]["why"] == why
    assert not decided(directory, ["Op"], ["alpha"], team_id=None)
    unanimous = strategy == "UNANIMOUS"
    assert decided(directory, ["SuperAdmin"], [], team_id=None) is not unanimous


def test_a_permission_for_resources_that_names_none_is_for_none(imported, decided):
    """Unlike one for scopes, which then counts for every resource."""
    result, directory = imported(export(permission("none", [], ["op"], scopes=None)))
    assert left(result) == {}
    assert not decided(directory, ["Op"], [], team_id=None)


def test_policies_inside_of_policies(imported, decided):
    """Each is looked at once, and not once for every way to it."""
    twice = [both(f"x{i}", f"x{i + 1}", f"x{i + 1}") for i in range(40)]
    deep = [both(f"y{i}", f"y{i + 1}") for i in range(2_000)]
    result, directory = imported(
        export(
            *twice, role("x40", "Op"), *deep, role("y2000", "Op"),
            permission("x", ["Connection"], ["x0"], scopes=("GET",)), permission("y", ["Connection"], ["y0"]),
        )
    )  # fmt: skip
    assert set(left(result)) == {"permission y"}
    assert decided(directory, ["Op"], [], team_id=None)
    assert not decided(directory, ["Op"], [], "delete", None)


def test_too_many_combinations_are_told(imported, decided):
    """Where all have to grant, two permissions for two hundred roles let forty thousand pairs in."""
    roles = [role(f"r{i}", f"r{i}") for i in range(200)]
    some = [f"r{i}" for i in range(200)]
    both_of = [permission(name, ["Connection"], some, decisionStrategy="AFFIRMATIVE") for name in ("one", "other")]
    result, directory = imported(export(*roles, *both_of, decisionStrategy="UNANIMOUS"))
    assert left(result)["GET of Connection"]["why"] == "too many combinations of roles and groups are possible"
    assert not decided(directory, ["r1"], [], team_id=None)


@pytest.mark.parametrize(
    ("policies", "what"),
    [
        (["in alpha"], "GET of Connection:alpha for group alpha"),
        (["op of alpha", "in beta"], "GET of Connection:alpha for role Op, group alpha and beta"),
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


@pytest.mark.parametrize("other", ["oP", "airflow/Op", "airflow/OP"])
def test_roles_that_are_the_same_here_allow_nothing(imported, decided, other):
    """Together they would have what only one of them has."""
    reading = permission("reading", ["Connection"], ["again"], scopes=("GET",))
    deleting = permission(
        "deleting", ["Connection"], ["op", "super"], scopes=("DELETE",), decisionStrategy="AFFIRMATIVE"
    )
    result, directory = imported(export(role("again", other), reading, deleting))
    ((what, told),) = left(result).items()
    assert {*what.removeprefix("roles ").split(" and ")} == {"Op", other}
    assert "so they allow nothing" in told["why"]
    for action in ("read", "delete"):
        assert not decided(directory, ["Op"], [], action, None)
        assert not decided(directory, ["oP"], [], action, None)
    assert decided(directory, ["SuperAdmin"], [], "delete", None)


def test_a_role_of_the_client(imported, decided):
    reading = permission("reading", ["Connection:alpha"], ["mine of alpha"], scopes=("GET",))
    policies = [role("mine", "airflow/Mine"), both("mine of alpha", "mine", "in alpha"), reading]
    result, directory = imported(export(*policies))
    assert left(result) == {}
    assert decided(directory, ["Mine"], ["alpha"])
    assert not decided(directory, ["Mine"], [])
    result, _ = imported(export(*policies), "--client-id", "else", "--force")
    assert "mine is about a role of the client airflow" in left(result)["permission reading"]["why"]


def test_a_superadmin_of_one_team_is_not_let_into_it_from_outside(imported, decided):
    """The role is the platform's here, so it would count whether somebody is in the team or not."""
    policies = [both("super of alpha", "super", "in alpha"), permission("a", ["Connection:alpha"], ["super of alpha"])]
    result, directory = imported(export(*policies))
    told = left(result)["DELETE, GET, LIST, POST, PUT of Connection:alpha for role SuperAdmin, group alpha"]
    assert told["why"] == "SuperAdmin is the platform's role here, and not one team's"
    for groups in ([], ["alpha"]):
        assert not decided(directory, ["SuperAdmin"], groups)
    everywhere = permission("all", ["Connection:alpha", "Connection:beta"], ["super"])
    result, directory = imported(export(*policies, everywhere), "--force")
    assert left(result) == {}
    assert decided(directory, ["SuperAdmin"], [])


def test_a_role_that_is_written_like_superadmin_is_no_platform_role(imported, decided):
    policies = [role("like", "superADMIN"), both("like of alpha", "like", "in alpha")]
    result, directory = imported(export(*policies, permission("a", ["Connection:alpha"], ["like of alpha"])))
    assert left(result) == {}
    assert json.loads((directory / "airflow/roles/data.json").read_text())["platform"] == []
    assert decided(directory, ["superADMIN"], ["alpha"])
    assert not decided(directory, ["superADMIN"], [])


def test_a_superadmin_in_a_team_has_not_what_only_its_admins_have(imported, decided):
    """The role includes admin only if nothing is an admin's alone."""
    policies = [role("admin", "Admin"), both("admin of alpha", "admin", "in alpha")]
    everywhere = permission("all", ["Connection:alpha"], ["super", "admin of alpha"], decisionStrategy="AFFIRMATIVE")
    common = permission("common", ["Connection"], ["admin of alpha"])
    result, directory = imported(export(*policies, everywhere, common))
    assert left(result) == {}
    assert decided(directory, ["Admin"], ["alpha"], team_id=None)
    assert not decided(directory, ["SuperAdmin"], ["alpha"], team_id=None)
    _, directory = imported(export(*policies, everywhere), "--force")
    assert json.loads((directory / "airflow/roles/data.json").read_text())["includes"]["superadmin"] == ["admin"]


def test_odd_teams_are_told(imported):
    names = ["Connection", "Connection:a team", "Connection:größe"]
    result, _ = imported(export(permission("all", names, ["op"]), names=names))
    assert {"team 'a team'", "team 'größe'"} <= set(left(result))


def test_resources_that_nothing_asks_about_are_told(imported):
    names = ["Connection", "AdminView", "Backfill", "Asset:alpha"]
    result, _ = imported(export(permission("all", ["AdminView", "Asset:alpha"], ["super"]), names=names))
    assert set(left(result)) == {"resources AdminView, Asset:alpha"}


def test_menu_items_that_others_see_now_are_told(imported):
    names = ["Connection", "Pool", "Connections", "Pools"]
    shown = permission("shown", ["Connections", "Pools"], ["op"], scopes=("MENU",))
    listing = permission("listing", ["Connection", "Pool"], ["super"], scopes=("LIST",))
    result, _ = imported(export(shown, permission("pools", ["Pool"], ["op"]), listing, names=names))
    told = {what: entry["why"].partition(": ")[2] for what, entry in left(result).items()}
    assert told == {
        "menu items Connections": "now shown to some who are superadmin, no longer shown to some who are op",
        "menu items Pools": "now shown to some who are superadmin",
    }


def test_what_belongs_to_somebody_is_told(imported):
    content = export({"name": "given", "type": "uma", "config": {}})
    content["resources"][1]["owner"] = {"name": "ann"}
    told = left(imported(content)[0])
    assert told["permission given"]["why"] == "somebody has given it for what they own"
    assert "it belongs to ann" in told["resource Connection:alpha"]["why"]


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
    assert "is not an export of a client's authorization settings" in result.stderr
    assert not (directory / "airflow/site/imported.rego").exists()


def test_a_file_that_is_too_large(run, tmp_path):
    assert run("init", tmp_path / "policy").exit_code == 0
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(40 * 1024 * 1024)
    result = run("import", "keycloak", tmp_path / "large.json", tmp_path / "policy")
    assert result.exit_code == 2
    assert "large.json is larger than 32 MiB" in result.stderr


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


# What the commands of Airflow's provider have made for two teams, exported from Keycloak: once with create-all --teams,
# and once with create-all and then create-team for each.
REAL = {"keycloak_create_all_teams.json": ["AdminView"], "keycloak_create_team.json": ["AdminView", "Backfill"]}


@pytest.mark.parametrize("name", REAL)
def test_a_real_export(imported, decided, name):
    result, directory = imported((DATA / name).read_text())
    changing, items, resources = sorted(left(result))
    assert changing == "POST, PUT, DELETE of Team for admin"
    assert items.startswith("menu items Assets, Audit Log, ")
    assert resources == f"resources {', '.join(REAL[name])}"
    table = json.loads((directory / "airflow/roles/data.json").read_text())
    assert table["platform"] == ["superadmin"]
    assert table["includes"] == {"admin": [], "op": [], "superadmin": ["admin"], "user": [], "viewer": []}
    assert table["permissions"]["dag"]["trigger"] == ["admin", "op", "superadmin", "user"]
    assert table["permissions"]["connection"]["read"] == ["admin", "op", "superadmin"]
    assert json.loads((directory / "airflow/directory/data.json").read_text()) == {
        "groups": {"alpha": [{"team_id": "alpha"}], "beta": [{"team_id": "beta"}]}
    }
    assert not (directory / "teams").exists()
    for role_, groups in product(("Viewer", "User", "Op", "Admin", "SuperAdmin"), ([], ["alpha"], ["beta"])):
        inside = role_ in {"Op", "Admin"} and groups == ["alpha"]
        for action in ("read", "delete"):
            assert decided(directory, [role_], groups, action) is (inside or role_ == "SuperAdmin")


def test_the_report_says_that_groups_have_to_be_in_the_token(run, tmp_path):
    assert run("init", tmp_path / "policy").exit_code == 0
    result = run("import", "keycloak", DATA / "keycloak_create_team.json", tmp_path / "policy")
    assert result.exit_code == 1
    assert "Not translated (3):" in result.stdout
    assert "switch on Add to access token" in result.stdout


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
