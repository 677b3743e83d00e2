"""Real Airflows, each started once for all tests that use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.airflow import Settings
from demo.site import Site
from tests.support.fab_site import FabSite


class Recording(Site):
    """The same, with each sink of the decision log."""

    def guarding_settings(self) -> Settings:
        settings = super().guarding_settings()
        # A busy machine is no reason for an answer of its own.
        more = {"decision_log": "database, file, log"} | ({"deadline_ms": "2000"} if self.opa else {})
        return {**settings, "team_authz": {**settings["team_authz"], **more}}


ENGINES = {"in process": False, "OPA server": True}


@pytest.fixture(scope="session", params=ENGINES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The demonstration's site, with one engine after the other."""
    yield from _running(Recording(tmp_path_factory.mktemp("site"), ENGINES[request.param]))


@pytest.fixture(scope="session")
def fab_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same with the people of the FAB auth manager."""
    yield from _running(FabSite(tmp_path_factory.mktemp("fab")))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for an Airflow of one test's own."""
    return tmp_path / "airflow"


def _running(site: Site) -> Iterator[Site]:
    try:
        site.start()
        for dag_id in ("alpha_daily", "beta_daily"):
            run = site.client("pat").post(
                f"/api/v2/dags/{dag_id}/dagRuns", json={"logical_date": "2026-01-01T00:00:00Z"}
            )
            assert run.status_code == 200, run.text
        yield site
    finally:
        site.stop()
