"""Who answers: one interface over the engines, and the only place where an answer is read."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from airflow_team_authz.model import Decision, EngineError, Evaluations, Malformed, PolicyBroken, Resource

log = logging.getLogger(__name__)

# Above this a list is asked in parts: it bounds the memory of a question in process, and its size on the wire.
CHUNK = 5_000

T_co = TypeVar("T_co", covariant=True)


class Reply(NamedTuple):
    """What an engine says: the JSON of the entrypoint's value, and the revision of the policy that said it."""

    value: bytes | msgspec.Raw
    revision: str


class Engine(Protocol):
    """Something that evaluates the policy. Thread-safe; usable in a forked child."""

    def query(self, entrypoint: str, question: bytes, size: int) -> Reply:
        """Value of ``data.airflow.authz.<entrypoint>`` for a JSON input about ``size`` resources.

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
        self._failing = False

    def decide(self, question: Evaluations) -> Answer:
        """Decision and reasons for each resource. All or an ``EngineError``, never a part."""
        decisions: list[Decision] = []
        revision = ""
        for part in _chunks(question):
            reply = self._query("decisions", part)
            answered = self._read(self._decode_decisions, reply)
            if len(answered) != len(part.resources):
                raise self._fail(
                    Malformed(f"asked about {len(part.resources)} resources, the engine answered about {len(answered)}")
                )
            decisions += answered
            revision = reply.revision
        return Answer(decisions, revision)

    def allowed(self, question: Evaluations) -> list[Resource]:
        """The resources that are allowed, in order, without reasons: for lists.

        A team whose rules fail does not take the others' lists along: its resources are left out and
        the failure is logged. If nothing else can be decided, the ``EngineError`` is raised.
        """
        return [resource for part in _chunks(question) for resource in self._allowed(part)]

    def _allowed(self, question: Evaluations) -> list[Resource]:
        try:
            return self._ask_allowed(question)
        except PolicyBroken as error:
            by_team: dict[str | None, list[Resource]] = defaultdict(list)
            for resource in question.resources:
                by_team[resource.team_id].append(resource)
            if len(by_team) == 1:
                raise
            broken = error
        allowed: set[Resource] = set()
        failed = 0
        for team_id, resources in by_team.items():
            try:
                allowed.update(self._ask_allowed(msgspec.structs.replace(question, resources=resources)))
            except PolicyBroken as error:
                failed += 1
                log.error("left what team %s owns out of a list, because its policy fails: %s", team_id, error)
        if failed == len(by_team):
            raise broken
        return [resource for resource in question.resources if resource in allowed]

    def _ask_allowed(self, question: Evaluations) -> list[Resource]:
        indices = self._read(self._decode_indices, self._query("allowed", question))
        if any(not 0 <= index < len(question.resources) for index in indices) or len(set(indices)) != len(indices):
            raise self._fail(Malformed("the engine allows resources that it was not asked about"))
        return [question.resources[index] for index in indices]

    def _query(self, entrypoint: str, question: Evaluations) -> Reply:
        try:
            reply = self._engine.query(entrypoint, self._encode(question), len(question.resources))
        except EngineError as error:
            raise self._fail(error) from None
        if self._failing:
            self._failing = False
            log.warning("decisions can be had again, from policy revision %s", reply.revision or "(unnamed)")
        return reply

    def _read(self, decode: Decode[T_co], reply: Reply) -> T_co:
        try:
            return decode(reply.value)
        except msgspec.DecodeError as error:
            raise self._fail(Malformed(f"the engine's answer is not of the agreed form: {error}")) from None

    def _fail(self, error: EngineError) -> EngineError:
        """Log a change of state, not every request."""
        if not self._failing:
            self._failing = True
            log.error("no decision can be had (%s), requests are answered 503: %s", type(error).__name__, error)
        return error

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class Decode(Protocol[T_co]):
    """A decoder of an engine's value."""

    def __call__(self, value: bytes | msgspec.Raw, /) -> T_co: ...


def _chunks(question: Evaluations) -> Iterator[Evaluations]:
    resources: Sequence[Resource] = question.resources
    if len(resources) <= CHUNK:
        yield question
        return
    for start in range(0, len(resources), CHUNK):
        yield msgspec.structs.replace(question, resources=resources[start : start + CHUNK])
