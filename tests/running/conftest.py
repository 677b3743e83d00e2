"""Running Airflows: API server, scheduler, Dag processor and triggerer; each started once for all tests that use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.running import RunningSite
from tests.running.postgres import Postgres, programs

SITES = ("SQLite and in process", "PostgreSQL and an OPA server")


@pytest.fixture(scope="session", params=SITES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """Both databases and both engines."""
    home = tmp_path_factory.mktemp("running")
    if request.param == SITES[0]:
        yield from _running(RunningSite(home))
        return
    if programs() is None:
        missing = "PostgreSQL is not on this machine: apt-get install postgresql"
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    postgres = Postgres(home / "postgres")
    try:
        postgres.start()
        yield from _running(RunningSite(home, opa_server=True, database=postgres.url))
    finally:
        postgres.stop()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """The same without this package having a say."""
    yield from _running(RunningSite(tmp_path_factory.mktemp("alone"), guarded=False))


def _running(site: RunningSite) -> Iterator[RunningSite]:
    try:
        site.start()
        site.begin_to_run()
        yield site
    finally:
        site.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What a task waits for."""
    return tmp_path / "go on"
