"""The levels of the decision log: one for all questions, and others for resource types and their actions."""

from __future__ import annotations

import difflib
import os
import random
from enum import IntEnum
from typing import NamedTuple

from airflow_team_authz.model import READS

_MOST_KNOWN = 1_000
# No percentages: a percent sign has a meaning of its own in airflow.cfg.
_DIGITS = frozenset("0123456789.+-")


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
    # Of what is allowed and of lists, at random: 0.01 is one of a hundred.
    share: float = 1.0


# Not Python's own, which anybody may seed; each child has chances of its own.
_chance = random.Random()  # noqa: S311 - nobody gains by foreseeing what is recorded of reading
os.register_at_fork(after_in_child=_chance.seed)


def is_taken(share: float) -> bool:
    """Whether this one is among so many."""
    return share >= 1 or _chance.random() < share


class Levels:
    """The levels of a setting such as ``changes, variable=all, dag/read=0.01``. The narrowest one is valid.

    A number is ``changes``, and such a share of reading and lists, chosen at random.
    """

    def __init__(self, text: str) -> None:
        """``ValueError`` says what is wrong in the text."""
        self._levels: dict[tuple[str, str], tuple[Level, float]] = {("", ""): (Level.CHANGES, 1)}
        self._known: dict[tuple[str, str], Recorded] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            about, equals, name = part.rpartition("=")
            type_, _, action = about.strip().partition("/")
            if bool(equals) != bool(type_):
                raise ValueError(f"{part!r} has no type: write a level such as changes, or connection/read=all")
            self._levels[type_, action] = _level(name.strip())

    def of(self, type_: str, action: str) -> Recorded:
        """The level of questions about this type and action."""
        known = self._known.get((type_, action))
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                # Verbs of custom views are whatever somebody sends.
                self._known.clear()
            known = self._known[type_, action] = self._of(type_, action)
        return known

    def _of(self, type_: str, action: str) -> Recorded:
        candidates = ((type_, action), (type_, ""), ("", ""))
        level, share = next(self._levels[about] for about in candidates if about in self._levels)
        allowed = level is Level.ALL or (level is Level.CHANGES and action not in READS)
        return Recorded(level is not Level.NONE, allowed, level is Level.ALL, share if action in READS else 1)


def _level(name: str) -> tuple[Level, float]:
    """The level, and the share of reading that is recorded."""
    if name[:1] in _DIGITS:
        try:
            share = float(name)
        except ValueError:
            share = 0
        if not 0 < share <= 1:
            raise ValueError(f"{name!r} is not a share of reading: write a number such as 0.01, which is one of 100")
        return Level.ALL, share
    try:
        return Level[name.upper()], 1
    except KeyError:
        near = difflib.get_close_matches(name, [level.name.lower() for level in Level], n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else "the levels are none, denied, changes, all, and shares of reading such as 0.01"
        )
        raise ValueError(f"{name!r} is not a level: {hint}") from None
