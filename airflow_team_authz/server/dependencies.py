"""What the routes get from each request: the server's parts, and who calls."""

from __future__ import annotations

from typing import Annotated, NamedTuple, NoReturn

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from airflow_team_authz.server import access
from airflow_team_authz.server.access import Access, Caller
from airflow_team_authz.server.decisions import Decisions, Readable
from airflow_team_authz.server.metrics import Counting
from airflow_team_authz.server.policies import Policies
from airflow_team_authz.server.releases import Releases
from airflow_team_authz.server.served import Served
from airflow_team_authz.server.work_queue import Turns

_bearer = HTTPBearer(auto_error=False, description="A token of `team-authz server token`, or of the OIDC issuer.")


class ServerParts(NamedTuple):
    """The parts that the routes use; they are in the application's state."""

    engine: Engine
    guard: Access
    served: Served
    publishing: Releases
    changes: Turns
    diffs: Turns
    decisions: Decisions
    policies: Policies
    readable: Readable
    logs: Turns
    searches: Turns
    evaluations: Turns
    counting: Counting
    public_url: str


async def _parts(request: Request) -> ServerParts:
    parts: ServerParts = request.app.state.parts
    return parts


Parts = Annotated[ServerParts, Depends(_parts)]


async def _token_sent(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    # Not HTTP's Basic scheme, which the page has: browsers would send it along with what other sites ask for.
    if given is None or not given.credentials:
        raise HTTPException(401, "send a token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
    return given.credentials


Sent = Annotated[str, Depends(_token_sent)]


async def caller(parts: Parts, token: Sent) -> Caller:
    """Who sends the token; 401 if nobody is known by it."""
    known = parts.guard.remembered(token)
    return known if known is not None else await run_in_threadpool(parts.guard.caller, token)


async def reader(parts: Parts, token: Sent) -> Caller:
    """The same for what is served while the database is gone, too."""
    known = parts.guard.remembered(token)
    # Each question to a database that does not answer would hold a thread for seconds.
    if known is None and parts.served.trouble:
        known = parts.guard.known_before(token)
    return known if known is not None else await run_in_threadpool(parts.guard.reader, token)


Calling = Annotated[Caller, Depends(caller)]
Reading = Annotated[Caller, Depends(reader)]


def of_platform(who: Calling) -> Caller:
    """The caller, who is the platform; otherwise 403."""
    if who.kind != access.PLATFORM:
        forbid("only the platform may do that")
    return who


def _publisher(who: Calling) -> Caller:
    if who.kind == access.READER:
        forbid("a reader's token fetches bundles; those who publish see what is frozen, and what waits")
    return who


OfPlatform = Annotated[Caller, Depends(of_platform)]
Publishing = Annotated[Caller, Depends(_publisher)]


def queue(who: Caller, owner: str) -> str:
    """The platform does not wait for its turn among those of a team that asks for much."""
    return f"{owner} by {who.kind}"


def forbid(why: str) -> NoReturn:
    """Answer with 403."""
    raise HTTPException(403, why)
