"""One record: the fields of OPA's decision log events, and our own under ``custom``. See ``record.schema.json``.

What a record holds is decided here, and so is what it must not hold: masked values, and what looks like a secret.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import UNSET

from airflow_team_authz.decision_log.bursts import Repeated
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.model import Decision, EngineError, Evaluations, Resource, code_of

try:
    _VERSION = version("airflow-team-authz")
except PackageNotFoundError:
    _VERSION = "unknown"
# Of a question about many resources a record holds as many, refused ones first.
MOST_RESOURCES = 50
_LONGEST_PATH = 1_000
# Of an OPA server's own ids; a list of very many resources is asked in parts.
_LONGEST_ID, _MOST_IDS = 64, 20
DEFAULT_MASKS = "/input/subject/claims"
HIDDEN = "***"

# Credentials in an address, tokens, and what stands behind the word for one: no id or reason has business with them.
_SECRETS = re.compile(
    r"""(?<=://)[^/\s"'\\@]*:[^/\s"'\\]*(?=@)"""
    r"""|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)+"""
    r"""|(?<=[Bb]earer )[\w.~+/=-]{8,}"""
    r"""|(?<=[Bb]asic )[\w+/=-]{8,}"""
    r"""|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----END)[^"])*"""
)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class _Ids:
    """Makes UUIDv7 (RFC 9562). Whoever asks waits for it, so chance is asked for once for many ids, which then count.

    In a millisecond a process makes ids that differ by the count; those of others differ by 62 bits of chance.
    """

    # How many ids have the same chance: what 12 bits count.
    _MANY = 1 << 12

    def __init__(self) -> None:
        # Not the system's: to ask it lets other threads of Python run first. Not Python's own, which anybody may seed.
        self._chance = random.Random()  # noqa: S311 - an id is no secret
        os.register_at_fork(after_in_child=self._begin_anew)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._chance.seed()
        # Replaced together, so that no thread takes a number of one and the chance of another.
        self._state = self._another()
        self._high = -1, ""

    def _another(self) -> tuple[str, Iterator[int]]:
        chance = self._chance.getrandbits(62)
        return f"{0x8000 | chance >> 48:04x}-{chance & 0xFFFF_FFFF_FFFF:012x}", count()

    def new(self, at: int) -> str:
        """An id whose time is ``at``, Unix time in nanoseconds."""
        milliseconds = at // 1_000_000
        chance, numbers = self._state
        if (number := next(numbers)) >= self._MANY:
            chance, numbers = self._state = self._another()
            number = next(numbers)
        high, text = self._high
        if high != milliseconds >> 16:
            text = f"{milliseconds >> 16:08x}"
            self._high = milliseconds >> 16, text
        return f"{text}-{milliseconds & 0xFFFF:04x}-{0x7000 | number:04x}-{chance}"


_ids = _Ids()


def new_id(at: int = 0) -> str:
    """A UUIDv7: it tells when it was made, to the millisecond, and sorts by that.

    ``at`` is Unix time in nanoseconds, else now.
    """
    return _ids.new(at or time.time_ns())


class Entry(NamedTuple):
    """A question that was answered, as it waits to be written. ``resources`` and ``decisions`` are a part of many.

    ``at`` is Unix time in nanoseconds. It is one of a ``share`` of its kind that is recorded, 1 being all. With
    ``beside`` it is a difference of another policy, and ``decisions`` are those in force. Without an
    ``id`` its record gets one. Of a list there are the first refused resources, and no decisions. ``told`` is the
    reason that the subject got.
    """

    id: str
    at: int
    nanoseconds: int
    origin: Origin
    question: Evaluations
    revision: str
    asked: int
    allowed: int
    resources: Sequence[Resource]
    decisions: Sequence[Decision | Listed] | None = None
    error: EngineError | None = None
    repeated: Repeated | None = None
    engines_ids: Sequence[str] = ()
    share: float = 1.0
    beside: Beside | None = None
    told: str = ""


