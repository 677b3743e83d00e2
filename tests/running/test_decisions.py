"""Every door of running Airflows records what it refuses, whichever process asks there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.running import RunningSite
from tests.decision_log.conftest import valid

# A task and an event take most of a minute, and each door has quick tests of its own.
pytestmark = [pytest.mark.timeout(900), pytest.mark.exhaustive]


def recorded(site: RunningSite) -> list[dict[str, Any]]:
    """As an administrator of the host finds it."""
    command = ("-m", "airflow_team_authz.cli", "decisions", "--denied", "--limit", "100000", "-o", "json")
    return [valid(json.loads(line)) for line in site.airflow.attempt(*command).stdout.splitlines()]


def test_each_door_records_what_it_refuses(site: RunningSite) -> None:
    run_id = site.begin("alpha", ("read connection", "beta_db"))
    site.tried("alpha", run_id)
    site.make_event("alpha_makes_orders")
    refused = site.client("bob").get("/api/v2/connections/alpha_db")
    assert refused.status_code == 403
    wanted = {("users", "connection"), ("tasks", "connection"), ("datasets", "dag"), ("pools", "pool")}

    def found() -> set[tuple[str, str]]:
        asked = [(record["custom"]["door"], record["input"]) for record in recorded(site) if "input" in record]
        return {(door, (of.get("resources") or [of["resource"]])[0]["type"]) for door, of in asked}

    site.wait_for(lambda: wanted <= found(), "a record of each door")
