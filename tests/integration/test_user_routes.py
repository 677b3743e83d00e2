"""What a running API server asks beyond Airflow's own questions."""

from __future__ import annotations

import json

import pytest

from demo.site import Site

pytestmark = pytest.mark.timeout(180)


def test_a_body_does_not_decide_about_the_dag_of_the_query(site: Site) -> None:
    bob = site.client("bob")
    backfills = "/api/v2/backfills?dag_id={}"
    own = {"dag_id": "beta_daily"}
    assert bob.request("GET", backfills.format("alpha_daily"), json=own).status_code == 400
    assert bob.get(backfills.format("alpha_daily")).status_code == 403
    assert bob.get(backfills.format("beta_daily")).status_code == 200


def test_default_connections_take_the_right_to_make_common_ones(site: Site) -> None:
    defaults = "/api/v2/connections/defaults"
    before = site.client("pat").get("/api/v2/connections").json()["total_entries"]
    assert site.client("bob").post(defaults, json={"team_name": "beta"}).status_code == 400
    assert site.client("bob").post(defaults, json={}).status_code == 403
    assert site.client("pat").get("/api/v2/connections").json()["total_entries"] == before


def test_a_refused_write_leaves_no_row_and_another_none_in_somebody_elses_log(site: Site) -> None:
    def rows(query: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = (
            site.client("pat").get(f"/api/v2/eventLogs?limit=1000&{query}").json()["event_logs"]
        )
        return found

    refused, planted = len(rows("event=delete_variable")), len(rows("dag_id=alpha_daily"))
    assert site.client("bob").delete("/api/v2/variables/alpha_config").status_code == 403
    assert len(rows("event=delete_variable")) == refused
    body = {"key": "planted", "value": "x", "team_name": "beta"}
    assert site.client("bob").post("/api/v2/variables?dag_id=alpha_daily", json=body).status_code == 201
    assert site.client("bob").delete("/api/v2/variables/planted?dag_id=alpha_daily").status_code == 204
    assert len(rows("dag_id=alpha_daily")) == planted
    written = [row for row in rows("event=post_variable") if json.loads(row["extra"]).get("key") == "planted"]
    assert {row["extra"][:52] for row in written} == {'{"about": {"type": "variable", "team_id": "beta"}, "'}
