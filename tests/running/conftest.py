"""Running Airflows: API server, scheduler, Dag processor and triggerer; each started once for all tests that use it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from demo.running import RunningSite
from tests.support.postgres import Postgres, programs


@pytest.fixture(scope="package")
def site_in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """On SQLite, with the policy in its processes."""
    yield from _running(RunningSite(tmp_path_factory.mktemp("running")))


@pytest.fixture(scope="package")
def site_with_opa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """On PostgreSQL, with an OPA server."""
    if programs() is None:
        missing = "PostgreSQL is not on this machine: apt-get install postgresql"
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    home = tmp_path_factory.mktemp("running")
    postgres = Postgres(home / "postgres")
    try:
        postgres.start()
        yield from _running(RunningSite(home, opa_server=True, database=postgres.url))
    finally:
        postgres.stop()


@pytest.fixture(params=["site_in_process", pytest.param("site_with_opa", marks=pytest.mark.exhaustive)])
def site(request: pytest.FixtureRequest) -> RunningSite:
    """Both databases and both engines."""
    running: RunningSite = request.getfixturevalue(request.param)
    return running


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
