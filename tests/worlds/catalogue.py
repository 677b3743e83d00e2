"""Every request there is: Airflow's own routes, filled with what is somebody's own, alpha's, common and unknown."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.worlds.build import BEGIN

OWN, COMMON, ALPHA, NOBODY = "beta", "common", "alpha", "nobody"
OWNERS = (OWN, COMMON, ALPHA, NOBODY)
_DAGS = ("daily", "sched", "producer", "consumer", "watching", "aliased", "common", "waits")
_TIME = BEGIN.isoformat().replace("+00:00", "Z")
# A number that no row has.
_NO_NUMBER = 999_999

Numbers = Mapping[str, Mapping[str, tuple[int, ...]]]

# What a parameter or a part of a body is called → the value that belongs to an owner.
_VALUES: dict[str, str] = {
    "dag_id": "{}_daily",
    "dag_ids": "{}_daily",
    "source_dag_id": "{}_producer",
    "trigger_dag_id": "{}_daily",
    "dag_display_name": "{}_daily",
    "dag_run_id": "{}_run_1",
    "dag_run_ids": "{}_run_1",
    "run_id": "{}_run_1",
    "run_ids": "{}_run_1",
    "source_run_id": "{}_run_1",
    "task_id": "{}_work",
    "task_ids": "{}_work",
    "source_task_id": "{}_makes",
    "task_display_name": "{}_work",
    "group_id": "{}_group",
    "task_group_id": "{}_group",
    "root": "{}_work",
    "xcom_key": "{}_key",
    "key": "{}_state",
    "connection_id": "{}_db",
    "conn_id": "{}_db",
    "pool_name": "{}_pool_db",
    "pool": "{}_pool_db",
    "variable_key": "{}_config_db",
    "team_name": "{}",
    "tags": "{}_tag",
    "owners": "{}_owner",
    "bundle_name": "{}-dags",
    "filename": "{}_all.py",
    "partition_key": "{}_partition",
    "queue": "{}_queue",
    "asset_dependency": "{}_asset",
    "node_id": "dag:{}_daily",
    "triggering_user": "{person}",
    "triggering_user_name": "{person}",
    "owner": "{person}",
    "responded_by_user_id": "{person}",
    "responded_by_user_name": "{person}",
    "subject_search": "{}",
    "body_search": "{}",
    "conf_contains": "{}",
    "hostname": "{}.worker",
    "name": "{}",
    "user_id": "{person}",
}
_PERSONS = {OWN: "bob", COMMON: "pat", ALPHA: "ann", NOBODY: "noone"}
# The same for every owner.
_SAME: dict[str, Any] = {
    "map_index": -1,
    "try_number": 1,
    "task_try_number": 1,
    "version_number": 1,
    "section": "core",
    "option": "executor",
    "order_by": "-id",
    "limit": 1,
    "offset": 1,
    "interval": 1,
    "update_mask": "description",
    "start_date": _TIME,
    "token": "e30.x",
    "event": "post_connection",
    "before": "2027-01-01T00:00:00Z",
    "dependency_type": "data",
}
# A parameter that holds a row's number → the table.
NUMBERED = {
    "asset_id": "asset",
    "asset_alias_id": "asset_alias",
    "backfill_id": "backfill",
    "event_log_id": "log",
    "import_error_id": "import_error",
}
# What may be `~`: all of them.
_WILD = {"dag_id", "dag_run_id", "task_id"}
# What is asked by another method than GET and changes nothing.
_READ = re.compile(r"/list$|/dry_run$|/connections/test$")
# Ends the session, or is a page of the login manager's.
_LEFT_OUT = {"/api/v2/auth/logout", "/api/v2/auth/login"}


class Route(NamedTuple):
    """One of Airflow's routes, with its parameters and the schema of its body."""

    method: str
    template: str
    query: dict[str, Any]
    body: Any

    @property
    def placeholders(self) -> list[str]:
        return re.findall(r"\{(\w+)(?::path)?\}", self.template)

    @property
    def reads(self) -> bool:
        return self.method in {"GET", "HEAD"} or bool(_READ.search(self.template))

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


class Call(NamedTuple):
    """A request."""

    route: Route
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Any = None

    def __str__(self) -> str:
        query = "?" + "&".join(f"{name}={value}" for name, value in self.query) if self.query else ""
        return f"{self.route.method} {self.path}{query}" + ("" if self.body is None else f" {self.body}")


@cache
def routes() -> tuple[Route, ...]:
    """All of the REST API and of the UI, as Airflow declares them."""
    return tuple(_routes())


