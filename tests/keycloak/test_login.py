"""People who log in through Keycloak: by password, as a client, in a browser; renewed, and logged out again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest

from tests.keycloak.conftest import PEOPLE, require
from tests.support.browser import browser, chromium, fill_in_keycloaks_form
from tests.support.keycloak import CLIENT, Realm, b64
from tests.support.keycloak_site import KeycloakSite

pytestmark = pytest.mark.timeout(400)

ALLOWED = {
    "/ui/auth/me": set(PEOPLE),
    "/ui/dags": {"ann", "bob", "aud", "opal", "pat"},
    "/api/v2/dags/alpha_daily": {"ann", "aud", "pat"},
    "/api/v2/connections": {"ann", "bob", "opal", "pat"},
    "/api/v2/connections/alpha_db": {"ann", "pat"},
    "/api/v2/connections/common_db": {"ann", "bob", "opal", "pat"},
    "/api/v2/variables/beta_config": {"bob", "pat"},
    "/api/v2/pools/alpha_production": {"ann", "aud", "pat"},
    "/api/v2/providers": {"ann", "bob", "aud", "opal", "pat"},
}
CONNECTIONS = {
    "ann": {"alpha_db", "alpha_warehouse", "common_db"},
    "bob": {"beta_db", "alpha_warehouse", "common_db"},
    "opal": {"common_db"},
    "pat": {"alpha_db", "alpha_warehouse", "audit_store", "beta_db", "common_db"},
}


@pytest.fixture(scope="module")
def site(realm: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeycloakSite]:
    made = KeycloakSite(tmp_path_factory.mktemp("site"), realm, tuple(PEOPLE))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("path", ALLOWED)
def test_each_gets_what_role_and_groups_say(site: KeycloakSite, path: str) -> None:
    expected = {name: 200 if name in ALLOWED[path] else 403 for name in PEOPLE}
    assert {name: site.client(name).get(path).status_code for name in PEOPLE} == expected


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_list_shows_ones_own_and_the_common_rows_only(site: KeycloakSite, name: str) -> None:
    document = site.client(name).get("/api/v2/connections").json()
    assert {row["connection_id"] for row in document["connections"]} == CONNECTIONS[name]


def test_a_refusal_tells_the_reason(site: KeycloakSite) -> None:
    answer = site.client("bob").get("/api/v2/connections/alpha_db")
    assert answer.json()["detail"].partition(" (decision ")[0] == (
        "Forbidden: user bob may not read connection alpha_db of team alpha: that takes the role op in team alpha"
    )


def test_a_client_logs_in_as_itself(site: KeycloakSite) -> None:
    """Its service account has groups as a person has."""
    realm = site.realm
    (found,) = realm.admin("GET", f"/users?username=service-account-{CLIENT}")
    (group,) = [group for group in realm.admin("GET", "/groups") if group["name"] == "alpha-engineers"]
    credentials = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": realm.secrets[CLIENT]}
    statuses = []
    for method in ("DELETE", "PUT"):
        realm.admin(method, f"/users/{found['id']}/groups/{group['id']}")
        with site.airflow.client() as client:
            token = client.post("/auth/token", json=credentials).json()["access_token"]
        with site.airflow.client(token) as client:
            statuses.append(client.get("/api/v2/connections/alpha_db").status_code)
    assert statuses == [403, 200]


def test_a_logged_out_token_is_worth_nothing(site: KeycloakSite) -> None:
    client = site.airflow.login("ann", site.passwords["ann"])
    assert client.get("/api/v2/connections/alpha_db").status_code == 200
    client.get("/api/v2/auth/logout")
    assert client.get("/api/v2/connections/alpha_db").status_code in {401, 403}
    assert client.get("/ui/auth/me").status_code in {401, 403}


@pytest.fixture(scope="module")
def session(site: KeycloakSite) -> dict[str, str]:
    """The cookies of somebody who has logged in by Keycloak's page, without any team: nil."""
    return logged_in(site, "nil")


def logged_in(site: KeycloakSite, name: str) -> dict[str, str]:
    require("" if chromium() else "a browser is needed: apt-get install chromium")
    with browser() as page:
        page.goto(site.airflow.url)
        fill_in_keycloaks_form(page, name)
        page.wait_for_url(f"{site.airflow.url}/**")
        return {cookie["name"]: cookie["value"] for cookie in page.context.cookies(site.airflow.url)}


def as_session(site: KeycloakSite, cookies: dict[str, str]) -> httpx.Client:
    client = site.airflow.client()
    client.cookies.update(cookies)
    return client


def test_the_page_in_a_browser_shows_what_is_ones_own(site: KeycloakSite) -> None:
    require("" if chromium() else "a browser is needed: apt-get install chromium")
    with browser() as page:
        page.goto(f"{site.airflow.url}/connections")
        fill_in_keycloaks_form(page, "ann")
        page.wait_for_url(f"{site.airflow.url}/**")
        page.goto(f"{site.airflow.url}/connections")
        page.get_by_text("alpha_db").first.wait_for()
        shown = page.inner_text("body")
        assert "common_db" in shown
        assert "beta_db" not in shown
        answer = page.request.get(f"{site.airflow.url}/api/v2/connections/beta_db")
        assert answer.status == 403
        assert "that takes the role op in team beta" in answer.json()["detail"]


