"""What the commands of an access review take: ``who-can``, ``can``, ``matrix`` and ``impact``, as people run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import write_policies
from demo.process import environment

PEOPLE, TEAMS = 1_000, 50
# Connections, variables and pools: 10,000 resources.
CONNECTIONS, VARIABLES, POOLS = 5_000, 4_000, 1_000
# So many teams have about a million questions of each kind of subject, action and resource.
TEAMS_OF_IMPACT = 80


def comparisons(home: Path, _: Namespace) -> Iterator[dict[str, Any]]:
    """People and resources of one Airflow, and a change of the policy of many teams."""
    yield from _inventory(home / "inventory")
    yield from _impact(home / "impact")


def _inventory(home: Path) -> Iterator[dict[str, Any]]:
    policy = _teams(home / "policies", TEAMS)
    people = ",".join(f"user{number}:op:team{number % TEAMS}" for number in range(PEOPLE))
    variables = environment(AIRFLOW_HOME=str(home), PYTHONPATH=str(Path.cwd())) | {
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": people,
        "AIRFLOW__TEAM_AUTHZ__POLICY": str(policy),
        "AIRFLOW__TEAM_AUTHZ__DECISION_LOG": "none",
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=variables, check=True, capture_output=True)
    fill = [sys.executable, "-c", "from benchmarks.review import fill; fill()"]
    subprocess.run(fill, env=variables, check=True)
    title = f"{PEOPLE:,} people and {CONNECTIONS + VARIABLES + POOLS:,} resources of {TEAMS} teams"
    commands = {
        "who-can read connection/connection7": "below 10,000,000 µs",
        "can user7": "",
        "matrix --type pool --output csv --out matrix.csv": "",
    }
    for command, goal in commands.items():
        yield _timed(title, command.split(), home, variables, goal)


def fill() -> None:
    """Write the resources into the database that the environment names."""
    from airflow.models.connection import Connection
    from airflow.models.pool import Pool
    from airflow.models.team import Team
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session
    from sqlalchemy import insert

    def team(number: int) -> str:
        return f"team{number % TEAMS}"

    rows: dict[Any, list[dict[str, Any]]] = {
        Team: [{"name": team(number)} for number in range(TEAMS)],
        Connection: [
            {"conn_id": f"connection{number}", "conn_type": "http", "team_name": team(number)}
            for number in range(CONNECTIONS)
        ],
        Variable: [{"key": f"variable{number}", "_val": "", "team_name": team(number)} for number in range(VARIABLES)],
        Pool: [
            {"pool": f"pool{number}", "slots": 1, "include_deferred": False, "team_name": team(number)}
            for number in range(POOLS)
        ],
    }
    with create_session() as session:
        for model, values in rows.items():
            session.execute(insert(model), values)


def _teams(directory: Path, teams: int) -> Path:
    """The packages of so many teams, as a policy directory of the platform."""
    shutil.rmtree(write_policies(directory, teams) / "airflow")
    return directory


def _impact(home: Path) -> Iterator[dict[str, Any]]:
    old = _teams(home / "old", TEAMS_OF_IMPACT)
    new = home / "new"
    shutil.copytree(old, new)
    changed = new / "teams" / "team7" / "team.rego"
    changed.write_text(f'{changed.read_text()}\nallow contains "open" if input.action == "read"\n')
    title = f"impact of one team's change among {TEAMS_OF_IMPACT} teams"
    yield _timed(title, ["impact", "old", "new"], home, environment(AIRFLOW_HOME=str(home)), "below 60,000,000 µs")


def _timed(title: str, command: list[str], place: Path, variables: Mapping[str, str], goal: str) -> dict[str, Any]:
    """The time of a command from its start to its end, with its memory and the last line that it prints."""
    began = time.perf_counter()
    printed = place / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow_team_authz.cli", *command],
            cwd=place, env={**variables}, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
    taken = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {printed.read_text()[-2000:]}")
    questions = next((line for line in printed.read_text().splitlines() if "questions have" in line), "")
    what = f"{' '.join(command)}: {used.ru_maxrss >> 10} MiB {questions}".strip()
    return {"comparison": title, "what": what, "value": round(taken * 1e6), "ratio": 1, "goal": goal}
