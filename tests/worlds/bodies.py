"""What is sent to routes that change something: where the schema alone would not make a body that gets far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.worlds.build import BEGIN, TEAMS

_TIME = BEGIN.isoformat().replace("+00:00", "Z")
_LATER = _TIME.replace("01-01T", "01-03T")

# From whose things the path names, and whose the body does, to bodies.
Bodies = Callable[[str, str], Sequence[Any]]


def _connection(owner: str, team: str | None) -> dict[str, Any]:
    return {"connection_id": f"{owner}_db", "conn_type": "sqlite", "host": "changed", "team_name": team}


def _variable(owner: str, team: str | None) -> dict[str, Any]:
    return {"key": f"{owner}_config_db", "value": "changed", "team_name": team}


def _pool(owner: str, team: str | None) -> dict[str, Any]:
    return {"name": f"{owner}_pool_db", "slots": 9, "include_deferred": False, "team_name": team}


def _run(owner: str) -> dict[str, Any]:
    return {"dag_id": f"{owner}_daily", "dag_run_id": f"{owner}_run_1", "state": "failed", "note": "changed"}


def _task(owner: str) -> dict[str, Any]:
    named = {"dag_id": f"{owner}_daily", "dag_run_id": f"{owner}_run_1", "task_id": f"{owner}_work", "map_index": -1}
    return named | {"new_state": "failed", "note": "changed"}


def _both_teams(make: Callable[[str, str | None], dict[str, Any]]) -> Bodies:
    """With the owner's team, with the team of who asks, and with alpha's and none for a new thing."""

    def bodies(_: str, owner: str) -> Sequence[Any]:
        teams = dict.fromkeys([TEAMS.get(owner), "beta"])
        return [make(owner, team) for team in teams] + [make("beta_new", team) for team in ("alpha", "beta")]

    return bodies


def _patched(make: Callable[[str, str | None], dict[str, Any]]) -> Bodies:
    """The path and the body name the same; the team is the present one, or that of somebody else."""
    return lambda path, other: [make(path, team) for team in dict.fromkeys([TEAMS.get(path), TEAMS.get(other)])]


def _bulk(make: Callable[[str], dict[str, Any]], key: str, *actions: str) -> Bodies:
    """Several actions with one of somebody's things, and with an own one before it."""

    def bodies(_: str, owner: str) -> Iterator[Any]:
        for action in actions:
            for owners in ([owner], ["beta", owner]):
                things = [make(name) for name in dict.fromkeys(owners)]
                if action == "delete" and key:
                    things = [thing[key] for thing in things]
                existence = {"create": {"action_on_existence": "overwrite"}}.get(action, {})
                yield {"actions": [{"action": action, "entities": things, **existence}]}

    return lambda path, other: list(bodies(path, other))


_CLEAR = {"dry_run": False, "only_failed": False}
_STATE = {"new_state": "failed", "note": "changed", "include_downstream": True, "include_past": True}

BODIES: dict[str, Bodies] = {
    "POST /api/v2/connections": _both_teams(_connection),
    "POST /api/v2/connections/test": _both_teams(_connection),
    "POST /api/v2/connections/enqueue-test": lambda path, other: [
        body | {"commit_on_success": commit}
        for body in _both_teams(_connection)(path, other)
        for commit in (True, False)
    ],
    "PATCH /api/v2/connections/{connection_id}": _patched(_connection),
    "PATCH /api/v2/connections": _bulk(
        lambda owner: _connection(owner, TEAMS.get(owner)), "connection_id", "create", "update", "delete"
    ),
    "POST /api/v2/variables": _both_teams(_variable),
    "PATCH /api/v2/variables/{variable_key}": _patched(_variable),
    "PATCH /api/v2/variables": _bulk(
        lambda owner: _variable(owner, TEAMS.get(owner)), "key", "create", "update", "delete"
    ),
    "POST /api/v2/pools": _both_teams(_pool),
    "PATCH /api/v2/pools/{pool_name}": lambda path, other: [
        {"pool": f"{path}_pool_db", "slots": 9, "include_deferred": False, "team_name": team}
        for team in dict.fromkeys([TEAMS.get(path), TEAMS.get(other)])
    ],
    "PATCH /api/v2/pools": _bulk(lambda owner: _pool(owner, TEAMS.get(owner)), "name", "create", "update", "delete"),
    "POST /api/v2/backfills": lambda _, owner: [
        {"dag_id": f"{owner}_sched", "from_date": _TIME, "to_date": _LATER, "dag_run_conf": {"of": owner}}
    ],
    "POST /api/v2/backfills/dry_run": lambda _, owner: [
        {"dag_id": f"{owner}_sched", "from_date": _TIME, "to_date": _LATER, "reprocess_behavior": "completed"}
    ],
    "POST /api/v2/assets/{asset_id}/materialize": lambda *_: [{}],
    "POST /api/v2/dags/{dag_id}/dagRuns": lambda _, other: [
        {"dag_run_id": f"new_of_{other}", "logical_date": None, "conf": {}},
        {"dag_run_id": f"{other}_run_1", "logical_date": None},
    ],
    "PATCH /api/v2/dags/{dag_id}/dagRuns/{dag_run_id}": lambda *_: [{"state": "failed", "note": "changed"}],
    "PATCH /api/v2/dags/{dag_id}/dagRuns": _bulk(_run, "", "update", "delete"),
    "POST /api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/clear": lambda *_: [_CLEAR],
    "POST /api/v2/dags/{dag_id}/clearDagRuns": lambda _, other: [
        _CLEAR | {"dag_runs": [{"dag_run_id": f"{other}_run_1", "dag_id": f"{other}_daily"}]},
        _CLEAR | {"dag_runs": [{"dag_run_id": f"{other}_run_1"}]},
    ],
    "POST /api/v2/dags/{dag_id}/clearPartitions": lambda _, other: [
        {"partition_key": f"{other}_partition", "dry_run": False, "clear_task_instances": True},
        {"run_id": f"{other}_run_1", "dry_run": False, "clear_task_instances": True},
    ],
    "POST /api/v2/dags/{dag_id}/clearTaskInstances": lambda _, other: [
        _CLEAR | {"dag_run_id": f"{other}_run_1", "task_ids": [f"{other}_work"], "include_downstream": True},
        _CLEAR | {"start_date": _TIME, "end_date": _LATER},
    ],
    "PATCH /api/v2/dags": lambda *_: [{"is_paused": False}],
    "PATCH /api/v2/dags/{dag_id}": lambda *_: [{"is_paused": False}],
    "PATCH /api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances": _bulk(_task, "", "update", "delete"),
    "POST /ui/auth/token": lambda *_: [{}],
}
for _part in ("taskInstances/{task_id}", "taskInstances/{task_id}/{map_index}", "taskGroupInstances/{group_id}"):
    for _end in ("", "/dry_run"):
        BODIES[f"PATCH /api/v2/dags/{{dag_id}}/dagRuns/{{dag_run_id}}/{_part}{_end}"] = lambda *_: [_STATE]
for _route in ("POST /{dag_id}/{run_id}", "POST /{dag_id}/{run_id}/clear"):
    BODIES[_route.replace("/{dag_id}", "/execution/dag-runs/{dag_id}")] = lambda *_: [{}]
