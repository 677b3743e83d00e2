"""The worlds, each built and started once for all tests that use them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.support.postgres import programs
from tests.worlds.databases import PostgresDatabases
from tests.worlds.exceptions import Table
from tests.worlds.site import Worlds

# Where the exhaustive form runs: every combination.
CELLS = (("sqlite", "postgres"), ("in_process", "opa"), ("simple", "fab"))


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where worlds are: in ``WORLDS``, a directory of the environment, they are kept for the next run."""
    kept = os.environ.get("WORLDS")
    return lambda name: Path(kept) / name if kept else tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="package")
def worlds(home: Callable[[str], Path]) -> Iterator[Worlds]:
    """On SQLite, with the policy in process and SimpleAuthManager's people."""
    yield from _running(Worlds(home("sqlite-simple")))


@pytest.fixture(scope="package")
def concealing(worlds: Worlds) -> Iterator[Worlds]:
    """Other servers on the same databases, and no refusal says whose something is: to be used after the others."""
    yield from _running(Worlds(worlds.home, refusals="conceal"))


@pytest.fixture(scope="package", params=["-".join(cell) for cell in product(*CELLS)])
def each_worlds(request: pytest.FixtureRequest, home: Callable[[str], Path]) -> Iterator[Worlds]:
    """On each database with each engine, logged in by each login manager."""
    database, engine, login = request.param.split("-")
    if request.param == "sqlite-in_process-simple":
        yield request.getfixturevalue("worlds")
        return
    if database == "postgres" and programs() is None:
        missing = "PostgreSQL is not on this machine: apt-get install postgresql"
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    where = home(request.param)
    databases = PostgresDatabases(where) if database == "postgres" else None
    yield from _running(Worlds(where, login, engine == "opa", databases))


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
