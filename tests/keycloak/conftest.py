"""One Keycloak for all tests that need one. Without Java they are skipped, unless the environment says REQUIRE_ALL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.model import Subject
from airflow_team_authz.opa.compile import compile_directory
from tests.conftest import REPOSITORY, log_without_sinks
from tests.doors.conftest import build
from tests.support.keycloak import CLIENT, Keycloak, Realm, what_is_missing

MANAGER = "airflow.providers.keycloak.auth_manager.keycloak_auth_manager.KeycloakAuthManager"

# Who is in Keycloak, with realm roles and groups; policies/airflow/directory/data.json says what groups mean.
PEOPLE = {
    "ann": ((), ("alpha-engineers",)),
    "bob": ((), ("beta-engineers",)),
    "aud": ((), ("auditors",)),
    "opal": (("Op",), ()),
    "nil": ((), ()),
    "pat": (("Admin",), ()),
}


def require(missing: str) -> None:
    """Skip the test and say why, or fail it where nothing may be missing."""
    if missing and os.environ.get("REQUIRE_ALL"):
        pytest.fail(missing, pytrace=False)
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    require(what_is_missing())
    server = Keycloak(tmp_path_factory.mktemp("keycloak"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def realm(keycloak: Keycloak) -> Realm:
    """The company's realm, in which nobody needs Keycloak's own authorization services."""
    made = Realm(keycloak)
    made.add_roles("Viewer", "User", "Op", "Admin", "SuperAdmin")
    made.add_groups(*sorted({group for _, groups in PEOPLE.values() for group in groups}))
    made.add_client(CLIENT, authorizationServicesEnabled=False)
    made.add_client("other")
    for name, (roles, groups) in PEOPLE.items():
        made.add_person(name, roles, groups)
    return made


@pytest.fixture(scope="module")
def configured(realm: Realm) -> Iterator[None]:
    """Airflow's configuration in this process, as for the company's realm."""
    settings = {"server_url": realm.keycloak.url, "realm": realm.name, "client_id": CLIENT}
    settings["client_secret"] = realm.secrets[CLIENT]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(f"AIRFLOW__KEYCLOAK_AUTH_MANAGER__{key.upper()}", value)
        yield


@pytest.fixture(scope="session")
def example_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """This repository's policies, compiled once: that takes half a second."""
    compiled = tmp_path_factory.mktemp("example") / "bundle.tar.gz"
    compile_directory(REPOSITORY / "policies", compiled)
    made = InProcess(compiled)
    yield made
    made.close()


@pytest.fixture
def manager(configured: None, example_engine: InProcess) -> Any:  # noqa: ARG001
    """Our manager over Keycloak's, new for each test, with the example's policy."""
    made = build(MANAGER)()
    vars(made)["_policy"] = DecisionPoint(example_engine, log_without_sinks())
    return made


def user(token: str, name: str = "ann", **more: Any) -> Any:
    """The user that Keycloak's manager makes of a session and a token, whatever the token is worth."""
    from airflow.providers.keycloak.auth_manager.user import KeycloakAuthManagerUser

    described = {"name": name, "access_token": token, "refresh_token": None} | more
    return KeycloakAuthManagerUser(**{"user_id": more.get("user_id") or subject_of(token)} | described)


def subject_of(token: str) -> str:
    """The `sub` that a token claims."""
    return str(jwt.decode(token, options={"verify_signature": False})["sub"])


def subject(manager: Any, somebody: Any) -> Subject:
    """The subject, after what a request does before it asks."""
    asyncio.run(manager.prepare(somebody))
    found = manager.subject(somebody)
    assert isinstance(found, Subject)
    return found
