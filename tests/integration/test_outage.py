"""No decision is an error, never a denial and never an allow."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from demo.opa import Opa
from demo.site import USERS, Site
from tests.conftest import eventually

pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("site", ["OPA server"], indirect=True)]

# Everything that anybody may have, and some that nobody but pat may.
ASKED = (
    "/api/v2/connections",
    "/api/v2/connections/alpha_db",
    "/api/v2/connections/common_db",
    "/api/v2/dags",
    "/api/v2/dags/alpha_daily",
    "/api/v2/pools",
    "/api/v2/pools/alpha_production",
    "/api/v2/providers",
    "/api/v2/variables",
    "/ui/auth/menus",
    "/ui/dags",
)


@pytest.fixture
def opa(site: Site) -> Iterator[Opa]:
    """The site's OPA, in order again afterwards."""
    assert site.opa is not None
    yield site.opa
    site.opa.stop()
    site.opa.start()


def answers(site: Site) -> dict[tuple[str, str], int]:
    return {(user.name, path): site.client(user.name).get(path).status_code for user in USERS for path in ASKED}


def test_a_stopped_server_is_503_for_everybody_until_it_is_back(site: Site, opa: Opa) -> None:
    before = answers(site)
    assert set(before.values()) == {200, 403}
    opa.stop()
    assert set(answers(site).values()) == {503}
    told = site.client("ann").get("/api/v2/connections/alpha_db").json()["detail"]
    assert opa.url in told
    assert "cannot be reached" in told
    opa.start()
    assert answers(site) == before


def test_a_server_without_a_policy_is_503(site: Site, opa: Opa) -> None:
    opa.stop()
    empty = Opa(site.home / "opa", None)
    empty.start()
    try:
        assert empty.url == opa.url
        assert set(answers(site).values()) == {503}
        told = site.client("pat").get("/api/v2/dags").json()["detail"]
        assert opa.url in told
        assert "policy bundle is not loaded" in told
    finally:
        empty.stop()


def test_a_server_that_hangs_is_503_after_the_deadline(site: Site, opa: Opa) -> None:
    os.kill(opa.pid, signal.SIGSTOP)
    try:
        answers = [site.client("pat").get("/api/v2/connections/alpha_db") for _ in range(2)]
    finally:
        os.kill(opa.pid, signal.SIGCONT)
    for answer in answers:
        assert answer.status_code == 503
        assert f"OPA at {opa.url} has answered neither questions nor GET /health for" in answer.json()["detail"]
    eventually(lambda: site.client("pat").get("/api/v2/connections/alpha_db").status_code == 200)


def test_changes_are_refused_with_503_and_not_made(site: Site, opa: Opa) -> None:
    opa.stop()
    created = {"connection_id": "made_in_the_dark", "conn_type": "sqlite"}
    assert site.client("pat").post("/api/v2/connections", json=created).status_code == 503
    assert site.client("pat").delete("/api/v2/connections/alpha_db").status_code == 503
    opa.start()
    assert site.client("pat").get("/api/v2/connections/made_in_the_dark").status_code == 404
    assert site.client("pat").get("/api/v2/connections/alpha_db").status_code == 200
