"""``mode = observe`` on a running Airflow: FAB decides, and not one answer differs from those without the package."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.decision_log.reading import InFile, Wanted
from airflow_team_authz.review import recorded
from demo.airflow import Settings
from tests.conftest import eventually
from tests.integration.routes import routes
from tests.support.fab_site import PEOPLE, FabSite

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
OBSERVING = """
[team_authz]
mode = observe
policy = {policy}
decision_log = file
decision_log_file = {log}
"""
# What tells the time, how often something was asked, or which process answers.
_PASSING = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|\+00:00)?|(?<=\"id\": )\d+|(?<=\"id\":)\d+|csrf_token[^>]*>|nonce-\S+"
)
_GROWING = ("/eventLogs", "/jobs", "/monitor", "/event")


class PlainFab(FabSite):
    """FAB decides, and nobody has configured this package."""

    def guarding_settings(self) -> Settings:
        return {"core": {"auth_manager": FAB}}

    def login_settings(self) -> Settings:
        return {}

    def write_dags(self, folder: Path) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in bundle.items() if name != "team_name"}
            for bundle in super().write_dags(folder)
        ]

    def prepare(self) -> None:
        """Make the database, the people and what there is."""
        self.airflow.run("db", "migrate")
        self.airflow.run("dags", "reserialize")
        self.create_people()
        self.begin()
        for path, body in (
            ("connections", {"connection_id": "alpha_db", "conn_type": "sqlite"}),
            ("variables", {"key": "alpha_config", "value": "1"}),
            ("pools", {"name": "alpha_production", "slots": 4}),
        ):
            assert self.client("pat").post(f"/api/v2/{path}", json=body).status_code == 201

    def begin(self) -> None:
        """Start the server, and log everybody in."""
        self.airflow.start()
        self._clients = {name: self.airflow.login(name, password) for name, password in self.passwords.items()}

    def end(self) -> None:
        """Stop the server."""
        for client in self._clients.values():
            client.close()
        self.airflow.stop()

    def answers(self) -> dict[tuple[str, str, str], tuple[int, str]]:
        """What everybody gets by every reading route, what those who may nothing get by any, and what changes say."""
        found: dict[tuple[str, str, str], tuple[int, str]] = {}
        asked = routes(self.client("pat"))
        for name in PEOPLE:
            for route in asked:
                if route.method == "GET" or name in {"nil", "vic"}:
                    answer = self.client(name).request(route.method, route.path, json=route.body)
                    is_same = not any(part in route.path for part in _GROWING)
                    text = _PASSING.sub("…", answer.text) if is_same else ""
                    found[name, route.method, route.path] = answer.status_code, text
            of_it = f"/api/v2/variables/of_{name}"
            body = {"key": f"of_{name}", "value": "1"}
            for method, path in (("POST", "/api/v2/variables"), ("PATCH", of_it), ("DELETE", of_it)):
                answer = self.client(name).request(method, path, json=None if method == "DELETE" else body)
                found[name, method, path] = answer.status_code, _PASSING.sub("…", answer.text)
        return found


def test_not_one_answer_of_fab_differs_while_the_policy_observes(tmp_path: Path) -> None:
    site = PlainFab(tmp_path)
    log = tmp_path / "observed.ndjson"
    try:
        site.prepare()
        without = site.answers()
        site.end()
        with (site.airflow.home / "airflow.cfg").open("a") as file:
            file.write(OBSERVING.format(policy=site.policy, log=log))
        site.begin()
        observed = site.answers()
        assert "OBSERVING: FabAuthManager decides" in site.airflow.log()
        told = Wanted(shadow=True)
        eventually(lambda: log.exists() and any(True for _ in InFile(log).each(told)))
    finally:
        with suppress(Exception):
            site.end()
    assert without.keys() == observed.keys()
    assert len(without) > 800
    assert Counter(status for status, _ in without.values()).keys() >= {200, 403}
    differing = {asked: (before, observed[asked]) for asked, before in without.items() if before != observed[asked]}
    assert differing == {}
    found = recorded.beside(InFile(log).each(Wanted(shadow=True)), "observe", by_person=True)
    assert not found.failed
    assert found.found.has("gained") or found.found.has("lost")
    assert not re.findall("could not be (?:asked|observed|recorded)", site.airflow.log())
    people = {who.name for change in found.found.changes for who in change.whos}
    assert {"user ann", "user una"} <= people
    assert all(record["custom"]["outcome"] == "observe" for record in InFile(log).each(Wanted(shadow=True)))
