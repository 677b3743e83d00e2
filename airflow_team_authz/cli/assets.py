"""`team-authz assets`: asset events that wait, with the Dags that they would start, for a decision."""

from __future__ import annotations

from typing import Any

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    print_columns,
    print_json,
    print_line,
    talking_to_stderr,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Show asset events that wait because the engine could not decide, and ask again.",
)

WAITING = 1


@app.command("list")
def list_(output: OutputOption = Output.TEXT) -> None:
    """Show the Dags that wait because the engine could not decide about their asset events.

    Exit code 0: no Dag waits. 1: some Dags wait.
    """
    with talking_to_stderr():
        from airflow_team_authz.doors.assets import held_back

        rows = [
            {
                "since": waiting.since,
                "dag_id": waiting.dag_id,
                "asset": waiting.held.asset,
                "source": waiting.held.subject.id,
                "error": waiting.held.error,
            }
            for waiting in held_back()
        ]
    if output is Output.JSON:
        print_json(rows)
    elif rows:
        print_columns([["since", "dag", "asset", "source", "why"], *([*row.values()] for row in rows)])
    else:
        print_line("Nothing waits.")
    if rows:
        raise typer.Exit(WAITING)


@app.command("replay")
def replay(output: OutputOption = Output.TEXT) -> None:
    """Ask again about waiting Dags, and start those that the policy allows.

    If it is interrupted, run it again: it goes on with the next Dag.

    Exit code 0: no Dag waits any more. 2: the engine still cannot decide, and the other Dags still wait.
    """
    with talking_to_stderr():
        from airflow_team_authz.doors.assets import REPLAYED
        from airflow_team_authz.doors.assets import replay as replayed

        rows: list[dict[str, Any]] = [
            {
                "result": "started" if outcome.state == REPLAYED else "refused",
                "dag_id": outcome.dag_id,
                "event_id": outcome.event_id,
                "reasons": list(outcome.reasons),
            }
            for outcome in replayed()
        ]
    if output is Output.JSON:
        print_json(rows)
    elif rows:
        print_columns([[row["result"], row["dag_id"], "; ".join(row["reasons"])] for row in rows])
    else:
        print_line("Nothing waits.")
