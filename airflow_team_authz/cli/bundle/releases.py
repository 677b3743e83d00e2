"""``team-authz bundle history``, ``diff``, ``rollback`` and ``promote``: versions on a bundle server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    UserError,
    print_columns,
    print_json,
    print_line,
)
from airflow_team_authz.cli.support.server_client import ServerOption, TokenOption, ask, print_impact, released
from airflow_team_authz.cli.support.vocabulary import require_team_id

TeamOption = Annotated[str | None, typer.Option("--team", metavar="ID", help="The package of this team.")]
PlatformOption = Annotated[bool, typer.Option("--platform", help="The platform's own part.")]
EnvironmentOption = Annotated[
    str | None, typer.Option("--environment", metavar="NAME", help="Default: the server's first.")
]


def history(
    server: ServerOption,
    team: TeamOption = None,
    platform: PlatformOption = False,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the versions that came into force, and what became of held ones, newest first."""
    entries = ask("GET", server, f"{_place(team, platform)}/history", token_file, output)
    if output is Output.JSON:
        print_json(entries)
    elif entries:
        told = ("at", "environment", "action", "version", "digest", "actor")
        print_columns([[*(str(entry[name]) for name in told), _approved(entry)] for entry in entries])


def diff(
    old: Annotated[int, typer.Argument(metavar="FROM", min=1, help="A version.")],
    new: Annotated[int, typer.Argument(metavar="TO", min=1, help="Another version.")],
    server: ServerOption,
    team: TeamOption = None,
    platform: PlatformOption = False,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the differences between two versions, as `diff -u` does."""
    span = {"from": old, "to": new}
    told = ask("GET", server, f"{_place(team, platform)}/diff", token_file, output, params=span)
    if output is Output.JSON:
        print_json({**span, "diff": told})
    else:
        # Not `splitlines`: to that, more than a line break ends a line.
        for line in told.removesuffix("\n").split("\n"):
            print_line(line, keep="\t")


def rollback(
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version to put in force again.")],
    server: ServerOption,
    team: TeamOption = None,
    platform: PlatformOption = False,
    environment: EnvironmentOption = None,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put an earlier version in force again. Exit code 1: refused. 3: held until somebody else approves it."""
    wanted = {"version": version, "environment": environment}
    done = ask("POST", server, f"{_place(team, platform)}/rollback", token_file, output, json=wanted)
    _show(done, server, team, output)


def promote(
    source: Annotated[str, typer.Argument(metavar="FROM", help="An environment, such as staging.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Another environment, such as production.")],
    server: ServerOption,
    team: TeamOption = None,
    platform: PlatformOption = False,
    token_file: TokenOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put one environment's version in force in another, after the gate has checked it again.

    Exit code 1: refused. 3: held until somebody else approves it, see `team-authz server approvals`.
    """
    wanted, asked = {"from": source, "to": target}, {"impact": "true"}
    done = ask("POST", server, f"{_place(team, platform)}/promote", token_file, output, json=wanted, params=asked)
    _show(done, server, team, output)


def _approved(entry: dict[str, Any]) -> str:
    return f"approved by {entry['approved_by']}" if entry.get("approved_by") else ""


def _place(team: str | None, platform: bool) -> str:
    if (team is not None) == platform:
        raise UserError("name either --team or --platform")
    require_team_id("--team", team)
    return f"teams/{team}" if team else "platform"


def _show(answer: Any, server: str, team: str | None, output: Output) -> None:
    from airflow_team_authz.bundles.artifact import PLATFORM

    done = released(answer, server, team or PLATFORM, output)
    if output is Output.JSON:
        print_json(done)
        return
    told = f"version {done['version']} of {done['owner']} in {done['environment']}, serial {done['serial']}"
    print_columns([["ok", told]])
    print_impact(done)
