"""Rules that make a policy answer as the auth manager beside it did, from the recorded differences of the two."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from msgspec import UNSET

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Decision, Evaluations
from airflow_team_authz.review.changes import Difference

# The folder for the rules in a policy directory: the platform's own package speaks about the resources of all teams.
FOLDER = "airflow/site"
_HEAD = """# Written by `team-authz observe report --rules`: these rules give the answers of the former auth manager.
# Review each of them. A role in the directory often says the same in one line.
package airflow.site
"""
_REASONS = {
    True: 'allow contains "the former auth manager allowed it"',
    False: 'deny contains "the former auth manager refused it"',
}
_HELD = ("groups", "roles", "team_ids")


class Proposal(NamedTuple):
    """A file of rules, the number of its rules, and the differences that no added rule can end."""

    text: str
    rules: int
    remaining: tuple[Difference, ...]


class _Rule(NamedTuple):
    """The questions of a rule: by these people, or by everybody who holds exactly that; about these ids, or about none.

    The fields that ``_joined`` changes are sets.
    """

    allows: bool
    type: str
    people: frozenset[str] | None
    held: tuple[tuple[str, ...], ...] | None
    actions: frozenset[str]
    owner: str | None
    about: str
    entity: str | None
    ids: frozenset[str] | None


def propose(differences: Iterable[Difference], by_person: bool) -> Proposal:
    """Rules for the recorded differences: for the same people, or for everybody with the same groups, roles and teams.

    A rule applies to no other question of these people.
    """
    remaining: list[Difference] = []
    ended: list[Difference] = []
    for one in differences:
        (remaining if _is_beyond_rules(one) else ended).append(one)
    rules = [_rule(one, by_person) for one in ended]
    # Who may read something may often update it too, and so may others.
    for field in ("ids", "actions", "people"):
        rules = list(_joined(rules, field))
    return Proposal("\n".join([_HEAD, *map(_written, rules)]), len(rules), tuple(remaining))


def _is_beyond_rules(one: Difference) -> bool:
    if not one.gained:
        # It overrides each rule that allows something.
        return one.new.layer in {"guardrail", "team"}
    # A menu item and the list behind it are one question. An auth manager may refuse the menu item alone.
    return one.asked.action == "list" and one.resource.id is UNSET


def still_different(point: DecisionPoint, differences: Iterable[Difference]) -> Iterator[tuple[Difference, Decision]]:
    """The differences that a policy still makes, with its answers. Raises an ``EngineError`` if it cannot answer."""
    for one in differences:
        asked = one.question
        (answer,) = point.decide(Evaluations(asked.subject, asked.action, [asked.resource], asked.context)).decisions
        if answer.allow is not one.old.allow:
            yield one, answer


def _rule(one: Difference, by_person: bool) -> _Rule:
    subject, resource = one.question.subject, one.resource
    is_named = by_person or subject.type != "user"
    held = None if is_named else tuple(tuple(sorted(getattr(subject, name) or ())) for name in _HELD)
    entity = None if resource.entity is UNSET else resource.entity
    ids = None if resource.id is UNSET else frozenset({resource.id})
    people = frozenset({subject.id}) if is_named else None
    return _Rule(
        not one.gained, subject.type, people, held, frozenset({one.asked.action}), resource.team_id, resource.type,
        entity, ids,
    )  # fmt: skip


def _joined(rules: Iterable[_Rule], field: str) -> Iterator[_Rule]:
    """Rules that differ in one field only, as one rule with the values of all."""
    alike: dict[_Rule, list[Any]] = defaultdict(list)
    for rule in rules:
        value = getattr(rule, field)
        alike[rule if value is None else _with(rule, field, frozenset())].append(value)
    for rule, values in alike.items():
        yield rule if values[0] is None else _with(rule, field, frozenset().union(*values))


def _with(rule: _Rule, field: str, values: frozenset[str]) -> _Rule:
    changed: dict[str, Any] = {field: values}
    return rule._replace(**changed)


def _written(rule: _Rule) -> str:
    conditions = [f"input.subject.type == {json.dumps(rule.type)}", *_about_subject(rule)]
    conditions += [
        _is_one("input.action", rule.actions),
        f"input.resource.type == {json.dumps(rule.about)}",
        f"input.resource.team_id == {json.dumps(rule.owner)}",
        _is_one("input.resource.entity", None if rule.entity is None else {rule.entity}),
        _is_one("input.resource.id", rule.ids),
    ]
    return "\n".join([f"{_REASONS[rule.allows]} if {{", *(f"\t{one}" for one in conditions), "}\n"])


def _about_subject(rule: _Rule) -> Iterator[str]:
    if rule.held is None:
        yield _is_one("input.subject.id", rule.people)
        return
    for name, values in zip(_HELD, rule.held, strict=True):
        yield f"{{name | some name in input.subject.{name}}} == {_set(values)}"


def _is_one(field: str, values: Iterable[str] | None) -> str:
    """The condition that a field has one of the values, or that there is no such field."""
    if values is None:
        return f"not {field}"
    one, *more = sorted(values)
    return f"{field} in {_set([one, *more])}" if more else f"{field} == {json.dumps(one)}"


def _set(values: Iterable[str]) -> str:
    """A set of texts as `opa fmt` writes it. JSON's texts are Rego's: nothing in a name ends one."""
    texts = [json.dumps(value) for value in values]
    if not texts:
        return "set()"
    one_line = f"{{{', '.join(texts)}}}"
    return one_line if len(one_line) <= 60 else "".join(["{\n", *(f"\t\t{text},\n" for text in texts), "\t}"])
