"""The server's database: its tables, how long it is waited for, and what is told and kept of it."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from airflow_team_authz.bundles.artifact import build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.server.app import _tell_errors
from airflow_team_authz.server.database import Base, Package, connect, migrate
from airflow_team_authz.server.metrics import Counting
from airflow_team_authz.server.releases import Releases
from tests.server.conftest import good
from tests.support.postgres import Postgres


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_migrations_make_the_tables_of_the_models(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db" if kind == "sqlite" else request.getfixturevalue("postgres").url
    engine = connect(url)
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


@pytest.mark.timeout(30)
def test_a_database_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_team_authz.server.database._GONE_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = connect(f"postgresql+psycopg2://nobody@127.0.0.1:{silent.getsockname()[1]}/x")
        with pytest.raises(OperationalError, match="timeout expired"):
            engine.connect()


def test_a_server_that_is_stopped_in_a_transaction_does_not_hold_up_others(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_team_authz.server.database._IDLE_SECONDS", 1)
    engine = connect(postgres.url)
    with engine.connect() as stopped, engine.connect() as other:
        stopped.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        time.sleep(1.3)
        other.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        stopped.invalidate()
    engine.dispose()


def test_a_new_file_is_its_owners(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/new.db")
    migrate(engine)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    engine.dispose()
    with pytest.raises(OperationalError):
        connect(f"sqlite:///{tmp_path}/nothing/new.db").connect()


def test_another_package_under_the_same_version_is_read_again(tmp_path: Path) -> None:
    """As after a database was restored while the server runs."""
    engine = connect(f"sqlite:///{tmp_path}/new.db")
    migrate(engine)
    publishing = Releases(engine, SigningKey.new(), ["production"], None, lambda: None)
    for connection in ("one", "two"):
        artifact = good("alpha", 1, connection)
        with Session(engine) as session:
            content = build_artifact(artifact, SigningKey.new())
            kept = {"digest": artifact.digest, "content": content, "actor": "a test", "at": datetime.now(UTC)}
            session.merge(Package(owner="alpha", version=1, **kept))
            session.commit()
        assert publishing.files("alpha", 1) == artifact.files
    engine.dispose()


def test_an_unexpected_error_tells_no_details() -> None:
    app = FastAPI()

    @app.get("/")
    def breaks() -> None:
        raise ValueError("a secret")

    _tell_errors(app, Counting())

    async def ask() -> httpx.Response:
        there = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=there, base_url="http://server") as client:
            return await client.get("/")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "something went wrong in the server: its log says what"},
    )
