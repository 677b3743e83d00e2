"""What Airflow does by the name of the auth manager: FAB's sessions, ``access_control``, ``airflow standalone``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow import settings
from airflow.dag_processing import collection
from airflow.models import DagModel
from airflow.models.errors import ParseImportError
from airflow.sdk import DAG, BaseOperator
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from sqlalchemy import select

from airflow_team_authz.doors import recognition
from tests.test_hooks import OURS, airflow, said

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
TABLES = "import json\nfrom airflow.utils.db_cleanup import config_dict\nprint(json.dumps('session' in config_dict))"
OWN_FAB = f"from {FAB.rpartition('.')[0]} import FabAuthManager\n\nclass Badges(FabAuthManager):\n    pass\n"


@pytest.mark.parametrize(
    ("login", "more", "cleaned"),
    [
        (FAB, {}, True),
        pytest.param("own_login.Badges", {}, True, marks=pytest.mark.exhaustive),
        (SIMPLE, {}, False),
        pytest.param(FAB, {"AIRFLOW__FAB__SESSION_BACKEND": "securecookie"}, False, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_fabs_sessions_are_cleaned_where_fab_logs_people_in(
    tmp_path: Path, login: str, more: dict[str, str], cleaned: bool
) -> None:
    pytest.importorskip("airflow.providers.fab", reason="the FAB provider is not installed")
    (tmp_path / "own_login.py").write_text(OWN_FAB)
    named = {"AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER": login, "PYTHONPATH": str(tmp_path)}
    assert said(tmp_path, TABLES, **OURS, **named, **more) is cleaned


def test_airflow_standalone_says_that_nobody_asks_the_policy_about_people(tmp_path: Path) -> None:
    code = "from airflow.cli.commands.standalone_command import StandaloneCommand\nStandaloneCommand().calculate_env()"
    done = airflow(tmp_path, code, **OURS)
    assert done.returncode == 0, done.stderr
    assert f"[core] auth_manager is {SIMPLE}, and not airflow_team_authz.TeamAuthManager" in done.stdout


def test_an_api_server_with_another_auth_manager_says_so(tmp_path: Path) -> None:
    """As `airflow standalone` starts one."""
    code = "from airflow.api_fastapi.app import create_app\ncreate_app()"
    configured = {"AIRFLOW__CORE__AUTH_MANAGER": SIMPLE, "AIRFLOW__TEAM_AUTHZ__DEADLINE_MS": "100"}
    database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db"}
    done = airflow(tmp_path, code, **configured, **database)
    assert done.returncode == 0, done.stderr
    assert "nobody asks the policy about people" in done.stdout + done.stderr


def parsed(dag_id: str, file: str, access_control: Any = None) -> LazyDeserializedDAG:
    with DAG(dag_id, schedule=None, access_control=access_control) as dag:
        BaseOperator(task_id="work")
    dag.fileloc, dag.relative_fileloc = __file__, file
    return LazyDeserializedDAG.from_dag(dag)


Write = Callable[..., dict[str, str]]


@pytest.fixture
def write(database: None, monkeypatch: pytest.MonkeyPatch) -> Write:  # noqa: ARG001
    """Puts parsed Dags into the database as the Dag processor does; the import errors by file."""
    monkeypatch.setattr(collection, "update_dag_parsing_results_in_db", collection.update_dag_parsing_results_in_db)
    recognition.guard(collection)
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", OURS["AIRFLOW__CORE__AUTH_MANAGER"])

    def write(login: str, *dags: LazyDeserializedDAG) -> dict[str, str]:
        monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER", login)
        assert settings.Session is not None
        files = {("of alpha", str(dag.relative_fileloc)) for dag in dags}
        with settings.Session() as session:
            collection.update_dag_parsing_results_in_db(
                "of alpha", None, list(dags), {}, None, set(), session, files_parsed=files
            )
            session.commit()
            rows = session.scalars(select(ParseImportError).where(ParseImportError.bundle_name == "of alpha"))
            return {str(row.filename): str(row.stacktrace) for row in rows}

    return write


def runs(dag_id: str) -> bool:
    assert settings.Session is not None
    with settings.Session() as session:
        dag = session.get(DagModel, dag_id)
        return dag is not None and not dag.is_stale and not dag.has_import_errors


@pytest.mark.parametrize(
    "access_control",
    [
        {"Analysts": {"can_read"}},
        {"Analysts": {"DAGs": {"can_read"}, "DAG Runs": {"can_create"}}},
        {"Analysts": set()},
        {"Analysts": {"Nothing known": {"can_fly"}}},
    ],
    ids=["of a Dag", "of its runs too", "of nothing", "of what there is not"],
)
def test_access_control_is_an_import_error_that_says_how_to_do_it(write: Write, access_control: Any) -> None:
    errors = write(FAB, parsed("shared", "shared.py", access_control), parsed("plain", "plain.py"))
    assert list(errors) == ["shared.py"]
    assert errors["shared.py"].startswith("Dag shared has access_control, which gives nobody anything here")
    assert "(Analysts)" in errors["shared.py"]
    assert (runs("shared"), runs("plain")) == (False, True)
    assert write(FAB, parsed("shared", "shared.py")) == {}
    assert runs("shared")


def test_where_fab_does_not_log_people_in_access_control_means_nothing_as_ever(write: Write) -> None:
    assert write(SIMPLE, parsed("shared", "shared.py", {"Analysts": {"can_read"}})) == {}
    assert runs("shared")


def test_access_control_that_cannot_be_read_is_none() -> None:
    """What runs a Dag's file may hand over anything."""
    dag = parsed("odd", "odd.py", {"Analysts": {"can_read"}})
    dag.data["dag"]["access_control"] = json.loads('{"__type": "no such type", "__var": 1}')
    assert recognition._roles_of(dag) == []
