"""Selectors: which changes count, such as ``gained:team=beta,owner=alpha,type=pool,id=production``.

A change of more people or resources than a selector names counts too: so a selector never overlooks a right because a
rule gives it to everybody, to any team, or about every id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, get_args

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import READS, Resource, Subject, SubjectType
from airflow_team_authz.review import ACTIONS, FREE_VERBS, kind_of
from airflow_team_authz.review.changes import Change, Difference, Found
from airflow_team_authz.review.kinds import ANOTHER, NOT_NAMED, OTHER
from airflow_team_authz.team_ids import is_team_id

COMMON = "common"
WRITE = "write"
_ACTIONS = {action for actions in ACTIONS.values() for action in actions}
_TYPES = {name for kind in ACTIONS for name in (kind, kind.partition(".")[0])}
_DIRECTIONS = ("gained", "lost", "any")
FORM = (
    "write gained, lost or any, and then, if you like, a colon and conditions: "
    "gained:team=beta,owner=alpha,type=pool,id=production"
)

# The teams of a subject, as far as they are known; none: it may be anybody.
Teams = Callable[[Subject], Collection[str]]


class SelectorError(ValueError):
    """A selector is misspelt; the message says what is wrong with it."""


class Selector(NamedTuple):
    """Conditions for a difference: all have to hold, each for one of its values."""

    text: str
    direction: str
    values: Mapping[str, tuple[str, ...]]

    def finds(self, found: Found, teams: Teams) -> bool:
        """Whether anything that was found counts."""
        return any(self.picks(change, teams) for change in found.changes) or self.picks_more(found)

    def picks(self, change: Change, teams: Teams) -> bool:
        """Whether a part of a change counts."""
        return any(self.counts(one, teams) for one in change.every)

    def picks_more(self, found: Found) -> bool:
        """Whether any counts of those that are too many to be told: direction, type and owner of them are known."""
        return any(
            self._direction(direction == "gained") and self._type(kind) and self._owner(owner)
            for direction, kind, owner in found.more
        )

    def concerns(self, owner: str) -> bool:
        """Whether anything about this team's resources may count."""
        return self._owner(owner)

    def counts(self, one: Difference, teams: Teams) -> bool:
        """Whether a single difference counts."""
        question = one.question
        return (
            self._direction(one.gained)
            and self._has("subject", question.subject.type)
            and self._action(question.action)
            and self._type(kind_of(one.resource))
            and self._owner(one.resource.team_id)
            and self._id(one.resource)
            and self._team(question.subject, one.resource.team_id, teams)
        )

    def _direction(self, gained: bool) -> bool:
        return self.direction in {"any", "gained" if gained else "lost"}

    def _action(self, action: str) -> bool:
        return self._has("action", action) or (WRITE in self.values["action"] and action not in READS)

    def _type(self, kind: str) -> bool:
        return self._has("type", kind) or self._has("type", kind.partition(".")[0])

    def _owner(self, owner: str | None) -> bool:
        wanted = self.values.get("owner")
        if wanted is None:
            return True
        # What no policy names stands for every team that none names.
        return any(value != COMMON for value in wanted) if owner == OTHER else self._has("owner", owner or COMMON)

    def _id(self, resource: Resource) -> bool:
        names = {named for named in (resource.id, resource.name, resource.uri) if named not in NOT_NAMED}
        return not names or any(self._has("id", str(name)) for name in names)

    def _team(self, subject: Subject, owner: str | None, teams: Teams) -> bool:
        wanted = self.values.get("team")
        if wanted is None:
            return True
        known = teams(subject)
        return not known or any(self._is(team, owner, wanted) for team in known)

    def _is(self, team: str, owner: str | None, wanted: Iterable[str]) -> bool:
        if team == ANOTHER:
            return any(value != owner for value in wanted)
        if team == OTHER and owner == OTHER:
            # A team that no policy names, and its own resources.
            owners = self.values.get("owner", ("*",))
            return any(fnmatchcase(one, value) or fnmatchcase(value, one) for one in owners for value in wanted)
        return team == OTHER or self._has("team", team)

    def _has(self, key: str, value: str) -> bool:
        wanted = self.values.get(key)
        return wanted is None or any(fnmatchcase(value, one) for one in wanted)


def parse(text: str) -> Selector:
    """A selector as people write it. Raises ``SelectorError``."""
    direction, colon, rest = text.partition(":")
    if direction not in _DIRECTIONS or (colon and not rest):
        raise SelectorError(f"{text[:200]!r} is no selector: {FORM}")
    values: dict[str, tuple[str, ...]] = {}
    for condition in rest.split(",") if rest else []:
        key, equals, named = condition.partition("=")
        if not equals or key not in _CHECKS:
            raise SelectorError(
                f"{condition[:200]!r} is no condition: write one of {', '.join(_CHECKS)}, = and a value"
            )
        if key in values:
            raise SelectorError(f"{key} is there twice: write its values as {key}=one|other")
        values[key] = tuple(named.split("|"))
    for key, value in ((key, value) for key, named in values.items() for value in named):
        if "[" in value or "?" in value:
            raise SelectorError(f"{value[:200]!r} has ? or [: only * stands for other letters")
        _CHECKS[key](value, values)
    return Selector(text, direction, values)


def named_by(selectors: Iterable[Selector]) -> tuple[set[str], set[str]]:
    """The teams and the ids that selectors name, to be asked about whatever the policies name."""
    teams: set[str] = set()
    ids: set[str] = set()
    for one in selectors:
        teams |= {value for key in ("team", "owner") for value in one.values.get(key, ()) if is_team_id(value)}
        ids |= {value.replace("*", "x") for value in one.values.get("id", ())}
    return teams - {COMMON}, ids


def teams_by(*points: DecisionPoint) -> Teams:
    """The teams of a subject by the directories of these policies, each looked up once. Raises an ``EngineError``."""
    kept: dict[Subject, Collection[str]] = {}

    def teams(subject: Subject) -> Collection[str]:
        if subject not in kept:
            found = {*(subject.team_ids or ())}
            for point in points:
                found |= point.whoami(subject)[0].team_roles.keys()
            kept[subject] = found
        return kept[subject]

    return teams


def teams_said(subject: Subject) -> Collection[str]:
    """The teams of a subject without any directory: whoever has groups or claims may be in others as well."""
    return () if subject.groups or subject.claims else subject.team_ids or ()


def _check(key: str, known: Collection[str]) -> Callable[[str, Mapping[str, tuple[str, ...]]], None]:
    def check(value: str, _: Mapping[str, tuple[str, ...]]) -> None:
        if value not in known:
            raise SelectorError(f"{key}={value[:200]}: there is no such {key}, but {', '.join(sorted(known))}")

    return check


def _check_action(value: str, values: Mapping[str, tuple[str, ...]]) -> None:
    # Pages of plugins have actions of their own.
    if not FREE_VERBS & {*values.get("type", ())}:
        _check("action", {*_ACTIONS, WRITE})(value, values)


def _check_team(value: str, _: Mapping[str, tuple[str, ...]]) -> None:
    if not is_team_id(value.replace("*", "xxx")):
        raise SelectorError(f"{value[:200]!r} is not a team id")


def _check_id(value: str, _: Mapping[str, tuple[str, ...]]) -> None:
    if not value:
        raise SelectorError("id= names nothing")


_CHECKS: dict[str, Callable[[str, Mapping[str, tuple[str, ...]]], None]] = {
    "team": _check_team, "owner": _check_team, "subject": _check("subject", get_args(SubjectType)),
    "type": _check("type", _TYPES), "action": _check_action, "id": _check_id,
}  # fmt: skip
