"""``team-authz impact`` finds what a change widens, whatever is edited, and nothing where nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Evaluation, Evaluations, Resource, Subject
from airflow_team_authz.opa.compile import shipped_policies
from airflow_team_authz.review import kind_of
from airflow_team_authz.review.changes import Difference, compare
from airflow_team_authz.review.kinds import OTHER, Kinds
from airflow_team_authz.review.names import read_sources
from tests.conftest import opened, write

TEAMS = ("alpha", "beta")
# What no edit touches.
QUIET = "quiet"
OP = {"team_id": "alpha", "role": "op"}
CLOSED = 4
Files = dict[str, Any]


class Edit(NamedTuple):
    """A change of the policy, and a question that it turns from denied to allowed."""

    told: str
    apply: Callable[[Files], None]
    question: Evaluation


def site() -> Files:
    """A policy directory, its data as objects."""
    denies = "".join(
        f'deny contains "closed" if {{\n\tinput.resource.type == "pool"\n\tinput.resource.id == "closed{n}"\n}}\n\n'
        for n in range(CLOSED)
    )
    return {
        "airflow/directory/data.json": {"groups": {"ops": [OP]}, "roles": {}, "claims": {}},
        "airflow/roles/data.json": json.loads((shipped_policies() / "airflow/roles/data.json").read_text()),
        "airflow/site/site.rego": "package airflow.site\n\n",
        f"teams/{QUIET}/rules.rego": f"package teams.{QUIET}\n\nallow contains \"own\" if input.resource.id == \"q\"\n",
        **{f"teams/{team}/rules.rego": f"package teams.{team}\n\n{LENT.replace('TEAM', team)}" for team in TEAMS},
        **{f"teams/{team}/data.json": {"lent": {}} for team in TEAMS},
        "teams/delta/rules.rego": f"package teams.delta\n\n{denies}",
    }  # fmt: skip


LENT = """allow contains "lent" if {
	input.resource.type == "variable"
	input.action == "read"
	input.subject.id in data.teams.TEAM.lent[input.resource.id]
}

"""


def a_rule(random: Random, number: int) -> Edit:
    """A rule of a team or of the platform, for anybody whom the subject's condition fits."""
    owner = random.choice([*TEAMS, None])
    type_, entity = random.choice([("connection", ""), ("variable", ""), ("pool", ""), ("dag", "run"), ("dag", "code")])
    action = random.choice(["read", "update", "delete"] if not entity else ["read"])
    condition, subject = random.choice(
        [
            (f'input.subject.id == "user{number}"', Subject("user", f"user{number}", (), ())),
            (f'"team{number}" in input.subject.team_ids', Subject("user", "x", (f"team{number}",), ())),
            (f'"Role{number}" in input.subject.roles', Subject("user", "x", (), (f"Role{number}",))),
            (f'some "group{number}" in input.subject.groups', Subject("user", "x", (), (), (f"group{number}",))),
            (
                f'"value{number}" in input.subject.claims.unit',
                Subject("user", "x", (), (), claims={"unit": (f"value{number}",)}),
            ),
            (f'startswith(input.subject.id, "user{number}")', Subject("user", f"user{number}", (), ())),
            (f'"team{number}" in standing.team_ids', Subject("user", "x", (f"team{number}",), ())),
            ('input.subject.type == "watcher"', Subject("watcher", "x", ())),
        ]
    )
    id_ = f"thing{number}"
    place = random.choice(
        [
            f'input.resource.id == "{id_}"',
            f'input.resource.id in {{"{id_}", "more{number}"}}',
            f"names{number}[input.resource.id]",
        ]
    )
    part = f'\tinput.resource.entity == "{entity}"\n' if entity else "\tnot input.resource.entity\n"
    of = f'\tinput.resource.team_id == "{TEAMS[0]}"\n' if owner is None else ""
    rule = (
        f'names{number} := {{"{id_}": true}}\n\n'
        f'allow contains "planted" if {{\n\tinput.resource.type == "{type_}"\n{part}{of}'
        f'\tinput.action == "{action}"\n\t{place}\n\t{condition}\n}}\n\n'
    ).replace("standing.", "data.airflow.authz.standing.")
    file = "airflow/site/site.rego" if owner is None else f"teams/{owner}/rules.rego"

    def apply(files: Files) -> None:
        files[file] += rule

    resource = Resource(type_, owner or TEAMS[0], id_, *([entity] if entity else []))
    return Edit(rule, apply, Evaluation(subject, action, resource))


