"""Places in the installed Airflow, and its providers, that this package has to know: each is in a reviewed table.

A place that a coming Airflow adds is none of the table's, and fails here until somebody has looked at it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import airflow
import pytest

from tests.conftest import REPOSITORY

_ROOT = Path(airflow.__file__).parent
_NOT_RUN = ("migrations/", "example_dags/")
# Comparisons of SQL and of sets, beside those that are operators.
_COMPARING = {
    "contains", "difference", "filter_by", "has", "in_", "intersection", "is_", "is_not", "isdisjoint", "issubset",
    "issuperset", "not_in",
}  # fmt: skip

Place = tuple[str, str]


def modules(word: str) -> Iterator[tuple[str, ast.Module]]:
    """Airflow's modules in which a word occurs."""
    for file in sorted(_ROOT.rglob("*.py")):
        name = file.relative_to(_ROOT).as_posix()
        if name.startswith(_NOT_RUN) or "/example_dags/" in name:
            continue
        if word in (text := file.read_text()).lower():
            yield name, ast.parse(text)


def places(word: str, counts: Callable[[ast.AST], bool]) -> Counter[Place]:
    """How often something that counts is in each function of Airflow's, by module and name."""
    found: Counter[Place] = Counter()

    def look(node: ast.AST, module: str, names: tuple[str, ...]) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = (*names, node.name)
        if counts(node):
            found[module, ".".join(names)] += 1
            return
        for child in ast.iter_child_nodes(node):
            look(child, module, names)

    for module, tree in modules(word):
        look(tree, module, ())
    return found


def mentions(node: ast.AST, word: str) -> bool:
    """Whether a name, an attribute or a short text in an expression has a word in it."""
    for part in ast.walk(node):
        name = getattr(part, "id", None) or getattr(part, "attr", None) or getattr(part, "arg", None)
        text = part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""
        if word in str(name or "").lower() or (len(text) < 40 and word in text.lower()):
            return True
    return False


def compares_teams(node: ast.AST) -> bool:
    called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
    return (isinstance(node, ast.Compare) or called in _COMPARING) and mentions(node, "team")


# How many comparisons each place has. What this package does about them is in docs/doors.md, which names these.
AFTER_THE_POLICY: dict[Place, int] = {
    ("api_fastapi/core_api/routes/public/connections.py", "enqueue_connection_test"): 2,
    ("api_fastapi/core_api/routes/public/connections.py", "test_connection"): 1,
    ("api_fastapi/execution_api/routes/variables.py", "get_variable_keys"): 2,
    ("api_fastapi/execution_api/routes/xcoms.py", "has_xcom_access"): 2,
    ("assets/manager.py", "AssetManager._filter_dags_by_team"): 8,
    ("dag_processing/bundles/manager.py", "DagBundlesManager.sync_bundles_to_db"): 4,
    ("jobs/scheduler_job_runner.py", "SchedulerJobRunner._executable_task_instances_to_queued"): 1,
    ("jobs/scheduler_job_runner.py", "SchedulerJobRunner._try_to_load_executor"): 4,
    ("models/trigger.py", "Trigger.get_sorted_triggers"): 2,
    ("models/trigger.py", "Trigger.ids_for_triggerer"): 2,
    ("models/variable.py", "Variable.delete"): 2,
    ("models/variable.py", "Variable.update"): 3,
    ("secrets/environment_variables.py", "EnvironmentVariablesBackend._names_a_team_namespace"): 1,
    ("secrets/metastore.py", "MetastoreBackend.get_connection"): 2,
    ("secrets/metastore.py", "MetastoreBackend.get_variable"): 2,
    ("ti_deps/deps/pool_slots_available_dep.py", "PoolSlotsAvailableDep._get_dep_statuses"): 1,
    ("providers/amazon/aws/secrets/secrets_manager.py", "SecretsManagerBackend._names_a_team_namespace"): 1,
    (
        "providers/amazon/aws/secrets/systems_manager.py",
        "SystemsManagerParameterStoreBackend._names_a_team_namespace",
    ): 1,
}
# The login manager's decisions, in whose place are ours.
_SIMPLE, _KEYCLOAK = "api_fastapi/auth/managers/simple", "providers/keycloak/auth_manager"
NEVER_ASKED: dict[Place, int] = {
    ("api_fastapi/auth/managers/base_auth_manager.py", "BaseAuthManager.get_authorized_dag_ids"): 1,
    (f"{_SIMPLE}/simple_auth_manager.py", "SimpleAuthManager._is_authorized"): 1,
    (f"{_SIMPLE}/simple_auth_manager.py", "SimpleAuthManager.is_authorized_team"): 1,
    (f"{_KEYCLOAK}/cli/commands.py", "_update_admin_permission_resources"): 1,
    (f"{_KEYCLOAK}/keycloak_auth_manager.py", "KeycloakAuthManager._is_authorized"): 1,
    **{
        (
            f"{_KEYCLOAK}/keycloak_auth_manager.py",
            f"KeycloakAuthManager.filter_authorized_{kind}.query_keycloak.check",
        ): 1
        for kind in ("connections", "dag_ids", "pools", "variables")
    },
}
# Looks for a team rather than comparing two, or reads the configuration, or asks the policy about what it has found.
ASKS_OR_READS: dict[Place, int] = {
    ("_shared/configuration/parser.py", "AirflowConfigParser.get"): 1,
    ("_shared/secrets_backend/base.py", "_accepts_team_name"): 1,
    ("api_fastapi/auth/managers/base_auth_manager.py", "BaseAuthManager.init"): 1,
    (f"{_SIMPLE}/user.py", "SimpleAuthManagerUser.__eq__"): 1,
    ("api_fastapi/core_api/datamodels/connections.py", "ConnectionBody.validate_team_name"): 1,
    ("api_fastapi/core_api/datamodels/pools.py", "PoolBody.validate_team_name"): 1,
    ("api_fastapi/core_api/datamodels/pools.py", "PoolPatchBody.validate_team_name"): 1,
    ("api_fastapi/core_api/datamodels/variables.py", "VariableBody.validate_team_name"): 1,
    ("api_fastapi/core_api/security.py", "PermittedTeamFilter.to_orm"): 1,
    ("api_fastapi/core_api/security.py", "requires_access_connection_bulk.inner"): 2,
    ("api_fastapi/core_api/security.py", "requires_access_pool_bulk.inner"): 2,
    ("api_fastapi/core_api/security.py", "requires_access_variable_bulk.inner"): 2,
    ("cli/commands/team_command.py", "team_create"): 1,
    ("cli/commands/team_command.py", "team_delete"): 5,
    ("cli/commands/team_command.py", "team_sync"): 2,
    ("cli/commands/triggerer_command.py", "triggerer"): 1,
    ("dag_processing/manager.py", "DagFileProcessorManager._get_team_names"): 1,
    ("executors/executor_loader.py", "ExecutorLoader._get_executor_names"): 1,
    ("executors/executor_loader.py", "ExecutorLoader._get_team_executor_configs"): 5,
    ("executors/executor_utils.py", "ExecutorName.__eq__"): 1,
    ("jobs/scheduler_job_runner.py", "SchedulerJobRunner._executor_to_workloads"): 1,
    ("jobs/scheduler_job_runner.py", "SchedulerJobRunner._get_team_names_for_dag_ids"): 1,
    ("sdk/_shared/configuration/parser.py", "AirflowConfigParser.get"): 1,
    ("sdk/_shared/secrets_backend/base.py", "_accepts_team_name"): 1,
    ("serialization/encoders.py", "encode_asset_like"): 2,
    (
        "providers/amazon/aws/executors/eks/eks_executor.py",
        "AwsEksExecutor._check_no_kubernetes_executor_in_scope",
    ): 1,
}