class Listed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a list says about one of its resources: lists have no reasons."""

    allow: bool
    reasons: tuple[str, ...] = ()


class Beside(NamedTuple):
    """The answer of a policy that is not in force: a decision or an error, and the revision that gave it.

    ``decision_id`` is that of the record of the same question, if it has one. ``more`` resources of the same list
    differ in the same direction. ``outcome`` is that of the record.
    """

    decision: Decision | None
    error: EngineError | None
    revision: str
    decision_id: str = ""
    more: int = 0
    outcome: str = "shadow"

    def direction(self, was_allowed: bool) -> str:
        """What would change if this answer were in force."""
        if self.decision is None:
            return "fails"
        return "closes" if was_allowed else "opens"


class Lost(NamedTuple):
    """A gap of another place than a sink, which is told to the sinks."""

    at: int
    gap: Gap
    where: str


class Gap(NamedTuple):
    """Records that a sink has lost: how many, and when first and last (Unix time in nanoseconds)."""

    lost: int
    since: int
    until: int


def refused_first(resources: Sequence[Resource], decisions: Sequence[Decision]) -> tuple[Any, Any]:
    """At most ``MOST_RESOURCES`` of them, each with its decision."""
    if len(resources) <= MOST_RESOURCES:
        return resources, decisions
    order = sorted(range(len(resources)), key=lambda i: decisions[i].allow is True)[:MOST_RESOURCES]
    return [resources[i] for i in order], [decisions[i] for i in order]


def refused_of(resources: Sequence[Resource], allowed: Sequence[Resource]) -> list[Resource]:
    """The first ``MOST_RESOURCES`` that are not among the allowed, which are in the same order."""
    refused: list[Resource] = []
    rest = iter(allowed)
    following = next(rest, None)
    for resource in resources:
        if resource is following or resource == following:
            following = next(rest, None)
        elif len(refused) < MOST_RESOURCES:
            refused.append(resource)
        else:
            break
    return refused


class Form:
    """Makes records of entries, without what the masks name. The masks are JSON pointers, as OPA has them."""

    def __init__(self, masks: str = DEFAULT_MASKS) -> None:
        """``ValueError`` says which mask is wrong; ``none`` masks nothing."""
        named = [mask for part in masks.split(",") if (mask := part.strip())]
        self._masks = [] if named == ["none"] else [(mask, _pointer(mask)) for mask in named]
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._labels = {
            "app": "airflow-team-authz",
            "version": _VERSION,
            "id": str(uuid4()),
            "host": socket.gethostname(),
            "pid": str(self._pid),
        }

    def record(self, entry: Entry | Lost) -> dict[str, Any]:
        """The record of an answered question."""
        if isinstance(entry, Lost):
            return self.gap(entry.gap, entry.where)
        question, origin = entry.question, entry.origin
        is_list = entry.decisions is None and entry.error is None
        one = entry.asked == 1 and not is_list
        input_: dict[str, Any] = {"subject": _plain(question.subject), "action": question.action}
        resources = [_plain(resource) for resource in entry.resources]
        input_ |= {"resource": resources[0]} if one and resources else {"resources": resources}
        if question.context is not UNSET:
            input_["context"] = _plain(question.context)
        record = self._event(entry.id or new_id(entry.at), entry.at) | {
            "path": f"airflow/authz/{'allowed' if is_list else 'decision' if one else 'decisions'}",
            "input": input_,
            "metrics": {"timer_server_handler_ns": entry.nanoseconds},
        }
        if entry.decisions is not None:
            decisions = [_plain(decision) for decision in entry.decisions]
            record["result"] = decisions[0] if one and decisions else decisions
        if entry.error is not None:
            record["error"] = {"code": entry.error.code, "message": str(entry.error)}
        if entry.revision:
            record["bundles"] = {"authz": {"revision": entry.revision}}
        trace_id, span_id = origin.trace()
        client = f"{origin.client[0]}:{origin.client[1]}" if origin.client else ""
        for name, value in (("trace_id", trace_id), ("span_id", span_id), ("requested_by", client)):
            if value:
                record[name] = value
        record["custom"] = self._custom(entry, is_list)
        self.mask(record)
        return record

    def gap(self, gap: Gap, sink: str) -> dict[str, Any]:
        """The record that others were lost."""
        return self._event(new_id(), time.time_ns()) | {
            "custom": {
                "outcome": "gap",
                "sink": sink,
                "lost": gap.lost,
                "since": _time(gap.since),
                "until": _time(gap.until),
            }
        }

    def _event(self, id_: str, at: int) -> dict[str, Any]:
        if self._pid != os.getpid():
            self._begin_anew()
        return {"labels": self._labels, "decision_id": id_, "timestamp": _time(at)}

    def _custom(self, entry: Entry, is_list: bool) -> dict[str, Any]:
        origin = entry.origin
        outcome = "error" if entry.error is not None else "allow" if entry.allowed == entry.asked else "deny"
        custom: dict[str, Any] = {
            "outcome": entry.beside.outcome if entry.beside else "list" if is_list else outcome,
            "door": origin.door,
            "asked": entry.asked,
            "allowed": entry.allowed,
        }
        said = (reason for decision in entry.decisions or () for reason in decision.reasons)
        if codes := sorted(set(filter(None, map(code_of, said)))):
            custom["codes"] = codes
        if entry.told:
            custom["told"] = entry.told
        if entry.beside is not None:
            custom["candidate"] = _candidate(entry.beside, was_allowed=entry.allowed > 0)
        if entry.share < 1:
            custom["share"] = entry.share
        if entry.engines_ids:
            custom["opa_decision_ids"] = [str(id_)[:_LONGEST_ID] for id_ in entry.engines_ids[:_MOST_IDS]]
        request = {"id": origin.request_id(), "method": str(origin.method), "path": str(origin.path)[:_LONGEST_PATH]}
        if request := {name: value for name, value in request.items() if value}:
            custom["request"] = request
        if (again := entry.repeated) is not None:
            custom["repeated"] = {
                "decision_id": again.decision_id,
                "times": again.times,
                "since": _time(int(again.since * 1e9)),
                "until": _time(int(again.until * 1e9)),
            }
        return custom

    @staticmethod
    def _mask(record: dict[str, Any], parts: tuple[str, ...]) -> bool:
        """Whether there was something to take away. A candidate's result is a result, too, and reasons are told."""
        if parts[0] != "result":
            return _erase(record, parts)
        custom = record.get("custom")
        also = custom if isinstance(custom, dict) else {}
        told = also if parts == ("result",) or "reasons" in parts else None
        return any([_erase(record, parts), _erase(also.get("candidate"), parts), _erase(told, ("told",))])

    def mask(self, record: dict[str, Any]) -> None:
        """Take away what the masks name; ``erased`` says what it was."""
        erased = [mask for mask, parts in self._masks if self._mask(record, parts)]
        if erased:
            told = record.get("erased")
            record["erased"] = list(dict.fromkeys([*(told if isinstance(told, list) else []), *erased]))


