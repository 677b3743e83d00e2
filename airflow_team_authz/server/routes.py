"""The routes. The modules beside this one do the work."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from airflow_team_authz.bundles.artifact import PLATFORM as PLATFORM_OWNER
from airflow_team_authz.bundles.signing import TrustedKeys
from airflow_team_authz.decision_log.reading import Wanted
from airflow_team_authz.server import access, approvals, clients, metrics, page
from airflow_team_authz.server.access import Caller, UnknownClientError
from airflow_team_authz.server.approval_routes import answer
from airflow_team_authz.server.approvals import Held
from airflow_team_authz.server.bodies import MAX_STATUS_BYTES
from airflow_team_authz.server.clients import StatusReport
from airflow_team_authz.server.database import Freeze, OwnerKeys, Package, Release, Token, WithheldPackage
from airflow_team_authz.server.decisions import Search
from airflow_team_authz.server.dependencies import (
    Calling,
    OfPlatform,
    Parts,
    Publishing,
    Reading,
    Sent,
    caller,
    forbid,
    of_platform,
    queue,
    reader,
)
from airflow_team_authz.server.messages import (
    ARTIFACT,
    BUNDLE,
    HELD,
    LOGS,
    MEDIA_TYPE,
    METRICS,
    REFUSAL,
    SCOPE,
    STATUS,
    DecisionModel,
    DecisionsModel,
    EnvironmentName,
    FreezeModel,
    Health,
    HistoryEntry,
    NewToken,
    NotedModel,
    Promotion,
    PublishedModel,
    Rollback,
    StatusModel,
    TeamId,
    TeamModel,
    TokenModel,
    TokenRequest,
    Version,
    WithheldModel,
    WithImpact,
    answers,
)
from airflow_team_authz.server.releases import Asker

_MAX_WAIT_SECONDS = 300
_CLIENTS_OF_A_PAGE = 100
_PREFERRED_WAIT = re.compile(r"(?:^|[;,\s])wait\s*=\s*\"?(\d{1,6})")

router = APIRouter()
# What there is for every team's package, and for the platform's own part; who includes them says who may.
owned = APIRouter()


def _of_team(team_id: TeamId, who: Calling) -> None:
    _must_own(who, team_id)


def _must_read(who: Caller, bundle: str) -> None:
    if not who.reads(bundle):
        forbid(f"{who.name} may not read the bundle {bundle}")


def _must_own(who: Caller, owner: str) -> None:
    if not who.owns(owner):
        forbid(f"{who.name} does not own {owner}")


async def _owner(request: Request) -> str:
    return str(request.path_params.get("team_id", PLATFORM_OWNER))


Owner = Annotated[str, Depends(_owner)]


@router.get("/bundles/{name}", response_class=Response, responses=answers(404) | REFUSAL | BUNDLE)
async def bundle(
    parts: Parts,
    name: Annotated[str, Path(max_length=250, examples=["production"])],
    who: Reading,
    token: Sent,
    if_none_match: Annotated[str, Header(max_length=4000)] = "",
    prefer: Annotated[str, Header(max_length=500)] = "",
) -> Response:
    """A bundle. With `Prefer: wait=N` and `If-None-Match` the answer waits up to N seconds for another one, if not
    thousands do already.
    """
    name = name.removesuffix(".tar.gz")
    _must_read(who, name)
    wanted = _PREFERRED_WAIT.search(prefer)
    # A proxy that packs what it passes on makes weak tags of ours.
    etags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",") if tag.strip()}
    wait = min(int(wanted[1]), _MAX_WAIT_SECONDS) if wanted and etags else 0
    with parts.served.place() as free:
        held = await parts.served.changed_from(name, etags, wait if free else 0)
    if wait:
        _must_read(await reader(parts, token), name)
    if held is None and parts.served.trouble:
        # Whether there is such a bundle, nobody knows.
        raise HTTPException(503, parts.served.trouble)
    if held is None:
        raise HTTPException(404, f"there is no bundle {name}: it is built when its policy is published")
    # By OPA's type clients know that they may wait here; others come again after a time of their own.
    headers = {"ETag": held.etag, "Content-Type": MEDIA_TYPE if free else "application/gzip"}
    headers["Cache-Control"] = "no-cache"
    if held.etag in etags:
        return Response(status_code=304, headers=headers)
    return Response(held.content, headers=headers)


@owned.put(
    "/package",
    response_model=PublishedModel,
    responses=answers(404, 408, 409, 413, 423) | REFUSAL | HELD,
    openapi_extra=ARTIFACT,
)
async def publish(
    parts: Parts,
    request: Request,
    owner: Owner,
    who: Calling,
    token: Sent,
    environment: EnvironmentName = None,
    impact: WithImpact = False,
) -> PublishedModel | JSONResponse:
    """Publish an artifact, as `team-authz bundle build` makes it. The same once more is answered as the first time.

    What the platform's rules say so about waits for an approval (202).
    """
    content = await request.body()
    # It may have been on its way for a minute.
    _must_own(await caller(parts, token), owner)
    asker = _asker(who, impact)
    done = await parts.changes.run(queue(who, owner), parts.publishing.publish, owner, content, environment, asker)
    return await answer(parts, done, who)


@owned.get("/package", response_class=Response, responses=answers(404) | REFUSAL | {
    200: {"content": {"application/json": {}}, "description": "The files by path."}})  # fmt: skip
def package(parts: Parts, owner: Owner, version: Version) -> JSONResponse:
    """The files of a version of the package."""
    files = parts.publishing.files(owner, version)
    return JSONResponse({name: content.decode(errors="replace") for name, content in files.items()})


@owned.get("/history", responses=answers() | REFUSAL)
def history(parts: Parts, owner: Owner) -> list[HistoryEntry]:
    """The versions that came into force, and what became of those that were held, newest first."""
    with Session(parts.engine) as session:
        packages = session.execute(select(Package.version, Package.digest).where(Package.owner == owner))
        digests = {version: digest for version, digest in packages}  # noqa: C416 - rows
        rows = session.scalars(select(Release).where(Release.owner == owner).order_by(Release.id.desc()).limit(500))
        entries = [
            HistoryEntry(environment=row.environment, version=row.version, digest=digests[row.version],
                         action=row.action, actor=row.actor, at=row.at, serial=row.serial, approved_by=row.approved_by)
            for row in rows
        ]  # fmt: skip
        held = [entry for row in approvals.of_owner(session, owner) for entry in _of_held(row)]
    # Sorting keeps the order of what was put in force at one moment.
    return sorted([*entries, *held], key=lambda entry: entry.at, reverse=True)[:500]


def _of_held(row: Held) -> Iterator[HistoryEntry]:
    """That it was held, and how that ended, unless it is in force."""

    def entry(action: str, actor: str, at: datetime) -> HistoryEntry:
        return HistoryEntry(environment=row.environment, version=row.version, digest=row.digest,
                            action=action, actor=actor, at=at, serial=0)  # fmt: skip

    if row.state == approvals.EXPIRED:
        yield entry(row.state, "", row.expires_at)
    elif row.state in {approvals.REFUSED, approvals.REPLACED}:
        yield entry(row.state, row.decided_by, row.decided_at or row.at)
    yield entry("held", row.actor, row.at)


@owned.get("/diff", response_class=Response, responses=answers(404) | REFUSAL | {
    200: {"content": {"text/x-diff": {}}, "description": "As `diff -u` tells it."}})  # fmt: skip
async def diff(
    parts: Parts, owner: Owner, who: Calling,
    old: Annotated[int, Query(alias="from", ge=1, lt=2**53)], new: Annotated[int, Query(alias="to", ge=1, lt=2**53)],
) -> Response:  # fmt: skip
    """The differences between two versions. For large files it says only that they differ."""
    told = await parts.diffs.run(queue(who, owner), parts.publishing.diff, owner, old, new)
    return Response(told, media_type="text/x-diff; charset=utf-8")


@owned.post("/rollback", response_model=PublishedModel, responses=answers(404, 423) | REFUSAL | HELD)
async def rollback(
    parts: Parts, owner: Owner, who: Calling, wanted: Rollback, impact: WithImpact = False
) -> PublishedModel | JSONResponse:
    """Put an older version in force again. The platform may also while it is frozen."""
    asked = (owner, wanted.version, wanted.environment, _asker(who, impact))
    return await answer(parts, await parts.changes.run(queue(who, owner), parts.publishing.rollback, *asked), who)


@owned.post("/promote", response_model=PublishedModel, responses=answers(404, 423) | REFUSAL | HELD)
async def promote(
    parts: Parts, owner: Owner, who: Calling, wanted: Promotion, impact: WithImpact = False
) -> PublishedModel | JSONResponse:
    """Put what one environment has in force into another one."""
    asked = (owner, wanted.source, wanted.target, _asker(who, impact))
    return await answer(parts, await parts.changes.run(queue(who, owner), parts.publishing.promote, *asked), who)


@owned.put("/keys", responses=answers() | REFUSAL)
def register(
    parts: Parts, owner: Owner, who: OfPlatform, pem: Annotated[str, Body(embed=True, max_length=4000)]
) -> list[str]:
    """Say which public keys (PEM) sign the owner's artifacts: one, or two while one is replaced. Answers their ids."""
    keys = TrustedKeys.load(pem.encode(), "the request")
    if len(keys) > 2:
        raise HTTPException(422, "two keys can be valid at a time: leave out the older ones")
    with Session(parts.engine) as session:
        session.merge(OwnerKeys(owner=owner, pem=keys.pem().decode(), actor=who.name, at=datetime.now(UTC)))
        session.commit()
    return sorted(keys)


