"""The requests and answers of the routes, as OpenAPI describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, Field

from airflow_team_authz.server.clients import ClientState
from airflow_team_authz.server.database import TEXT
from airflow_team_authz.team_ids import PATTERN

MEDIA_TYPE = "application/vnd.openpolicyagent.bundles"

SCOPE = rf"^(\*|team:{PATTERN}|environment:[a-zA-Z0-9_-]{{1,60}})$"

TeamId = Annotated[str, Path(pattern=f"^{PATTERN}$", description="A team's id.", examples=["alpha"])]
EnvironmentName = Annotated[
    str | None, Query(max_length=64, description="Else the server's first.", examples=["production"])
]
WithImpact = Annotated[bool, Query(alias="impact", description="Say what it gives and takes, which takes its time.")]
HeldId = Annotated[int, Path(ge=1, lt=2**31, description="A held release.")]
Version = Annotated[int, Query(ge=1, lt=2**53, description="A version of the package.")]


class Problem(BaseModel):
    """An error, and the next step."""

    error: str


class FindingModel(BaseModel):
    """A reason not to publish a package."""

    rule: str
    file: str
    line: int
    message: str
    help: str
    level: str = "error"


class Refusal(Problem):
    """The gate refuses a package."""

    findings: list[FindingModel] = Field(default_factory=list)


class ImpactLine(BaseModel):
    """What some people or tasks gain or lose, in words."""

    direction: str
    told: str = Field(description="A team gets no names that only the platform or the directory has.")
    approval: list[str] = Field(description="The platform's rules by which this waits for an approval.")


class ImpactModel(BaseModel):
    """What a change gives and takes, as `team-authz impact` finds it."""

    lines: list[ImpactLine]
    questions: int
    different: int
    not_seen: list[str] = Field(description="What cannot be found by these questions.")
    unknown: str = Field(description="Why the impact could not be computed; empty if it was.")


class HeldModel(BaseModel):
    """A change that waits until somebody else has approved it, or once did."""

    id: int
    environment: str
    owner: str
    version: int
    digest: str
    action: str
    actor: str
    at: datetime
    expires_at: datetime
    state: str = Field(description="waiting, approved, refused, replaced or expired.")
    decided_by: str
    decided_at: datetime | None
    reason: str
    waits_for: list[str] = Field(description="The platform's rules, and what cannot be seen.")
    approvers: str = Field(description="Who may approve it.")
    seen: str = Field(description="Stands for the impact: to be sent with the approval.")
    impact: ImpactModel | None = None


class Approving(BaseModel):
    """That the impact was looked at."""

    seen: str = Field(pattern="^[0-9a-f]{32}$", description="`seen` of the held release.")


class Refusing(BaseModel):
    """Why a held release is not to come into force."""

    reason: str = Field(min_length=1, max_length=500, pattern=TEXT)


class PublishedModel(BaseModel):
    """The versions in force after a publication."""

    owner: str
    version: int
    environment: str
    serial: int
    bundles: list[str]
    impact: ImpactModel | None = Field(None, description="If `impact=true` asked for it, or a rule is about it.")


class HistoryEntry(BaseModel):
    """A version that came into force, and its author; or what became of one that was held (`serial` 0)."""

    environment: str
    version: int
    digest: str
    action: str
    actor: str
    at: datetime
    serial: int
    approved_by: str = ""


class TeamModel(BaseModel):
    """A team, its keys, and what it has in force by environment."""

    team_id: str
    keys: list[str]
    versions: dict[str, int]


class WithheldModel(BaseModel):
    """A package that is in force and no longer compiles, such as with a newer OPA: the bundles do without it."""

    environment: str
    team_id: str
    version: int
    instead: int = Field(description="The version that is in the bundles; 0: all of the team's is denied.")
    why: str


class StatusModel(BaseModel):
    """The clients with their revisions, alarms, and packages to mend."""

    clients: list[ClientState]
    next: int | None = Field(description="What to send as `after` for the next page; null: this is the last one.")
    withheld: list[WithheldModel]


class NotedModel(BaseModel):
    """The result for decisions that a client has sent."""

    received: int
    written: int = Field(description="The others were there already, or are none.")
    dropped: int = Field(description="Those without `decision_id` or `timestamp`.")


class DecisionModel(BaseModel):
    """A record of a decision, and whose token it came by."""

    number: int
    reporter: str
    record: dict[str, Any] = Field(description="See record.schema.json. A team gets the part that concerns it.")


class DecisionsModel(BaseModel):
    """Records, newest first."""

    decisions: list[DecisionModel]
    next: int | None = Field(description="What to send as `before` for the next page; null: this is the last one.")


class Rollback(BaseModel):
    """Which version is to be in force again."""

    version: int = Field(ge=1, lt=2**53)
    environment: str | None = Field(None, max_length=64)


class Promotion(BaseModel):
    """From which environment to which other one."""

    source: str = Field(alias="from", max_length=64, examples=["staging"])
    target: str = Field(alias="to", max_length=64, examples=["production"])


class FreezeModel(BaseModel):
    """The scope of a freeze: ``*`` for everything, ``team:<id>`` or ``environment:<name>``."""

    scope: str = Field(pattern=SCOPE, examples=["team:alpha"])
    reason: str = Field(min_length=1, max_length=500, pattern=TEXT)


class TokenRequest(BaseModel):
    """A token to be made."""

    kind: str = Field(pattern="^(platform|team|reader)$")
    team_id: str | None = Field(None, pattern=f"^{PATTERN}$", description="Of a team's token.")
    bundle: str | None = Field(
        None, max_length=200, pattern=TEXT, description="The only bundle that a reader may fetch."
    )
    days: int = Field(90, ge=1, le=3650)


class TokenModel(BaseModel):
    """A token, without its secret."""

    id: str
    kind: str
    team_id: str | None
    bundle: str | None
    expires_at: datetime
    revoked: bool
    made_by: str = Field("", description="Whose it counts as too; empty: made in the database.")


class NewToken(TokenModel):
    """A new token; ``secret`` is shown this once."""

    secret: str


class Health(BaseModel):
    """Whether the server works."""

    ok: bool = Field(description="Bundles are served, and packages can be published.")
    trouble: str = Field(description="What does not work.", examples=["the database cannot be read"])
    bundles: int = Field(description="How many bundles are served.")


def answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, as OpenAPI has them."""
    told = {
        400: "It cannot be understood.",
        401: "The token is missing or not known.",
        403: "The caller may not do that.",
        404: "There is no such thing.",
        408: "It was not whole within a minute.",
        409: "It is not newer than what is published, or cannot be decided about any more.",
        413: "It is too large.",
        429: "The token sends more than it may.",
        423: "The platform has stopped changes for now.",
        503: "The database, the issuer of tokens, or room on the disk is gone; nothing has changed.",
    }
    return {code: {"model": Problem, "description": told[code]} for code in (400, 401, 403, 503, *codes)}


