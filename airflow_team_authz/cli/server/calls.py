"""``team-authz server freeze``, ``thaw`` and ``status``: requests of the platform to a running bundle server."""

from __future__ import annotations

from typing import Annotated

import typer

from airflow_team_authz.cli.support.console import Output, OutputOption, print_columns, print_json
from airflow_team_authz.cli.support.server_client import ServerOption, TokenOption, ask

ScopeArgument = Annotated[
    str, typer.Argument(metavar="SCOPE", help="team:ID, environment:NAME, or '*' for everything.")
]


def freeze(
    scope: ScopeArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for people who try to publish.")],
    server: ServerOption,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Stop changes of a team, an environment, or all, until `team-authz server thaw`."""
    told = ask("POST", server, "freeze", token_file, output, json={"scope": scope, "reason": reason})
    print_json(told) if output is Output.JSON else print_columns([["ok", f"{scope} is frozen"]])


def thaw(
    scope: ScopeArgument, server: ServerOption, token_file: TokenOption = None, output: OutputOption = Output.TEXT
) -> None:
    """End a freeze."""
    told = ask("DELETE", server, "freeze", token_file, output, params={"scope": scope})
    print_json(told) if output is Output.JSON else print_columns([["ok", f"{scope} is not frozen any more"]])


def status(server: ServerOption, token_file: TokenOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show the revision of each client, alarms, and packages that no longer compile. Exit code 1: there are some."""
    told = page = ask("GET", server, "status", token_file, output)
    while (after := page.get("next")) is not None:
        page = ask("GET", server, "status", token_file, output, params={"after": after})
        told["clients"] += page["clients"]
    told.pop("next", None)
    alarms = [
        [
            "wrong",
            f"{package['team_id']} in {package['environment']}",
            f"version {package['version']} does not compile, {package['instead'] or 'a denial of everything'} is used",
            package["why"],
        ]
        for package in told["withheld"]
    ]
    rows = [
        [
            "wrong" if client["alarms"] else "ok",
            f"{client['kind']} {client['id']} by {client['reporter']}",
            ", ".join(client["revisions"].values()),
            "; ".join(client["alarms"]),
        ]
        for client in told["clients"]
    ]
    if output is Output.JSON:
        print_json(told)
    elif alarms or rows:
        print_columns(alarms + rows)
    if any(row[0] == "wrong" for row in alarms + rows):
        raise typer.Exit(1)
