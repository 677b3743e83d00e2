"""Every request there is: Airflow's own routes, filled with what is somebody's own, alpha's, common and unknown."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.worlds.bodies import BODIES
from tests.worlds.build import BEGIN, GONE, instance_id
from tests.worlds.routes import Route

OWN, COMMON, ALPHA, NOBODY = "beta", "common", "alpha", "nobody"
OWNERS = (OWN, COMMON, ALPHA, NOBODY)
_DAGS = ("daily", "sched", "producer", "consumer", "watching", "aliased", "common", "waits")
_TIME = BEGIN.isoformat().replace("+00:00", "Z")
# Whose assets are named where an asset is found by its name or address.
_BY_NAME = (OWN, ALPHA, NOBODY)
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
    "name": "{}_asset",
    "uri": "s3://{}/asset",
    "alias_name": "{}_alias",
    "prefix": "{}",
    "user_id": "{person}",
}
_PERSONS = {OWN: "bob", COMMON: "pat", ALPHA: "ann", GONE: "ann", NOBODY: "noone"}
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
# Parameters without which a route only complains.
_NEEDED: dict[str, tuple[str, ...]] = {
    "GET /api/v2/backfills": ("dag_id",),
    "GET /ui/structure/structure_data": ("dag_id",),
    "GET /ui/dashboard/historical_metrics_data": ("start_date",),
    "GET /ui/pending_partitioned_dag_run/{dag_id}": ("partition_key",),
    "GET /api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/wait": ("interval",),
    "GET /ui/grid/ti_summaries/{dag_id}": ("run_ids",),
    "PATCH /api/v2/dags": ("dag_id_pattern",),
}
_NUMBERED_ASSETS = {"asset_id", "asset_alias_id"}
# What may be `~`: all of them.
_WILD = {"dag_id", "dag_run_id", "task_id"}


class Call(NamedTuple):
    """A request."""

    route: Route
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Any = None

    def __str__(self) -> str:
        query = "?" + "&".join(f"{name}={value}" for name, value in self.query) if self.query else ""
        return f"{self.route.method} {self.path}{query}" + ("" if self.body is None else f" {self.body}")


class Catalogue:
    """The requests; ``numbers`` are the rows' numbers by table and owner, in the world with alpha's things."""

    def __init__(self, numbers: Numbers, tokens: Mapping[str, str]) -> None:
        self._numbers = numbers
        self._file_tokens = tokens

    def reads(self, routes: Iterable[Route], brief: bool = False, values: Sequence[str] = (OWN, ALPHA)) -> list[Call]:
        """All that only look; ``brief``: each route with each kind of id, and with another owner's things beside.

        ``values`` is whose each parameter of a query names.
        """
        found = (call for route in routes if route.reads for call in self._of(route, brief, values))
        return _once(found)

    def names(self, call: Call, owner: str) -> bool:
        """Whether a request names something of the owner's, by its name, its number or its token."""
        numbers = (number for of_table in self._numbers.values() for number in of_table.get(owner, ()))
        unlike_names = {*map(str, numbers), self.value("file_token", owner)}
        unlike_names |= {str(self.value(name, owner)) for name in ("task_instance_id", "connection_test_id")}
        said = {*call.path.split("/"), *(value for _, value in call.query)}
        return owner in str(call) or not said.isdisjoint(unlike_names)

    def own_reads(self, routes: Iterable[Route], owner: str) -> list[Call]:
        """What looks at the owner's things, and lists."""
        calls = []
        for route in routes:
            if not route.reads:
                continue
            for owners in [owner, COMMON] if route.placeholders else [owner]:
                filled = {name: self.value(name, owners) for name in route.placeholders}
                body = {} if route.template.endswith("/list") else next(iter(self.bodies(route, owners, owners)))
                calls.append(Call(route, _path(route, filled), self._needed(route, owners), body))
            every = [self._every(route)]
            for name in _NUMBERED_ASSETS & set(route.placeholders):
                numbers = (self._numbers[NUMBERED[name]][owners] for owners in (owner, COMMON))
                every += [every[0] | {name: number} for number in itertools.chain.from_iterable(numbers)]
            calls += [Call(route, _path(route, filled), self._needed(route, owner), body) for filled in every]
        return _once(calls)

    def writes(self, routes: Iterable[Route]) -> list[Call]:
        """All that change something, in an order in which each still finds what it changes.

        What is deleted is deleted last, parts before the whole; and a thing gets alpha's name after that, since from
        then on the world without alpha's has one of that name.
        """
        return sorted(_once(call for route in routes if not route.reads for call in self._changes(route)), key=_late)

    def own_writes(self, routes: Iterable[Route]) -> list[Call]:
        """All that change what is the own team's, and name nobody else; in the same order."""
        found = (
            Call(route, _path(route, {name: self.value(name, OWN) for name in route.placeholders}), query, body)
            for route in routes
            if not route.reads
            for query in [self._needed(route, OWN)]
            for body in self.bodies(route, OWN, OWN)
        )
        return sorted((call for call in _once(found) if ALPHA not in str(call)), key=_late)

    def value(self, name: str, owner: str, schema: Mapping[str, Any] | None = None) -> Any:
        """What a parameter, or a part of a body, holds if it is the owner's."""
        schema = schema or {}
        if name in NUMBERED:
            return next(iter(self._numbers[NUMBERED[name]].get(owner, ())), _NO_NUMBER)
        if name in {"task_instance_id", "connection_test_id"}:
            return str(instance_id(owner, "test" if name == "connection_test_id" else None))
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

    def _of(self, route: Route, brief: bool, values: Sequence[str]) -> Iterator[Call]:
        yield from self._by_path(route, brief)
        yield from self._by_names(route)
        yield from self._mixed(route, brief)
        if not brief:
            yield from self._by_query(route, values)

    def _changes(self, route: Route) -> Iterator[Call]:
        """Each path with a body about the same owner's things, about alpha's, and without what it should have."""
        for filled, owner in self._paths(route, brief=False, dags=()):
            gone = [GONE] if "dag" in route.template or "backfills" in route.template else []
            for other in dict.fromkeys([owner, OWN, ALPHA, *gone]):
                for body in self.bodies(route, owner, other):
                    yield Call(route, _path(route, filled), self._needed(route, other), body)
        own = {name: self.value(name, OWN) for name in route.placeholders}
        smuggled = tuple((name, str(self.value(name, ALPHA))) for name in _SMUGGLED)
        for body in self.bodies(route, OWN, OWN):
            yield Call(route, _path(route, own), smuggled, body)
        if route.body is None:
            yield Call(route, _path(route, own), (), dict(smuggled))
        for name in route.query:
            if name in {"dag_id_pattern", "dag_id_prefix_pattern", "owners", "tags"}:
                yield from (
                    Call(route, _path(route, own), ((name, str(value)),), body)
                    for value in (self.value(name, ALPHA), "%")
                    for body in self.bodies(route, OWN, OWN)
                )
        yield from self._by_names(route)

    def _by_names(self, route: Route) -> Iterator[Call]:
        """What is found by a name or address in the query: both of somebody's, one of them, one of nobody's."""
        if not route.template.startswith(("/execution/store", "/execution/asset")):
            return
        for part, (one, two) in itertools.product(("asset", "watched"), itertools.product(_BY_NAME, repeat=2)):
            named = {"name": f"{one}_{part}", "uri": f"s3://{two}/{part}"}
            rest = {name: self.value(name, one) for name in ("key", "alias_name") if name in route.query}
            for names in (("name", "uri"), ("name",), ("uri",)):
                query = [(name, str(named[name])) for name in names]
                for key in dict.fromkeys([rest.get("key"), f"{ALPHA}_state"]):
                    more = rest | ({"key": key} if "key" in rest else {})
                    for body in self.bodies(route, one, two):
                        yield Call(route, route.template, (*query, *((k, str(v)) for k, v in more.items())), body)

    def bodies(self, route: Route, owner: str, other: str) -> Iterable[Any]:
        """What is sent if the path names the owner's things and the body those of another."""
        if route.body is None and str(route) not in BODIES:
            return [None]
        if (made := BODIES.get(str(route))) is not None:
            return made(owner, other)
        return [self.filled(route.body, "", other)]

    def _paths(self, route: Route, brief: bool, dags: Iterable[str] = _DAGS) -> Iterator[tuple[dict[str, Any], str]]:
        """What the placeholders are filled with, and whose body and query go with it."""
        names = route.placeholders
        whole = {owner: {name: self.value(name, owner) for name in names} for owner in OWNERS}
        yield from ((filled, owner) for owner, filled in whole.items())
        if {"dag_id", "task_instance_id"}.intersection(names):
            yield {name: self.value(name, GONE) for name in names}, GONE
        yield self._every(route), OWN
        if len(names) > 1 and not brief:
            for name in names:
                yield whole[OWN] | {name: whole[ALPHA][name]}, OWN
                yield whole[ALPHA] | {name: whole[OWN][name]}, OWN
                yield whole[COMMON] | {name: whole[ALPHA][name]}, OWN
        for name in names:
            if name in _WILD and not brief:
                yield whole[OWN] | {name: "~"}, OWN
                yield whole[ALPHA] | {name: "~"}, ALPHA
            if name in {"map_index", "try_number", "task_try_number", "version_number"}:
                yield whole[OWN] | {name: 2}, OWN
            if name in NUMBERED:
                rows = [rows[:1] if brief else rows for rows in self._numbers[NUMBERED[name]].values()]
                for number in itertools.chain.from_iterable(rows):
                    yield whole[OWN] | {name: number}, OWN
            if name == "option":
                yield {"section": "team_authz", "option": "policy"}, OWN
        if "dag_id" in names:
            # Runs and tasks are looked at in those Dags that have to do with assets.
            some = [dag for dag in dags if dag in {"producer", "consumer"} or (len(names) == 1 and not brief)]
            for dag, owner in itertools.product(some, (OWN, COMMON, ALPHA) if len(names) == 1 else (OWN,)):
                more = {
                    "dag_id": f"{owner}_{dag}",
                    "task_id": f"{owner}_makes" if dag == "producer" else f"{owner}_work",
                }
                yield whole[owner] | {name: value for name, value in more.items() if name in names}, owner
        if "task_id" in names and not brief:
            mapped = {"task_id": f"{OWN}_mapped"} | ({"map_index": 1} if "map_index" in names else {})
            yield whole[OWN] | mapped, OWN

    def _every(self, route: Route) -> dict[str, Any]:
        """The widest path that a route has."""
        return {name: "~" if name in _WILD else self.value(name, OWN) for name in route.placeholders}

    def _by_path(self, route: Route, brief: bool) -> Iterator[Call]:
        lists = route.template.endswith("/list")
        for filled, owner in self._paths(route, brief):
            for body in [{}] if lists else self.bodies(route, owner, owner):
                yield Call(route, _path(route, filled), self._needed(route, owner), body)
        own = {name: self.value(name, OWN) for name in route.placeholders}
        for other in [] if brief else OWNERS:
            for body in [{}] if lists else self.bodies(route, OWN, other):
                yield Call(route, _path(route, own), self._needed(route, other), body)
        if lists:
            for name, schema in route.body.get("properties", {}).items():
                for owner in ([ALPHA] if brief else [OWN, ALPHA]) + ([GONE] if name.startswith("dag_id") else []):
                    body = {name: self.filled(schema, name, owner)}
                    yield Call(route, _path(route, self._every(route)), (), body)

    def _needed(self, route: Route, owner: str) -> tuple[tuple[str, str], ...]:
        """The parameters without which a route only complains."""
        names: tuple[str, ...] = _NEEDED.get(str(route), ())
        if route.template.startswith("/execution/"):
            names = tuple(name for name in route.query if name in _VALUES or name in {"logical_dates", "logical_date"})
        return tuple((name, str(self.value(name, owner))) for name in names)

    def _by_query(self, route: Route, owners: Sequence[str]) -> Iterator[Call]:
        """Each parameter with what is own and what is alpha's, in the widest list that the route has."""
        own = {name: self.value(name, OWN) for name in route.placeholders}
        lists = route.template.endswith(("/dagRuns", "/taskInstances", "/xcomEntries", "/hitlDetails", "/dagVersions"))
        path = _path(route, self._every(route) if lists else own)
        body = {} if route.template.endswith("/list") else next(iter(self.bodies(route, OWN, OWN)))
        start = self._needed(route, OWN)
        for name, schema in route.query.items():
            whose = [*owners, GONE] if name.startswith("dag_id") else owners
            values = [self.value(name, owner, schema) for owner in whose]
            if schema.get("type") == "boolean":
                values = [True, False]
            if name == "dependency_type":
                values = ["scheduling", "data"]
            choices = schema.get("enum") or schema.get("items", {}).get("enum") or ()
            for value in dict.fromkeys(map(_text, [*values, *choices])):
                query = tuple(pair for pair in start if pair[0] != name)
                yield Call(route, path, (*query, (name, value)), body)

    def _mixed(self, route: Route, brief: bool) -> Iterator[Call]:
        """Query and body name another owner's things than the path does."""
        for path, other in ((ALPHA, OWN), (OWN, ALPHA)):
            filled = {name: self.value(name, path) for name in route.placeholders}
            query = tuple((name, str(self.value(name, path if name in route.query else other))) for name in _SMUGGLED)
            body = {name: self.value(name, other) for name in _SMUGGLED}
            body["asset_id"] = self.value("asset_id", other)
            if brief and path == ALPHA:
                continue
            yield Call(route, _path(route, filled), query, None)
            if route.body is None:
                yield Call(route, _path(route, filled), (), body)
                needed = tuple((name, str(self.value(name, path))) for name in route.query if name in _SMUGGLED)
                yield Call(route, _path(route, filled), needed, body)

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


def _late(call: Call) -> tuple[bool, bool, int]:
    deletes = call.route.method == "DELETE" or "delete" in str(call.body)
    named = call.route.template.rsplit("/", 1)[-1] in {"connections", "variables", "pools"}
    takes = named and f"'{ALPHA}_" in str(call.body)
    return takes, deletes, -len(call.route.template) if deletes else 0


def _once(calls: Iterable[Call]) -> list[Call]:
    """Each of them once."""
    return list({f"{call.route.version} {call}": call for call in calls}.values())


def _path(route: Route, filled: Mapping[str, Any]) -> str:
    return re.sub(r"\{(\w+)(?::path)?\}", lambda match: quote(str(filled[match[1]]), safe="~"), route.template)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
