"""Shows what tells the worlds apart: `python -m tests.worlds --home /tmp/worlds`, which builds them there at first."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.worlds.attempts import Outcome, losses, lost_writes, reads, write_by_write, writes
from tests.worlds.compare import by_route
from tests.worlds.databases import PostgresDatabases
from tests.worlds.rows import Changed
from tests.worlds.site import MACHINES, PEOPLE, STRANGERS, TASKS, Worlds


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.worlds", description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=("reads", "writes", "each-write", "losses", "lost-writes"), default="reads"
    )
    parser.add_argument("--home", type=Path, required=True, help="where the worlds are kept between calls")
    everybody = (*PEOPLE, *TASKS, *MACHINES)
    parser.add_argument("--person", action="append", choices=everybody, help="one or several; else all strangers")
    parser.add_argument("--only", default="", help="writes of routes that hold this text, such as `POST /api`")
    parser.add_argument("--brief", action="store_true", help="each route with each kind of id, without parameters")
    parser.add_argument("--alone", action="store_true", help="Airflow without this package")
    parser.add_argument("--refusals", choices=("explain", "conceal"), help="the setting of this name")
    parser.add_argument("--login", choices=("simple", "fab"), default="simple")
    parser.add_argument("--opa", action="store_true", help="decisions by an OPA server")
    parser.add_argument("--postgres", action="store_true", help="the databases in PostgreSQL")
    parser.add_argument("--explained", action="store_true", help="also refusals that name the owner")
    parser.add_argument("--all", action="store_true", help="every difference, not three of each route")
    told = parser.parse_args()
    home = told.home.resolve()
    databases = PostgresDatabases(home) if told.postgres else None
    worlds = Worlds(home, told.login, told.opa, databases, not told.alone, told.refusals)
    outcomes = []
    try:
        worlds.start()
        for person in told.person or STRANGERS:
            begun = time.monotonic()
            if told.what == "each-write":
                for call, rows in write_by_write(worlds, person, told.only):
                    print(f"{person} {call}\n{_shown(rows)}", flush=True)
                continue
            outcome = _asked(worlds, person, told)
            shown = [one for one in outcome.differences if told.explained or not one.explained]
            left_out = len(outcome.differences) - len(shown)
            print(
                f"{person}: {outcome.requests} requests in {time.monotonic() - begun:.0f} s: {len(shown)} differences,"
                f" {left_out} refusals that name the owner, {len(outcome.rows)} rows",
                flush=True,
            )
            outcomes.append(outcome._replace(differences=shown))
    finally:
        worlds.stop()
    return _report(outcomes, told.all)


def _asked(worlds: Worlds, person: str, told: argparse.Namespace) -> Outcome:
    if told.what in {"losses", "lost-writes"}:
        return (losses if told.what == "losses" else lost_writes)(worlds, person)
    return reads(worlds, person, told.brief) if told.what == "reads" else writes(worlds, person, told.only)


def _report(outcomes: Sequence[Outcome], everything: bool) -> int:
    found = [difference for outcome in outcomes for difference in outcome.differences]
    for route, differences in sorted(by_route(found).items()):
        people = ", ".join(dict.fromkeys(difference.person for difference in differences))
        print(f"\n{route}: {len(differences)} differences for {people}")
        for difference in differences if everything else differences[:3]:
            print(f"  {difference}")
    for outcome in outcomes:
        if outcome.rows:
            print(f"\nRows of alpha's after the writes of {outcome.person}:\n{_shown(outcome.rows)}")
    print(f"\n{len(found)} differences on {len(by_route(found))} routes")
    return int(bool(found or any(outcome.rows for outcome in outcomes)))


def _shown(rows: Sequence[Changed]) -> str:
    return "\n".join(f"  {str(row)[:400]}" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
