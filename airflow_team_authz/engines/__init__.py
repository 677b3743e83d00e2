"""Who answers: one interface over the engines, and the only place where an answer is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from airflow_team_authz.engines.outages import Outages
from airflow_team_authz.model import (
    DeadlineExceeded,
    Decision,
    EngineError,
    Evaluations,
    Malformed,
    PolicyBroken,
    Resource,
    Standing,
    Subject,
)

# Above this a list is asked in parts: it bounds the memory of a question in process, and its size on the wire.
CHUNK = 5_000
# What reading a text as JSON of an agreed form may raise.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")
Value = bytes | msgspec.Raw


class Reply(NamedTuple):
    """What an engine says: the JSON of the entrypoint's value, and the revision of the policy that said it."""

    value: Value
    revision: str


class Engine(Protocol):
    """Something that evaluates the policy. Thread-safe; usable in a forked child."""

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1) -> Reply:
        """Value of ``data.airflow.authz.<entrypoint>`` for a JSON input about ``size`` resources of so many owners.

        Raises an ``EngineError``, and nothing else, if there is none.
        """

    def close(self) -> None:
        """Give back threads, files and connections."""


class Answer(NamedTuple):
    """Decisions in the order of the resources, and the policy revision that made them."""

    decisions: list[Decision]
    revision: str


class DecisionPoint:
    """The policy decision point (PDP) as the rest of the package sees it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._encode = msgspec.json.Encoder().encode
        # strict: a bool is a bool. "yes", 1 and null are no decisions.
        self._decode_decisions = msgspec.json.Decoder(list[Decision], strict=True).decode
        self._decode_indices = msgspec.json.Decoder(list[int], strict=True).decode
        self._decode_standing = msgspec.json.Decoder(Standing, strict=True).decode
        self._outages = Outages()

    def whoami(self, subject: Subject) -> tuple[Standing, str]:
        """Who the subject is to the policy, and the policy's revision. For people who ask, not for decisions."""
        return self._ask("whoami", lambda value, _: self._decode_standing(value), Evaluations(subject, "list", []))

    def decide(self, question: Evaluations) -> Answer:
        """Decision and reasons for each resource. All or an ``EngineError``, never a part."""
        decisions: list[Decision] = []
        revision = ""
        for part in _chunks(question):
            answered, revision = self._ask("decisions", self._read_decisions, part)
            decisions += answered
        return Answer(decisions, revision)

    def allowed(self, question: Evaluations) -> list[Resource]:
        """The resources that are allowed, in order, without reasons: for lists.

        A team whose rules fail, or take too long, does not take the others' lists along: its resources are left out
        and the failure is logged. If nothing else can be decided, or more are late, the ``EngineError`` is raised.
        """
        return [resource for part in _chunks(question) for resource in self._allowed(part)]

    def _allowed(self, question: Evaluations) -> list[Resource]:
        try:
            return self._ask_allowed(question)
        except (PolicyBroken, DeadlineExceeded) as error:
            return self._allowed_of_others(question, error)

    def _allowed_of_others(self, question: Evaluations, whole: EngineError) -> list[Resource]:
        """Asks about each team on its own, and raises the error about the whole if that is of no use."""
        by_team: dict[str | None, list[Resource]] = defaultdict(list)
        for resource in question.resources:
            by_team[resource.team_id].append(resource)
        allowed: set[Resource] = set()
        broken = 0
        late: dict[str | None, EngineError] = {}
        for team_id, resources in by_team.items() if len(by_team) > 1 else ():
            try:
                allowed.update(self._ask_allowed(msgspec.structs.replace(question, resources=resources)))
            except PolicyBroken:
                broken += 1
            except DeadlineExceeded as error:
                late[team_id] = error
                if len(late) > 1:
                    # It is the engine that is slow, and asking about each team would take the time of each.
                    break
        if len(by_team) == 1 or len(late) > 1 or broken + len(late) == len(by_team):
            if late or isinstance(whole, DeadlineExceeded):
                self._outages.failed(whole, by_team.keys())
            raise whole
        for team_id, slow in late.items():
            self._outages.failed(slow, {team_id}, of_rules=True)
        return [resource for resource in question.resources if resource in allowed]

    def _ask_allowed(self, question: Evaluations) -> list[Resource]:
        return self._ask("allowed", self._read_allowed, question)[0]

    def _ask(self, entrypoint: str, read: Callable[[Value, Evaluations], T], question: Evaluations) -> tuple[T, str]:
        try:
            encoded = self._encode(question)
        except UnicodeEncodeError:
            # Half a surrogate pair: no JSON can hold it. Not the engine's fault, so no outage.
            raise Malformed("the question holds text that is not Unicode") from None
        try:
            reply = self._engine.query(entrypoint, encoded, len(question.resources), len(_owners(question)))
            answer = read(reply.value, question)
        except EngineError as error:
            # Whether a team's rules are slow or the engine is, is not known before each is asked about.
            if not (entrypoint == "allowed" and isinstance(error, DeadlineExceeded)):
                self._outages.failed(error, _owners(question), isinstance(error, PolicyBroken))
            raise
        except NOT_JSON as error:
            malformed = Malformed(f"the engine's answer is not of the agreed form: {error}")
            self._outages.failed(malformed, _owners(question))
            raise malformed from None
        if self._outages:
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


def _owners(question: Evaluations) -> set[str | None]:
    return {resource.team_id for resource in question.resources}


def _chunks(question: Evaluations) -> Iterator[Evaluations]:
    resources: Sequence[Resource] = question.resources
    if len(resources) <= CHUNK:
        yield question
        return
    for start in range(0, len(resources), CHUNK):
        yield msgspec.structs.replace(question, resources=resources[start : start + CHUNK])
