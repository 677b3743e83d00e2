"""People out of FAB's database: teams and roles come from groups, by the directory in the policy's data."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from demo.site import Site
from tests.integration.routes import routes
from tests.support.fab_site import CACHE_SECONDS, PEOPLE

pytestmark = pytest.mark.timeout(240)

NAMES = list(PEOPLE)
# Who gets 200; everybody else gets 403. `opal`, `una` and `vic` have a FAB role and no team.
ALLOWED = {
    "/ui/auth/me": set(NAMES),
    "/ui/dags": {"ann", "bob", "aud", "opal", "una", "vic", "pat"},
    "/ui/dashboard/dag_stats": {"ann", "bob", "aud", "opal", "una", "vic", "pat"},
    "/api/v2/dags/common_cleanup": {"ann", "bob", "aud", "opal", "una", "vic", "pat"},
    "/api/v2/dags/alpha_daily": {"ann", "aud", "pat"},
    "/ui/grid/structure/alpha_daily": {"ann", "aud", "pat"},
    "/api/v2/connections": {"ann", "bob", "opal", "pat"},
    "/api/v2/connections/alpha_db": {"ann", "pat"},
    "/api/v2/connections/alpha_warehouse": {"ann", "bob", "pat"},
    "/api/v2/connections/common_db": {"ann", "bob", "opal", "pat"},
    "/api/v2/variables/beta_config": {"bob", "pat"},
    "/api/v2/pools/alpha_production": {"ann", "aud", "pat"},
    "/api/v2/providers": {"ann", "bob", "aud", "opal", "una", "vic", "pat"},
    "/auth/fab/v1/users": {"pat"},
    "/auth/fab/v1/roles": {"pat"},
}
# FAB's own methods would show every row to whoever may list at all.
LISTS = {
    "connections": (
        "connection_id",
        {
            "ann": {"alpha_db", "alpha_warehouse", "common_db"},
            "bob": {"beta_db", "alpha_warehouse", "common_db"},
            "opal": {"common_db"},
            "pat": {"alpha_db", "alpha_warehouse", "audit_store", "beta_db", "common_db"},
        },
    ),
    "variables": (
        "key",
        {
            "ann": {"alpha_config", "announcement", "common_config"},
            "bob": {"beta_config", "announcement", "common_config"},
            "opal": {"announcement", "common_config"},
            "pat": {"alpha_config", "beta_config", "announcement", "common_config"},
        },
    ),
    "pools": (
        "name",
        {
            "ann": {"alpha_pool", "alpha_production", "common_pool", "default_pool"},
            "aud": {"alpha_pool", "alpha_production", "beta_pool", "common_pool", "default_pool"},
            "bob": {"beta_pool", "common_pool", "default_pool"},
            "vic": {"common_pool", "default_pool"},
            "pat": {"alpha_pool", "alpha_production", "beta_pool", "common_pool", "default_pool"},
        },
    ),
    "dags": (
        "dag_id",
        {
            "ann": {"alpha_daily", "alpha_report", "common_cleanup"},
            "aud": {"alpha_daily", "alpha_report", "beta_daily", "common_cleanup"},
            "bob": {"beta_daily", "common_cleanup"},
            "una": {"common_cleanup"},
            "pat": {"alpha_daily", "alpha_report", "beta_daily", "common_cleanup"},
        },
    ),
}


@pytest.mark.parametrize("path", ALLOWED)
def test_each_gets_what_role_and_groups_say(fab_site: Site, path: str) -> None:
    expected = {name: 200 if name in ALLOWED[path] else 403 for name in NAMES}
    assert {name: fab_site.client(name).get(path).status_code for name in NAMES} == expected


@pytest.mark.parametrize("rows", LISTS)
def test_a_list_shows_ones_own_and_the_common_rows_only(fab_site: Site, rows: str) -> None:
    name, expected = LISTS[rows]
    for user, shown in expected.items():
        document = fab_site.client(user).get(f"/api/v2/{rows}").json()
        assert {row[name] for row in document[rows]} == shown, user
        assert document["total_entries"] == len(shown), user


def test_a_refusal_tells_the_reason(fab_site: Site) -> None:
    answer = fab_site.client("bob").get("/api/v2/connections/alpha_db")
    assert answer.status_code == 403
    assert answer.json()["detail"].partition(" (decision ")[0] == (
        "Forbidden: user bob may not read connection alpha_db of team alpha: that takes the role op in team alpha"
    )


def test_nothing_of_another_team_is_reached_by_any_route(fab_site: Site) -> None:
    of_alpha = [route for route in routes(fab_site.client("pat")) if route.of_alpha]
    assert len(of_alpha) > 80
    reached = [
        (name, route.method, route.path, status)
        for name in ("bob", "una")
        for route in of_alpha
        if (status := fab_site.client(name).request(route.method, route.path, json=route.body).status_code) != 403
    ]
    assert reached == []


def test_no_read_is_a_server_error_for_anybody(fab_site: Site) -> None:
    asked = [route for route in routes(fab_site.client("pat")) if route.method == "GET"]
    assert len(asked) > 80
    failing = [
        (name, route.path, status)
        for name in NAMES
        for route in asked
        if (status := fab_site.client(name).get(route.path).status_code) >= 500
    ]
    assert failing == []


def test_a_changed_group_counts_without_a_new_login(fab_site: Site) -> None:
    una, of_beta = fab_site.client("una"), "/api/v2/dags/beta_daily"
    assert una.get(of_beta).status_code == 403
    with sqlite3.connect(fab_site.airflow.home / "airflow.db") as database:
        database.execute(
            "INSERT INTO ab_user_group (user_id, group_id) SELECT u.id, g.id FROM ab_user u, ab_group g "
            "WHERE u.username = 'una' AND g.name = 'beta-engineers'"
        )
    wait_for(una, of_beta, 200)
    with sqlite3.connect(fab_site.airflow.home / "airflow.db") as database:
        database.execute("DELETE FROM ab_user_group WHERE user_id = (SELECT id FROM ab_user WHERE username = 'una')")
    wait_for(una, of_beta, 403)


def wait_for(client: httpx.Client, path: str, status: int) -> None:
    end = time.monotonic() + 10 * CACHE_SECONDS
    while (got := client.get(path).status_code) != status:
        assert time.monotonic() < end, f"{path} is {got} still"
        time.sleep(0.1)


@contextmanager
def signed_in(fab_site: Site, name: str) -> Iterator[httpx.Client]:
    """A browser that has filled in FAB's login form."""
    with fab_site.airflow.client() as browser:
        browser.follow_redirects = True
        form = browser.get("/auth/login/").text
        (token,) = set(re.findall(r'name="csrf_token"[^>]*value="([^"]+)"', form))
        fields = {"username": name, "password": fab_site.passwords[name], "csrf_token": token}
        browser.post("/auth/login/", data=fields)
        yield browser


