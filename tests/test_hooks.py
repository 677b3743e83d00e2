"""Every process of Airflow loads the hooks by their entry point: what they guard, and what they leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_team_authz import hooks, settings
from airflow_team_authz.hooks import DOORS
from tests.conftest import REPOSITORY

OURS = {"AIRFLOW__CORE__AUTH_MANAGER": "airflow_team_authz.TeamAuthManager"}


def airflow(home: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of an Airflow of its own, as Airflow starts one."""
    env = {"AIRFLOW_HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore", **variables}
    return subprocess.run(
        [sys.executable, "-c", f"import airflow.settings\n{code}"],
        env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def said(home: Path, code: str, **variables: str) -> object:
    """What the code prints as JSON in its last line."""
    done = airflow(home, code, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_door_is_put_in_where_the_policy_only_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(hooks, "import_module", lambda name: imported.append(name) or SimpleNamespace(guard=id))
    monkeypatch.setattr(settings, "is_enabled", lambda: True)
    monkeypatch.setattr(settings, "observes", lambda: True)
    for name in DOORS:
        hooks.guard(SimpleNamespace(__name__=name))
    assert imported == []
    hooks.guard(SimpleNamespace(__name__="airflow.api_fastapi.app"))
    assert imported == ["airflow_team_authz.doors.observation"]
    monkeypatch.setattr(settings, "observes", lambda: False)
    hooks.guard(SimpleNamespace(__name__="airflow.api_fastapi.app"))
    assert len(imported) == 1


LOOK = """
import json, airflow.models.taskinstance
from importlib import import_module
from airflow.api_fastapi.execution_api import app
from airflow.assets.manager import asset_manager
from airflow.dag_processing import collection, manager, processor
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.jobs import triggerer_job_runner
from airflow.models import trigger
from airflow.sdk.execution_time import supervisor
from airflow.api_fastapi.execution_api import security
from airflow.ti_deps.deps.pool_slots_available_dep import PoolSlotsAvailableDep
slots = PoolSlotsAvailableDep._get_dep_statuses
writing = manager.update_dag_parsing_results_in_db
print(json.dumps({
    "tasks": security.require_auth.__module__,
    "teams": security.get_team_name_dep.__module__,
    "start": app.create_task_execution_api_app.__module__,
    "datasets": type(asset_manager).__module__,
    "watchers": trigger.AssetManager.__module__,
    "names": writing.__module__,
    "pools": (writing.__closure__[0].cell_contents if writing.__closure__ else writing).__module__,
    "watchers of others": collection.AssetModelOperation.add_asset_trigger_references.__module__,
    "producers": manager.remove_references_to_deleted_dags.__module__,
    "writing": collection.DagModelOperation.add_dags.__module__,
    "bundles": DagBundlesManager.sync_bundles_to_db.__wrapped__.__module__,
    "parsing": processor.DagFileProcessorProcess._handle_request.__module__,
    "triggers": triggerer_job_runner.TriggerRunnerSupervisor._handle_request.__module__,
    "testing": supervisor.InProcessTestSupervisor._handle_request.__module__,
    "why a task waits": slots.__globals__["__name__"],
    "log": supervisor.ActivitySubprocess._handle_request.__module__,
}))
"""


def test_every_door_is_in_its_place(tmp_path: Path) -> None:
    assert said(tmp_path, LOOK, **OURS) == {
        "tasks": "airflow_team_authz.doors.tasks",
        "teams": "airflow_team_authz.doors.tasks",
        "start": "airflow_team_authz.doors.tasks",
        "datasets": "airflow_team_authz.doors.assets",
        "watchers": "airflow_team_authz.doors.assets",
        "names": "airflow_team_authz.doors.names",
        "pools": "airflow_team_authz.doors.pools",
        "watchers of others": "airflow_team_authz.doors.names",
        "producers": "airflow_team_authz.doors.names",
        "writing": "airflow_team_authz.doors.names",
        "bundles": "airflow_team_authz.doors.names",
        "parsing": "airflow_team_authz.identities.machines",
        "triggers": "airflow_team_authz.identities.machines",
        "testing": "airflow_team_authz.identities.machines",
        "why a task waits": "airflow_team_authz.doors.lent_pools",
        "log": "airflow_team_authz.doors.task_log",
    }


def test_the_scheduler_does_not_compare_a_pools_team(tmp_path: Path) -> None:
    chosen = "from airflow.jobs.scheduler_job_runner import SchedulerJobRunner as runner\n"
    chosen += "import json\nprint(json.dumps(runner._executable_task_instances_to_queued.__globals__['__name__']))"
    assert said(tmp_path, chosen, **OURS) == "airflow_team_authz.doors.lent_pools"


@pytest.mark.parametrize(
    "variables",
    [
        {"AIRFLOW__TEAM_AUTHZ__DEADLINE_MS": "100"},
        pytest.param(
            {"AIRFLOW__CORE__ASSET_MANAGER_CLASS": "airflow_team_authz.TeamAssetManager"}, marks=pytest.mark.exhaustive
        ),
    ],
    ids=str,
)
def test_any_of_our_settings_is_enough(tmp_path: Path, variables: dict[str, str]) -> None:
    found = said(tmp_path, LOOK, **variables)
    assert isinstance(found, dict)
    assert all(module.startswith("airflow_team_authz.") for module in found.values())


def test_where_nobody_has_configured_it_airflow_is_left_alone(tmp_path: Path) -> None:
    found = said(tmp_path, LOOK)
    assert isinstance(found, dict)
    assert {module.partition(".")[0] for module in found.values()} == {"airflow"}


OBSERVE = "[core]\nauth_manager = {}\n[team_authz]\nmode = observe\n"
SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"


@pytest.mark.exhaustive
def test_where_the_policy_only_observes_airflow_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "airflow.cfg").write_text(OBSERVE.format(SIMPLE))
    found = said(tmp_path, LOOK)
    assert isinstance(found, dict)
    assert {module.partition(".")[0] for module in found.values()} == {"airflow"}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("file", "variables", "told"),
    [
        ("", {"AIRFLOW__TEAM_AUTHZ__MODE": "observe"}, "mode is observe in the environment alone"),
        (OBSERVE.format(SIMPLE), OURS, "mode is observe, and [core] auth_manager is this package's"),
        ("[team_authz]\nmode = observ\n", {}, "Input should be 'decide' or 'observe'"),
    ],
)
def test_no_process_observes_by_accident(tmp_path: Path, file: str, variables: dict[str, str], told: str) -> None:
    (tmp_path / "airflow.cfg").write_text(file)
    done = airflow(tmp_path, "import airflow.models.taskinstance", **variables)
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize("configured", [False, True])
def test_standalone_leaves_what_users_do_unasked_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: bool
) -> None:
    """As it starts its components. Without a section of ours nothing in them says that they are ours to guard."""
    from airflow.cli.commands.standalone_command import StandaloneCommand

    for name, value in OURS.items():
        monkeypatch.setenv(name, value)
    forced = {name: value for name, value in StandaloneCommand().calculate_env().items() if name in OURS}
    assert forced["AIRFLOW__CORE__AUTH_MANAGER"].endswith(".SimpleAuthManager")
    found = said(tmp_path, LOOK, **forced, **({"AIRFLOW__TEAM_AUTHZ__DEADLINE_MS": "100"} if configured else {}))
    assert isinstance(found, dict)
    assert {module.partition(".")[0] for module in found.values()} == {
        "airflow_team_authz" if configured else "airflow"
    }


