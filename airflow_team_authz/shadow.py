"""The shadow: a candidate policy answers the same questions after the policy in force, and the decision log gets the
differences.

The request only puts its question into a queue. A thread asks the candidate, so neither its answers nor its errors nor
its time reach the request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec.structs import replace

from airflow_team_authz import forks
from airflow_team_authz.decision_log import DecisionLog, origin
from airflow_team_authz.decision_log.bursts import Bursts
from airflow_team_authz.decision_log.levels import is_taken
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.record import MOST_RESOURCES, Beside, Entry, Gap, Listed, Lost, new_id
from airflow_team_authz.decision_log.writer import Waiting, Writer
from airflow_team_authz.engines import DecisionPoint, Observer
from airflow_team_authz.escaping import logger
from airflow_team_authz.model import Decision, EngineError, Evaluations, PolicyBrokenError, Provenance, Resource

log = logger(__name__)

# How many questions may wait, and how many resources and names of subjects in all of them. More are not asked,
# but counted.
MOST_QUESTIONS = 5_000
MOST_RESOURCES_WAITING = 200_000
# How soon a candidate is loaded again that could not be loaded.
_AGAIN_SECONDS = 30.0


class Question(NamedTuple):
    """A question with its answer: decisions, or what a list allows. ``at`` is Unix time in nanoseconds."""

    at: int
    origin: Origin
    asked: Evaluations
    decisions: Sequence[Decision | Listed] | None
    allowed: Sequence[Resource]
    revision: str
    decision_id: str = ""
    # Of several, one at least was refused: nobody knows which.
    is_together: bool = False

    @property
    def size(self) -> int:
        """How many resources wait with it."""
        return len(self.asked.resources)


class Sized(Waiting, Protocol):
    """What waits, with a number of resources."""

    @property
    def size(self) -> int:
        """How many resources wait with it."""


def _weight(waiting: Sized) -> int:
    """What it takes of the room. A person may be in thousands of groups, and each request has names of its own."""
    if not isinstance(waiting, Question):
        return waiting.size
    subject = waiting.asked.subject
    claims = (subject.claims or {}).values()
    return waiting.size + sum(len(names or ()) for names in (subject.team_ids, subject.roles, subject.groups, *claims))


class _Room:
    """How many resources and names may still wait. Thread-safe."""

    def __init__(self) -> None:
        self._begin_anew()
        forks.after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock, self._taken = threading.Lock(), 0

    def take(self, count: int) -> bool:
        """Whether there was room for so many more."""
        with self._lock:
            if self._taken + count > MOST_RESOURCES_WAITING:
                return False
            self._taken += count
            return True

    def give(self, count: int) -> None:
        """So many wait no longer."""
        with self._lock:
            self._taken = max(0, self._taken - count)


class Candidate:
    """Asks a policy what others have been asked, and has the differences recorded. The sink of a ``Writer``."""

    name, setting = "the shadow policy", "shadow"

    def __init__(
        self,
        decision_log: DecisionLog,
        open_policy: Callable[[], DecisionPoint],
        count: Callable[[str, int], None],
        share: float = 1.0,
        outcome: str = "shadow",
    ) -> None:
        """``count`` is told how many answers were the ``same``, or which difference they make. ``outcome``: see
        ``record.Beside``.
        """
        self._log, self._open, self._count = decision_log, open_policy, count
        self._share, self._outcome = share, outcome
        self.room = _Room()
        self._differing = Bursts()
        self._point: DecisionPoint | None = None
        self._broken: EngineError | None = None
        self._again_at = 0.0

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``; never raises, since a question is asked once."""
        for record in records:
            if "gap" in record:
                self._tell(record["gap"])
                continue
            waiting = record["question"]
            try:
                self._ask_each(list(self.questions(waiting)))
            except Exception:
                log.exception("a question could not be asked of %s", self.name)
                self._count("fails", 1)
            finally:
                self.room.give(_weight(waiting))
        return 0

    def questions(self, waiting: Any) -> Iterator[Question]:
        """The questions of what has waited."""
        yield waiting

    def differences(self, point: DecisionPoint, question: Question) -> Iterator[Difference]:
        """Where the policy has another answer. An ``EngineError`` if it has none."""
        yield from _differences(point, question)

    def _ask_each(self, questions: Sequence[Question]) -> None:
        if questions and questions[0].is_together and (point := self._opened()) is not None:
            # The same as refusing all of them, unless all are allowed.
            try:
                if not all(_allows_all(point, question) for question in questions):
                    self._count("same", sum(question.size for question in questions))
                    return
            except EngineError:
                # Told by the first question that fails, below.
                pass
        for question in questions:
            self._ask(question)

    def begin_anew(self) -> None:
        """See ``writer.Sink``. An engine that is open takes care of itself."""
        self._again_at = 0.0

    def end_bursts(self, at_once: bool = False) -> None:
        """Have repetitions recorded of differences that do not come again."""
        for entry, repeated in self._differing.over(at_once):
            self._log.record(entry._replace(id=new_id(), at=int(repeated.until * 1e9), repeated=repeated))

    def close(self) -> None:
        """Close the policy, if it was opened."""
        if self._point is not None:
            self._point.close()

    def _tell(self, gap: Gap) -> None:
        self._count("lost", gap.lost)
        self._log.record(Lost(gap.until, gap, self.name))

    def _ask(self, question: Question) -> None:
        point = self._opened()
        began = time.perf_counter_ns()
        try:
            if point is None:
                raise self._broken or PolicyBrokenError(f"{self.name} is not loaded")
            found = list(self.differences(point, question))
        except EngineError as error:
            beside = Beside(None, error, "", question.decision_id, len(question.asked.resources) - 1, self._outcome)
            first = question.asked.resources[0]
            old = question.decisions[0] if question.decisions else Listed(first in question.allowed)
            entry = self._entry(question, first, old, began, beside)
            # Without a policy each question fails for the same reason: one record has their number.
            self._record((type(error), *(() if point is None else _about(entry))), entry)
            self._count("fails", len(question.asked.resources))
            return
        self._count("same", len(question.asked.resources) - sum(1 + one.more for one in found))
        for one in found:
            beside = Beside(one.new, None, one.revision, question.decision_id, one.more, self._outcome)
            entry = self._entry(question, one.resource, one.old, began, beside)
            direction = beside.direction(one.old.allow is True)
            self._record((direction, question.revision, one.revision, *_about(entry)), entry)
            self._count(direction, 1 + one.more)

    def _entry(
        self, question: Question, resource: Resource, old: Decision | Listed, began: int, beside: Beside
    ) -> Entry:
        taken = time.perf_counter_ns() - began
        return Entry(
            new_id(), question.at, taken, question.origin, replace(question.asked, resources=()), question.revision,
            1, int(old.allow is True), [resource], [old], share=self._share, beside=beside,
        )  # fmt: skip

    def _record(self, about: tuple[Any, ...], entry: Entry) -> None:
        if not self._differing.again(about) and not self._differing.begin(about, entry):
            self._log.record(entry)

    def _opened(self) -> DecisionPoint | None:
        if self._point is None and time.monotonic() >= self._again_at:
            try:
                with forks.whole():
                    self._point = self._open()
                log.info("%s is loaded, and is asked what the policy in force is asked", self.name)
            except Exception as error:
                self._again_at = time.monotonic() + _AGAIN_SECONDS
                told = error if isinstance(error, EngineError) else PolicyBrokenError(repr(error))
                if str(told) != str(self._broken):
                    log.error("%s cannot be loaded, so it is not asked: %s", self.name, told)
                self._broken = told
        return self._point


