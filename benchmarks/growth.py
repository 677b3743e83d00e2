"""People of thousands of teams: what one decision, and one list of 100 teams' Dags, takes."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.harness import compare, opa_server, write_files

MINE = 2_000
ENTRIES = 10_000


def comparisons(home: Path, options: Namespace) -> Iterator[dict[str, Any]]:
    """Each way in which a person comes to be in 2,000 teams, beside a person of one team."""
    rounds: int = options.rounds // 20
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.engines.in_process import InProcess
    from airflow_team_authz.engines.opa_server import OpaServer
    from airflow_team_authz.model import Evaluations, Resource

    site, people = _site(home / "site"), _people()
    with opa_server(_with_shipped(site, home / "served")) as address:
        engines = {
            "in process": DecisionPoint(InProcess(site)),
            "OPA server": DecisionPoint(OpaServer(f"unix://{address}", 60_000)),
        }
        numbers = count()

        def asks(point: DecisionPoint, name: str, size: int) -> Callable[[], None]:
            def ask() -> None:
                # Never the same question again: answers are kept.
                resources = [Resource("dag", f"team{team}", f"dag{next(numbers)}") for team in range(1, size + 1)]
                if len(point.allowed(Evaluations(people[name], "read", resources))) != (
                    1 if name == "one team" else size
                ):
                    raise AssertionError(name)

            return ask

        for engine, point in engines.items():
            for what, size in (("one decision", 1), ("a list over 100 teams", 100)):
                contestants = {name: asks(point, name, size) for name in people}
                goal = dict.fromkeys(people, "below 2,000 µs")
                yield from compare(f"{what} about people of {MINE:,} teams, {engine}", contestants, rounds, goal)
        for point in engines.values():
            point.close()


def _people() -> dict[str, Any]:
    from airflow_team_authz.model import Subject

    def many(text: str) -> tuple[str, ...]:
        return tuple(text.replace("N", str(number)) for number in range(MINE))

    return {
        "one team": Subject("user", "ann", ("team1",), ("op",)),
        "teams of the login": Subject("user", "ann", many("teamN"), ("op",)),
        "groups by name": Subject("user", "ann", groups=many("groupN")),
        "groups by a pattern": Subject("user", "ann", groups=many("airflow-teamN-op")),
        "roles by name": Subject("user", "ann", roles=many("roleN")),
        "claims": Subject("user", "ann", claims={"department": many("claimN")}),
    }


def _site(directory: Path) -> Path:
    def named(prefix: str) -> dict[str, Any]:
        return {f"{prefix}{number}": [{"team_id": f"team{number}", "role": "op"}] for number in range(ENTRIES // 3)}

    tables = {
        "groups": named("group"),
        "roles": named("role"),
        "claims": {"department": named("claim")},
        "group_patterns": {"airflow-<team>-<role>": [{"team_id": "<team>", "role": "<role>"}]},
    }
    file = directory / "airflow" / "directory" / "data.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(tables))
    return directory


def _with_shipped(site: Path, target: Path) -> Path:
    from airflow_team_authz.opa.compile import derived, merged

    files = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    # With what a bundle says of its rules.
    whole = merged(files)
    write_files(target, whole | derived(whole))
    return target
