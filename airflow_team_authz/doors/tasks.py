"""The tasks' door: the Execution API, wherever it runs. What takes a token passes ``require_auth``, and so us."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from airflow.api_fastapi.execution_api.datamodels.token import TIToken
from airflow.api_fastapi.execution_api.security import _jwt_bearer
from airflow.models import Variable
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import select

from airflow_team_authz import questions
from airflow_team_authz.decision_log import origin
from airflow_team_authz.doors import DoorError, disclosure, routes, wall
from airflow_team_authz.doors.decision_point import decision_point
from airflow_team_authz.doors.disclosure import told_id
from airflow_team_authz.identities import machines, requests
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.settings import SettingsError

_DECIDED = "team_authz_decided"
_TEAM = "team_authz_team"
_KEYS = ("GET", "/variables/keys")


# What Airflow has in the place of ours.
_airflows = SimpleNamespace()


class NotGuardedError(DoorError):
    """The Execution API cannot be guarded: it must not serve."""


class _Answered(Exception):  # noqa: N818 - an answer, no error
    """A request that is answered here, in place of Airflow's route."""

    def __init__(self, response: Response) -> None:
        self.response = response


async def decide(scopes: SecurityScopes, request: Request, token: Annotated[TIToken, Depends(_jwt_bearer)]) -> TIToken:
    """In place of Airflow's ``require_auth``, which it calls: then the policy decides, once per request."""
    token = await _airflows.require_auth(scopes, request, token)
    # Cadwyn resolves dependencies twice, FastAPI once for each router above a route.
    if _DECIDED not in request.scope:
        route = request.scope.get("route")
        origin.come_in("tasks", request.scope)
        about = (request.method, str(getattr(route, "path", "")))
        request.scope[_TEAM], allowed = await run_in_threadpool(_decide, about, request, token)
        if allowed is not None:
            requests.begin(*allowed)
        request.scope[_DECIDED] = True
    return token


async def team_of_resource(request: Request, _: Annotated[TIToken, Depends(decide)]) -> str | None:
    """In place of Airflow's ``get_team_name_dep``: where a decided resource is, so that what is allowed is found."""
    team_id: str | None = request.scope[_TEAM]
    return team_id


class _Allowed(NamedTuple):
    """Permissions of a request. Its queries find the rows that they cover, and those of the task's own Dag."""

    subject: Subject
    allowed: set[tuple[str, Resource]]


def _decide(about: tuple[str, str], request: Request, token: TIToken) -> tuple[str | None, _Allowed | None]:
    """The team to look in for what is asked about, and what was allowed, if it took a decision.

    Raises an ``HTTPException`` unless it is allowed.
    """
    if about not in routes.ROUTES:
        unknown = f"the route {' '.join(about)} is unknown to this version of airflow-team-authz"
        raise _refused(Subject("task", str(token.id)), about, unknown)
    route = routes.ROUTES[about]
    acting = machines.is_acting() and _jwt_bearer in request.app.dependency_overrides
    if route is None and about != _KEYS and not acting:
        return None, None
    with requests.unfiltered(), create_session(scoped=False) as session:
        # In process Airflow makes a token of whatever task instance the path names.
        subject = machines.subject_of_token(machines.NO_TASK if acting else token.id, session)
        if subject is None:
            gone = "the task instance of this token is not there any more"
            raise _refused(Subject("task", str(token.id)), about, gone)
        if about == _KEYS:
            raise _Answered(_readable_keys(request, subject, session))
        if acting and "task_instance_id" in request.path_params:
            _refuse_others_task(UUID(str(request.path_params["task_instance_id"])), subject, about, session)
        if route is None:
            return None, None
        asked = routes.Request(request.path_params, request.query_params, subject, session)
        try:
            resource = route.resource(asked)
        except routes.MissingError as missing:
            raise _not_found(missing) from None
        except routes.AmbiguousError as error:
            raise _refused(subject, about, str(error)) from None
        except routes.UnansweredError as error:
            raise _no_decision(error) from None
        if resource is None:
            return None, None
        action = route.action or _create_or_update(asked)
    is_allowed = _ask(subject, action, resource, route, asked)
    allowed = _Allowed(subject, {(action, resource)} if is_allowed else set())
    if not is_allowed or (action == "read" and resource.team_id is None):
        # Not to be found, or common, or only in a secrets backend, which may have one of the team's.
        return next(iter(subject.team_ids or ()), None), allowed
    return resource.team_id, allowed


def _refuse_others_task(task_instance_id: UUID, subject: Subject, about: tuple[str, str], session: Any) -> None:
    """Let a component in process report only tasks of its own team, or the single task that it runs.

    A task whose Dag is gone looks like one of no team, and is nobody's.
    """
    task = machines.task(task_instance_id, session)
    if task is None or (task != subject and not routes.dag_exists(session, str(task.dag_id))):
        raise _no_task_instance(task_instance_id)
    if task != subject if subject.type == "task" else task.team_ids != subject.team_ids:
        whose = ", ".join(f"team {team_id}" for team_id in task.team_ids or ()) or "no team"
        refused = _refused(subject, about, f"{subject.type} {subject.id} may not act for task {task.id} of {whose}")
        raise _no_task_instance(task_instance_id) if disclosure.conceals() else refused


def _no_task_instance(id_: UUID) -> HTTPException:
    return _not_found(f"Task Instance {id_} not found")


def _create_or_update(asked: routes.Request) -> str:
    return "update" if routes.variable_exists(asked.session, str(asked.path["variable_key"])) else "create"


