"""The memory of an API server over hours: 4 workers, 1,000 teams, hundreds of people, beside SimpleAuthManager's."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
from rich.console import Console

from benchmarks.doors import ALONE, OURS, SIMPLE
from benchmarks.harness import policy_with_data
from benchmarks.site import NOW, Size, fill
from demo.airflow import Airflow, merged

WORKERS = 4
SIZE = Size(
    teams=1_000,
    dags_of_a_team=5,
    runs_of_a_dag=2,
    runs_with_tasks=1,
    audit_rows_of_a_dag=2,
    audit_rows_of_no_dag=1_000,
    import_errors=500,
    connections_of_a_team=2,
)
# How many connections the data of each team's package names.
LENT = 100
PEOPLE = 400
TASKS = 40
# To each of the servers.
REQUESTS_A_SECOND = 4
MOST_AT_ONCE = 12
LOOK_SECONDS = 60
GOAL = "150 MB more"
MEASURE = "an API server's memory"
_SEED = 16
_VALID_SECONDS = 7 * 24 * 3600
_DAY = (NOW.replace(hour=0, minute=0, second=0)).isoformat()


class Asked(NamedTuple):
    """A request of somebody: a person, or a task."""

    who: str
    method: str
    path: str
    body: Any = None


class Look(NamedTuple):
    """What the processes of a server have at a moment. Memory that several processes map counts by its share (PSS)."""

    minutes: float
    megabytes: float
    processor_seconds: float


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """The memory of both servers at the start, every five minutes and at the end of so many ``options.memory``."""
    looks = asyncio.run(_measured(home, options.memory))
    for number, (alone, ours) in enumerate(zip(looks[ALONE], looks[OURS], strict=True)):
        if number % 5 == 0 or number == len(looks[ALONE]) - 1:
            title = f"memory of an API server with {WORKERS} workers after {alone.minutes:.0f} minutes"
            yield {
                "comparison": title, "what": ALONE, "value": alone.megabytes, "unit": "MB", "ratio": 1,
                "measure": MEASURE, "who": ALONE, "minutes": alone.minutes,
            }  # fmt: skip
            yield {
                "comparison": title, "what": f"{OURS}, {ours.megabytes - alone.megabytes:+.0f} MB",
                "value": ours.megabytes, "unit": "MB", "ratio": ours.megabytes / alone.megabytes, "goal": GOAL,
                "measure": MEASURE, "who": OURS, "minutes": ours.minutes,
            }  # fmt: skip
    for name, of_one in looks.items():
        yield {
            "comparison": "processor time meanwhile", "what": name, "unit": "s",
            "value": of_one[-1].processor_seconds - of_one[0].processor_seconds,
            "ratio": (of_one[-1].processor_seconds - of_one[0].processor_seconds)
            / (looks[ALONE][-1].processor_seconds - looks[ALONE][0].processor_seconds),
        }  # fmt: skip


async def _measured(home: Path, minutes: float) -> dict[str, list[Look]]:
    from tests.support.postgres import Postgres

    database = Postgres(home / "postgres")
    servers: dict[str, Airflow] = {}
    try:
        database.start()
        servers = _servers(home, database.url)
        tokens = _tokens(servers[ALONE])
        with ThreadPoolExecutor() as together:
            list(together.map(lambda server: server.start(), servers.values()))
        return await _under_load(servers, tokens, minutes)
    finally:
        for server in servers.values():
            server.stop()
        database.stop()


def _servers(home: Path, url: str) -> dict[str, Airflow]:
    """Two API servers that are alike, each with a database of its own."""
    import psycopg2
    from cryptography.fernet import Fernet

    policies = policy_with_data(home / "policies", SIZE.teams, LENT)
    basics = {
        "core": {"multi_team": "True", "auth_manager": SIMPLE, "fernet_key": Fernet.generate_key().decode()},
        "database": {"sql_alchemy_conn": url},
        "api": {"secret_key": "s" * 32},
        "api_auth": {"jwt_secret": "s" * 64, "jwt_expiration_time": str(_VALID_SECONDS)},
        "execution_api": {"jwt_expiration_time": str(_VALID_SECONDS)},
        "logging": {"logging_level": "WARNING"},
    }
    ours = {
        "core": {"auth_manager": "airflow_team_authz.TeamAuthManager"},
        "database": {"sql_alchemy_conn": url.rpartition("/")[0] + "/ours"},
        "team_authz": {"policy": str(policies), "state": str(home / "state")},
    }
    servers = {
        ALONE: Airflow(home / "alone", basics, workers=WORKERS),
        OURS: Airflow(home / "ours", merged(basics, ours), workers=WORKERS),
    }
    fill(SIZE, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url, "AIRFLOW_HOME": str(home / "alone"), **_path()})
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE ours TEMPLATE postgres")
    connection.close()
    for server in servers.values():
        server.run("db", "migrate")
    return servers


def _path() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


def _tokens(server: Airflow) -> dict[str, str]:
    done = server.attempt("-c", "from benchmarks.memory import print_tokens\nprint_tokens()")
    if done.returncode:
        raise SystemExit(done.stderr)
    tokens: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return tokens


def print_tokens() -> None:
    """Tokens of all people and of some tasks; both servers take them, since they have the same secret."""
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.execution_api import app as execution_api
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    manager, generator = create_auth_manager(), execution_api._jwt_generator()
    tokens = {}
    for number in range(PEOPLE):
        role, teams = _person(number)
        user = SimpleAuthManagerUser(username=f"person{number}", role=role, teams=teams)
        tokens[f"person{number}"] = manager.generate_jwt(user)
    with create_session() as session:
        for number in range(TASKS):
            task = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == f"team{number}_dag0")).first()
            assert task is not None
            tokens[f"task{number}"] = generator.generate({"sub": str(task.id), "scope": "execution"})
    print(json.dumps(tokens))


def _person(number: int) -> tuple[str, list[str]]:
    """Role and teams: most look on or work in one team, some operate three, one of a hundred administers all."""
    teams = [f"team{(7 * number + other) % SIZE.teams}" for other in range(3 if number % 10 == 9 else 1)]
    if number % 100 == 50:
        return "admin", []
    return ("viewer", "viewer", "viewer", "user", "op")[number % 5], teams


def _requests(seed: int) -> Iterator[Asked]:
    """What people and tasks ask for, for ever; the same for the same seed."""
    # Not for secrets.
    chance = random.Random(seed)  # noqa: S311
    while True:
        number = chance.randrange(PEOPLE)
        who, (_, teams) = f"person{number}", _person(number)
        team = chance.choice(teams or ["team1"])
        other = f"team{chance.randrange(SIZE.teams)}"
        kind = chance.choices(list(_KINDS), weights=list(_KINDS.values()))[0]
        if kind == "task":
            number = chance.randrange(TASKS)
            owner = chance.choice([f"team{number}", other])
            yield Asked(f"task{number}", "GET", f"/execution/variables/{owner}_variable0")
        else:
            method, path, body = chance.choice(list(_asked(kind, team, other)))
            yield Asked(who, method, path, body)


_KINDS = {"page": 50, "list": 15, "one thing": 20, "refused": 10, "task": 5}


def _asked(kind: str, team: str, other: str) -> Iterator[tuple[str, str, Any]]:
    dag = f"{team}_dag0"
    match kind:
        case "page":
            dags = {"limit": 50, "order_by": "dag_display_name", "exclude_stale": "true", "dag_runs_limit": 14}
            yield "GET", "/ui/config", None
            yield "GET", "/ui/auth/menus", None
            yield "GET", "/ui/dashboard/dag_stats", None
            yield "GET", f"/ui/dashboard/historical_metrics_data?{urlencode({'start_date': _DAY})}", None
            yield "GET", f"/ui/dags?{urlencode(dags)}", None
            yield "GET", f"/api/v2/dags/{dag}/details", None
            yield "GET", f"/ui/grid/runs/{dag}?limit=10&order_by=-run_after", None
            yield "GET", f"/ui/grid/structure/{dag}?limit=10&order_by=-run_after", None
            yield "GET", f"/ui/structure/structure_data?dag_id={dag}", None
        case "list":
            for path in (
                "eventLogs", "importErrors", "dags", "dags/~/dagRuns", "dags/~/dagRuns/~/taskInstances", "connections",
                "variables", "pools", "assets",
            ):  # fmt: skip
                yield "GET", f"/api/v2/{path}?limit=50", None
        case "one thing":
            for owner in (team, other):
                yield "GET", f"/api/v2/dags/{owner}_dag1", None
                yield "GET", f"/api/v2/connections/{owner}_connection1", None
                yield "GET", f"/api/v2/variables/{owner}_variable1", None
                yield "GET", f"/api/v2/pools/{owner}_pool", None
        case _:
            # Of others, so that nobody but an administrator may.
            yield "PATCH", f"/api/v2/dags/{other}_dag2", {"is_paused": False}
            yield "POST", f"/api/v2/dags/{other}_dag2/clearTaskInstances", {"dry_run": True}
            yield "PATCH", f"/api/v2/variables/{other}_variable0", {"key": f"{other}_variable0", "value": "1"}
            yield "POST", "/api/v2/connections/test", {"connection_id": f"{other}_connection0", "conn_type": "x"}


async def _under_load(servers: Mapping[str, Airflow], tokens: dict[str, str], minutes: float) -> dict[str, list[Look]]:
    console = Console(stderr=True)
    began = time.monotonic()
    looks: dict[str, list[Look]] = {name: [] for name in servers}
    statuses: dict[str, Counter[str]] = {name: Counter() for name in servers}

    def look() -> None:
        for name, server in servers.items():
            looks[name].append(_look((time.monotonic() - began) / 60, server.pid))
        told = ", ".join(f"{name}: {of_one[-1].megabytes:.0f} MB" for name, of_one in looks.items())
        console.print(f"{looks[ALONE][-1].minutes:.0f} minutes: {told}")

    look()
    loads = [
        asyncio.create_task(_load(server.url, tokens, began + 60 * minutes, statuses[name]))
        for name, server in servers.items()
    ]
    while not all(load.done() for load in loads):
        await asyncio.wait(loads, timeout=LOOK_SECONDS)
        look()
    for load in loads:
        load.result()
    for name, counted in statuses.items():
        console.print(f"{name}: {dict(sorted(counted.items()))}")
    return looks


async def _load(url: str, tokens: dict[str, str], until: float, statuses: Counter[str]) -> None:
    """Requests at an even pace, some at the same time; those that a slow server has no time for are left out."""
    places = asyncio.Semaphore(MOST_AT_ONCE)
    running = set[asyncio.Task[None]]()
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as client:
        for asked in _requests(_SEED):
            if time.monotonic() > until:
                break
            if places.locked():
                statuses["left out"] += 1
            else:
                sent = asyncio.create_task(_send(client, asked, tokens[asked.who], places, statuses))
                running.add(sent)
                sent.add_done_callback(running.discard)
            await asyncio.sleep(1 / REQUESTS_A_SECOND)
        await asyncio.gather(*running)


async def _send(
    client: httpx.AsyncClient, asked: Asked, token: str, places: asyncio.Semaphore, statuses: Counter[str]
) -> None:
    async with places:
        try:
            answer = await client.request(
                asked.method, asked.path, json=asked.body, headers={"Authorization": f"Bearer {token}"}
            )
            statuses[str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1


def _look(minutes: float, pid: int) -> Look:
    kibibytes, ticks = 0, 0
    for process in _family(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            told = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            kibibytes += sum(int(line.split()[1]) for line in told if line.startswith("Pss:"))
            ticks += sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return Look(minutes, kibibytes * 1024 / 1e6, ticks / os.sysconf("SC_CLK_TCK"))


def _family(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield pid
    with suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
