"""The present failures, so that the log reports each change of state and not each request."""

from __future__ import annotations

from collections.abc import Collection

from airflow_team_authz.escaping import logger
from airflow_team_authz.model import EngineError, PlatformTooLongError

log = logger(__name__)

_ENGINE = "the engine"
_PLATFORM = "the platform's rules"


class Outages:
    """Remembers what fails: a team's rules each on their own, everything else together."""

    def __init__(self, name: str = "") -> None:
        """``name``: of the policy in the log, unless it is the one in force."""
        self._before = name and f"{name}: "
        self._failing: set[str] = set()

    def failed(self, error: EngineError, team_ids: Collection[str | None], of_rules: bool = False) -> None:
        """Note a failed question about what these teams own; logged if it is news. ``of_rules``: theirs, or one's.

        Rules that fail in a question about several teams are not noted: whose do is asked next.
        """
        ours = isinstance(error, PlatformTooLongError)
        if of_rules and len(team_ids) > 1 and not ours:
            return
        what = _PLATFORM if ours else _part(next(iter(team_ids))) if of_rules and team_ids else _ENGINE
        if what not in self._failing:
            self._failing.add(what)
            log.error("%sno decision can be had from %s (%s): %s", self._before, what, error.code, error)

    def answered(self, team_ids: Collection[str | None]) -> None:
        """Note an answered question about what these teams own; logged if something failed before."""
        for what in self._failing & {_ENGINE, _PLATFORM, *map(_part, team_ids)}:
            self._failing.discard(what)
            log.warning("%sdecisions can be had again from %s", self._before, what)

    def __bool__(self) -> bool:
        return bool(self._failing)


def _part(team_id: str | None) -> str:
    return (
        "the policy for what is common to all teams" if team_id is None else f"the policy for what team {team_id} owns"
    )
