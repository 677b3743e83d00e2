"""The one table of users' routes: the REST API and what the UI asks for, with what Airflow asks before it answers.

A route that is not here, or that asks less than is said here, is a question of its own (``doors.user_requests``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.models import Connection
from airflow.models.asset import AssetDagRunQueue, AssetModel
from fastapi.routing import APIRoute
from sqlalchemy import select

from airflow_team_authz.doors.asset_owners import owning_teams
from airflow_team_authz.identities.machines import teams_of_dags
from airflow_team_authz.model import Resource

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Question = tuple[str, Resource]


class Request(NamedTuple):
    """A request as its handler reads it: the path's parameters, and the body (``None`` where there is no valid one).

    ``readable_dags`` finds the ids of the Dags that the user may read.
    """

    path: Mapping[str, Any]
    body: Any
    session: Session
    readable_dags: Callable[[], set[str]]


class Route(NamedTuple):
    """Airflow's questions at a route, the content of its answer or effect beyond these, and our own questions.

    ``asks`` lists, each by Airflow's method: ``GET dag.run`` (a resource, by its kind and entity, see ``NAMED_BY``),
    ``GET dag rows`` (rows of those alone that may be read), ``dag_run_bulk`` (each entity of the body), ``view.jobs``,
    ``login`` (any user), and ``handler dag`` (the handler itself asks). Nothing: the route is public.
    ``beyond`` is narrowed to what the user may read where it is read, in the database's session, unless ``also`` asks.
    """

    asks: str
    beyond: str = ""
    also: Callable[[Request], Iterable[Question]] | None = None

    def questions(self) -> frozenset[str]:
        """Each of ``asks``."""
        return frozenset(self.asks.split(", ")) if self.asks else frozenset()


def _state(action: str) -> Callable[[Request], Iterator[Question]]:
    """The state of an asset belongs to its producer, while the asset itself is common."""

    def also(request: Request) -> Iterator[Question]:
        columns = (AssetModel.id, AssetModel.name, AssetModel.uri, AssetModel.group)
        row = request.session.execute(select(*columns).where(AssetModel.id == request.path["asset_id"])).one_or_none()
        if row is not None:
            team_id = owning_teams(request.session, [row.id]).get(row.id)
            yield action, Resource("asset", team_id, str(row.id), "state", row.name, row.uri, row.group)

    return also


def _waiting_dags(request: Request) -> Iterator[Question]:
    """Airflow takes the events from every Dag that may be read; the Dag's own route asks for its update."""
    waiting = select(AssetDagRunQueue.target_dag_id).where(AssetDagRunQueue.asset_id == request.path["asset_id"])
    dag_ids = sorted(set(request.session.scalars(waiting)) & request.readable_dags())
    teams = teams_of_dags(dag_ids, request.session)
    return (("update", Resource("dag", teams[dag_id], dag_id)) for dag_id in dag_ids)


def _tested_connection(request: Request) -> Iterator[Question]:
    """A test that succeeds may write the connection, which comes or goes until then: asked are both, before that."""
    body = request.body
    if body is None:
        return
    row = request.session.execute(select(Connection.team_name).where(Connection.conn_id == body.connection_id)).first()
    resource = Resource("connection", body.team_name if row is None else row.team_name, body.connection_id)
    yield "create", resource
    if body.commit_on_success:
        yield "update", resource


A = "/api/v2"
DAG = A + "/dags/{dag_id}"
RUN = DAG + "/dagRuns/{dag_run_id}"
TASKS = RUN + "/taskInstances"
TASK = TASKS + "/{task_id}"
MAPPED = TASK + "/{map_index}"