def an_entry(random: Random, number: int) -> Edit:
    """The directory gives a team's role, or membership with the login's own one, to whoever has a name."""
    table, name, team = random.choice(["groups", "roles", "claims"]), f"Name{number}", random.choice(TEAMS)
    entry: dict[str, str | None] = {"team_id": team}
    own: tuple[str, ...] = ()
    if random.random() < 0.7:
        entry |= {"role": random.choice(["op", "admin"]), "team_id": random.choice([team, None])}
    else:
        own = ("op",)
    roles = (*([name] if table == "roles" else []), *own)
    subject = Subject(
        "user", "x", (), roles, (name,) if table == "groups" else (),
        **({"claims": {"unit": (name,)}} if table == "claims" else {}),
    )  # fmt: skip

    def apply(files: Files) -> None:
        directory = files["airflow/directory/data.json"]
        where = directory["claims"].setdefault("unit", {}) if table == "claims" else directory[table]
        where[name] = [entry]

    return Edit(f"{table} {name}: {entry}", apply, Evaluation(subject, "update", Resource("connection", team, "x")))


def a_permission(random: Random, number: int) -> Edit:  # noqa: ARG001 - all are called alike
    """The role table: a role may do more, or includes another one."""
    kind, action, role = random.choice(
        [
            ("connection", "read", "viewer"),
            ("variable", "update", "user"),
            ("pool", "create", "user"),
            ("dag", "delete", "viewer"),
        ]
    )
    subject = Subject("user", "x", ("alpha",), (role,))

    def apply(files: Files) -> None:
        files["airflow/roles/data.json"]["permissions"][kind][action].append(role)

    return Edit(f"{role}: {action} {kind}", apply, Evaluation(subject, action, Resource(kind, "alpha", "x")))


def a_denial_less(random: Random, number: int) -> Edit:  # noqa: ARG001
    """A rule that denied is gone."""
    name = f"closed{number // len(WIDENINGS) % CLOSED}"
    closed = f'input.resource.id == "{name}"'

    def apply(files: Files) -> None:
        file = "teams/delta/rules.rego"
        assert closed in files[file]
        files[file] = files[file].replace(closed, f'input.resource.id == "gone{number}"')

    question = Evaluation(Subject("user", "x", ("delta",), ("op",)), "update", Resource("pool", "delta", name))
    return Edit(f"no longer {closed}", apply, question)


def a_datum(random: Random, number: int) -> Edit:
    """A team's data, which its rules read."""
    team = random.choice(TEAMS)

    def apply(files: Files) -> None:
        files[f"teams/{team}/data.json"]["lent"][f"var{number}"] = [f"friend{number}"]

    question = Evaluation(
        Subject("user", f"friend{number}", (), ()), "read", Resource("variable", team, f"var{number}")
    )
    return Edit(f"{team} lends var{number}", apply, question)


WIDENINGS = (a_rule, a_rule, an_entry, a_permission, a_denial_less, a_datum)


def nothing(random: Random, number: int, files: Files) -> None:
    """An edit that changes no decision."""
    team = random.choice(TEAMS)
    file = f"teams/{team}/rules.rego"
    directory = files["airflow/directory/data.json"]
    match random.randrange(8):
        case 0:
            files[file] += f"# A note {number}.\n\n"
        case 1:
            files[file] += f'unused{number} := {{"a": "b{number}"}}\n\n'
        case 2:
            files[file] += (
                f'allow contains "never" if {{\n\tinput.action == "read"\n\tinput.action == "never{number}"\n}}\n\n'
            )
        case 3:
            # What the role table allows already.
            files[file] += (
                'allow contains "own people" if {\n\tinput.resource.type == "pool"\n\tinput.action == "read"\n'
                f'\t"op" in data.airflow.authz.standing.team_roles.{team}\n}}\n\n'
            )
        case 4:
            files[file] += (
                f'deny contains "nobody" if {{\n\tcount({{x | some x in ["{number}"]; x == "y"}}) > 0\n}}\n\n'
            )
        case 5:
            directory["groups"][f"Nothing{number}"] = []
        case 6:
            directory["groups"]["ops"] = [*directory["groups"]["ops"], {"team_id": "alpha", "role": "user"}]
        case 7:
            files[f"teams/{team}/data.json"]["lent"][f"nobody{number}"] = []


