"""Every route of the API server, made into requests about what belongs to team alpha, or to nobody in particular."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import httpx

# What the UI asks for beside the public API; it is not in the OpenAPI document.
_UI = (
    "/ui/auth/me",
    "/ui/auth/menus",
    "/ui/backfills?dag_id={dag_id}",
    "/ui/calendar/{dag_id}",
    "/ui/config",
    "/ui/connections/hook_meta",
    "/ui/dags",
    "/ui/dags/{dag_id}/dagRuns/{dag_run_id}/deadlines",
    "/ui/dags/{dag_id}/dagRuns/{dag_run_id}/stats",
    "/ui/dags/{dag_id}/deadlineAlerts",
    "/ui/dags/{dag_id}/latest_run",
    "/ui/dashboard/dag_stats",
    "/ui/dashboard/historical_metrics_data?start_date=2026-01-01T00:00:00Z",
    "/ui/dependencies",
    "/ui/gantt/{dag_id}/{dag_run_id}",
    "/ui/grid/runs/{dag_id}",
    "/ui/grid/structure/{dag_id}",
    "/ui/grid/ti_summaries/{dag_id}",
    "/ui/next_run_assets/{dag_id}",
    "/ui/partitioned_dag_runs",
    "/ui/structure/structure_data?dag_id={dag_id}",
    "/ui/teams",
    "/",
    "/dags",
    "/connections",
)
_OF_ALPHA = {
    "dag_id": "alpha_daily",
    "connection_id": "alpha_db",
    "pool_name": "alpha_production",
    "variable_key": "alpha_config",
}
_OTHERS = {
    "asset_alias_id": "1",
    "asset_id": "1",
    "backfill_id": "1",
    "dag_run_id": "none",
    "dag_version_id": "1",
    "event_log_id": "1",
    "file_token": "none",
    "import_error_id": "1",
    "map_index": "-1",
    "option": "executor",
    "section": "core",
    "task_id": "work",
    "try_number": "1",
    "version_number": "1",
    "xcom_key": "none",
}
# Where the body is looked at before it is asked who may: a valid one.
_BODIES = {
    ("PATCH", "/api/v2/dags/{dag_id}/dagRuns"): {"actions": [{"action": "delete", "entities": ["none"]}]},
    ("POST", "/api/v2/dags/{dag_id}/clearDagRuns"): {"dag_runs": [{"dag_run_id": "none"}]},
}
# It would end the session that the next request uses.
_LEFT_OUT = {"/api/v2/auth/logout"}


class Route(NamedTuple):
    """``of_alpha``: it names a Dag, connection, pool or variable that alpha owns."""

    method: str
    path: str
    of_alpha: bool
    body: dict[str, Any]


def routes(client: httpx.Client) -> list[Route]:
    """All of them, from the server's own OpenAPI document and the UI's list."""
    found = [_route("GET", template) for template in _UI]
    for template, operations in client.get("/openapi.json").json()["paths"].items():
        found += [_route(method.upper(), template) for method in operations if template not in _LEFT_OUT]
    return found


def _route(method: str, template: str) -> Route:
    values = _OTHERS | _OF_ALPHA
    path = re.sub(r"\{(\w+)(:path)?\}", lambda match: values.get(match[1], "none"), template)
    return Route(
        method, path, any(f"{{{name}}}" in template for name in _OF_ALPHA), _BODIES.get((method, template), {})
    )
