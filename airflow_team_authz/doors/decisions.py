"""``GET /auth/decisions``: what a person may see of the decision log, in Airflow itself.

Everybody sees their own refusals, as far as the answers told them already. Beyond that the policy is asked: about the
audit log of each resource that a team owns, of the Dag of each task, and about all audit logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

from airflow.models.team import Team
from airflow.utils.session import create_session
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute, APIRouter
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from airflow_team_authz.decision_log.database import NoTableError
from airflow_team_authz.decision_log.parts import AUDITED, audited, in_order, part, told_part
from airflow_team_authz.decision_log.reading import Concerned, InDatabase, Record, Wanted
from airflow_team_authz.doors import decisions_page
from airflow_team_authz.doors.decision_point import airflows_engine, records_are_kept
from airflow_team_authz.doors.disclosure import no_decision
from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.identities import requests
from airflow_team_authz.identities.machines import teams_of_dags
from airflow_team_authz.model import EngineError, Evaluations, Resource, Subject
from airflow_team_authz.settings import read_database

# Airflow's UI looks the text up among its own words, where it is not: of what it does not find, it shows what is after
# the colon. Without a colon that is "security.decisions".
TITLE = "Policy:Decisions"
PATH = "/decisions"
DAYS = 7
_MOST = 100
# Rows of a page that are looked at: what the policy hides is no reason to read the whole table.
_LOOKED_AT = 2_000
_ID = "^[0-9a-f-]{0,36}$"
_VARY = {"Vary": "Accept", "Cache-Control": "no-store"}
EVERYTHING = Resource("platform_view", None, "audit_logs_all")


class Search(NamedTuple):
    """Which records are wanted, and where a page of them begins: after the record ``before``, newest first."""

    wanted: Wanted
    id: str | None = None
    before: str = ""
    limit: int = _MOST


class Page(NamedTuple):
    """Records or parts of them, newest first; ``next`` is the ``before`` of the next page, if there may be one."""

    decisions: list[Record]
    next: str | None


class Asker(NamedTuple):
    """What the auth manager knows: the subject of a user object, and the decision point."""

    find_subject: Callable[[Any], Subject]
    policy: Callable[[], DecisionPoint]


def search(subject: Subject, wanted: Search, policy: DecisionPoint) -> Page:
    """A page of what a person may see. Raises ``EngineError``, ``NoTableError``, and errors of SQLAlchemy."""
    table = InDatabase(airflows_engine(), read_database()[1])
    table.require()
    sees_all = bool(policy.allowed(Evaluations(subject, "read", [EVERYTHING])))
    whose = None if sees_all else Concerned(subject.id, _teams(subject, policy))
    # The rows are of this time; by the rest, a filter would tell of parts that the person does not see.
    fits = wanted.wanted._replace(since=None).fits
    found: list[Record] = []
    before, looked_at, ends = wanted.before, 0, set[str]()
    while len(found) <= wanted.limit and looked_at < _LOOKED_AT:
        rows = table.page(wanted.wanted, whose, wanted.id, before, wanted.limit)
        found += rows if sees_all else filter(fits, _visible(subject, rows, policy))
        looked_at += len(rows)
        if len(rows) < wanted.limit:
            return _page(found, wanted.limit, None)
        before = rows[-1]["decision_id"]
        ends |= {row["decision_id"] for row in rows if whose is None or _concerns(row, whose.teams)}
    # Not where the last row is: it may be an own one that is hidden, and that there is one tells what is concealed.
    return _page(found, wanted.limit, min(ends | {one["decision_id"] for one in found}, default=None))


def _concerns(row: Record, teams: Sequence[str]) -> bool:
    input_ = row.get("input") or {}
    subject = input_.get("subject") or {}
    owners = [one.get("team_id") for one in input_.get("resources") or [input_.get("resource") or {}]]
    return not {*owners, *(subject.get("team_ids", ()) if subject.get("type") == "task" else ())}.isdisjoint(teams)


def _page(found: list[Record], limit: int, before: str | None) -> Page:
    return Page(found[:limit], found[limit - 1]["decision_id"] if len(found) > limit else before)


def _teams(subject: Subject, policy: DecisionPoint) -> list[str]:
    """The teams of which a person may read the audit log of some type."""
    with requests.unfiltered(), create_session(scoped=False) as session:
        teams = sorted(session.scalars(select(Team.name)))
    logs = [Resource(type_, team, entity="audit_log") for team in teams for type_ in sorted(AUDITED)]
    # Aside, here and below: otherwise each look at the log would leave records of its own there.
    allowed = policy.allowed(Evaluations(subject, "read", logs), aside=True) if logs else []
    return sorted({str(log.team_id) for log in allowed})


def _visible(subject: Subject, rows: Sequence[Record], policy: DecisionPoint) -> Iterator[Record]:
    """The part of each record that a person may see, if there is one."""
    dags = _dags_of_tasks(rows)
    about = [(row, list(audited(row)), dags.get(row["decision_id"])) for row in rows]
    asked = in_order(log for _, parts, dag in about for logs in (*(logs for _, logs in parts), (dag,)) for log in logs
                     if log is not None)  # fmt: skip
    allowed = set(policy.allowed(Evaluations(subject, "read", asked), aside=True)) if asked else set()
    for row, parts, dag in about:
        is_told = _is_by(row, subject) or dag in allowed
        told = told_part(row) if is_told else None
        if places := [place for place, logs in parts if allowed.issuperset(logs)]:
            yield _joined(part(row, places), told)
        elif told is not None:
            yield told


def _is_by(row: Record, subject: Subject) -> bool:
    asked = (row.get("input") or {}).get("subject") or {}
    return (asked.get("type"), asked.get("id")) == (subject.type, subject.id)


def _joined(found: Record, told: Record | None) -> Record:
    """A part, with what its subject was told."""
    if told is None:
        return found
    joined = {**told, **found}
    # Of the outcome the subject knows more than what came of the resources that it may see.
    joined["custom"] = {**found["custom"], **told["custom"]}
    return joined


def _dags_of_tasks(rows: Sequence[Record]) -> dict[str, Resource]:
    """The audit log of the Dag of each record of a team's task, if the Dag is still that team's."""
    asking = {row["decision_id"]: (row.get("input") or {}).get("subject") or {} for row in rows}
    dag_ids = {id_: one["dag_id"] for id_, one in asking.items() if one.get("type") == "task" and "dag_id" in one}
    if not dag_ids:
        return {}
    with requests.unfiltered(), create_session(scoped=False) as session:
        owners = teams_of_dags(sorted(set(dag_ids.values())), session)
    return {
        id_: Resource("dag", owner, dag_id, "audit_log")
        for id_, dag_id in dag_ids.items()
        if (owner := owners.get(dag_id)) is not None and asking[id_].get("team_ids") == [owner]
    }


# The route


def add_route(app: FastAPI | None, asker: Asker) -> FastAPI:
    """The login manager's application, or a new one, with the route before the others: one may take any path."""
    app = app or FastAPI(title="Decisions of the policy")
    routes = app.router.routes
    before = len(routes)
    app.include_router(_router(asker))
    routes[:] = [*routes[before:], *routes[:before]]
    return app


