"""Prints what another policy gives and takes: one form for all commands that compare policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from airflow_team_authz.cli.support.console import Report, UserError, as_code, print_json, print_line

if TYPE_CHECKING:
    from airflow_team_authz.review.changes import Change, Found
    from airflow_team_authz.review.names import Sources
    from airflow_team_authz.review.selectors import Selector

# Of more nobody reads the text; JSON has all of them.
_MOST_LINES = 100
# Each takes a part of a second to look up.
_MOST_PLACED = 20


class FailOn(StrEnum):
    """The changes that make the exit code 1."""

    GAINED = "gained"
    LOST = "lost"
    ANY = "any"


def _selector(text: str) -> Selector:
    from airflow_team_authz.review.selectors import SelectorError, parse

    try:
        return parse(text)
    except SelectorError as error:
        raise UserError(f"--fail-on: {error}") from None


# Not the type itself: it is imported only by who needs it.
FailOnOption = Annotated[
    Any,
    typer.Option(
        metavar="SELECTOR",
        parser=_selector,
        help="Exit with 1 for such changes: gained, lost or any, alone or with conditions, such as "
        "gained:team=beta,owner=alpha,type=pool,id=production.",
    ),
]
ReportOption = Annotated[Report, typer.Option("--output", "-o", help="The form of the report.")]


class Comparison(NamedTuple):
    """What is printed: the changes with the places of their rules, a summary, what was not seen, and more for JSON."""

    found: Found
    places: Sequence[tuple[str, ...]]
    summary: Sequence[str]
    not_seen: Sequence[str]
    more: Mapping[str, Any] = {}


def print_changes(comparison: Comparison, output: Report) -> None:
    """Print a report."""
    _PRINT[output](comparison)


def places(found: Found, old: Sources | None, new: Sources | None) -> list[tuple[str, ...]]:
    """Files and lines of the rules that make the first changes, as far as there are sources."""
    from airflow_team_authz.explanation import deciding_rules

    found_places: list[tuple[str, ...]] = []
    placed = 0
    for change in found.changes:
        first = change.first
        sources = new if first.said is first.new else old
        if placed >= _MOST_PLACED or sources is None or not sources.files:
            found_places.append(())
            continue
        placed += 1
        rules = deciding_rules(first.question, sources.files)
        found_places.append(tuple(dict.fromkeys(f"{rule.file}:{rule.line}" for rule in rules)))
    return found_places


def _print_text(comparison: Comparison) -> None:
    for line in _lines(comparison):
        print_line(line)
    print_line()
    for line in comparison.summary:
        print_line(line)
    for unseen in comparison.not_seen:
        print_line(f"Not seen: {unseen}.")


def _print_markdown(comparison: Comparison) -> None:
    for heading, gained in (("Gained", True), ("Lost", False)):
        lines = list(_lines(comparison, gained))
        if lines:
            print_line(f"## {heading}")
            print_line()
            for line in lines:
                print_line(f"- {as_code(line)}")
            print_line()
    for line in comparison.summary:
        print_line(_harmless(line))
        print_line()
    for unseen in comparison.not_seen:
        print_line(f"- Not seen: {_harmless(unseen)}.")


def _harmless(line: str) -> str:
    """As code if it has what means something in Markdown: records are of others."""
    return as_code(line) if {*line} & {*"`<>[]*_|&\\"} else line


def _lines(comparison: Comparison, gained: bool | None = None) -> Iterator[str]:
    from airflow_team_authz.review.changes import told as told_of

    found = comparison.found
    wanted = [
        (change, where)
        for change, where in zip(found.changes, comparison.places, strict=True)
        if gained in {None, change.first.gained}
    ]
    yield from (told_of(change, where) for change, where in wanted[:_MOST_LINES])
    if len(wanted) > _MOST_LINES:
        yield f"and {len(wanted) - _MOST_LINES} lines more: --output json has them"
    for (direction, kind, team_id), count in sorted(found.more.items(), key=str):
        if gained in {None, direction == "gained"}:
            of = "what is common" if team_id is None else f"team {team_id}"
            yield f"{count:,} questions more about {kind} of {of} are answered differently: {direction}"


def _print_json(comparison: Comparison) -> None:
    from airflow_team_authz.review.changes import told as told_of

    found = comparison.found
    print_json(
        {
            "questions": found.questions,
            "changes": [
                {"told": told_of(change, where), "where": list(where), **_as_json(change)}
                for change, where in zip(found.changes, comparison.places, strict=True)
            ],
            "more": [
                {"direction": direction, "type": kind, "team_id": team_id, "questions": count}
                for (direction, kind, team_id), count in sorted(found.more.items(), key=str)
            ],
            "not_seen": list(comparison.not_seen),
            **comparison.more,
        }
    )


def _as_json(change: Change) -> dict[str, Any]:
    import msgspec

    from airflow_team_authz.review import kind_of
    from airflow_team_authz.review.changes import rego_test

    first, seen = change.first, change.seen
    recorded = {} if seen is None else {
        "decisions": seen.times, "people": list(seen.people), "decision_id": seen.decision_id
    }  # fmt: skip
    permissions = {
        (one.asked.action, kind_of(one.resource), one.resource.id if isinstance(one.resource.id, str) else None): None
        for one in change.differences
    }
    return {
        "direction": "gained" if first.gained else "lost",
        "subjects": [who.name for who in change.whos],
        "team_ids": list(change.owners),
        "reasons": list(change.reasons),
        "permissions": [
            {"action": action, "type": kind} if id_ is None else {"action": action, "type": kind, "id": id_}
            for action, kind, id_ in permissions
        ],
        **recorded,
        "old": msgspec.to_builtins(first.old),
        "new": msgspec.to_builtins(first.new),
        "question": msgspec.to_builtins(first.question),
        "rego_test": rego_test(change),
    }


_PRINT = {Report.TEXT: _print_text, Report.JSON: _print_json, Report.MARKDOWN: _print_markdown}
