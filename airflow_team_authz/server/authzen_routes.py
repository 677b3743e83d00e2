"""The routes of AuthZEN's Authorization API 1.0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.server import authzen
from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.authzen import BadRequestError, Batch
from airflow_team_authz.server.dependencies import Calling, Parts, Reading, ServerParts
from airflow_team_authz.server.evaluations import Asker, Seen
from airflow_team_authz.server.messages import access_route
from airflow_team_authz.server.releases import NotFoundError

router = APIRouter()
# The same for each environment, see below.
_api = APIRouter()


def _environment(parts: ServerParts, request: Request) -> str:
    """The environment in the path; without one, the only environment there is."""
    named, known = request.path_params.get("environment"), parts.policies.environments
    if named is None and len(known) == 1:
        return known[0]
    if named is None:
        raise BadRequestError(f"there are several environments: ask at /{known[-1]}{request.url.path}")
    if named not in known:
        raise NotFoundError(f"there is no environment {named}")
    return str(named)


class Asked(NamedTuple):
    """A request for a decision: its body, and a decision point of its environment."""

    sent: dict[str, Any]
    point: Callable[[], DecisionPoint]


async def _asked(parts: Parts, request: Request, _: Reading) -> Asked:
    environment = _environment(parts, request)
    sent = authzen.body(await request.body(), request.headers.get("Content-Type", ""))
    policies = parts.policies.with_bundles(parts.served.names())
    return Asked(sent, partial(policies.of, environment))


Asking = Annotated[Asked, Depends(_asked)]


def _answer(request: Request, told: dict[str, Any]) -> JSONResponse:
    return JSONResponse(told, headers={"Cache-Control": "no-store", **authzen.identification(request)})


@_api.post("/evaluation", response_class=JSONResponse, **access_route("evaluation"))
async def evaluation(parts: Parts, request: Request, who: Reading, asked: Asking) -> JSONResponse:
    """AuthZEN's Access Evaluation: one decision."""
    batch = Batch([authzen.evaluation(asked.sent)])
    return _answer(request, await parts.evaluations.run(who.name, lambda: Asker(asked.point(), who).decide(batch)))


@_api.post("/evaluations", response_class=JSONResponse, **access_route("evaluations"))
async def evaluations(parts: Parts, request: Request, who: Reading, asked: Asking) -> JSONResponse:
    """AuthZEN's Access Evaluations: many decisions, in the order of the questions."""
    batch = authzen.evaluations(asked.sent)
    # A thousand decisions must not delay the single ones of other callers.
    return _answer(request, await parts.searches.run(who.name, lambda: Asker(asked.point(), who).decide(batch)))


async def _found(
    parts: ServerParts, request: Request, who: Caller, asked: Asked, search: Callable[[Asker, Callable[[], Seen]], Any]
) -> JSONResponse:
    def found() -> dict[str, Any]:
        asker = Asker(asked.point(), who)
        result: dict[str, Any] = search(asker, lambda: Seen(parts.decisions, parts.readable, asker, who))
        return result

    return _answer(request, await parts.searches.run(who.name, found))


@_api.post("/search/subject", response_class=JSONResponse, **access_route("search"))
async def search_subject(parts: Parts, request: Request, who: Calling, asked: Asking) -> JSONResponse:
    """AuthZEN's Subject Search: the subjects of the newest decisions that may do something."""
    (type_, question), wanted = authzen.subject_search(asked.sent), authzen.page(asked.sent)
    return await _found(parts, request, who, asked, lambda asker, seen: asker.subjects(type_, question, wanted, seen()))


@_api.post("/search/resource", response_class=JSONResponse, **access_route("search"))
async def search_resource(parts: Parts, request: Request, who: Calling, asked: Asking) -> JSONResponse:
    """AuthZEN's Resource Search: the resources of the newest decisions on which a subject may do something."""
    (owner, question), wanted = authzen.resource_search(asked.sent), authzen.page(asked.sent)
    return await _found(
        parts, request, who, asked, lambda asker, seen: asker.resources(owner, question, wanted, seen())
    )


@_api.post("/search/action", response_class=JSONResponse, **access_route("search"))
async def search_action(parts: Parts, request: Request, who: Calling, asked: Asking) -> JSONResponse:
    """AuthZEN's Action Search: the actions that a subject may do on a resource."""
    (actions, question), wanted = authzen.action_search(asked.sent), authzen.page(asked.sent)
    return await _found(parts, request, who, asked, lambda asker, _: asker.actions(actions, question, wanted))


router.include_router(_api, prefix="/access/v1")
router.include_router(_api, prefix="/{environment}/access/v1", include_in_schema=False)


@router.get("/.well-known/authzen-configuration", include_in_schema=False)
@router.get("/.well-known/authzen-configuration/{environment}", include_in_schema=False)
async def authzen_configuration(parts: Parts, request: Request) -> JSONResponse:
    """The addresses of AuthZEN's API, for everybody. The request's own host is not to be trusted."""
    named, known = request.path_params.get("environment"), parts.policies.environments
    if not parts.public_url:
        raise NotFoundError("the server does not know its own address: start it with --public-url")
    if named not in known if named is not None else len(known) > 1:
        raise NotFoundError("name an environment: /.well-known/authzen-configuration/ENVIRONMENT")
    base = parts.public_url if named is None else f"{parts.public_url}/{named}"
    return JSONResponse(authzen.metadata(base), headers={"Cache-Control": "max-age=3600"})
