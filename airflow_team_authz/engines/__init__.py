"""The engines: one interface over both, and the only place that reads an answer."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from airflow_team_authz.engines.left_out import LeftOut
from airflow_team_authz.engines.outages import Outages
from airflow_team_authz.model import (
    DeadlineExceeded,
    Decision,
    EngineError,
    Evaluations,
    Malformed,
    PlatformTooLong,
    PolicyBroken,
    Resource,
    Standing,
    Subject,
    TooLong,
)

# Above this a list is asked in parts: it bounds the memory of a question in process, and its size on the wire.
CHUNK = 5_000
# What a team's part of a list may take when it is asked alone, as a multiple of what is usual.
_SHARE = 3.0
# How many teams may be late, each for as long as a question may take, before a list is given up.
_MOST_LATE = 2
# What reading a text as JSON of an agreed form may raise.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Owns nothing and has no package: Airflow takes no such name for a team.
_NOBODY = "~"

T = TypeVar("T")
Value = bytes | msgspec.Raw


class Reply(NamedTuple):
    """An engine's answer: the JSON of the entrypoint's value, and the revision of the policy.

    ``record_id`` is that of the engine's own record, as an OPA server has whose configuration has ``decision_logs``.
    """

    value: Value
    revision: str
    record_id: str = ""


class Engine(Protocol):
    """Something that evaluates the policy. Thread-safe; usable in a forked child."""

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1, pace: float | None = None) -> Reply:
        """Value of ``data.airflow.authz.<entrypoint>`` for a JSON input about ``size`` resources of so many owners.

        It may take ``pace`` times what is usual for so many, where the engine can tell; else as much as one may at all.
        Raises an ``EngineError``, and nothing else, if there is none.
        """

    def close(self) -> None:
        """Give back threads, files and connections."""


class Observer(Protocol):
    """Is told of each question and what came of it, after how many nanoseconds, by the thread that asked.

    It neither raises nor waits. Its answer is the id of the record that it makes of this; empty if it makes none.
    ``engines_ids`` are those of the engine's own records of it.
    """

    def decided(
        self,
        question: Evaluations,
        decisions: Sequence[Decision],
        revision: str,
        nanoseconds: int,
        engines_ids: Sequence[str] = (),
    ) -> str: ...
    def listed(
        self,
        question: Evaluations,
        allowed: Sequence[Resource],
        revision: str,
        nanoseconds: int,
        engines_ids: Sequence[str] = (),
    ) -> None: ...
    def failed(self, question: Evaluations, error: EngineError, nanoseconds: int) -> str: ...


class _Nobody:
    """Is told, and keeps nothing."""

    def decided(self, *_: object) -> str:
        return ""

    def listed(self, *_: object) -> None:
        pass

    def failed(self, *_: object) -> str:
        return ""


class _Heard(threading.local):
    """Ids of the engine's records of the question that this thread asks."""

    def __init__(self) -> None:
        self.ids: list[str] = []


class Answer(NamedTuple):
    """Decisions in the order of the resources, the policy revision that made them, and the id of their record."""

    decisions: list[Decision]
    revision: str
    decision_id: str = ""