def test_the_login_form_counts_like_the_token(fab_site: Site) -> None:
    with signed_in(fab_site, "bob") as browser:
        assert "_token" in browser.cookies
        assert browser.get("/ui/auth/me").json()["username"] == "bob"
        assert browser.get("/").status_code == 200
        assert browser.get("/api/v2/connections/alpha_db").status_code == 403
        assert {dag["dag_id"] for dag in browser.get("/ui/dags").json()["dags"]} == LISTS["dags"][1]["bob"]


def test_the_login_form_wants_its_csrf_token(fab_site: Site) -> None:
    with fab_site.airflow.client() as browser:
        browser.post("/auth/login/", data={"username": "pat", "password": fab_site.passwords["pat"]})
        assert "_token" not in browser.cookies
        assert browser.get("/ui/auth/me").status_code == 401


@pytest.mark.parametrize("page", ["/auth/users/list/", "/auth/roles/list/"])
def test_fabs_own_pages_are_for_the_platforms_admin(fab_site: Site, page: str) -> None:
    reached = {}
    for name in ("pat", "opal", "ann"):
        with signed_in(fab_site, name) as browser:
            answer = browser.get(page)
        assert answer.status_code < 500
        # Who may not is sent elsewhere, or told so.
        reached[name] = answer.status_code == 200 and answer.url.path == page
    assert reached == {"pat": True, "opal": False, "ann": False}


def test_menus_follow_role_and_groups(fab_site: Site) -> None:
    menus = {name: fab_site.client(name).get("/ui/auth/menus").json() for name in NAMES}
    shown = {name: set(menu["authorized_menu_items"]) for name, menu in menus.items()}
    assert {name for name in NAMES if "Connections" in shown[name]} == {"ann", "bob", "opal", "pat"}
    assert {name for name in NAMES if "Dags" in shown[name]} == set(NAMES) - {"nil"}
    # The links to FAB's own pages: users, roles, permissions; and everybody's page of decisions.
    extra = {name: [item["text"] for item in menus[name]["extra_menu_items"]] for name in NAMES}
    assert {name for name in NAMES if extra[name] != ["Policy:Decisions"]} == {"pat"}
    assert [item for name in NAMES for item in extra[name][-1:]] == ["Policy:Decisions"] * len(NAMES)
    pages = {name: fab_site.client(name).get("/auth/decisions") for name in NAMES}
    assert {(page.status_code, *page.json()) for page in pages.values()} == {(200, "decisions", "next")}
