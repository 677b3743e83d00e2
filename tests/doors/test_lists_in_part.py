"""A team's rules lend single things to people without a role: lists show them these, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.doors import decision_point, wall
from airflow_team_authz.identities import requests
from tests.conftest import eventually, write
from tests.doors.test_user_requests import Site, airflows_routes, opened_site

__all__ = ["opened_site"]

RULES = """
package teams.alpha

_lent := {"dag": "alpha_daily", "connection": "alpha_db", "pool": "alpha_pool", "variable": "alpha_key", "asset": "1"}

allow contains "alpha lends it to nil" if {
	input.subject.id == "nil"
	input.action == "read"
	input.resource.id == _lent[input.resource.type]
}
"""
SITE = """
package airflow.site

deny contains "nil lists no variables" if {
	input.subject.id == "nil"
	input.action == "list"
	input.resource.type == "variable"
}
"""
LISTS = {
    "/api/v2/dags?exclude_stale=false": ("dags", "dag_id", "alpha_daily"),
    "/ui/dags?exclude_stale=false": ("dags", "dag_id", "alpha_daily"),
    "/api/v2/connections": ("connections", "connection_id", "alpha_db"),
    "/api/v2/pools": ("pools", "name", "alpha_pool"),
    "/api/v2/assets?only_active=false": ("assets", "id", 1),
}


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


def shown(site: Site, who: str, path: str) -> list[Any] | int:
    answer = site.ask(who, "GET", path)
    if answer.status_code != 200:
        return answer.status_code
    rows, id_, _ = LISTS[path]
    return [row[id_] for row in answer.json()[rows]]


def test_lists_and_menu_show_what_a_rule_lends(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for path, (_, _, lent) in LISTS.items():
        assert shown(site, "nil", path) == [lent], path
    # One who may list all of it sees more, and one to whom nothing is lent sees no list.
    assert shown(site, "pat", "/api/v2/connections") != ["alpha_db"]
    assert {shown(site, "una", path) for path in LISTS} == {403}  # type: ignore[arg-type]
    assert site.ask("una", "GET", "/ui/auth/menus").json()["authorized_menu_items"] == []
    menu = site.ask("nil", "GET", "/ui/auth/menus").json()["authorized_menu_items"]
    assert {"Dags", "Connections", "Pools", "Assets"} <= set(menu)
    assert not {"Config", "Jobs", "Plugins", "Providers"} & set(menu)
    # The list was not refused, so no record says that it was. Records are made in order, by a thread.
    assert site.status("una", "GET", "/api/v2/pools") == 403
    eventually(lambda: "una may not list pools" in caplog.text)
    assert "nil may not list" not in caplog.text


def test_a_rule_that_denies_the_list_counts_whatever_is_lent(site: Site) -> None:
    assert site.status("nil", "GET", "/api/v2/variables/alpha_key") == 200
    assert site.status("nil", "GET", "/api/v2/variables") == 403
    assert "Variables" not in site.ask("nil", "GET", "/ui/auth/menus").json()["authorized_menu_items"]


def test_what_is_lent_opens_nothing_beside_it(site: Site) -> None:
    assert site.status("nil", "GET", "/api/v2/connections/alpha_db") == 200
    assert site.status("nil", "GET", "/api/v2/connections/beta_db") == 403
    assert site.status("nil", "POST", "/api/v2/connections", json={"connection_id": "x", "conn_type": "http"}) == 403
    assert site.status("nil", "PATCH", "/api/v2/pools/alpha_pool", json={"slots": 1}) == 403
    assert site.status("nil", "GET", "/api/v2/config") == 403
