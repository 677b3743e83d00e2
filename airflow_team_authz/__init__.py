"""Authorization for teams in Airflow, decided by Rego policies in Open Policy Agent.

``[core] auth_manager = airflow_team_authz.TeamAuthManager`` is all that a user sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_team_authz.doors.assets import TeamAssetManager
    from airflow_team_authz.doors.users import TeamAuthorization as TeamAuthManager

__version__ = "0.1.0"
__all__ = ["TeamAssetManager", "TeamAuthManager"]


def __getattr__(name: str) -> object:
    """Build the manager when Airflow asks for it: its base class is a setting, and importing us stays cheap."""
    if name == "TeamAuthManager":
        from airflow_team_authz.doors.users import build_manager

        return build_manager()
    if name == "TeamAssetManager":
        from airflow_team_authz.doors.assets import TeamAssetManager

        return TeamAssetManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
