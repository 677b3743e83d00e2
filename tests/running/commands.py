"""Runs in a process of a running site's Airflow: Airflow's commands, one after the other, and what came of each."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.cli import cli_parser

_DAG = "alpha_callbacks"
_DATE = "2001-02-03"


def main(dag_files: str, elsewhere: str, leave_in: str, conf: str) -> None:
    """Run all commands; what tasks leave goes into directories of ``leave_in``, and what ended a command is printed."""
    left = Path(leave_in)

    def leaving_in(name: str) -> dict[str, Any]:
        (left / name).mkdir(exist_ok=True)
        return json.loads(conf) | {"leave_in": str(left / name)}

    def call(file: str) -> Callable[[], object]:
        # Its retry is left out: that is what `dags test` has.
        dated = {"logical_date": datetime(2001, 3, 4, tzinfo=UTC), "mark_success_pattern": "fail"}
        return lambda: runpy.run_path(file)["callbacks"].test(run_conf=leaving_in("dag.test()"), **dated)

    in_backfill, in_test = (json.dumps(leaving_in(name)) for name in ("backfill", "dags test"))
    dates = ("--from-date", "2001-01-01", "--to-date", "2001-01-01", "--max-active-runs", "1")
    ended = {
        "backfill": _ended(_command("backfill", "create", "--dag-id", _DAG, *dates, "--dag-run-conf", in_backfill)),
        "dags test": _ended(_command("dags", "test", _DAG, _DATE, "--conf", in_test)),
    }
    # The run that it is tested in says where its task leaves what.
    (left / "dags test").rename(left / "kept")
    leaving_in("dags test")
    ended["tasks test"] = _ended(_command("tasks", "test", _DAG, "succeed", _DATE))
    (left / "dags test").rename(left / "tasks test")
    (left / "kept").rename(left / "dags test")
    ended["dag.test()"] = _ended(call(dag_files))
    ended["dag.test() of a Dag in no bundle"] = _ended(call(elsewhere))
    print(json.dumps(ended))


def _command(*arguments: str) -> Callable[[], object]:
    parsed = cli_parser.get_parser().parse_args(arguments)
    return lambda: parsed.func(parsed)


def _ended(run: Callable[[], object]) -> str:
    """What ended it; nothing if it ran to its end."""
    try:
        run()
    except (Exception, SystemExit) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
