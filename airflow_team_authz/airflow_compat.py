"""The differences between the supported versions of Airflow: each check of a version is here, and nowhere else.

Airflow 3.3 is the one that the package is written for. Each function says what Airflow 3.2 lacks. The functions look
for the part itself and not for a version number, so they hold for a coming Airflow too. They take Airflow's classes
and modules, because importing those here would slow every process down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Producers(NamedTuple):
    """The teams whose events may start a Dag, as its author says in its schedule on an asset."""

    from_common_dags: bool
    from_teams: tuple[str, ...]


def producers(reference: Any) -> Producers:
    """Those of a Dag's reference to an asset. Airflow 3.2 knows none, and lets events of common Dags start Dags."""
    return Producers(
        bool(getattr(reference, "allow_global_producers", True)),
        tuple(getattr(reference, "allow_producer_teams", None) or ()),
    )


def compares_teams_of_events(asset_manager: type) -> bool:
    """Whether Airflow itself leaves out Dags of other teams when an event comes; Airflow 3.2 does not."""
    return hasattr(asset_manager, "_filter_dags_by_team")


def consumer_teams(outlet: type) -> Any:
    """The column with the teams that may consume a task's asset; ``None`` in Airflow 3.2."""
    return getattr(outlet, "allow_consumer_teams", None)


def known_arguments(function: Callable[..., Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``named`` that ``function`` takes: in Airflow 3.2 events have no partition date."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: value for name, value in named.items() if name in names}


def keeps_state_of_assets() -> bool:
    """Whether Airflow keeps state with assets; Airflow 3.2 does not."""
    return find_spec("airflow.models.asset_state_store") is not None


def team_of_trigger(trigger: Any) -> Any:
    """The team of a trigger, or its column if ``trigger`` is the class; ``None`` in Airflow 3.2."""
    return getattr(trigger, "team_name", None)


def team_of_triggerer(supervisor: Any) -> str | None:
    """The team that a triggerer works for; ``None`` in Airflow 3.2, where it works for all."""
    return getattr(supervisor, "team_name", None)


def uncached_team_name(dag_module: ModuleType) -> Callable[..., str | None]:
    """``DagModel.get_team_name`` without the cache of half a minute that Airflow 3.3 puts around it."""
    find: Any = vars(dag_module)["DagModel"].get_team_name
    found: Callable[..., str | None] = find.__wrapped__ if hasattr(dag_module, "_team_name_cache") else find
    return found


def login_middlewares(login: Any) -> list[Any]:
    """The middlewares of a login manager (``login`` may be a ``super``); Airflow 3.2 knows none."""
    return list(getattr(login, "get_fastapi_middlewares", list)())


def asks_for_middlewares(auth_manager: type) -> bool:
    """Whether Airflow puts the middlewares of its auth manager into the app; Airflow 3.2 does not."""
    return hasattr(auth_manager, "get_fastapi_middlewares")


def session_among(arguments: Iterable[Any], named: Mapping[str, Any]) -> Session:
    """The database session that Airflow gives to a dependency of tasks: Airflow 3.2 gives it at another place."""
    from sqlalchemy.orm import Session

    return next(given for given in (*arguments, *named.values()) if isinstance(given, Session))


def stats() -> Any:
    """The functions that count: a module, and in Airflow 3.2 a class in it."""
    from airflow.observability import stats as module

    return module if hasattr(module, "incr") else module.Stats
