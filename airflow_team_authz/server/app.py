"""The application: its parts, and its answers to errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_team_authz.decision_log.record import DEFAULT_MASKS, Form
from airflow_team_authz.escaping import logger
from airflow_team_authz.gate.findings import sarif
from airflow_team_authz.model import EngineError, UnfitKeyError
from airflow_team_authz.opa.archive import BundleRefusedError
from airflow_team_authz.opa.compile import CompileError
from airflow_team_authz.server import approval_routes, authzen_routes, routes
from airflow_team_authz.server.access import Access, IssuerUnreachableError, Oidc, UnknownClientError
from airflow_team_authz.server.approvals import ApprovalError, FourEyesError, NotAnApproverError
from airflow_team_authz.server.authzen import BadRequestError, identification
from airflow_team_authz.server.bodies import Bodies, is_access
from airflow_team_authz.server.decisions import Decisions, NoDecisionsError, Readable, TooFastError
from airflow_team_authz.server.dependencies import ServerParts
from airflow_team_authz.server.evaluations import NotAllowedError, TooMuchError
from airflow_team_authz.server.metrics import CountedRequests, Counting
from airflow_team_authz.server.policies import NoPolicyError, Policies
from airflow_team_authz.server.releases import FrozenError, NotFoundError, NotPublishableError, OutdatedError, Releases
from airflow_team_authz.server.served import Served
from airflow_team_authz.server.work_queue import Turns

log = logger(__name__)

# How often the server looks for bundles whose signature is old.
_SIGN_SECONDS = 60
# How often it deletes decisions that are too old.
_CLEAN_SECONDS = 3600
# A decision takes a millisecond, and a gateway asks for many at once.
_EVALUATIONS_IN_ONE_QUEUE = 64


def create_app(
    engine: Engine,
    releases: Callable[[Callable[[], None]], Releases],
    oidc: Oidc | None = None,
    places: int = 500,
    masks: str = DEFAULT_MASKS,
    days: int = 90,
    public_url: str = "",
) -> FastAPI:
    """The application over a migrated database. ``releases`` makes the publishing part, given what to call after it.

    ``places``: how many may wait for a bundle at a time. ``masks``: what no record of a decision holds; records are
    kept for so many ``days``. ``ValueError`` if a mask is none. ``public_url``: the address for clients, see AuthZEN.
    """
    served = Served(engine, places)
    loops: list[asyncio.AbstractEventLoop] = []

    def changed() -> None:
        for loop in loops:
            loop.call_soon_threadsafe(served.look_now)

    publishing = releases(changed)
    decisions, counting = Decisions(engine, Form(masks), days), Counting()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        looking = asyncio.create_task(served.keep_looking())
        renewing = asyncio.create_task(_keep_signed(publishing))
        cleaning = asyncio.create_task(_keep_clean(decisions))
        yield
        for task in (looking, renewing, cleaning):
            task.cancel()

    app = FastAPI(
        title="Policy bundles",
        version=version("airflow-team-authz"),
        description="Takes teams' policy packages, checks them, and hands out signed bundles.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    policies = Policies(publishing.environments)
    app.state.parts = ServerParts(
        engine, Access(engine, oidc), served, publishing, Turns(), Turns(), decisions, policies, Readable(policies),
        Turns(), Turns(), Turns(_EVALUATIONS_IN_ONE_QUEUE), counting, public_url,
    )  # fmt: skip
    app.include_router(routes.router)
    app.include_router(approval_routes.router)
    app.include_router(authzen_routes.router)
    app.add_middleware(Bodies)
    # Around the others: what they answer counts too.
    app.add_middleware(CountedRequests, counting=counting)
    _tell_errors(app, counting)
    return app


async def _keep_signed(publishing: Releases) -> None:
    """Bundles of this server's making, signed not long ago, until cancelled."""
    await _done(publishing.renew)
    while True:
        await _done(publishing.sign_again)
        await asyncio.sleep(_SIGN_SECONDS)


async def _keep_clean(decisions: Decisions) -> None:
    """No decisions that are too old, until cancelled."""
    while True:
        await _done(decisions.clean)
        await asyncio.sleep(_CLEAN_SECONDS)


async def _done(job: Callable[[], object]) -> None:
    try:
        await asyncio.to_thread(job)
    except Exception:
        # What nobody has thought of must not end the work for good.
        log.exception("a regular job has failed, and is tried again")


def _problem(request: Request, told: str, code: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as JSON: an object with the text, and the text alone where AuthZEN's specification wants that."""
    if not is_access(request.url.path):
        return JSONResponse({"error": told}, code, headers)
    # The specification has no 413 and no 422.
    code = 400 if code in {413, 422} else code
    return JSONResponse(told, code, {**(headers or {}), **identification(request)})


def _tell_errors(app: FastAPI, counting: Counting) -> None:
    """Each error is one sentence in JSON."""
    codes: dict[type[Exception], int] = {
        BadRequestError: 400, UnknownClientError: 401, NotAllowedError: 403, FourEyesError: 403,
        NotAnApproverError: 403,
        NotFoundError: 404, OutdatedError: 409, ApprovalError: 409, BundleRefusedError: 422, UnfitKeyError: 422,
        NoDecisionsError: 422, FrozenError: 423, TooFastError: 429, IssuerUnreachableError: 503, CompileError: 503,
        NoPolicyError: 503, EngineError: 503, TooMuchError: 503,
    }  # fmt: skip

    async def tell(request: Request, error: Exception) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnknownClientError) else None
        if isinstance(error, TooFastError):
            headers = {"Retry-After": "1"}
        code = next(code for kind, code in codes.items() if isinstance(error, kind))
        return _problem(request, str(error)[:1000], code, headers)

    for kind in codes:
        app.add_exception_handler(kind, tell)

    # Also what the framework itself says: no such route, a body that is none.
    @app.exception_handler(StarletteHTTPException)
    async def told(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return _problem(request, str(error.detail), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors())
        return _problem(request, said[:1000], 422)

    @app.exception_handler(NotPublishableError)
    async def refused(request: Request, error: NotPublishableError) -> JSONResponse:
        counting.refused(error.findings)
        if "application/sarif+json" in request.headers.get("Accept", ""):
            return JSONResponse(sarif(error.findings, error.files), 422, media_type="application/sarif+json")
        listed = [finding.as_json() for finding in error.findings]
        return JSONResponse({"error": f"the gate refuses it: {error}", "findings": listed}, 422)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _: Exception) -> JSONResponse:
        return _problem(request, "something went wrong in the server: its log says what", 500)

    # Of what the server itself needs: a place for the gate's files, a thread, an open file.
    @app.exception_handler(OSError)
    async def failed(request: Request, error: OSError) -> JSONResponse:
        told = f"the server lacks something ({error.strerror or type(error).__name__}): nothing has changed"
        return _problem(request, f"{told}; see its disk, memory and open files, and try again", 503)

    @app.exception_handler(SQLAlchemyError)
    async def gone(request: Request, error: SQLAlchemyError) -> JSONResponse:
        # Not what the driver says: it may quote the address, or what was to be written.
        told = f"the database does not answer ({type(error).__name__}): nothing has changed, try again"
        return _problem(request, told, 503)