router.include_router(owned, prefix="/teams/{team_id}", dependencies=[Depends(_of_team)])
router.include_router(owned, prefix="/platform", dependencies=[Depends(of_platform)])


@router.get("/teams", responses=answers())
def teams(parts: Parts, _: OfPlatform) -> list[TeamModel]:
    """All teams, their keys, and what they have in force."""
    return _teams(parts.engine)


@router.get("/freeze", responses=answers())
def freezes(parts: Parts, who: Publishing) -> list[FreezeModel]:
    """The present freezes: a team sees those that keep it from publishing, the platform sees all."""
    with Session(parts.engine) as session:
        rows = session.scalars(select(Freeze).order_by(Freeze.scope)).all()
    return [FreezeModel(scope=row.scope, reason=row.reason) for row in rows if _concerns(row.scope, who)]


def _concerns(scope: str, who: Caller) -> bool:
    kind, _, name = scope.partition(":")
    return kind != "team" or who.owns(name)


@router.post("/freeze", responses=answers(404) | REFUSAL)
def freeze(parts: Parts, who: OfPlatform, wanted: FreezeModel) -> FreezeModel:
    """Stop changes: what was not answered yet is refused too."""
    kind, _, name = wanted.scope.partition(":")
    if kind == "environment" and name not in parts.publishing.environments:
        raise HTTPException(404, f"there is no environment {name}")
    with Session(parts.engine) as session:
        # Who is publishing is waited for; from then on nobody does.
        session.execute(select(OwnerKeys.owner).order_by(OwnerKeys.owner).with_for_update()).all()
        session.merge(Freeze(scope=wanted.scope, reason=wanted.reason, actor=who.name, at=datetime.now(UTC)))
        session.commit()
    return wanted


