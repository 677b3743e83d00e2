"""``team-authz impact``: the answers that differ with another policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.access import of_inventory
from airflow_team_authz.cli.support.changes import Comparison, FailOnOption, ReportOption, places, print_changes
from airflow_team_authz.cli.support.console import Progress, Report, UserError
from airflow_team_authz.cli.support.engine import Named, opened

if TYPE_CHECKING:
    from airflow_team_authz.review import Asked
    from airflow_team_authz.review.changes import Found

FAILED = 1


def impact(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The policy directory or the bundle that is in force.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The directory or the bundle that would replace it.")],
    inventory: Annotated[
        bool, typer.Option("--inventory", help="Ask about the people and resources of this Airflow.")
    ] = False,
    fail_on: FailOnOption = None,
    output: ReportOption = Report.TEXT,
) -> None:
    """Show the rights that a change of the policy gives to people and tasks, and those that it takes.

    The command asks both policies every kind of question, with each name in either of them, and with one other name.
    With --inventory it asks about the people and resources of this Airflow instead.

    Exit code 0: shown. 1: there are changes that --fail-on names. 2: an engine did not answer.
    """
    from airflow_team_authz.review import NotDecidedError
    from airflow_team_authz.review.kinds import Kinds
    from airflow_team_authz.review.names import read_sources

    for policy in (old, new):
        if not policy.exists():
            raise UserError(f"there is no {policy}: name a policy directory or a bundle")
    sources = read_sources(old), read_sources(new)
    kinds = Kinds(*sources)
    questions, unseen = of_inventory(*sources) if inventory else (kinds.questions(), kinds.unseen)
    try:
        found = _compared(old, new, questions, kinds.roles)
    except NotDecidedError as error:
        raise UserError(str(error)) from None
    print_changes(Comparison(found, places(found, *sources), [_asked(found)], unseen), output)
    if fail_on is not None and found.has(fail_on):
        raise typer.Exit(FAILED)


def _compared(old: Path, new: Path, questions: Iterator[Asked], roles: Sequence[str]) -> Found:
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.review.changes import compare

    progress = Progress("questions asked of both policies")
    with opened(Named(policy=old)) as before, opened(Named(policy=new)) as after:
        found = compare(DecisionPoint(before), DecisionPoint(after), questions, roles, progress)
    progress.end()
    return found


def _asked(found: Found) -> str:
    if not found.changes:
        return f"Nothing is gained or lost: {found.questions:,} questions have the same answers."
    return f"{found.different:,} of {found.questions:,} questions have other answers."
