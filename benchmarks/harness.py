"""Shared by the comparisons: taking turns, policies of many teams, OPA servers and auth managers."""

from __future__ import annotations

import atexit
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track


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
            "value": round(median, 1),
            "ratio": round(median / first, 3),
            "goal": goals.get(name, ""),
        }
        for name, median in medians.items()
    ]


def private_megabytes() -> float:
    """Memory that this process alone has."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) * 1024 / 1e6


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


def write_policies(directory: Path, teams: int, rules: str = "") -> Path:
    """A platform policy with so many team packages. ``rules``: those of each; else it lends ids and denies people."""
    from airflow_team_authz.opa.compile import shipped_policies, write_derived

    for part in ("airflow/authz", "airflow/roles"):
        for source in (shipped_policies() / part).rglob("*"):
            if source.is_file() and not source.name.endswith("_test.rego"):
                target = directory / source.relative_to(shipped_policies())
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    for number in range(teams):
        team = directory / "teams" / f"team{number}"
        team.mkdir(parents=True)
        (team / "team.rego").write_text((rules or TEAM).format(team=f"team{number}"))
        (team / "data.json").write_text(json.dumps({"lent": [f"connection_{number}"], "interns": [f"intern_{number}"]}))
    # As in a bundle.
    write_derived(directory)
    return directory


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their paths below a directory, which need not be there."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def policy_with_data(directory: Path, teams: int, lent: int) -> Path:
    """A compiled policy of that many teams: each lends so many connections and has a group in the directory."""
    write_policies(directory, teams)
    for number in range(teams):
        data = {"lent": [f"connection_{number}_{one}" for one in range(lent)], "interns": [f"intern_{number}"]}
        (directory / "teams" / f"team{number}" / "data.json").write_text(json.dumps(data))
    groups = {f"airflow-team{number}": [{"team_id": f"team{number}", "role": "op"}] for number in range(teams)}
    (directory / "airflow" / "directory").mkdir()
    (directory / "airflow" / "directory" / "data.json").write_text(json.dumps({"groups": groups}))
    return compiled(directory)


TEAM = """package teams.{team}

allow contains "lent to everyone" if {{
	input.action == "read"
	input.resource.id in data.teams.{team}.lent
}}

deny contains "not for interns" if input.subject.id in data.teams.{team}.interns
"""


# The same without a look at ids.
BY_KIND = TEAM.replace("input.resource.id in", "input.resource.type in")


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
