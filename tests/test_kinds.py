"""Which rules look at the ids of resources: lists ask the others once for all resources of a kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_team_authz.opa.compile import policy_files, shipped_policies, write_derived
from airflow_team_authz.opa.kinds import REGARDLESS_OF_ID, looks_at_ids, read_of_standing, regardless_of_id
from tests.conftest import write

# Of a package of team alpha.
REGARDLESS = (
    "",
    'allow contains "x" if input.action == "read"',
    'deny contains "x" if input.subject.id == "bob"',
    'deny contains "x" if input.subject.id in data.teams.alpha.interns',
    'deny contains "x" if input.subject.id in data.teams["alpha"].interns',
    'allow contains "x" if input.resource.type == "dag"\nallow contains "y" if not input.resource.entity',
    'allow contains "x" if input.resource.delivery.asset.name == "orders"',
    'import data.airflow.authz.standing\n\nallow contains $"for {input.action}" if "alpha" in standing.team_ids',
    '# METADATA\n# schemas:\n#   - input: schema.input\nallow contains "x" if input.context.user_id',
    "# What input and data are, nobody asks.\nallow contains `x`",
    'allow contains "x" if data.airflow.roles.platform\nallow contains "y" if data.airflow.site.open',
    'my_input := 1\nallow contains "x" if my_input == data.acme.number',
)
LOOKS = (
    'deny contains "x" if input.resource.id == "x"',
    'deny contains $"{input.resource.id}"',
    'deny contains "x" if input.resource["id"] == "x"',
    'deny contains "x" if input["resource"].id == "x"',
    'deny contains "x" if startswith(input.resource[field], "x")',
    'deny contains "x" if object.get(input.resource, "id", "") == "x"',
    'r := input.resource\ndeny contains "x" if r.id == "x"',
    'i := input\ndeny contains "x" if i.resource.id == "x"',
    'import input.resource as r\ndeny contains "x" if r.id == "x"',
    'import input as i\ndeny contains "x" if i.resource.id == "x"',
    'deny contains "x" if { walk(input, [path, "x"]) }',
    'deny contains "x" if { some key, "x" in input.resource }',
    'deny contains "x" if input.resources[_].id == "x"',
    'deny contains "x" if input.resource.identity',
    'deny contains "x" if input.resource.type_id',
    'deny contains "x" if data.airflow.authz.speaking',
    'deny contains "x" if data.airflow.authz.baseline.refusal',
    'import data.airflow.authz as a\ndeny contains "x" if a.speaking',
    'import data.airflow as a\ndeny contains "x" if a.authz.speaking',
    'deny contains "x" if data.airflow["authz"].speaking',
    'deny contains "x" if data["airflow"].authz.speaking',
    'deny contains "x" if data[a].authz.speaking',
    'deny contains "x" if data.teams.beta.deny',
    'deny contains "x" if data.teams.alphabet.deny',
    'deny contains "x" if data.teams[t].deny',
    'import data.teams as t\ndeny contains "x" if t.beta.deny',
    'deny contains "x" if data.teams.alpha.deny with input.resource as {"id": 1}',
    '# \rdeny contains "x" if input.resource.id',
    # In a text of several lines, what begins like a comment may hold code.
    'deny contains $`\n# {input.resource.id}`',
    'deny contains `\n# `\ndeny contains x if { y := `\n# `; x := input.resource.id }',
)  # fmt: skip


@pytest.mark.parametrize("rules", REGARDLESS)
def test_rules_that_look_at_kinds_only_are_found(rules: str) -> None:
    assert looks_at_ids(f"package teams.alpha\n\n{rules}\n".encode(), "alpha") is False


@pytest.mark.parametrize("rules", LOOKS)
def test_whatever_may_look_at_an_id_counts_as_a_look(rules: str) -> None:
    assert looks_at_ids(rules.encode(), "alpha") is True


def test_no_shipped_rule_about_what_nobody_overrides_looks_at_ids() -> None:
    """Lists ask these about kinds, if nothing else does."""
    for path in policy_files(shipped_policies() / "airflow/authz/guardrails"):
        assert looks_at_ids(path.read_bytes()) is False


def test_a_look_of_the_platforms_is_one_for_all_and_a_teams_for_its_own() -> None:
    look, none = b'package x\n\ndeny contains "x" if input.resource.id', b"package x\n"
    shipped = {"airflow/authz/authz.rego": look, "airflow/roles/data.json": b"{}"}
    files = {"airflow/site/a.rego": none, "teams/alpha/a.rego": none, "teams/alpha/b/b.rego": look}
    only_data = {"teams/beta/data.json": b'{"deny": ["input.resource.id"]}'}
    told = json.loads(regardless_of_id(shipped | files | only_data))
    assert told == {"site": True, "others": True, "teams": {"alpha": False, "beta": True}}
    for name in ("airflow/site/b.rego", "acme/a.rego", "a.rego", "teams/a.rego", "airflow/authzx/a.rego"):
        assert json.loads(regardless_of_id(files | {name: look}))["site"] is False


def test_what_rules_read_of_a_subjects_teams_is_found() -> None:
    reads = (
        b'package x\n\nimport data.airflow.authz.standing\n\nallow contains "x" if "op" in standing.team_roles.alpha\n'
    )
    files = {
        "airflow/authz/authz.rego": reads,
        "airflow/site/a.rego": b"package x\n\nroles := data.airflow.authz.standing.team_roles\n",
        "airflow/site/b.rego": b"package x\n\n# standing.team_ids\n",
        "teams/alpha/a.rego": reads.replace(b"team_roles.alpha", b"team_ids"),
        "teams/alpha/b/b.rego": reads,
        "teams/beta/a.rego": reads.replace(b"team_roles.alpha", b"platform_roles"),
        "teams/gamma/data.json": b'"standing.team_roles"',
        "teams/delta/a.rego": b"package x\n\nwho := data.airflow.authz.standing\n",
        "teams/delta/b.rego": b'package x\n\nallow contains "x" if count(who.team_ids) > 1\n',
    }
    told = json.loads(read_of_standing(files))
    assert told == {"site": ["team_roles"], "teams": {"alpha": ["team_ids", "team_roles"], "delta": ["team_ids"]}}
    other = {"teams/alpha/a.rego": b"package x\n\n# standing.team_ids\nids := input.subject.team_ids\n"}
    assert json.loads(read_of_standing(other)) == json.loads(read_of_standing({})) == {"site": [], "teams": {}}


def test_what_a_directory_says_of_itself_does_not_count(tmp_path: Path) -> None:
    lie = '{"others":true,"site":true,"teams":{"alpha":true}}'
    write(tmp_path, {REGARDLESS_OF_ID: lie, "teams/alpha/a.rego": 'deny contains "x" if input.resource.id'})
    write_derived(tmp_path)
    assert json.loads((tmp_path / REGARDLESS_OF_ID).read_bytes())["teams"] == {"alpha": False}
