"""The impact of a change on an environment: who gains and who loses what, as ``team-authz impact`` finds it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from airflow_team_authz.bundles.artifact import root
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.escaping import logger
from airflow_team_authz.review.changes import Change, Difference, Found, compare
from airflow_team_authz.review.changes import told as told_of
from airflow_team_authz.review.kinds import Kinds
from airflow_team_authz.review.names import PLATFORM, Package, Sources
from airflow_team_authz.review.selectors import Selector, Teams, named_by, teams_by
from airflow_team_authz.server import ServerError

log = logger(__name__)

# Of more lines nobody reads each; those that wait for an approval come first.
_MOST_LINES = 1000
_MOST_LETTERS = 2000
_LONG = re.compile(r"[^,;:()]{250,}")
SOMEBODY = "somebody whom the directory or the platform names"
OF_OTHERS = "something that is not this team's"
NOT_KNOWN = "the impact could not be computed: the platform sees why"


class SlowError(ServerError):
    """There are more questions than can be asked in the time."""


class Line(msgspec.Struct, frozen=True):
    """What some people gain or lose, in words: for the platform, and for a team. ``approval``: the rules it is of."""

    direction: str
    told: str
    told_team: str
    approval: tuple[str, ...] = ()


class Impact(msgspec.Struct, frozen=True):
    """What a change gives and takes. ``waits_for``: why it needs an approval, one reason or rule each.

    ``unknown``: why it could not be computed. ``seen`` stands for every right that is gained or lost: another impact
    has another one.
    """

    seen: str
    lines: tuple[Line, ...] = ()
    questions: int = 0
    different: int = 0
    waits_for: tuple[str, ...] = ()
    not_seen: tuple[str, ...] = ()
    unknown: str = ""


class Sides(NamedTuple):
    """What is compared. ``only``: the team whose resources alone may be decided about in another way.

    ``owner`` changes its package, ``serial`` is that of the environment before the change.
    """

    old: DecisionPoint
    new: DecisionPoint
    old_files: Mapping[str, bytes]
    new_files: Mapping[str, bytes]
    owner: str
    only: str | None
    serial: int


def impact_of(sides: Sides, rules: Sequence[Selector], seconds: float, opa: str | None) -> Impact:
    """The impact. What cannot be computed waits for an approval of every rule, and never passes as no impact."""
    try:
        return _computed(sides, rules, time.monotonic() + seconds, opa)
    except Exception as error:
        # Whatever it is: an engine that fails, a policy that cannot be read, a fault of this program.
        log.exception("the impact of a change of %s cannot be computed", sides.owner)
        return unknown(_cut(f"{type(error).__name__}: {error}"), sides.serial, rules)


def unknown(why: str, serial: int, rules: Sequence[Selector]) -> Impact:
    """What nobody knows. It is another one as soon as anything else changes."""
    seen = _digest(f"unknown at {serial}".encode())
    told = "the impact could not be computed"
    return Impact(seen, waits_for=tuple(f"{told}: {rule.text}" for rule in rules), unknown=why)


def _computed(sides: Sides, rules: Sequence[Selector], end: float, opa: str | None) -> Impact:
    before, after = Sources(sides.old_files, opa), Sources(sides.new_files, opa)
    teams, ids = named_by(rules)
    kinds = Kinds(before, after, teams=teams, ids=ids, only=sides.only)

    def progress(_: int) -> None:
        if time.monotonic() > end:
            raise SlowError("there are more questions than can be asked in the time: raise --impact-seconds")

    found = compare(sides.old, sides.new, kinds.questions(), kinds.roles, progress)
    known = teams_by(sides.old, sides.new)
    picked = [(_counted_first(change, rules, known), _picking(change, rules, known)) for change in found.changes]
    waits = dict.fromkeys(rule for _, of_change in picked for rule in of_change)
    waits |= dict.fromkeys(rule.text for rule in rules if rule.picks_more(found))
    hidden = list(dict.fromkeys([*kinds.left_out, *_hidden(before, after, sides)]))
    waits |= dict.fromkeys(f"{why}: {rule.text}" for why in hidden for rule in rules)
    return Impact(
        _seen(found, sides, hidden),
        tuple(_lines(found, picked, sides)),
        found.questions,
        found.different,
        tuple(waits),
        tuple(dict.fromkeys([*hidden, *kinds.unseen])),
    )


def _picking(change: Change, rules: Sequence[Selector], teams: Teams) -> tuple[str, ...]:
    return tuple(rule.text for rule in rules if rule.picks(change, teams))


def _counted_first(change: Change, rules: Sequence[Selector], teams: Teams) -> Change:
    """The same, told with what counts first: of many permissions the first ones are named."""
    ordered = sorted(change.differences, key=lambda one: not any(rule.counts(one, teams) for rule in rules))
    return change._replace(differences=tuple(ordered))


def _hidden(before: Sources, after: Sources, sides: Sides) -> Iterator[str]:
    """Rules that no name which is tried need fit, such as those that compute with names, and that are not as before."""
    for owner in [sides.only] if sides.only is not None else sorted({*before.packages, *after.packages}):
        (was, was_used), (now, now_used) = (_unclear(source, owner) for source in (before, after))
        # What such a rule uses is a part of what it does.
        other = {**was, **now} if was_used != now_used else {rule: {**was, **now}[rule] for rule in was.keys() ^ now}
        if functions := sorted({name for names in other.values() for name in names}):
            whose = "the platform" if owner == PLATFORM else owner
            yield f"rules of {whose} use {', '.join(functions)}, so not all that changes can be seen"


def _unclear(source: Sources, owner: str) -> tuple[dict[Any, set[str]], Any]:
    """The rules of an owner whose effect is not seen, and all rules and data that they may use."""
    package = source.packages.get(owner, Package())
    place = "airflow/" if owner == PLATFORM else f"teams/{owner}/"
    data = {name: text for name, text in source.files.items() if name.startswith(place) and name.endswith("data.json")}
    return package.unclear, (package.used, data)


def _seen(found: Found, sides: Sides, hidden: Sequence[str]) -> str:
    """The same only if the same rights are gained and lost; also the same state if that cannot be told."""
    rights = {_right(one) for change in found.changes for one in change.every}
    exact = f"\n{sides.serial}" if found.more or hidden else ""
    return _digest(b"\n".join(sorted(rights)) + exact.encode())


def _digest(content: bytes) -> str:
    """As much of it as nobody can find another content for, and somebody can copy."""
    return hashlib.sha256(content).hexdigest()[:32]


def _right(one: Difference) -> bytes:
    return msgspec.json.encode([one.gained, msgspec.to_builtins(one.question)], order="sorted")


def _lines(found: Found, picked: Sequence[tuple[Change, tuple[str, ...]]], sides: Sides) -> Iterator[Line]:
    place = f"{root(sides.owner)}/"
    own = [
        text.decode(errors="replace")
        for files in (sides.old_files, sides.new_files)
        for name, text in files.items()
        if name.startswith(place)
    ]
    ordered = sorted(picked, key=lambda one: not one[1])
    for change, rules in ordered[:_MOST_LINES]:
        # Such as that another team's package compiles again.
        is_own = {*change.owners} == {sides.owner}
        told_team = _cut(told_of(_for_team(change, own))) if is_own else OF_OTHERS
        yield Line("gained" if change.first.gained else "lost", _cut(told_of(change)), told_team, rules)
    if len(ordered) > _MOST_LINES:
        told_more = f"and {len(ordered) - _MOST_LINES:,} lines more"
        yield Line("any", told_more, told_more)
    for (direction, kind, team_id), count in sorted(found.more.items(), key=str):
        of = "what is common" if team_id is None else f"team {team_id}"
        told_more = f"{count:,} questions more about {kind} of {of} are answered differently: {direction}"
        yield Line(direction, told_more, told_more if team_id == sides.owner else OF_OTHERS)


def _cut(text: str) -> str:
    """Without the middle of each name that is longer than anybody reads, and of the whole."""
    text = _LONG.sub(lambda found: f"{found[0][:100]} …{len(found[0]) - 150} letters… {found[0][-50:]}", text)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]} …{len(text) - _MOST_LETTERS} letters more"


def _for_team(change: Change, own: Collection[str]) -> Change:
    """Without the people and groups that only others name."""
    whos = []
    for who in change.whos:
        subject = who.subject
        values = [value for values in (subject.claims or {}).values() for value in values]
        names = [*(subject.groups or ()), *values]
        if who.kind == "role" and who.name.startswith("anybody "):
            names += subject.roles or ()
        if who.kind in {"person", "task", "machine"}:
            names += [part for part in subject.id.split(".") if not part.startswith("any-")]
        is_own = all(any(name in text for text in own) for name in names)
        whos.append(who if is_own else who._replace(name=SOMEBODY))
    return change._replace(whos=tuple({who.name: who for who in whos}.values()))
