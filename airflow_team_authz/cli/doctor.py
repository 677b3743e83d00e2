"""``team-authz doctor``: checks that an installation decides, and decides correctly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.decisions import log_check
from airflow_team_authz.cli.support.checks import Check
from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    talking_to_stderr,
)
from airflow_team_authz.cli.support.engine import (
    BadSettingsError,
    PolicyOption,
    UrlOption,
    configured_engine,
    named_engine,
    opened,
)
from airflow_team_authz.cli.support.vocabulary import resource_words
from airflow_team_authz.escaping import one_line

if TYPE_CHECKING:
    from airflow_team_authz.engines import DecisionPoint, Engine
    from airflow_team_authz.engines.choice import EngineSettings
    from airflow_team_authz.model import Evaluations

WRONG = 1
_HOOKS = "airflow_team_authz.hooks"
_NAME = "team-authz-doctor"


def doctor(
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    role: Annotated[
        str, typer.Option(help="The role of your platform's admins, if it has another name in the role table.")
    ] = "admin",
    rules: Annotated[
        bool, typer.Option("--rules", help="Check only the files of the policy, without an engine.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check settings, engine and policy, and ask for one decision about each type of resource.

    Exit code 0: each check passed. 1: a check failed. 2: the command could not check.
    """
    with talking_to_stderr():
        found = list(
            _rule_checks(named_engine(policy, opa_url) or configured_engine())
            if rules
            else examine(policy, opa_url, role)
        )
    if output is Output.JSON:
        print_json([check.as_json() for check in found])
    else:
        _print(found)
    if not all(check.ok for check in found):
        raise typer.Exit(WRONG)


def examine(policy: Path | None, opa_url: str | None, role: str) -> Iterator[Check]:
    """All checks, in an order in which a failure explains those after it."""
    named = named_engine(policy, opa_url)
    settings: EngineSettings | None = named
    if named is not None:
        yield Check("settings", True, "Airflow's configuration is not necessary: the command line names the engine")
    else:
        try:
            settings = configured_engine()
        except BadSettingsError as error:
            yield Check("settings", False, str(error), "correct it in airflow.cfg or in the environment")
        yield from _airflow_checks(readable=settings is not None)
        if settings is not None:
            yield _login_check()
            yield log_check()
            yield from _group_checks(settings)
            yield from _shadow_checks()
    if settings is not None:
        yield from _engine_checks(settings, role, in_airflow=named is None)


def _airflow_checks(readable: bool) -> Iterator[Check]:
    from airflow_team_authz.settings import MANAGER, another_manager, read_installation

    airflow = read_installation()
    if readable:
        told = ", ".join(f"{name} ({source})" for name, source in sorted(airflow.sources.items()))
        yield Check("settings", True, f"[team_authz] sets {told}" if told else "[team_authz] sets nothing: defaults")
    if readable and configured_engine().mode == "observe":
        yield Check(
            "mode",
            False,
            f"OBSERVING: {airflow.auth_manager} decides, and the policy only says what it would have answered: nothing "
            "of this package is enforced",
            f"to have the policy decide, set [core] auth_manager = {MANAGER} and [team_authz] mode = decide",
        )
        return
    yield Check(
        "auth manager",
        airflow.auth_manager == MANAGER,
        another_manager() or f"[core] auth_manager is {MANAGER}; `airflow standalone` has SimpleAuthManager instead",
        "" if airflow.auth_manager == MANAGER else f"set [core] auth_manager = {MANAGER}, or Airflow does not ask us",
    )
    yield Check(
        "multi team",
        airflow.multi_team,
        f"[core] multi_team is {'on' if airflow.multi_team else 'off'}",
        "" if airflow.multi_team else "set [core] multi_team = True, or Airflow has no teams",
    )
    hooked = any(point.value == _HOOKS for point in entry_points(group="airflow.policy"))
    yield Check(
        "doors",
        hooked,
        "tasks, datasets and pools are guarded by the entry point airflow.policy"
        if hooked
        else "the entry point airflow.policy of this package is missing",
        ""
        if hooked
        else "install the package with its metadata (pip install), or nothing guards tasks, datasets and pools",
    )
    yield _routes_check()


