"""What happens while a package is at the gate counts when it is put in force."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.artifact import build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.opa.archive import BundleRefusedError
from airflow_team_authz.server import releases
from airflow_team_authz.server.database import OwnerKeys, connect
from airflow_team_authz.server.releases import FrozenError, OutdatedError, Releases
from tests.server.conftest import ENVIRONMENTS, Server, good, newest, told
from tests.server.test_publishing import published


def publish_while(
    server: Server, happens: Callable[[], object], monkeypatch: pytest.MonkeyPatch, environment: str = "staging"
) -> None:
    """Another server on the same database publishes; ``happens`` while the package is at its gate."""
    engine = connect(server.database)
    content = build_artifact(good("alpha", newest(server, "alpha")), server.keys["alpha"])
    monkeypatch.setattr(releases, "check_package", lambda *_: (happens() and []) or [])
    other = Releases(engine, server.key, list(ENVIRONMENTS), None, lambda: None)
    before = server.ask("GET", "/teams/alpha/history").json()
    try:
        other.publish("alpha", content, environment, releases.Asker("a test", "a test"))
    finally:
        engine.dispose()
        after = server.ask("GET", "/teams/alpha/history").json()
        assert [entry for entry in after if entry["actor"] == "a test"] == []
        assert len(after) - len(before) in {0, 1}


@pytest.mark.parametrize("scope", ["*", "team:alpha", "environment:staging"])
def test_frozen_meanwhile(server: Server, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze() -> object:
        return server.ask("POST", "/freeze", json={"scope": scope, "reason": "an incident"}).raise_for_status()

    try:
        with pytest.raises(FrozenError, match="an incident"):
            publish_while(server, freeze, monkeypatch)
    finally:
        server.ask("DELETE", f"/freeze?scope={scope}").raise_for_status()


def test_key_taken_away_meanwhile(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = SigningKey.new(), server.keys["alpha"]
    with pytest.raises(BundleRefusedError, match="not trusted here"):
        publish_while(server, lambda: server.register("alpha", new.public.pem().decode()), monkeypatch)
    assert server.register("alpha", old.public.pem().decode()).is_success


def test_a_newer_version_meanwhile_also_in_another_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = good("alpha", newest(server, "alpha") + 1)
    with pytest.raises(OutdatedError, match=f"is not above {newer.version}"):
        publish_while(server, lambda: server.publish(newer), monkeypatch)


def test_a_freeze_waits_for_who_is_putting_something_in_force(server: Server) -> None:
    frozen = threading.Thread(
        target=server.ask, args=("POST", "/freeze"), kwargs={"json": {"scope": "team:alpha", "reason": "x"}}
    )
    engine = connect(server.database)
    with Session(engine) as session:
        session.get(OwnerKeys, "alpha", with_for_update=True)
        frozen.start()
        frozen.join(0.5)
        assert frozen.is_alive()
    frozen.join()
    engine.dispose()
    server.ask("DELETE", "/freeze?scope=team:alpha").raise_for_status()


def test_what_a_key_signed_that_was_taken_away_is_brought_back_by_the_platform_only(server: Server) -> None:
    first = published(server, "beta", "one", "staging")
    old, new = server.keys["beta"], SigningKey.new()
    server.register("beta", new.public.pem().decode())
    server.keys["beta"] = new
    promotion = {"from": "staging", "to": "production"}
    answer = server.ask("POST", "/teams/beta/promote", "beta", json=promotion)
    assert (answer.status_code, f"signed by the key '{old.public.id}'" in told(answer)) == (422, True)
    published(server, "beta", "two", "staging")
    back = {"version": first, "environment": "staging"}
    answer = server.ask("POST", "/teams/beta/rollback", "beta", json=back)
    assert (answer.status_code, f"signed by the key '{old.public.id}'" in told(answer)) == (422, True)
    for path, wanted in (("rollback", back), ("promote", promotion)):
        assert server.ask("POST", f"/teams/beta/{path}", "platform", json=wanted).json()["version"] == first


def test_what_is_in_force_already_is_not_built_again(server: Server) -> None:
    version = newest(server, "alpha")
    answers = [server.publish(good("alpha", version), environment=name) for name in ("staging", "staging")]
    assert [answer.status_code for answer in answers] == [200, 200]
    (serial,) = {answer.json()["serial"] for answer in answers}
    back = {"version": version, "environment": "staging"}
    assert server.ask("POST", "/teams/alpha/rollback", "alpha", json=back).json()["serial"] == serial
    promotion = {"from": "staging", "to": "production"}
    first, again = (server.ask("POST", "/teams/alpha/promote", "alpha", json=promotion).json() for _ in range(2))
    assert (first["bundles"] != [], again["bundles"], again["serial"]) == (True, [], first["serial"])
    listed = [entry["action"] for entry in server.ask("GET", "/teams/alpha/history").json()]
    assert listed[:2] == ["promote", "publish"]
    assert server.publish(good("alpha", version, "other"), environment="staging").status_code == 409
    assert server.publish(good("alpha", version - 1), environment="staging").status_code == 409