ROUTES: dict[tuple[str, str], Route] = {
    # Who is logged in
    ("GET", "/ui/auth/me"): Route("login"),
    ("GET", "/ui/auth/menus"): Route("login, handler menu_items"),
    ("POST", "/ui/auth/token"): Route("login"),
    ("GET", A + "/auth/login"): Route(""),
    ("GET", A + "/auth/logout"): Route(""),
    # The installation
    ("GET", A + "/monitor/health"): Route(""),
    ("GET", A + "/version"): Route(""),
    ("GET", "/ui/config"): Route("login", "settings of the UI"),
    ("GET", A + "/config"): Route("GET configuration"),
    ("GET", A + "/config/section/{section}/option/{option}"): Route("GET configuration"),
    ("GET", A + "/jobs"): Route("view.jobs", "hosts and process ids"),
    ("GET", A + "/plugins"): Route("view.plugins"),
    ("GET", A + "/plugins/importErrors"): Route("view.plugins", "errors of plugins"),
    ("GET", A + "/providers"): Route("view.providers"),
    ("GET", "/ui/teams"): Route("login, GET team rows"),
    # Assets
    ("GET", A + "/assets"): Route("GET asset, GET asset_alias", "Dags that schedule by, produce and read each"),
    ("GET", A + "/assets/{asset_id}"): Route("GET asset, GET asset_alias", "Dags, its last event"),
    ("GET", A + "/assets/aliases"): Route("GET asset_alias", "assets of each"),
    ("GET", A + "/assets/aliases/{asset_alias_id}"): Route("GET asset_alias", "its assets"),
    ("GET", A + "/assets/events"): Route("GET asset, GET dag rows", "runs that each has made"),
    ("POST", A + "/assets/events"): Route("POST asset, handler teams", "starts Dags: the datasets' door"),
    ("POST", A + "/assets/{asset_id}/materialize"): Route("POST asset, handler dag", "starts the Dag that produces it"),
    ("GET", A + "/assets/{asset_id}/queuedEvents"): Route("GET asset, GET dag rows"),
    ("DELETE", A + "/assets/{asset_id}/queuedEvents"): Route(
        "DELETE asset, PUT dag, GET dag rows", "what waits for any Dag", _waiting_dags
    ),
    ("GET", DAG + "/assets/queuedEvents"): Route("GET asset, GET dag, GET dag rows"),
    ("DELETE", DAG + "/assets/queuedEvents"): Route("DELETE asset, PUT dag, GET dag rows"),
    ("GET", DAG + "/assets/{asset_id}/queuedEvents"): Route("GET asset, GET dag, GET dag rows"),
    ("DELETE", DAG + "/assets/{asset_id}/queuedEvents"): Route("DELETE asset, PUT dag, GET dag rows"),
    ("GET", A + "/assets/{asset_id}/state-store"): Route("GET asset", "its state", _state("read")),
    ("DELETE", A + "/assets/{asset_id}/state-store"): Route("DELETE asset", "its state", _state("delete")),
    ("GET", A + "/assets/{asset_id}/state-store/{key:path}"): Route("GET asset", "its state", _state("read")),
    ("PUT", A + "/assets/{asset_id}/state-store/{key:path}"): Route("PUT asset", "its state", _state("update")),
    ("DELETE", A + "/assets/{asset_id}/state-store/{key:path}"): Route("DELETE asset", "its state", _state("delete")),
    ("GET", "/ui/next_run_assets/{dag_id}"): Route("GET asset, GET dag", "events"),
    ("GET", "/ui/partitioned_dag_runs"): Route("GET asset, GET dag rows"),
    ("GET", "/ui/pending_partitioned_dag_run/{dag_id}"): Route("GET asset, GET dag", "events"),
    # Until Airflow 3.3
    ("GET", "/ui/pending_partitioned_dag_run/{dag_id}/{partition_key}"): Route("GET asset, GET dag", "events"),
    # Backfills
    ("GET", A + "/backfills"): Route("GET backfill"),
    ("POST", A + "/backfills"): Route("POST backfill"),
    ("POST", A + "/backfills/dry_run"): Route("POST backfill"),
    ("GET", A + "/backfills/{backfill_id}"): Route("GET backfill"),
    ("PUT", A + "/backfills/{backfill_id}/pause"): Route("PUT backfill"),
    ("PUT", A + "/backfills/{backfill_id}/unpause"): Route("PUT backfill"),
    ("PUT", A + "/backfills/{backfill_id}/cancel"): Route("PUT backfill"),
    ("GET", "/ui/backfills"): Route("GET backfill, GET dag rows"),
    # Connections, pools and variables
    ("GET", A + "/connections"): Route("GET connection, GET connection rows"),
    ("POST", A + "/connections"): Route("POST connection"),
    ("PATCH", A + "/connections"): Route("connection_bulk"),
    ("GET", A + "/connections/{connection_id}"): Route("GET connection"),
    ("PATCH", A + "/connections/{connection_id}"): Route("PUT connection"),
    ("DELETE", A + "/connections/{connection_id}"): Route("DELETE connection"),
    ("POST", A + "/connections/test"): Route("POST connection, handler connection"),
    ("GET", A + "/connections/enqueue-test"): Route("login, handler connection"),
    ("POST", A + "/connections/enqueue-test"): Route(
        "login, handler connection", "writes the connection later: doors.connection_tests", _tested_connection
    ),
    ("POST", A + "/connections/defaults"): Route("POST connection", "common connections: its body may name no team"),
    ("GET", "/ui/connections/hook_meta"): Route("GET connection"),
    ("GET", A + "/pools"): Route("GET pool, GET pool rows", "how much of each is taken"),
    ("POST", A + "/pools"): Route("POST pool"),
    ("PATCH", A + "/pools"): Route("pool_bulk"),
    ("GET", A + "/pools/{pool_name:path}"): Route("GET pool", "how much of it is taken"),
    ("PATCH", A + "/pools/{pool_name:path}"): Route("PUT pool"),
    ("DELETE", A + "/pools/{pool_name:path}"): Route("DELETE pool"),
    ("GET", A + "/variables"): Route("GET variable, GET variable rows"),
    ("POST", A + "/variables"): Route("POST variable"),
    ("PATCH", A + "/variables"): Route("variable_bulk"),
    ("GET", A + "/variables/{variable_key:path}"): Route("GET variable"),
    ("PATCH", A + "/variables/{variable_key:path}"): Route("PUT variable"),
    ("DELETE", A + "/variables/{variable_key:path}"): Route("DELETE variable"),
    # Dags
    ("GET", A + "/dags"): Route("GET dag, GET dag rows"),
    ("PATCH", A + "/dags"): Route("PUT dag, PUT dag rows"),
    ("GET", DAG): Route("GET dag"),
    ("PATCH", DAG): Route("PUT dag"),
    ("DELETE", DAG): Route("DELETE dag", "all its runs"),
    ("GET", DAG + "/details"): Route("GET dag", "its latest version"),
    ("POST", DAG + "/favorite"): Route("GET dag"),
    ("POST", DAG + "/unfavorite"): Route("GET dag"),
    ("GET", DAG + "/tasks"): Route("GET dag.task"),
    ("GET", DAG + "/tasks/{task_id}"): Route("GET dag.task"),
    ("GET", DAG + "/dagVersions"): Route("GET dag.version, GET dag rows"),
    ("GET", DAG + "/dagVersions/{version_number}"): Route("GET dag.version"),
    ("GET", A + "/dagSources/{dag_id}"): Route("GET dag.code, handler dag_ids", "the file's other Dags"),
    ("PUT", A + "/parseDagFile/{file_token}"): Route("PUT dag_from_file_token"),
    ("GET", A + "/dagStats"): Route("GET dag.run, GET dag rows"),
    ("GET", A + "/dagTags"): Route("GET dag, GET dag rows"),
    ("GET", A + "/dagWarnings"): Route("GET dag.warning, GET dag rows"),
    ("GET", "/ui/dags"): Route(
        "GET dag, GET dag.run, GET dag.hitl_detail, GET dag.task_instance, GET dag rows", "latest runs, pending actions"
    ),
    ("GET", "/ui/dags/{dag_id}/latest_run"): Route("GET dag.run"),
    ("GET", "/ui/dags/{dag_id}/deadlineAlerts"): Route("GET dag"),
    ("GET", "/ui/dags/{dag_id}/dagRuns/{dag_run_id}/deadlines"): Route("GET dag.run, GET dag rows"),
    ("GET", "/ui/dags/{dag_id}/dagRuns/{dag_run_id}/stats"): Route("GET dag.run"),
    ("GET", "/ui/dependencies"): Route("GET dag.dependencies, GET dag rows"),
    ("GET", "/ui/structure/structure_data"): Route(
        "GET dag, GET dag.dependencies, GET dag.task_instance, GET dag rows", "Dags and assets that it depends on"
    ),
    ("GET", "/ui/dashboard/dag_stats"): Route("GET dag, GET dag rows"),
    ("GET", "/ui/dashboard/historical_metrics_data"): Route("GET dag.task_instance, GET dag.run, GET dag rows"),
    ("GET", "/ui/calendar/{dag_id}"): Route("GET dag.task_instance, GET dag.run"),
    ("GET", "/ui/gantt/{dag_id}/{run_id}"): Route("GET dag.task_instance, GET dag.run"),
    ("GET", "/ui/grid/runs/{dag_id}"): Route("GET dag.task_instance, GET dag.run"),
    ("GET", "/ui/grid/structure/{dag_id}"): Route("GET dag.task_instance, GET dag.run"),
    ("GET", "/ui/grid/ti_summaries/{dag_id}"): Route("GET dag.task_instance, GET dag.run"),
    # Runs; where the path's Dag is `~`, rows of all Dags, or those that each entity of the body names
    ("GET", DAG + "/dagRuns"): Route("GET dag.run, GET dag rows", "of ~: entities"),
    ("POST", DAG + "/dagRuns"): Route("POST dag.run"),
    ("PATCH", DAG + "/dagRuns"): Route("dag_run_bulk"),
    ("POST", DAG + "/dagRuns/list"): Route("GET dag.run, GET dag rows", "of ~: entities"),
    ("POST", DAG + "/clearDagRuns"): Route("dag_run_clear_bulk"),
    ("POST", DAG + "/clearPartitions"): Route("PUT dag.run"),
    ("POST", DAG + "/clearTaskInstances"): Route("PUT dag.task_instance"),
    ("GET", RUN): Route("GET dag.run"),
    ("PATCH", RUN): Route("PUT dag.run"),
    ("DELETE", RUN): Route("DELETE dag.run"),
    ("POST", RUN + "/clear"): Route("PUT dag.run"),
    ("GET", RUN + "/wait"): Route("GET dag.run, handler dag", "XComs, which the handler asks about"),
    ("GET", RUN + "/upstreamAssetEvents"): Route("GET asset, GET dag.run", "the events' Dags"),
    ("GET", RUN + "/hitlDetails"): Route("GET dag.hitl_detail, GET dag rows", "of ~: entities"),
    # Task instances
    ("GET", TASKS): Route("GET dag.task_instance, GET dag rows", "of ~: entities"),
    ("POST", TASKS + "/list"): Route("GET dag.task_instance, GET dag rows", "of ~: entities"),
    ("PATCH", TASKS): Route("PUT dag.task_instance", "Dags of the body, which its service asks about"),
    ("PATCH", RUN + "/taskGroupInstances/{group_id}"): Route("PUT dag.task_instance"),
    ("PATCH", RUN + "/taskGroupInstances/{group_id}/dry_run"): Route("PUT dag.task_instance"),
    ("GET", TASK): Route("GET dag.task_instance"),
    ("PATCH", TASK): Route("PUT dag.task_instance"),
    ("DELETE", TASK): Route("DELETE dag.task_instance"),
    ("PATCH", TASK + "/dry_run"): Route("PUT dag.task_instance"),
    ("GET", TASK + "/dependencies"): Route("GET dag.task_instance"),
    ("GET", TASK + "/links"): Route("GET dag.task_instance", "XComs of its operator's links"),
    ("GET", TASK + "/listMapped"): Route("GET dag.task_instance"),
    ("GET", TASK + "/tries"): Route("GET dag.task_instance"),
    ("GET", TASK + "/tries/{task_try_number}"): Route("GET dag.task_instance"),
    ("GET", TASK + "/logs/{try_number}"): Route("GET dag.task_logs"),
    ("GET", TASK + "/externalLogUrl/{try_number}"): Route("GET dag.task_logs"),
    ("GET", MAPPED): Route("GET dag.task_instance"),
    ("PATCH", MAPPED): Route("PUT dag.task_instance"),
    ("PATCH", MAPPED + "/dry_run"): Route("PUT dag.task_instance"),
    ("GET", MAPPED + "/dependencies"): Route("GET dag.task_instance"),
    ("GET", MAPPED + "/tries"): Route("GET dag.task_instance"),
    ("GET", MAPPED + "/tries/{task_try_number}"): Route("GET dag.task_instance"),
    ("GET", MAPPED + "/hitlDetails"): Route("GET dag.hitl_detail"),
    ("PATCH", MAPPED + "/hitlDetails"): Route("PUT dag.hitl_detail, handler hitl_task"),
    ("GET", MAPPED + "/hitlDetails/tries/{try_number}"): Route("GET dag.hitl_detail"),
    ("GET", TASK + "/state-store"): Route("GET dag.task_instance"),
    ("DELETE", TASK + "/state-store"): Route("DELETE dag.task_instance"),
    ("GET", TASK + "/state-store/{key:path}"): Route("GET dag.task_instance"),
    ("PUT", TASK + "/state-store/{key:path}"): Route("PUT dag.task_instance"),
    ("PATCH", TASK + "/state-store/{key:path}"): Route("PUT dag.task_instance"),
    ("DELETE", TASK + "/state-store/{key:path}"): Route("DELETE dag.task_instance"),
    ("GET", TASK + "/xcomEntries"): Route("GET dag.xcom, GET dag rows"),
    ("POST", TASK + "/xcomEntries"): Route("POST dag.xcom"),
    ("GET", TASK + "/xcomEntries/{xcom_key:path}"): Route("GET dag.xcom"),
    ("PATCH", TASK + "/xcomEntries/{xcom_key:path}"): Route("PUT dag.xcom"),
    ("DELETE", TASK + "/xcomEntries/{xcom_key:path}"): Route("DELETE dag.xcom"),
    # Rows that may name no Dag
    ("GET", A + "/eventLogs"): Route("GET event_log, GET dag rows", "rows without a Dag"),
    ("GET", A + "/eventLogs/{event_log_id}"): Route("GET event_log", "a row without a Dag"),
    ("GET", A + "/importErrors"): Route("view.import_errors, handler dag_ids, handler dag", "files without a Dag"),
    ("GET", A + "/importErrors/{import_error_id}"): Route(
        "view.import_errors, handler dag_ids", "a file without a Dag"
    ),
}

