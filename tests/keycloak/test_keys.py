"""Keys that change while people work, and a Keycloak that is stopped, frozen and comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from fastapi import HTTPException

from airflow_team_authz import issuer
from tests.conftest import eventually
from tests.keycloak.conftest import MANAGER, user
from tests.support.keycloak import Keycloak, Realm

pytestmark = pytest.mark.timeout(400)

OWN = ConnectionDetails(conn_id="alpha_db", team_name="alpha")
FOREIGN = ConnectionDetails(conn_id="beta_db", team_name="beta")


def request(manager: Any, token: str) -> tuple[bool, bool]:
    """What a request does: know who asks, beside the event loop, and decide; about one's own and another's."""
    somebody = user(token)
    asyncio.run(manager.prepare(somebody))
    return (
        manager.is_authorized_connection(method="GET", user=somebody, details=OWN),
        manager.is_authorized_connection(method="GET", user=somebody, details=FOREIGN),
    )


@pytest.mark.exhaustive
def test_keys_change_while_requests_run(manager: Any, realm: Realm) -> None:
    """Old sessions go on, new ones count at once, and nobody waits longer than a fetch and the pause before it."""
    old = str(realm.tokens("ann")["access_token"])
    answers: list[tuple[bool, bool]] = []
    failures: list[Exception] = []
    longest = [0.0]
    over = threading.Event()

    def keep_asking(token: Callable[[], str]) -> None:
        while not over.is_set():
            try:
                given = token()
                began = time.monotonic()
                answers.append(request(manager, given))
                longest[0] = max(longest[0], time.monotonic() - began)
            except Exception as error:
                failures.append(error)

    tokens = [lambda: old, lambda: str(realm.tokens("ann")["access_token"])] * 2
    threads = [threading.Thread(target=keep_asking, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    before = len(realm.key_ids())
    for _ in range(4):
        realm.rotate()
        time.sleep(0.7)
    over.set()
    for thread in threads:
        thread.join()
    assert len(realm.key_ids()) == before + 4
    assert failures == []
    assert set(answers) == {(True, False)}
    assert len(answers) > 20
    # One that was under way, the pause, and one's own; on a slow machine.
    assert longest[0] < 2 * (issuer.PAUSE_SECONDS + 5)


def test_a_withdrawn_key_counts_no_longer_when_keys_are_renewed(
    manager: Any, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = realm.rotate()
    token = str(realm.tokens("ann")["access_token"])
    assert request(manager, token) == (True, False)
    realm.withdraw_keys(name)
    # Its verdict is kept as long as the keys are, which are renewed from time to time.
    assert request(manager, token) == (True, False)
    monkeypatch.setattr(issuer, "RENEW_SECONDS", 0.0)
    eventually(lambda: answered(manager, token) == (False, False))


def answered(manager: Any, token: str) -> tuple[bool, bool] | int:
    """What a request gets, or the status of its error."""
    try:
        return request(manager, token)
    except HTTPException as error:
        return error.status_code


def test_keys_that_are_not_known_are_an_error_and_no_denial(
    manager: Any, realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at the issuer's address: it cannot be told whether the token is good."""
    token = str(realm.tokens("ann")["access_token"])
    monkeypatch.setenv("AIRFLOW__KEYCLOAK_AUTH_MANAGER__SERVER_URL", "http://127.0.0.1:1")
    with pytest.raises(HTTPException) as caught:
        request(manager, token)
    assert caught.value.status_code == 503
    assert "http://127.0.0.1:1/realms/company" in str(caught.value.detail)
    assert token not in str(caught.value.detail)
    # What is no token of anybody is denied, whoever is away.
    assert manager.subject(user("", user_id="x")).roles == ()


@contextmanager
def frozen(keycloak: Keycloak) -> Iterator[None]:
    keycloak.freeze()
    try:
        yield
    finally:
        keycloak.thaw()


def test_a_frozen_keycloak_holds_up_nobody_who_is_known(manager: Any, realm: Realm) -> None:
    token = str(realm.tokens("ann")["access_token"])
    assert request(manager, token) == (True, False)
    realm.rotate()
    unknown = str(realm.tokens("ann")["access_token"])
    with frozen(realm.keycloak):
        waiting: list[Any] = []

        thread = threading.Thread(target=lambda: waiting.append(answered(manager, unknown)))
        thread.start()
        time.sleep(0.3)
        assert request(manager, token) == (True, False)
        assert waiting == []
        thread.join(timeout=60)
        assert waiting == [503]
    assert request(manager, unknown) == (True, False)


@pytest.mark.exhaustive
def test_keycloak_is_stopped(manager: Any, realm: Realm, configured: None) -> None:  # noqa: ARG001
    """Who is logged in goes on; a server that starts meanwhile answers 503, and works when Keycloak is back."""
    from tests.doors.conftest import build

    token = str(realm.tokens("ann")["access_token"])
    assert request(manager, token) == (True, False)
    restarted = build(MANAGER)()
    vars(restarted)["_policy"] = manager._policy
    realm.keycloak.stop()
    try:
        for _ in range(5):
            assert request(manager, token) == (True, False)
        with pytest.raises(HTTPException) as caught:
            request(restarted, token)
        assert caught.value.status_code == 503
    finally:
        realm.keycloak.start()
    assert request(restarted, token) == (True, False)
    assert request(manager, str(realm.tokens("ann")["access_token"])) == (True, False)
