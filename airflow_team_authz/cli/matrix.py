"""``team-authz matrix``: every permission, for an access review."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.access import SourcesOption, asking, of_inventory, permitted, sources_named
from airflow_team_authz.cli.bundle.build import KeyOption
from airflow_team_authz.cli.review import signed
from airflow_team_authz.cli.support.console import Progress, UserError, print_columns, print_line
from airflow_team_authz.cli.support.engine import PolicyOption, UrlOption, configured_engine
from airflow_team_authz.cli.support.resources import kind_named
from airflow_team_authz.cli.support.spreadsheet import csv_line
from airflow_team_authz.escaping import escaped

if TYPE_CHECKING:
    from airflow_team_authz.engines import DecisionPoint
    from airflow_team_authz.review import Allowed, Asked
    from airflow_team_authz.review.document import Head, Permission
    from airflow_team_authz.review.last_use import LastUses
    from airflow_team_authz.review.names import Sources


class By(StrEnum):
    """The subjects of a matrix: people and names, or roles."""

    SUBJECT = "subject"
    ROLE = "role"


class Form(StrEnum):
    """The form of a matrix."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    HTML = "html"


def matrix(
    by: Annotated[
        By,
        typer.Option(help="Show the rights of people, groups and tasks in this Airflow, or of each role of a policy."),
    ] = By.SUBJECT,
    type_: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only resources of this type.")] = None,
    team: Annotated[str | None, typer.Option(metavar="ID", help="Only resources of this team.")] = None,
    policy: PolicyOption = None,
    opa_url: UrlOption = None,
    sources: SourcesOption = None,
    last_use: Annotated[
        bool,
        typer.Option("--last-use/--no-last-use", help="Show the last use of each permission, by the decision log."),
    ] = True,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read last uses from this file, not from the configured log.")
    ] = None,
    output: Annotated[
        Form, typer.Option("--output", "-o", help="The form. html is one page with a search box.")
    ] = Form.TABLE,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file instead of stdout.")] = None,
    sign: Annotated[bool, typer.Option("--sign", help="Sign the file of --out. The signature is in FILE.sig.")] = False,
    key: KeyOption = None,
) -> None:
    """Show every allowed action of every person, group and task on every resource.

    --by role needs no Airflow: it shows the rights of each role of the policy on resources of its own team, on those of
    another team, and on common ones.

    Each form has the policy's revision, the time, and the subjects and resources that it does not cover.

    Exit code 0: shown. 2: the engine did not answer.
    """
    from airflow_team_authz.cli.keys import signing_key
    from airflow_team_authz.review.document import FORMAT, NOT_COVERED_BY_ROLE, Head, once

    if type_ is not None:
        kind_named(type_)
    if by is By.ROLE and team is not None:
        raise UserError("--team is about this Airflow's resources: the questions of --by role name no team")
    sign = sign or key is not None
    if (sign or out) and output is Form.TABLE:
        raise UserError("a table is for the terminal: name --output html, json or csv for a file")
    if sign and out is None:
        raise UserError("name the file to sign by --out")
    if out and key and out.resolve() in {key.resolve(), key.resolve().with_name(f"{key.name}.pub")}:
        raise UserError("--out would replace the key: name another file")
    signer = signing_key(key) if sign else None
    uses, gaps = _last_uses(log) if last_use and by is By.SUBJECT else (None, [])
    with asking(policy, opa_url) as point:
        if by is By.ROLE:
            questions, missing = _of_roles(sources_named(policy, opa_url, sources)), [*NOT_COVERED_BY_ROLE]
        else:
            questions, missing = of_inventory(sources_named(policy, opa_url, sources))
        revision = _revision(point)
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        head = Head(FORMAT, now, revision, by, type_, team, (*missing, *gaps))
        found = permitted(point, _only(questions, type_, team))
        rows = once(_rows(found, by, uses)) if by is By.ROLE else _rows(found, by, uses)
        lines = _same_policy(_LINES[output](head, rows), point, revision)
        if out is None:
            for line in lines:
                print_line(line, keep=_KEPT)
        else:
            content = "".join(f"{escaped(line, _KEPT)}\n" for line in lines).encode()
            signed(out, content, signer)


