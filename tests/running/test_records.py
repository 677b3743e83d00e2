"""Each door and each outcome on running Airflows: the record, its id, ``decisions`` and ``explain`` say the same."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from demo.airflow import Settings, merged
from demo.running import RunningSite
from tests.decision_log.conftest import valid
from tests.support.postgres import Postgres, programs

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]

# A rule that cannot be evaluated, about these things only.
_BREAKS = """
_both(text) := 1 if text != ""
_both(text) := 2 if text != ""

deny contains "never said" if {
	input.resource.id in {"alpha_breaks", "alpha_takes_broken_orders"}
	[input.resource.type, input.action] in {["variable", "read"], ["pool", "use"], ["dag", "trigger"]}
	_both(input.action) == 1
}
"""
_BROKEN = '''
"""Dags about which no decision can be had."""

from airflow.sdk import DAG, Asset, task

with DAG("alpha_takes_broken_orders", schedule=Asset("orders"), is_paused_upon_creation=False):

    @task
    def work():
        return "done"

    work()
'''
_BROKEN_POOL = """
from airflow.sdk import DAG, task

with DAG("alpha_in_broken_pool", schedule=None):

    @task(pool="alpha_breaks")
    def work():
        return "done"

    work()
"""

Record = dict[str, Any]


class _Recording(RunningSite):
    """Records everything, in its database and in a file."""

    def guarding_settings(self) -> Settings:
        log = {"decision_log": "database,file", "decision_log_levels": "all", "decision_log_masks": "none"}
        return merged(super().guarding_settings(), {"team_authz": log})

    def write_dags(self, folder: Path) -> list[dict[str, Any]]:
        bundles = super().write_dags(folder)
        for bundle in bundles:
            if bundle["name"] == "alpha-dags":
                Path(bundle["kwargs"]["path"], "broken_orders.py").write_text(_BROKEN)
                Path(bundle["kwargs"]["path"], "broken_pool.py").write_text(_BROKEN_POOL)
        return bundles

    def records(self) -> list[Record]:
        """All that is in the file so far; the last line may be half written."""
        lines = (self.airflow.home / "team_authz" / "decisions.ndjson").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def command(self, *arguments: str) -> tuple[int, Any]:
        """Exit code of a command of this package and its JSON, or else what it says on stderr."""
        done = self.airflow.attempt("-m", "airflow_team_authz.cli", *arguments, "--output", "json", seconds=300)
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture(scope="module", params=["SQLite, in process", "PostgreSQL, OPA server"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Recording]:
    home = tmp_path_factory.mktemp("records")
    postgres = None
    if request.param.startswith("PostgreSQL"):
        if programs() is None:
            (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)("PostgreSQL is not on this machine")
        postgres = Postgres(home / "postgres")
        postgres.start()
    running = _Recording(home, opa_server=postgres is not None, database=postgres.url if postgres else None)
    running.edit_policy("teams/alpha/alpha.rego", "", _BREAKS)
    try:
        running.start()
        running._create("pools", {"name": "alpha_breaks", "slots": 1, "team_name": "alpha"})
        running._create("variables", {"key": "alpha_breaks", "value": "x", "team_name": "alpha"})
        running.begin_to_run()
        yield running
    finally:
        running.stop()
        if postgres is not None:
            postgres.stop()


class Case(NamedTuple):
    """What makes a record with this outcome at a door, and how the record is known."""

    act: Callable[[_Recording], str]
    outcome: str
    action: str
    about: dict[str, Any]


def _user(name: str, method: str, path: str, **body: Any) -> Callable[[_Recording], str]:
    def ask(site: _Recording) -> str:
        answer = site.client(name).request(method, f"/api/v2/{path}", json=body or None)
        return f"{answer.status_code} {answer.text}"

    return ask


def _task(team: str, what: str, about: str) -> Callable[[_Recording], str]:
    def attempt(site: _Recording) -> str:
        run_id = site.begin(team, (what, about))
        (tried,) = site.tried(team, run_id)
        path = f"/api/v2/dags/{team}_attempts/dagRuns/{run_id}/taskInstances/attempt/logs/1"
        log = site.client("pat").get(path, params={"full_content": "true"}).text
        return f"{tried.told} {log}"

    return attempt


def _event(site: _Recording) -> str:
    site.make_event("alpha_makes_orders")
    rows = site.client("pat").get("/api/v2/eventLogs", params={"order_by": "-when", "limit": 100}).json()["event_logs"]
    return json.dumps([row for row in rows if "asset event" in row["event"]])


def _errors(site: _Recording) -> str:
    return json.dumps(list(site.import_errors().values()))


_BOBS = {"type": "connection", "id": "alpha_db"}
CASES: dict[str, dict[str, Case]] = {
    "users": {
        "allow": Case(_user("ann", "GET", "variables/alpha_config"), "allow", "read", {"id": "alpha_config"}),
        "again": Case(_user("ann", "GET", "variables/alpha_config"), "allow", "read", {"id": "alpha_config"}),
        "deny": Case(_user("bob", "GET", "connections/alpha_db"), "deny", "read", _BOBS),
        "error": Case(_user("ann", "GET", "variables/alpha_breaks"), "error", "read", {"id": "alpha_breaks"}),
        "list": Case(_user("ann", "GET", "connections"), "list", "read", {"type": "connection"}),
    },
    "tasks": {
        "allow": Case(_task("alpha", "read variable", "alpha_config"), "allow", "read", {"id": "alpha_config"}),
        "again": Case(_task("alpha", "read variable", "alpha_config"), "allow", "read", {"id": "alpha_config"}),
        "deny": Case(_task("beta", "read connection", "alpha_db"), "deny", "read", _BOBS),
        "error": Case(_task("alpha", "read variable", "alpha_breaks"), "error", "read", {"id": "alpha_breaks"}),
    },
    "datasets": {
        "allow": Case(_event, "allow", "trigger", {"id": "alpha_takes_orders"}),
        "deny": Case(_event, "deny", "trigger", {"id": "beta_closed_to_orders"}),
        "error": Case(_event, "error", "trigger", {"id": "alpha_takes_broken_orders"}),
    },
    "pools": {
        "allow": Case(_errors, "allow", "use", {"id": "alpha_production"}),
        "deny": Case(_errors, "deny", "use", {"id": "alpha_production"}),
        "error": Case(_errors, "error", "use", {"id": "alpha_breaks"}),
    },
}


@pytest.mark.parametrize(("door", "outcome"), [(door, outcome) for door, cases in CASES.items() for outcome in cases])
def test_each_door_and_outcome_leaves_a_record_that_commands_agree_with(
    site: _Recording, door: str, outcome: str
) -> None:
    case = CASES[door][outcome]
    before = {record["decision_id"] for record in site.records()} if door in {"users", "tasks"} else set()
    told = case.act(site)
    (record,) = site.wait_for(lambda: _records(site, door, case, before)[:1], f"a record of {door}: {outcome}")
    valid(record)
    id_ = record["decision_id"]
    if outcome in {"deny", "error"} and door in {"users", "tasks"}:
        assert id_ in re.findall(r"\(decision ([0-9a-f-]{36})\)", told.replace("\\n", "")), told
    # The table has what the file has.
    assert site.command("decisions", id_) == (0, record)
    if door == "tasks":
        assert record["input"]["subject"]["run_id"].startswith("run-")
    if "resource" not in record["input"]:
        return
    code, explained = site.command("explain", "--decision", id_, "--sources", str(site.policy))
    if outcome == "error":
        assert (code, "teams/alpha/alpha.rego" in explained) == (2, True)
        return
    assert code == (0 if record["result"]["allow"] else 1)
    for name in ("allow", "layer", "reasons"):
        assert explained["decision"][name] == record["result"][name]


def _records(site: _Recording, door: str, case: Case, before: set[str]) -> list[Record]:
    """Those of the case, but for the ones that were there before."""

    def is_about(record: Record) -> bool:
        asked = record["input"].get("resources") or [record["input"].get("resource", {})]
        return any(case.about.items() <= resource.items() for resource in asked)

    return [
        record
        for record in site.records()
        if record["decision_id"] not in before
        and (record["custom"].get("door"), record["custom"]["outcome"]) == (door, case.outcome)
        and record["input"]["action"] == case.action
        and is_about(record)
    ]
