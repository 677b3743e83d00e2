"""What a decision costs: side by side in one run, as ratios. ``make bench``, or ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# The modules of comparisons, by their options: what they compare.
INSTEAD = {
    "keycloak": "people out of a real Keycloak",
    "doors": "tasks, asset events and parsed Dags",
    "bundles": "ways and sizes of policy bundles",
    "growth": "people of one team and of thousands",
    "rows": "lists of many rows and the UI's pages",
    "host": "what threads and processes of a host take",
    "review": "commands of an access review",
    "decision_log": "the cost of the decision log",
}


def main() -> int:
    """Run the comparisons and print them; 0 if every one ran."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="measurements of one decision (default 2000)")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    for module, what in INSTEAD.items():
        parser.add_argument(f"--{module.replace('_', '-')}", action="store_true", help=f"compare {what} instead")
    parser.add_argument("--postgres", action="store_true", help="with --rows: on PostgreSQL rather than on SQLite")
    parser.add_argument("--only", default="", help="with --rows: only what holds this text, such as dagRuns or admin")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["AIRFLOW_HOME"] = home
        os.environ["AIRFLOW__CORE__MULTI_TEAM"] = "True"
        os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
        rows = list(_comparisons(Path(home), options))
    if options.output == "json":
        print(json.dumps(rows))
    else:
        show(rows)
    return 0


def _comparisons(home: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    name = next((module for module in INSTEAD if getattr(options, module)), "decisions")
    # Only now: Airflow reads its settings when it is imported.
    yield from import_module(f"benchmarks.{name}").comparisons(home, options)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table for each comparison."""
    console = Console()
    for title in dict.fromkeys(row["comparison"] for row in rows):
        table = Table("what", "median", "ratio", "goal", title=title, title_justify="left")
        for row in rows:
            if row["comparison"] == title:
                table.add_row(row["what"], f"{row['median_us']:,.0f} µs", f"{row['ratio']:.2f}", row.get("goal", ""))
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
