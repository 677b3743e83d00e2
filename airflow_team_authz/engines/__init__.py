"""The engines: one interface over both, and the only place that reads an answer."""

from __future__ import annotations

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import compress
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from airflow_team_authz.engines.by_kind import by_kind
from airflow_team_authz.engines.kept import Kept, Key, key
from airflow_team_authz.engines.left_out import LeftOut
from airflow_team_authz.engines.outages import Outages
from airflow_team_authz.model import (
    DeadlineExceededError,
    Decision,
    EngineError,
    Evaluations,
    MalformedError,
    PlatformTooLongError,
    PolicyBrokenError,
    Provenance,
    Resource,
    Resources,
    Standing,
    Subject,
    TooLongError,
)

# Above this a list is asked in parts: it bounds the memory of a question in process, and its size on the wire. A part
# of a thousand takes 4 MB where rules look at ids. Larger parts take more memory, and no less time.
CHUNK = 1_000
# What a team's part of a list may take when it is asked alone, as a multiple of what is usual.
_SHARE = 3.0
# How many teams may be late, each for as long as a question may take, before a list is given up.
_MOST_LATE = 2
# What reading a text as JSON of an agreed form may raise.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Owns nothing and has no package: Airflow takes no such name for a team.
_NOBODY = "~"

# What decisions take in memory for each byte of their JSON: measured, and rounded up.
_DECISION_BYTES = 6

T = TypeVar("T")
Value = bytes | msgspec.Raw
# Makes of an engine's answer to a question what nobody can change.
_Read = Callable[[Value, Evaluations], T]


class Reply(NamedTuple):
    """An engine's answer: the JSON of the entrypoint's value, the revision of the policy, and where to keep it if that
    policy gives the same answer whenever it is asked the same.

    ``record_id`` is that of the engine's own record, as an OPA server has whose configuration has ``decision_logs``.
    """

    value: Value
    revision: str
    record_id: str = ""
    kept: Kept | None = None


class Engine(Protocol):
    """Something that evaluates the policy. Thread-safe; usable in a forked child."""

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1, pace: float | None = None) -> Reply:
        """Value of ``data.airflow.authz.<entrypoint>`` for a JSON input about ``size`` resources of so many owners.

        It may take ``pace`` times what is usual for so many, where the engine can tell; else as much as one may at all.
        Raises an ``EngineError``, and nothing else, if there is none.

        An engine that knows which policy would answer now has a method ``kept`` as well: what that policy has answered
        before, as in ``Reply``; ``None`` if no policy would answer. One that knows when a question is of no use has a
        method ``check``, which raises the error that ``query`` would: a long question takes its time to write.
        """

    def close(self) -> None:
        """Give back threads, files and connections."""


class Observer(Protocol):
    """Is told of each question and its answer, by the thread that asked.

    It neither raises nor waits. Its answer is the id of the record that it makes of this; empty if it makes none.
    """

    def decided(self, question: Evaluations, decisions: Sequence[Decision], how: Provenance) -> str: ...
    def listed(self, question: Evaluations, allowed: Sequence[Resource], how: Provenance) -> None: ...
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


class _Listed(NamedTuple):
    """The allowed resources of a list, the policy revision, and whether the answer was kept from before."""

    allowed: list[Resource]
    revision: str
    kept: bool


