"""The last use of a permission, by the allowed decisions of a decision log.

A log that does not record an action (``Levels``) says nothing about its use. That is another answer than "no use".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_team_authz.decision_log.levels import Levels
from airflow_team_authz.review import Allowed, Who, kind_of
from airflow_team_authz.review.document import NO_USE, NOT_RECORDED

_Key = tuple[str, str, str, str, str, str]
# A mask hides this part of the subject, so uses by these are not known.
_HIDDEN_BY = {
    "/input/subject/groups": {"group"},
    "/input/subject/roles": {"role"},
    "/input/subject/claims": {"claim"},
    "/input/subject/id": {"person"},
    "/input/subject/team_ids": {"task"},
    "/input/subject": {"person", "group", "role", "claim", "task"},
}


class LastUses:
    """The times of the last uses: of a person, of anybody with a group, role or claim, and of a team's tasks."""

    def __init__(self, records: Iterable[Mapping[str, Any]], levels: Levels | None = None) -> None:
        """``levels`` are those of the log; without them each action is taken as recorded."""
        self._levels = levels
        self._last: dict[_Key, str] = {}
        self._hidden: set[str] = set()
        self._first, self._lost, self.records = "", 0, 0
        for record in records:
            try:
                self._add(record)
            except (KeyError, TypeError, ValueError, AttributeError):
                # A record of another program, or of another form: it cannot be a use of these.
                continue

    def of(self, one: Allowed) -> str:
        """The time of the last use, ``NO_USE`` or ``NOT_RECORDED``."""
        about = one.resource
        names = (one.action, kind_of(about), str(about.id or ""), about.team_id or "")
        found = max((self._last.get((*who, *names), "") for who in _named(one.who)), default="")
        if found:
            return found
        if one.who.kind in self._hidden or not self._is_recorded(about.type, one.action):
            return NOT_RECORDED
        return NO_USE

    def gaps(self) -> Iterator[str]:
        """The limits of these times, for people."""
        since = f" since {self._first}" if self._first else ""
        yield f"uses before the {self.records:,} allowed decisions of the decision log{since}"
        yield "uses by a list of many resources"
        if self._lost:
            yield f"uses in the {self._lost:,} records that the decision log has lost"
        if self._hidden:
            yield f"uses of a {' or '.join(sorted(self._hidden))} that masks of the decision log hide"

    def _is_recorded(self, type_: str, action: str) -> bool:
        if self._levels is None:
            return True
        level = self._levels.of(type_, action)
        return level.allowed and level.share >= 1

    def _add(self, record: Mapping[str, Any]) -> None:
        custom = record["custom"]
        if custom["outcome"] == "gap":
            self._lost += int(custom["lost"])
        for mask in record.get("erased", ()):
            self._hidden |= _HIDDEN_BY.get(mask, set())
        if custom["outcome"] != "allow":
            return
        at = f"{datetime.fromisoformat(record['timestamp']).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        input_ = record["input"]
        whos = list(_identities(input_["subject"]))
        self.records += 1
        self._first = min(self._first or at, at)
        for about in input_.get("resources") or [input_["resource"]]:
            kind = ".".join(filter(None, (about["type"], about.get("entity", ""))))
            # A new resource has a name that no matrix can have.
            id_ = "" if input_["action"] == "create" else about.get("id", "")
            for who in whos:
                key = (*who, input_["action"], kind, id_, about.get("team_id") or "")
                self._last[key] = max(self._last.get(key, ""), at)


def _identities(subject: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everybody for whom a recorded subject stands."""
    if subject["type"] == "task":
        yield from (("task", team) for team in subject.get("team_ids") or ("",))
        return
    if subject["type"] != "user":
        return
    yield "person", str(subject["id"])
    yield from (("group", group) for group in subject.get("groups") or ())
    yield from (("role", role) for role in subject.get("roles") or ())
    for claim, values in (subject.get("claims") or {}).items():
        yield from (("claim", f"{claim}={value}") for value in values)


def _named(who: Who) -> Iterator[tuple[str, str]]:
    """The identities of the same form for a row of a matrix."""
    subject = who.subject
    held = {
        "person": (subject.id,),
        "group": subject.groups or (),
        "role": subject.roles or (),
        "claim": tuple(f"{name}={value}" for name, values in (subject.claims or {}).items() for value in values),
        "task": subject.team_ids or ("",),
    }
    yield from ((who.kind, name) for name in held.get(who.kind, ()))
