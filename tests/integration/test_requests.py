"""What each role gets of every request that the UI and the public API know."""

from __future__ import annotations

import httpx
import pytest

from demo.site import USERS, Site
from tests.integration.routes import routes

pytestmark = pytest.mark.timeout(180)

NAMES = [user.name for user in USERS]
ALPHA = {"ann", "ivy", "pat"}
OPS = {"ann", "bob", "pat"}
EVERYONE = set(NAMES)
# Who gets 200; everybody else gets 403.
ALLOWED = {
    "/": EVERYONE,
    "/ui/auth/me": EVERYONE,
    "/ui/config": EVERYONE,
    "/ui/dags": EVERYONE,
    "/ui/dashboard/dag_stats": EVERYONE,
    "/ui/dashboard/historical_metrics_data?start_date=2026-01-01T00:00:00Z": EVERYONE,
    "/ui/dags/alpha_daily/latest_run": ALPHA,
    "/ui/grid/structure/alpha_daily": ALPHA,
    "/ui/structure/structure_data?dag_id=alpha_daily": ALPHA,
    "/ui/connections/hook_meta": OPS,
    "/api/v2/dags": EVERYONE,
    "/api/v2/dags/alpha_daily": ALPHA,
    "/api/v2/dags/common_cleanup": EVERYONE,
    "/api/v2/dagSources/alpha_daily": ALPHA,
    "/api/v2/dags/alpha_daily/dagRuns": ALPHA,
    "/api/v2/connections": OPS,
    "/api/v2/connections/alpha_db": {"ann", "pat"},
    "/api/v2/connections/common_db": OPS,
    "/api/v2/variables": OPS,
    "/api/v2/variables/alpha_config": {"ann", "pat"},
    "/api/v2/pools": EVERYONE,
    "/api/v2/pools/beta_pool": {"bob", "vic", "pat"},
    "/api/v2/eventLogs?dag_id=alpha_daily": ALPHA,
    "/api/v2/plugins": EVERYONE,
    "/api/v2/providers": EVERYONE,
    "/api/v2/jobs": EVERYONE,
}
# What a list shows: path, where the rows are, what names one, and the names that each user gets.
LISTS = {
    "connections": (
        "/api/v2/connections",
        "connection_id",
        {
            "ann": {"alpha_db", "alpha_warehouse", "common_db"},
            "bob": {"beta_db", "alpha_warehouse", "common_db"},
            "pat": {"alpha_db", "alpha_warehouse", "audit_store", "beta_db", "common_db"},
        },
    ),
    "variables": (
        "/api/v2/variables",
        "key",
        {
            "ann": {"alpha_config", "common_config", "announcement"},
            "bob": {"beta_config", "common_config", "announcement"},
            "pat": {"alpha_config", "beta_config", "common_config", "announcement"},
        },
    ),
    "pools": (
        "/api/v2/pools",
        "name",
        {
            "ann": {"alpha_pool", "alpha_production", "common_pool", "default_pool"},
            "ivy": {"alpha_pool", "common_pool", "default_pool"},
            "bob": {"beta_pool", "common_pool", "default_pool"},
            "vic": {"beta_pool", "common_pool", "default_pool"},
            "pat": {"alpha_pool", "alpha_production", "beta_pool", "common_pool", "default_pool"},
        },
    ),
    "teams": (
        "/ui/teams",
        "name",
        {"ann": {"alpha"}, "ivy": {"alpha"}, "bob": {"beta"}, "vic": {"beta"}, "pat": {"alpha", "beta"}},
    ),
    "dag_runs": (
        "/api/v2/dags/~/dagRuns",
        "dag_id",
        {
            "ann": {"alpha_daily"},
            "ivy": {"alpha_daily"},
            "bob": {"beta_daily"},
            "vic": {"beta_daily"},
            "pat": {"alpha_daily", "beta_daily"},
        },
    ),
    "task_instances": (
        "/api/v2/dags/~/dagRuns/~/taskInstances",
        "dag_id",
        {"ann": {"alpha_daily"}, "vic": {"beta_daily"}, "pat": {"alpha_daily", "beta_daily"}},
    ),
    "tags": ("/api/v2/dagTags", None, {"ann": {"alpha", "common", "plain"}, "vic": {"beta", "common", "plain"}}),
}
DAGS = {
    "ann": {"alpha_daily", "alpha_report", "common_cleanup"},
    "ivy": {"alpha_daily", "alpha_report", "common_cleanup"},
    "bob": {"beta_daily", "common_cleanup"},
    "vic": {"beta_daily", "common_cleanup"},
    "pat": {"alpha_daily", "alpha_report", "beta_daily", "common_cleanup"},
}


