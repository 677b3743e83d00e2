"""Every door of running Airflows records what it refuses, whichever process asks there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.running import RunningSite
from tests.decision_log.conftest import valid

pytestmark = pytest.mark.timeout(900)


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
    wanted = {
        ("users", "connection", "bob"),
        ("tasks", "connection", "alpha_attempts.attempt"),
        ("datasets", "dag", "alpha_makes_orders.make"),
        ("pools", "pool", "beta-dags"),
    }
    found: set[tuple[str, str, str]] = set()

    def all_of_them() -> bool:
        for record in recorded(site):
            asked = record["input"]
            about = (asked.get("resources") or [asked["resource"]])[0]
            found.add((record["custom"]["door"], about["type"], asked["subject"]["id"]))
        return {door for door, _, _ in wanted} <= {door for door, _, _ in found}

    site.wait_for(all_of_them, "a record of each door")
    assert wanted <= found
