"""``team-authz shadow report`` and ``team-authz replay``: what another policy answers to recorded questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.decisions import moment_of, open_records
from airflow_team_authz.cli.support.changes import FailOnOption, ReportOption, Told, places, print_changes
from airflow_team_authz.cli.support.console import Report, complain

if TYPE_CHECKING:
    from airflow_team_authz.review.names import Sources
    from airflow_team_authz.review.recorded import Log

DIFFERS, FAILED = 1, 2

SinceOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only newer records: 90m, 2h, 7d, or 2026-11-27T08:00 (UTC).")
]
TypeOption = Annotated[str | None, typer.Option("--type", help="Questions about this type: connection, dag, …")]
UserOption = Annotated[str | None, typer.Option(metavar="NAME", help="Questions of this person or task.")]
TeamOption = Annotated[str | None, typer.Option(metavar="ID", help="Questions about resources of this team.")]
FileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read this file of the decision log, not the configured sink.")
]

shadow_app = typer.Typer(no_args_is_help=True, help="See what the policy in [team_authz] shadow would change.")


@shadow_app.command("report")
def shadow_report(
    since: SinceOption = None,
    user: UserOption = None,
    team: TeamOption = None,
    type_: TypeOption = None,
    file: FileOption = None,
    fail_on: FailOnOption = None,
    output: ReportOption = Report.TEXT,
) -> None:
    """Show the recorded differences between the policy in force and the policy in [team_authz] shadow.

    One line has the differences of people with the same groups, roles and teams, about one action and type.

    Exit code 0: shown. 1: there are differences that --fail-on names. 2: the command cannot read the decision log, or
    the shadow policy has failed to answer.
    """
    from airflow_team_authz.decision_log.reading import Wanted
    from airflow_team_authz.review.recorded import beside

    wanted = Wanted(moment_of(since), user, team, type_, shadow=True)
    with open_records(file) as records:
        found = beside(records.each(wanted), "shadow")
    _print(found, output, "the shadow policy", fail_on)


def _print(found: Log, output: Report, other: str, fail_on: Any, *sources: Sources | None) -> None:
    old, new = sources or (None, None)
    not_seen = [f"{count:,} {why}" for why, count in found.left_out.items()]
    more = {
        "since": found.since, "until": found.until, "policies": list(found.policies),
        "candidates": list(found.candidates), "left_out": found.left_out, "failed": found.failed,
    }  # fmt: skip
    summary = _summary(found, other)
    print_changes(Told(found.found, places(found.found, old, new), summary, not_seen, more), output)
    for message, count in found.failed.items():
        complain(f"{other} has not answered {count:,} questions: {message}")
    if found.failed:
        raise typer.Exit(FAILED)
    if fail_on is not None and found.found.has(fail_on):
        raise typer.Exit(DIFFERS)


def _summary(found: Log, other: str) -> list[str]:
    changes = found.found
    if not changes.changes:
        return ["Nothing would be gained or lost: the decision log has no difference."]
    summary = [f"{changes.different:,} recorded decisions would be different, from {found.since} to {found.until}."]
    summary += _changed("The policy in force", found.policies)
    return summary + _changed(f"{other[0].upper()}{other[1:]}", found.candidates)


def _changed(what: str, revisions: Sequence[str]) -> list[str]:
    """That a policy has changed meanwhile, so the differences are not those of one pair."""
    if len(revisions) < 2:
        return []
    return [f"{what} has changed meanwhile: revisions {', '.join(revisions)}."]