@pytest.mark.parametrize("path", ALLOWED)
def test_each_role_gets_what_it_should(site: Site, path: str) -> None:
    expected = {name: 200 if name in ALLOWED[path] else 403 for name in NAMES}
    assert {name: site.client(name).get(path).status_code for name in NAMES} == expected


@pytest.mark.parametrize("rows", LISTS)
def test_a_list_shows_ones_own_and_the_common_rows_only(site: Site, rows: str) -> None:
    path, name, expected = LISTS[rows]
    for user, shown in expected.items():
        document = site.client(user).get(path).json()
        assert {row[name] if name else row for row in document[rows]} == shown, user
        assert document["total_entries"] == len(shown), user


@pytest.mark.parametrize("path", ["/api/v2/dags", "/ui/dags"])
def test_dags_are_ones_own_and_the_common_ones_only(site: Site, path: str) -> None:
    shown = {name: {dag["dag_id"] for dag in site.client(name).get(path).json()["dags"]} for name in NAMES}
    assert shown == DAGS


def test_nothing_of_another_team_is_reached_by_any_route(site: Site) -> None:
    of_alpha = [route for route in routes(site.client("pat")) if route.of_alpha]
    assert len(of_alpha) > 80
    reached = [
        (name, route.method, route.path, status)
        for name in ("bob", "vic")
        for route in of_alpha
        if (status := site.client(name).request(route.method, route.path, json=route.body).status_code) != 403
    ]
    assert reached == []


def test_no_read_is_a_server_error_for_anybody(site: Site) -> None:
    asked = [route for route in routes(site.client("pat")) if route.method == "GET"]
    assert len(asked) > 80
    failing = [
        (name, route.path, status)
        for name in NAMES
        for route in asked
        if (status := site.client(name).get(route.path).status_code) >= 500
    ]
    assert failing == []


def test_who_is_not_logged_in_gets_nothing(site: Site) -> None:
    with site.airflow.client() as nobody:
        for path in ("/api/v2/connections", "/api/v2/dags", "/ui/auth/menus", "/ui/dags"):
            assert nobody.get(path).status_code == 401, path


@pytest.mark.parametrize("site", ["in process"], indirect=True)
def test_the_cookie_of_the_login_page_counts_like_the_token(site: Site) -> None:
    # Simple's login page posts to this route and puts the token into this cookie.
    with site.airflow.client() as browser:
        answer = browser.post("/auth/token", data={"username": "vic", "password": site.passwords["vic"]})
        browser.cookies.set("_token", answer.json()["access_token"])
        assert browser.get("/ui/auth/me").json()["username"] == "vic"
        assert browser.get("/").status_code == 200
        assert browser.get("/api/v2/connections").status_code == 403
        assert {dag["dag_id"] for dag in browser.get("/ui/dags").json()["dags"]} == DAGS["vic"]


@pytest.mark.parametrize("site", ["in process"], indirect=True)
def test_another_password_does_not_log_in(site: Site) -> None:
    with site.airflow.client() as browser:
        answer: httpx.Response = browser.post("/auth/token", json={"username": "pat", "password": "guessed"})
    assert answer.status_code == 401
