"""Loaded in every Airflow process by the entry point ``airflow.policy``: puts a door into each module that needs one.

Importing Airflow's modules here would slow every process down, so a door is put in when its module is imported. If that
fails, so does the import: a process that cannot be guarded does not start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Airflow's module → ours, whose ``guard`` is called with it.
DOORS: dict[str, tuple[str, ...]] = {
    "airflow.api_fastapi.core_api.app": ("airflow_team_authz.doors.user_requests",),
    "airflow.api_fastapi.core_api.security": ("airflow_team_authz.doors.wall",),
    "airflow.api_fastapi.core_api.services.public.task_instances": ("airflow_team_authz.doors.wall",),
    "airflow.api_fastapi.execution_api.app": ("airflow_team_authz.doors.tasks",),
    "airflow.api_fastapi.execution_api.routes.xcoms": ("airflow_team_authz.doors.tasks",),
    "airflow.api_fastapi.execution_api.security": ("airflow_team_authz.doors.tasks",),
    "airflow.assets.manager": ("airflow_team_authz.doors.assets",),
    "airflow.cli.commands.standalone_command": ("airflow_team_authz.doors.recognition",),
    "airflow.dag_processing.bundles.manager": ("airflow_team_authz.doors.names",),
    # The last one is asked first: another team's Dag is no question about pools.
    "airflow.dag_processing.collection": (
        "airflow_team_authz.doors.recognition",
        "airflow_team_authz.doors.pools",
        "airflow_team_authz.doors.names",
    ),
    "airflow.dag_processing.manager": ("airflow_team_authz.doors.names",),
    "airflow.dag_processing.processor": ("airflow_team_authz.identities.machines",),
    "airflow.jobs.scheduler_job_runner": ("airflow_team_authz.doors.lent_pools",),
    "airflow.jobs.triggerer_job_runner": ("airflow_team_authz.identities.machines",),
    "airflow.models.connection_test": ("airflow_team_authz.doors.connection_tests",),
    "airflow.models.dag": ("airflow_team_authz.doors.names",),
    "airflow.models.trigger": ("airflow_team_authz.doors.assets",),
    "airflow.sdk.execution_time.supervisor": (
        "airflow_team_authz.identities.machines",
        "airflow_team_authz.doors.task_log",
    ),
    "airflow.ti_deps.deps.pool_slots_available_dep": ("airflow_team_authz.doors.lent_pools",),
    "airflow.utils.db_cleanup": ("airflow_team_authz.doors.recognition",),
}


# If the policy only observes: none of the doors, but its own place beside the auth manager.
OBSERVING = {"airflow.api_fastapi.app": ("airflow_team_authz.doors.observation",)}

# Doors, and the modules that wait for them to be complete.
_unfinished: dict[str, list[ModuleType]] = {
    door: [] for doors in (*DOORS.values(), *OBSERVING.values()) for door in doors
}


class _Doors(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``; the module is found as ever, and guarded after it has run."""
        if name not in DOORS and name not in OBSERVING and name not in _unfinished:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_guard(module: ModuleType) -> None:
            run(module)
            for waiting in _unfinished.pop(name, ()):
                module.guard(waiting)
            if name in DOORS or name in OBSERVING:
                guard(module)

        spec.loader.exec_module = run_and_guard  # type: ignore[method-assign]
        return spec


def guard(module: ModuleType) -> None:
    """Put the door into one of Airflow's modules, if this Airflow is ours to guard."""
    from airflow_team_authz.settings import is_enabled, observes

    if not is_enabled():
        return
    for name in (OBSERVING if observes() else DOORS).get(module.__name__, ()):
        door = import_module(name)
        if hasattr(door, "guard"):
            door.guard(module)
        else:
            # It is the door that imports the module, so it is not complete yet: then it goes in when it is.
            _unfinished[name].append(module)


def install() -> None:
    """Guard the modules that are there, and the others when they come. Once: a second call changes nothing."""
    if any(isinstance(finder, _Doors) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Doors())
    for name in (DOORS.keys() | OBSERVING.keys()) & sys.modules.keys():
        guard(sys.modules[name])


install()