@pytest.fixture(scope="module")
def comparisons() -> Counter[Place]:
    return places("team", compares_teams)


def test_each_comparison_of_teams_is_reviewed(comparisons: Counter[Place]) -> None:
    assert dict(comparisons) == AFTER_THE_POLICY | NEVER_ASKED | ASKS_OR_READS


@pytest.mark.parametrize("place", sorted({name for _, name in AFTER_THE_POLICY}))
def test_the_documentation_says_what_becomes_of_a_comparison(place: str) -> None:
    assert f"`{place}`" in (REPOSITORY / "docs/doors.md").read_text()


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("pool.team_name != team", True),
        ("not_in = team in teams", True),
        ("select(X).where(X.team_name == name)", True),
        ("X.team_name.in_(names)", True),
        ("query.filter_by(team_name=name)", True),
        ("row['team_name'] == 'x'", True),
        ("source_teams.isdisjoint(wanted)", True),
        ("tags = {'team_name': team}", False),
        ("conf.get('core', 'x', team_name=team)", False),
    ],
    ids=str,
)
def test_a_comparison_is_recognized(code: str, is_one: bool) -> None:
    assert any(compares_teams(node) for node in ast.walk(ast.parse(code))) is is_one


def reads_the_class_path(node: ast.AST) -> bool:
    """Whether it asks for ``[core] auth_manager``, or sets it."""
    if isinstance(node, ast.Constant):
        return node.value == "AIRFLOW__CORE__AUTH_MANAGER"
    if not isinstance(node, ast.Call):
        return False
    return "auth_manager" in {
        part.value for part in (*node.args, *(named.value for named in node.keywords)) if isinstance(part, ast.Constant)
    }


def asks_for_its_class(node: ast.AST) -> bool:
    """Whether it compares the auth manager's class: a subclass, as the one of this package, passes."""
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    return (
        called in {"isinstance", "issubclass"}
        and mentions(node, "authmanager")
        and not mentions(node, "authmanageruser")
    )


# What each of them means with this package is in docs/logins.md, which names these.
READS_THE_CLASS_PATH: dict[Place, int] = {
    ("api_fastapi/app.py", "get_auth_manager_cls"): 1,
    ("cli/cli_parser.py", ""): 1,
    ("cli/commands/standalone_command.py", "StandaloneCommand.calculate_env"): 3,
    ("configuration.py", "initialize_auth_manager"): 1,
    ("dag_processing/collection.py", "_serialize_dag_capturing_errors"): 1,
    ("utils/db_cleanup.py", ""): 1,
}
# Of these a subclass is one.
ASKS_FOR_ITS_CLASS: dict[Place, int] = {
    ("api_fastapi/app.py", "create_auth_manager"): 2,
    ("providers/fab/auth_manager/api_fastapi/routes/login.py", "_get_flask_app"): 1,
    ("providers/fab/www/app.py", "create_app"): 1,
    ("providers/fab/www/utils.py", "get_fab_auth_manager"): 1,
}


def test_each_look_at_the_class_path_of_the_auth_manager_is_reviewed() -> None:
    assert dict(places("auth_manager", reads_the_class_path)) == READS_THE_CLASS_PATH
    assert dict(places("authmanager", asks_for_its_class)) == ASKS_FOR_ITS_CLASS


@pytest.mark.parametrize("module", sorted(module for module, _ in READS_THE_CLASS_PATH))
def test_the_documentation_says_what_a_look_at_the_class_path_means(module: str) -> None:
    assert f"`airflow/{module}`" in (REPOSITORY / "docs/logins.md").read_text()
