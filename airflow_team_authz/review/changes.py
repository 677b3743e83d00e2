"""Differences between two policies: it asks both the same questions, and reports different answers in few lines."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Decision, Evaluation, Resource, Subject
from airflow_team_authz.review import Asked, Who, allowed, decided, kind_of
from airflow_team_authz.review.kinds import OTHER

# How many lists each engine is given at a time.
_AT_ONCE = 32
# Of more differences nobody reads the reasons: they are counted.
MOST_DECIDED = 50_000


class Seen(NamedTuple):
    """The recorded decisions of one difference: their number, the people, and the id and the subject of the first."""

    times: int
    people: tuple[str, ...]
    decision_id: str
    subject: Subject


class Difference(NamedTuple):
    """A question that the two policies answer differently. ``seen``: it comes from the decision log."""

    asked: Asked
    resource: Resource
    old: Decision
    new: Decision
    seen: Seen | None = None

    @property
    def gained(self) -> bool:
        """Whether it is the new policy that allows it."""
        return self.new.allow

    @property
    def said(self) -> Decision:
        """The decision that makes the difference: the new one, unless it only lacks what the old one had."""
        return self.new if self.new.layer != "default" else self.old

    @property
    def question(self) -> Evaluation:
        """The question, as people write it."""
        subject = self.asked.who.subject if self.seen is None else self.seen.subject
        return Evaluation(subject, self.asked.action, self.resource, self.asked.context)


class Change(NamedTuple):
    """Differences that are one to people: the same subjects gain or lose the same, of these teams, for one cause.

    ``differences`` are those of one of the subjects with one of the owners; ``every`` and ``reasons`` are all of them.
    """

    whos: tuple[Who, ...]
    owners: tuple[str | None, ...]
    reasons: tuple[str, ...]
    differences: tuple[Difference, ...]
    every: tuple[Difference, ...]

    @property
    def first(self) -> Difference:
        """The one that stands for all of them."""
        return self.differences[0]

    @property
    def seen(self) -> Seen | None:
        """The recorded decisions of all of them, if they are recorded ones."""
        every = [one.seen for one in self.every if one.seen is not None]
        if not every:
            return None
        people = tuple(dict.fromkeys(name for one in every for name in one.people))
        return every[0]._replace(times=sum(one.times for one in every), people=people)


class Found(NamedTuple):
    """Everything that was found: ``different`` of the questions have other answers.

    ``more`` counts those that are too many to be told one by one, by direction, kind and owner.
    """

    changes: tuple[Change, ...]
    questions: int
    different: int
    more: dict[tuple[str, str, str | None], int]

    def has(self, direction: str) -> bool:
        """Whether anything is ``gained``, ``lost`` or ``any`` of both."""
        gained = {change.first.gained for change in self.changes} | {one == "gained" for one, _, _ in self.more}
        return bool(gained) if direction == "any" else (direction == "gained") in gained


def compare(
    old: DecisionPoint,
    new: DecisionPoint,
    questions: Iterator[Asked],
    roles: Collection[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Found:
    """Ask both policies. ``progress`` is told how many questions have been asked so far.

    ``roles`` are those of the role tables: what one role allows and what another one does are told together.

    ``NotDecidedError`` if one of them fails about something.
    """
    asked_so_far, told = 0, 0
    differences: list[Difference] = []
    more: dict[tuple[str, str, str | None], int] = defaultdict(int)
    with ThreadPoolExecutor(2) as pool:
        while batch := list(islice(questions, _AT_ONCE)):
            answers = [pool.submit(_all, point, batch) for point in (old, new)]
            for asked, before, after in zip(batch, *(answer.result() for answer in answers), strict=True):
                asked_so_far += len(asked.resources)
                changed = set(before) ^ set(after)
                if not changed:
                    continue
                resources = [resource for resource in asked.resources if resource in changed]
                room = resources[: MOST_DECIDED - told]
                told += len(room)
                differences += _decided(old, new, asked, room)
                for resource in resources[len(room) :]:
                    more["gained" if resource in after else "lost", kind_of(resource), resource.team_id] += 1
            progress(asked_so_far)
    return Found(grouped(differences, roles), asked_so_far, len(differences) + sum(more.values()), dict(more))


def grouped(differences: Iterable[Difference], roles: Collection[str] = ()) -> tuple[Change, ...]:
    """The differences in few lines, what is gained first."""
    return tuple(sorted(_grouped(differences, roles), key=lambda change: not change.first.gained))


def _all(point: DecisionPoint, batch: list[Asked]) -> list[list[Resource]]:
    return [allowed(point, asked) for asked in batch]


def _decided(old: DecisionPoint, new: DecisionPoint, asked: Asked, resources: list[Resource]) -> Iterator[Difference]:
    for resource, before, after in zip(
        resources, decided(old, asked, resources), decided(new, asked, resources), strict=True
    ):
        yield Difference(asked, resource, before, after)


def _grouped(differences: Iterable[Difference], roles: Collection[str]) -> Iterator[Change]:
    """First the subjects that gain or lose the same of an owner for one cause, then the owners for whom that is so."""
    by_who: dict[Any, dict[str | None, dict[Who, list[Difference]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for one in differences:
        by_roles = _is_by_roles(one, roles)
        # Of what has been asked really, each action and type is counted on its own.
        apart = () if one.seen is None else (one.asked.action, kind_of(one.resource))
        cause = (one.gained, one.old.layer, one.new.layer, by_roles or one.said.reasons, apart)
        by_who[cause][one.resource.team_id][one.asked.who].append(one)
    for owners in by_who.values():
        alike: dict[Any, list[tuple[str | None, list[list[Difference]]]]] = defaultdict(list)
        for owner, whos in owners.items():
            same: dict[Any, list[Who]] = defaultdict(list)
            for who, found in whos.items():
                same[frozenset(map(_content, found))].append(who)
            for content, together in same.items():
                alike[content, tuple(_fewest(together))].append((owner, [whos[who] for who in together]))
        for (_, fewest), of_owners in alike.items():
            every = [one for _, found in of_owners for of_who in found for one in of_who]
            reasons = tuple(dict.fromkeys(reason for one in every for reason in one.said.reasons))
            (first, *_) = [of_who for of_who in of_owners[0][1] if of_who[0].asked.who == fewest[0]]
            yield Change(fewest, tuple(owner for owner, _ in of_owners), reasons, tuple(first), tuple(every))


def _is_by_roles(one: Difference, roles: Collection[str]) -> bool:
    return one.said.layer == "baseline" and all(
        any(reason == role or reason.startswith((f"{role} in ", f"{role} on ")) for role in roles)
        for reason in one.said.reasons
    )


def _content(one: Difference) -> tuple[Any, ...]:
    """The resource of a difference, without its owner."""
    by_event = one.resource.delivery is not UNSET
    return one.asked.action, kind_of(one.resource), one.resource.id, one.resource.name, by_event


def _fewest(whos: Sequence[Who]) -> Iterator[Who]:
    """The subjects that include all others: a gain of everybody needs no list of people."""
    for who in whos:
        if not any(other is not who and _is_more_general(other.subject, who.subject) for other in whos):
            yield who


def _is_more_general(one: Subject, other: Subject) -> bool:
    anybody = one.id in {OTHER, "any-dag.any-task"}
    return (
        one != other
        and one.type == other.type
        and (anybody or one.id == other.id)
        and all(
            {*(getattr(one, held) or ())} <= {*(getattr(other, held) or ())} for held in ("team_ids", "roles", "groups")
        )
        and not one.claims
    )


# In words

_MOST_NAMED = 4


def told(change: Change, places: tuple[str, ...] = ()) -> str:
    """A line: who gains or loses what, and by which rule or role."""
    is_many = len(change.whos) > 1 or change.whos[0].kind == "people"
    verb = ("gain" if change.first.gained else "lose") + ("" if is_many else "s")
    line = f"{listed([who.name for who in change.whos])} {verb}: {what(change)}, {why(change, places)}"
    return line if (seen := change.seen) is None else f"{line}: {_how_often(seen)}"


def _how_often(seen: Seen) -> str:
    decisions = f"{seen.times:,} decision{'' if seen.times == 1 else 's'}"
    return f"{decisions} of {listed(seen.people)}, such as {seen.decision_id}"


def what(change: Change) -> str:
    """Actions and resources, and whose they are."""
    by_kind: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in change.differences:
        by_kind[kind_of(one.resource), _id(one.resource)].append(one.asked.action)
    by_actions: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (kind, id_), actions in by_kind.items():
        if not id_ or not {*actions} <= {*by_kind.get((kind, ""), ())}:
            by_actions[id_, tuple(dict.fromkeys(actions))].append(kind)
    parts = [f"{', '.join(actions)} {listed(kinds)}{id_ and ' '}{id_}" for (id_, actions), kinds in by_actions.items()]
    owners = listed([_whose(owner) for owner in change.owners])
    return f"{listed(parts, '; ')} {owners}"


def _whose(owner: str | None) -> str:
    return "common to all teams" if owner is None else "of any other team" if owner == OTHER else f"of team {owner}"


def _id(resource: Resource) -> str:
    if resource.delivery is not UNSET:
        return "(by an event)"
    if resource.id is UNSET:
        return ""
    named = resource.name if resource.name is not UNSET and resource.name != OTHER else resource.id
    return "" if named == OTHER else str(named)


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    shown = between.join(names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def why(change: Change, places: tuple[str, ...] = ()) -> str:
    """The cause of a difference: a new or removed rule, or a role."""
    one = change.first
    by = {"baseline": "by its roles", "guardrail": "by the platform", "team": "by the team"}.get(one.said.layer, "")
    by = f"by {', '.join(places)}" if places else by
    if not change.reasons:
        # What allowed it gives no reason: a list, or a login manager.
        told = listed(one.new.reasons, "; ")
        return f"since {told}" if told else "by no rule or role"
    return f"{'' if one.said is one.new else 'no longer '}{by} ({listed(change.reasons, '; ')})"


def rego_test(change: Change) -> str:
    """A test that holds with the new policy."""
    one = change.first
    name = "".join(
        letter if letter.isascii() and letter.isalnum() else "_" for letter in f"{one.asked.who.name} {what(change)}"
    )
    question = json.dumps(msgspec.to_builtins(one.question), indent="\t", ensure_ascii=False).replace("\n", "\n\t\t")
    wanted = "answer.allow" if one.gained else "not answer.allow"
    return (
        "package airflow.impact_test\n\nimport data.airflow.authz\n\n"
        f"test_{'gained' if one.gained else 'lost'}_{name[:80].strip('_')} if {{\n"
        f"\tanswer := authz.decision with input as {question.rstrip()}\n\t{wanted}\n}}\n"
    )
