"""The levels of the decision log: one for all questions, and others for resource types and their actions."""

from __future__ import annotations

import difflib
from enum import IntEnum
from typing import NamedTuple

from airflow_team_authz.model import READS

_MOST_KNOWN = 1_000


class Level(IntEnum):
    """From nothing to everything. ``CHANGES`` is denials, errors, and what was allowed that is no reading."""

    NONE = 0
    DENIED = 1
    CHANGES = 2
    ALL = 3


class Recorded(NamedTuple):
    """Whether refusals and errors are recorded, what was allowed, and what lists answer."""

    denied: bool
    allowed: bool
    lists: bool


class Levels:
    """The levels of a setting such as ``changes, variable=all, dag/read=none``. The narrowest one counts."""

    def __init__(self, text: str) -> None:
        """``ValueError`` says what is wrong in the text."""
        self._levels: dict[tuple[str, str], Level] = {("", ""): Level.CHANGES}
        self._known: dict[tuple[str, str], Recorded] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            about, equals, name = part.rpartition("=")
            type_, _, action = about.strip().partition("/")
            if bool(equals) != bool(type_):
                raise ValueError(f"{part!r} has no type: write a level such as changes, or connection/read=all")
            self._levels[type_, action] = _level(name.strip())

    def of(self, type_: str, action: str) -> Recorded:
        """What is recorded of questions about this type and action."""
        known = self._known.get((type_, action))
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                # Verbs of custom views are whatever somebody sends.
                self._known.clear()
            known = self._known[type_, action] = self._of(type_, action)
        return known

    def _of(self, type_: str, action: str) -> Recorded:
        candidates = ((type_, action), (type_, ""), ("", ""))
        level = next(self._levels[about] for about in candidates if about in self._levels)
        allowed = level is Level.ALL or (level is Level.CHANGES and action not in READS)
        return Recorded(level is not Level.NONE, allowed, level is Level.ALL)


def _level(name: str) -> Level:
    try:
        return Level[name.upper()]
    except KeyError:
        near = difflib.get_close_matches(name, [level.name.lower() for level in Level], n=1)
        hint = f"did you mean {near[0]}?" if near else "the levels are none, denied, changes and all"
        raise ValueError(f"{name!r} is not a level: {hint}") from None
