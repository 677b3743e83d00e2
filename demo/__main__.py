"""Boots a multi-team Airflow, plays the scenes as five users, and leaves the UI running."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from airflow_team_authz.opa.compile import CompileError
from demo.play import play
from demo.play_running import play_running
from demo.process import StartError
from demo.running import RunningSite
from demo.show import Show, console


def main() -> int:
    """Run the demonstration; 0 if every scene is as expected, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Boots a multi-team Airflow on SQLite in a temporary directory, plays scenes over its REST API "
        "as five users of two teams, has tasks, asset events and Dag files of both try what they may and may not, "
        "prints all that as tables, and leaves the UI running until Ctrl-C. Two minutes.",
    )
    parser.add_argument(
        "--once", action="store_true", help="end after the scenes; exit code 1 if one is not as expected"
    )
    parser.add_argument("--opa", action="store_true", help="let an OPA server decide, instead of the policy in process")
    arguments = parser.parse_args()
    # Ctrl-C said as well, because a program that a shell starts in the background is told to ignore it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    out = console()
    home = Path(tempfile.mkdtemp(prefix="team-authz-demo-"))
    good = False
    try:
        good = demonstrate(Show(out), home, arguments.opa, arguments.once)
    except (StartError, CompileError) as error:
        out.print(f"\n{error}", style="red", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        out.print("\nInterrupted.")
        good = True
    if good:
        shutil.rmtree(home, ignore_errors=True)
    else:
        out.print(f"Logs, settings and database are left in {home}", soft_wrap=True)
    return 0 if good else 1


def demonstrate(show: Show, home: Path, opa_server: bool, once: bool) -> bool:
    """Start, play, and unless ``once`` wait for Ctrl-C; whether every scene was as expected."""
    begin = time.monotonic()
    site = RunningSite(home, opa_server)
    try:
        site.start(show.progress)
        show.told(site)
        outcomes = show.scenes(play(site))
        with show.progress("\nHaving Dags run"):
            site.begin_to_run()
        seen = show.running(play_running(site), site.import_errors())
        good = show.verdict(outcomes, seen, time.monotonic() - begin)
        if not once:
            show.invitation(site)
            with suppress(KeyboardInterrupt):
                signal.pause()
        return good
    finally:
        site.stop()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
