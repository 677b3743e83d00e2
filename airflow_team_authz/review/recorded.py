"""Recorded decisions as differences: what another policy has answered beside the one in force, or answers now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import UNSET, UnsetType

from airflow_team_authz.decision_log.reading import BESIDE, Record
from airflow_team_authz.decision_log.record import HIDDEN
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.model import Context, Decision, Layer, Resource, Subject
from airflow_team_authz.review import Asked, NotDecidedError, Who, allowed, decided, kind_of
from airflow_team_authz.review.changes import MOST_DECIDED, Difference, Found, Seen, grouped

_MOST_NAMED = 4
# People of one difference that are told; of more, nobody reads the names.
_MOST_PEOPLE = 1_000
# What a record calls one may be any text.
_LAYERS: Mapping[object, Layer] = {layer: layer for layer in get_args(Layer)}


class LogDifferences(NamedTuple):
    """What recorded decisions show, and what they do not.

    ``left_out`` counts records by the reason for which their questions are not compared. ``failed`` has one message of
    each error, with the number of its questions. ``policies`` are the revisions that were in force, ``candidates``
    those beside them, in the order of their records. ``since`` and ``until`` are the times of the first and the last.
    """

    found: Found
    left_out: dict[str, int]
    failed: dict[str, int]
    policies: tuple[str, ...]
    candidates: tuple[str, ...]
    since: str
    until: str


class _Reading:
    """Differences so far, with little memory for each of them."""

    def __init__(self, by_person: bool = False) -> None:
        self._who = person if by_person else people
        self.questions = 0
        self.left_out: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.policies: dict[str, None] = {}
        self.candidates: dict[str, None] = {}
        self._since = self._until = ""
        self._kept: dict[Any, tuple[Difference, dict[str, None]]] = {}
        self._more: dict[tuple[str, str, str | None], int] = defaultdict(int)

    def begin(self, record: Record) -> None:
        """Note when the record was made, and by which policy."""
        moment = str(record.get("timestamp", ""))
        self._since = min(self._since or moment, moment)
        self._until = max(self._until, moment)
        if revision := _revision(record):
            self.policies[revision] = None

    def add(self, question: Question, resource: Resource, old: Decision, new: Decision, times: int) -> None:
        """Note a difference."""
        who = self._who(question.subject)
        asked = Asked(who, question.action, [resource], question.context)
        one = Difference(asked, resource, old, new)
        about = (who, question.action, _hashable(question.context), resource, one.gained, one.said)
        if (known := self._kept.get(about)) is None:
            if len(self._kept) >= MOST_DECIDED:
                self._more["gained" if one.gained else "lost", kind_of(resource), resource.team_id] += times
                return
            seen = Seen(0, (), question.decision_id, question.subject)
            known = (one._replace(seen=seen), {})
        before, names = known
        assert before.seen is not None  # noqa: S101
        if len(names) < _MOST_PEOPLE:
            names[question.subject.id] = None
        self._kept[about] = before._replace(seen=before.seen._replace(times=before.seen.times + times)), names

    def log(self, roles: Collection[str] = ()) -> LogDifferences:
        """All of it."""
        differences = [
            one._replace(seen=one.seen._replace(people=tuple(names)))
            for one, names in self._kept.values() if one.seen is not None
        ]  # fmt: skip
        different = sum(one.seen.times for one in differences if one.seen is not None) + sum(self._more.values())
        found = Found(grouped(differences, roles), self.questions, different, dict(self._more))
        left_out = {why: count for why, count in sorted(self.left_out.items()) if count}
        return LogDifferences(
            found, left_out, dict(sorted(self.failed.items())), tuple(self.policies), tuple(self.candidates),
            self._since, self._until,
        )  # fmt: skip


class Question(NamedTuple):
    """The question of a record."""

    subject: Subject
    action: str
    context: Context | UnsetType
    decision_id: str


def beside(records: Iterable[Record], outcome: str, by_person: bool = False) -> LogDifferences:
    """The differences that a policy has made beside the one in force: records of ``outcome``, and gaps."""
    reading = _Reading(by_person)
    for record in records:
        custom = _part(record, "custom")
        if custom.get("outcome") == "gap":
            reading.left_out[_GAP] += _count(custom.get("lost"))
        if custom.get("outcome") != outcome:
            continue
        reading.begin(record)
        candidate = _part(custom, "candidate")
        times = _times(custom) * (1 + _count(candidate.get("more")))
        if not times:
            reading.left_out[_OTHER_FORM] += 1
            continue
        reading.questions += times
        if revision := candidate.get("revision"):
            reading.candidates[str(revision)] = None
        try:
            if candidate.get("error"):
                reading.failed[str(candidate["error"]["message"])] += times
                continue
            question, (resource,) = _question(record)
            old, new = _decision(record["result"]), _decision(candidate["result"])
        except _OTHER:
            reading.left_out[_MASKED if record.get("erased") else _OTHER_FORM] += times
            continue
        reading.add(question, resource, old, new, times)
    return reading.log()


def replay(
    point: DecisionPoint,
    records: Iterable[Record],
    roles: Collection[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> LogDifferences:
    """Ask a policy what was asked before, as far as the records have the questions and the answers."""
    reading = _Reading()
    for record in records:
        custom = _part(record, "custom")
        if str(custom.get("outcome")) in BESIDE:
            continue
        if custom.get("outcome") == "gap":
            reading.left_out[_GAP] += _count(custom.get("lost"))
            continue
        reading.begin(record)
        times = _times(custom)
        try:
            why = _unfit(record) if times else _OTHER_FORM
            if not why:
                question, resources = _question(record)
                before = _answers(record, resources)
        except _OTHER:
            why = _OTHER_FORM
        if why:
            reading.left_out[why] += max(1, times)
            continue
        if unseen := _count(custom.get("asked")) - len(before):
            reading.left_out[_MANY] += max(0, unseen) * times
        asked = Asked(people(question.subject), question.action, resources, question.context)
        _ask(point, reading, question, asked, before, times)
        progress(reading.questions)
    return reading.log(roles)


def _ask(
    point: DecisionPoint, reading: _Reading, question: Question, asked: Asked, before: Sequence[Decision], times: int
) -> None:
    # With the real subject: the name stands for many.
    real = asked._replace(who=asked.who._replace(subject=question.subject))
    reading.questions += len(before) * times
    try:
        now = set(allowed(point, real)) if len(before) > 1 else None
        differing = [
            (resource, old) for resource, old in zip(asked.resources, before, strict=True)
            if now is None or (resource in now) is not (old.allow is True)
        ]  # fmt: skip
        after = decided(point, real, [resource for resource, _ in differing])
    except NotDecidedError as error:
        reading.failed[str(error)] += len(before) * times
        return
    for (resource, old), new in zip(differing, after, strict=True):
        if (new.allow is True) is not (old.allow is True):
            reading.add(question, resource, old, new, times)


# What a record holds

NOT_RECORDED = "decisions that the levels of the decision log leave out, such as allowed reads"
_GAP = "decisions that the log has lost"
_MASKED = "decisions whose question is masked"
_SECRET = f"decisions whose question has {HIDDEN} for what looks like a secret"
_OTHER_FORM = "records of another form"
_MANY = "resources of long questions, and allowed ones of lists, that are not in the log"
_ERROR = "questions without an answer, since the engine failed"
_DOOR = "refusals of Airflow's routes about which the policy was not asked"
_NOT_OURS = "records of other questions than those about access"
# What a record of another form, or of another version, raises.
_OTHER = (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError)
_PATHS = {"decision", "decisions", "allowed"}


def _unfit(record: Record) -> str:
    """Why the question of a record, or its answer, is not known; empty if both are. Raises as ``_question``."""
    masked = [str(one) for name in ("erased", "masked") for one in record.get(name) or ()]
    if _entrypoint(record) not in _PATHS:
        return _NOT_OURS
    if any(one.startswith(("/input", "/result/allow")) or one in {"/result", "/custom"} for one in masked):
        return _MASKED
    # Raises ``ValueError`` for half a surrogate pair, which no question can have.
    if HIDDEN in msgspec.json.encode(record.get("input")).decode():
        return _SECRET
    if record.get("error") or _part(record, "custom").get("outcome") == "error":
        return _ERROR
    metrics = _part(record, "metrics")
    if metrics.get("timer_server_handler_ns") == 0 and not record.get("bundles"):
        return _DOOR
    return ""


def _entrypoint(record: Record) -> str:
    package, _, entrypoint = str(record.get("path", "")).replace(".", "/").rpartition("/")
    return entrypoint if package.removeprefix("data/") == "airflow/authz" else ""


def _question(record: Record) -> tuple[Question, list[Resource]]:
    """Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is no question of this version."""
    asked = record["input"]
    told = asked["resources"] if "resources" in asked else [asked["resource"]]
    resources = [msgspec.convert(one, Resource, strict=True) for one in told]
    if any("team_id" not in one for one in told):
        raise ValueError("a resource has no owner")
    subject = msgspec.convert(asked["subject"], Subject, strict=True)
    context = msgspec.convert(asked["context"], Context, strict=True) if "context" in asked else UNSET
    return Question(subject, str(asked["action"]), context, str(record["decision_id"])), resources


def _answers(record: Record, resources: Sequence[Resource]) -> list[Decision]:
    """The answers about each of them."""
    custom = _part(record, "custom")
    if _entrypoint(record) != "allowed":
        said = record["result"]
        decisions = [_decision(one) for one in (said if isinstance(said, list) else [said])]
        if len(decisions) != len(resources):
            raise ValueError("there are not as many answers as questions")
        return decisions
    if "outcome" in custom and "result" not in record:
        # Our own record of a list has the refused ones only.
        return [Decision(False, (), "default")] * len(resources)
    chosen = record["result"]
    if not isinstance(chosen, list) or not all(type(one) is int and 0 <= one < len(resources) for one in chosen):
        raise ValueError("a list has other answers than indices")
    return [Decision(number in {*chosen}, (), "default") for number in range(len(resources))]


def _decision(said: Mapping[str, Any]) -> Decision:
    if not isinstance(said["allow"], bool):
        raise TypeError("an answer is neither yes nor no")
    reasons = said.get("reasons", ())
    return Decision(said["allow"], tuple(map(str, reasons)), _LAYERS.get(said.get("layer"), "default"))


def _revision(record: Record) -> str:
    bundles = record.get("bundles")
    told = bundles.values() if isinstance(bundles, dict) else ()
    revisions = [str(one["revision"]) for one in told if isinstance(one, dict) and one.get("revision")]
    return ", ".join(revisions)


def _times(custom: Mapping[str, Any]) -> int:
    """How often the same was decided; 0 if the record does not say so in a known form."""
    return _count(_part(custom, "repeated").get("times")) if "repeated" in custom else 1


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record; empty if it is missing or of another form, since anybody may have sent the record."""
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _hashable(context: Context | UnsetType) -> object:
    return None if context is UNSET else context


