"""The configured login manager, for commands that ask it about people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_team_authz.cli.support.console import UserError

if TYPE_CHECKING:
    from airflow_team_authz.doors.users import TeamAuthorization


def login_manager() -> TeamAuthorization:
    """Our manager over the login manager that Airflow's configuration names; ``UserError`` if it cannot be had."""
    from airflow_team_authz.settings import SettingsError

    try:
        from airflow_team_authz.doors.users import build_manager

        return build_manager()()
    except (SettingsError, ImportError, TypeError) as error:
        raise UserError(f"the login manager cannot be loaded: {error}") from None


def name_of(manager: Any) -> str:
    """The login manager's class."""
    return str(type(manager).__bases__[-1].__name__)
