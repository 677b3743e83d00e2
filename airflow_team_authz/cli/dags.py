"""`team-authz dags`: the platform gives Dags to another team."""

from __future__ import annotations

from typing import Annotated

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    talking_to_stderr,
)

app = typer.Typer(no_args_is_help=True, help="Give Dags to another team.")


@app.callback()
def _group() -> None:
    """Keeps `move` a command of its own, also while there is no other."""


@app.command("move")
def move(
    dag_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[DAG_ID]...", help="The Dags to move.", show_default=False)
    ] = None,
    of_bundle: Annotated[
        str | None,
        typer.Option("--from", metavar="BUNDLE", help="Move all Dags of this bundle, which may be gone."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="BUNDLE", help="The bundle that gets the Dags.")] = None,
    to_team: Annotated[
        str | None, typer.Option("--to-team", metavar="TEAM", help="The team that gets the Dags, if it has one bundle.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Give Dags to another bundle, and so to its team, with their runs and XComs: all of them, or none.

    The Dags start no runs until a file of the new bundle has declared them. The old bundle's file gets an import error.
    The old bundle need not be configured any more. The audit log of each Dag names the person who moved it.

    Exit code 0: the Dags are in the new bundle. 2: the command moved nothing.
    """
    if (to is None) == (to_team is None):
        raise UserError("name the new place of the Dags: either --to BUNDLE or --to-team TEAM")
    if bool(dag_ids) == (of_bundle is not None):
        raise UserError("name the Dags: either their ids or --from BUNDLE")
    with talking_to_stderr():
        from airflow_team_authz.doors import names

        try:
            moved = names.move(dag_ids or names.dags_of(str(of_bundle)), to, to_team)
        except names.NotMovedError as error:
            raise UserError(str(error)) from None
    if output is Output.JSON:
        print_json(
            [
                {
                    "dag_id": one.dag_id,
                    "from": {"bundle": one.old.bundle, "team_id": one.old.team_id},
                    "to": {"bundle": one.new.bundle, "team_id": one.new.team_id},
                    "result": "moved" if one.old != one.new else "unchanged",
                }
                for one in moved
            ]
        )
        return
    print_columns(
        [
            ["moved", one.dag_id, f"from {one.old}", f"to {one.new}"]
            if one.old != one.new
            else ["unchanged", one.dag_id, f"is of {one.new} already", ""]
            for one in moved
        ]
    )
