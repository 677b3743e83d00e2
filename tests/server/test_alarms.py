"""What engines refuse is an alarm at the server that they report to."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines.downloads import Downloaded
from airflow_team_authz.opa.archive import pack, unpack
from airflow_team_authz.server.clients import STALE
from airflow_team_authz.server.database import Bundle, Client, connect
from tests.conftest import eventually
from tests.server.conftest import Server
from tests.server.test_protocol import lent, opa, publish, revision


def spoil(server: Server, name: str) -> None:
    """As somebody does who can write into the database, and has no key."""
    files = unpack(server.bundle(name).content)
    changed = {"etag": "spoilt", "content": pack(files | {"data.json": b'{"spoilt": true}'})}
    engine = connect(server.database)
    with Session(engine) as session:
        session.execute(update(Bundle).where(Bundle.name == name).values(changed))
        session.commit()
    engine.dispose()


def test_what_is_refused_is_an_alarm_until_there_is_better(server: Server, tmp_path: Path) -> None:
    first = publish(server)
    (tmp_path / "token").write_text(server.tokens["reader"])
    trust = Trust(server.home / "trusted.pub", "production.wasm")
    address = f"{server.url}/bundles/production.wasm"

    def alarms(told: str) -> list[str]:
        """The kinds of the clients with such an alarm."""
        states = server.ask("GET", "/status").json()["clients"]
        return sorted(state["kind"].partition(" ")[0] for state in states if told in str(state["alarms"]))

    with (
        closing(Downloaded(address, tmp_path / "state", trust, tmp_path / "token")) as own,
        opa(server, "opa.yaml", tmp_path / "spoilt", "reader") as other,
    ):
        eventually(lambda: lent(own) == lent(other) == (True, first))
        for name in ("production", "production.wasm"):
            spoil(server, name)
        eventually(lambda: alarms("production.wasm: bundle_error data.json is not") == ["airflow_team_authz"])
        eventually(lambda: alarms("not included in bundle signature") == ["opa"])
        assert lent(own) == lent(other) == (True, first)
        second = publish(server, connection="other")
        eventually(lambda: lent(own) == lent(other) == (False, second))
        eventually(lambda: alarms("bundle_error") == [])


def test_without_a_bundle_and_with_bad_discovery(server: Server) -> None:
    def alarms(id_: str, **report: object) -> list[list[str]]:
        assert server.ask("POST", "/status", "reader", json={"labels": {"id": id_, "app": "test"}, **report}).is_success
        return [state["alarms"] for state in server.ask("GET", "/status").json()["clients"] if state["id"] == id_]

    publish(server)
    assert alarms("none") == alarms("none", bundles={}) == [["has no bundle"]]
    bundles = {"airflow": {"active_revision": revision(server)}}
    assert alarms("found", bundles=bundles, discovery={"name": "discovery"}) == [[]]
    bad = {"name": "discovery", "code": "bundle_error", "message": "unexpected EOF"}
    assert alarms("found", bundles=bundles, discovery=bad) == [["discovery: bundle_error unexpected EOF"]]


def test_who_is_followed_by_another_of_its_kind_is_not_missed(server: Server) -> None:
    publish(server)
    for id_, host in (("before", "here"), ("after", "here"), ("alone", "there")):
        report = {"labels": {"id": id_, "app": "test", "host": host}, "bundles": {}}
        assert server.ask("POST", "/status", "reader", json=report).is_success
    engine = connect(server.database)
    with Session(engine) as session:
        long_ago = datetime.now(UTC) - 2 * STALE
        session.execute(update(Client).where(Client.id.in_(["before", "alone"])).values(seen_at=long_ago))
        session.commit()
    engine.dispose()
    assert {"alone", "after"} <= {state["id"] for state in server.ask("GET", "/status").json()["clients"]}
    assert "before" not in {state["id"] for state in server.ask("GET", "/status").json()["clients"]}
