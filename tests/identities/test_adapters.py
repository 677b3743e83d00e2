"""Login managers that are not ours to know: Amazon's, and a site's own with the identity that the site has written."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi import HTTPException

from airflow_team_authz.doors.users import build_manager
from airflow_team_authz.identities import Identity
from airflow_team_authz.model import Subject
from airflow_team_authz.settings import SettingsError
from tests.doors.conftest import build


class BadgeIdentity(Identity):
    """What a site writes: its people carry badges."""

    def subject(self, user: Any) -> Subject:
        return Subject("user", user.username, (), (), (f"badge {user.role}",))


class NoIdentity(Identity):
    def subject(self, user: Any) -> Any:  # noqa: ARG002
        return {"groups": ["alpha-engineers"]}


ANN = SimpleAuthManagerUser(username="ann", role="op", teams=["alpha"])


def manager(monkeypatch: pytest.MonkeyPatch, identity: str) -> Any:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__IDENTITY", identity)
    return build(SimpleAuthManager)()


def test_a_sites_identity_reads_its_people(monkeypatch: pytest.MonkeyPatch) -> None:
    assert manager(monkeypatch, f"{__name__}.BadgeIdentity").subject(ANN) == Subject(
        "user", "ann", (), (), ("badge op",)
    )


def test_an_identity_that_makes_no_subject_is_an_error_and_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HTTPException) as caught:
        manager(monkeypatch, f"{__name__}.NoIdentity").is_authorized_configuration(method="GET", user=ANN)
    assert caught.value.status_code == 503
    assert "[team_authz] identity" in caught.value.detail


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module.Identity", "cannot be imported: No module named 'no_such_module'"),
        (f"{__name__}.Nothing", "cannot be imported"),
        ("Identity", "cannot be imported"),
        (f"{__name__}.ANN", "is not a subclass of airflow_team_authz.identities.Identity"),
        ("builtins.dict", "is not a subclass of airflow_team_authz.identities.Identity"),
    ],
)
def test_a_wrong_identity_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    with pytest.raises(SettingsError, match=r"\[team_authz\] identity: ") as caught:
        manager(monkeypatch, name)
    assert told in str(caught.value)
    build_manager.cache_clear()


def test_nobody_is_nobody() -> None:
    with pytest.raises(HTTPException) as caught:
        build(SimpleAuthManager)().is_authorized_configuration(method="GET", user=None)
    assert caught.value.status_code == 401


def test_amazons_people_have_groups() -> None:
    module: Any = pytest.importorskip("airflow.providers.amazon.aws.auth_manager.aws_auth_manager", reason="no Amazon")
    made = build(f"{module.__name__}.AwsAuthManager")()
    token = {"sub": "7", "groups": ["alpha-engineers", "auditors"], "username": "ann", "email": None}
    found = made.subject(made.deserialize_user(dict(token)))
    assert found == Subject("user", "ann", (), (), ("alpha-engineers", "auditors"))
    # Starting asks nothing of Amazon's own authorization.
    made.init()
    assert "avp_facade" not in vars(made)
    unnamed = made.subject(made.deserialize_user(token | {"username": None, "email": "ann@example.org"}))
    assert unnamed.id == "ann@example.org"


@pytest.mark.parametrize("groups", [None, "alpha-engineers", {"alpha-engineers": 1}, 7, [None, 7, ["x"]]])
def test_groups_that_are_no_list_of_texts_are_none(groups: Any) -> None:
    user = SimpleAuthManagerUser(username="ann", role=None)
    user.groups = groups
    assert not Identity().subject(user).groups