# Where Airflow finds what it asks about: the first that is there. What the body names goes before it, and `~` names
# no Dag. What Airflow asks about a row without a Dag, it takes from the query.
NAMED_BY: dict[str, tuple[str, ...]] = {
    "asset": ("path asset_id",),
    "asset_alias": ("path asset_alias_id",),
    "backfill": ("path backfill_id", "body dag_id", "query dag_id"),
    "configuration": ("query section", "path section"),
    "dag": ("path dag_id", "query dag_id"),
    "event_log": ("query dag_id", "path event_log_id"),
    **{f"POST {type_}": ("body team_name",) for type_ in ("connection", "pool", "variable")},
}

# Routes that users' requests come in by; what else Airflow serves asks the auth manager itself, or is for everybody.
_PREFIXES = (A + "/", "/ui/")
_ASKED_BY_HANDLER = re.compile(r"(?:batch_)?(?:is|get|filter)_authorized_(\w+)")


def is_users(route: Any) -> bool:
    """Whether a route is one of users' routes."""
    return str(getattr(route, "path", "")).startswith(_PREFIXES)


def airflow_asks(route: APIRoute) -> frozenset[str]:
    """Airflow's questions at a route, in the words of ``Route.asks``."""
    found: set[str] = set()
    login = False
    for call in _dependencies(route.dependant):
        made_by = getattr(call, "__qualname__", "").partition(".")[0]
        free = _closure(call)
        method = free.get("method")
        if made_by.startswith("requires_access_"):
            part = free.get("access_entity") or free.get("access_view")
            about = made_by.removeprefix("requires_access_") + (f".{part.name.lower()}" if part else "")
            found.add(f"{method} {about}" if method else about)
        elif made_by.startswith("permitted_"):
            kind = made_by.removeprefix("permitted_").removesuffix("_filter_factory")
            found.add(f"{method or 'GET'} {kind} rows")
        login = login or made_by == "get_user"
    if login and all(question.endswith(" rows") for question in found):
        found.add("login")
    names = inspect.unwrap(route.endpoint).__code__.co_names
    return frozenset(found | {f"handler {match[1]}" for name in names if (match := _ASKED_BY_HANDLER.fullmatch(name))})


