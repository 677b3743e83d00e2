"""Between Airflow's own questions about a user's request and its answer: ours (see ``doors.user_routes``).

A route gets them when Airflow makes its app, as one more dependency: after those that ask, before the row of the audit
log and before anything that the handler needs. Routes without a question of ours stay as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant, get_flat_dependant
from fastapi.routing import APIRoute

from airflow_team_authz import airflow_compat, questions
from airflow_team_authz.doors import DoorError, audit_rows, user_routes
from airflow_team_authz.escaping import logger
from airflow_team_authz.identities import requests
from airflow_team_authz.settings import another_manager

log = logger(__name__)


class NotGuardedError(DoorError):
    """Users' routes cannot be guarded: they must not be served."""


def guard(module: ModuleType) -> None:
    """See ``airflow_team_authz.hooks``: each app gets our questions when it has got Airflow's routes."""
    views: Any = module
    init_views = views.init_views
    if init_views.__module__ == __name__:
        return

    def init_guarded_views(app: Any) -> None:
        init_views(app)
        if hasattr(app.state.auth_manager, "require"):
            put_into(app)
        elif told := another_manager():
            log.error("%s", told)

    views.init_views = init_guarded_views


def put_into(app: Any) -> None:
    """Put our questions into the routes of Airflow's app; ``NotGuardedError`` if there is one that takes none."""
    unknown = []
    for route in filter(user_routes.is_users, app.routes):
        if not isinstance(route, APIRoute):
            raise NotGuardedError(
                f"airflow-team-authz cannot ask about {route.path}, which is a {type(route).__name__}: this version of "
                "Airflow is not supported"
            )
        if not user_routes.is_known(route):
            unknown += [f"{method} {route.path}" for method in sorted(route.methods)]
        _put_into(route)
    if unknown:
        log.warning(
            "This Airflow has routes that airflow-team-authz does not know, or where it asks less than it should: %s. "
            "Each is for the platform's admins, unless your policy allows others this resource of type route. Look for "
            "a newer version of airflow-team-authz",
            ", ".join(unknown),
        )

    _put_middlewares_into(app)


def _put_middlewares_into(app: Any) -> None:
    """Add the auth manager's middlewares, if Airflow does not."""
    from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager

    if not airflow_compat.asks_for_middlewares(BaseAuthManager):
        for middleware, options in app.state.auth_manager.get_fastapi_middlewares():
            app.add_middleware(middleware, **options)


def _put_into(route: APIRoute) -> None:
    dependencies = route.dependant.dependencies
    # What belongs to the route has no name; parameters of the handler have.
    asking = [part for part in dependencies if part.name is None and not audit_rows.is_logging(part.call)]
    writing = [part for part in dependencies if part.name is None and audit_rows.is_logging(part.call)]
    handler = [part for part in dependencies if part.name is not None]
    ours = _question(route)
    asks = bool(ours) or any(question != "login" for question in user_routes.airflow_asks(route))
    rows = [replace(part, call=audit_rows.logged(part.call, route, asks), scope="function") for part in writing]
    dependencies[:] = [*asking, *([ours] if ours else []), *rows, *handler]


def _question(route: APIRoute) -> Dependant | None:
    """The dependency that asks what Airflow leaves out at this route; ``None`` if there is nothing."""
    misread = _misread(route)
    known = user_routes.is_known(route)
    also = {method: user_routes.ROUTES[method, route.path].also for method in route.methods if known}
    if known and misread is None and not any(also.values()):
        return None

    async def ask(request: Any, user: Any) -> None:
        if misread is not None:
            await misread(request)
        manager = request.app.state.auth_manager
        if not known:
            action, resource = questions.route(request.method, route.path)
            await run_in_threadpool(manager.require, user, action, [resource])
        elif (about := also[request.method]) is not None and (path := _path(request, route)) is not None:
            body = await _body(request, route)
            await run_in_threadpool(_ask, about, path, body, manager, user)

    # Only now: Airflow's app, which this module guards, is imported before it.
    from airflow.api_fastapi.core_api.security import GetUserDep

    ask.__annotations__ = {"request": Request, "user": GetUserDep}
    return get_dependant(path=route.path_format, call=ask)


def _ask(about: Callable[[user_routes.Request], Any], path: Any, body: Any, manager: Any, user: Any) -> None:
    from airflow.utils.session import create_session

    def readable_dags() -> set[str]:
        dag_ids: set[str] = manager.get_authorized_dag_ids(user=user)
        return dag_ids

    with requests.unfiltered(), create_session(scoped=False) as session:
        asked = list(about(user_routes.Request(path, body, session, readable_dags)))
    for action in dict(asked):
        with requests.before_handler():
            manager.require(user, action, [resource for asked_action, resource in asked if asked_action == action])


def _path(request: Request, route: APIRoute) -> dict[str, Any] | None:
    """The path's parameters as the handler gets them; ``None`` if one is not as it should be, which is 422 as well."""
    read = {}
    for field in get_flat_dependant(route.dependant).path_params:
        read[field.alias], errors = field.validate(request.path_params[field.alias], {}, loc=("path", field.alias))
        if errors:
            return None
    return read


async def _body(request: Request, route: APIRoute) -> Any:
    """The body as the handler gets it; ``None`` if it is not as it should be, which Airflow answers with 422."""
    if len(route.dependant.body_params) != 1:
        return None
    value, errors = route.dependant.body_params[0].validate(await _json(request), {}, loc=("body",))
    return None if errors else value


async def _json(request: Request) -> dict[str, Any]:
    """The fields of the body; empty if it is not an object."""
    try:
        document = await request.json()
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _misread(route: APIRoute) -> Callable[[Request], Awaitable[None]] | None:
    """A dependency that refuses requests for which Airflow asks about another resource than the handler uses."""
    flat = get_flat_dependant(route.dependant)
    declared = {field.alias for field in flat.query_params}
    read = set(user_routes.names_read(route))
    queried = {name for where, name in read if where == "query"}
    # A body that the handler reads is the handler's, whole.
    in_body = set() if flat.body_params else {name for where, name in read if where == "body"}
    # Texts are what they are, but a number can be written in many ways.
    numbers = [field for field in flat.path_params if ("path", field.alias) in read and _is_number(field)]
    if not queried and not in_body and not numbers:
        return None

    async def refuse(request: Request) -> None:
        where = f"{request.method} {route.path}"
        for name in queried & request.query_params.keys():
            if name not in declared:
                raise HTTPException(400, f"{where} does not take {name} in its query: leave it out.")
            if len(request.query_params.getlist(name)) > 1:
                raise HTTPException(400, f"{where} takes one {name} in its query, and this request has several.")
        for field in numbers:
            written = request.path_params[field.alias]
            value, errors = field.validate(written, {}, loc=("path", field.alias))
            if not errors and str(value) != written:
                raise HTTPException(400, f"{where} takes {field.alias} written as {value}.")
        for name in in_body and in_body & (await _json(request)).keys():
            raise HTTPException(400, f"{where} does not take {name} in its body: leave it out.")

    return refuse


def _is_number(field: Any) -> bool:
    return field.field_info.annotation is not str
