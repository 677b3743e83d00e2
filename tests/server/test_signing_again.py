"""Bundles that stay the same are signed again, so that engines can tell them from old ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.aggregate import SIGN_AGAIN_HOURS, scope
from airflow_team_authz.bundles.signing import SigningKey, TrustedKeys
from airflow_team_authz.bundles.verifying import Trust
from airflow_team_authz.engines.downloads import Downloaded
from airflow_team_authz.opa.archive import pack, read_manifest, unpack
from airflow_team_authz.server.database import Bundle, connect, migrate
from airflow_team_authz.server.releases import Releases
from tests.conftest import eventually
from tests.server.conftest import Server, good
from tests.server.test_protocol import lent, opa

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NAME = "production.team.alpha"


def put(engine: Engine, key: SigningKey, name: str = NAME, signed_at: datetime | None = LONG_AGO) -> None:
    """A bundle in the database, signed then."""
    manifest = b'{"revision": "7-x", "roots": [""], "metadata": {"name": "x", "serial": 7}}'
    content = pack(key.sign({".manifest": manifest}, scope(name), int(LONG_AGO.timestamp())))
    made = {"serial": 7, "revision": "7-x", "etag": f'"{name}"', "content": content, "signed_at": signed_at}
    with Session(engine) as session:
        session.merge(Bundle(name=name, environment="production", **made))
        session.commit()


def kept(engine: Engine, name: str = NAME) -> Bundle:
    with Session(engine) as session:
        return session.scalars(select(Bundle).where(Bundle.name == name)).one()


@pytest.fixture(params=["sqlite", "postgresql"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    address = request.getfixturevalue("database") if request.param == "postgresql" else f"sqlite:///{tmp_path}/db"
    engine = connect(address)
    migrate(engine)
    return engine


def test_what_was_signed_long_ago_is_signed_again(tables: Engine, caplog: pytest.LogCaptureFixture) -> None:
    key, told = SigningKey.new(), list[int]()
    releases = Releases(tables, key, ["production"], None, lambda: told.append(1))
    recently = datetime.now(UTC) - timedelta(hours=SIGN_AGAIN_HOURS) / 2
    put(tables, key)
    put(tables, key, "production", None)
    put(tables, key, "production.wasm", recently)
    put(tables, SigningKey.new(), "production.team.beta")
    releases.sign_again()
    assert told == [1]
    for name in (NAME, "production"):
        bundle = kept(tables, name)
        files = unpack(bundle.content)
        said = TrustedKeys.of([key.public]).verify(files, scope(name))
        assert said.issued_at is not None
        assert datetime.fromtimestamp(said.issued_at, UTC) > recently
        assert (bundle.revision, read_manifest(files)["metadata"]["serial"]) == ("7-x", 7)
        assert bundle.etag != f'"{name}"'
    assert kept(tables, "production.wasm").etag == '"production.wasm"'
    # Who can write into the database only gets no signature for it.
    assert kept(tables, "production.team.beta").etag == '"production.team.beta"'
    releases.sign_again()
    releases.sign_again()
    assert told == [1]
    refused = [record.getMessage() for record in caplog.records if "not signed again" in record.getMessage()]
    assert len(refused) == 1
    assert "production.team.beta in the database is not signed again: it is signed by the key" in refused[0]


def test_the_server_signs_again_and_every_engine_goes_on(own_server: Server, tmp_path: Path) -> None:
    assert own_server.publish(good("alpha", 1)).status_code == 200
    eventually(lambda: own_server.bundle("production.wasm").status_code == 200)
    (tmp_path / "token").write_text(own_server.tokens["reader"])
    trust = Trust(own_server.home / "trusted.pub", "production.wasm", SIGN_AGAIN_HOURS * 2)
    address = f"{own_server.url}/bundles/production.wasm"

    def started(place: str) -> Downloaded:
        return Downloaded(address, tmp_path / place, trust, tmp_path / "token")

    def revision() -> str:
        return str(read_manifest(unpack(own_server.bundle("production.wasm").content))["revision"])

    with closing(started("before")) as own, opa(own_server, "opa.yaml", tmp_path / "shared", "reader") as other:
        eventually(lambda: lent(own) == lent(other) == (True, 1))
        before = revision()
        own_server.stop()
        spoil(own_server, lambda content, name: pack(own_server.key.sign(unpack(content), scope(name), 10**9)))
        own_server.start()
        eventually(lambda: own_server.bundle("production.wasm").status_code == 200 and fresh(own_server))
        with closing(started("after")) as late:
            assert lent(late) == lent(own) == lent(other) == (True, 1)
        assert revision() == before
        assert own_server.publish(good("alpha", 2, "other")).status_code == 200
        eventually(lambda: lent(own) == lent(other) == (False, 2))


def spoil(server: Server, change: Callable[[bytes, str], bytes]) -> None:
    engine = connect(server.database)
    with Session(engine) as session:
        for bundle in session.scalars(select(Bundle)):
            bundle.content, bundle.etag = change(bundle.content, bundle.name), f'"old {bundle.name}"'
        session.execute(update(Bundle).values(signed_at=LONG_AGO))
        session.commit()
    engine.dispose()


def fresh(server: Server) -> bool:
    """Whether the server hands out what was signed today."""
    for name in ("production", "production.wasm", NAME):
        said = TrustedKeys.of([server.key.public]).verify(unpack(server.bundle(name).content), scope(name))
        if (said.issued_at or 0) < datetime.now(UTC).timestamp() - 86_400:
            return False
    return True
