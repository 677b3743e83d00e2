"""The question, the answer, and the errors between them, as plain data.

Names follow the OpenID AuthZEN Authorization API 1.0 (subject, action, resource, context, decision,
evaluation). ``policies/schemas/input.json`` is the same contract seen from the policy's side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

# Actions that change nothing.
READS = frozenset({"list", "read", "menu"})
# The code of a rule, with which its reasons begin: two words or more, so that a word before a colon is none.
CODE = re.compile(r"[A-Z][A-Z0-9]{0,19}(?:-[A-Z0-9]{1,20}){1,3}")

T = TypeVar("T")
SubjectType = Literal["user", "task", "dag_processor", "triggerer", "watcher"]
Layer = Literal["guardrail", "team", "baseline", "default"]


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The subject as the identity gives it. The policy derives the rest, such as teams from groups.

    ``dag_id``, ``task_id`` and ``run_id`` are a task's. ``unverified`` tells why roles, groups and claims are missing:
    the login's token could not be verified.
    """

    type: SubjectType
    id: str
    team_ids: tuple[str, ...] | UnsetType = UNSET
    roles: tuple[str, ...] | UnsetType = UNSET
    groups: tuple[str, ...] | UnsetType = UNSET
    claims: dict[str, tuple[str, ...]] | UnsetType = UNSET
    unverified: str | UnsetType = UNSET
    dag_id: str | UnsetType = UNSET
    task_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET

    def __hash__(self) -> int:
        # Without the claims: a dictionary has no hash.
        return hash((self.type, self.id, self.team_ids, self.roles, self.groups))


class AssetNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names of an asset."""

    name: str
    uri: str
    group: str


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Dag that an asset event would start, and the consent of the authors on both sides.

    ``team_id`` is the team of the Dag that would start. ``consumer_teams`` is absent where the producing task's author
    names none, which means all.
    """

    dag_id: str
    team_id: str | None
    asset: AssetNames
    global_producers: bool
    global_consumers: bool
    airflow_allows: bool
    producer_teams: tuple[str, ...] = ()
    consumer_teams: tuple[str, ...] | UnsetType = UNSET


class Resource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The resource of a question. ``team_id`` is the owning team; ``None`` is common to all teams.

    An absent ``id`` means no resource in particular (list, create); ``entity`` is a part of a Dag or of an asset;
    ``name``, ``uri`` and ``group`` are an asset's. Absent is not null: a null ``id`` would make a rule such as
    ``startswith(input.resource.id, …)`` fail.
    """

    type: str
    team_id: str | None = None
    id: str | UnsetType = UNSET
    entity: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    uri: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    delivery: Delivery | UnsetType = UNSET


class Remembering:
    """What never changes itself, so that what is found out about it is found out once.

    Thread-safe without a lock, which a forked child might find held for ever: two threads may both find out something.
    """

    def once(self, key: Hashable, others: tuple[object, ...], make: Callable[[], T]) -> T:
        """The result of ``make`` for this and these very ``others``; made once, as long as they are the same."""
        made: dict[Hashable, tuple[tuple[object, ...], T]] = self.__dict__.setdefault("made", {})
        known = made.get(key)
        if known is None or any(now is not then for now, then in zip(others, known[0], strict=True)):
            made[key] = known = others, make()
        return known[1]


class Resources(Remembering, tuple[Resource, ...]):
    """The resources of a list that is asked for again and again."""

    def digest(self) -> bytes:
        """A hash of every field of each of them, in their order; ``UnicodeEncodeError`` for what no JSON can hold."""
        return self.once("digest", (), lambda: hashlib.blake2b(msgspec.json.encode(self), digest_size=32).digest())

    def owners(self) -> frozenset[str | None]:
        """The teams that own them."""
        return self.once("owners", (), lambda: frozenset(resource.team_id for resource in self))

    def parts(self, size: int) -> tuple[Resources, ...]:
        """The same in parts of this size."""

        def parted() -> tuple[Resources, ...]:
            return tuple(Resources(self[start : start + size]) for start in range(0, len(self), size))

        return self.once(("parts", size), (), parted)


class Context(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Circumstances of a question. ``user_id`` and ``assigned_users`` come with ``hitl_task`` only."""

    user_id: str | UnsetType = UNSET
    assigned_users: tuple[str, ...] | UnsetType = UNSET


