"""``team-authz server approvals``: changes that wait until somebody else has approved them."""

from __future__ import annotations

from typing import Annotated

import typer

from airflow_team_authz.cli.support.console import Output, OutputOption, print_columns, print_json, print_line
from airflow_team_authz.cli.support.server_client import ServerOption, TokenOption, ask, print_held, print_impact

app = typer.Typer(no_args_is_help=True, help="Show, approve and refuse changes that wait for an approval.")

IdArgument = Annotated[int, typer.Argument(metavar="ID", min=1, help="The number of a held release.")]


@app.command("list")
def list_(
    server: ServerOption,
    decided: Annotated[bool, typer.Option("--decided", help="Show also those that wait no longer.")] = False,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the changes that wait for an approval, newest first. A team sees its own."""
    rows = ask("GET", server, "approvals", token_file, output, params={"decided": decided})
    if output is Output.JSON:
        print_json(rows)
    elif rows:
        told = ("id", "state", "environment", "owner", "version", "action", "actor", "expires_at")
        print_columns([[str(row[name]) for name in told] for row in rows])


@app.command()
def show(
    id_: IdArgument, server: ServerOption, token_file: TokenOption = None, output: OutputOption = Output.TEXT
) -> None:
    """Show a held release: what it waits for, and what it gives and takes. `*` marks what waits for an approval."""
    held = ask("GET", server, f"approvals/{id_}", token_file, output)
    if output is Output.JSON:
        print_json(held)
        return
    print_held(held)
    if held["state"] == "waiting":
        print_line(f"To approve this: team-authz server approvals approve {id_} --seen {held['seen']}")


@app.command()
def approve(
    id_: IdArgument,
    seen: Annotated[
        str, typer.Option(metavar="TEXT", help="The impact that you have seen, as `show` prints it in its last line.")
    ],
    server: ServerOption,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put a held release in force, if it still gives and takes what you have seen.

    Exit code 1: refused, such as because its impact is another one now, or a freeze applies. 2: you may not approve it.
    """
    done = ask("POST", server, f"approvals/{id_}/approve", token_file, output, json={"seen": seen})
    if output is Output.JSON:
        print_json(done)
        return
    print_columns(
        [["ok", f"version {done['version']} of {done['owner']} in {done['environment']}, serial {done['serial']}"]]
    )
    print_impact(done)


@app.command()
def refuse(
    id_: IdArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the history.")],
    server: ServerOption,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Refuse a held release. A team can so take back its own. Exit code 1: it waits no longer."""
    done = ask("POST", server, f"approvals/{id_}/refuse", token_file, output, json={"reason": reason})
    print_json(done) if output is Output.JSON else print_columns([["ok", f"{id_} is refused"]])
