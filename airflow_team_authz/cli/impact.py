"""``team-authz impact``: the answers that differ with another policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.access import of_inventory
from airflow_team_authz.cli.support.console import Progress, Report, UserError, as_code, print_json, print_line
from airflow_team_authz.cli.support.engine import Named, opened

if TYPE_CHECKING:
    from airflow_team_authz.review import Asked
    from airflow_team_authz.review.changes import Change, Found
    from airflow_team_authz.review.names import Sources

FAILED = 1
# Of more nobody reads the text; JSON has all of them.
_MOST_LINES = 100
# Each takes a part of a second to look up.
_MOST_PLACED = 20


class FailOn(StrEnum):
    """The changes that make the exit code 1."""

    GAINED = "gained"
    LOST = "lost"
    ANY = "any"


def impact(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The policy directory or the bundle that is in force.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The directory or the bundle that would replace it.")],
    inventory: Annotated[
        bool, typer.Option("--inventory", help="Ask about the people and resources of this Airflow.")
    ] = False,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with 1 if the change gives rights, takes rights, or does either.")
    ] = None,
    output: Annotated[Report, typer.Option("--output", "-o", help="The form of the report.")] = Report.TEXT,
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
    places = _places(found, *sources)
    if output is Report.JSON:
        _print_json(found, places, unseen)
    else:
        _PRINT[output](found, places, unseen)
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


def _places(found: Found, old: Sources, new: Sources) -> list[tuple[str, ...]]:
    """Files and lines of the rules that make the first changes."""
    from airflow_team_authz.explanation import deciding_rules

    places: list[tuple[str, ...]] = []
    for change in found.changes:
        first = change.first
        sources = new if first.said is first.new else old
        if len(places) >= _MOST_PLACED or not sources.files:
            places.append(())
            continue
        rules = deciding_rules(first.question, sources.files)
        places.append(tuple(dict.fromkeys(f"{rule.file}:{rule.line}" for rule in rules)))
    return places


def _print_text(found: Found, places: list[tuple[str, ...]], unseen: list[str]) -> None:
    for line in _lines(found, places):
        print_line(line)
    print_line()
    print_line(_asked(found))
    for told in unseen:
        print_line(f"Not seen: {told}.")


def _print_markdown(found: Found, places: list[tuple[str, ...]], unseen: list[str]) -> None:
    for heading, gained in (("Gained", True), ("Lost", False)):
        lines = list(_lines(found, places, gained))
        if lines:
            print_line(f"## {heading}")
            print_line()
            for line in lines:
                print_line(f"- {as_code(line)}")
            print_line()
    print_line(_asked(found))
    print_line()
    for told in unseen:
        print_line(f"- Not seen: {told}.")


def _lines(found: Found, places: list[tuple[str, ...]], gained: bool | None = None) -> Iterator[str]:
    from airflow_team_authz.review.changes import told

    wanted = [
        (change, where)
        for change, where in zip(found.changes, places, strict=True)
        if gained in {None, change.first.gained}
    ]
    yield from (told(change, where) for change, where in wanted[:_MOST_LINES])
    if len(wanted) > _MOST_LINES:
        yield f"and {len(wanted) - _MOST_LINES} lines more: --output json has them"
    for (direction, kind, team_id), count in sorted(found.more.items(), key=str):
        if gained in {None, direction == "gained"}:
            of = "what is common" if team_id is None else f"team {team_id}"
            yield f"{count:,} questions more about {kind} of {of} are answered differently: {direction}"


def _asked(found: Found) -> str:
    if not found.changes:
        return f"Nothing is gained or lost: {found.questions:,} questions have the same answers."
    return f"{found.different:,} of {found.questions:,} questions have other answers."


def _print_json(found: Found, places: list[tuple[str, ...]], unseen: list[str]) -> None:
    from airflow_team_authz.review.changes import told

    print_json(
        {
            "questions": found.questions,
            "changes": [
                {"told": told(change, where), "where": list(where), **_as_json(change)}
                for change, where in zip(found.changes, places, strict=True)
            ],
            "more": [
                {"direction": direction, "type": kind, "team_id": team_id, "questions": count}
                for (direction, kind, team_id), count in sorted(found.more.items(), key=str)
            ],
            "not_seen": unseen,
        }
    )


def _as_json(change: Change) -> dict[str, Any]:
    import msgspec

    from airflow_team_authz.review import kind_of
    from airflow_team_authz.review.changes import rego_test

    first = change.first
    return {
        "direction": "gained" if first.gained else "lost",
        "subjects": [who.name for who in change.whos],
        "team_ids": list(change.owners),
        "reasons": list(change.reasons),
        "permissions": [
            {"action": one.asked.action, "type": kind_of(one.resource), "id": one.resource.id}
            if isinstance(one.resource.id, str)
            else {"action": one.asked.action, "type": kind_of(one.resource)}
            for one in change.differences
        ],
        "old": msgspec.to_builtins(first.old),
        "new": msgspec.to_builtins(first.new),
        "question": msgspec.to_builtins(first.question),
        "rego_test": rego_test(change),
    }


_PRINT = {Report.TEXT: _print_text, Report.MARKDOWN: _print_markdown}