class Evaluations(msgspec.Struct, frozen=True):
    """Many questions that share subject, action and context; one question is the one-element case."""

    subject: Subject
    action: str
    resources: Sequence[Resource]
    context: Context | UnsetType = UNSET


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question, as people write it and as ``data.airflow.authz.decision`` reads it."""

    subject: Subject
    action: str
    resource: Resource
    context: Context | UnsetType = UNSET


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The answer to one question: whether, why, and which layer of the policy said so.

    ``team_version`` is the version of the owning team's package that was asked, if the policy is an aggregate of such.
    """

    allow: bool
    reasons: tuple[str, ...]
    layer: Layer
    team_version: int | UnsetType = UNSET


class Provenance(NamedTuple):
    """How a question came by its answer: the policy's revision, the time that it took, and by whom it was recorded.

    ``record_ids`` are those of the engine's own records of it. ``kept``: an earlier question had the answer.
    ``by_policy``: the policy gave the answer, and not a door that cannot ask. ``told``: the reason that the answer to
    the subject has, if it has one.
    """

    revision: str
    nanoseconds: int
    record_ids: Sequence[str] = ()
    kept: bool = False
    by_policy: bool = True
    told: str = ""


def code_of(reason: str) -> str:
    """The code of the rule that gives this reason; empty if it has none."""
    code, colon, _ = reason.partition(": ")
    return code if colon and CODE.fullmatch(code) else ""


class DirectoryEntry(msgspec.Struct, frozen=True):
    """A team (``None``: the platform) and the role held there; without a role, the subject's own roles count."""

    team_id: str | None
    role: str | UnsetType = UNSET


class Source(msgspec.Struct, frozen=True):
    """Where the directory says something of a subject: the table in its data, the name or pattern there, the entry."""

    table: str
    name: str
    entry: DirectoryEntry


class Standing(msgspec.Struct, frozen=True):
    """The subject as the policy sees it: teams and roles, each with every role that it includes.

    ``default_pools`` is the pool of each team's tasks whose author names none, for teams that say so.
    """

    team_roles: dict[str, tuple[str, ...]]
    platform_roles: tuple[str, ...]
    common_roles: tuple[str, ...]
    entries: tuple[Source, ...]
    default_pools: dict[str, str]


class EngineError(Exception):
    """No decision could be had. Never a denial, never an allow, never kept.

    The message is a sentence for an administrator: what happened, to what, and what to do next. It
    holds neither the question nor anything of the subject. ``decision_id`` is that of its record, if there is one.
    """

    decision_id: str = ""

    @property
    def code(self) -> str:
        """The kind of error in records and metrics: the class's name without ``Error``, but ``EngineError`` itself."""
        name = type(self).__name__
        return name if type(self) is EngineError else name.removesuffix("Error")


class UnreachableError(EngineError):
    """No server answers at the engine's address."""


class NotAnsweringError(EngineError):
    """The server at the engine's address answers neither questions nor its health check, so it is not asked."""


class DeadlineExceededError(EngineError):
    """The answer did not come within ``[team_authz] deadline_ms``."""


class UndefinedError(EngineError):
    """The engine runs, but the platform's policy is not loaded in it."""


class MalformedError(EngineError):
    """The engine's answer is not of the agreed form."""


class PolicyBrokenError(EngineError):
    """The policy cannot be loaded, or fails while it is evaluated: a conflict, a trap, out of fuel or memory."""


class TooLongError(PolicyBrokenError):
    """The policy has used up what a question may take."""


class PlatformTooLongError(TooLongError):
    """It has done so without a team's package having been asked."""


class KeysUnknownError(EngineError):
    """The keys of whoever issued a login's token cannot be had, so nobody can say whether it is genuine."""


class UnfitKeyError(Exception):
    """A file or a variable does not hold the key that it should; the message names what is wrong, never the key."""
