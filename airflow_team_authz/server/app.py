"""The HTTP interface. Each route says what it takes and what it answers; what is done is in the modules beside this."""

import asyncio
import base64
import binascii
import gzip
import hashlib
import re
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

from fastapi import Body, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_team_authz.bundles.artifact import MAX_ARTIFACT_BYTES
from airflow_team_authz.bundles.artifact import PLATFORM as PLATFORM_OWNER
from airflow_team_authz.bundles.findings import sarif
from airflow_team_authz.bundles.signing import TrustedKeys
from airflow_team_authz.compile import CompileError
from airflow_team_authz.model import KeyUnfit
from airflow_team_authz.server import access, clients, page
from airflow_team_authz.server.access import Access, Caller, IssuerGone, NotKnown
from airflow_team_authz.server.clients import ClientState, StatusReport
from airflow_team_authz.server.database import Freeze, OwnerKeys, Package, Release, Token
from airflow_team_authz.server.releases import (
    BundleRefused,
    Frozen,
    NotPublishable,
    NotThere,
    Outdated,
    Releases,
)
from airflow_team_authz.server.served import Served

MEDIA_TYPE = "application/vnd.openpolicyagent.bundles"
_MAX_WAIT_SECONDS = 300
_MAX_STATUS_BYTES = 256 * 1024
_PREFERRED_WAIT = re.compile(r"(?:^|[;,\s])wait\s*=\s*\"?(\d{1,6})")

TeamId = Annotated[str, Path(pattern=r"^[a-zA-Z0-9_-]{3,50}$", description="A team's id.", examples=["alpha"])]
EnvironmentName = Annotated[
    str | None, Query(max_length=64, description="Else the server's first.", examples=["production"])
]
Version = Annotated[int, Query(ge=1, lt=2**53, description="A version of the team's package.")]


class Problem(BaseModel):
    """What went wrong, and what to do next."""

    error: str


class FindingModel(BaseModel):
    """One reason why a package may not be published."""

    rule: str
    file: str
    line: int
    message: str
    help: str


class Refusal(Problem):
    """The gate refuses a package."""

    findings: list[FindingModel] = Field(default_factory=list)


class PublishedModel(BaseModel):
    """What is in force from now on."""

    owner: str
    version: int
    environment: str
    serial: int
    bundles: list[str]


class HistoryEntry(BaseModel):
    """What somebody has put in force."""

    environment: str
    version: int
    digest: str
    action: str
    actor: str
    at: datetime
    serial: int


class TeamModel(BaseModel):
    """A team, its keys, and what it has in force by environment."""

    team_id: str
    keys: list[str]
    versions: dict[str, int]


class Rollback(BaseModel):
    """Which version is to be in force again."""

    version: int = Field(ge=1, lt=2**53)
    environment: str | None = Field(None, max_length=64)


class Promotion(BaseModel):
    """From which environment to which other one."""

    source: str = Field(alias="from", max_length=64, examples=["staging"])
    target: str = Field(alias="to", max_length=64, examples=["production"])


class FreezeModel(BaseModel):
    """What must not change: ``*`` for everything, ``team:<id>`` or ``environment:<name>``."""

    scope: str = Field(
        pattern=r"^(\*|team:[a-zA-Z0-9_-]{3,50}|environment:[a-zA-Z0-9_-]{1,60})$", examples=["team:alpha"]
    )
    reason: str = Field(min_length=1, max_length=500)


class TokenRequest(BaseModel):
    """A token to be made."""

    kind: str = Field(pattern="^(platform|team|reader)$")
    team_id: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{3,50}$", description="Of a team's token.")
    bundle: str | None = Field(None, max_length=200, description="The only bundle that a reader may fetch.")
    days: int = Field(90, ge=1, le=3650)


class TokenModel(BaseModel):
    """A token, without its secret."""

    id: str
    kind: str
    team_id: str | None
    bundle: str | None
    expires_at: datetime
    revoked: bool


class NewToken(TokenModel):
    """A new token; ``secret`` is shown this once."""

    secret: str


class Health(BaseModel):
    """Whether the server works. It may serve bundles while it cannot publish."""

    ok: bool
    trouble: str
    bundles: int