@router.delete("/freeze", responses=answers(404) | REFUSAL)
def thaw(parts: Parts, _: OfPlatform, scope: Annotated[str, Query(pattern=SCOPE)]) -> FreezeModel:
    """Let changes happen again."""
    with Session(parts.engine) as session:
        found = session.get(Freeze, scope)
        if found is None:
            raise HTTPException(404, f"{scope} is not frozen")
        thawed = FreezeModel(scope=found.scope, reason=found.reason)
        session.delete(found)
        session.commit()
    return thawed


@router.post("/tokens", status_code=201, responses=answers() | REFUSAL)
def new_token(parts: Parts, who: OfPlatform, wanted: TokenRequest) -> NewToken:
    """Make a token. Its secret is shown this once."""
    if (wanted.kind == access.TEAM) != (wanted.team_id is not None):
        raise HTTPException(422, "a team's token, and only that, names a team_id")
    if wanted.bundle is not None and wanted.kind != access.READER:
        raise HTTPException(422, "only a reader's token names a bundle")
    with Session(parts.engine) as session:
        made = access.issue(session, wanted.kind, wanted.days, wanted.team_id, wanted.bundle, who.person)
        session.commit()
        told = _token(session.get_one(Token, made.id))
    return NewToken(**told.model_dump(), secret=made.secret)


@router.get("/tokens", responses=answers())
def tokens(parts: Parts, _: OfPlatform) -> list[TokenModel]:
    """All tokens, without their secrets."""
    with Session(parts.engine) as session:
        return [_token(row) for row in session.scalars(select(Token).order_by(Token.created_at))]


