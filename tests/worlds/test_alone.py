"""What Airflow alone tells and lets happen, with SimpleAuthManager and teams: the same requests."""

from __future__ import annotations

import pytest

from tests.worlds.attempts import reads, writes
from tests.worlds.compare import by_route
from tests.worlds.site import Worlds

pytestmark = [pytest.mark.timeout(1800), pytest.mark.comparison]

# Some of the routes that answer differently, and of the tables that are changed.
_TELL = {"GET /api/v2/assets", "GET /api/v2/eventLogs", "GET /api/v2/importErrors"}
_CHANGE = {"log"}


def test_what_airflow_alone_tells(alone: Worlds) -> None:
    told = by_route(reads(alone, "bob", brief=False).differences)
    print("\n".join(f"{route}: {found[0]}" for route, found in sorted(told.items())))
    assert set(told) >= _TELL


def test_what_airflow_alone_lets_happen(alone: Worlds) -> None:
    changed = {row.table for person in ("bob", "a task of beta") for row in writes(alone, person).rows}
    print(sorted(changed))
    assert changed >= _CHANGE
