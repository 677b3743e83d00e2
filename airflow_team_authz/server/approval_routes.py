"""The routes of held releases: who waits for what, and approving and refusing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from airflow_team_authz.server import access, approvals
from airflow_team_authz.server.access import Caller
from airflow_team_authz.server.approvals import Approval, Held
from airflow_team_authz.server.dependencies import OfPlatform, Parts, Publishing, Sent, ServerParts, caller, queue
from airflow_team_authz.server.impact import NOT_KNOWN, Impact
from airflow_team_authz.server.messages import (
    REFUSAL,
    Approving,
    HeldId,
    HeldModel,
    ImpactLine,
    ImpactModel,
    PublishedModel,
    Refusing,
    answers,
)
from airflow_team_authz.server.releases import Published

router = APIRouter()


async def answer(parts: ServerParts, done: Published | Held, who: Caller) -> PublishedModel | JSONResponse:
    """What became of a change: it is in force, or it is held (202)."""
    if isinstance(done, Held):
        return JSONResponse(held_model(parts, done, who, whole=True).model_dump(mode="json"), 202)
    return await published_model(parts, done, who)


async def published_model(parts: ServerParts, done: Published, who: Caller) -> PublishedModel:
    """What is in force, with its impact as this caller may see it, as soon as this server has its bundle."""
    if done.bundles:
        await parts.served.caught_up(done.environment, done.serial)
    impact = None if done.impact is None else impact_model(done.impact, who)
    return PublishedModel(**done._asdict() | {"impact": impact})


def impact_model(impact: Impact, who: Caller) -> ImpactModel:
    """The impact as this caller may see it."""
    is_platform = who.kind == access.PLATFORM
    lines = [
        ImpactLine(
            direction=line.direction, told=line.told if is_platform else line.told_team, approval=[*line.approval]
        )
        for line in impact.lines
    ]
    return ImpactModel(
        lines=lines, questions=impact.questions, different=impact.different, not_seen=[*impact.not_seen],
        unknown=impact.unknown if is_platform else NOT_KNOWN * bool(impact.unknown),
    )  # fmt: skip


def held_model(parts: ServerParts, held: Held, who: Caller, whole: bool = False) -> HeldModel:
    """A held release; ``whole``: with its impact."""
    told = held._asdict() | {"impact": impact_model(held.impact, who) if whole and held.impact else None}
    return HeldModel(**told, approvers=parts.publishing.rules.whom_to_ask(held.actor))


@router.get("/approvals", responses=answers() | REFUSAL)
def held_releases(
    parts: Parts,
    who: Publishing,
    decided: Annotated[bool, Query(description="Also those that do not wait any more.")] = False,
) -> list[HeldModel]:
    """The changes that wait for an approval, newest first: a team sees its own, the platform sees all."""
    return [held_model(parts, held, who) for held in approvals.listed(parts.engine, who, decided)]


def _found(parts: ServerParts, who: Caller, id_: int) -> Held:
    if (held := approvals.find(parts.engine, who, id_)) is None:
        raise HTTPException(404, f"there is no held release {id_}")
    return held


@router.get("/approvals/{id_}", responses=answers(404) | REFUSAL)
def held_release(parts: Parts, who: Publishing, id_: HeldId) -> HeldModel:
    """A held release, with its impact."""
    return held_model(parts, _found(parts, who, id_), who, whole=True)


@router.post("/approvals/{id_}/approve", responses=answers(404, 409, 413, 423) | REFUSAL)
async def approve(parts: Parts, who: OfPlatform, token: Sent, id_: HeldId, wanted: Approving) -> PublishedModel:
    """Put a held release in force. Whoever has published it cannot do that, nor a token that they have made."""
    held = await run_in_threadpool(_found, parts, who, id_)
    who = await caller(parts, token)
    approval = Approval(id_, wanted.seen, who.name, who.person)
    done = await parts.changes.run(queue(who, held.owner), parts.publishing.approve, approval)
    return await published_model(parts, done, who)


@router.post("/approvals/{id_}/refuse", responses=answers(404, 409) | REFUSAL)
def refuse(parts: Parts, who: Publishing, id_: HeldId, wanted: Refusing) -> HeldModel:
    """Refuse a held release: the platform, or its own team, which takes it back."""
    _found(parts, who, id_)
    return held_model(parts, approvals.refuse(parts.engine, id_, who.name, wanted.reason), who, whole=True)
