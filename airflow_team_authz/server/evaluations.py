"""Decisions for others, over HTTP: whether a caller may ask, the questions themselves, and searches.

The right to ask is a question to the same policy. Subjects and resources of a search are those of the collected
decisions, since this server knows no Airflow.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from airflow_team_authz.decision_log.parts import AUDITED
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Decision, Evaluation, Evaluations, Resource, Subject
from airflow_team_authz.server import ServerError, access
from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.authzen import (
    FIRST_DENY,
    FIRST_PERMIT,
    Batch,
    Page,
    as_decision,
    as_resource,
    as_results,
    as_subject,
)
from airflow_team_authz.server.decisions import Decisions, Readable, Shown

# The right to ask about everything is the right to read this.
EVERYTHING = Resource("platform_view", None, "access_evaluations")
SUBJECTS_NOT_COVERED = (
    "people and tasks that the newest decisions do not have; groups, roles and claims without a person",
    "claims that the decision log masks: the decisions about these people are without them",
)
# How long a request may take of the engine. A rule of a team may use its allowance up for each of many questions.
_SECONDS = 10.0
# The reasons of one answer: a rule may make very long ones.
_MOST_CHARACTERS = 4 << 20
RESOURCES_NOT_COVERED = ("resources that the newest decisions do not have",)


class NotAllowedError(ServerError):
    """The policy does not let the caller ask about a resource."""


class TooMuchError(ServerError):
    """The answer to a request takes too long, or is too large."""


class Asker:
    """A caller before the policy of one environment, for one request.

    Its methods raise an ``EngineError`` if the policy fails, and ``TooMuchError``.
    """

    def __init__(self, point: DecisionPoint, who: Caller) -> None:
        self._point, self._who = point, who
        self._until = time.monotonic() + _SECONDS
        # The role admin of the login is one on the platform too, so a team's token does not have it here.
        roles = ("admin",) if who.kind == access.PLATFORM else ()
        (self.asks_about_all,) = self._reads(roles, [EVERYTHING])

    def check(self, resources: Iterable[Resource]) -> None:
        """``NotAllowedError`` unless the caller may ask about all of them."""
        asked = list(dict.fromkeys(resources))
        for resource, may in zip(asked, self.may_ask(asked), strict=True):
            if not may:
                raise self._not_allowed(resource)

    def _not_allowed(self, resource: Resource) -> NotAllowedError:
        owner = "no team" if resource.team_id is None else f"team {resource.team_id}"
        return NotAllowedError(
            f"{self._who.name} may not ask about {resource.type} of {owner}: a platform token may, a team's token for "
            "its own resources, and any token that a rule lets read platform_view access_evaluations"
        )

    def may_ask(self, resources: Sequence[Resource]) -> list[bool]:
        """For each of them, whether the caller may ask about it: a team about its own, whose audit log it may read."""
        if self.asks_about_all:
            return [True] * len(resources)
        is_own = [
            resource.type in AUDITED and resource.team_id is not None and resource.team_id in self._who.team_ids
            for resource in resources
        ]
        logs = [
            Resource(one.type, one.team_id, one.id, "audit_log")
            for one, own in zip(resources, is_own, strict=True)
            if own
        ]
        # Any holder of a team's token writes the team's rules, and can give its people any role in the team.
        readable = iter(self._reads(("admin",), logs))
        return [own and next(readable) for own in is_own]

    def _reads(self, roles: tuple[str, ...], resources: Sequence[Resource]) -> list[bool]:
        if not resources:
            return []
        caller = Subject("user", self._who.name, self._who.team_ids, roles)
        answer = self._point.decide(Evaluations(caller, "read", resources))
        return [decision.allow is True for decision in answer.decisions]

    def decide(self, batch: Batch) -> dict[str, Any]:
        """The answer to a request, which is about all of its questions or an error."""
        self.check(question.resource for question in batch.questions)
        stop = {FIRST_DENY: False, FIRST_PERMIT: True}.get(batch.semantic or "")
        told, characters = [], 0
        for decision, revision in self._decisions(batch.questions, one_by_one=stop is not None):
            characters += sum(map(len, decision.reasons))
            if characters > _MOST_CHARACTERS:
                raise TooMuchError(f"the reasons have more than {_MOST_CHARACTERS:,} characters: ask fewer questions")
            told.append(as_decision(decision, revision))
            if decision.allow is stop:
                break
        return told[0] if batch.semantic is None else {"evaluations": told}

    def _decisions(self, questions: Sequence[Evaluation], one_by_one: bool) -> Iterator[tuple[Decision, str]]:
        """In their order; neighbours that differ in the resource only are one question to the engine."""

        def shared(numbered: tuple[int, Evaluation]) -> Any:
            number, one = numbered
            return number if one_by_one else (one.subject, one.action, one.context)

        for _, group in groupby(enumerate(questions), shared):
            together = [one for _, one in group]
            first = together[0]
            asked = Evaluations(first.subject, first.action, [one.resource for one in together], first.context)
            if time.monotonic() > self._until:
                raise TooMuchError(f"the decisions take more than {_SECONDS:.0f} s: ask fewer questions at once")
            answer = self._point.decide(asked)
            yield from ((decision, answer.revision) for decision in answer.decisions)

    # Searches

    def subjects(self, type_: str, question: Evaluation, wanted: Page, seen: Seen) -> dict[str, Any]:
        """The subjects of this type that are allowed it. Only a caller that may ask about all gets their groups."""
        self.check([question.resource])
        candidates = sorted((one for one in seen.subjects() if one.type == type_), key=lambda one: one.id)
        allowed = [
            as_subject(one, with_properties=self.asks_about_all)
            for one in candidates
            if self._is_allowed(msgspec.structs.replace(question, subject=one))
        ]
        return as_results(allowed, wanted, SUBJECTS_NOT_COVERED)

    def resources(
        self, owner: str | UnsetType | None, question: Evaluation, wanted: Page, seen: Seen
    ) -> dict[str, Any]:
        """The resources of this type and owner on which the action is allowed; ``UNSET`` for any owner."""
        about = question.resource
        if owner is not UNSET and not self.asks_about_all and owner not in self._who.team_ids:
            raise self._not_allowed(about)
        candidates = sorted(
            {
                msgspec.structs.replace(one, entity=about.entity)
                for one in seen.resources()
                if one.type == about.type and owner in (UNSET, one.team_id)
            },
            key=lambda one: (str(one.id), str(one.team_id)),
        )
        mine = [one for one, may in zip(candidates, self.may_ask(candidates), strict=True) if may]
        questions = [msgspec.structs.replace(question, resource=one) for one in mine]
        answers = self._decisions(questions, one_by_one=False)
        allowed = [as_resource(one) for one, (answer, _) in zip(mine, answers, strict=True) if answer.allow is True]
        return as_results(allowed, wanted, RESOURCES_NOT_COVERED)

    def actions(self, actions: Sequence[str], question: Evaluation, wanted: Page) -> dict[str, Any]:
        """The actions that are allowed."""
        self.check([question.resource])
        allowed = [
            {"name": action} for action in actions if self._is_allowed(msgspec.structs.replace(question, action=action))
        ]
        return as_results(allowed, wanted, ())

    def _is_allowed(self, question: Evaluation) -> bool:
        ((decision, _),) = self._decisions([question], one_by_one=True)
        return decision.allow is True


class Seen:
    """The subjects and resources of the newest decisions that a caller may see."""

    def __init__(self, decisions: Decisions, readable: Readable, asker: Asker, who: Caller) -> None:
        self._rows: Sequence[Shown] = decisions.recent(None if asker.asks_about_all else who.team_ids)
        self._parts = self._rows if asker.asks_about_all else readable.parts(who, self._rows)

    def subjects(self) -> list[Subject]:
        """Each subject as its newest record has it, with groups and roles."""
        visible = {row.number for row in self._parts}
        found: dict[tuple[str, str], Subject] = {}
        for row in self._rows:
            if row.number in visible and (one := _subject(row.record)) is not None:
                found.setdefault((one.type, one.id), one)
        return list(found.values())

    def resources(self) -> set[Resource]:
        """The resources of the records' visible parts."""
        return {one for row in self._parts for one in _resources(row.record)}


def _subject(record: Mapping[str, Any]) -> Subject | None:
    try:
        subject = msgspec.convert(record["input"]["subject"], Subject, strict=True)
    except (KeyError, TypeError, msgspec.ValidationError):
        return None
    # Its groups and roles are not known.
    return None if subject.unverified is not UNSET or not subject.id else subject


def _resources(record: Mapping[str, Any]) -> Iterator[Resource]:
    input_ = record.get("input") or {}
    listed = input_.get("resources") or [input_.get("resource")]
    for one in listed if isinstance(listed, list) else []:
        try:
            resource = msgspec.convert(one, Resource, strict=True)
        except msgspec.ValidationError:
            continue
        if isinstance(resource.id, str) and resource.id and resource.delivery is UNSET:
            yield resource