def _routes_check() -> Check:
    from airflow_team_authz.doors.user_routes import unknown_routes

    unknown = unknown_routes()
    if not unknown:
        return Check("routes", True, "each route of users is in the table of this version")
    told = f"this version lacks these routes, or Airflow asks less about them than expected: {', '.join(unknown)}"
    return Check(
        "routes",
        False,
        told,
        "look for a newer version of airflow-team-authz; only platform admins may use them",
    )


def _login_check() -> Check:
    from airflow_team_authz.cli.support.login import login_manager, name_of
    from airflow_team_authz.model import EngineError

    try:
        manager = login_manager()
        verifies = manager.verifies()
        return Check("login", True, f"{name_of(manager)} logs people in {verifies}".strip())
    except (UserError, EngineError) as error:
        return Check("login", False, str(error))


def _group_checks(settings: EngineSettings) -> Iterator[Check]:
    """Keycloak names groups by their paths or not, and nobody sees that before somebody logs in."""
    from airflow_team_authz.cli.support.directory import group_path_checks
    from airflow_team_authz.settings import read_settings

    if "Keycloak" in read_settings().authn_manager and isinstance(settings.policy, Path) and settings.policy.is_dir():
        yield from group_path_checks(settings.policy)


def _shadow_checks() -> Iterator[Check]:
    """The candidate that is asked beside the policy in force can be asked."""
    from airflow_team_authz.decision_log import sink_names
    from airflow_team_authz.engines.choice import open_shadow
    from airflow_team_authz.model import EngineError

    settings = configured_engine()
    if settings.shadow is None:
        return
    try:
        engine = open_shadow(settings.shadow, settings)
    except (EngineError, OSError) as error:
        yield Check("shadow", False, str(error), "it decides nothing: correct it, or unset [team_authz] shadow")
        return
    engine.close()
    told = f"{settings.shadow} decides nothing, and gets a share of {settings.shadow_sample:g} of all questions"
    if sink_names(settings.decision_log):
        yield Check("shadow", True, told)
    else:
        yield Check("shadow", False, told, "set [team_authz] decision_log, or nobody sees the different answers")


def _engine_checks(settings: EngineSettings, role: str, in_airflow: bool) -> Iterator[Check]:
    from airflow_team_authz.model import EngineError

    if isinstance(settings.policy, Path) and settings.policy.is_dir():
        from airflow_team_authz.cli.support.directory import directory_checks

        yield from directory_checks(settings.policy)
    if isinstance(settings.policy, Path):
        yield from _rule_checks(settings)
    try:
        with opened(settings) as engine:
            yield Check("engine", True, _where(settings))
            yield from _server_checks(settings, engine)
            yield from _decision_checks(engine, role)
            if in_airflow:
                yield from _pool_checks(engine)
    except (EngineError, UserError) as error:
        yield Check("engine", False, str(error))


def _rule_checks(settings: EngineSettings) -> Iterator[Check]:
    """Each rule reads what a question has, and is where an engine looks."""
    from airflow_team_authz.gate.policy_files import directory_findings, rule_findings
    from airflow_team_authz.opa.archive import BundleRefusedError, unpack
    from airflow_team_authz.opa.compile import CompileError

    if not isinstance(settings.policy, Path):
        yield Check("rules", True, "not checked: this host has no files with the rules")
        return
    try:
        if settings.policy.is_dir():
            found = directory_findings(settings.policy, settings.opa)
        else:
            found = rule_findings(unpack(settings.policy.read_bytes()), settings.opa)
    except (BundleRefusedError, CompileError, OSError) as error:
        yield Check("rules", False, f"{settings.policy} cannot be checked: {error}")
        return
    for _, file, line, message, help_, level in found:
        told = "" if level == "error" else f"{level}: "
        yield Check("rules", level != "error", f"{file}:{line}: {told}{message}", help_)
    if not found:
        yield Check(
            "rules",
            True,
            "each rule can be true, and is in a file that an engine loads",
        )