def test_groups_written_into_the_cookie_are_not_believed(site: KeycloakSite, session: dict[str, str]) -> None:
    header, payload, signature = session["_access_token"].split(".")
    claims = jwt.decode(session["_access_token"], options={"verify_signature": False})
    payload = b64(json.dumps(claims | {"groups": ["alpha-engineers"], "realm_access": {"roles": ["Admin"]}}).encode())
    forged = session | {"_access_token": f"{header}.{payload}.{signature}"}
    with as_session(site, session) as honest, as_session(site, forged) as client:
        assert honest.get("/ui/auth/me").json()["username"] == "nil"
        assert client.get("/ui/auth/me").json()["username"] == "nil"
        answer = client.get("/api/v2/connections/alpha_db")
        assert answer.status_code == 403
        assert (
            answer.json()["detail"]
            .partition(" (decision ")[0]
            .endswith("groups and roles of this login do not count: the signature of the access token is wrong")
        )
        assert client.get("/api/v2/connections").status_code == 403


def test_somebody_elses_token_in_the_cookie_is_refused(site: KeycloakSite, session: dict[str, str]) -> None:
    stolen = session | {"_access_token": str(site.realm.tokens("pat")["access_token"])}
    with as_session(site, stolen) as client:
        assert client.get("/api/v2/connections").status_code == 401
        assert client.get("/api/v2/dags").status_code == 401


def test_an_expired_token_is_renewed_and_verified_anew(site: KeycloakSite) -> None:
    cookies = logged_in(site, "ann")
    old = jwt.decode(cookies["_access_token"], options={"verify_signature": False})
    header, _, signature = cookies["_access_token"].split(".")
    expired = b64(json.dumps(old | {"exp": int(time.time()) - 100}).encode())
    site.realm.rotate()
    with as_session(site, cookies | {"_access_token": f"{header}.{expired}.{signature}"}) as client:
        answer = client.get("/api/v2/connections/alpha_db")
        assert answer.status_code == 200
        renewed = answer.cookies["_access_token"]
        assert jwt.get_unverified_header(renewed)["kid"] != jwt.get_unverified_header(cookies["_access_token"])["kid"]
        assert client.get("/api/v2/connections/beta_db").status_code == 403


def test_cookies_are_worth_nothing_after_the_logout(site: KeycloakSite) -> None:
    cookies = logged_in(site, "ann")
    with as_session(site, cookies) as client:
        assert client.get("/api/v2/connections/alpha_db").status_code == 200
        client.get("/api/v2/auth/logout")
    with as_session(site, cookies) as replayed:
        assert replayed.get("/api/v2/connections/alpha_db").status_code in {401, 403}
        assert replayed.get("/api/v2/connections").status_code in {401, 403}


def test_nobody_gets_a_token_by_a_wrong_password(site: KeycloakSite) -> None:
    with site.airflow.client() as client:
        answer = client.post("/auth/token", json={"username": "pat", "password": "wrong"})
    # 403 by older versions of Keycloak; the answer of this one is an error to Airflow's provider.
    assert answer.status_code in {403, 500}
    assert "access_token" not in answer.text


def test_no_token_is_in_the_log(site: KeycloakSite, session: dict[str, str]) -> None:
    log = site.airflow.log()
    assert "denied" in log
    for cookie in ("_access_token", "_refresh_token", "_token"):
        assert session[cookie].rpartition(".")[2] not in log


def test_the_policy_sees_groups_and_roles_and_nothing_else_of_a_token(site: KeycloakSite) -> None:
    done = whoami(site, "ann")
    shown: dict[str, Any] = json.loads(done.stdout)
    assert shown["subject"]["groups"] == ["alpha-engineers"]
    assert set(shown["subject"]) == {"type", "id", "team_ids", "roles", "groups"}
    assert shown["said_by"] == "KeycloakAuthManager"
    assert shown["team_roles"] == {"alpha": ["op", "user", "viewer"]}


def test_doctor_asks_for_the_keys(site: KeycloakSite) -> None:
    done = site.airflow.attempt("-m", "airflow_team_authz.cli", "doctor", "-o", "json")
    (login,) = [check for check in json.loads(done.stdout) if check["check"] == "login"]
    assert login["ok"], login
    assert f"KeycloakAuthManager logs people in with {site.realm.url}, whose" in login["detail"]


def whoami(site: KeycloakSite, name: str) -> Any:
    with site.airflow.client() as client:
        given = client.post("/auth/token", json={"username": name, "password": site.passwords[name]}).json()
    file = site.home / "token.json"
    file.write_text(json.dumps(given))
    return site.airflow.attempt("-m", "airflow_team_authz.cli", "whoami", "--token", str(file), "-o", "json")
