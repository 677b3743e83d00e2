"""Each class of Airflow's rows has an owner, or a reason to be without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from airflow_team_authz.doors import owned_rows


def test_each_mapped_class_has_an_owner_or_a_reason() -> None:
    classes = set(owned_rows.mapped_classes())
    assert classes - owned_rows.OWNED.keys() - owned_rows.UNOWNED.keys() == set()


def test_the_owned_classes_are_known_also_where_nobody_has_imported_them_yet(tmp_path: Path) -> None:
    """As in a server that starts, and imports a route's models when it makes the route."""
    code = "from airflow_team_authz.doors.owned_rows import OWNED, owned_tables\n"
    code += "print(*sorted(OWNED.keys() - {entity.__name__ for entity in owned_tables().values()}))"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"AIRFLOW_HOME": str(tmp_path)}, check=True, capture_output=True
    )
    # Airflow 3.2 has fewer.
    assert told.stdout.decode().splitlines()[-1].split() == sorted(
        owned_rows.OWNED.keys() - owned_rows.mapped_classes().keys()
    )


def test_no_class_with_a_dag_a_team_or_a_bundle_is_unowned_without_a_reason() -> None:
    named = {
        name
        for name, entity in owned_rows.mapped_classes().items()
        if {"dag_id", "target_dag_id", "ti_id", "dag_run_id", "asset_id"} & {c.key for c in entity.__table__.columns}
    }
    assert named - owned_rows.OWNED.keys() == set()
