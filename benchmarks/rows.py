"""What lists of many rows and the UI's pages cost, with and without this package: two API servers on one database."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID, uuid4

from rich.console import Console
from rich.progress import track

from benchmarks.doors import ALONE, OURS, SIMPLE
from benchmarks.harness import compiled, write_policies
from demo.process import environment

TEAMS = 100
DAGS_OF_A_TEAM = 10
RUNS_OF_A_DAG = 100
# Only the newest runs still have their task instances, four each, so that there are as many of them as runs.
RUNS_WITH_TASKS = 25
TASKS = ("extract", "transform", "check", "load")
AUDIT_ROWS_OF_A_DAG = 90
AUDIT_ROWS_OF_NO_DAG = 10_000
IMPORT_ERRORS = 5_000
ASSETS = 500
EVENTS_OF_AN_ASSET = 10

# Of each measurement, the first of which is for the caches: quick requests are asked this often, slow ones at least
# three times and as long as this.
ROUNDS = 12
SECONDS = 1.5
GOAL = "1.1 or less"
PEOPLE: dict[str, tuple[str, list[str]]] = {
    "viewer of a team": ("viewer", ["team0"]),
    "op of two teams": ("op", ["team0", "team1"]),
    "platform admin": ("admin", []),
}
NOW = datetime.now(UTC).replace(microsecond=0)
DAG, RUN = "team0_dag0", "run99"
TEAM_AUTHZ = "airflow_team_authz.TeamAuthManager"
LISTS: dict[str, str | None] = {
    "/api/v2/eventLogs": "-when",
    "/api/v2/importErrors": None,
    "/api/v2/dags/~/dagRuns": "-run_after",
    "/api/v2/dags/~/dagRuns/~/taskInstances": "-start_date",
}


def _lists() -> Iterator[tuple[str, str]]:
    """Each list as the UI asks for it: the first page, a later one, and what is about one Dag."""
    for path, order in LISTS.items():
        sorted_by = {"order_by": order} if order else {}
        yield path, _path(path, limit=50, **sorted_by)
        yield f"{path}, 20th page", _path(path, limit=50, offset=950, **sorted_by)
        if path == "/api/v2/eventLogs":
            yield f"{path} of a Dag", _path(path, limit=50, dag_id=DAG, **sorted_by)
        elif "~" in path:
            yield f"{path} of a Dag", _path(path.replace("~", DAG, 1), limit=50, **sorted_by)


def _pages() -> Iterator[tuple[str, list[str]]]:
    """What the UI asks for when somebody opens a page, as one."""
    day = (NOW - timedelta(days=1)).isoformat()
    dags = {"limit": 50, "order_by": "dag_display_name", "exclude_stale": "true", "dag_runs_limit": 14}
    favorites = {"limit": 10, "is_favorite": "true", "exclude_stale": "true", "dag_runs_limit": 14}
    newest = {"limit": 10, "order_by": "-run_after"}
    yield "every page", ["/ui/config", "/ui/auth/menus", "/ui/auth/me", "/api/v2/version"]
    yield (
        "home",
        [
            "/ui/dashboard/dag_stats",
            _path("/ui/dashboard/historical_metrics_data", start_date=day),
            _path("/ui/dags", **favorites),
            _path("/api/v2/importErrors", limit=1),
            _path("/api/v2/assets/events", limit=6, order_by="-timestamp", timestamp_gte=day),
            "/api/v2/pools",
            "/api/v2/monitor/health",
        ],
    )
    yield "Dags", [_path("/ui/dags", **dags), "/api/v2/dagTags", "/ui/teams"]
    yield (
        "a Dag",
        [
            f"/api/v2/dags/{DAG}/details",
            f"/ui/dags/{DAG}/latest_run",
            _path(f"/ui/grid/runs/{DAG}", **newest),
            _path(f"/ui/grid/structure/{DAG}", **newest),
            _path(f"/ui/grid/ti_summaries/{DAG}", run_ids=RUN),
            _path("/ui/structure/structure_data", dag_id=DAG),
            _path("/api/v2/dagWarnings", dag_id=DAG),
        ],
    )
    yield "assets", [_path("/api/v2/assets", limit=50, order_by="-name")]
    yield "an asset", ["/api/v2/assets/1", _path("/api/v2/assets/events", asset_id=1, limit=50, order_by="-timestamp")]
    yield "dependencies", ["/ui/dependencies"]


def _path(path: str, **query: Any) -> str:
    return f"{path}?{urlencode(query)}" if query else path


class Cost(NamedTuple):
    """What requests have taken: seconds on the clock, and seconds of processors, those of PostgreSQL included."""

    clock: float
    processors: float


class Server:
    """An API server in a process of its own, which answers a request for each line and tells its costs.

    ``database`` tells the seconds of processors that a database server has taken so far.
    """

    def __init__(self, home: Path, settings: Mapping[str, str], database: Callable[[], float]) -> None:
        home.mkdir(parents=True)
        self._database = database
        env = environment(AIRFLOW_HOME=str(home), HOME=str(home), PYTHONPATH=os.pathsep.join(sys.path), **settings)
        command = [sys.executable, "-c", "from benchmarks.rows import serve\nserve()"]
        self._log = (home / "log").open("w")
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def ask(self, who: str, paths: list[str]) -> Cost:
        """The costs of requests one after the other; ``AssertionError`` if one of them is not answered with 200."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = self._database()
        print(json.dumps([who, paths]), file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("told "):
            if not line:
                raise AssertionError(f"the API server has ended: see {self._log.name}\n{self.tail()}")
        told = json.loads(line[5:])
        if isinstance(told, str):
            raise AssertionError(f"{who}: {told}\n{self.tail()}")
        cost = Cost(*told)
        return cost._replace(processors=cost.processors + self._database() - before)

    def tail(self) -> str:
        """The end of what it has printed."""
        return Path(self._log.name).read_text()[-3000:]

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._log.close()


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """Every list and page for each of the people, asked of both servers in turn, or only those that hold a text."""
    if options.postgres:
        from tests.support.postgres import Postgres

        database = Postgres(home / "postgres")
        try:
            database.start()
            yield from _compared(home, database.url, options.only, database.processor_seconds)
        finally:
            database.stop()
    else:
        yield from _compared(home, f"sqlite:///{home}/airflow.db", options.only, lambda: 0)


def _compared(home: Path, url: str, only: str, database: Callable[[], float]) -> Iterator[dict[str, Any]]:
    policy = compiled(write_policies(home / "policies", teams=TEAMS))
    settings = {
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    guarding = {
        "AIRFLOW__CORE__AUTH_MANAGER": TEAM_AUTHZ,
        "AIRFLOW__TEAM_AUTHZ__POLICY": str(policy),
        "AIRFLOW__TEAM_AUTHZ__DEADLINE_MS": "10000",
    }
    filled = environment(AIRFLOW_HOME=str(home / "filling"), PYTHONPATH=os.pathsep.join(sys.path), **settings)
    subprocess.run([sys.executable, "-c", "from benchmarks.rows import fill\nfill()"], env=filled, check=True)
    alone = Server(home / "alone", settings | {"AIRFLOW__CORE__AUTH_MANAGER": SIMPLE}, database)
    ours = Server(home / "ours", settings | guarding, database)
    kinds = {"lists": {what: [path] for what, path in _lists()}, "pages": dict(_pages())}
    asked = [
        (who, f"{kind}, {who}, {OURS} on {url.partition('+')[0].partition(':')[0]}, beside {ALONE}", what, paths)
        for kind, requests in kinds.items()
        for who in PEOPLE
        for what, paths in requests.items()
        if only in f"{kind}, {who}, {what}"
    ]
    try:
        for who, title, what, paths in track(asked, "rows", console=Console(stderr=True)):
            yield {"comparison": title, "what": what, "goal": GOAL, **_ratio(who, paths, alone, ours)}
    finally:
        for server in (ours, alone):
            server.close()


def _ratio(who: str, paths: list[str], alone: Server, ours: Server) -> dict[str, float]:
    """Medians of what one person's requests take, asked of both in turn."""
    taken: dict[str, list[Cost]] = {ALONE: [], OURS: []}
    end = time.monotonic() + SECONDS
    for round_ in range(ROUNDS):
        for name, server in ((ALONE, alone), (OURS, ours)):
            cost = server.ask(who, paths)
            if round_:
                taken[name].append(cost)
        if time.monotonic() > end and round_ >= 3:
            break
    clock, processors = (
        {name: statistics.median(cost[part] for cost in costs) * 1e6 for name, costs in taken.items()}
        for part in range(2)
    )
    return {
        "median_us": round(processors[OURS]),
        "ratio": round(processors[OURS] / processors[ALONE], 3),
        "clock_us": round(clock[OURS]),
        "clock_ratio": round(clock[OURS] / clock[ALONE], 3),
    }


# In the processes of the servers


def serve() -> None:
    """Answer the requests in each line of the input by Airflow's application, without a network."""
    asyncio.run(_serve())


async def _serve() -> None:
    from airflow.api_fastapi.app import cached_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    app = cached_app()
    tokens = {
        who: get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=who, role=role, teams=teams))
        for who, (role, teams) in PEOPLE.items()
    }
    async with app.router.lifespan_context(app):
        for line in sys.stdin:
            who, paths = json.loads(line)
            clock, processors = time.perf_counter(), time.process_time()
            answers = [await _answer(app, path, tokens[who]) for path in paths]
            cost = Cost(time.perf_counter() - clock, time.process_time() - processors)
            wrong = [
                f"{path}: {status} {body[:300]!r}"
                for path, (status, body) in zip(paths, answers, strict=True)
                if status != 200
            ]
            print(f"told {json.dumps('; '.join(wrong) if wrong else cost)}", flush=True)