def _where(settings: EngineSettings) -> str:
    if settings.opa_url:
        return f"the OPA server at {settings.opa_url}, {settings.deadline_ms} ms for a question"
    return f"in this process, {settings.policy or 'the packaged baseline'}"


def _server_checks(settings: EngineSettings, engine: Engine) -> Iterator[Check]:
    from airflow_team_authz.engines.opa_server import OpaServer

    if isinstance(engine, OpaServer):
        from airflow_team_authz.cli.support.opa_admin import server_checks

        yield from server_checks(settings, engine)


def _decision_checks(engine: Engine, role: str) -> Iterator[Check]:
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.model import EngineError

    point = DecisionPoint(engine)
    questions = {type_: _question(type_, role) for type_ in resource_words("type")}
    try:
        # Also the first one, which pays for what the others find ready.
        revision = point.decide(next(iter(questions.values()))).revision
    except EngineError as error:
        yield Check("policy", False, str(error))
        return
    yield Check("policy", True, f"revision {revision or 'unnamed'}", "" if revision else _NAME_IT)
    for type_, question in questions.items():
        yield _decide(point, type_, question)


def _pool_checks(engine: Engine) -> Iterator[Check]:
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_team_authz.doors.pools import missing_default_pools
    from airflow_team_authz.engines import DecisionPoint

    name = "default pools"
    try:
        missing = missing_default_pools(DecisionPoint(engine))
    except SQLAlchemyError as error:
        told = f"not checked: Airflow's database does not answer here ({type(error).__name__})"
        yield Check(name, True, told)
        return
    if not missing:
        yield Check(name, True, "each default_pool that a team's policy names exists")
    for team_id, pool in missing.items():
        told = one_line(
            f"the default_pool of team {team_id}, {pool}, does not exist: tasks without another pool wait for ever"
        )
        yield Check(name, False, told, f"create the pool, or correct default_pool in teams/{team_id}/data.json")


_NAME_IT = "build the bundle with --revision, so that logs name the policy that decided"


def _decide(point: DecisionPoint, type_: str, question: Evaluations) -> Check:
    from airflow_team_authz.model import EngineError

    name = f"decision {type_}"
    start = time.perf_counter_ns()
    try:
        (decision,) = point.decide(question).decisions
    except EngineError as error:
        return Check(name, False, str(error))
    took = round((time.perf_counter_ns() - start) / 1000)
    reasons = one_line("; ".join(decision.reasons))
    if decision.allow:
        return Check(name, True, f"{question.action} is allowed: {reasons}", microseconds=took)
    return Check(name, False, f"{question.action} is denied: {reasons}", _DENIED.format(type_), took)


_DENIED = (
    "a platform admin should be allowed this: see {!r} in airflow/roles/data.json and airflow/site, "
    "or name your platform's admin role by --role"
)


def _question(type_: str, role: str) -> Evaluations:
    """An action that a platform admin may do with a resource of this type."""
    from airflow_team_authz.model import Context, Evaluations, Resource, Subject

    subject = Subject("user", _NAME, roles=(role,))
    if type_ == "hitl_task":
        return Evaluations(subject, "update", [Resource(type_)], Context(_NAME, (_NAME,)))
    # By the names that they have in Airflow and in FAB: a site may allow some views and pages only.
    if named := {"view": "website", "custom_view": "Users"}.get(type_):
        return Evaluations(subject, "read", [Resource(type_, id=named)])
    return Evaluations(subject, "list", [Resource(type_)])


def _print(found: list[Check]) -> None:
    rows = []
    for check in found:
        took = "" if check.microseconds is None else f"{check.microseconds} µs"
        rows.append(["ok" if check.ok else "wrong", check.check, took, check.detail])
        if check.help:
            rows.append(["", "", "", f"-> {check.help}"])
    print_columns(rows)