class DecisionPoint:
    """The policy decision point (PDP) as the rest of the package sees it."""

    def __init__(self, engine: Engine, observer: Observer | None = None) -> None:
        self._engine = engine
        self._observer: Observer = observer or _Nobody()
        self._encode = msgspec.json.Encoder().encode
        # strict: a bool is a bool. "yes", 1 and null are no decisions.
        self._decode_decisions = msgspec.json.Decoder(list[Decision], strict=True).decode
        self._decode_indices = msgspec.json.Decoder(list[int], strict=True).decode
        self._decode_standing = msgspec.json.Decoder(Standing, strict=True).decode
        self._outages = Outages()
        self._left_out = LeftOut()
        self._pace = 1.0
        self._heard = _Heard()
        if (report := getattr(engine, "report_left_out", None)) is not None:
            report(self._left_out.told)

    def whoami(self, subject: Subject) -> tuple[Standing, str]:
        """The subject as the policy sees it, and the policy's revision. For commands, not for decisions."""
        return self._ask("whoami", lambda value, _: self._decode_standing(value), Evaluations(subject, "list", []))

    def decide(self, question: Evaluations, aside: bool = False) -> Answer:
        """Decision and reasons for each resource. All or an ``EngineError``, never a part.

        ``aside``: nobody is refused or allowed anything by this, so the observer is told of errors only.
        """
        began = time.perf_counter_ns()
        heard = self._heard.ids = []
        try:
            decisions, revision = self._decide(question)
        except EngineError as error:
            error.decision_id = self._observer.failed(question, error, time.perf_counter_ns() - began)
            raise
        if aside:
            return Answer(decisions, revision)
        taken = time.perf_counter_ns() - began
        return Answer(decisions, revision, self._observer.decided(question, decisions, revision, taken, heard))

    def refuse(self, question: Evaluations, reason: str) -> str:
        """Tell the observer of what a door refuses without asking, as nobody can say what to ask; the record's id."""
        return self._observer.decided(
            question, [Decision(False, (reason,), "default")] * len(question.resources), "", 0
        )

    def _decide(self, question: Evaluations) -> tuple[list[Decision], str]:
        decisions: list[Decision] = []
        revision = ""
        for part in _chunks(question):
            answered, revision = self._ask("decisions", self._read_decisions, part)
            decisions += answered
        return decisions, revision

    def allowed(self, question: Evaluations, aside: bool = False) -> list[Resource]:
        """The resources that are allowed, in order, without reasons: for lists.

        A team whose rules fail, or take more than its share of a list, does not take the others' lists along: what it
        owns is left out, of later lists without asking, until its package changes or it answers in time again. If
        nothing else can be decided, the ``EngineError`` is raised. ``aside`` as with ``decide``.
        """
        began = time.perf_counter_ns()
        allowed: list[Resource] = []
        revision = ""
        heard = self._heard.ids = []
        try:
            for part in _chunks(question):
                answered, revision = self._allowed(part)
                allowed += answered
        except EngineError as error:
            error.decision_id = self._observer.failed(question, error, time.perf_counter_ns() - began)
            raise
        if not aside:
            self._observer.listed(question, allowed, revision, time.perf_counter_ns() - began, heard)
        return allowed

    def _allowed(self, question: Evaluations) -> tuple[list[Resource], str]:
        held = self._left_out.among(_owners(question))
        rest = [resource for resource in question.resources if resource.team_id not in held]
        if not held or not rest:
            # A question about those alone costs nobody else.
            return self._allowed_together(question)
        others, revision = self._allowed_together(msgspec.structs.replace(question, resources=rest))
        allowed = {*others, *self._allowed_again(question, held, revision)}
        return [resource for resource in question.resources if resource in allowed], revision

    def _allowed_together(self, question: Evaluations) -> tuple[list[Resource], str]:
        try:
            return self._ask("allowed", self._read_allowed, question, self._pace if _several(question) else None)
        except (PolicyBroken, DeadlineExceeded) as error:
            return self._allowed_alone(question, error)

    def _allowed_alone(self, question: Evaluations, whole: EngineError) -> tuple[list[Resource], str]:
        """Asks about each team on its own, and raises the error about the whole if that is of no use."""
        by_team: dict[str | None, list[Resource]] = defaultdict(list)
        for resource in question.resources:
            by_team[resource.team_id].append(resource)
        allowed: set[Resource] = set()
        failing: dict[str | None, EngineError] = {}
        late, revision = 0, ""
        # It is the engine that is slow, or all of the policy: asking about each team would take the time of each.
        trouble = self._without_teams(question) if _several(question) or isinstance(whole, TooLong) else None
        useless = not _several(question) or trouble is not None
        whole = _blamed(whole, question, trouble)
        for team_id, resources in by_team.items() if not useless else ():
            part = msgspec.structs.replace(question, resources=resources)
            try:
                answer, revision = self._ask("allowed", self._read_allowed, part, _SHARE)
                allowed.update(answer)
            except (PolicyBroken, DeadlineExceeded) as error:
                late += isinstance(error, DeadlineExceeded)
                if isinstance(error, DeadlineExceeded) and self._without_teams(question):
                    useless = True
                    break
                failing[team_id] = error
                if late > _MOST_LATE:
                    break
        if useless or len(failing) == len(by_team):
            self._outages.failed(whole, by_team.keys(), isinstance(whole, PolicyBroken) and not _several(question))
            raise whole
        for team_id, why in failing.items():
            if team_id is None:
                self._outages.failed(why, {None}, of_rules=True)
            else:
                self._left_out.hold(team_id, revision, why)
        if late > _MOST_LATE:
            # The next list is spared these.
            raise whole
        if not failing:
            # All of them are within their shares: there are many, or the platform's own rules take more than usual.
            self._pace *= 2
        return [resource for resource in question.resources if resource in allowed], revision

    def _allowed_again(self, question: Evaluations, held: set[str], revision: str) -> list[Resource]:
        """What is allowed of one team that lists have left out, if it is time to ask again."""
        team_id = self._left_out.to_be_asked(held, revision)
        if team_id is None:
            return []
        own = [resource for resource in question.resources if resource.team_id == team_id]
        part = msgspec.structs.replace(question, resources=own)
        try:
            allowed, _ = self._ask("allowed", self._read_allowed, part, _SHARE)
        except (PolicyBroken, DeadlineExceeded) as error:
            self._left_out.hold(team_id, revision, error)
            return []
        self._left_out.release(team_id)
        return allowed

    def _without_teams(self, question: Evaluations) -> EngineError | None:
        """What is wrong with such a question if it is about nobody's resource, for which no team's package is asked."""
        nobodys = [msgspec.structs.replace(resource, team_id=_NOBODY) for resource in question.resources[:1]]
        try:
            self._ask("allowed", self._read_allowed, msgspec.structs.replace(question, resources=nobodys))
        except EngineError as error:
            return error
        return None

    def _ask(
        self,
        entrypoint: str,
        read: Callable[[Value, Evaluations], T],
        question: Evaluations,
        pace: float | None = None,
    ) -> tuple[T, str]:
        try:
            encoded = self._encode(question)
        except UnicodeEncodeError:
            # Half a surrogate pair: no JSON can hold it. Not the engine's fault, so no outage.
            raise Malformed("the question holds text that is not Unicode") from None
        try:
            reply = self._engine.query(entrypoint, encoded, len(question.resources), len(_owners(question)), pace)
            answer = read(reply.value, question)
            if reply.record_id:
                self._heard.ids.append(reply.record_id)
        except EngineError as engine_error:
            error = engine_error
            if entrypoint == "decisions" and isinstance(error, TooLong):
                error = _blamed(error, question, self._without_teams(question))
            # Whether a team's rules are slow or the engine is, is not known before each is asked about.
            if not (entrypoint == "allowed" and isinstance(error, DeadlineExceeded | PolicyBroken)):
                self._outages.failed(error, _owners(question), isinstance(error, PolicyBroken))
            raise error from None
        except NOT_JSON as error:
            malformed = Malformed(f"the engine's answer is not of the agreed form: {error}")
            self._outages.failed(malformed, _owners(question))
            raise malformed from None
        if self._outages and question.resources and _owners(question) != {_NOBODY}:
            self._outages.answered(_owners(question))
        return answer, reply.revision

    def _read_decisions(self, value: Value, question: Evaluations) -> list[Decision]:
        decisions = self._decode_decisions(value)
        if len(decisions) != len(question.resources):
            raise Malformed(f"the engine answered {len(decisions)} of {len(question.resources)} questions")
        return decisions

    def _read_allowed(self, value: Value, question: Evaluations) -> list[Resource]:
        indices = self._decode_indices(value)
        if any(not 0 <= index < len(question.resources) for index in indices) or len(set(indices)) != len(indices):
            raise Malformed("the engine allows resources that it was not asked about")
        return [question.resources[index] for index in indices]

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def _blamed(error: EngineError, question: Evaluations, without_teams: EngineError | None) -> EngineError:
    """An exhausted allowance, with whose rules exhaust it. ``without_teams``: what is wrong if no team's are asked."""
    owners = _owners(question)
    if not isinstance(error, TooLong):
        return error
    if owners == {None} or isinstance(without_teams, TooLong):
        return PlatformTooLong(
            f"{error}; without the package of any team, too: look at the rules in airflow/site, "
            "and at how much airflow/directory says of one person"
        )
    if len(owners) == 1 and without_teams is None:
        return TooLong(f"{error}; without the package of team {owners.pop()} it comes to an end")
    return error


def _owners(question: Evaluations) -> set[str | None]:
    return {resource.team_id for resource in question.resources}


def _several(question: Evaluations) -> bool:
    return len(_owners(question)) > 1


def _chunks(question: Evaluations) -> Iterator[Evaluations]:
    resources: Sequence[Resource] = question.resources
    if len(resources) <= CHUNK:
        yield question
        return
    for start in range(0, len(resources), CHUNK):
        yield msgspec.structs.replace(question, resources=resources[start : start + CHUNK])