async def _answer(app: Any, target: str, token: str) -> tuple[int, bytes]:
    """Status and body of a GET request: see the ASGI specification, 3.0."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "GET",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    status, parts = 0, []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)


# In the process that fills the database


def fill() -> None:
    """Teams with their Dags, and what has piled up about them."""
    import airflow.settings
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from sqlalchemy import insert, text

    import_all_models()
    engine = airflow.settings.engine
    assert engine is not None
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for name, rows in _tables():
            connection.execute(insert(Base.metadata.tables[name]), rows)
        if engine.dialect.name == "postgresql":
            # Its servers do this on their own after a while.
            connection.execute(text("ANALYZE"))


def _tables() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Names of tables with their rows, what is referred to first."""
    teams = [f"team{number}" for number in range(TEAMS)]
    dags = [(f"{team}_dag{number}", team) for team in teams for number in range(DAGS_OF_A_TEAM)]
    versions = {dag_id: uuid4() for dag_id, _ in dags}
    yield "team", [{"name": team} for team in teams]
    yield "dag_bundle", [{"name": team, "active": True} for team in teams]
    yield "dag_bundle_team", [{"dag_bundle_name": team, "team_name": team} for team in teams]
    yield (
        "slot_pool",
        [
            {"pool": name, "slots": 1, "include_deferred": False, "team_name": team}
            for name, team in [("default_pool", None), *((f"{team}_pool", team) for team in teams)]
        ],
    )
    yield "log_template", [{"filename": "x", "elasticsearch_id": "x"}]
    yield "dag", [
        {
            "dag_id": dag_id, "dag_display_name": dag_id, "bundle_name": team, "is_paused": False, "is_stale": False,
            "fileloc": f"/dags/{dag_id}.py", "relative_fileloc": f"{dag_id}.py", "owners": team,
            "last_parsed_time": NOW, "timetable_type": "x", "timetable_summary": "None", "timetable_description": "x",
            "timetable_partitioned": False, "timetable_periodic": False, "max_active_tasks": 16, "max_active_runs": 16,
            "max_consecutive_failed_dag_runs": 0, "has_task_concurrency_limits": False, "has_import_errors": False,
        }
        for dag_id, team in dags
    ]  # fmt: skip
    yield "dag_tag", [{"name": f"tag {number % 20}", "dag_id": dag_id} for number, (dag_id, _) in enumerate(dags)]
    yield (
        "dag_version",
        [{"id": versions[dag_id], "version_number": 1, "dag_id": dag_id, "bundle_name": team} for dag_id, team in dags],
    )
    yield "serialized_dag", list(_serialized(versions))
    yield "dag_run", list(_runs(versions))
    yield "task_instance", list(_task_instances(versions))
    yield "log", list(_audit_rows(dags))
    yield "import_error", [
        {"timestamp": NOW, "filename": f"{dag_id}.py" if number < len(dags) else f"file{number}.py",
         "bundle_name": team, "stacktrace": "Traceback\n" * 20}
        for number in range(IMPORT_ERRORS) for dag_id, team in [dags[number % len(dags)]]
    ]  # fmt: skip
    names = [f"asset{number}" for number in range(ASSETS)]
    yield (
        "asset",
        [{"id": id_, "name": name, "uri": f"s3://{name}", "group": "asset"} for id_, name in enumerate(names, 1)],
    )
    yield "asset_active", [{"name": name, "uri": f"s3://{name}"} for name in names]
    waiting = [(1 + number % ASSETS, dag_id) for number, (dag_id, _) in enumerate(dags)]
    yield (
        "dag_schedule_asset_reference",
        [{"asset_id": id_, "dag_id": dag_id, "allow_global_producers": True} for id_, dag_id in waiting],
    )
    making = [(1 + (number + 7) % ASSETS, dag_id) for number, (dag_id, _) in enumerate(dags)]
    yield (
        "task_outlet_asset_reference",
        [
            {"asset_id": id_, "dag_id": dag_id, "task_id": "load", "allow_global_consumers": True}
            for id_, dag_id in making
        ],
    )
    yield "asset_event", [
        {"asset_id": id_, "source_dag_id": dag_id, "source_task_id": "load", "source_map_index": -1,
         "source_run_id": f"run{RUNS_OF_A_DAG - 1 - number}", "timestamp": NOW - timedelta(minutes=number)}
        for id_, dag_id in making[:ASSETS] for number in range(EVENTS_OF_AN_ASSET)
    ]  # fmt: skip


