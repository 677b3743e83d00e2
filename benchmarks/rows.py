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
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from rich.console import Console
from rich.progress import track

from benchmarks.doors import ALONE, OURS, SIMPLE
from benchmarks.harness import compiled, write_policies
from benchmarks.recording import FILE as RECORDED
from benchmarks.site import NOW, Size, fill
from demo.process import environment

SIZE = Size()
# For the recorded pages.
PAGES_SIZE = Size(
    dags_of_a_team=100,
    runs_of_a_dag=10,
    runs_with_tasks=1,
    audit_rows_of_a_dag=1,
    audit_rows_of_no_dag=1_000,
    import_errors=500,
)

# Of each measurement, the first of which is for the caches: quick requests are asked this often, slow ones at least
# three times and as long as this.
ROUNDS = 12
SECONDS = 1.5
GOAL = "1.1 or less"
PAGE_GOAL, PART_GOAL = "1.02 or less", "0.01 or less"
PEOPLE: dict[str, tuple[str, list[str]]] = {
    "viewer of a team": ("viewer", ["team0"]),
    "op of two teams": ("op", ["team0", "team1"]),
    "platform admin": ("admin", []),
}
DAG, RUN = "team0_dag0", "run99"
# What makes up the part of authorization.
ASKED = (
    "is_authorized",
    "get_authorized",
    "filter_authorized",
    "batch_is_authorized",
    "get_extra_menu_items",
    "require",
)
WALL = ("_narrow", "_check_statement", "_check_writes", "_end_of_checked_writes", "_known_teams")
TEAM_AUTHZ = "airflow_team_authz.TeamAuthManager"
# What the UI offers only to others.
NOT_FOR = {("viewer of a team", "connections")}
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


def _recorded() -> Iterator[tuple[str, list[str]]]:
    """What the UI really asks for when somebody opens a page: see ``benchmarks.recording``."""
    times = {"now": NOW.isoformat(), "day_ago": (NOW - timedelta(days=1)).isoformat()}
    times = {name: quote(time) for name, time in times.items()}
    for page, requests in json.loads(RECORDED.read_text()).items():
        yield page, [request.removeprefix("GET ").format_map(times) for request in requests]


def _path(path: str, **query: Any) -> str:
    return f"{path}?{urlencode(query)}" if query else path


class Cost(NamedTuple):
    """What requests have taken: seconds on the clock, and seconds of processors, those of PostgreSQL included.

    ``part``: seconds of the server's processor that its auth manager has taken, with all that this package adds.
    """

    clock: float
    processors: float
    part: float = 0


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
    """Every list and page for each of the people, asked of both servers in turn, or only those that hold a text.

    With ``options.pages`` the recorded pages of a site of 10,000 Dags instead, and the auth manager's part of each.
    """
    if options.postgres:
        from tests.support.postgres import Postgres

        database = Postgres(home / "postgres")
        try:
            database.start()
            yield from _compared(home, database.url, options, database.processor_seconds)
        finally:
            database.stop()
    else:
        yield from _compared(home, f"sqlite:///{home}/airflow.db", options, lambda: 0)


def _compared(home: Path, url: str, options: Namespace, database: Callable[[], float]) -> Iterator[dict[str, Any]]:
    size = PAGES_SIZE if options.pages else SIZE
    kinds = {"pages": dict(_recorded())} if options.pages else {
        "lists": {what: [path] for what, path in _lists()}, "pages": dict(_pages())
    }  # fmt: skip
    asked = [
        (who, f"{kind}, {who}, {OURS} on {url.partition('+')[0].partition(':')[0]}, beside {ALONE}", what, paths)
        for kind, requests in kinds.items()
        for who in PEOPLE
        for what, paths in requests.items()
        if options.only in f"{kind}, {who}, {what}" and (who, what) not in NOT_FOR
    ]
    alone, ours = _servers(home, url, size, database)
    parts = []
    try:
        for who, title, what, paths in track(asked, "rows", console=Console(stderr=True)):
            found = _ratio(who, paths, alone, ours)
            yield {"comparison": title, "what": what, "goal": PAGE_GOAL if options.pages else GOAL, **found}
            part = {"value": found["part_us"], "ratio": found["part"], "beside": found["part_alone"]}
            parts.append({"comparison": f"part of {title}", "what": what, "goal": PART_GOAL, **part})
    finally:
        for server in (ours, alone):
            server.close()
    if options.pages:
        yield from parts


def _servers(home: Path, url: str, size: Size, database: Callable[[], float]) -> tuple[Server, Server]:
    """Airflow alone, and with this package, on one database."""
    policy = compiled(write_policies(home / "policies", teams=size.teams))
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
    fill(size, environment(AIRFLOW_HOME=str(home / "filling"), **settings))
    alone = Server(home / "alone", settings | {"AIRFLOW__CORE__AUTH_MANAGER": SIMPLE}, database)
    return alone, Server(home / "ours", settings | guarding, database)


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
    clock, processors, parts = (
        {name: statistics.median(cost[part] for cost in costs) * 1e6 for name, costs in taken.items()}
        for part in range(3)
    )
    return {
        "part_us": round(parts[OURS]),
        "part": round(parts[OURS] / processors[OURS], 4),
        "part_alone": round(parts[ALONE] / processors[ALONE], 4),
        "value": round(processors[OURS]),
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

    part = Part()
    part.put_around_wall()
    app = cached_app()
    part.put_around(type(get_auth_manager()))
    tokens = {
        who: get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=who, role=role, teams=teams))
        for who, (role, teams) in PEOPLE.items()
    }
    async with app.router.lifespan_context(app):
        for line in sys.stdin:
            who, paths = json.loads(line)
            part.seconds = 0.0
            clock, processors = time.perf_counter(), time.process_time()
            answers = [await _answer(app, path, tokens[who]) for path in paths]
            cost = Cost(time.perf_counter() - clock, time.process_time() - processors, part.seconds)
            wrong = [
                f"{path}: {status} {body[:300]!r}"
                for path, (status, body) in zip(paths, answers, strict=True)
                if status != 200
            ]
            print(f"told {json.dumps('; '.join(wrong) if wrong else cost)}", flush=True)


class Part:
    """How long threads are within the auth manager's decisions, and within what this package adds to the session."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._thread = threading.local()

    def put_around(self, manager: type) -> None:
        """Measure each decision of the auth manager."""
        for name in dir(manager):
            if name.startswith(ASKED):
                setattr(manager, name, self._around(getattr(manager, name)))

    def put_around_wall(self) -> None:
        """Measure the second wall and the further questions about routes. To be called before Airflow makes its app."""
        from airflow_team_authz.doors import user_requests, wall

        for module, names in ((wall, WALL), (user_requests, ("_ask",))):
            for name in names:
                setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def around(*arguments: Any, **named: Any) -> Any:
            if getattr(self._thread, "is_within", False):
                return function(*arguments, **named)
            self._thread.is_within = True
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - began
                self._thread.is_within = False

        return around


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