# Who


def person(subject: Subject) -> Who:
    """The subject itself: each person has lines of their own."""
    name = f"{subject.type} {subject.id}"
    return Who("person", name, Subject(subject.type, name))


def people(subject: Subject) -> Who:
    """What a subject's login says: people with the same groups, roles and teams are one in a report."""
    if subject.type == "user":
        held = " and ".join(_held(subject))
        name = f"people {held}" if held else "people without a group, role or team"
        # The name may leave out some of what they hold.
        team_ids, roles, groups = (
            tuple(sorted(names or ())) for names in (subject.team_ids, subject.roles, subject.groups)
        )
        return Who("people", name, Subject("user", name, team_ids, roles, groups))
    teams = sorted(subject.team_ids or ())
    of = f"of {_named('team', teams)}" if teams else "without a team"
    kind = "task" if subject.type == "task" else "machine"
    return Who(kind, f"a {subject.type} {of}", Subject(subject.type, f"a {subject.type} {of}"))


def _held(subject: Subject) -> Iterator[str]:
    for before, word, names in (
        ("in", "group", subject.groups), ("with the login's", "role", subject.roles), ("of", "team", subject.team_ids)
    ):  # fmt: skip
        if names:
            yield f"{before} {_named(word, sorted(names))}"


def _named(word: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{word}{'' if len(names) == 1 else 's'} {shown}{more}"
