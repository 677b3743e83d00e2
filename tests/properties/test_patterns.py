"""Patterns of the directory, read by Rego in both engines and by a regular expression here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from airflow_team_authz.model import Evaluations, Resource, Source, Subject
from airflow_team_authz.opa.compile import shipped_policies
from tests.conftest import Engines, write

ROLES = ("viewer", "op", "super-op", "op-chief", "größe", "r.*", "team", "a")
PIECES = ("", "-", "_", "/", "airflow-", "größe", " ", ".*", "(", "\\", "op", "a", "🚀", "<", ">", "<role", "ß", "é")
TEAMS = ("alpha", "a-b", "al", "A_1", "op-op", "x" * 50, "x" * 51, "größe", "a b", "<team>", "", "alpha\n", "-op")
PATTERNS = 60
NAMES = 2_000
TEMPLATES = (
    [{"team_id": "<team>", "role": "<role>"}],
    [{"team_id": "<team>"}],
    [{"team_id": "<team>", "role": "viewer"}, {"team_id": "fixed", "role": "<role>"}],
    [{"team_id": "fixed", "role": "op"}],
    [{"team_id": None, "role": "<role>"}],
)
# Fit nothing. Where there are many names, they are found in another way.
STRANGE = tuple(f"!{number}!" for number in range(21))
Entry = tuple[str, str | None, str | None]


def patterns(chance: Random) -> dict[str, list[dict[str, str | None]]]:
    made = {}
    while len(made) < PATTERNS:
        words = chance.choice((["<team>", "<role>"], ["<role>", "<team>"], ["<team>"], ["<role>"], []))
        parts = [chance.choice(PIECES), *(part for word in words for part in (word, chance.choice(PIECES)))]
        made["".join(parts)] = chance.choice(TEMPLATES)
    return made


def expected(known: dict[str, list[dict[str, str | None]]], name: str) -> set[Entry]:
    """The entries for a name, each with its pattern."""
    found: set[Entry] = set()
    for pattern, templates in known.items():
        readings = set()
        for role in ROLES if "<role>" in pattern else ("",):
            before, team, after = pattern.replace("<role>", role).partition("<team>")
            shape = (
                f"{re.escape(before)}([a-zA-Z0-9_-]{{3,50}}){re.escape(after)}" if team else f"{re.escape(before)}()"
            )
            if match := re.fullmatch(shape, name):
                readings.add((match[1], role))
        if len(readings) == 1:
            ((team, role),) = readings
            filled = {"<team>": team, "<role>": role}
            for template in templates:
                held = {key: filled.get(word or "", word) for key, word in template.items()}
                if template["team_id"] is not None:
                    found.add((pattern, held["team_id"], held.get("role")))
    return found


def names(chance: Random, known: dict[str, list[dict[str, str | None]]]) -> Iterator[str]:
    """Mostly such as fit a pattern or nearly do."""
    for _ in range(NAMES):
        name = (
            chance.choice(list(known)).replace("<team>", chance.choice(TEAMS)).replace("<role>", chance.choice(ROLES))
        )
        if chance.random() < 0.3:
            at = chance.randrange(len(name) + 1)
            name = name[:at] + chance.choice(PIECES) + name[at + chance.randrange(2) :]
        yield name


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 10))])
def test_patterns_are_read_as_they_are_meant(
    tmp_path: Path, open_engines: Callable[[Path], Engines], seed: int
) -> None:
    chance = Random(seed)  # noqa: S311 - no secret
    known = patterns(chance)
    roles = json.loads((shipped_policies() / "airflow/roles/data.json").read_text())
    roles["includes"] = {role: [] for role in ROLES}
    directory = write(
        tmp_path / "policy",
        {
            "airflow/directory/data.json": json.dumps({"group_patterns": known}),
            "airflow/roles/data.json": json.dumps(roles),
        },
    )
    engines = open_engines(directory).both()
    fitting = 0
    for number, name in enumerate(names(chance, known)):
        right = expected(known, name)
        ann = Subject("user", "ann", groups=(name, *(STRANGE if number % 4 == 0 else ())))
        fitting += bool(right)
        for engine in engines:
            standing, _ = engine.whoami(ann)
            assert {_entry(source) for source in standing.entries} == right, (name, engine)
            assert standing.platform_roles == ()
            # Who is asked about one team alone, or about several.
            viewed = {team_id for _, team_id, role in right if role == "viewer"}
            dags = [Resource("dag", team_id, "d") for team_id in sorted({team_id or "" for _, team_id, _ in right})]
            for asked in ([dag] for dag in dags) if len(dags) < 2 else (*([dag] for dag in dags), dags):
                seen = engine.allowed(Evaluations(ann, "read", asked))
                assert seen == [dag for dag in asked if dag.team_id in viewed], (name, engine)
    assert NAMES / 10 < fitting < NAMES


def _entry(source: Source) -> Entry:
    role = source.entry.role
    return source.name, source.entry.team_id, role if isinstance(role, str) else None
