"""What Airflow calls of a login manager beside logging people in: reviewed, and without Keycloak too."""

from __future__ import annotations

from collections.abc import Iterator
from http.cookies import SimpleCookie
from typing import Any

import jwt
import pytest
from airflow.api_fastapi.app import _AuthManagerState
from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from fastapi import HTTPException
from starlette.testclient import TestClient

from airflow_team_authz.doors import users, wall
from airflow_team_authz.identities import REVIEWED, unreviewed
from tests.doors.conftest import build, database  # noqa: F401 - a fixture

MANAGERS = {
    "Simple": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "Amazon": "airflow.providers.amazon.aws.auth_manager.aws_auth_manager.AwsAuthManager",
    "FAB": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
    "Keycloak": "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager",
}
KEYCLOAK = MANAGERS["Keycloak"]
# What a login manager may have of its own: a coming Airflow's are looked at before they are called.
CALLED = {
    "_get_jwt_audience", "_get_teams", "_get_token_signer", "_get_token_validator", "deserialize_user", "generate_jwt",
    "get_cli_commands", "get_db_manager", "get_extra_menu_items", "get_fastapi_app", "get_fastapi_middlewares",
    "get_url_login", "get_url_logout", "get_user_from_token", "init", "refresh_user", "revoke_token", "serialize_user",
}  # fmt: skip


def login(kind: str) -> type:
    module, _, name = MANAGERS[kind].rpartition(".")
    found: Any = pytest.importorskip(module, reason=f"the provider of {name} is not installed")
    return getattr(found, name)  # type: ignore[no-any-return]


def test_each_method_that_airflow_may_call_is_known() -> None:
    methods = {name for name in vars(BaseAuthManager) if not name.startswith(("__", *users.DECISION_PREFIXES))}
    # Airflow 3.2 has fewer.
    assert methods - CALLED == {"_abc_impl"}


@pytest.mark.parametrize("kind", sorted(MANAGERS))
def test_each_method_of_a_login_manager_is_reviewed(kind: str) -> None:
    assert [name for name in unreviewed(login(kind), BaseAuthManager) if name in CALLED] == []


@pytest.mark.parametrize("kind", sorted(MANAGERS))
@pytest.mark.parametrize("name", ["revoke_token", "_get_token_signer"])
def test_a_method_that_nobody_has_read_keeps_the_server_from_starting(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = login(kind)
    monkeypatch.setattr(manager, name, lambda *_: None, raising=False)
    with pytest.raises(TypeError, match=rf"^{name} of {manager.__name__} is new: "):
        build(manager)


def test_a_sites_own_login_manager_may_have_what_it_likes() -> None:
    own = type("OwnLogin", (login("Simple"),), {"revoke_token": lambda *_: None, "_get_teams": lambda _: 1 / 0})
    assert build(own)()._get_teams() == set()


def test_of_simple_auth_managers_users_the_teams_must_exist(
    database: None, monkeypatch: pytest.MonkeyPatch  # noqa: ARG001, F811
) -> None:  # fmt: skip
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ann:op:nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        build(MANAGERS["Simple"])().init()


def test_every_reviewed_login_manager_is_one_of_these() -> None:
    assert {where for where in REVIEWED if any(name.startswith(where) for name in MANAGERS.values())} == set(REVIEWED)


@pytest.fixture
def without_keycloak(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The manager over Keycloak's, where nobody listens at Keycloak's address."""
    login("Keycloak")
    settings = {"server_url": "http://127.0.0.1:1", "realm": "company", "client_id": "x", "client_secret": "x"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AIRFLOW__KEYCLOAK_AUTH_MANAGER__{name.upper()}", value)
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setattr(users, "refuse_unguarded_tasks", lambda: None)
    monkeypatch.setattr(wall, "install", lambda: None)
    manager = build(KEYCLOAK)()
    monkeypatch.setattr(_AuthManagerState, "instance", manager)
    return manager


def test_the_api_server_starts_without_keycloak(without_keycloak: Any, database: None) -> None:  # noqa: ARG001, F811
    vars(without_keycloak)["_policy"] = "the policy"
    without_keycloak.init()
    assert without_keycloak._get_teams() == set()


def test_logging_out_works_without_keycloak(without_keycloak: Any) -> None:
    cookies = {"_token": "t", "_id_token": "a.b.c", "_access_token": "a", "_refresh_token": "r"}
    with TestClient(without_keycloak.get_fastapi_app(), follow_redirects=False) as client:
        left = client.get("/logout", cookies=cookies)
        assert (left.status_code, left.headers["location"]) == (307, "logout_callback")
        ended = client.get("/logout_callback", cookies=cookies)
    deleted = SimpleCookie()
    for line in ended.headers.get_list("set-cookie"):
        deleted.load(line)
    assert {name for name, morsel in deleted.items() if morsel["max-age"] == "0"} >= {"_token", "_id_token"}
    assert ended.headers["location"] == "/auth/login"


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("POST", "/token", {"json": {"username": "ann", "password": "secret"}}),
        ("GET", "/login_callback?code=1&state=s", {"cookies": {"_oauth_state": "s"}}),
    ],
)
def test_nobody_can_log_in_without_keycloak(
    without_keycloak: Any, method: str, path: str, more: dict[str, Any]
) -> None:
    with TestClient(without_keycloak.get_fastapi_app(), raise_server_exceptions=False) as client:
        answer = client.request(method, path, **more)
    assert (answer.status_code, answer.json()) == (503, {"detail": "Nobody can log in now: Keycloak does not answer"})


def test_a_session_that_cannot_be_renewed_is_neither_over_nor_denied(without_keycloak: Any) -> None:
    from airflow.providers.keycloak.auth_manager.user import KeycloakAuthManagerUser

    expired = jwt.encode({"sub": "1", "exp": 1}, "k" * 32, algorithm="HS256")
    user = KeycloakAuthManagerUser(user_id="1", name="ann", access_token=expired, refresh_token=expired)
    assert without_keycloak.refresh_user(user=user) is None
    with pytest.raises(HTTPException) as caught:
        without_keycloak.is_authorized_configuration(method="GET", user=user)
    assert caught.value.status_code == 503
    assert "Keycloak does not answer, so the session is not renewed" in str(caught.value.detail)
