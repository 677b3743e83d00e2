"""Random packages that the gate lets through change nothing about what others own, and both engines read them alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_team_authz.bundles.gate import check_package
from airflow_team_authz.model import Evaluations, Resource, Subject
from tests.conftest import Engines, write
from tests.gate.test_corpus import formatted
from tests.properties.words import ACTIONS, NAMES, SUBJECT_TYPES, TYPES

UNIVERSES = 4
TEAMS = tuple(f"team_{number}" for number in range(8))
QUESTIONS = 40
SIZE = 40

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "listed": {"type": "array", "items": {"type": "string"}},
        "lent": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}

# `own` stands for the team's own place in data, `name` for a text, `team` for another team.
CONDITIONS = (
    'input.action in {"read", "list", name}',
    "input.resource.id in own.listed",
    "some borrower in own.lent[input.resource.id]; borrower in data.airflow.authz.standing.team_ids",
    "count(own.listed) > own.limits[input.resource.id]",
    "startswith(input.resource.id, name)",
    "regex.match(`^[a-z]+[0-9]*$`, input.resource.id)",
    'glob.match("a*", [], input.subject.id)',
    "not input.resource.entity",
    "every role in input.subject.roles { role != name }",
    "{role: n | some role in input.subject.roles; n := count(role)}[name] > 1",
    "name in {lower(role) | some role in input.subject.roles}",
    'some k, v in input.subject.claims; "sales" in v; k != name',
    "helper",
    "of_kind(input.resource.type)",
    "kind == name",
    "sum([limit | some _, limit in own.limits]) > 10",
    "upper(input.subject.id) == upper(name)",
    "input.resource.team_id != team",
    'object.get(own.lent, [input.resource.id, 0], "") == name',
    "walk(own.lent, [[_, _], name])",
    "max({n | some _, n in own.limits}) > count(input.subject.team_ids)",
    'split(input.resource.id, "_")[0] == name',
    "data.airflow.directory.groups[name]",
    # What the gate has to refuse.
    "data.teams[team].listed",
    "x := data.teams; x[team]",
    "data.airflow.authz.decision.allow",
    "regex.match(input.action, name)",
    "startswith(own.limits[input.resource.id], name)",
    "helper with input.action as name",
)
HELPERS = """
helper if input.action == "read"

helper if "x" in input.subject.roles

of_kind(type) if type in {"connection", "pool"}

kind := "a" if {
	input.resource.type == "dag"
} else := "b" if {
	input.action == "list"
} else := input.subject.id
"""
REASONS = ("name", '$"by {input.action} of {input.subject.id}"', "7", '{"a": [input.resource.type]}', "own.listed[0]")


def package(chance: Random, team_id: str) -> dict[str, bytes]:
    """A random package of a team, with data, a schema, and a test that runs everything."""

    def filled(text: str) -> str:
        name, other = json.dumps(chance.choice(NAMES[:40])), json.dumps(chance.choice(TEAMS))
        own = text.replace("own.", f"data.teams.{team_id}.").replace("name", name)
        return own.replace("!= team", f"!= {other}").replace("[team]", f"[{other}]")

    rules = [
        f"{chance.choice(('allow', 'allow', 'deny'))} contains {filled(chance.choice(REASONS))} if {{\n"
        + "".join(
            f"\t{filled(chance.choice(CONDITIONS[:-6] if chance.random() < 0.97 else CONDITIONS))}\n"
            for _ in range(chance.randint(1, 3))
        )
        + "}\n"
        for _ in range(chance.randint(1, 4))
    ]
    test = f"package teams.{team_id}_test\n\ntest_asked if is_object(data.teams.{team_id}) with input as {{}}\n"
    names = chance.sample(NAMES[:40], 6)
    data = {
        "listed": names[:3],
        "lent": {name: chance.sample(TEAMS, 2) for name in names},
        "limits": {name: chance.randint(0, 9) for name in names},
    }
    place = f"teams/{team_id}"
    return {
        f"{place}/rules.rego": formatted(f"package teams.{team_id}\n{HELPERS}\n" + "\n".join(rules)),
        f"{place}/rules_test.rego": formatted(test),
        f"{place}/data.json": json.dumps(data).encode(),
        f"{place}/schema.json": json.dumps(SCHEMA).encode(),
    }


def published(chance: Random, team_id: str, seen: Counter[str]) -> dict[str, bytes]:
    """A random package that the gate lets through."""
    while True:
        files = package(chance, team_id)
        found = {finding.rule for finding in check_package(files, team_id)} - {"coverage"}
        seen.update(found or {"published"})
        if not found:
            return files


def question(chance: Random, owners: tuple[str | None, ...]) -> Evaluations:
    subject = Subject(
        chance.choice(SUBJECT_TYPES),
        chance.choice(NAMES[:40]),
        tuple(chance.sample(TEAMS, chance.randint(0, 2))),
        tuple(chance.sample(("viewer", "user", "op", "admin", "x"), chance.randint(0, 2))),
        claims={"dept": ["sales"]} if chance.random() < 0.3 else {},
    )
    resources = [Resource(chance.choice(TYPES), chance.choice(owners), chance.choice(NAMES[:40])) for _ in range(SIZE)]
    return Evaluations(subject, chance.choice(ACTIONS), resources)


def test_what_passes_the_gate_decides_about_its_own_and_nothing_else(
    open_engines: Callable[[Path], Engines], tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    number = count()

    @settings(max_examples=UNIVERSES, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def universe(seed: int) -> None:
        chance = Random(seed)  # noqa: S311
        packages = {team_id: published(chance, team_id, seen) for team_id in TEAMS}
        kept = TEAMS[::2]
        place = tmp_path / str(next(number))
        engines = []
        for name, teams in (("all", TEAMS), ("some", kept)):
            files = {path: text.decode() for team in teams for path, text in packages[team].items()}
            engines.append(open_engines(write(place / name, files)))
        with_all, _ = engines
        for _ in range(QUESTIONS):
            about_others = question(chance, (*kept, None))
            answers = [engine.decide(about_others).decisions for one in engines for engine in one.both()]
            assert answers.count(answers[0]) == 4
            about_all = question(chance, (*TEAMS, None))
            in_process, server = (engine.decide(about_all).decisions for engine in with_all.both())
            assert in_process == server
            seen["unchanged"] += SIZE
            seen["agreed"] += SIZE
            seen.update(decision.layer for decision in in_process)

    universe()
    assert seen["unchanged"] + seen["agreed"] >= 10_000, seen
    assert seen["team"] > 100, seen
    # What must not pass was tried, and did not.
    assert {"foreign-data", "pattern", "check", "with"} & seen.keys(), seen
