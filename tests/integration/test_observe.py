"""``mode = observe`` on a running Airflow: FAB decides, and not one answer differs from those without the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.airflow import Settings
from tests.support.fab_site import FabSite
from tests.support.plain_site import PlainSite, check_that_only_observes

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(2400)]

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


class PlainFab(PlainSite, FabSite):
    """FAB has no teams."""

    manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    strangers = ("nil", "vic")

    def login_settings(self) -> Settings:
        """See ``Site``."""
        return {}

    def write_dags(self, folder: Path) -> list[dict[str, Any]]:
        """See ``Site``."""
        return [
            {name: value for name, value in bundle.items() if name != "team_name"}
            for bundle in super().write_dags(folder)
        ]

    def create_people(self) -> None:
        """Also 30 people, each with a role of their own."""
        super().create_people()
        done = self.airflow.attempt("-c", _CREATE_ROLES, str(ROLES), self.passwords["ann"])
        assert done.returncode == 0, done.stdout + done.stderr
        self.passwords |= dict.fromkeys([f"p{number:02}" for number in range(ROLES)], self.passwords["ann"])


def test_not_one_answer_of_fab_differs_while_the_policy_observes(tmp_path: Path) -> None:
    found = check_that_only_observes(PlainFab(tmp_path), tmp_path)
    assert found.found.has("gained")
    assert found.found.has("lost")
    people = {who.name for change in found.found.changes for who in change.whos}
    assert {"user ann", "user una"} <= people
    assert sum(f"user p{number:02}" in people for number in range(ROLES)) > ROLES / 2
