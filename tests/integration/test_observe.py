"""``mode = observe`` on a running Airflow: FAB decides, and not one answer differs from those without the package."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_team_authz.decision_log.reading import InFile, Wanted
from airflow_team_authz.model import Resource
from airflow_team_authz.review import recorded
from airflow_team_authz.review.changes import Difference
from airflow_team_authz.review.proposal import PLACE, propose
from airflow_team_authz.review.recorded import LogDifferences
from demo.airflow import Settings
from tests.conftest import write
from tests.integration.routes import routes
from tests.support.fab_site import FabSite

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(2400)]

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
_BANNER = re.compile(r'\{"text":"FabAuthManager decides\. [^}]*\}')
_GROWING = ("/eventLogs", "/jobs", "/monitor", "/event")


# Roles as companies make them: some rights on some kinds of things, in no order.
ROLES = 30
_CREATE_ROLES = """
import random, sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

count, password, random = int(sys.argv[1]), sys.argv[2], random.Random(7)
ACTIONS = ("can_read", "can_edit", "can_create", "can_delete", "menu_access")
with get_application_builder() as builder:
    manager = builder.sm
    kinds = (
        "Assets", "Audit Logs", "Connections", "DAG Code", "DAG Runs", "DAG Warnings", "DAGs", "ImportError", "Jobs",
        "Pools", "Providers", "Task Instances", "Task Logs", "Variables", "Website", "XComs")
    for number in range(count):
        role = manager.add_role(f"role {number:02}")
        for kind in random.sample(kinds, random.randint(2, 10)):
            for action in random.sample(ACTIONS, random.randint(1, 3)):
                permission = manager.create_permission(action, kind)
                manager.add_permission_to_role(role, permission)
        name = f"p{number:02}"
        held = [role, *([manager.find_role("Viewer")] if number % 3 == 0 else [])]
        assert manager.add_user(name, name, name, f"{name}@example.org", held, password), name
"""


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
        done = self.airflow.attempt("-c", _CREATE_ROLES, str(ROLES), self.passwords["ann"])
        assert done.returncode == 0, done.stdout + done.stderr
        self.passwords |= dict.fromkeys([f"p{number:02}" for number in range(ROLES)], self.passwords["ann"])
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
        for name in self.passwords:
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
    try:
        site.prepare()
        without = site.answers()
        site.end()
        observed, found = observe(site, tmp_path / "observed.ndjson")
        assert "OBSERVING: FabAuthManager decides" in site.airflow.log()
        assert without.keys() == observed.keys()
        assert len(without) > 3000
        assert Counter(status for status, _ in without.values()).keys() >= {200, 403}
        # The only difference is what tells people so.
        told = {asked: text for asked, (_, text) in observed.items() if _BANNER.search(text)}
        assert {path for _, _, path in told} == {"/ui/config"}
        observed |= {asked: (200, _BANNER.sub("", text)) for asked, text in told.items()}
        assert {asked: (was, observed[asked]) for asked, was in without.items() if was != observed[asked]} == {}
        assert found.found.has("gained")
        assert found.found.has("lost")
        people = {who.name for change in found.found.changes for who in change.whos}
        assert {"user ann", "user una", *(f"user p{number:02}" for number in range(ROLES))} <= people

        # The rules that the report proposes make the policy answer as FAB does.
        proposal = propose((one for change in found.found.changes for one in change.every), by_person=True)
        write(site.policy, {PLACE: proposal.text})
        after, remaining = observe(site, tmp_path / "with_rules.ndjson")
    finally:
        with suppress(Exception):
            site.end()
    after = {asked: (status, _BANNER.sub("", text)) for asked, (status, text) in after.items()}
    assert after == observed
    assert len(proposal.remaining) < found.found.different / 20
    assert set(left(remaining)) <= set(left_of(proposal.remaining))


def left(found: LogDifferences) -> Iterator[tuple[str, str, Resource]]:
    """Who, what and about which resource."""
    return left_of(one for change in found.found.changes for one in change.every)


def left_of(differences: Iterable[Difference]) -> Iterator[tuple[str, str, Resource]]:
    for one in differences:
        yield one.question.subject.id, one.asked.action, one.resource


def observe(site: PlainFab, log: Path) -> tuple[dict[tuple[str, str, str], tuple[int, str]], LogDifferences]:
    """The answers of a site that observes, and the differences in the log."""
    configuration = site.airflow.home / "airflow.cfg"
    before = configuration.read_text().partition("\n[team_authz]\n")[0]
    configuration.write_text(before + OBSERVING.format(policy=site.policy, log=log))
    site.begin()
    try:
        answers = site.answers()
        told = Wanted(shadow=True)
        counted = -1
        while (now := sum(1 for _ in InFile(log).each(told)) if log.exists() else 0) != counted:
            counted = now
            threading.Event().wait(5)
    finally:
        site.end()
    found = recorded.beside(InFile(log).each(Wanted(shadow=True)), "observe", by_person=True)
    assert not found.failed
    assert not found.left_out
    assert not re.findall("could not be (?:asked|observed|recorded)", site.airflow.log())
    assert all(record["custom"]["outcome"] == "observe" for record in InFile(log).each(Wanted(shadow=True)))
    return answers, found