def is_known(route: APIRoute) -> bool:
    """Whether the table knows each method of a route, and Airflow asks all there that the table says it does.

    More is no matter. Lists' rows are narrowed once more where they are read, and a handler may ask in its own way.
    """
    asked = airflow_asks(route)
    for method in route.methods:
        known = ROUTES.get((method, route.path))
        if known is None:
            return False
        needed = {question for question in known.questions() if not question.endswith(" rows")}
        if any(question not in asked for question in needed if not question.startswith("handler ")):
            return False
    return True


def unknown_routes() -> list[str]:
    """Users' routes of this Airflow that the table does not know, such as ``GET /ui/new``."""
    from airflow.api_fastapi.core_api.routes.public import public_router
    from airflow.api_fastapi.core_api.routes.ui import ui_router

    found = [route for router in (ui_router, public_router) for route in router.routes if isinstance(route, APIRoute)]
    return [f"{method} {route.path}" for route in found if not is_known(route) for method in sorted(route.methods)]


def names_read(route: APIRoute) -> Iterator[tuple[str, str]]:
    """Where Airflow looks for the names that it asks about at a route, such as ``("query", "dag_id")``."""
    for question in airflow_asks(route):
        kind = question.rpartition(" ")[2].partition(".")[0]
        for place in NAMED_BY.get(question, NAMED_BY.get(kind, ())):
            where, name = place.split()
            if where != "path":
                yield where, name
            elif f"{{{name}" in route.path:
                yield where, name
                break


def _dependencies(dependant: Any) -> Iterator[Any]:
    for part in dependant.dependencies:
        yield part.call
        yield from _dependencies(part)


def _closure(call: Any) -> Mapping[str, Any]:
    # What Airflow made: the second wall is wrapped around it.
    made = inspect.unwrap(call)
    return inspect.getclosurevars(made).nonlocals if inspect.isfunction(made) else {}
