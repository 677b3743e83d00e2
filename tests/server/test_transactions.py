"""A publish is one transaction: of two at once none is lost, and of one that is broken off nothing is left."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from airflow_team_authz.bundles.artifact import build_artifact
from airflow_team_authz.bundles.signing import SigningKey
from airflow_team_authz.server.database import Base
from tests.conftest import REPOSITORY, eventually
from tests.server.conftest import beside, good, running
from tests.server.test_failures import serial
from tests.server.test_publishing import teams_in

TEAMS = [f"team_{number}" for number in range(10)]


def test_two_servers_publish_at_once_and_nothing_is_lost(tmp_path: Path, database: str) -> None:
    with running(tmp_path / "first", database) as first, beside(first) as second:
        signing = SigningKey.new()
        for team_id in TEAMS:
            first.register(team_id, signing.public.pem().decode())

        def publish(number: int) -> Any:
            artifact = good(TEAMS[number], 1)
            return (first, second)[number % 2].publish(artifact, "platform", key=signing)

        with ThreadPoolExecutor(len(TEAMS)) as pool:
            answers = list(pool.map(publish, range(len(TEAMS))))
        assert [answer.status_code for answer in answers] == [200] * len(TEAMS), [answer.text for answer in answers]
        serials = {answer.json()["serial"] for answer in answers}
        assert len(serials) == len(TEAMS)
        for server in (first, second):
            eventually(lambda server=server: serial(server) == max(serials))  # type: ignore[misc]
            assert teams_in(server) == teams_in(server, "production.wasm") == dict.fromkeys(TEAMS, 1)


def tables(database: str) -> dict[str, Any]:
    engine = create_engine(database)
    with engine.connect() as connection:
        rows = {table.name: connection.execute(select(table)).all() for table in Base.metadata.sorted_tables}
    engine.dispose()
    return rows


@pytest.mark.exhaustive
def test_killed_before_any_statement_all_is_as_it_was(tmp_path: Path, database: str) -> None:
    with running(tmp_path / "server", database) as server:
        assert server.publish(good("alpha", 1)).status_code == 200
        server.stop()
        (tmp_path / "artifact").write_bytes(build_artifact(good("alpha", 2), server.keys["alpha"]))
        command = [sys.executable, "-m", "tests.server.dying", server.database, str(server.home / "signing")]
        before = tables(server.database)
        with subprocess.Popen(
            [*command, str(tmp_path / "artifact")],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        ) as dying:  # fmt: skip
            assert dying.stdin is not None
            assert dying.stdout is not None
            for step in count(1):
                dying.stdin.write(f"{step}\n")
                if dying.stdout.readline() == "0\n":
                    break
                assert tables(server.database) == before, step
            dying.stdin.close()
        # Reading what there is, three bundles, and what belongs to them.
        assert step > 12
        server.start()
        eventually(lambda: server.bundle("production").status_code == 200)
        names = ("production", "production.wasm", "production.team.alpha")
        assert len({serial(server, name) for name in names}) == 1
        assert [teams_in(server, name)["alpha"] for name in names] == [2, 2, 2]
        assert server.publish(good("alpha", 3)).status_code == 200
