"""The package as a provider of Airflow: its name and its settings."""

from __future__ import annotations

from typing import Any

from airflow_team_authz import __version__
from airflow_team_authz.settings import SECTION, Settings

_TYPES: dict[Any, str] = {int: "integer", float: "float", bool: "boolean"}


def get_provider_info() -> dict[str, Any]:
    """Provider metadata; the option reference is made from ``Settings``, so that it cannot fall behind."""
    return {
        "package-name": "airflow-team-authz",
        "name": "Team authorization",
        "description": "Authorization for teams, decided by Rego policies in Open Policy Agent.",
        "versions": [__version__],
        "auth-managers": ["airflow_team_authz.TeamAuthManager"],
        "db-managers": ["airflow_team_authz.decision_log.db_manager.DecisionLogManager"],
        "cli": ["airflow_team_authz.provider.get_cli_commands"],
        "config": {
            SECTION: {
                "description": "Team authorization by Open Policy Agent.",
                "options": {
                    name: {
                        "description": field.description,
                        "version_added": __version__,
                        "type": _TYPES.get(field.annotation, "string"),
                        "example": None,
                        "default": "" if field.default is None else str(field.default),
                    }
                    for name, field in Settings.model_fields.items()
                },
            }
        },
    }


def get_cli_commands() -> list[Any]:
    """No commands under ``airflow``; saying so keeps Airflow from building the auth manager for every command."""
    return []
