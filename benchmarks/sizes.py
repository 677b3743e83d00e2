"""Growth: lists of 100 to 100,000 Dags, of 10 to 1,000 teams, by 1 to 32 threads: clock, processor and memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import decisions
from benchmarks.harness import BY_KIND, compiled, private_megabytes, write_policies

TEAMS = (10, 100, 1_000)
RESOURCES = (100, 10_000, 100_000)
THREADS = (1, 8, 32)
# Lists that the threads of a process ask for together, at least one each, and their resources at most.
LISTS = 64
MOST_RESOURCES = 400_000
MEASURES = {"p50": "ms", "p99": "ms", "processor": "ms", "memory": "MB"}


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """One decision and a list beside the peers, and each size."""
    yield from decisions.peers(home, options.rounds)
    yield from _sizes(home)


def _sizes(home: Path) -> Iterator[dict[str, Any]]:
    bundles = {teams: compiled(write_policies(home / f"policy{teams}", teams, BY_KIND)) for teams in TEAMS}
    sizes = [(teams, resources, threads) for resources in RESOURCES for teams in TEAMS for threads in THREADS]
    for teams, resources, threads in track(sizes, "sizes", console=Console(stderr=True)):
        command = [
            sys.executable,
            "-m",
            "benchmarks.sizes",
            str(bundles[teams]),
            *map(str, (teams, resources, threads)),
        ]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for measure, unit in MEASURES.items():
            yield {
                "comparison": f"a list of {resources:,} Dags, new to the cache: {measure}", "value": told[measure],
                "what": f"{teams:,} teams, {threads} threads", "unit": unit, "ratio": told[measure] / told["p50"],
                "teams": teams, "resources": resources, "threads": threads, "measure": measure,
            }  # fmt: skip


def _asked(bundle: Path, teams: int, resources: int, threads: int) -> dict[str, float]:
    """Lists of so many Dags for ever new people: milliseconds on the clock and of processors, and megabytes."""
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.engines.in_process import InProcess
    from airflow_team_authz.model import Evaluations, Resource, Resources, Subject

    dags = Resources(Resource("dag", f"team{number % teams}", f"dag{number}") for number in range(resources))
    before = private_megabytes()
    point = DecisionPoint(InProcess(bundle, kept_code=bundle.parent / "compiled"))
    people, taken = count(), list[float]()
    each = max(1, min(LISTS, MOST_RESOURCES // resources) // threads)
    together = threading.Barrier(threads)

    def ask() -> None:
        together.wait()
        for _ in range(each):
            question = Evaluations(Subject("user", f"person{next(people)}", ("team1",), ("op",)), "read", dags)
            began = time.perf_counter()
            if len(point.allowed(question)) != resources // teams:
                raise AssertionError("an op may read the Dags of the own team only")
            taken.append(time.perf_counter() - began)

    ask() if threads == 1 else point.allowed(Evaluations(Subject("user", "nobody"), "read", dags))
    taken.clear()
    processors = time.process_time()
    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    processors = time.process_time() - processors
    memory = private_megabytes() - before
    point.close()
    cuts = statistics.quantiles(taken, n=100) if len(taken) > 1 else taken * 99
    return {
        "p50": statistics.median(taken) * 1e3,
        "p99": min(cuts[98], max(taken)) * 1e3,
        "processor": processors / len(taken) * 1e3,
        "memory": memory,
    }


if __name__ == "__main__":
    given, *numbers = sys.argv[1:]
    print(json.dumps(_asked(Path(given), *map(int, numbers))))
