"""What a decision costs: side by side in one run, as ratios. ``make bench``, or ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the comparisons and print them; 0 if every one ran."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="measurements of one decision (default 2000)")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    parser.add_argument("--keycloak", action="store_true", help="compare with people out of a real Keycloak instead")
    parser.add_argument("--doors", action="store_true", help="compare tasks, asset events and parsed Dags instead")
    parser.add_argument("--bundles", action="store_true", help="compare ways and sizes of policy bundles instead")
    parser.add_argument("--growth", action="store_true", help="compare people of one team and of thousands instead")
    parser.add_argument("--rows", action="store_true", help="compare lists of many rows and the UI's pages instead")
    parser.add_argument("--host", action="store_true", help="compare what threads and processes of a host take instead")
    parser.add_argument("--decision-log", action="store_true", help="compare the cost of the decision log instead")
    parser.add_argument("--postgres", action="store_true", help="with --rows: on PostgreSQL rather than on SQLite")
    parser.add_argument("--only", default="", help="with --rows: only what holds this text, such as dagRuns or admin")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["AIRFLOW_HOME"] = home
        os.environ["AIRFLOW__CORE__MULTI_TEAM"] = "True"
        os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
        if options.keycloak:
            from benchmarks.keycloak import comparisons

            rows = list(comparisons(Path(home), options.rounds // 4))
        elif options.bundles:
            from benchmarks import bundles

            rows = list(bundles.comparisons(Path(home)))
        elif options.growth:
            from benchmarks import growth

            rows = list(growth.comparisons(Path(home), options.rounds // 20))
        elif options.rows:
            from benchmarks import rows as of_rows

            rows = list(of_rows.comparisons(Path(home), options.postgres, options.only))
        elif options.decision_log:
            from benchmarks import decision_log

            rows = list(decision_log.comparisons(Path(home), options.rounds))
        elif options.host:
            from benchmarks import host

            rows = list(host.comparisons(Path(home)))
        elif options.doors:
            from benchmarks import doors

            rows = list(doors.comparisons(Path(home)))
        else:
            rows = [
                *one_decision(Path(home), options.rounds),
                *lists(Path(home)),
                *team_counts(Path(home), options.rounds // 4),
            ]
    if options.output == "json":
        print(json.dumps(rows))
    else:
        show(rows)
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table for each comparison."""
    console = Console()
    for title in dict.fromkeys(row["comparison"] for row in rows):
        table = Table("what", "median", "ratio", "goal", title=title, title_justify="left")
        for row in rows:
            if row["comparison"] == title:
                table.add_row(row["what"], f"{row['median_us']:,.0f} µs", f"{row['ratio']:.2f}", row.get("goal", ""))
        console.print(table)


