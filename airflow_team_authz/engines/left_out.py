"""Teams whose rules fail in lists, or are too slow for them: lists leave out their resources for a while."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from airflow_team_authz.escaping import logger
from airflow_team_authz.model import EngineError

log = logger(__name__)

_FIRST_PAUSE_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 3600.0


class _Held(NamedTuple):
    """Why a team is left out, the policy that it was asked about last, how long it is left out and until when."""

    why: str
    revision: str
    pause: float
    until: float


class LeftOut:
    """Remembers them in this process. Thread-safe without a lock, which a forked child might find held for ever.

    A team is asked again, alone, when the policy has changed and when its pause is over, which doubles each time.
    """

    def __init__(self, name: str = "") -> None:
        """``name``: of the policy in the log, unless it is the one in force."""
        self._before = name and f"{name}: "
        self._held: dict[str, _Held] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def among(self, team_ids: Collection[str | None]) -> set[str]:
        """The given teams that lists leave out."""
        return {team_id for team_id in team_ids if team_id in self._held} if self._held else set()

    def hold(self, team_id: str, revision: str, error: EngineError) -> None:
        """Leave a team out from now on, or longer; logged if it is news."""
        before = self._held.get(team_id)
        pause = min(2 * before.pause, _LONGEST_PAUSE_SECONDS) if before else _FIRST_PAUSE_SECONDS
        self._held[team_id] = _Held(str(error), revision, pause, time.monotonic() + pause)
        if before is None:
            log.error(
                "%slists leave out what team %s owns, until its package changes or is faster (%s): %s",
                self._before, team_id, error.code, error,
            )  # fmt: skip

    def release(self, team_id: str) -> None:
        """Lists ask about a team with the others again."""
        if self._held.pop(team_id, None) is not None:
            log.warning("%slists hold again what team %s owns", self._before, team_id)

    def to_be_asked(self, team_ids: Collection[str], revision: str) -> str | None:
        """A left-out team that is due for another question; the next list gets another one."""
        now = time.monotonic()
        for team_id in sorted(team_ids):
            held = self._held.get(team_id)
            if held is not None and (held.until <= now or held.revision != revision):
                self._held[team_id] = held._replace(revision=revision, until=now + held.pause)
                return team_id
        return None

    def told(self) -> str:
        """The left-out teams with reasons, in a sentence; empty if there are none."""
        return "; ".join(
            f"lists leave out what team {team_id} owns: {held.why}"
            for team_id, held in sorted(self._held.copy().items())
        )