class Difference(NamedTuple):
    """A resource about which a candidate decides otherwise, and how many more of the list are like it."""

    resource: Resource
    old: Decision | Listed
    new: Decision
    revision: str
    more: int = 0


def _allows_all(point: DecisionPoint, question: Question) -> bool:
    return all(one.allow is True for one in point.decide(question.asked, aside=True).decisions)


def _differences(point: DecisionPoint, question: Question) -> Iterator[Difference]:
    """Ask the candidate. An ``EngineError`` if it has no answer."""
    asked = question.asked
    if question.decisions is not None:
        answer = point.decide(asked, aside=True)
        for resource, old, new in zip(asked.resources, question.decisions, answer.decisions, strict=True):
            if (new.allow is True) is not (old.allow is True):
                yield Difference(resource, old, new, answer.revision)
        return
    before, after = set(question.allowed), set(point.allowed(asked, aside=True))
    for was, differing in ((False, after - before), (True, before - after)):
        # In the order of the question, so that the same list has the same records.
        every = [resource for resource in dict.fromkeys(asked.resources) if resource in differing]
        first = every[:MOST_RESOURCES]
        if not first:
            continue
        answer = point.decide(replace(asked, resources=first), aside=True)
        # A list leaves out a team whose rules fail; a policy may have been replaced between the two questions.
        changed = [
            (resource, new) for resource, new in zip(first, answer.decisions, strict=True)
            if (new.allow is True) is not was
        ]  # fmt: skip
        for number, (resource, new) in enumerate(changed):
            more = len(every) - len(first) if number == 0 else 0
            yield Difference(resource, Listed(was), new, answer.revision, more)