@router.delete("/tokens/{id_}", responses=answers(404) | REFUSAL)
def revoke(parts: Parts, id_: Annotated[str, Path(pattern="^[0-9a-f]{1,16}$")], _: OfPlatform) -> TokenModel:
    """Revoke a token: it stops working within one second."""
    with Session(parts.engine) as session:
        found = session.get(Token, id_)
        if found is None:
            raise HTTPException(404, f"there is no token {id_}")
        found.revoked_at = found.revoked_at or datetime.now(UTC)
        told = _token(found)
        session.commit()
    return told


@router.post("/status", responses=answers(408, 413) | REFUSAL, openapi_extra=STATUS)
async def report(parts: Parts, request: Request, who: Calling) -> dict[str, str]:
    """Takes the status report of an OPA or an Airflow process."""
    if who.kind == access.TEAM:
        forbid("a team's token publishes; a reader's reports status")
    content = await request.body()
    try:
        if request.headers.get("Content-Encoding") == "gzip":
            content = zlib.decompressobj(wbits=31).decompress(content, MAX_STATUS_BYTES)
        told = StatusReport.model_validate_json(content)
    except (ValidationError, zlib.error) as error:
        raise HTTPException(422, f"it is not a status report: {str(error)[:300]}") from None
    await run_in_threadpool(clients.note, parts.engine, who, told)
    return {"noted": told.labels.get("id", "unnamed")[:200]}


