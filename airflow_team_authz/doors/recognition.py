"""Features that Airflow has only if the text of ``[core] auth_manager`` contains "FabAuthManager".

FAB may log people in all the same. Its sessions are cleaned then, and a Dag's ``access_control``, which only FAB's own
decisions read, is an import error instead of nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any

from airflow_team_authz.escaping import escaped, logger
from airflow_team_authz.settings import MANAGER, SettingsError, another_manager, read_settings
from airflow_team_authz.texts import with_lines

log = logger(__name__)

_FAB = "FabAuthManager"
_SESSION = "session"


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``; a module that looks at the text, or that of ``airflow standalone``."""
    if module.__name__ == "airflow.cli.commands.standalone_command":
        _tell_what_standalone_does(module)
    elif module.__name__ == "airflow.utils.db_cleanup":
        _clean_sessions(module)
    else:
        _refuse_access_control(module)


def logs_in_by_fab() -> bool:
    """Whether the login manager is FAB's, or a class of a site's own over it."""
    from airflow.configuration import conf

    if conf.get("core", "auth_manager", fallback="") != MANAGER:
        return False
    try:
        name = read_settings().authn_manager
        if name.startswith("airflow."):
            # Importing FAB takes a second, and the provider's class is known by its name.
            return _FAB in name
        module, _, attribute = name.rpartition(".")
        return any(parent.__name__ == _FAB for parent in getattr(import_module(module), attribute).__mro__)
    except (SettingsError, ImportError, AttributeError, ValueError) as error:
        log.debug("the login manager cannot be looked at: %s", error)
        return False


def _clean_sessions(module: Any) -> None:
    """``airflow db clean`` knows FAB's table of sessions."""
    from airflow.configuration import conf

    if _SESSION in module.config_dict or conf.get("fab", "session_backend", fallback="database") != "database":
        return
    if logs_in_by_fab():
        table = module._TableConfig(table_name=_SESSION, recency_column_name="expiry")
        module.config_list.append(table)
        module.config_dict[_SESSION] = table


def _refuse_access_control(module: Any) -> None:
    """A Dag with ``access_control`` is an import error, where FAB would have read it."""
    write = module.update_dag_parsing_results_in_db

    def write_without_access_control(
        bundle_name: str,
        bundle_version: str | None,
        dags: Collection[Any],
        import_errors: dict[tuple[str, str], str],
        *arguments: Any,
        **named: Any,
    ) -> None:
        fine = []
        refuses = logs_in_by_fab()
        for dag in dags:
            if not (refuses and (roles := _roles_of(dag))):
                fine.append(dag)
                continue
            file = (bundle_name, str(dag.relative_fileloc))
            told = escaped(_ACCESS_CONTROL.format(dag.dag_id, ", ".join(roles)))
            import_errors[file] = with_lines(import_errors.get(file), told)
        write(bundle_name, bundle_version, fine, import_errors, *arguments, **named)

    module.update_dag_parsing_results_in_db = write_without_access_control


def _roles_of(dag: Any) -> list[str]:
    """The roles that a Dag's author gives something."""
    try:
        return sorted(map(str, dag.access_control or ()))
    except Exception as error:
        # As the process has handed it over that runs the Dag's file: what cannot be read gives nobody anything either.
        log.info("access_control of Dag %s cannot be read: %s", dag.dag_id, type(error).__name__)
        return []


_ACCESS_CONTROL = (
    "Dag {0} has access_control, which gives nobody anything here: the policy decides, and FAB's permissions are not "
    "asked. Name the roles ({1}) in airflow/directory/data.json, or allow them the Dag in its team's package, and take "
    "access_control out of this file. `team-authz import fab` writes what FAB's roles have been allowed as a policy"
)


def _tell_what_standalone_does(module: Any) -> None:
    """``airflow standalone`` puts SimpleAuthManager in the place of whatever is configured."""
    command = module.StandaloneCommand
    calculate = command.calculate_env

    def calculate_env(self: Any) -> Any:
        env = calculate(self)
        if told := another_manager():
            self.print_output("standalone", told)
        return env

    command.calculate_env = calculate_env