def _routes() -> Iterator[Route]:
    document = _openapi()
    components = document["components"]["schemas"]
    for template, operations in document["paths"].items():
        if template in _LEFT_OUT:
            continue
        for method, operation in operations.items():
            query = {
                parameter["name"]: _resolved(parameter.get("schema", {}), components)
                for parameter in operation.get("parameters", ())
                if parameter["in"] == "query"
            }
            content = operation.get("requestBody", {}).get("content", {})
            schema = next((part["schema"] for part in content.values()), None)
            yield Route(method.upper(), template, query, None if schema is None else _resolved(schema, components))


def _openapi() -> dict[str, Any]:
    """The document of everything, although Airflow leaves the UI's routes out of its own."""
    from airflow.api_fastapi.core_api.routes.public import public_router
    from airflow.api_fastapi.core_api.routes.ui import ui_router
    from fastapi.openapi.utils import get_openapi

    shown = [copy.copy(route) for route in (*public_router.routes, *ui_router.routes)]
    for route in shown:
        route.include_in_schema = True  # type: ignore[attr-defined]
    return get_openapi(title="Airflow", version="2", routes=shown)


def _resolved(schema: Any, components: Mapping[str, Any], depth: int = 0) -> Any:
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


class Catalogue:
    """The requests; ``numbers`` are the rows' numbers by table and owner, in the world with alpha's things."""

    def __init__(self, numbers: Numbers, tokens: Mapping[str, str]) -> None:
        self._numbers = numbers
        self._file_tokens = tokens

    def reads(self) -> list[Call]:
        """All that only look."""
        return [call for route in routes() if route.reads for call in self._of(route)]

    def value(self, name: str, owner: str, schema: Mapping[str, Any] | None = None) -> Any:
        """What a parameter, or a part of a body, holds if it is the owner's."""
        schema = schema or {}
        if name in NUMBERED:
            return next(iter(self._numbers[NUMBERED[name]].get(owner, ())), _NO_NUMBER)
        if name == "file_token":
            return self._file_tokens.get(owner, "none")
        if name in _SAME:
            return _SAME[name]
        if name.endswith("_prefix_pattern") or name.endswith("_prefix"):
            return owner
        if name.endswith("_pattern"):
            return f"%{owner}%"
        if name in _VALUES:
            return _VALUES[name].format(owner, person=_PERSONS[owner])
        if schema.get("enum"):
            return schema["enum"][0]
        if schema.get("type") == "array":
            return self.value("", owner, schema.get("items"))
        kinds = {"boolean": True, "integer": 1, "number": 1.0}
        if schema.get("format") in {"date-time", "date"} or re.search(r"_(gte|gt|lte|lt)$|date", name):
            return _TIME
        return kinds.get(str(schema.get("type")), owner)

    def _of(self, route: Route) -> Iterator[Call]:
        seen = set()
        for call in itertools.chain(self._by_path(route), self._by_query(route), self._mixed(route)):
            if (key := str(call)) not in seen:
                seen.add(key)
                yield call

    def _paths(self, route: Route) -> Iterator[tuple[dict[str, Any], str]]:
        """What the placeholders are filled with, and whose body and query go with it."""
        names = route.placeholders
        whole = {owner: {name: self.value(name, owner) for name in names} for owner in OWNERS}
        yield from ((filled, owner) for owner, filled in whole.items())
        yield self._every(route), OWN
        if len(names) > 1:
            for name in names:
                yield whole[OWN] | {name: whole[ALPHA][name]}, OWN
                yield whole[ALPHA] | {name: whole[OWN][name]}, OWN
                yield whole[COMMON] | {name: whole[ALPHA][name]}, OWN
        for name in names:
            if name in _WILD:
                yield whole[OWN] | {name: "~"}, OWN
                yield whole[ALPHA] | {name: "~"}, ALPHA
            if name in {"map_index", "try_number", "task_try_number", "version_number"}:
                yield whole[OWN] | {name: 2}, OWN
            if name in NUMBERED:
                for number in itertools.chain.from_iterable(self._numbers[NUMBERED[name]].values()):
                    yield whole[OWN] | {name: number}, OWN
            if name == "option":
                yield {"section": "team_authz", "option": "policy"}, OWN
        if "dag_id" in names:
            # Runs and tasks are looked at in those Dags that have to do with assets.
            dags = _DAGS if len(names) == 1 else ("producer", "consumer")
            for dag, owner in itertools.product(dags, (OWN, COMMON, ALPHA) if len(names) == 1 else (OWN,)):
                more = {
                    "dag_id": f"{owner}_{dag}",
                    "task_id": f"{owner}_makes" if dag == "producer" else f"{owner}_work",
                }
                yield whole[owner] | {name: value for name, value in more.items() if name in names}, owner
        if "task_id" in names:
            mapped = {"task_id": f"{OWN}_mapped"} | ({"map_index": 1} if "map_index" in names else {})
            yield whole[OWN] | mapped, OWN

    def _every(self, route: Route) -> dict[str, Any]:
        """The widest path that a route has."""
        return {name: "~" if name in _WILD else self.value(name, OWN) for name in route.placeholders}

    def _by_path(self, route: Route) -> Iterator[Call]:
        lists = route.template.endswith("/list")
        for filled, owner in self._paths(route):
            yield Call(
                route, _path(route, filled), self._needed(route, owner), {} if lists else self._body(route, owner)
            )
        own = {name: self.value(name, OWN) for name in route.placeholders}
        for owner in OWNERS:
            yield Call(route, _path(route, own), self._needed(route, owner), {} if lists else self._body(route, owner))
        if lists:
            for name, schema in route.body.get("properties", {}).items():
                for owner in (OWN, ALPHA):
                    body = {name: self.filled(schema, name, owner)}
                    yield Call(route, _path(route, self._every(route)), (), body)

    def _needed(self, route: Route, owner: str) -> tuple[tuple[str, str], ...]:
        """The parameters without which a route only complains."""
        names = {
            "GET /api/v2/backfills": ("dag_id",),
            "GET /ui/structure/structure_data": ("dag_id",),
            "GET /ui/dashboard/historical_metrics_data": ("start_date",),
            "GET /ui/pending_partitioned_dag_run/{dag_id}": ("partition_key",),
            "GET /api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/wait": ("interval",),
            "GET /ui/grid/ti_summaries/{dag_id}": ("run_ids",),
        }.get(str(route), ())
        return tuple((name, str(self.value(name, owner))) for name in names)

    def _by_query(self, route: Route) -> Iterator[Call]:
        """Each parameter with what is own and what is alpha's, in the widest list that the route has."""
        own = {name: self.value(name, OWN) for name in route.placeholders}
        lists = route.template.endswith(("/dagRuns", "/taskInstances", "/xcomEntries", "/hitlDetails", "/dagVersions"))
        path = _path(route, self._every(route) if lists else own)
        body = {} if route.template.endswith("/list") else self._body(route, OWN)
        start = self._needed(route, OWN)
        for name, schema in route.query.items():
            values = [self.value(name, owner, schema) for owner in (OWN, ALPHA)]
            if schema.get("type") == "boolean":
                values = [True, False]
            if name == "dependency_type":
                values = ["scheduling", "data"]
            choices = schema.get("enum") or schema.get("items", {}).get("enum") or ()
            for value in dict.fromkeys(map(_text, [*values, *choices])):
                query = tuple(pair for pair in start if pair[0] != name)
                yield Call(route, path, (*query, (name, value)), body)

    def _mixed(self, route: Route) -> Iterator[Call]:
        """Query and body name another owner's things than the path does."""
        for path, other in ((ALPHA, OWN), (OWN, ALPHA)):
            filled = {name: self.value(name, path) for name in route.placeholders}
            query = tuple((name, str(self.value(name, path if name in route.query else other))) for name in _SMUGGLED)
            body = {name: self.value(name, other) for name in _SMUGGLED}
            body["asset_id"] = self.value("asset_id", other)
            yield Call(route, _path(route, filled), query, None)
            if route.body is None:
                yield Call(route, _path(route, filled), (), body)
                needed = tuple((name, str(self.value(name, path))) for name in route.query if name in _SMUGGLED)
                yield Call(route, _path(route, filled), needed, body)

    def _body(self, route: Route, owner: str) -> Any:
        return None if route.body is None else self.filled(route.body, "", owner)

    def filled(self, schema: Mapping[str, Any], name: str, owner: str) -> Any:
        """A body that a schema asks for, with what is the owner's."""
        if schema.get("type") == "array":
            return [self.filled(schema.get("items", {}), name, owner)]
        if "properties" in schema:
            required = schema.get("required", ())
            return {
                part: self.filled(inner, part, owner)
                for part, inner in schema["properties"].items()
                if part in required or part in _VALUES
            }
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        return self.value(name, owner, schema)


_SMUGGLED = ("dag_id", "dag_run_id", "run_id", "task_id", "team_name", "connection_id", "pool_name", "variable_key")


def _path(route: Route, filled: Mapping[str, Any]) -> str:
    return re.sub(r"\{(\w+)(?::path)?\}", lambda match: quote(str(filled[match[1]]), safe="~"), route.template)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
