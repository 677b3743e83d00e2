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
    from airflow_team_authz.review.selectors import Selector

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
    from airflow_team_authz.review.selectors import named_by

    for policy in (old, new):
        if not policy.exists():
            raise UserError(f"there is no {policy}: name a policy directory or a bundle")
    sources = read_sources(old), read_sources(new)
    teams, ids = named_by([] if fail_on is None else [fail_on])
    kinds = Kinds(*sources, teams=teams, ids=ids)
    questions, unseen = of_inventory(*sources) if inventory else (kinds.questions(), kinds.unseen)
    try:
        found, failing = _compared(old, new, questions, kinds.roles, fail_on)
    except NotDecidedError as error:
        raise UserError(str(error)) from None
    print_changes(Comparison(found, places(found, *sources), [_asked(found)], unseen), output)
    if failing:
        raise typer.Exit(FAILED)


def _compared(
    old: Path, new: Path, questions: Iterator[Asked], roles: Sequence[str], fail_on: Selector | None
) -> tuple[Found, bool]:
    """What was found, and whether any of it is of the kind that makes the exit code 1."""
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.review.changes import compare
    from airflow_team_authz.review.selectors import teams_by

    progress = Progress("questions asked of both policies")
    with opened(Named(policy=old)) as before, opened(Named(policy=new)) as after:
        points = DecisionPoint(before), DecisionPoint(after)
        found = compare(*points, questions, roles, progress)
        failing = fail_on is not None and fail_on.finds(found, teams_by(*points))
    progress.end()
    return found, failing


def _asked(found: Found) -> str:
    if not found.changes:
        return f"Nothing is gained or lost: {found.questions:,} questions have the same answers."
    return f"{found.different:,} of {found.questions:,} questions have other answers."
