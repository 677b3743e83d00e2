"""``team-authz can`` and ``who-can``: who may do what, by the policy and what this Airflow has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.support.console import (
    Output,
    OutputOption,
    Progress,
    UserError,
    complain,
    print_columns,
    print_json,
    print_line,
    talking_to_stderr,
)
from airflow_team_authz.cli.support.engine import PolicyOption, UrlOption, configured_engine, named_engine, opened
from airflow_team_authz.cli.support.resources import resource_named, unreadable

if TYPE_CHECKING:
    from airflow_team_authz.decision_log.reading import Record
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.engines.choice import EngineSettings
    from airflow_team_authz.model import Resource
    from airflow_team_authz.review import Allowed, Asked, Who
    from airflow_team_authz.review.inventory import Things
    from airflow_team_authz.review.names import Sources

NOBODY = 1
_COLUMNS = ("who", "kind", "action", "type", "id", "team", "layer", "reason")
SourcesOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The sources of an OPA server's policy, to read the names of its directory."),
]
TeamOption = Annotated[
    str | None, typer.Option(metavar="ID", help="The owner of the resource, if it does not exist yet.")
]


def can(
    who: Annotated[
        str, typer.Argument(metavar="WHO", help="A user's name, or group:NAME, role:NAME, claim:NAME=VALUE, task:TEAM.")
    ],
    action: Annotated[str | None, typer.Argument(metavar="[ACTION", help="read, update, trigger, …")] = None,
    resource: Annotated[
        str | None, typer.Argument(metavar="TYPE/ID]", help="connection/alpha_db, dag.code/daily, …")
    ] = None,
    team: TeamOption = None,
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show every right of a person or task in this Airflow, or whether they have one right.

    Exit code 0: the policy allows something. 1: nothing. 2: the engine did not answer, or there is no such user.
    """
    if (action is None) != (resource is None):
        raise UserError("name both ACTION and TYPE/ID, or neither")
    with asking(policy, opa_url) as point:
        somebody = _somebody(who)
        questions = _about(action, resource, team, [somebody]) if action and resource else _all([somebody])
        found = _permissions(point, questions)
    _print(
        found,
        output,
        _folded(found),
        [f"the groups and roles of {somebody.name} are those that the login manager reports now"],
    )
    if not found:
        raise typer.Exit(NOBODY)


