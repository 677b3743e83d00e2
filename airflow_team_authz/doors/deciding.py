"""One decision point for all doors of a process."""

from __future__ import annotations

import os
from functools import cache
from threading import Lock

from airflow_team_authz import forks
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.choice import open_engine
from airflow_team_authz.settings import Settings, read_settings

_opening = Lock()


def _begin_anew() -> None:
    """In a forked child: a thread that is not there may have held the lock."""
    global _opening  # noqa: PLW0603 - a lock has no other state
    _opening = Lock()


os.register_at_fork(after_in_child=_begin_anew)


def decision_point() -> DecisionPoint:
    """The decision point over the configured engine, which the first question opens.

    ``SettingsError`` if ``[team_authz]`` is wrong, ``EngineError`` if the engine cannot be opened: tried again.
    """
    with _opening:
        return _opened()


@cache
def settings() -> Settings:
    """``[team_authz]`` as this process found it; ``SettingsError`` if it is wrong.

    Read once: a policy file that is deleted later must not take the engine along that has it loaded.
    """
    return read_settings()


@cache
def _opened() -> DecisionPoint:
    with forks.whole():
        return DecisionPoint(open_engine(settings()))


def forget() -> None:
    """Read the settings and open the engine anew for the next question; for tests, which change them."""
    settings.cache_clear()
    _opened.cache_clear()