def written(root: Path, files: Files) -> Path:
    return write(root, {name: text if isinstance(text, str) else json.dumps(text) for name, text in files.items()})


def differences(old: Path, new: Path, before: DecisionPoint, after: DecisionPoint) -> list[Difference]:
    kinds = Kinds(read_sources(old), read_sources(new))
    found = compare(before, after, kinds.questions(), kinds.roles)
    assert not found.more
    return [one for change in found.changes for one in change.every]


def is_turned(edit: Edit, before: DecisionPoint, after: DecisionPoint) -> bool:
    """Whether the change turns the edit's question, by the engine that decides: else it is none of the kind."""
    asked = Evaluations(edit.question.subject, edit.question.action, [edit.question.resource])
    first, then = (point.decide(asked).decisions[0].allow for point in (before, after))
    return not first and then


def is_shown_by(edit: Edit, one: Difference) -> bool:
    """Whether a difference is what the edit changes: the same action on the same kind of thing, for the same reason."""
    wanted, found = edit.question, one.question
    named = wanted.resource.id if wanted.resource.id != "x" else OTHER
    return (
        one.gained
        and (wanted.action, kind_of(wanted.resource), wanted.resource.team_id, named)
        == (found.action, kind_of(found.resource), found.resource.team_id, found.resource.id)
        and {*(wanted.subject.roles or ())} <= {*(found.subject.roles or ())}
        and {*(wanted.subject.groups or ())} <= {*(found.subject.groups or ())}
        and (not wanted.subject.claims or wanted.subject.claims == found.subject.claims)
        and wanted.subject.id in {"x", found.subject.id}
    )


def check(tmp_path: Path, random: Random, widenings: int, changing_nothing: int) -> int:
    """Plants edits of both sorts at once, and returns how many of them widen."""
    old, changed = written(tmp_path / "old", site()), site()
    edits = [WIDENINGS[n % len(WIDENINGS)](random, n) for n in range(widenings)]
    for edit in edits:
        edit.apply(changed)
    for number in range(changing_nothing):
        nothing(random, number, changed)
    new = written(tmp_path / "new", changed)
    with opened(old) as before, opened(new) as after:
        found = differences(old, new, before, after)
        planted = [edit for edit in edits if is_turned(edit, before, after)]
    assert [edit.told for edit in planted if not any(is_shown_by(edit, one) for one in found)] == []
    if not widenings:
        assert found == []
    by_others = {reason for one in found for reason in one.said.reasons} & {"own people", "never", "nobody", "own"}
    assert not by_others
    return len(planted)


def test_edits_that_widen_are_found_and_those_that_change_nothing_are_not(tmp_path: Path) -> None:
    assert check(tmp_path, Random(7), widenings=6, changing_nothing=6) >= 5  # noqa: S311 - not for secrets


@pytest.mark.exhaustive
def test_many_edits_at_once_hide_none(tmp_path: Path) -> None:
    assert check(tmp_path, Random(7), widenings=24, changing_nothing=12) >= 20  # noqa: S311


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_edits_that_widen_are_found(tmp_path: Path, seed: int) -> None:
    assert check(tmp_path, Random(seed), widenings=12, changing_nothing=0) >= 10  # noqa: S311


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_edits_that_change_nothing_are_told_as_nothing(tmp_path: Path, seed: int) -> None:
    check(tmp_path, Random(seed), widenings=0, changing_nothing=10)  # noqa: S311