def _answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    told = {
        400: "It cannot be understood.",
        401: "The token is missing or not known.",
        403: "The caller may not do that.",
        404: "There is no such thing.",
        409: "It is not newer than what is published.",
        413: "It is too large.",
        423: "The platform has stopped changes for now.",
        503: "The database or the issuer of tokens is gone; nothing has changed.",
    }
    return {code: {"model": Problem, "description": told[code]} for code in (400, 401, 403, 503, *codes)}


_REFUSAL: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "The gate refuses the package, or a value is not as it must be."}
}
_BUNDLE: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "The bundle."},
    304: {"description": "It has not changed."},
}
_STATUS = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "description": "As OPA reports its status."}}},
    }
}
_ARTIFACT = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(
    engine: Engine, releases: Callable[[Callable[[], None]], Releases], oidc: access.Oidc | None = None
) -> FastAPI:
    """The application over a migrated database. ``releases`` makes the publishing part, given what to call after it."""
    guard = Access(engine, oidc)
    served = Served(engine)
    loops: list[asyncio.AbstractEventLoop] = []

    def changed() -> None:
        for loop in loops:
            loop.call_soon_threadsafe(served.look_now)

    publishing = releases(changed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        looking = asyncio.create_task(served.keep_looking())
        yield
        looking.cancel()

    app = FastAPI(
        title="Policy bundles",
        version=version("airflow-team-authz"),
        description="Takes teams' policy packages, checks them, and hands out signed bundles.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _tell_errors(app)
    bearer = HTTPBearer(auto_error=False, description="A token of `team-authz server token`, or of the OIDC issuer.")

    async def caller(
        request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Caller:
        token = given.credentials if given else _basic(request)
        if not token:
            raise HTTPException(401, "send a token: Authorization: Bearer …")
        known = guard.remembered(token)
        return known if known is not None else await run_in_threadpool(guard.caller, token)

    Calling = Annotated[Caller, Depends(caller)]  # noqa: N806 - a type

    def platform(who: Calling) -> Caller:
        if who.kind != access.PLATFORM:
            _forbid("only the platform may do that")
        return who

    def owner(team_id: TeamId, who: Calling) -> Caller:
        if not who.owns(team_id):
            _forbid(f"{who.name} does not own team {team_id}")
        return who

    OfPlatform = Annotated[Caller, Depends(platform)]  # noqa: N806
    OfTeam = Annotated[Caller, Depends(owner)]  # noqa: N806

    @app.get("/bundles/{name}", response_class=Response, responses=_answers(404) | _REFUSAL | _BUNDLE)
    async def bundle(
        name: Annotated[str, Path(max_length=250, examples=["production"])],
        who: Calling,
        if_none_match: Annotated[str, Header(max_length=4000)] = "",
        prefer: Annotated[str, Header(max_length=500)] = "",
    ) -> Response:
        """A bundle. With `Prefer: wait=N` and `If-None-Match` the answer waits up to N seconds for another one."""
        name = name.removesuffix(".tar.gz")
        if not who.reads(name):
            _forbid(f"{who.name} may not read the bundle {name}")
        wanted = _PREFERRED_WAIT.search(prefer)
        etags = {tag.strip() for tag in if_none_match.split(",") if tag.strip()}
        wait = min(int(wanted[1]), _MAX_WAIT_SECONDS) if wanted and etags else 0
        held = await served.changed_from(name, etags, wait)
        if held is None:
            raise HTTPException(404, f"there is no bundle {name}: it is built when its policy is published")
        headers = {"ETag": held.etag, "Content-Type": MEDIA_TYPE, "Cache-Control": "no-cache"}
        if held.etag in etags:
            return Response(status_code=304, headers=headers)
        return Response(held.content, headers=headers)

    @app.put("/teams/{team_id}/package", responses=_answers(404, 409, 413, 423) | _REFUSAL, openapi_extra=_ARTIFACT)
    async def publish(
        request: Request, team_id: TeamId, who: OfTeam, environment: EnvironmentName = None
    ) -> PublishedModel:
        """Publish a team's artifact, as `team-authz bundle build` makes it."""
        content = await _read(request, MAX_ARTIFACT_BYTES)
        done = await run_in_threadpool(publishing.publish, team_id, content, environment, who.name)
        return PublishedModel(**done._asdict())

    @app.put("/platform/package", responses=_answers(404, 409, 413, 423) | _REFUSAL, openapi_extra=_ARTIFACT)
    async def publish_platform(
        request: Request, who: OfPlatform, environment: EnvironmentName = None
    ) -> PublishedModel:
        """Publish the platform's own part: site rules, role table, directory."""
        content = await _read(request, MAX_ARTIFACT_BYTES)
        done = await run_in_threadpool(publishing.publish, PLATFORM_OWNER, content, environment, who.name)
        return PublishedModel(**done._asdict())

    @app.get("/teams/{team_id}/package", response_class=Response, responses=_answers(404) | _REFUSAL | {
        200: {"content": {"application/json": {}}, "description": "The files by path."}})  # fmt: skip
    def package(team_id: TeamId, _: OfTeam, version: Version) -> JSONResponse:
        """The files of a version of a team's package."""
        files = publishing.files(team_id, version)
        return JSONResponse({name: content.decode(errors="replace") for name, content in files.items()})

    @app.get("/teams/{team_id}/history", responses=_answers() | _REFUSAL)
    def history(team_id: TeamId, _: OfTeam) -> list[HistoryEntry]:
        """What was put in force, newest first."""
        with Session(engine) as session:
            digests = dict(
                session.execute(select(Package.version, Package.digest).where(Package.owner == team_id)).tuples().all()
            )
            rows = session.scalars(
                select(Release).where(Release.owner == team_id).order_by(Release.id.desc()).limit(500)
            )
            return [
                HistoryEntry(environment=row.environment, version=row.version, digest=digests[row.version],
                             action=row.action, actor=row.actor, at=row.at, serial=row.serial)
                for row in rows
            ]  # fmt: skip

    @app.get("/teams/{team_id}/diff", response_class=Response, responses=_answers(404) | _REFUSAL | {
        200: {"content": {"text/x-diff": {}}, "description": "As `diff -u` tells it."}})  # fmt: skip
    def diff(
        team_id: TeamId, _: OfTeam, old: Annotated[int, Query(alias="from", ge=1, lt=2**53)],
        new: Annotated[int, Query(alias="to", ge=1, lt=2**53)],
    ) -> Response:  # fmt: skip
        """What differs between two versions."""
        return Response(publishing.diff(team_id, old, new), media_type="text/x-diff; charset=utf-8")

    @app.post("/teams/{team_id}/rollback", responses=_answers(404, 423) | _REFUSAL)
    def rollback(team_id: TeamId, who: OfTeam, wanted: Rollback) -> PublishedModel:
        """Put an older version in force again. The platform may also while it is frozen."""
        force = who.kind == access.PLATFORM
        done = publishing.rollback(team_id, wanted.version, wanted.environment, who.name, force)
        return PublishedModel(**done._asdict())

    @app.post("/teams/{team_id}/promote", responses=_answers(404, 423) | _REFUSAL)
    def promote(team_id: TeamId, who: OfTeam, wanted: Promotion) -> PublishedModel:
        """Put what one environment has in force into another one."""
        done = publishing.promote(team_id, wanted.source, wanted.target, who.name)
        return PublishedModel(**done._asdict())

    @app.put("/teams/{team_id}/keys", responses=_answers() | _REFUSAL)
    def register(team_id: TeamId, who: OfPlatform, pem: Annotated[str, Body(embed=True, max_length=4000)]) -> list[str]:
        """Say which public keys (PEM) sign a team's artifacts: one, or two while one is replaced. Answers their ids."""
        return _register(engine, team_id, pem, who)

    @app.put("/platform/keys", responses=_answers() | _REFUSAL)
    def register_platform(who: OfPlatform, pem: Annotated[str, Body(embed=True, max_length=4000)]) -> list[str]:
        """Say which public keys (PEM) sign the platform's part."""
        return _register(engine, PLATFORM_OWNER, pem, who)

    @app.get("/teams", responses=_answers())
    def teams(_: OfPlatform) -> list[TeamModel]:
        """All teams, their keys, and what they have in force."""
        return _teams(engine)

    @app.get("/freeze", responses=_answers())
    def freezes(_: Calling) -> list[FreezeModel]:
        """What must not change for now."""
        with Session(engine) as session:
            return [FreezeModel(scope=row.scope, reason=row.reason) for row in session.scalars(select(Freeze))]

    @app.post("/freeze", responses=_answers() | _REFUSAL)
    def freeze(who: OfPlatform, wanted: FreezeModel) -> FreezeModel:
        """Stop changes."""
        with Session(engine) as session:
            session.merge(Freeze(scope=wanted.scope, reason=wanted.reason, actor=who.name, at=datetime.now(UTC)))
            session.commit()
        return wanted

    @app.delete("/freeze", responses=_answers(404) | _REFUSAL)
    def thaw(_: OfPlatform, scope: Annotated[str, Query(max_length=80)]) -> FreezeModel:
        """Let changes happen again."""
        with Session(engine) as session:
            found = session.get(Freeze, scope)
            if found is None:
                raise HTTPException(404, f"{scope} is not frozen")
            thawed = FreezeModel(scope=found.scope, reason=found.reason)
            session.delete(found)
            session.commit()
        return thawed

    @app.post("/tokens", status_code=201, responses=_answers() | _REFUSAL)
    def new_token(_: OfPlatform, wanted: TokenRequest) -> NewToken:
        """Make a token. Its secret is shown this once."""
        if (wanted.kind == access.TEAM) != (wanted.team_id is not None):
            raise HTTPException(422, "a team's token, and only that, names a team_id")
        if wanted.bundle is not None and wanted.kind != access.READER:
            raise HTTPException(422, "only a reader's token names a bundle")
        with Session(engine) as session:
            made = access.issue(session, wanted.kind, wanted.days, wanted.team_id, wanted.bundle)
            session.commit()
        return NewToken(id=made.id, kind=wanted.kind, team_id=wanted.team_id, bundle=wanted.bundle,
                        expires_at=made.expires_at, revoked=False, secret=made.secret)  # fmt: skip

    @app.get("/tokens", responses=_answers())
    def tokens(_: OfPlatform) -> list[TokenModel]:
        """All tokens, without their secrets."""
        with Session(engine) as session:
            return [_token(row) for row in session.scalars(select(Token).order_by(Token.created_at))]

    @app.delete("/tokens/{id_}", responses=_answers(404) | _REFUSAL)
    def revoke(id_: Annotated[str, Path(max_length=16)], _: OfPlatform) -> TokenModel:
        """Revoke a token: it counts for a second more at most."""
        with Session(engine) as session:
            found = session.get(Token, id_)
            if found is None:
                raise HTTPException(404, f"there is no token {id_}")
            found.revoked_at = found.revoked_at or datetime.now(UTC)
            told = _token(found)
            session.commit()
        return told

    @app.post("/status", responses=_answers(413) | _REFUSAL, openapi_extra=_STATUS)
    async def report(request: Request, who: Calling) -> dict[str, str]:
        """What an OPA or an Airflow process runs."""
        if who.kind == access.TEAM:
            _forbid("a team's token publishes; a reader's reports status")
        content = await _read(request, _MAX_STATUS_BYTES)
        try:
            if request.headers.get("Content-Encoding") == "gzip":
                content = zlib.decompressobj(wbits=31).decompress(content, _MAX_STATUS_BYTES)
            told = StatusReport.model_validate_json(content)
        except (ValidationError, zlib.error, gzip.BadGzipFile) as error:
            raise HTTPException(422, f"it is no status report: {str(error)[:300]}") from None
        await run_in_threadpool(clients.note, engine, told)
        return {"noted": told.labels.get("id", "unnamed")[:200]}

    @app.get("/status", responses=_answers())
    def status(_: OfPlatform) -> list[ClientState]:
        """Every OPA and Airflow process: which revision it runs, when it was heard of, and alarms."""
        return clients.states(engine, served.names())

    @app.get("/health", responses={503: {"model": Health, "description": "Publishing does not work."}})
    def health(response: Response) -> Health:
        """Whether the server works; without a token."""
        response.status_code = 503 if served.trouble else 200
        return Health(ok=not served.trouble, trouble=served.trouble, bundles=len(served.names()))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index(request: Request) -> Response:
        """The page. A browser asks for the platform's token, as the password."""
        token = _basic(request)
        try:
            who = guard.caller(token) if token else None
        except NotKnown:
            who = None
        if who is None or who.kind != access.PLATFORM:
            return Response(
                status_code=401, headers={"WWW-Authenticate": 'Basic realm="the platform token is the password"'}
            )
        found = clients.states(engine, served.names())
        alarms = sum(bool(state.alarms) for state in found)
        held = sorted(served.names().items())
        text = page.render(
            [
                ("Bundles", ("name", "revision", "bytes"), [(n, h.revision, f"{len(h.content):,}") for n, h in held]),
                ("Teams", ("team", "keys", "in force"), [
                    (t.team_id, ", ".join(t.keys), ", ".join(f"{e}: {v}" for e, v in t.versions.items()))
                    for t in _teams(engine)
                ]),
                ("Who runs what", ("client", "kind", "revisions", "seen (UTC)", "alarms"), clients.as_rows(found)),
            ],
            served.trouble or (f"{alarms} of {len(found)} clients need a look." if alarms else "All is in order."),
            bool(alarms or served.trouble),
        )  # fmt: skip
        digest = base64.b64encode(hashlib.sha256(page.STYLE.encode()).digest()).decode()
        return HTMLResponse(text, headers={name: value.format(digest) for name, value in page.HEADERS.items()})

    return app


def _tell_errors(app: FastAPI) -> None:
    """Each error is one sentence in JSON."""
    codes: dict[type[Exception], int] = {
        NotKnown: 401, NotThere: 404, Outdated: 409, BundleRefused: 422, KeyUnfit: 422, Frozen: 423,
        IssuerGone: 503, CompileError: 503,
    }  # fmt: skip

    async def tell(_: Request, error: Exception) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, NotKnown) else None
        return JSONResponse({"error": str(error)[:1000]}, codes[type(error)], headers)

    for kind in codes:
        app.add_exception_handler(kind, tell)

    # Also what the framework itself says: no such route, a body that is none.
    @app.exception_handler(StarletteHTTPException)
    async def told(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors())
        return JSONResponse({"error": said[:1000]}, 422)

    @app.exception_handler(NotPublishable)
    async def refused(request: Request, error: NotPublishable) -> JSONResponse:
        if "application/sarif+json" in request.headers.get("Accept", ""):
            return JSONResponse(sarif(error.findings), 422, media_type="application/sarif+json")
        listed = [finding.as_json() for finding in error.findings]
        return JSONResponse({"error": f"the gate refuses it: {error}", "findings": listed}, 422)

    @app.exception_handler(SQLAlchemyError)
    async def gone(_: Request, error: SQLAlchemyError) -> JSONResponse:
        # Not what the driver says: it may quote the address, or what was to be written.
        told = f"the database does not answer ({type(error).__name__}): nothing has changed, try again"
        return JSONResponse({"error": told}, 503)


def _forbid(why: str) -> NoReturn:
    raise HTTPException(403, why)


def _basic(request: Request) -> str:
    """The password of HTTP's Basic scheme, which browsers have a form for."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def _read(request: Request, limit: int) -> bytes:
    """The body; 413 as soon as it is larger than ``limit`` bytes."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise HTTPException(413, f"it is larger than {limit:,} bytes")
    return bytes(content)


def _register(engine: Engine, owner: str, pem: str, who: Caller) -> list[str]:
    keys = TrustedKeys.load(pem.encode(), "the request")
    if len(keys) > 2:
        raise HTTPException(422, "two keys can be valid at a time: leave out the older ones")
    with Session(engine) as session:
        session.merge(OwnerKeys(owner=owner, pem=keys.pem().decode(), actor=who.name, at=datetime.now(UTC)))
        session.commit()
    return sorted(keys)


def _teams(engine: Engine) -> list[TeamModel]:
    with Session(engine) as session:
        versions: dict[str, dict[str, int]] = {}
        for row in session.scalars(select(Release).order_by(Release.id)):
            versions.setdefault(row.owner, {})[row.environment] = row.version
        return [
            TeamModel(
                team_id=row.owner,
                keys=sorted(TrustedKeys.load(row.pem.encode(), row.owner)),
                versions=versions.get(row.owner, {}),
            )
            for row in session.scalars(select(OwnerKeys).order_by(OwnerKeys.owner))
        ]


def _token(row: Token) -> TokenModel:
    return TokenModel(id=row.id, kind=row.kind, team_id=row.team_id, bundle=row.bundle,
                      expires_at=row.expires_at, revoked=row.revoked_at is not None)  # fmt: skip
