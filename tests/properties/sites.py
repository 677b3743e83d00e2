"""Random sites: teams with random packages, a directory, a role table; and what has to be decided by rules alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from msgspec import UNSET

from airflow_team_authz.model import Context, Decision, Evaluations, Subject
from airflow_team_authz.opa.compile import shipped_policies
from tests.conftest import write
from tests.properties.rules import NOTHING, Asked, Package, Rule, a_condition, a_package, a_reason, literal
from tests.properties.words import ACTIONS, ENTITIES, GROUPS, ROLE_SPELLINGS, ROLES, TEAMS, TYPES

Entries = dict[str, list[dict[str, str | None]]]


@dataclass(frozen=True)
class Site:
    """A site's policy, as far as it is not shipped."""

    teams: dict[str, Package]
    platform: Package
    directory: dict[str, Entries]
    roles: dict[str, Any]

    def write(self, root: Path) -> Path:
        """The policy directory."""
        files = {
            "airflow/directory/data.json": json.dumps(self.directory),
            "airflow/roles/data.json": json.dumps(self.roles),
            "airflow/site/site.rego": f"package airflow.site\n\n{self.platform.rego}",
        }
        for team, package in self.teams.items():
            files[f"teams/{team}/data.json"] = json.dumps(package.data)
            if package.rego:
                named = package.rego.replace("data.teams[own]", f"data.teams[{literal(team)}]")
                files[f"teams/{team}/rules.rego"] = f"package teams[{literal(team)}]\n\n{named}"
        return write(root, files)

    def with_packages(self, changed: dict[str, Package]) -> Site:
        return replace(self, teams=self.teams | changed)

    def looking_at_kinds(self) -> Site:
        """The same without rules of the platform, and of all teams but the first, that look at ids."""
        _, *others = self.teams
        kept = {team: self.teams[team].looking_at_kinds() for team in others}
        return replace(self.with_packages(kept), platform=self.platform.looking_at_kinds())

    def entries(self, subject: Subject) -> list[dict[str, str | None]]:
        """What the directory says of a subject."""
        sections = (("groups", subject.groups), ("roles", subject.roles))
        return [
            entry for part, names in sections for name in names or () for entry in self.directory[part].get(name, [])
        ]

    def team_ids(self, subject: Subject) -> frozenset[str]:
        """The teams that a subject is in."""
        named = (entry["team_id"] for entry in self.entries(subject))
        return frozenset(subject.team_ids or ()) | {team for team in named if team is not None}

    def reaches_all(self, subject: Subject) -> bool:
        """Whether a subject holds anything for the platform."""
        own = {role.translate(_SMALL) for role in subject.roles or ()}
        return not own.isdisjoint(self.roles["platform"]) or any(e["team_id"] is None for e in self.entries(subject))

    def asked(self, question: Evaluations) -> list[Asked]:
        """The single questions."""
        context = Context() if question.context is UNSET else question.context
        team_ids = self.team_ids(question.subject)
        return [Asked(question.subject, question.action, each, context, team_ids) for each in question.resources]

    def check(self, asked: Asked, decision: Decision, roles: bool) -> None:
        """Asserts that the decision is what rules say; with ``roles``, a role may allow what no rule denies."""
        owner = self.teams.get(asked.resource.team_id or "", NOTHING)
        platform_denies, team_denies = self.platform.says("deny", asked), owner.says("deny", asked)
        platform_allows, team_allows = self.platform.says("allow", asked), owner.says("allow", asked)
        if decision.layer == "guardrail" or platform_denies:
            assert (decision.allow, decision.layer) == (False, "guardrail")
            assert set(platform_denies) <= set(decision.reasons)
        elif team_denies:
            assert decision == Decision(False, team_denies, "team")
        elif roles and decision.layer == "baseline":
            assert decision.allow
        elif platform_allows:
            assert decision == Decision(True, platform_allows, "baseline")
        elif team_allows:
            assert decision == Decision(True, team_allows, "team")
        else:
            assert (decision.allow, decision.layer) == (False, "default")


_SMALL = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def _directory(random: Random, teams: list[str]) -> dict[str, Entries]:
    def entries() -> list[dict[str, str | None]]:
        found: list[dict[str, str | None]] = []
        for _ in range(random.randint(0, 3)):
            entry: dict[str, str | None] = {"team_id": random.choice([None, *teams, *teams])}
            if entry["team_id"] is None or random.random() < 0.7:
                entry["role"] = random.choice(ROLES)
            found.append(entry)
        return found

    return {
        "groups": {group: entries() for group in GROUPS},
        "roles": {role: entries() for role in random.sample(ROLE_SPELLINGS, 8)},
    }


def _roles(random: Random) -> dict[str, Any]:
    """A role table of any shape: circles, unknown roles, entities before types, `*`."""

    def needed() -> list[str]:
        return random.sample(ROLES, random.randint(0, 3))

    def table(kinds: list[str]) -> dict[str, dict[str, list[str]]]:
        return {kind: {action: needed() for action in random.sample(ACTIONS, random.randint(1, 8))} for kind in kinds}

    entities = [f"dag.{entity}" for entity in random.sample(ENTITIES, 5)]
    return {
        "includes": {role: random.sample(ROLES, random.randint(0, 2)) for role in ROLES},
        "platform": ["admin", "\u2c5f"],
        "permissions": table([*random.sample(TYPES, 9), *entities]),
        "common": table(random.sample(TYPES, 5)),
    }


def a_site(seed: int, own_roles: bool) -> Site:
    """The site of this number; with a role table of its own, or with the shipped one."""
    random = Random(seed)  # noqa: S311 - not for secrets
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    teams = [*TEAMS, *("".join(random.choices(letters, k=random.choice((3, 8, 50)))) for _ in range(6))]
    shipped = json.loads((shipped_policies() / "airflow/roles/data.json").read_text())
    platform = [
        Rule(effect, a_reason(random), tuple(a_condition(random) for _ in range(conditions)))
        for effect, conditions in [("allow", 2)] * 6 + [("deny", 3)] * 3
    ]
    return Site(
        {team: a_package(random) for team in teams},
        Package("\n".join(map(str, platform)), {}, tuple(platform)),
        _directory(random, teams),
        _roles(random) if own_roles else shipped,
    )