def who_can(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="read, update, trigger, …")],
    resource: Annotated[str, typer.Argument(metavar="TYPE/ID", help="connection/alpha_db, dag.code/daily, …")],
    team: TeamOption = None,
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    sources: SourcesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the people of the login manager, the groups and claims of the directory, and the tasks that have one right.

    Exit code 0: somebody has the right. 1: none of these has it. 2: the engine did not answer.
    """
    with asking(policy, opa_url) as point:
        whos, missing = _people(policy, opa_url, sources)
        found = _permissions(point, _about(action, resource, team, whos))
    rows = [[one.who.name, one.decision.layer, "; ".join(one.decision.reasons)] for one in found]
    _print(found, output, rows, missing)
    if not found:
        raise typer.Exit(NOBODY)


# Who and what


def _somebody(word: str) -> Who:
    from airflow_team_authz.review.inventory import person, tasks
    from airflow_team_authz.review.kinds import holder

    sort, separator, name = word.partition(":")
    if separator and sort in {"group", "role"}:
        return holder(f"{sort}s", name)
    if separator and sort == "claim":
        claim, has_value, value = name.partition("=")
        if not has_value:
            raise UserError(f"claim:{name} has no value: write claim:{name}=VALUE")
        return holder(f"claims.{claim}", value)
    if separator and sort == "task":
        return next(tasks([name] if name else []))
    from airflow_team_authz.cli.support.login import login_manager, name_of

    with talking_to_stderr():
        manager = login_manager()
        try:
            user = manager.find(word.removeprefix("user:"))
        except LookupError as error:
            raise UserError(f"{error}: name a group, role or claim instead, such as group:NAME") from None
    if user is None:
        raise UserError(f"{name_of(manager)} has no user {word}")
    return person(manager.subject(user))


def of_inventory(*policies: Sources | None) -> tuple[Iterator[Asked], list[str]]:
    """Every question about what this Airflow has, for whom a policy or the login knows; and what is missing."""
    from airflow_team_authz.cli.support.login import login_manager, name_of
    from airflow_team_authz.review.inventory import NOT_COVERED, population

    there = _things()
    with talking_to_stderr():
        manager = login_manager()
        found = [population(manager, name_of(manager), policy, there.team_ids, _seen) for policy in policies]
    whos = dict.fromkeys(who for one in found for who in one.whos)
    missing = dict.fromkeys(told for one in found for told in one.not_covered)
    return there.questions(whos), [*missing, *NOT_COVERED]


def _people(policy: Path | None, opa_url: str | None, sources: Path | None) -> tuple[Sequence[Who], list[str]]:
    from airflow_team_authz.cli.support.login import login_manager, name_of
    from airflow_team_authz.review.inventory import population

    named = sources_named(policy, opa_url, sources)
    with talking_to_stderr():
        manager = login_manager()
        found = population(manager, name_of(manager), named, _things().team_ids, _seen)
    return found.whos, [*found.not_covered]


def _seen() -> Iterator[Record]:
    """The last decision of each subject. ``LookupError`` if the decision log cannot be read here."""
    from airflow_team_authz.cli.support.decision_log import open_records

    try:
        with open_records(None) as records:
            yield from records.last_of_each_subject()
    except UserError as error:
        raise LookupError(str(error)) from None


def _things() -> Things:
    from airflow_team_authz.review.inventory import Things

    with talking_to_stderr():
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_team_authz.doors.readable import existing
        from airflow_team_authz.questions import every_view

        try:
            return Things(existing(), every_view())
        except SQLAlchemyError as error:
            raise unreadable(error) from None


def _about(action: str, word: str, team: str | None, whos: Iterable[Who]) -> Iterator[Asked]:
    """The one question, for each of them."""
    from airflow_team_authz.review import Asked

    resource = resource_named(action, word, team)
    yield from (Asked(who, action, [resource]) for who in whos)


def _all(whos: Sequence[Who]) -> Iterator[Asked]:
    return _things().questions(whos)


def sources_named(policy: Path | None, opa_url: str | None, sources: Path | None) -> Sources | None:
    """The policy's directory and role table, if they can be read."""
    from airflow_team_authz.review.names import Sources as Read
    from airflow_team_authz.review.names import read_sources

    settings = _settings(policy, opa_url)
    place = sources or settings.policy
    if sources is None and settings.opa_url is not None:
        return None
    if place is None:
        return Read({})
    return read_sources(place) if isinstance(place, Path) else None


def _settings(policy: Path | None, opa_url: str | None) -> EngineSettings:
    return named_engine(policy, opa_url) or configured_engine()


@contextmanager
def asking(policy: Path | None, opa_url: str | None) -> Iterator[DecisionPoint]:
    """The engine of the options, or of the settings. A policy that fails is a ``UserError``."""
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.review import NotDecidedError

    with opened(_settings(policy, opa_url)) as engine:
        try:
            yield DecisionPoint(engine)
        except NotDecidedError as error:
            raise UserError(str(error)) from None


# What is printed


def permitted(point: DecisionPoint, questions: Iterator[Asked]) -> Iterator[Allowed]:
    """The permissions among these questions. It shows the progress on stderr."""
    from airflow_team_authz.review import permissions

    progress = Progress("permissions found")
    for number, one in enumerate(permissions(point, questions), 1):
        progress(number)
        yield one
    progress.end()


def _permissions(point: DecisionPoint, questions: Iterator[Asked]) -> list[Allowed]:
    return list(permitted(point, questions))


def _row(one: Allowed) -> dict[str, str]:
    from airflow_team_authz.review import kind_of

    about = one.resource
    values = (
        one.who.name, one.who.kind, one.action, kind_of(about), str(about.id or ""), about.team_id or "",
        one.decision.layer, "; ".join(one.decision.reasons),
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def _folded(found: Iterable[Allowed]) -> list[list[str]]:
    """A line for what may be done with a thing for one reason."""
    from airflow_team_authz.review import kind_of

    actions: dict[tuple[Resource, str, str], list[str]] = defaultdict(list)
    for one in found:
        actions[one.resource, one.decision.layer, "; ".join(one.decision.reasons)].append(one.action)
    return [
        [", ".join(may), kind_of(about), str(about.id or "any"), about.team_id or "common", layer, reason]
        for (about, layer, reason), may in actions.items()
    ]


def _print(found: Sequence[Allowed], output: Output, rows: list[list[str]], missing: Sequence[str]) -> None:
    if output is Output.JSON:
        print_json({"allowed": [_row(one) for one in found], "not_covered": [*missing]})
        return
    if rows:
        print_columns(rows)
    else:
        print_line("The policy allows nothing.")
    for told in missing:
        complain(f"not covered: {told}")
