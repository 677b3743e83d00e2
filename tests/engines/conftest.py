"""The fake OPA, and decision points over it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_team_authz.engines import DecisionPoint
from airflow_team_authz.engines.opa_server import OpaServer
from tests.support.fake_opa import DEADLINE_MS, Connect, FakeOpa


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeOpa]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fake.sock"))
        yield FakeOpa(listener)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Decision points over ``OpaServer``, with its arguments; closed in the end."""
    opened: list[DecisionPoint] = []

    def connect(*arguments: object, **more: object) -> DecisionPoint:
        opened.append(DecisionPoint(OpaServer(*arguments, **more)))  # type: ignore[arg-type]
        return opened[-1]

    yield connect
    for decisions in opened:
        decisions.close()


@pytest.fixture
def decisions(fake: FakeOpa, connect: Connect) -> DecisionPoint:
    return connect(fake.url, DEADLINE_MS)