def compare(
    comparison: str,
    contestants: dict[str, Callable[[], Any]],
    rounds: int,
    goals: dict[str, str],
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Medians of the contestants, taken in turn so that a machine's moods hit all alike; ratios to the first."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in track(range(rounds + rounds // 10), comparison, console=Console(stderr=True)):
        for name, run in contestants.items():
            start = clock()
            run()
            if round_ >= rounds // 10:
                taken[name].append(clock() - start)
    medians = {name: statistics.median(times) * 1e6 for name, times in taken.items()}
    first = next(iter(medians.values()))
    return [
        {
            "comparison": comparison,
            "what": name,
            "median_us": round(median, 1),
            "ratio": round(median / first, 3),
            "goal": goals.get(name, ""),
        }
        for name, median in medians.items()
    ]


def one_decision(home: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """May an op read a connection of the own team? Asked of the auth managers, and of OPA by a bare socket."""
    from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails

    policies = write_policies(home / "one", teams=100)
    with opa_server(policies) as address:
        question = {
            "subject": {"type": "user", "id": "bob", "team_ids": ["team1"], "roles": ["op"]},
            "action": "read",
            "resource": {"type": "connection", "team_id": "team1", "id": "pg"},
        }

        def through(manager: Any, again: bool = False) -> Callable[[], None]:
            user, number = op_of_team1(), count()

            def ask() -> None:
                details = ConnectionDetails(conn_id="pg" if again else f"pg{next(number)}", team_name="team1")
                if manager.is_authorized_connection(method="GET", user=user, details=details) is not True:
                    raise AssertionError("an op may read a connection of the own team")

            return ask

        in_process = manager_with(policy=compiled(policies))
        yield from compare(
            "one decision",
            {
                "OPA by a bare unix socket": bare_socket(address, question),
                "in process, through the auth manager": through(in_process),
                "the same asked again": through(in_process, again=True),
                "OPA server, through the auth manager": through(manager_with(opa_url=f"unix://{address}")),
                "SimpleAuthManager alone": through(simple_manager()),
            },
            rounds,
            {
                "in process, through the auth manager": "0.5 or less",
                "OPA server, through the auth manager": "1.5 or less",
            },
        )


def lists(home: Path) -> Iterator[dict[str, Any]]:
    """Which of many Dags over 50 teams may an op of one team read?"""
    policies = write_policies(home / "lists", teams=50)
    bundle = compiled(policies)
    ops = (op_of_team1(f"bob{number}") for number in count())
    with opa_server(policies) as address:
        in_process = manager_with(policy=bundle)
        managers = {
            "in process": in_process,
            "OPA server": manager_with(opa_url=f"unix://{address}"),
            "SimpleAuthManager alone": simple_manager(),
        }
        for size, goal in ((1_000, "below 10,000 µs"), (10_000, "below 100,000 µs")):
            rows = Rows([(f"dag_{number}", f"team{number % 50}") for number in range(size)])

            def ask(manager: Any, user: Any = None, rows: Rows = rows, expected: int = size // 50) -> None:
                if len(manager.get_authorized_dag_ids(user=user or next(ops), session=rows)) != expected:
                    raise AssertionError("an op may read the Dags of the own team only")

            contestants = {name: (lambda manager=manager, ask=ask: ask(manager)) for name, manager in managers.items()}
            contestants["in process, asked again"] = lambda ask=ask: ask(in_process, op_of_team1())
            yield from compare(f"a list of {size:,} Dags over 50 teams", contestants, 20, {"in process": goal})


def team_counts(home: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """The same decision among 10, 100 and 1,000 teams that each have a package."""
    from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails

    user = op_of_team1()
    names = (f"pg{number}" for number in count())
    for engine in ("in process", "OPA server"):
        with opa_servers(
            [write_policies(home / f"{engine}{teams}", teams=teams) for teams in (10, 100, 1_000)]
        ) as served:
            contestants = {}
            for teams, (policies, address) in zip((10, 100, 1_000), served, strict=True):
                manager = (
                    manager_with(policy=compiled(policies))
                    if engine == "in process"
                    else manager_with(opa_url=f"unix://{address}")
                )
                contestants[f"{teams:,} teams"] = lambda manager=manager: manager.is_authorized_connection(
                    method="GET", user=user, details=ConnectionDetails(conn_id=next(names), team_name="team1")
                )
            yield from compare(
                f"one decision among many teams, {engine}", contestants, rounds, {"1,000 teams": "1.2 or less"}
            )


class Rows:
    """Stands where a database session would: what is measured is the decision, not the query."""

    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self._rows = rows

    def execute(self, _: Any) -> Rows:
        return self

    def all(self) -> list[tuple[str, str]]:
        return self._rows

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._rows)


def op_of_team1(name: str = "bob") -> Any:
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return SimpleAuthManagerUser(username=name, role="op", teams=["team1"])


def simple_manager() -> Any:
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    return SimpleAuthManager()


def manager_with(**settings: Any) -> Any:
    """An auth manager over the given engine settings."""
    from airflow_team_authz import TeamAuthManager
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.engines.choice import open_engine
    from airflow_team_authz.settings import Settings

    engine = open_engine(Settings(**settings, deadline_ms=10_000))
    atexit.register(engine.close)
    manager = TeamAuthManager()
    manager.__dict__["_policy"] = DecisionPoint(engine)
    return manager


def write_policies(directory: Path, teams: int) -> Path:
    """A platform policy with that many team packages, each with a rule to lend and one to deny."""
    from airflow_team_authz.opa.compile import shipped_policies

    for part in ("airflow/authz", "airflow/roles"):
        for source in (shipped_policies() / part).rglob("*"):
            if source.is_file() and not source.name.endswith("_test.rego"):
                target = directory / source.relative_to(shipped_policies())
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    for number in range(teams):
        team = directory / "teams" / f"team{number}"
        team.mkdir(parents=True)
        (team / "team.rego").write_text(TEAM.format(team=f"team{number}"))
        (team / "data.json").write_text(json.dumps({"lent": [f"connection_{number}"], "interns": [f"intern_{number}"]}))
    return directory


TEAM = """package teams.{team}

allow contains "lent to everyone" if {{
	input.action == "read"
	input.resource.id in data.teams.{team}.lent
}}

deny contains "not for interns" if input.subject.id in data.teams.{team}.interns
"""


def compiled(policies: Path) -> Path:
    from airflow_team_authz.opa.compile import ENTRYPOINTS, find_opa, shipped_policies

    bundle = policies.with_suffix(".tar.gz")
    entrypoints = [argument for name in ENTRYPOINTS for argument in ("--entrypoint", name)]
    capabilities = str(shipped_policies() / "capabilities.json")
    command = [find_opa(), "build", "--target", "wasm", "--bundle", ".", "--capabilities", capabilities, *entrypoints]
    subprocess.run([*command, "--output", str(bundle)], cwd=policies, check=True)
    return bundle


@contextmanager
def opa_server(policies: Path) -> Iterator[str]:
    with opa_servers([policies]) as served:
        yield served[0][1]


@contextmanager
def opa_servers(directories: list[Path]) -> Iterator[list[tuple[Path, str]]]:
    """OPA servers on unix sockets, as the project's documentation starts them."""
    from airflow_team_authz.opa.compile import find_opa

    served = [(directory, str(directory.with_suffix(".sock"))) for directory in directories]
    command = [find_opa(), "run", "--server", "--skip-version-check", "--log-level", "error"]
    processes = [
        subprocess.Popen(
            [*command, "--bundle", str(directory), "--addr", f"unix://{address}"], stderr=subprocess.DEVNULL
        )
        for directory, address in served
    ]
    try:
        for _, address in served:
            wait_until(lambda address=address: answers(address))
        yield served
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def wait_until(done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise SystemExit("OPA did not start")
        time.sleep(0.05)


def answers(address: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(address)
            plain.sendall(b"GET /health?bundles HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return plain.recv(1024).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def bare_socket(address: str, question: dict[str, Any]) -> Callable[[], None]:
    """The least that a client can do: one prepared request over a kept connection, the answer not even parsed."""
    body = msgspec.json.encode({"input": question})
    head = b"POST /v1/data/airflow/authz/decision HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    plain = socket.socket(socket.AF_UNIX)
    plain.connect(address)

    def ask() -> None:
        plain.sendall(request)
        if b'"allow":true' not in plain.recv(65536):
            raise AssertionError("an op may read a connection of the own team")

    return ask


if __name__ == "__main__":
    sys.exit(main())
