"""Random packages that the gate lets through change nothing about what others own, and both engines read them alike."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_team_authz.gate.check import check_package
from airflow_team_authz.model import Evaluations, Resource, Subject
from tests.conftest import Engines, write
from tests.gate.test_corpus import formatted
from tests.properties.words import ACTIONS, NAMES, SUBJECT_TYPES, TYPES

# Some minutes' worth of them find more: `UNIVERSES=100 make test ARGS=tests/properties/test_gated_packages.py`.
UNIVERSES = int(os.environ.get("UNIVERSES", "2"))
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
        "mixed": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "text": {"type": "string"},
                "flags": {"type": "array", "items": {"type": "boolean"}},
                "nothing": {"type": "null"},
            },
        },
    },
}

# Terms by their type, one in a line. `own` stands for the own place in data, `name` for a text, `team` for another
# team, and <text>, <texts>, <set> and <any> for other terms.
TERMS = {
    "text": r"""
        name
        input.action
        input.resource.id
        input.resource.type
        input.subject.id
        kind
        lower(<text>)
        upper(<text>)
        concat("-", [<text>, <text>])
        replace(<text>, "a", <text>)
        trim(<text>, "_")
        split(<text>, "_")[0]
        trim_space(<text>)
        strings.reverse(<text>)
        <texts>[0]
        trim_prefix(<text>, "a")
        concat(",", <texts>)
        $"{<text>} or {count(<set>)}"
        input.subject.claims.dept[0]
        named(<text>, <text>)
        base64.encode(<text>)
    """,
    "texts": r"""
        own.listed
        input.subject.roles
        own.lent[input.resource.id]
        input.subject.claims.dept
        sort(<texts>)
        split(<text>, "_")
        array.concat(<texts>, <texts>)
        sort([x | some x in (<set>)])
        sort([x | some x in lenders])
        array.slice(<texts>, 1, 2)
        [<text>, <text>]
        sort(<set>)
        array.reverse(<texts>)
    """,
    "set": r"""
        {x | some x in <texts>}
        {<text>, <text>}
        <set> & <set>
        (<set> | <set>)
        (<set> - <set>)
        {lower(x) | some x in <texts>}
        {x | some x in <texts>; x != <text>}
        lenders
    """,
    "any": r"""
        <text>
        <texts>
        <set>
        own.limits[input.resource.id]
        own.lent
        input.resource
        7
        null
        own.mixed
        count(<texts>)
        object.get(own.lent, <text>, <any>)
        max(<set>)
        {<text>: <any>}
        [<any>, <any>]
        {k: n | some k in <texts>; n := count(k)}
        object.union(own.lent, {<text>: <any>})
        helper
        object.remove(input.resource, [<text>])
        min(<texts>)
        input.resource[kind]
        object.keys(own.limits)
    """,
}
CONDITIONS = r"""
    <text> == <text>
    <set> != {<any>}
    <text> < <text>
    not <any>
    <any>
    <text> in <texts>
    <any> in <set>
    startswith(<text>, <text>)
    endswith(<text>, <text>)
    contains(<text>, <text>)
    count(<set>) > count(<texts>)
    regex.match(`^[a-z]+[0-9]*$`, <text>)
    glob.match("a*", [], <text>)
    every x in <texts> { x != <text> }
    helper
    of_kind(<text>)
    some x in <texts>; startswith(<text>, x)
    some x in <texts>; x in data.airflow.authz.standing.team_ids
    some k, v in input.subject.claims; "sales" in v; k != <text>
    input.resource.team_id != team
    walk(<any>, [_, <text>])
    some x in <set>; is_string(x); startswith(x, <text>)
    data.airflow.roles.includes[<text>]
    count(own.listed) > own.limits[input.resource.id]
"""
# What the gate has to refuse, by the rule that does.
REFUSED = {
    "foreign-data": """
        data.teams[team].listed
        x := data.teams; x[team]
        data.airflow.authz.decision.allow
        data.airflow.directory.groups[name]
    """,
    "pattern": "regex.match(input.action, name)",
    "check": "startswith(own.limits[input.resource.id], name)",
    "with": "helper with input.action as name",
    "operand-type": """
        walk(own.lent, [_, x]); startswith(x, name)
        lower(input.resource[_]) == name
        concat(name, <set>) == name
    """,
    "engines-differ": """
        count(<set>) + 1 > 2
        own.limits[input.resource.id] > 1.5
        json.marshal(<any>) == name
    """,
    "may-conflict": "chosen == name",
}
HELPERS = """
helper if input.action == "read"

helper if "x" in input.subject.roles

of_kind(type) if type in {"connection", "pool"}

kind := "a" if {
	input.resource.type == "dag"
} else := "b" if {
	input.action == "list"
} else := input.subject.id

named(a, b) := concat(".", [a, b])

lenders contains lender if some lender, _ in own.lent
"""
CONFLICT = "\nchosen := role if some role in input.subject.roles\n"


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def package(chance: Random, team_id: str) -> dict[str, bytes]:
    """A random package of a team, with data, a schema, and a test that runs everything."""

    def filled(text: str, depth: int = 0) -> str:
        """With terms in the place of <…>; the deeper, the likelier those that hold no others."""

        def term(kind: re.Match[str]) -> str:
            terms = lines(TERMS[kind[1]])
            return filled(
                chance.choice([term for term in terms if depth < 2 or "<" not in term] or terms[:1]), depth + 1
            )

        return re.sub(r"<(\w+)>", term, text)

    def rule() -> str:
        conditions = chance.choice(list(REFUSED.values())) if chance.random() < 0.01 else CONDITIONS
        body = "".join(f"\t{filled(chance.choice(lines(conditions)))}\n" for _ in range(chance.randint(1, 3)))
        reason = filled(chance.choice(("<text>", "<text>", "7", "count(<texts>)")))
        return f"{chance.choice(('allow', 'allow', 'deny'))} contains {reason} if {{\n{body}}}\n"

    rules = HELPERS + "\n".join(rule() for _ in range(chance.randint(1, 4)))
    rules += CONFLICT if "chosen" in rules else ""
    other = json.dumps(chance.choice(TEAMS))
    rules = re.sub(r"\bname\b", lambda _: json.dumps(chance.choice(NAMES[:40])), rules)
    rules = (
        rules.replace("own.", f"data.teams.{team_id}.")
        .replace("!= team", f"!= {other}")
        .replace("[team]", f"[{other}]")
    )
    test = f"package teams.{team_id}_test\n\ntest_asked if is_object(data.teams.{team_id}) with input as {{}}\n"
    names = chance.sample(NAMES[:40], 6)
    data = {
        "listed": names[:3],
        "lent": {name: chance.sample(TEAMS, 2) for name in names},
        "limits": {name: chance.randint(0, 9) for name in names},
        "mixed": {"text": names[0], "flags": [True, False], "nothing": None},
    }
    place = f"teams/{team_id}"
    return {
        f"{place}/rules.rego": formatted(f"package teams.{team_id}\n{rules}"),
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

    @settings(max_examples=UNIVERSES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
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
            seen["decisions"] += 2 * SIZE
            seen.update(decision.layer for decision in in_process)

    universe()
    print(dict(seen))
    assert seen["decisions"] >= 3_000 * UNIVERSES, seen
    assert seen["team"] > 100, seen
    # What must not pass was tried, and did not.
    assert REFUSED.keys() & seen.keys(), seen