@router.get("/status", responses=answers() | REFUSAL)
def status(
    parts: Parts,
    _: OfPlatform,
    after: Annotated[int, Query(ge=0, lt=2**31, description="`next` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_CLIENTS_OF_A_PAGE)] = _CLIENTS_OF_A_PAGE,
) -> StatusModel:
    """A page of OPAs and Airflow processes: which revision each runs, when it was heard of, and alarms. And packages
    that are in force and not in the bundles.
    """
    # One more than is shown tells whether there is another page.
    found = clients.states(parts.engine, parts.served.names(), after, limit + 1)
    shown, more = found[:limit], found[limit:]
    return StatusModel(clients=shown, next=shown[-1].number if more else None, withheld=_withheld(parts.engine))


@router.post("/logs", responses=answers(408, 413, 429) | REFUSAL, openapi_extra=LOGS)
async def logs(parts: Parts, request: Request, who: Calling) -> NotedModel:
    """Takes decisions of an OPA or an Airflow process, in the protocol of OPA's `decision_logs` plugin."""
    if who.kind == access.TEAM:
        forbid("a team's token publishes and sees decisions; a reader's reports them")
    content = await request.body()
    encoding = request.headers.get("Content-Encoding", "")
    return NotedModel(**(await parts.logs.run(who.name, parts.decisions.take, who, content, encoding))._asdict())


@router.post("/logs/{partition}", responses=answers(408, 413, 429) | REFUSAL, openapi_extra=LOGS)
async def logs_of_partition(
    parts: Parts,
    request: Request,
    who: Calling,
    partition: Annotated[str, Path(max_length=200, description="OPA's `partition_name`; all are one here.")],  # noqa: ARG001
) -> NotedModel:
    """The same for an OPA whose configuration has a `partition_name`."""
    return await logs(parts, request, who)


@router.get("/decisions", responses=answers() | REFUSAL)
async def decisions(
    parts: Parts,
    who: Calling,
    id_: Annotated[str | None, Query(alias="id", max_length=64, description="Of a record, or of OPA's own.")] = None,
    since: Annotated[datetime | None, Query(description="In UTC, unless it says otherwise.")] = None,
    user: Annotated[str | None, Query(max_length=250)] = None,
    team: Annotated[str | None, Query(max_length=64)] = None,
    type_: Annotated[str | None, Query(alias="type", max_length=50)] = None,
    denied: bool = False,
    shadow: Annotated[bool, Query(description="Different answers of policies that are not in force, alone.")] = False,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> DecisionsModel:
    """A page of decisions, newest first. The platform sees all; a team sees those about its own resources whose audit
    log the policy lets it read.
    """
    if who.kind == access.READER:
        forbid("a reader's token reports decisions; the platform and teams see them")
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    search = Search(Wanted(since, user, team, type_, denied, shadow), id_, before, limit)
    parts.policies.with_bundles(parts.served.names())
    page_ = await parts.searches.run(who.name, parts.decisions.search, who, search, parts.readable)
    return DecisionsModel(decisions=[DecisionModel(**one._asdict()) for one in page_.found], next=page_.next)


@router.get("/metrics", response_class=Response, responses=answers() | METRICS)
def metrics_(parts: Parts, who: Reading) -> Response:
    """Counts of this server process for Prometheus; without names of anybody. For the platform, and for readers."""
    if who.kind == access.TEAM:
        forbid("a team's token publishes; a reader's reads the metrics")
    trouble, clients_, withheld = parts.served.trouble, list[clients.ClientState](), 0
    waits = None
    if not trouble:
        waits = approvals.waits(parts.engine)
        clients_ = clients.states(parts.engine, parts.served.names())
        withheld = len(_withheld(parts.engine))
    told = metrics.render(
        parts.counting, parts.decisions.counts, clients_, withheld, len(parts.served.names()), trouble, waits
    )
    return Response(told, media_type=metrics.CONTENT_TYPE)


@router.get("/health", responses={503: {"model": Health, "description": "There is nothing that it could serve."}})
async def health(parts: Parts, response: Response) -> Health:
    """Whether the server hands out bundles (200), and whether all works (`ok`); without a token.

    While the database is gone a load balancer has to go on sending clients here.
    """
    trouble, bundles = parts.served.trouble, len(parts.served.names())
    response.status_code = 503 if trouble and not bundles else 200
    return Health(ok=not trouble, trouble=trouble, bundles=bundles)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def index(parts: Parts, request: Request) -> Response:
    """The page. A browser asks for the platform's token, as the password."""
    token = _basic(request)
    try:
        who = parts.guard.caller(token) if token else None
    except UnknownClientError:
        who = None
    if who is None or who.kind != access.PLATFORM:
        return Response(
            status_code=401, headers={"WWW-Authenticate": 'Basic realm="the platform token is the password"'}
        )
    found = clients.states(parts.engine, parts.served.names())
    alarms = sum(bool(state.alarms) for state in found)
    withheld = _withheld(parts.engine)
    held = sorted(parts.served.names().items())
    text = page.render(
        [
            ("Bundles", ("name", "revision", "bytes"), [(n, h.revision, f"{len(h.content):,}") for n, h in held]),
            ("Teams", ("team", "keys", "in force"), [
                (t.team_id, ", ".join(t.keys), ", ".join(f"{e}: {v}" for e, v in t.versions.items()))
                for t in _teams(parts.engine)
            ]),
            ("Waiting for an approval", ("id", "environment", "owner", "version", "action", "by", "until", "why"), [
                (w.id, w.environment, w.owner, w.version, w.action, w.actor, f"{w.expires_at:%Y-%m-%d %H:%M} UTC",
                 "; ".join(w.waits_for)) for w in approvals.listed(parts.engine, who)
            ]),
            ("No longer compile", ("environment", "team", "version", "instead", "why"), [
                (w.environment, w.team_id, w.version, w.instead or "all is denied", w.why) for w in withheld
            ]),
            ("Who runs what", ("client", "kind", "token", "revisions", "seen (UTC)", "alarms"), clients.as_rows(found)),
        ],
        parts.served.trouble or _summary(alarms, len(found), len(withheld)),
        bool(alarms or withheld or parts.served.trouble),
    )  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(page.STYLE.encode()).digest()).decode()
    return HTMLResponse(text, headers={name: value.format(digest) for name, value in page.HEADERS.items()})


def _summary(alarms: int, known: int, withheld: int) -> str:
    told = [f"{alarms} of {known} clients need a look."] * bool(alarms)
    told += [f"{withheld} packages no longer compile."] * bool(withheld)
    return " ".join(told) or "All is in order."


def _asker(who: Caller, impact: bool) -> Asker:
    return Asker(who.name, who.person, who.kind == access.PLATFORM, impact)


def _basic(request: Request) -> str:
    """The password of HTTP's Basic scheme, which browsers have a form for."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


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


def _withheld(engine: Engine) -> list[WithheldModel]:
    with Session(engine) as session:
        return [
            WithheldModel(environment=row.environment, team_id=row.owner, version=row.version,
                          instead=row.instead, why=row.why)
            for row in session.scalars(select(WithheldPackage).order_by(WithheldPackage.environment))
        ]  # fmt: skip


def _token(row: Token) -> TokenModel:
    return TokenModel(id=row.id, kind=row.kind, team_id=row.team_id, bundle=row.bundle, made_by=row.made_by,
                      expires_at=row.expires_at, revoked=row.revoked_at is not None)  # fmt: skip
