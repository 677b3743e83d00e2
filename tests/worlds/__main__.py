"""Shows what tells the worlds apart: `python -m tests.worlds --home /tmp/worlds`, which builds them there at first."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.worlds.compare import Comparison, Difference, by_route
from tests.worlds.site import STRANGERS, Worlds


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.worlds", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="where the worlds are kept between calls")
    parser.add_argument("--person", action="append", choices=STRANGERS, help="one or several; else everybody")
    parser.add_argument("--only", default="", help="routes that hold this text, for example `GET /ui`")
    parser.add_argument("--alone", action="store_true", help="Airflow without this package")
    parser.add_argument("--refusals", choices=("explain", "conceal"), help="the setting of this name")
    parser.add_argument("--explained", action="store_true", help="also refusals that name the owner")
    parser.add_argument("--all", action="store_true", help="every difference, not three of each route")
    arguments = parser.parse_args()
    worlds = Worlds(arguments.home.resolve(), guarded=not arguments.alone, refusals=arguments.refusals)
    try:
        worlds.start()
        calls = [call for call in worlds.catalogue().reads() if arguments.only in str(call.route)]
        found: list[Difference] = []
        for person in arguments.person or STRANGERS:
            begun = time.monotonic()
            with Comparison(worlds, person) as comparison:
                differences = list(comparison.differences(calls))
            shown = [difference for difference in differences if arguments.explained or not difference.explained]
            found += shown
            told = f"{len(shown)} (and {len(differences) - len(shown)} refusals that name the owner) of {len(calls)}"
            print(f"{person}: {told} requests, {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        worlds.stop()
    for route, differences in sorted(by_route(found).items()):
        people = ", ".join(dict.fromkeys(difference.person for difference in differences))
        print(f"\n{route}: {len(differences)} differences for {people}")
        for difference in differences if arguments.all else differences[:3]:
            print(f"  {difference}")
    print(f"\n{len(found)} differences on {len(by_route(found))} routes")
    return int(bool(found))


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW_HOME", "/nonexistent")
    sys.exit(main())