def test_no_process_keeps_a_dags_team(tmp_path: Path) -> None:
    code = (
        "import json\nfrom airflow.models import DagModel\nprint(json.dumps(hasattr(DagModel.get_team_name, 'cache')))"
    )
    assert said(tmp_path, code, **OURS) is False


def test_a_process_that_cannot_be_guarded_does_not_start(tmp_path: Path) -> None:
    spoilt = "import airflow_team_authz.hooks as hooks\nhooks.DOORS['airflow.jobs.job'] = ('no.such.door',)\n"
    done = airflow(tmp_path, f"{spoilt}import airflow.jobs.job", **OURS)
    assert done.returncode != 0
    assert "No module named 'no'" in done.stderr


def test_an_asset_manager_without_the_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from airflow.assets.manager import AssetManager\nclass Own(AssetManager): ...\n")
    named = {"AIRFLOW__CORE__ASSET_MANAGER_CLASS": "own.Own", "PYTHONPATH": str(tmp_path)}
    done = airflow(tmp_path, "import airflow.models.taskinstance", **OURS, **named)
    assert done.returncode != 0
    assert "[core] asset_manager_class: own.Own does not ask the policy" in done.stderr


def test_an_api_server_without_the_tasks_door_does_not_serve(tmp_path: Path) -> None:
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "airflow_team_authz.hooks"]
from airflow.api_fastapi.app import create_app
create_app()
"""
    done = airflow(tmp_path, code, **OURS)
    assert done.returncode != 0
    assert "the Execution API is not guarded" in done.stderr


# Each takes a process that imports Airflow.
_DOORS = sorted({door for doors in DOORS.values() for door in doors})


@pytest.mark.parametrize(
    "door", [_DOORS[0], *(pytest.param(door, marks=pytest.mark.exhaustive) for door in _DOORS[1:-1]), _DOORS[-1]]
)
def test_a_door_may_be_imported_first(tmp_path: Path, door: str) -> None:
    """As `team-authz` does, and as Airflow does by way of a setting."""
    code = f"import {door}\n{LOOK}"
    found = said(tmp_path, code, **OURS)
    assert isinstance(found, dict)
    assert all(module.startswith("airflow_team_authz.") for module in found.values())


@pytest.mark.parametrize("process", ["airflow.sdk.execution_time.task_runner", "airflow.sdk.execution_time.supervisor"])
def test_a_process_that_runs_a_task_imports_no_engine(tmp_path: Path, process: str) -> None:
    code = f"import json, sys, {process}\nprint(json.dumps([*sys.modules]))"
    loaded = said(tmp_path, code, **OURS)
    assert isinstance(loaded, list)
    assert not any(name.startswith("airflow_team_authz.engines") for name in loaded)
    assert not any(name in {"airflow_team_authz.doors.tasks", "airflow_team_authz.doors.users"} for name in loaded)
    assert "wasmtime" not in loaded
