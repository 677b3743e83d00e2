"""An access review as a document: the permissions of a policy, its revision and date, and the gaps. And their changes.

The form is one JSON document, a permission a line. The other forms of ``team-authz matrix`` have the same content.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from airflow_team_authz.model import Resource
from airflow_team_authz.review import Allowed, kind_of
from airflow_team_authz.review.changes import listed
from airflow_team_authz.review.kinds import ANOTHER, OTHER, team_words

FORMAT = "team-authz-review/1"
ROLE = "role"
# In the place of a time.
NO_USE, NOT_RECORDED = "none", "not recorded"
# The questions of --by role have no names of a policy.
NOT_COVERED_BY_ROLE = (
    "rules about a person, a group, a claim, or a resource of a certain name: matrix without --by role has these",
    "people with several roles at once",
)


class Permission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One allowed action. ``id`` is empty for no resource in particular, and ``team`` for common resources.

    ``last_use`` is a time in UTC, ``NO_USE`` or ``NOT_RECORDED``. It is absent if no decision log was read.
    """

    who: str
    kind: str
    action: str
    type: str
    id: str
    team: str
    layer: str
    reason: str
    last_use: str | UnsetType = UNSET

    @property
    def cell(self) -> tuple[str, ...]:
        """The subject, the action and the resource."""
        return self.who, self.kind, self.action, self.type, self.id, self.team


COLUMNS = Permission.__struct_fields__


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The circumstances of a review: its time (UTC), the revision of the policy, its selection, and its gaps.

    ``by`` is ``subject`` or ``role``. ``type`` and ``team`` are those of the resources, ``None`` for all.
    """

    format: str
    made_at: str
    revision: str
    by: str
    type: str | None
    team: str | None
    not_covered: tuple[str, ...]

    def facts(self) -> Iterator[str]:
        """The circumstances in words, without the gaps."""
        yield f"policy revision {self.revision}"
        yield f"made at {self.made_at}"
        yield "rights of each role" if self.by == ROLE else "rights of people, groups and tasks"
        if self.type is not None:
            yield f"only resources of type {self.type}"
        if self.team is not None:
            yield f"only resources of team {self.team}"


class Review(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole review."""

    head: Head
    permissions: tuple[Permission, ...]


class UnreadableReviewError(Exception):
    """A text is not a review, or not of a known form."""


class NotComparableError(Exception):
    """Two reviews are about different things, or about nothing, so their difference means nothing."""


def permission(one: Allowed, by: str, last_use: str | UnsetType = UNSET) -> Permission:
    """A right as a review has it."""
    about = one.resource
    id_, team = ("" if about.id is UNSET else str(about.id)), about.team_id or ""
    reason = "; ".join(one.decision.reasons)
    if by == ROLE:
        id_, team = _any(about), team_words(team) if about.team_id is not None else ""
        for stand_in in (ANOTHER, OTHER):
            reason = reason.replace(f"team {stand_in}", team_words(stand_in))
    return Permission(
        one.who.name, one.who.kind, one.action, kind_of(about), id_, team, one.decision.layer, reason, last_use
    )


def _any(about: Resource) -> str:
    """A resource of no name: empty, but for the event that would start a Dag."""
    if about.delivery is UNSET:
        return "" if about.id in {UNSET, OTHER} else str(about.id)
    to, agreed = about.delivery.team_id, about.delivery.airflow_allows
    target = f" to a Dag of {team_words(to)}" if to is not None else " to a common Dag"
    return f"by an event{target if about.type == 'asset' else ''}, {'with' if agreed else 'without'} consent"


def once(permissions: Iterable[Permission]) -> Iterator[Permission]:
    """Each permission once: questions without a name and with an unknown one are the same to a reader."""
    seen: set[Permission] = set()
    for one in permissions:
        if one not in seen:
            seen.add(one)
            yield one


def as_json(head: Head, permissions: Iterable[Permission]) -> Iterator[str]:
    """The document, a permission a line."""
    yield f'{{"head": {_json(head)}, "permissions": ['
    waiting = ""
    for one in permissions:
        if waiting:
            yield f"{waiting},"
        waiting = _json(one)
    yield f"{waiting}]}}"


def _json(value: msgspec.Struct) -> str:
    text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


_decode = msgspec.json.Decoder(Review, strict=True).decode


def read(content: bytes) -> Review:
    """The review of a document; ``UnreadableReviewError`` if it is not one."""
    try:
        review = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableReviewError(f"it is not a review of `team-authz matrix --output json`: {error}") from None
    if review.head.format != FORMAT:
        raise UnreadableReviewError(f"its form is {review.head.format!r:.60}, and this version reads {FORMAT}")
    return review


# The difference of two reviews


class Difference(NamedTuple):
    """The permissions that only the newer review has (``gained``), and those that only the older one has."""

    gained: tuple[Permission, ...]
    lost: tuple[Permission, ...]

    def has(self, direction: str) -> bool:
        """Whether anything is ``gained``, ``lost`` or ``any`` of both."""
        found = {"gained": bool(self.gained), "lost": bool(self.lost)}
        return any(found.values()) if direction == "any" else found[direction]


def difference(old: Review, new: Review) -> Difference:
    """Compares two reviews of the same selection; ``NotComparableError``."""
    for what in ("by", "type", "team"):
        before, after = getattr(old.head, what), getattr(new.head, what)
        if before != after:
            raise NotComparableError(
                f"the older review is of --{what} {before or 'all'}, and the newer one of --{what} {after or 'all'}: "
                "make both with the same options"
            )
    if not old.permissions and not new.permissions:
        raise NotComparableError("neither review has a permission, so nothing is compared: check its --type and --team")
    before, after = {one.cell for one in old.permissions}, {one.cell for one in new.permissions}
    return Difference(
        tuple(one for one in new.permissions if one.cell not in before),
        tuple(one for one in old.permissions if one.cell not in after),
    )


def told(permissions: Iterable[Permission], verb: str) -> Iterator[str]:
    """Lines in words: subjects with the same permissions of one team, for one reason, share a line.

    ``verb`` is ``gain`` or ``lose``.
    """
    by_cause: dict[tuple[str, ...], dict[str, list[Permission]]] = defaultdict(lambda: defaultdict(list))
    for one in permissions:
        by_cause[one.team, one.layer, one.reason][one.who].append(one)
    for (team, layer, reason), by_who in by_cause.items():
        alike: dict[Any, list[str]] = defaultdict(list)
        for who, theirs in by_who.items():
            alike[frozenset((one.action, one.type, one.id) for one in theirs)].append(who)
        for whos in alike.values():
            said = f"{verb}{'s' if len(whos) == 1 else ''}: {_things(by_who[whos[0]])} {_whose(team)}"
            yield f"{listed(whos)} {said}, {_BY.get(layer, 'by default')} ({reason})"


_BY = {"baseline": "by roles", "guardrail": "by the platform", "team": "by the team"}


def _things(permissions: Sequence[Permission]) -> str:
    actions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in permissions:
        actions[one.type, one.id].append(one.action)
    ids: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (type_, id_), may in actions.items():
        ids[type_, tuple(may)].append(id_)
    return listed(
        [f"{', '.join(may)} {type_} {listed([id_ or 'any' for id_ in named])}" for (type_, may), named in ids.items()],
        "; ",
    )


def _whose(team: str) -> str:
    if not team:
        return "common to all teams"
    return f"of {team}" if team in {team_words(OTHER), team_words(ANOTHER)} else f"of team {team}"
