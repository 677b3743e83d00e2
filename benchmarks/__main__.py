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

from benchmarks.pictures import draw

# The modules of comparisons, by their options: what they compare.
INSTEAD = {
    "keycloak": "people out of a real Keycloak",
    "doors": "tasks, asset events and parsed Dags",
    "bundles": "ways and sizes of policy bundles",
    "growth": "people of one team and of thousands",
    "rows": "lists of many rows and the UI's pages",
    "pages": "the requests of the UI's pages as recorded, and the part of authorization in each",
    "host": "what threads and processes of a host take",
    "review": "commands of an access review",
    "decision_log": "the cost of the decision log",
    "memory": "the memory of an API server under load",
}


def main() -> int:
    """Run the comparisons and print them; 0 if every one ran."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="measurements of one decision (default 2000)")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    for module, what in INSTEAD.items():
        option = f"--{module.replace('_', '-')}"
        if module == "memory":
            parser.add_argument(option, type=float, metavar="MINUTES", help=f"compare {what} for so long instead")
        else:
            parser.add_argument(option, action="store_true", help=f"compare {what} instead")
    parser.add_argument(
        "--postgres", action="store_true", help="with --rows or --pages: on PostgreSQL rather than on SQLite"
    )
    parser.add_argument(
        "--only", default="", help="with --rows or --pages: only what holds this text, such as dagRuns or admin"
    )
    parser.add_argument(
        "--pictures", action="store_true", help="draw the figures into docs/performance; alone: of peers and sizes"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["AIRFLOW_HOME"] = home
        os.environ["AIRFLOW__CORE__MULTI_TEAM"] = "True"
        os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
        rows = list(_comparisons(Path(home), options))
    if options.pictures:
        drawn = draw(rows)
        Console(stderr=True).print(f"drawn: {', '.join(file.name for file in drawn)}")
    if options.output == "json":
        print(json.dumps(rows))
    else:
        show(rows)
    return 0


def _comparisons(home: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    otherwise = "sizes" if options.pictures else "decisions"
    name = next((module for module in INSTEAD if getattr(options, module)), otherwise)
    name = "rows" if name == "pages" else name
    # Only now: Airflow reads its settings when it is imported.
    yield from import_module(f"benchmarks.{name}").comparisons(home, options)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table for each comparison."""
    console = Console()
    for title in dict.fromkeys(row["comparison"] for row in rows):
        table = Table("what", "value", "ratio", "goal", title=title, title_justify="left")
        for row in rows:
            if row["comparison"] == title:
                value = f"{row['value']:,.0f} {row.get('unit', 'µs')}"
                table.add_row(row["what"], value, f"{row['ratio']:.2f}", row.get("goal", ""))
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