def _candidate(beside: Beside, was_allowed: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"direction": beside.direction(was_allowed)}
    if beside.decision is not None:
        told["result"] = _plain(beside.decision)
    if beside.error is not None:
        told["error"] = {"code": beside.error.code, "message": str(beside.error)}
    told |= {name: value for name, value in (
        ("revision", beside.revision), ("decision_id", beside.decision_id), ("more", beside.more)
    ) if value}  # fmt: skip
    return told


def _plain(value: Any) -> Any:
    """The same of dictionaries, lists and texts."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except UnicodeEncodeError:
        return _plain_slowly(msgspec.to_builtins(value))


def _plain_slowly(value: Any) -> Any:
    """For half a surrogate pair, which msgspec does not encode."""
    if isinstance(value, dict):
        return {name: _plain_slowly(part) for name, part in value.items()}
    return [_plain_slowly(part) for part in value] if isinstance(value, list | tuple) else value


def encode(record: dict[str, Any]) -> str:
    """The record as one line of JSON in ASCII, whatever was in it; what looks like a secret is left out."""
    try:
        text = msgspec.json.encode(record).decode()
    except UnicodeEncodeError:
        text = ""
    if not (text.isascii() and text.isprintable() and text):
        text = _ENCODER.encode(record).replace("\x7f", "\\u007f")
    return without_secrets(text)


def without_secrets(text: str) -> str:
    """The text, with ``***`` for what looks like a secret."""
    # One of these is in every match, or before it. The pattern takes a hundred times as long as looking for them, and a
    # loop over them three times as long.
    if "://" in text or "eyJ" in text or "earer " in text or "asic " in text or "PRIVATE KEY" in text:
        return _SECRETS.sub(HIDDEN, text)
    return text


def _time(nanoseconds: int) -> str:
    return f"{_second(nanoseconds // 1_000_000_000)}.{nanoseconds % 1_000_000_000 // 1000:06}Z"


_NEEDED = {("custom",), ("custom", "outcome")}


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def _pointer(mask: str) -> tuple[str, ...]:
    """RFC 6901; in OPA a mask begins with what it is in."""
    parts = tuple(part.replace("~1", "/").replace("~0", "~") for part in mask.split("/")[1:])
    if not mask.startswith("/") or not parts or parts[0] not in {"input", "result", "custom"}:
        hint = "write a JSON pointer such as /input/subject/groups or /result/reasons"
        raise ValueError(f"{mask!r} is not a mask: {hint}")
    if parts in _NEEDED:
        raise ValueError(
            f"{mask!r} would remove the outcome, which readers need: name another part, such as /custom/told"
        )
    return parts


def _erase(value: Any, parts: tuple[str, ...]) -> bool:
    """Take away what the pointer leads to; of many resources and decisions, from each. Whether it was there."""
    name, rest = parts[0], parts[1:]
    if isinstance(value, list) and name.isdecimal():
        if int(name) >= len(value):
            return False
        if rest:
            return _erase(value[int(name)], rest)
        del value[int(name)]
        return True
    if isinstance(value, list):
        erased = [_erase(one, parts) for one in value]
        return any(erased)
    if not isinstance(value, dict):
        return False
    if name == "resource" and "resource" not in value:
        name = "resources"
    if name not in value:
        return False
    if not rest:
        del value[name]
        return True
    return _erase(value[name], rest)
