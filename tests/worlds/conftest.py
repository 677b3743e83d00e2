"""The worlds, each built and started once for all tests that use them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.running.postgres import programs
from tests.worlds.databases import PostgresDatabases
from tests.worlds.exceptions import Table
from tests.worlds.site import Worlds


@pytest.fixture(scope="package")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """On SQLite, with the policy in process and SimpleAuthManager's people."""
    yield from _running(Worlds(tmp_path_factory.mktemp("worlds")))


@pytest.fixture(scope="package")
def concealing(worlds: Worlds) -> Iterator[Worlds]:
    """Other servers on the same databases, and no refusal says whose something is: to be used after the others."""
    yield from _running(Worlds(worlds.home, refusals="conceal"))


@pytest.fixture(scope="package", params=["simple", "fab"])
def large_worlds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """On PostgreSQL, with an OPA server, and each login manager's people."""
    if programs() is None:
        missing = "PostgreSQL is not on this machine: apt-get install postgresql"
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    home = tmp_path_factory.mktemp("worlds")
    yield from _running(Worlds(home, request.param, opa_server=True, databases=PostgresDatabases(home)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """Airflow without this package."""
    yield from _running(Worlds(tmp_path_factory.mktemp("alone"), guarded=False))


@pytest.fixture(scope="package")
def table() -> Table:
    """The exceptions, which remember that they were needed."""
    return Table()


def _running(worlds: Worlds) -> Iterator[Worlds]:
    try:
        worlds.start()
        yield worlds
    finally:
        worlds.stop()