def _ask(subject: Subject, action: str, resource: Resource, route: routes.Route, asked: routes.Request) -> bool:
    """Whether it is allowed; if not, Airflow's route will not find it. Raises an ``HTTPException`` for all else."""
    question = Evaluations(subject, action, [resource])
    try:
        policy = decision_point()
        answer, how = policy.weigh(question)
        (decision,) = answer.decisions
        if decision.allow is True:
            policy.settle(question, answer, how)
            return True
        told = disclosure.visible_reason(policy, question, resource, decision, route.missing(asked, resource))
    except (EngineError, SettingsError) as error:
        raise _no_decision(error) from None
    try:
        if told.as_missing and route.finds_nothing(asked, resource):
            policy.settle(question, answer, how)
            return False
    except routes.MissingError as missing:
        policy.settle(question, answer, how)
        raise _not_found(missing) from None
    raise _denied(told.reason, policy.settle(question, answer, how._replace(told=told.reason)).decision_id)


class _Page(BaseModel):
    """The query of ``/variables/keys``, with Airflow's own bounds."""

    prefix: str | None = None
    limit: int = Field(1000, ge=1, le=10_000)
    offset: int = Field(0, ge=0)


def _readable_keys(request: Request, subject: Subject, session: Any) -> Response:
    """The keys that the subject could read, page by page as Airflow counts them."""
    try:
        page = _Page.model_validate(dict(request.query_params))
    except ValidationError as error:
        problems = [{"loc": ["query", *problem["loc"]], "msg": problem["msg"]} for problem in error.errors()]
        return JSONResponse({"detail": problems}, 422)
    statement = select(Variable.key, Variable.team_name).order_by(Variable.key)
    if page.prefix is not None:
        statement = statement.where(Variable.key.startswith(page.prefix, autoescape=True))
    resources = [Resource("variable", team_id, key) for key, team_id in session.execute(statement)]
    try:
        allowed = decision_point().allowed(Evaluations(subject, "read", resources)) if resources else []
    except (EngineError, SettingsError) as error:
        raise _no_decision(error) from None
    keys = [resource.id for resource in allowed]
    shown = keys[page.offset : page.offset + page.limit]
    return JSONResponse({"keys": shown, "total_entries": len(keys)})


def _not_found(message: object) -> HTTPException:
    return HTTPException(404, {"reason": "not_found", "message": str(message)})


def _refused(subject: Subject, about: tuple[str, str], reason: str) -> HTTPException:
    """The answer to what is refused without a question to the policy; it is recorded as a refusal of the route."""
    action, resource = questions.route(*about)
    try:
        decision_id = decision_point().refuse(Evaluations(subject, action, [resource]), reason)
    except (EngineError, SettingsError):
        # There is no decision point, which changes nothing of the answer.
        decision_id = ""
    return _denied(reason, decision_id)


def _denied(reason: str, decision_id: str = "") -> HTTPException:
    return HTTPException(403, {"reason": "access_denied", "message": f"{reason}{told_id(decision_id)}"})


def _no_decision(error: Exception) -> HTTPException:
    # Airflow's client tries again what is answered by 5xx.
    told = f"No decision can be had. {error}{told_id(getattr(error, 'decision_id', ''))}"
    return HTTPException(503, {"reason": "no_decision", "message": told})


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: what routes depend on is replaced before any route is made.

    FastAPI's own overrides would do it too, but cost every request several milliseconds.
    """
    put_in = {
        "airflow.api_fastapi.execution_api.security": _guard_security,
        "airflow.api_fastapi.execution_api.routes.xcoms": _guard_xcoms,
        "airflow.api_fastapi.execution_api.app": _guard_app,
    }
    put_in[module.__name__](module)


def _guard_security(module: Any) -> None:
    if module.require_auth is decide:
        return
    _airflows.require_auth = module.require_auth
    module.require_auth = decide
    module.CurrentTIToken = Depends(decide)
    module.get_team_name_dep = team_of_resource


def _guard_xcoms(module: Any) -> None:
    """Airflow's own check goes by teams alone, and would refuse what a team's policy shares."""
    check = module.has_xcom_access
    names = check.__code__.co_varnames[: check.__code__.co_argcount]
    if names == _decided_already.__code__.co_varnames:
        check.__code__ = _decided_already.__code__
    elif "session" in names:
        raise NotGuardedError("this version of Airflow checks XComs in a way that airflow-team-authz does not know")


def _decided_already(dag_id, run_id, task_id, xcom_key, request, session, token):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return True


def _guard_app(module: Any) -> None:
    create: Callable[..., FastAPI] = module.create_task_execution_api_app
    if create.__module__ == __name__:
        return

    def create_guarded(*arguments: Any, **named: Any) -> FastAPI:
        refuse_unguarded_routes()
        wall.install()
        app = create(*arguments, **named)
        app.add_exception_handler(_Answered, lambda _, answered: answered.response)
        return app

    module.create_task_execution_api_app = create_guarded


def refuse_unguarded_routes() -> None:
    """``NotGuardedError`` if a route of Airflow's Execution API does not pass ``decide``: it must not be served."""
    from airflow.api_fastapi.execution_api.routes import execution_api_router

    found = [route for route in execution_api_router.routes if isinstance(route, APIRoute)]
    if not found:
        raise NotGuardedError(
            "the Execution API has no routes that airflow-team-authz could guard: is Airflow too new?"
        )
    unguarded = sorted({route.path for route in found if not _passes(route.dependant)} - routes.PUBLIC)
    if unguarded:
        raise NotGuardedError(
            f"routes of the Execution API do not pass airflow-team-authz: {', '.join(unguarded)}. Either this version "
            "of Airflow is not supported, or the entry point airflow.policy was loaded too late"
        )


def _passes(dependant: Any) -> bool:
    return any(part.call is decide or _passes(part) for part in dependant.dependencies)