class DecisionPoint:
    """The policy decision point (PDP) as the rest of the package sees it."""

    def __init__(self, engine: Engine, observer: Observer | None = None, name: str = "") -> None:
        """``name``: of the policy in the log, unless it is the one in force."""
        self._engine = engine
        self._observer: Observer = observer or _Nobody()
        self._encode = msgspec.json.Encoder().encode
        # strict: a bool is a bool. "yes", 1 and null are no decisions.
        self._decode_decisions = msgspec.json.Decoder(tuple[Decision, ...], strict=True).decode
        self._decode_indices = msgspec.json.Decoder(list[int], strict=True).decode
        self._decode_standing = msgspec.json.Decoder(Standing, strict=True).decode
        self._kept: Callable[[], Kept | None] = getattr(engine, "kept", _nothing)
        self._check: Callable[[], None] = getattr(engine, "check", _nothing)
        self._outages = Outages(name)
        self._left_out = LeftOut(name)
        self._pace = 1.0
        self._heard = _Heard()
        if (report := getattr(engine, "report_left_out", None)) is not None:
            report(self._left_out.told)

    def whoami(self, subject: Subject) -> tuple[Standing, str]:
        """The subject as the policy sees it, and the policy's revision. For commands, not for decisions."""
        value, revision, _ = self._ask("whoami", self._read_standing, Evaluations(subject, "list", []))
        return self._decode_standing(value), revision

    def decide(self, question: Evaluations, aside: bool = False) -> Answer:
        """Decision and reasons for each resource. All or an ``EngineError``, never a part.

        ``aside``: nobody is refused or allowed anything by this, so the observer is told of errors only.
        """
        answer, how = self.weigh(question)
        return answer if aside else self.settle(question, answer, how)

    def weigh(self, question: Evaluations) -> tuple[Answer, Provenance]:
        """The answer as ``decide`` gives it, for a caller who may find that it does not count; else see ``settle``."""
        began = time.perf_counter_ns()
        heard = self._heard.ids = []
        try:
            if len(question.resources) <= CHUNK:
                answered, revision, kept = self._ask("decisions", self._read_decisions, question)
                decisions = list(answered)
            else:
                decisions, revision, kept = self._decide_parts(question)
        except EngineError as error:
            error.decision_id = self._observer.failed(question, error, time.perf_counter_ns() - began)
            raise
        return Answer(decisions, revision), Provenance(revision, time.perf_counter_ns() - began, heard, kept)

    def settle(self, question: Evaluations, answer: Answer, how: Provenance) -> Answer:
        """An answer of ``weigh`` counts: the observer is told of it, and makes its record."""
        return Answer(answer.decisions, answer.revision, self._observer.decided(question, answer.decisions, how))

    def decide_by_owner(self, question: Evaluations) -> list[Decision | EngineError]:
        """As ``decide``, but a team whose rules fail costs only its own resources: each of them gets the error.

        Raises an ``EngineError`` if nothing can be decided about anybody's.
        """
        try:
            return list(self.decide(question).decisions)
        except (PolicyBrokenError, DeadlineExceededError) as error:
            # If it fails without any team, asking about each would only take the time of each.
            if not _several(question) or self._without_teams(question) is not None:
                raise
            whole = error
        answers = dict[Resource, Decision | EngineError]()
        late = 0
        for resources in _by_team(question).values():
            try:
                found = self.decide(msgspec.structs.replace(question, resources=resources)).decisions
                answers |= zip(resources, found, strict=True)
            except EngineError as error:
                answers |= dict.fromkeys(resources, error)
                late += isinstance(error, DeadlineExceededError)
            if late > _MOST_LATE:
                # It is the engine that is slow. The rest gets the error of the whole question.
                break
        if all(isinstance(answer, EngineError) for answer in answers.values()):
            raise whole
        return [answers.get(resource, whole) for resource in question.resources]

    def refuse(self, question: Evaluations, reason: str) -> str:
        """Tell the observer of what a door refuses without asking, as nobody can say what to ask; the record's id."""
        refused = [Decision(False, (reason,), "default")] * len(question.resources)
        return self._observer.decided(question, refused, Provenance("", 0, by_policy=False))

    def _decide_parts(self, question: Evaluations) -> tuple[list[Decision], str, bool]:
        decisions: list[Decision] = []
        kept_all, revision = True, ""
        for part in _chunks(question):
            answered, revision, kept = self._ask("decisions", self._read_decisions, part)
            decisions += answered
            kept_all &= kept
        return decisions, revision, kept_all

    def allowed(self, question: Evaluations, aside: bool = False) -> list[Resource]:
        """The resources that are allowed, in order, without reasons: for lists.

        A team whose rules fail, or take more than its share of a list, does not take the others' lists along: what it
        owns is left out, of later lists without asking, until its package changes or it answers in time again. If
        nothing else can be decided, the ``EngineError`` is raised. ``aside`` as with ``decide``.
        """
        began = time.perf_counter_ns()
        heard = self._heard.ids = []
        try:
            allowed, revision, kept = self._allowed_by_kind(question) or self._allowed_parts(question)
        except EngineError as error:
            error.decision_id = self._observer.failed(question, error, time.perf_counter_ns() - began)
            raise
        if not aside:
            self._observer.listed(question, allowed, Provenance(revision, time.perf_counter_ns() - began, heard, kept))
        return allowed

    def _allowed_by_kind(self, question: Evaluations) -> _Listed | None:
        """The list, asked once for each kind of resource; ``None`` if the policy looks at each."""
        policy = self._kept()
        kinds = by_kind(question.resources, policy.is_alike) if policy is not None else None
        if kinds is None:
            return None
        listed = self._allowed_parts(msgspec.structs.replace(question, resources=kinds.firsts))
        # Only that policy decides by these kinds. Another may have replaced it meanwhile.
        if self._kept() is not policy:
            return None
        return listed._replace(allowed=kinds.of_all(question.resources, listed.allowed))

    def _allowed_parts(self, question: Evaluations) -> _Listed:
        allowed: list[Resource] = []
        kept_all, revision = True, ""
        for part in _chunks(question):
            answered, revision, kept = self._allowed(part)
            allowed += answered
            kept_all &= kept
        return _Listed(allowed, revision, kept_all)

    def _allowed(self, question: Evaluations) -> _Listed:
        held = self._left_out.among(_owners(question)) if self._left_out else set()
        if not held:
            return self._allowed_together(question)
        rest = [resource for resource in question.resources if resource.team_id not in held]
        if not rest:
            # A question about those alone costs nobody else.
            return self._allowed_together(question)
        others, revision, kept = self._allowed_together(msgspec.structs.replace(question, resources=rest))
        allowed = {*others, *self._allowed_again(question, held, revision)}
        return _Listed([resource for resource in question.resources if resource in allowed], revision, kept)

    def _allowed_together(self, question: Evaluations) -> _Listed:
        try:
            return self._ask_allowed(question, self._pace if _several(question) else None)
        except (PolicyBrokenError, DeadlineExceededError) as error:
            return self._allowed_alone(question, error)

    def _ask_allowed(self, question: Evaluations, pace: float | None = None) -> _Listed:
        chosen, revision, kept = self._ask("allowed", self._read_allowed, question, pace)
        return _Listed(list(compress(question.resources, zlib.decompress(chosen))), revision, kept)

    def _allowed_alone(self, question: Evaluations, whole: EngineError) -> _Listed:
        """Asks about each team on its own, and raises the error about the whole if that is of no use."""
        by_team = _by_team(question)
        allowed: set[Resource] = set()
        failing: dict[str | None, EngineError] = {}
        late, revision = 0, ""
        # It is the engine that is slow, or all of the policy: asking about each team would take the time of each.
        trouble = self._without_teams(question) if _several(question) or isinstance(whole, TooLongError) else None
        useless = not _several(question) or trouble is not None
        whole = _blamed(whole, question, trouble)
        for team_id, resources in by_team.items() if not useless else ():
            part = msgspec.structs.replace(question, resources=resources)
            try:
                answer, revision, _ = self._ask_allowed(part, _SHARE)
                allowed.update(answer)
            except (PolicyBrokenError, DeadlineExceededError) as error:
                late += isinstance(error, DeadlineExceededError)
                if isinstance(error, DeadlineExceededError) and self._without_teams(question):
                    useless = True
                    break
                failing[team_id] = error
                if late > _MOST_LATE:
                    break
        if useless or len(failing) == len(by_team):
            self._outages.failed(whole, by_team.keys(), isinstance(whole, PolicyBrokenError) and not _several(question))
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
        return _Listed([resource for resource in question.resources if resource in allowed], revision, kept=False)

    def _allowed_again(self, question: Evaluations, held: set[str], revision: str) -> list[Resource]:
        """Allowed resources of one team that lists have left out, if it is time to ask again."""
        team_id = self._left_out.to_be_asked(held, revision)
        if team_id is None:
            return []
        own = [resource for resource in question.resources if resource.team_id == team_id]
        part = msgspec.structs.replace(question, resources=own)
        try:
            allowed = self._ask_allowed(part, _SHARE).allowed
        except (PolicyBrokenError, DeadlineExceededError) as error:
            self._left_out.hold(team_id, revision, error)
            return []
        self._left_out.release(team_id)
        return allowed

    def _without_teams(self, question: Evaluations) -> EngineError | None:
        """The error of the same question about a common resource, for which no team's package is asked."""
        nobodys = [msgspec.structs.replace(resource, team_id=_NOBODY) for resource in question.resources[:1]]
        try:
            self._ask_allowed(msgspec.structs.replace(question, resources=nobodys))
        except EngineError as error:
            return error
        return None

    def _ask(
        self,
        entrypoint: str,
        read: _Read[T],
        question: Evaluations,
        pace: float | None = None,
    ) -> tuple[T, str, bool]:
        """The result of ``read`` for the engine's answer, the revision, and whether the cache had the answer."""
        try:
            self._check()
        except EngineError as not_asked:
            self._outages.failed(not_asked, ())
            raise
        kept = self._kept()
        place, encoded = None, b""
        try:
            if kept is not None:
                place, encoded = self._key(entrypoint, question)
                if (known := kept.get(place)) is not None:
                    if self._outages:
                        self._answered(question)
                    return known, kept.revision, True
            encoded = encoded or self._encode(question)
        except UnicodeEncodeError:
            # Half a surrogate pair: no JSON can hold it. Not the engine's fault, so no outage.
            raise MalformedError("the question holds text that is not Unicode") from None
        try:
            reply = self._engine.query(entrypoint, encoded, len(question.resources), len(_owners(question)), pace)
            answer = read(reply.value, question)
            if reply.record_id:
                self._heard.ids.append(reply.record_id)
        except EngineError as engine_error:
            error = engine_error
            if entrypoint == "decisions" and isinstance(error, TooLongError):
                error = _blamed(error, question, self._without_teams(question))
            # Whether a team's rules are slow or the engine is, is not known before each is asked about.
            if not (entrypoint == "allowed" and isinstance(error, DeadlineExceededError | PolicyBrokenError)):
                self._outages.failed(error, _owners(question), isinstance(error, PolicyBrokenError))
            raise error from None
        except NOT_JSON as error:
            malformed = MalformedError(f"the engine's answer is not of the agreed form: {error}")
            self._outages.failed(malformed, _owners(question))
            raise malformed from None
        if self._outages:
            self._answered(question)
        if reply.kept is not None and place is not None:
            # Where it belongs: the policy may be another one than a moment ago.
            who = question.subject.type, question.subject.id
            reply.kept.keep(place, answer, _size(answer, reply.value), who)
        return answer, reply.revision, False

    def _key(self, entrypoint: str, question: Evaluations) -> tuple[Key, bytes]:
        """The cache key of a question, and the question as JSON if the key took that."""
        resources = question.resources
        if isinstance(resources, Resources):
            rest = self._encode(msgspec.structs.replace(question, resources=()))
            return key(entrypoint, rest, resources.digest()), b""
        encoded = self._encode(question)
        return key(entrypoint, encoded), encoded

    def _answered(self, question: Evaluations) -> None:
        owners = _owners(question)
        if owners and owners != {_NOBODY}:
            self._outages.answered(owners)

    def _read_standing(self, value: Value, *_: object) -> bytes:
        self._decode_standing(value)
        return bytes(value)

    def _read_decisions(self, value: Value, question: Evaluations) -> tuple[Decision, ...]:
        decisions = self._decode_decisions(value)
        if len(decisions) != len(question.resources):
            raise MalformedError(f"the engine answered {len(decisions)} of {len(question.resources)} questions")
        return decisions

    def _read_allowed(self, value: Value, question: Evaluations) -> bytes:
        """A byte for each resource, 1 if it is allowed. Compressed, since it is kept, and most of them are alike."""
        asked = len(question.resources)
        indices = self._decode_indices(value)
        if any(not 0 <= index < asked for index in indices) or len(set(indices)) != len(indices):
            raise MalformedError("the engine allows resources that it was not asked about")
        chosen = bytearray(asked)
        for index in indices:
            chosen[index] = 1
        return zlib.compress(chosen, level=1)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def _blamed(error: EngineError, question: Evaluations, without_teams: EngineError | None) -> EngineError:
    """An exhausted allowance, with whose rules exhaust it. ``without_teams``: what is wrong if no team's are asked."""
    owners = _owners(question)
    if not isinstance(error, TooLongError):
        return error
    if owners == {None} or isinstance(without_teams, TooLongError):
        return PlatformTooLongError(
            f"{error}; without the package of any team, too: look at the rules in airflow/site, "
            "and at how much airflow/directory says of one person"
        )
    if len(owners) == 1 and without_teams is None:
        return TooLongError(f"{error}; without the package of team {next(iter(owners))} it comes to an end")
    return error


def _size(answer: object, value: Value) -> int:
    return len(answer) if isinstance(answer, bytes) else _DECISION_BYTES * memoryview(value).nbytes


def _nothing() -> None:
    """For an engine that keeps no answers, or answers each question or fails to."""


def _owners(question: Evaluations) -> Set[str | None]:
    resources = question.resources
    return resources.owners() if isinstance(resources, Resources) else {resource.team_id for resource in resources}


def _by_team(question: Evaluations) -> dict[str | None, list[Resource]]:
    """The resources of each owner."""
    by_team: dict[str | None, list[Resource]] = defaultdict(list)
    for resource in question.resources:
        by_team[resource.team_id].append(resource)
    return by_team


def _several(question: Evaluations) -> bool:
    return len(_owners(question)) > 1


def _chunks(question: Evaluations) -> Iterator[Evaluations]:
    resources: Sequence[Resource] = question.resources
    if len(resources) <= CHUNK:
        yield question
        return
    if isinstance(resources, Resources):
        for part in resources.parts(CHUNK):
            yield msgspec.structs.replace(question, resources=part)
        return
    for start in range(0, len(resources), CHUNK):
        yield msgspec.structs.replace(question, resources=resources[start : start + CHUNK])