# A page has line breaks in its script and style only.
_KEPT = "\n"


def _rows(found: Iterable[Allowed], by: By, uses: LastUses | None) -> Iterator[Permission]:
    from msgspec import UNSET

    from airflow_team_authz.review.document import permission

    return (permission(one, by, UNSET if uses is None else uses.of(one)) for one in found)


def _revision(point: DecisionPoint) -> str:
    from airflow_team_authz.model import Subject

    _, revision = point.whoami(Subject("user", "nobody", (), ()))
    return revision or "unknown"


def _same_policy(lines: Iterator[str], point: DecisionPoint, revision: str) -> Iterator[str]:
    """The lines; an error in the end if the policy was replaced meanwhile, since they would be about two policies."""
    yield from lines
    if (now := _revision(point)) != revision:
        raise UserError(f"the policy has changed from revision {revision} to {now} meanwhile: run the command again")


def _last_uses(log: Path | None) -> tuple[LastUses | None, list[str]]:
    """The last uses by the decision log, and their limits. Without a log that can be read there are none."""
    from airflow_team_authz.cli.support.decision_log import open_records
    from airflow_team_authz.decision_log.levels import Levels
    from airflow_team_authz.review.last_use import LastUses

    progress = Progress("records read")

    def counted(records: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
        for number, record in enumerate(records, 1):
            progress(number)
            yield record

    try:
        with open_records(log) as records:
            levels = None if log is not None else Levels(configured_engine().decision_log_levels)
            uses = LastUses(counted(records.uses()), levels)
    except UserError as error:
        if log is not None:
            raise
        return None, [f"last uses: {error}"]
    progress.end()
    return uses, [*uses.gaps()]


def _of_roles(sources: Sources | None) -> Iterator[Asked]:
    from airflow_team_authz.review.kinds import Kinds

    if sources is None:
        raise UserError("an OPA server does not show its role table: name the policy directory by --sources")
    return Kinds(sources).of_roles()


def _only(questions: Iterator[Asked], type_: str | None, team: str | None) -> Iterator[Asked]:
    for asked in questions:
        resources = [
            one for one in asked.resources
            if type_ in {None, one.type, f"{one.type}.{one.entity}"} and team in {None, one.team_id}
        ]  # fmt: skip
        if resources:
            yield asked._replace(resources=resources)


# The forms


def _as_table(head: Head, permissions: Iterator[Permission]) -> Iterator[str]:
    by_row: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in permissions:
        row = (one.who, one.type, one.id or "any", one.team or "common", one.layer, one.reason)
        by_row[row].append(f"{one.action} ({one.last_use})" if one.last_use else one.action)
    yield "; ".join(head.facts())
    print_columns(
        [
            ["who", "may", "type", "id", "team", "layer", "reason"],
            *([who, ", ".join(may), *rest] for (who, *rest), may in by_row.items()),
        ]
    )
    yield from (f"not covered: {gap}" for gap in head.not_covered)


def _as_json(head: Head, permissions: Iterator[Permission]) -> Iterator[str]:
    from airflow_team_authz.review.document import as_json

    return as_json(head, permissions)


def _as_csv(head: Head, permissions: Iterator[Permission]) -> Iterator[str]:
    """A table with the columns of a permission. Its first rows are about the review itself."""
    from airflow_team_authz.review.document import COLUMNS

    def about(kind: str, text: str) -> Iterable[str]:
        return ("" if name not in {"kind", "reason"} else kind if name == "kind" else text for name in COLUMNS)

    yield csv_line(COLUMNS)
    yield csv_line(about("review", "; ".join(head.facts())))
    yield from (csv_line(about("not covered", gap)) for gap in head.not_covered)
    for one in permissions:
        yield csv_line(str(getattr(one, name) or "") for name in COLUMNS)


def _as_html(head: Head, permissions: Iterator[Permission]) -> Iterator[str]:
    from airflow_team_authz.review.page import render

    return render(head, permissions)


_LINES: dict[Form, Callable[[Head, Iterator[Permission]], Iterator[str]]] = {
    Form.TABLE: _as_table, Form.JSON: _as_json, Form.CSV: _as_csv, Form.HTML: _as_html,
}  # fmt: skip