def _serialized(versions: Mapping[str, UUID]) -> Iterator[dict[str, Any]]:
    """One Dag, which goes by as many names as there are Dags."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("THE_DAG", schedule=None) as dag:
        first, *others = (EmptyOperator(task_id=task_id) for task_id in TASKS)
        for other in others:
            first >> other
            first = other
    text = json.dumps(DagSerialization.to_dict(dag))
    for dag_id, version in versions.items():
        data = json.loads(text.replace("THE_DAG", dag_id))
        yield {"dag_id": dag_id, "data": data, "dag_hash": version.hex, "dag_version_id": version}


def _runs(versions: Mapping[str, UUID]) -> Iterator[dict[str, Any]]:
    for dag_id, version in versions.items():
        for number in range(RUNS_OF_A_DAG):
            start = NOW - timedelta(hours=RUNS_OF_A_DAG - number)
            yield {
                "dag_id": dag_id, "run_id": f"run{number}", "run_type": "scheduled", "logical_date": start,
                "state": "failed" if number % 10 == 0 else "success", "start_date": start, "clear_number": 0,
                "end_date": start + timedelta(minutes=5), "queued_at": start, "run_after": start, "conf": {},
                "data_interval_start": start, "data_interval_end": start, "log_template_id": 1,
                "created_dag_version_id": version,
            }  # fmt: skip


def _task_instances(versions: Mapping[str, UUID]) -> Iterator[dict[str, Any]]:
    for dag_id, version in versions.items():
        for number in range(RUNS_OF_A_DAG - RUNS_WITH_TASKS, RUNS_OF_A_DAG):
            start = NOW - timedelta(hours=RUNS_OF_A_DAG - number)
            for task_id in TASKS:
                yield {
                    "id": uuid4(), "dag_id": dag_id, "run_id": f"run{number}", "task_id": task_id, "map_index": -1,
                    "task_display_name": task_id, "state": "success", "start_date": start, "duration": 60,
                    "end_date": start + timedelta(minutes=1), "try_number": 1, "max_tries": 0, "hostname": "h",
                    "unixname": "u", "pool": "default_pool", "queue": "default", "priority_weight": 1,
                    "operator": "EmptyOperator", "executor_config": {}, "dag_version_id": version,
                }  # fmt: skip


def _audit_rows(dags: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for number in range(AUDIT_ROWS_OF_A_DAG):
        for dag_id, team in dags:
            yield {
                "dttm": NOW - timedelta(minutes=number), "dag_id": dag_id, "task_id": TASKS[number % 4],
                "map_index": -1, "run_id": f"run{number}", "event": "success", "owner": team,
                "owner_display_name": team, "extra": '{"host_name": "h"}', "try_number": 1,
            }  # fmt: skip
    nothing = dict.fromkeys(("dag_id", "task_id", "map_index", "run_id", "try_number"))
    for number in range(AUDIT_ROWS_OF_NO_DAG):
        told = {"event": "post_connection", "owner": "pat", "owner_display_name": "pat", "extra": "{}"}
        yield {"dttm": NOW - timedelta(seconds=number), **told, **nothing}
