"""Random packages: what their rules are in Rego, and when they hold, told by Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from msgspec import UNSET

from airflow_team_authz.model import Context, Resource, Subject
from tests.properties.words import ACTIONS, ENTITIES, NAMES, SUBJECT_TYPES, TEAMS, TYPES


class Asked(NamedTuple):
    """One question, and the teams that its subject is in."""

    subject: Subject
    action: str
    resource: Resource
    context: Context
    team_ids: frozenset[str]


class Condition(NamedTuple):
    """An expression of Rego, and what it means."""

    rego: str
    holds: Callable[[Asked], bool]


class Reason(NamedTuple):
    """A term of Rego, and the text that it becomes."""

    rego: str
    text: Callable[[Asked], str]


class Rule(NamedTuple):
    """``allow`` or ``deny``, for a reason, under conditions."""

    effect: str
    reason: Reason
    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        body = "".join(f"\t{condition.rego}\n" for condition in self.conditions)
        return f"{self.effect} contains reason if {{\n\treason := {self.reason.rego}\n{body}}}\n"


@dataclass(frozen=True)
class Package:
    """A package's Rego, its data, and the rules that they amount to."""

    rego: str
    data: dict[str, Any]
    rules: tuple[Rule, ...]

    def looking_at_kinds(self) -> Package:
        """The same without rules that look at ids."""
        if "resource.id" not in self.rego:
            return self
        rules = tuple(rule for rule in self.rules if "resource.id" not in str(rule))
        return replace(self, rego="\n".join(map(str, rules)), rules=rules)

    def says(self, effect: str, asked: Asked) -> tuple[str, ...]:
        """The reasons, as an answer gives them."""
        holding = (
            rule
            for rule in self.rules
            if rule.effect == effect and all(condition.holds(asked) for condition in rule.conditions)
        )
        return tuple(sorted({rule.reason.text(asked) for rule in holding}))


def literal(text: str) -> str:
    # A byte order mark has no place in the middle of a file.
    return json.dumps(text, ensure_ascii=False).replace("\ufeff", "\\ufeff")


def always(effect: str, text: str) -> Rule:
    return Rule(effect, Reason(literal(text), lambda _: text))


NOTHING = Package("", {}, ())
# What a team may put there instead of a set of reasons. Nothing of it is an error, nothing of it may count as more.
ODD = (
    Package('allow := "yes"\ndeny := 1\n', {}, ()),
    Package("allow := true\ndeny := null\n", {}, ()),
    Package('allow := {"key": "value"}\n', {}, (always("allow", "value"),)),
    Package(
        'deny := ["b", "a", "b"]\nallow := {"x"}\n',
        {},
        (always("deny", "a"), always("deny", "b"), always("allow", "x")),
    ),
    Package("", {"allow": ["by data"], "deny": {}}, (always("allow", "by data"),)),
    Package("allow contains {7} if true\n", {}, (always("allow", "{7}"),)),
    NOTHING,
)


def a_condition(random: Random) -> Condition:
    name, listed = random.choice(NAMES), random.sample(NAMES, 20)
    words, part = literal(name), name[: random.randint(1, 2)]
    type_, entity, team = random.choice(TYPES), random.choice(ENTITIES), random.choice(TEAMS)
    actions = random.sample(ACTIONS, 4)
    kind = random.choice(SUBJECT_TYPES)
    return random.choice(
        (
            Condition(f"input.resource.id == {words}", lambda q: q.resource.id == name),
            Condition(f"input.resource.id in {{{', '.join(map(literal, listed))}}}", lambda q: q.resource.id in listed),
            Condition(f"input.resource.id != {words}", lambda q: q.resource.id not in (UNSET, name)),
            Condition(f"not input.resource.id == {words}", lambda q: q.resource.id != name),
            Condition(f"input.resource.id < {words}", lambda q: q.resource.id is not UNSET and q.resource.id < name),
            Condition(
                f"startswith(input.resource.id, {literal(part)})",
                lambda q: q.resource.id is not UNSET and q.resource.id.startswith(part),
            ),
            Condition(
                f"contains(input.resource.id, {literal(part)})",
                lambda q: q.resource.id is not UNSET and part in q.resource.id,
            ),
            Condition(
                "count(input.resource.id) > 200", lambda q: q.resource.id is not UNSET and len(q.resource.id) > 200
            ),
            Condition(f"input.resource.type == {literal(type_)}", lambda q: q.resource.type == type_),
            Condition(f"input.resource.type != {literal(type_)}", lambda q: q.resource.type != type_),
            Condition(f"input.resource.entity == {literal(entity)}", lambda q: q.resource.entity == entity),
            Condition("not input.resource.entity", lambda q: q.resource.entity is UNSET),
            Condition(f"input.action in {{{', '.join(map(literal, actions))}}}", lambda q: q.action in actions),
            Condition(f"input.subject.id == {words}", lambda q: q.subject.id == name),
            Condition(f"input.subject.id < {words}", lambda q: q.subject.id < name),
            Condition(f"input.subject.type == {literal(kind)}", lambda q: q.subject.type == kind),
            Condition(f"input.context.user_id == {words}", lambda q: q.context.user_id == name),
            Condition("not input.context.assigned_users", lambda q: q.context.assigned_users is UNSET),
            Condition(f"{literal(team)} in data.airflow.authz.standing.team_ids", lambda q: team in q.team_ids),
        )
    )


def a_reason(random: Random) -> Reason:
    number, text = random.randint(-9, 99), random.choice(NAMES)
    return random.choice(
        (
            Reason(literal(text), lambda _: text),
            Reason(
                f'$"by rule {number}: {{input.resource.id}}"', lambda q: f"by rule {number}: {_shown(q.resource.id)}"
            ),
            Reason('$"{input.subject.id}, {input.action}"', lambda q: f"{q.subject.id}, {q.action}"),
            Reason(str(number), lambda _: str(number)),
            Reason('["a", null]', lambda _: '["a", null]'),
        )
    )


def _shown(value: object) -> str:
    return "<undefined>" if value is UNSET else str(value)


def a_package(random: Random) -> Package:
    """A few rules, mostly narrow ones; sometimes no rules but something odd."""
    if random.random() < 0.2:
        return random.choice(ODD)
    rules = [
        Rule(effect, a_reason(random), tuple(a_condition(random) for _ in range(random.choice((1, 2, 2, 3)))))
        for effect in random.choices(("allow", "deny"), (2, 1), k=random.randint(2, 6))
    ]
    listed = sorted(random.sample(NAMES, 5))
    by_data = Condition("input.resource.id in listed", lambda q: q.resource.id in listed)
    rules.append(Rule("allow", a_reason(random), (by_data, a_condition(random))))
    own = "listed contains name if some name in data.teams[own].names\n"
    return Package("\n".join(map(str, rules)) + own, {"names": listed}, tuple(rules))