HELD: dict[int | str, dict[str, Any]] = {
    202: {"model": HeldModel, "description": "It waits for an approval. Nothing has changed yet."}
}
REFUSAL: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "The gate refuses the package, or a value is not as it must be."}
}
BUNDLE: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "The bundle."},
    304: {"description": "It has not changed."},
}
STATUS = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "description": "As OPA reports its status."}}},
    }
}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "description": "In the text format of Prometheus."}
}
LOGS = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "array", "items": {"type": "object"},
                                                    "description": "As OPA's decision_logs plugin sends them."}}},
    }
}  # fmt: skip
ARTIFACT = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def access_route(kind: str) -> dict[str, Any]:
    """A route of the AuthZEN API as OpenAPI has it. Its errors are texts. The specification describes its bodies."""
    where = f"https://openid.net/specs/authorization-api-1_0.html#name-{_SECTIONS[kind]}"
    body = {"required": True, "content": {"application/json": {"schema": {"type": "object", "description": where}}}}
    text = {"application/json": {"schema": {"type": "string"}}}
    told = {400: "The request is not as the specification has it.", 401: "The token is missing or not known.",
            403: "The policy does not let the caller ask.", 404: "There is no such environment.",
            408: "It was not whole within a minute.",
            503: "There is no policy yet, or it fails. This is not a denial."}  # fmt: skip
    responses: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": f"See {where}."}
    }
    responses |= {code: {"content": text, "description": description} for code, description in told.items()}
    return {"responses": responses, "openapi_extra": {"requestBody": body}}


_SECTIONS = {
    "evaluation": "access-evaluation-api", "evaluations": "access-evaluations-api", "search": "search-apis",
}  # fmt: skip