def menu_item() -> Any:
    """The entry of Airflow's menu."""
    from airflow.api_fastapi.app import AUTH_MANAGER_FASTAPI_APP_PREFIX
    from airflow.api_fastapi.common.types import ExtraMenuItem

    return ExtraMenuItem(text=TITLE, href=f"{AUTH_MANAGER_FASTAPI_APP_PREFIX}{PATH}")


def _router(asker: Asker) -> APIRouter:
    # Only now: Airflow's app is imported after the hooks that guard it.
    from airflow.api_fastapi.core_api.security import GetUserDep

    router = APIRouter(route_class=_Route)

    def decisions(
        request: Request,
        user: Any,
        id_: Annotated[str, Query(alias="id", pattern=_ID, description="Of one record.")] = "",
        since: Annotated[str, Query(max_length=40, description=f"In UTC. By default {DAYS} days ago.")] = "",
        user_: Annotated[str, Query(alias="user", max_length=250)] = "",
        team: Annotated[str, Query(max_length=64)] = "",
        type_: Annotated[str, Query(alias="type", max_length=50)] = "",
        denied: Annotated[bool, Query(description="Refusals and errors, alone.")] = False,
        before: Annotated[str, Query(pattern=_ID, description="`next` of the page before.")] = "",
        limit: Annotated[int, Query(ge=1, le=_MOST)] = _MOST,
    ) -> Response:
        """A page of decisions that concern the person or the person's teams, newest first."""
        if not records_are_kept():
            raise HTTPException(
                404, "Airflow's database has no records of decisions, since [team_authz] decision_log does not name it"
            )
        of_time = None if id_ and not since else _since(since)
        wanted = Wanted(of_time, user_ or None, team or None, type_ or None, denied)
        found = _answer(asker, user, Search(wanted, id_ or None, before, limit))
        if not _wants_page(request):
            return JSONResponse(found._asdict(), headers=_VARY)
        filters = {"user": user_, "team": team, "type": type_, "since": since, "denied": "true" if denied else ""}
        return _page_of(decisions_page.render(found.decisions, found.next, filters, id_))

    decisions.__annotations__["user"] = GetUserDep
    router.add_api_route(PATH, decisions, methods=["GET"])
    return router


def _since(text: str) -> datetime:
    if not text:
        return datetime.now(UTC) - timedelta(days=DAYS)
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise HTTPException(422, "since is not a time: write it as 2026-11-27 or 2026-11-27T04:19:09Z") from None


def _answer(asker: Asker, user: Any, wanted: Search) -> Page:
    subject = asker.find_subject(user)
    try:
        return search(subject, wanted, asker.policy())
    except EngineError as error:
        raise no_decision(error) from None
    except NoTableError as error:
        raise HTTPException(503, f"{error}.") from None
    except OperationalError:
        raise HTTPException(503, "Airflow's database does not answer in time: ask for a shorter time (since)") from None


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _page_of(content: str, status: int = 200) -> Response:
    return HTMLResponse(content, status, headers={**_VARY, **decisions_page.HEADERS})


class _Route(APIRoute):
    """A browser gets the login page, or an error as a page."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """See ``APIRoute``."""
        answer = super().get_route_handler()

        async def answer_or_show(request: Request) -> Response:
            try:
                return await answer(request)
            except HTTPException as error:
                if not _wants_page(request):
                    raise
                if error.status_code == 401:
                    return RedirectResponse(_login(request), headers=_VARY)
                return _page_of(decisions_page.render_error(str(error.detail)), error.status_code)
            except RequestValidationError as error:
                if not _wants_page(request):
                    raise
                wrong = ", ".join(str(one["loc"][-1]) for one in error.errors())
                return _page_of(decisions_page.render_error(f"This page cannot use these filters: {wrong}"), 422)

        return answer_or_show


def _login(request: Request) -> str:
    from airflow.api_fastapi.app import AUTH_MANAGER_FASTAPI_APP_PREFIX

    root = AUTH_MANAGER_FASTAPI_APP_PREFIX.removesuffix("auth")
    return f"{root}api/v2/auth/login?next={quote(str(request.url), safe='')}"