def _about(entry: Entry) -> tuple[Any, ...]:
    subject, (resource,) = entry.question.subject, entry.resources
    owned = resource.type, resource.id, resource.entity, resource.team_id
    return (subject.type, subject.id, entry.question.action, *owned)


class _Asis:
    """The form of what waits for the candidate: what it is."""

    def record(self, entry: Sized) -> dict[str, Any]:
        return {"question": entry}

    def gap(self, gap: Gap, sink: str) -> dict[str, Any]:  # noqa: ARG002 - there is one
        return {"gap": gap}


class Queue:
    """Questions that wait for a candidate, and the thread that asks it. Never waits, never raises."""

    def __init__(self, candidate: Candidate, share: float = 1.0) -> None:
        """``share`` of the questions is asked, at random."""
        self._candidate, self._share = candidate, share
        self.writer = Writer(candidate, _Asis(), candidate.end_bursts, MOST_QUESTIONS, is_source=True)

    def offer(
        self,
        question: Evaluations,
        decisions: Sequence[Decision | Listed] | None,
        allowed: Sequence[Resource],
        revision: str,
        decision_id: str = "",
    ) -> None:
        """Have a question asked of the candidate."""
        try:
            if question.resources and self.takes():
                here = origin.current()
                self.put(Question(time.time_ns(), here, question, decisions, allowed, revision, decision_id))
        except Exception:
            log.exception("a question could not be asked of %s", self._candidate.name)

    def takes(self) -> bool:
        """Whether the next question is among the share that is asked."""
        return is_taken(self._share)

    def put(self, waiting: Sized) -> None:
        """Have something wait, or counted if there is no room."""
        if not self._candidate.room.take(_weight(waiting)):
            self.writer.refuse(waiting.at)
        elif not self.writer.offer(waiting):
            self._candidate.room.give(_weight(waiting))

    def flush(self) -> None:
        """Have asked what waits, as far as that takes no more than a moment."""
        self.writer.flush()
        self._candidate.end_bursts(at_once=True)

    def close(self) -> None:
        """Have asked what waits, as far as that takes no more than a moment, and stop."""
        self.writer.close()
        self._candidate.end_bursts(at_once=True)
        self._candidate.close()


class Shadow:
    """An observer of the decision point, in front of another one. It neither waits nor raises."""

    def __init__(self, observer: Observer, queue: Queue) -> None:
        self._observer, self._queue = observer, queue

    def decided(self, question: Evaluations, decisions: Sequence[Decision], how: Provenance) -> str:
        """See ``engines.Observer``."""
        id_ = self._observer.decided(question, decisions, how)
        if how.by_policy:
            self._queue.offer(question, decisions, (), how.revision, id_)
        return id_

    def listed(self, question: Evaluations, allowed: Sequence[Resource], how: Provenance) -> None:
        """See ``engines.Observer``."""
        self._observer.listed(question, allowed, how)
        self._queue.offer(question, None, allowed, how.revision)

    def failed(self, question: Evaluations, error: EngineError, nanoseconds: int) -> str:
        """See ``engines.Observer``. Without an answer in force there is nothing to compare."""
        return self._observer.failed(question, error, nanoseconds)
