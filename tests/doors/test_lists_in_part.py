"""A team's rules give rights on single Dags to people without a role: lists show these Dags, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_team_authz.doors import decision_point, wall
from airflow_team_authz.identities import requests
from tests.conftest import eventually, write
from tests.doors.test_user_requests import Site, airflows_routes, opened_site

__all__ = ["opened_site"]

RULES = """
package teams.alpha

allow contains "alpha shows it to everybody" if {
	input.action == "read"
	input.resource.type == "dag"
	input.resource.id == "alpha_daily"
}

allow contains "and these too" if {
	input.action == "read"
	input.resource.id in {"alpha_db", "alpha_pool", "alpha_key"}
}
"""
SITE = """
package airflow.site

deny contains "una lists no Dags" if {
	input.subject.id == "una"
	input.action == "list"
	input.resource.type == "dag"
}
"""


@pytest.fixture
def site(opened_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The app with the second wall, and with alpha's rules."""
    wall.install()
    for route in airflows_routes(opened_site):
        for part in route.dependant.dependencies:
            # As the hooks have it, for what is imported after them.
            if getattr(part.call, "__qualname__", "").startswith("requires_access_"):
                monkeypatch.setattr(part, "call", wall._within(requests.before_handler, part.call))
    rules = write(tmp_path / "policy", {"teams/alpha/alpha.rego": RULES, "site/site.rego": SITE})
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__POLICY", str(rules))
    decision_point.forget()
    monkeypatch.setitem(vars(opened_site.manager), "_policy", decision_point.decision_point())
    yield opened_site
    decision_point.forget()


def test_lists_and_menu_show_dags_that_a_rule_opens(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/api/v2/dags", "/ui/dags"):
        answer = site.ask("nil", "GET", f"{path}?exclude_stale=false")
        assert [dag["dag_id"] for dag in answer.json()["dags"]] == ["alpha_daily"]
    assert site.ask("nil", "GET", "/api/v2/dags/~/dagRuns").json()["dag_runs"] == []
    assert site.ask("pat", "GET", "/api/v2/dags?exclude_stale=false").json()["total_entries"] > 1
    menu = set(site.ask("nil", "GET", "/ui/auth/menus").json()["authorized_menu_items"])
    assert "Dags" in menu
    assert not {"Connections", "Variables", "Pools", "Config", "Jobs", "Providers"} & menu
    # The list was not refused, so no record says that it was. Records are made in order, by a thread.
    assert site.status("nil", "GET", "/api/v2/pools") == 403
    eventually(lambda: "nil may not list pools" in caplog.text)
    assert "nil may not list dags" not in caplog.text


def test_a_rule_that_denies_the_list_counts_whatever_a_rule_opens(site: Site) -> None:
    # Allowed, and the Dag that only the table has cannot be shown.
    assert site.status("una", "GET", "/api/v2/dags/alpha_daily") == 404
    assert site.status("una", "GET", "/api/v2/dags") == 403
    assert "Dags" not in site.ask("una", "GET", "/ui/auth/menus").json()["authorized_menu_items"]


def test_what_a_rule_opens_opens_nothing_beside_it(site: Site) -> None:
    assert site.status("nil", "GET", "/api/v2/dags/beta_daily") == 403
    # To see connections, variables and pools takes a role, though each of these could be read.
    assert site.status("nil", "GET", "/api/v2/connections/alpha_db") == 200
    for path in ("connections", "variables", "pools", "config"):
        assert site.status("nil", "GET", f"/api/v2/{path}") == 403, path
    assert site.status("nil", "POST", "/api/v2/connections", json={"connection_id": "x", "conn_type": "http"}) == 403
