"""Airflow's own routes, read from Airflow: the REST API, the UI's and the Execution API in all its versions."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

# What is asked by another method than GET and changes nothing.
_READ = re.compile(r"/list$|/dry_run$|/connections/test$")
# Ends the session, or is a page of the login manager's.
_LEFT_OUT = {"/api/v2/auth/logout", "/api/v2/auth/login"}
VERSION_HEADER = "Airflow-API-Version"


class Route(NamedTuple):
    """A route with its parameters, the schema of its body and, of the Execution API, the version."""

    method: str
    template: str
    query: dict[str, Any]
    body: Any
    version: str | None = None

    @property
    def placeholders(self) -> list[str]:
        """The names in its path."""
        return re.findall(r"\{(\w+)\}", self.template)

    @property
    def reads(self) -> bool:
        """Whether it only looks."""
        return self.method in {"GET", "HEAD"} or bool(_READ.search(self.template))

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


@cache
def users_routes() -> tuple[Route, ...]:
    """The REST API and what the UI asks beside it, which Airflow leaves out of its own document."""
    from airflow.api_fastapi.core_api.routes.public import public_router
    from airflow.api_fastapi.core_api.routes.ui import ui_router

    return tuple(route for route in _routes((*public_router.routes, *ui_router.routes)) if _wanted(route))


@cache
def tasks_routes() -> tuple[Route, ...]:
    """The Execution API, every version."""
    from airflow.api_fastapi.execution_api.app import create_task_execution_api_app

    app: Any = create_task_execution_api_app()
    # As the first request would have it done.
    app._cadwyn_initialize()
    return tuple(
        route._replace(template=f"/execution{route.template}", version=str(version))
        for version, router in app.router.versioned_routers.items()
        for route in _routes(router.routes)
    )


def _wanted(route: Route) -> bool:
    return route.template not in _LEFT_OUT


def _routes(declared: Any) -> Iterator[Route]:
    from fastapi.openapi.utils import get_openapi

    shown = [copy.copy(route) for route in declared]
    for route in shown:
        route.include_in_schema = True
    document = get_openapi(title="Airflow", version="", routes=shown)
    components = document["components"]["schemas"]
    for template, operations in document["paths"].items():
        for method, operation in operations.items():
            query = {
                parameter["name"]: _resolved(parameter.get("schema", {}), components)
                for parameter in operation.get("parameters", ())
                if parameter["in"] == "query"
            }
            content = operation.get("requestBody", {}).get("content", {})
            schema = next((part["schema"] for part in content.values()), None)
            yield Route(method.upper(), template, query, None if schema is None else _resolved(schema, components))


def _resolved(schema: Mapping[str, Any], components: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """A schema without references; of several the first that is not null."""
    if depth > 8:
        return {}
    if "$ref" in schema:
        return _resolved(components[schema["$ref"].rsplit("/", 1)[-1]], components, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            kinds = [_resolved(kind, components, depth + 1) for kind in schema[several]]
            return next((kind for kind in kinds if kind.get("type") != "null"), {})
    whole = dict(schema)
    if "properties" in schema:
        whole["properties"] = {
            name: _resolved(part, components, depth + 1) for name, part in schema["properties"].items()
        }
    if isinstance(schema.get("items"), dict):
        whole["items"] = _resolved(schema["items"], components, depth + 1)
    return whole
