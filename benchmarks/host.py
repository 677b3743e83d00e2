"""What a host's processes and threads take: instances for threads, and the start of a process."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import policy_with_data

THREADS = (1, 8, 32)
TEAMS = (10, 100, 1_000)
# How many connections each team's data names.
LENT = 100
SECONDS = 3.0
THINK_SECONDS = 0.002
TURNS = 3
LOADED = {
    "SimpleAuthManager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager",
    "TeamAuthManager": "airflow_team_authz.doors.users",
}


def comparisons(home: Path, _: Namespace) -> Iterator[dict[str, Any]]:
    """Instances for each thread or shared; in processes of their own, taking turns."""
    bundles = {teams: policy_with_data(home / f"policy{teams}", teams, LENT) for teams in TEAMS}
    for teams in (10, 1_000):
        for threads in THREADS:
            told = _in_turn(
                {
                    ways: ["instances", ways, str(threads), str(bundles[teams])]
                    for ways in ("one for each thread", "shared")
                }
            )
            for what in ("p50", "p99", "memory"):
                yield from _rows(f"{threads} threads, {teams:,} teams: {what}", told, what)
    yield from _rows(
        "loading an auth manager", _in_turn({name: ["load", module] for name, module in LOADED.items()}), "p50"
    )
    for teams, bundle in bundles.items():
        state = home / f"state{teams}"
        first, later = (
            [f"policy of {teams:,} teams: {what}", ["first", str(place), str(bundle)]]
            for what, place in (("nobody has compiled it", ""), ("another process has", state))
        )
        _in_turn(dict([later]), turns=1)
        told = _in_turn(dict([first, later]))
        yield from _rows(
            f"from opening the engine to the first answer, {teams:,} teams", told, "p50", "below 50,000 µs"
        )


def _in_turn(contestants: dict[str, list[str]], turns: int = TURNS) -> dict[str, dict[str, float]]:
    """What each of them prints, in a process of its own: the median of several."""
    told: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, arguments in contestants.items():
            command = [sys.executable, "-m", "benchmarks.host", *arguments]
            told[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    return {
        name: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for name, turns in told.items()
    }


def _rows(title: str, told: dict[str, dict[str, float]], what: str, goal_of_last: str = "") -> Iterator[dict[str, Any]]:
    figure = "MiB" if what == "memory" else what
    first = next(iter(told.values()))[figure]
    for name, values in told.items():
        shown = f"{name}, {values['MiB']:.0f} MiB" if what == "memory" else name
        value = values[figure]
        goal = goal_of_last if name == list(told)[-1] else ""
        yield {"comparison": title, "what": shown, "value": value, "ratio": value / (first or 1), "goal": goal}


def _instances(ways: str, threads: int, bundle: Path) -> dict[str, float]:
    """Questions by so many threads, each of which thinks for a while after an answer."""
    from airflow_team_authz.engines.in_process import InProcess

    engine = InProcess(bundle)
    if ways != "shared":
        engine._in_force = engine._in_force._replace(instances=_ForEachThread(engine._policy))  # type: ignore[arg-type]
    before, taken = _memory(), []
    together = threading.Barrier(threads)

    def ask(thread: int) -> None:
        together.wait()
        end, number = time.monotonic() + SECONDS, 0
        mine = []
        while (began := time.perf_counter()) and time.monotonic() < end:
            number += 1
            question = (
                '{"subject":{"type":"user","id":"bob","team_ids":["team1"],"roles":["op"]},"action":"read","resources":'
                f'[{{"type":"connection","team_id":"team1","id":"pg{thread}-{number}"}}]}}'
            )
            engine.query("decisions", question.encode(), 1)
            mine.append(time.perf_counter() - began)
            time.sleep(THINK_SECONDS)
        taken.extend(mine[1:])

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    engine.close()
    cuts = statistics.quantiles(taken, n=100)
    return {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6, "MiB": _memory() - before, "answers": len(taken)}


class _ForEachThread:
    """As it was: each thread has an instance of its own."""

    def __init__(self, policy: Any) -> None:
        self._policy, self._local, self._all = policy, threading.local(), []

    def take(self) -> Any:
        from airflow_team_authz.opa.wasm import start

        if not hasattr(self._local, "machine"):
            self._local.machine = start(self._policy)
            # Threads end here, and a server's do not.
            self._all.append(self._local.machine)
        return self._local.machine

    def give(self, _: Any) -> None: ...
    def discard(self) -> None: ...
    def shrink(self) -> None: ...


def _load(module: str) -> dict[str, float]:
    """Processor time for an auth manager's class, after what every process of Airflow has loaded anyway."""
    for of_airflow in ("airflow.settings", "airflow.api_fastapi.auth.managers.base_auth_manager"):
        importlib.import_module(of_airflow)
    began = time.process_time()
    importlib.import_module(module)
    return {"p50": (time.process_time() - began) * 1e6}


def _first(state: str, bundle: Path) -> dict[str, float]:
    """From opening the engine to its first answer, in a process that has loaded the auth manager.

    Without a ``state``, in one that is empty.
    """
    importlib.import_module(LOADED["TeamAuthManager"])
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.engines.choice import open_engine
    from airflow_team_authz.model import Evaluations, Resource, Subject
    from airflow_team_authz.settings import Settings

    with tempfile.TemporaryDirectory() as empty:
        place = Path(state or empty)
        place.mkdir(mode=0o700, exist_ok=True)
        settings = Settings(policy=bundle, state=place)
        question = Evaluations(Subject("user", "bob", ("team1",), ("op",)), "read", [Resource("dag", "team1", "d")])
        began = time.perf_counter()
        point = DecisionPoint(open_engine(settings))
        assert point.decide(question).decisions[0].allow is True
        taken = time.perf_counter() - began
        point.close()
    return {"p50": taken * 1e6}


def _memory() -> float:
    """What this process alone has, in MiB."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["instances", ways, threads, bundle]:
            print(json.dumps(_instances(ways, int(threads), Path(bundle))))
        case ["load", module]:
            print(json.dumps(_load(module)))
        case ["first", state, bundle]:
            print(json.dumps(_first(state, Path(bundle))))
